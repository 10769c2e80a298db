//go:build goexperiment.jsonv2

package scanner_test

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"go.etcd.io/bbolt"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/scanner"
)

// liar is a layer that claims to be another when it is unpacked.
type liar struct {
	v1.Layer
	claims v1.Hash
}

func (l liar) DiffID() (v1.Hash, error) { return l.claims, nil }

// The analysis of a layer is remembered under the digest that the image's
// configuration claims for it. An image that lies there must not have its own
// content remembered for another image's layer.
func TestLayerThatClaimsToBeAnother(t *testing.T) {
	reg := newRegistry(t)
	dbRef := reg.host + "/vulndb:2"
	pushDatabase(t, dbRef, start)
	b := openScanner(t, dbRef)

	vulnerable := layer(t, archive(t, debian([3]string{"openssl", "openssl", "3.0.11-1~deb12u1"})))
	claims, err := vulnerable.DiffID()
	if err != nil {
		t.Fatal(err)
	}
	harmless := layer(t, archive(t, debian([3]string{"openssl", "openssl", "99"})))
	forged, err := mutate.AppendLayers(image(t, "amd64", ""), liar{harmless, claims})
	if err != nil {
		t.Fatal(err)
	}
	p := push(t, reg.host+"/forged", "linux/amd64", forged)
	_, err = b.Scan(t.Context(), named(reg.host+"/forged", p), []pipeline.PlatformImage{p})
	wantError(t, err, true, "layer "+claims.String()+" unpacks to sha256:", "do not belong together", string(p.Digest))

	honest, err := mutate.AppendLayers(image(t, "amd64", ""), vulnerable)
	if err != nil {
		t.Fatal(err)
	}
	q := push(t, reg.host+"/honest", "linux/amd64", honest)
	report, err := b.Scan(t.Context(), named(reg.host+"/honest", q), []pipeline.PlatformImage{q})
	if err != nil {
		t.Fatal(err)
	}
	if got := report.Platforms[0].Findings; len(got) != 2 {
		t.Errorf("the honest image has findings %+v, want 2", got)
	}
}

