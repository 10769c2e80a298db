package registry_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/registry"
	"github.com/dray-project/dray/pipeline/registry/registrytest"
)

// start makes a Registry that reaches those hosts in the clear and is impatient
// enough for tests.
func start(t testing.TB, c registry.Config, hosts ...string) *registry.Registry {
	t.Helper()
	for _, h := range hosts {
		c.Hosts = append(c.Hosts, pipeline.RegistryHost{Host: h, PlainHTTP: true})
	}
	if c.Locker == nil {
		c.Locker = &registrytest.Locker{}
	}
	c.Log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	if c.Timing.Backoff == 0 {
		c.Timing.Backoff = time.Millisecond
	}
	r, err := registry.New(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// must fails the test on an error of making its material.
func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// subject is what partial.Descriptor and mutate.Subject need of an image.
type subject interface {
	partial.Describable
}

func refer(t testing.TB, repo string, digest v1.Hash) name.Digest {
	t.Helper()
	return must[name.Digest](t)(name.NewDigest(repo + "@" + digest.String()))
}

func digestOf(t testing.TB, d partial.Describable) pipeline.Digest {
	t.Helper()
	return pipeline.Digest(must[v1.Hash](t)(d.Digest()).String())
}

// attachReferrer pushes an image manifest with a subject, the way another
// tool's client does it on this kind of registry.
func attachReferrer(t testing.TB, repo string, to subject, kind string) v1.Image {
	t.Helper()
	desc := must[*v1.Descriptor](t)(partial.Descriptor(to))
	img := must[v1.Image](t)(random.Image(300, 1))
	img = mutate.MediaType(img, types.OCIManifestSchema1)
	img = mutate.ConfigMediaType(img, types.MediaType(kind))
	img = mutate.Annotations(img, map[string]string{"org.example.kind": kind}).(v1.Image)
	img = mutate.Subject(img, v1.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size}).(v1.Image)
	if err := remote.Write(refer(t, repo, must[v1.Hash](t)(img.Digest())), img); err != nil {
		t.Fatal(err)
	}
	return img
}

// legacyLayer is a layer as cosign's legacy manifests have it.
func legacyLayer(payload, signature string) mutate.Addendum {
	return mutate.Addendum{
		Layer:       static.NewLayer([]byte(payload), "application/vnd.dev.cosign.simplesigning.v1+json"),
		Annotations: map[string]string{"dev.cosignproject.cosign/signature": signature},
		History:     v1.History{CreatedBy: signature},
	}
}

// attachLegacy pushes a legacy manifest with one layer for each signature.
func attachLegacy(t testing.TB, repo string, to pipeline.Digest, suffix string, layers ...mutate.Addendum) v1.Image {
	t.Helper()
	img := must[v1.Image](t)(mutate.Append(mutate.MediaType(empty.Image, types.OCIManifestSchema1), layers...))
	tag := must[name.Tag](t)(name.NewTag(repo + ":sha256-" + to.Hex() + suffix))
	if err := remote.Write(tag, img); err != nil {
		t.Fatal(err)
	}
	return img
}

// sample is a two-platform image with something attached at every place.
type sample struct {
	image     pipeline.Image
	index     v1.ImageIndex
	children  []v1.Image
	referrers map[pipeline.Digest][]pipeline.Digest // by subject
	legacy    map[string]pipeline.Digest            // by tag
}

func platformImages(t testing.TB, repo string) []v1.Image {
	t.Helper()
	var list []v1.Image
	for range 2 {
		img := must[v1.Image](t)(random.Image(2000, 3))
		img = mutate.MediaType(img, types.OCIManifestSchema1)
		if err := remote.Write(refer(t, repo, must[v1.Hash](t)(img.Digest())), img); err != nil {
			t.Fatal(err)
		}
		list = append(list, img)
	}
	return list
}

func newSample(t testing.TB, repo string) *sample {
	t.Helper()
	s := bare(t, repo)
	child := s.children[1]
	s.refer(t, repo, s.index, "application/vnd.example.signature")
	s.refer(t, repo, s.index, "application/vnd.example.sbom")
	attestation := s.refer(t, repo, child, "application/vnd.example.attestation")
	s.refer(t, repo, attestation, "application/vnd.example.signature")
	s.sign(t, repo, digestOf(t, s.index), ".sig", legacyLayer("index", "one"), legacyLayer("index", "two"))
	s.sign(t, repo, digestOf(t, s.index), ".att", legacyLayer("provenance", "three"))
	s.sign(t, repo, digestOf(t, child), ".sig", legacyLayer("child", "four"))
	s.sign(t, repo, digestOf(t, attestation), ".sig", legacyLayer("attestation", "five"))
	return s
}

// bare is a two-platform image without attachments.
func bare(t testing.TB, repo string) *sample {
	t.Helper()
	s := &sample{children: platformImages(t, repo), referrers: map[pipeline.Digest][]pipeline.Digest{}, legacy: map[string]pipeline.Digest{}}
	s.index = mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for i, arch := range []string{"amd64", "arm64"} {
		s.index = mutate.AppendManifests(s.index, mutate.IndexAddendum{
			Add: s.children[i], Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}},
		})
	}
	if err := remote.WriteIndex(refer(t, repo, must[v1.Hash](t)(s.index.Digest())), s.index); err != nil {
		t.Fatal(err)
	}
	s.image = pipeline.Image{Repository: repo, Digest: digestOf(t, s.index)}
	return s
}

