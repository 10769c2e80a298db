package registry_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/registry"
	"github.com/dray-project/dray/pipeline/registry/registrytest"
)

func discardLog() *slog.Logger { return slog.New(slog.DiscardHandler) }

// fakeRegistry serves whatever it is given, without a look at it.
type fakeRegistry struct {
	manifests map[string][]byte // by digest or tag
	types     map[string]string
	blobs     map[string][]byte
	referrers map[string]string // raw body, by subject
	next      string            // Link of every list of referrers
}

func newFake() *fakeRegistry {
	return &fakeRegistry{manifests: map[string][]byte{}, types: map[string]string{}, blobs: map[string][]byte{}, referrers: map[string]string{}}
}

func (f *fakeRegistry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/v2/"), "/")
	kind, last := parts[max(0, len(parts)-2)], parts[len(parts)-1]
	switch {
	case r.URL.Path == "/v2/":
	case kind == "manifests" && f.manifests[last] != nil:
		w.Header().Set("Content-Type", f.types[last])
		_, _ = w.Write(f.manifests[last])
	case kind == "blobs" && f.blobs[last] != nil:
		_, _ = w.Write(f.blobs[last])
	case kind == "referrers":
		w.Header().Set("Content-Type", string(types.OCIImageIndex))
		if f.next != "" {
			w.Header().Set("Link", f.next)
		}
		body := f.referrers[last]
		if body == "" {
			body = `{"schemaVersion":2,"manifests":[]}`
		}
		_, _ = io.WriteString(w, body)
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

func sum(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

func (f *fakeRegistry) blob(content string) string {
	b := []byte(content)
	f.blobs[sum(b)] = b
	return fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":%q,"size":%d}`, sum(b), len(b))
}

// put stores a manifest and returns its descriptor.
func (f *fakeRegistry) put(mediaType, format string, args ...any) string {
	body := []byte(fmt.Sprintf(format, args...))
	f.manifests[sum(body)], f.types[sum(body)] = body, mediaType
	return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, mediaType, sum(body), len(body))
}

func (f *fakeRegistry) image(more string) string {
	return f.put(ociImage, `{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[%s]%s}`, ociImage, f.blob("{}"), f.blob("layer"), more)
}

func (f *fakeRegistry) index(children ...string) string {
	return f.put(ociIndex, `{"schemaVersion":2,"mediaType":%q,"manifests":[%s]}`, ociIndex, strings.Join(children, ","))
}

const (
	ociImage = string(types.OCIManifestSchema1)
	ociIndex = string(types.OCIImageIndex)
)

func digestIn(t testing.TB, descriptor string) string {
	t.Helper()
	var d struct{ Digest string }
	if err := json.Unmarshal([]byte(descriptor), &d); err != nil {
		t.Fatalf("descriptor %s: %v", descriptor, err)
	}
	return d.Digest
}

// What a hostile source may hold, and what is said of it. Nothing of it reaches
// the destination.
func TestHostileContentIsRefused(t *testing.T) {
	limits := registry.Limits{ManifestBytes: 8 << 10, ClosureBytes: 64 << 10, Children: 5, Layers: 6, Referrers: 7, ReferrerDepth: 2}
	for name, c := range map[string]struct {
		make func(f *fakeRegistry) string
		want string
	}{
		"image and index at once": {func(f *fakeRegistry) string {
			return f.put(ociIndex, `{"schemaVersion":2,"layers":[%s],"manifests":[%s]}`, f.blob("x"), f.image(""))
		}, "image and an index at once"},
		"index with a config": {func(f *fakeRegistry) string {
			return f.put(ociIndex, `{"schemaVersion":2,"config":%s,"manifests":[%s]}`, f.blob("x"), f.image(""))
		}, "image and an index at once"},
		"keys that differ in case": {func(f *fakeRegistry) string {
			return f.put(ociImage, `{"schemaVersion":2,"config":%s,"layers":[],"Layers":[%s]}`, f.blob("{}"), f.blob("x"))
		}, "twice"},
		"a key twice": {func(f *fakeRegistry) string {
			return f.put(ociImage, `{"schemaVersion":2,"config":%s,"layers":[%s],"layers":[]}`, f.blob("{}"), f.blob("x"))
		}, "twice"},
		"a digest twice": {func(f *fakeRegistry) string {
			return f.put(ociImage, `{"schemaVersion":2,"config":%s,"layers":[{"digest":"sha256:00",%s]}`, f.blob("{}"), f.blob("x")[1:])
		}, "twice"},
		"two documents": {func(f *fakeRegistry) string {
			return f.put(ociImage, `{"schemaVersion":2,"config":%s,"layers":[]}{}`, f.blob("{}"))
		}, "followed by something else"},
		"not JSON":      {func(f *fakeRegistry) string { return f.put(ociImage, "\x1b[31mred") }, "manifest"},
		"deep JSON":     {func(f *fakeRegistry) string { return f.put(ociImage, "%s", strings.Repeat("[", 4000)) }, "nested deeper"},
		"empty object":  {func(f *fakeRegistry) string { return f.put(ociImage, `{"schemaVersion":2}`) }, "neither an image nor an index"},
		"null":          {func(f *fakeRegistry) string { return f.put(ociImage, `null`) }, "schema version 0"},
		"schema 1":      {func(f *fakeRegistry) string { return f.put(ociImage, `{"schemaVersion":1,"fsLayers":[]}`) }, "schema version 1"},
		"other content": {func(f *fakeRegistry) string { return f.put(ociIndex, `{"schemaVersion":2,"config":%s}`, f.blob("{}")) }, "does not fit its content"},
		"another media type within": {func(f *fakeRegistry) string {
			return f.put(ociImage, `{"schemaVersion":2,"mediaType":%q,"config":%s}`, types.DockerManifestSchema2, f.blob("{}"))
		}, "was handed out as"},
		"unknown media type": {func(f *fakeRegistry) string {
			return f.put("", `{"schemaVersion":2,"mediaType":"application/x","config":%s}`, f.blob("{}"))
		}, "does not fit its content"},
		"foreign layer": {func(f *fakeRegistry) string {
			return f.put(ociImage, `{"schemaVersion":2,"config":%s,"layers":[{"mediaType":%q,"size":1,"digest":"sha256:%064d"}]}`, f.blob("{}"), types.DockerForeignLayer, 1)
		}, "foreign layer"},
		"non-distributable zstd layer": {func(f *fakeRegistry) string {
			return f.put(ociImage, `{"schemaVersion":2,"config":%s,"layers":[{"mediaType":"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd","size":1,"digest":"sha256:%064d"}]}`, f.blob("{}"), 1)
		}, "foreign layer"},
		"layer with urls": {func(f *fakeRegistry) string {
			return f.put(ociImage, `{"schemaVersion":2,"config":%s,"layers":[{"urls":["http://169.254.169.254/"],%s]}`, f.blob("{}"), f.blob("x")[1:])
		}, "foreign layer"},
		"sha512": {func(f *fakeRegistry) string {
			return f.put(ociImage, `{"schemaVersion":2,"config":%s,"layers":[{"mediaType":"x","size":1,"digest":"sha512:%0128d"}]}`, f.blob("{}"), 1)
		}, "sha256"},
		"path in a digest": {func(f *fakeRegistry) string {
			return f.put(ociImage, `{"schemaVersion":2,"config":%s,"layers":[{"mediaType":"x","size":1,"digest":"sha256:../../../../v2/x"}]}`, f.blob("{}"))
		}, "digest"},
		"negative size": {func(f *fakeRegistry) string {
			return f.put(ociImage, `{"schemaVersion":2,"config":%s,"layers":[{"mediaType":"x","size":-1,"digest":"sha256:%064d"}]}`, f.blob("{}"), 1)
		}, "size -1"},
		"two sizes of one blob": {func(f *fakeRegistry) string {
			b := f.blob("x")
			return f.put(ociImage, `{"schemaVersion":2,"config":%s,"layers":[%s,%s]}`, f.blob("{}"), b, strings.Replace(b, `"size":1`, `"size":2`, 1))
		}, "another says"},
		"blob longer than its descriptor": {func(f *fakeRegistry) string {
			return f.put(ociImage, `{"schemaVersion":2,"config":%s,"layers":[%s]}`, f.blob("{}"), strings.Replace(f.blob("long"), `"size":4`, `"size":3`, 1))
		}, "the manifest says 3"},
		"child of another size": {func(f *fakeRegistry) string {
			return f.index(strings.Replace(f.image(""), `"size":`, `"size":1`, 1))
		}, "its descriptor says"},
		"child that is no manifest": {func(f *fakeRegistry) string { return f.index(f.blob("x")) }, "not a manifest"},
		"many children": {func(f *fakeRegistry) string {
			return f.index(strings.Split(strings.Repeat(f.image("")+" ", 6), " ")[:6]...)
		}, "more than the limit of 5"},
		"many layers": {func(f *fakeRegistry) string {
			return f.put(ociImage, `{"schemaVersion":2,"config":%s,"layers":[%s]}`, f.blob("{}"), strings.Repeat(f.blob("x")+",", 6)+f.blob("x"))
		}, "more than the limit of 6"},
		"long manifest": {func(f *fakeRegistry) string {
			return f.image(`,"annotations":{"a":"` + strings.Repeat("a", 9<<10) + `"}`)
		}, "limit of 8192"},
		"nested indexes": {func(f *fakeRegistry) string { return f.index(f.index(f.index(f.image("")))) }, "nested deeper than the limit of 2"},
		"many referrers": {func(f *fakeRegistry) string {
			img := f.image("")
			var list []string
			for i := range 8 {
				list = append(list, f.image(fmt.Sprintf(`,"subject":%s,"annotations":{"n":"%d"}`, img, i)))
			}
			f.referrers["*"] = `{"schemaVersion":2,"manifests":[` + strings.Join(list, ",") + `]}`
			return img
		}, "referrers than the limit of 7"},
		"list of referrers without an end": {func(f *fakeRegistry) string {
			f.next = `</v2/team/app/referrers/sha256:` + strings.Repeat("0", 64) + `>; rel="next"`
			return f.image("")
		}, "next page"},
		"list of referrers elsewhere": {func(f *fakeRegistry) string {
			f.next = `<http://evil.example/>; rel="next"`
			return f.image("")
		}, "another host"},
		"bad list of referrers": {func(f *fakeRegistry) string {
			img := f.image("")
			f.referrers["*"] = `{"manifests":[{"digest":"sha256:no"}]}`
			return img
		}, "digest"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake()
			desc := c.make(f)
			root := digestIn(t, desc)
			if all := f.referrers["*"]; all != "" {
				f.referrers[root] = all
			}
			from := registrytest.Serve(t, f)
			to := registrytest.NewProxy(t, registrytest.Olareg(t))
			r := start(t, registry.Config{Limits: limits, Timing: registry.Timing{Attempts: 2}}, from, to.Host)
			_, err := r.Copy(t.Context(), pipeline.Image{Repository: from + "/team/app", Digest: pipeline.Digest(root)}, to.Host+"/prod/app")
			wantError(t, err, true, nil, c.want, from)
			if n := to.Count("PUT", "/manifests/"); n != 0 {
				t.Errorf("%d manifests were written to the destination", n)
			}
		})
	}
}

// Chains that no limit on one list bounds.
func TestDeeplyAttachedContentIsRefused(t *testing.T) {
	f := newFake()
	root := f.image("")
	subject := root
	for range 3 {
		next := f.image(`,"subject":` + subject)
		f.referrers[digestIn(t, subject)] = `{"schemaVersion":2,"manifests":[` + next + `]}`
		subject = next
	}
	from, to := registrytest.Serve(t, f), registrytest.Olareg(t)
	img := pipeline.Image{Repository: from + "/team/app", Digest: pipeline.Digest(digestIn(t, root))}
	r := start(t, registry.Config{Limits: registry.Limits{ReferrerDepth: 2}}, from, to)
	_, err := r.Copy(t.Context(), img, to+"/prod/app")
	wantError(t, err, true, pipeline.ErrInvalid, "nested deeper than the limit of 2")
	got, err := start(t, registry.Config{Limits: registry.Limits{ReferrerDepth: 3}}, from, to).Copy(t.Context(), img, to+"/prod/app")
	if err != nil || len(got.Referrers) != 3 {
		t.Errorf("at the limit: %v, %v", got.Referrers, err)
	}
	r = start(t, registry.Config{Limits: registry.Limits{ClosureBytes: 1000}}, from, to)
	_, err = r.Copy(t.Context(), img, to+"/other/app")
	wantError(t, err, true, pipeline.ErrInvalid, "more bytes than the limit of 1000")
}

// A referrer is what says that it is one.
func TestForeignReferrersAreLeftBehind(t *testing.T) {
	f := newFake()
	root, other := f.image(""), f.image(`,"annotations":{"other":"image"}`)
	mine := f.image(`,"subject":` + root)
	f.referrers[digestIn(t, root)] = `{"schemaVersion":2,"manifests":[` + strings.Join([]string{
		other, mine, f.image(`,"subject":` + other),
		`{"mediaType":"` + ociImage + `","size":1,"digest":"sha256:` + strings.Repeat("0", 64) + `"}`,
	}, ",") + `]}`
	from, to := registrytest.Serve(t, f), registrytest.Olareg(t)
	r := start(t, registry.Config{}, from, to)
	got, err := r.Copy(t.Context(), pipeline.Image{Repository: from + "/team/app", Digest: pipeline.Digest(digestIn(t, root))}, to+"/prod/app")
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Referrers) != 1 || string(got.Referrers[0]) != digestIn(t, mine) || got.Manifests != 2 {
		t.Errorf("copied %+v, want the image and %s", got, mine)
	}
}

// Error texts come from a foreign registry too.
func TestForeignErrorsAreCleaned(t *testing.T) {
	host := registrytest.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v2/" {
			return
		}
		w.WriteHeader(http.StatusBadRequest)
		_, _ = w.Write(bytes.ReplaceAll([]byte(`{"errors":[{"code":"X","message":"\u001b[31mred\nlevel=INFO msg=forged LONG"}]}`),
			[]byte("LONG"), bytes.Repeat([]byte("a"), 5000)))
	}))
	r := start(t, registry.Config{}, host)
	_, err := r.Tags(t.Context(), host+"/team/app")
	wantError(t, err, true, nil, host, "400 Bad Request", "red level=INFO")
	if len(err.Error()) > 700 {
		t.Errorf("the error has %d characters", len(err.Error()))
	}
}