func TestHostileImages(t *testing.T) {
	reg := newRegistry(t)
	dbRef := reg.host + "/vulndb:2"
	pushDatabase(t, dbRef, start)
	b := openScanner(t, dbRef, func(c *scanner.Config) { c.MaxImageSize = 1 << 20 })
	repo := reg.host + "/app"
	scan := func(p pipeline.PlatformImage) error {
		_, err := b.Scan(t.Context(), named(repo, p), []pipeline.PlatformImage{p})
		return err
	}

	t.Run("unpacks to too much", func(t *testing.T) {
		p := push(t, repo, "linux/amd64", image(t, "amd64", "", files{"zeros": strings.Repeat("\x00", 4<<20)}))
		wantError(t, scan(p), true, "more than 1048576 bytes", string(p.Digest), "linux/amd64")
	})
	t.Run("too much over all layers", func(t *testing.T) {
		p := push(t, repo, "linux/amd64", image(t, "amd64", "",
			files{"a": strings.Repeat("a", 600<<10)}, files{"b": strings.Repeat("b", 600<<10)}))
		wantError(t, scan(p), true, "more than 1048576 bytes")
	})
	t.Run("too much behind the end of the archive", func(t *testing.T) {
		padded := append(archive(t, files{"a": "b"}), bytes.Repeat([]byte{0}, 2<<20)...)
		img, err := mutate.AppendLayers(image(t, "amd64", ""), layer(t, padded))
		if err != nil {
			t.Fatal(err)
		}
		wantError(t, scan(push(t, repo, "linux/amd64", img)), true, "more than 1048576 bytes")
	})
	t.Run("not an archive", func(t *testing.T) {
		img, err := mutate.AppendLayers(image(t, "amd64", ""), layer(t, bytes.Repeat([]byte("no archive at all. "), 100)))
		if err != nil {
			t.Fatal(err)
		}
		wantError(t, scan(push(t, repo, "linux/amd64", img)), false, "tar")
	})
	t.Run("layer from elsewhere", func(t *testing.T) {
		content := static.NewLayer([]byte("elsewhere"), types.OCIUncompressedLayer)
		img, err := mutate.Append(image(t, "amd64", ""), mutate.Addendum{Layer: content, URLs: []string{"http://169.254.169.254/latest"}})
		if err != nil {
			t.Fatal(err)
		}
		wantError(t, scan(push(t, repo, "linux/amd64", img)), true, "169.254.169.254", "layers outside of the registry are not read")
	})
	t.Run("index instead of an image", func(t *testing.T) {
		idx := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex), mutate.IndexAddendum{Add: image(t, "amd64", "", files{"a": "b"})})
		h, err := idx.Digest()
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.WriteIndex(reference(t, repo+"@"+h.String()), idx); err != nil {
			t.Fatal(err)
		}
		wantError(t, scan(pipeline.PlatformImage{Platform: "linux/amd64", Digest: pipeline.Digest(h.String())}), true, "is not an image manifest")
	})
	t.Run("artefact instead of an image", func(t *testing.T) {
		img := mutate.ConfigMediaType(image(t, "amd64", "", files{"a": "b"}), "application/vnd.example.thing")
		wantError(t, scan(push(t, repo, "linux/amd64", img)), true, "is not an image's")
	})
	t.Run("more layers in the configuration than in the manifest", func(t *testing.T) {
		img := image(t, "amd64", "", files{"a": "b"})
		cfg, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		cfg = cfg.DeepCopy()
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, cfg.RootFS.DiffIDs[0])
		img, err = mutate.ConfigFile(img, cfg)
		if err != nil {
			t.Fatal(err)
		}
		wantError(t, scan(push(t, repo, "linux/amd64", img)), true, "the manifest has 1 layers and the configuration 2")
	})
	t.Run("not there", func(t *testing.T) {
		absent := pipeline.PlatformImage{Platform: "linux/amd64", Digest: "sha256:" + pipeline.Digest(strings.Repeat("0", 64))}
		wantError(t, scan(absent), false, repo, "MANIFEST_UNKNOWN")
	})
	t.Run("no platform", func(t *testing.T) {
		_, err := b.Scan(t.Context(), pipeline.Image{Repository: repo, Digest: "sha256:" + pipeline.Digest(strings.Repeat("0", 64))}, nil)
		wantError(t, err, true, "no platform to scan")
	})

	// After all of them it still scans.
	p := push(t, repo, "linux/amd64", image(t, "amd64", "", files{"a": "b"}))
	if err := scan(p); err != nil {
		t.Error(err)
	}
}

// A registry that changes what it serves is found out, and an honest answer
// afterwards is taken.
func TestSpoiltImage(t *testing.T) {
	reg := newRegistry(t)
	dbRef := reg.host + "/vulndb:2"
	pushDatabase(t, dbRef, start)
	repo := reg.host + "/app"
	img := image(t, "amd64", "", debian([3]string{"openssl", "openssl", "3.0.11-1~deb12u1"}))
	p := push(t, repo, "linux/amd64", img)
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	change := func(part string, f func([]byte) []byte) func(string, []byte) []byte {
		return func(path string, body []byte) []byte {
			if strings.HasSuffix(path, part) {
				return f(bytes.Clone(body))
			}
			return body
		}
	}
	other := archive(t, debian())
	b := openScanner(t, dbRef)
	for _, tt := range []struct {
		name  string
		spoil func(string, []byte) []byte
		want  string
	}{
		{"another manifest", change("/manifests/"+string(p.Digest), func(b []byte) []byte {
			return bytes.Replace(b, []byte(`"schemaVersion":2`), []byte(`"schemaVersion": 2`), 1)
		}), string(p.Digest)},
		{"another configuration", change("/blobs/"+m.Config.Digest.String(), func(b []byte) []byte {
			return bytes.Replace(b, []byte("amd64"), []byte("arm64"), 1)
		}), "configuration " + m.Config.Digest.String()},
		{"another layer", change("/blobs/"+m.Layers[0].Digest.String(), func([]byte) []byte { return other }), "layer sha256:"},
		{"flipped layer", change("/blobs/"+m.Layers[0].Digest.String(), func(b []byte) []byte { b[len(b)/2] ^= 1; return b }), "layer sha256:"},
		{"truncated layer", change("/blobs/"+m.Layers[0].Digest.String(), func(b []byte) []byte { return b[:len(b)/2] }), "layer sha256:"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			reg.set(false, tt.spoil)
			defer reg.set(false, nil)
			_, err := b.Scan(t.Context(), named(repo, p), []pipeline.PlatformImage{p})
			wantError(t, err, false, tt.want, repo+"@"+string(p.Digest))
		})
	}
	report, err := b.Scan(t.Context(), named(repo, p), []pipeline.PlatformImage{p})
	if err != nil {
		t.Fatal(err)
	}
	if got := report.Platforms[0].Findings; len(got) != 2 {
		t.Errorf("findings %+v, want 2", got)
	}
}