func (s *sample) refer(t testing.TB, repo string, to subject, kind string) v1.Image {
	t.Helper()
	img := attachReferrer(t, repo, to, kind)
	d := digestOf(t, to)
	s.referrers[d] = append(s.referrers[d], digestOf(t, img))
	return img
}

func (s *sample) sign(t testing.TB, repo string, to pipeline.Digest, suffix string, layers ...mutate.Addendum) {
	t.Helper()
	img := attachLegacy(t, repo, to, suffix, layers...)
	s.legacy["sha256-"+to.Hex()+suffix] = digestOf(t, img)
}

// attached lists all that Copied.Referrers must name.
func (s *sample) attached() []pipeline.Digest {
	var list []pipeline.Digest
	for _, refs := range s.referrers {
		list = append(list, refs...)
	}
	for _, d := range s.legacy {
		list = append(list, d)
	}
	slices.Sort(list)
	return list
}

// check reads the copy with another client: every blob of every manifest, every
// referrer, every legacy tag.
func (s *sample) check(t testing.TB, repo string) {
	t.Helper()
	idx, err := remote.Index(refer(t, repo, must[v1.Hash](t)(s.index.Digest())))
	if err != nil {
		t.Fatalf("read the copied index: %v", err)
	}
	for _, m := range must[*v1.IndexManifest](t)(idx.IndexManifest()).Manifests {
		img, err := idx.Image(m.Digest)
		if err != nil {
			t.Errorf("read platform %s: %v", m.Digest, err)
			continue
		}
		whole(t, img)
	}
	for subject, want := range s.referrers {
		have := referrersAt(t, repo, subject)
		for _, d := range want {
			desc, ok := have[d]
			if !ok {
				t.Errorf("%s is not listed as a referrer of %s", d, subject)
				continue
			}
			if !strings.HasPrefix(desc.ArtifactType, "application/vnd.example.") || desc.Annotations["org.example.kind"] != desc.ArtifactType {
				t.Errorf("referrer %s is listed with artifact type %q and annotations %v", d, desc.ArtifactType, desc.Annotations)
			}
			img, err := remote.Image(refer(t, repo, desc.Digest))
			if err != nil {
				t.Errorf("read referrer %s: %v", d, err)
			} else {
				whole(t, img)
			}
		}
	}
	for tag, want := range s.legacy {
		img, err := remote.Image(must[name.Tag](t)(name.NewTag(repo + ":" + tag)))
		if err != nil {
			t.Errorf("read legacy tag %s: %v", tag, err)
			continue
		}
		if have := digestOf(t, img); have != want {
			t.Errorf("legacy tag %s names %s, want %s", tag, have, want)
		}
		whole(t, img)
	}
}

// whole reads every blob of an image; the client hashes them.
func whole(t testing.TB, img v1.Image) {
	t.Helper()
	m := must[*v1.Manifest](t)(img.Manifest())
	config, err := img.RawConfigFile()
	if err != nil {
		t.Errorf("read config %s: %v", m.Config.Digest, err)
	}
	var parsed struct {
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(config, &parsed); err != nil || len(parsed.RootFS.DiffIDs) != len(m.Layers) {
		t.Errorf("config %s names %d layers of %d: %v", m.Config.Digest, len(parsed.RootFS.DiffIDs), len(m.Layers), err)
	}
	for _, l := range m.Layers {
		layer := must[v1.Layer](t)(img.LayerByDigest(l.Digest))
		body, err := layer.Compressed()
		if err != nil {
			t.Errorf("read layer %s: %v", l.Digest, err)
			continue
		}
		if n, err := io.Copy(io.Discard, body); err != nil || n != l.Size {
			t.Errorf("read layer %s: %d bytes of %d: %v", l.Digest, n, l.Size, err)
		}
		body.Close()
	}
}

func referrersAt(t testing.TB, repo string, subject pipeline.Digest) map[pipeline.Digest]v1.Descriptor {
	t.Helper()
	index, err := remote.Referrers(must[name.Digest](t)(name.NewDigest(repo + "@" + string(subject))))
	if err != nil {
		t.Fatalf("list the referrers of %s: %v", subject, err)
	}
	list := map[pipeline.Digest]v1.Descriptor{}
	for _, d := range must[*v1.IndexManifest](t)(index.IndexManifest()).Manifests {
		list[pipeline.Digest(d.Digest.String())] = d
	}
	return list
}

// kinds are the registries that are out there: with the referrers API and
// without it.
func kinds() map[string]func(testing.TB) string {
	return map[string]func(testing.TB) string{"api": registrytest.Olareg, "tag": registrytest.Distribution}
}

// directions runs a test from each kind of registry to each, both behind
// proxies.
func directions(t *testing.T, test func(t *testing.T, from, to *registrytest.Proxy)) {
	for a, from := range kinds() {
		for b, to := range kinds() {
			t.Run(fmt.Sprintf("%s to %s", a, b), func(t *testing.T) {
				test(t, registrytest.NewProxy(t, from(t)), registrytest.NewProxy(t, to(t)))
			})
		}
	}
}