func TestScanObeysItsContext(t *testing.T) {
	reg := newRegistry(t)
	dbRef := reg.host + "/vulndb:2"
	pushDatabase(t, dbRef, start)
	img, err := random.Image(64<<10, 3)
	if err != nil {
		t.Fatal(err)
	}
	p := push(t, reg.host+"/app", "linux/amd64", img)
	hang := make(chan struct{})
	stuck := roundTripper(func(r *http.Request) (*http.Response, error) {
		if strings.Contains(r.URL.Path, "/app/blobs/") {
			select {
			case <-r.Context().Done():
				return nil, r.Context().Err()
			case <-hang:
			}
		}
		return http.DefaultTransport.RoundTrip(r)
	})
	defer close(hang)
	b := openScanner(t, dbRef, func(c *scanner.Config) { c.Transport, c.Parallel, c.Timeout = stuck, 1, 200*time.Millisecond })
	_, err = b.Scan(t.Context(), named(reg.host+"/app", p), []pipeline.PlatformImage{p})
	wantError(t, err, false, "not read within 200ms")

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Scan(ctx, named(reg.host+"/app", p), []pipeline.PlatformImage{p}); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled scan says %v", err)
	}
}

// Close lets go of scans that wait for their turn, and waits for those that run.
func TestCloseWhileScanning(t *testing.T) {
	reg := newRegistry(t)
	dbRef := reg.host + "/vulndb:2"
	pushDatabase(t, dbRef, start)
	p := push(t, reg.host+"/app", "linux/amd64", image(t, "amd64", "", debian()))
	reading, resume := make(chan struct{}, 1), make(chan struct{})
	slow := roundTripper(func(r *http.Request) (*http.Response, error) {
		if strings.Contains(r.URL.Path, "/app/blobs/") {
			select {
			case reading <- struct{}{}:
			default:
			}
			<-resume
		}
		return http.DefaultTransport.RoundTrip(r)
	})
	b := openScanner(t, dbRef, func(c *scanner.Config) { c.Transport, c.Parallel = slow, 1 })
	scans := make(chan error, 2)
	for range 2 {
		go func() {
			_, err := b.Scan(t.Context(), named(reg.host+"/app", p), []pipeline.PlatformImage{p})
			scans <- err
		}()
	}
	<-reading
	closed := make(chan error, 1)
	go func() { closed <- b.Close() }()
	select {
	case err := <-closed:
		t.Errorf("closed under a scan that reads: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(resume)
	for range 2 {
		if err := <-scans; err == nil || !strings.Contains(err.Error(), "the scanner is closed") {
			t.Errorf("a scan that ended after Close says %v", err)
		}
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// Another process in the cache directory is told apart from a broken one.
func TestCacheDirInUse(t *testing.T) {
	b := openScanner(t, "registry.example/vulndb:2")
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	other, err := bbolt.Open(b.cfg.CacheDir+"/fanal/fanal.db", 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	_, err = scanner.New(t.Context(), b.cfg)
	wantError(t, err, false, b.cfg.CacheDir, "each process needs one of its own", "in use by another process")
}
