package registry_test

import (
	"errors"
	"net/http"
	"slices"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/registry"
	"github.com/dray-project/dray/pipeline/registry/registrytest"
)

// What the contents of a copy must be: every manifest with what it is attached
// to, and every blob.
func checkContents(t testing.TB, s *sample, got pipeline.Copied) {
	t.Helper()
	subject := map[pipeline.Digest]pipeline.Digest{}
	for to, refs := range s.referrers {
		for _, d := range refs {
			subject[d] = to
		}
	}
	for tag, d := range s.legacy {
		subject[d] = pipeline.Digest("sha256:" + tag[len("sha256-"):len("sha256-")+64])
	}
	manifests, blobs := 0, 0
	for i, c := range got.Contents {
		if i > 0 && got.Contents[i-1].Digest >= c.Digest {
			t.Errorf("contents are not in order at %s", c.Digest)
		}
		if c.Size <= 0 {
			t.Errorf("%s has the size %d", c.Digest, c.Size)
		}
		if c.Subject != subject[c.Digest] {
			t.Errorf("%s is recorded as attached to %q, want %q", c.Digest, c.Subject, subject[c.Digest])
		}
		delete(subject, c.Digest)
		if c.Manifest {
			manifests++
		} else {
			blobs++
		}
	}
	if manifests != got.Manifests || blobs != got.Blobs {
		t.Errorf("contents have %d manifests and %d blobs, copied were %d and %d", manifests, blobs, got.Manifests, got.Blobs)
	}
	if len(subject) > 0 {
		t.Errorf("not in the contents: %v", subject)
	}
}

// A copy of what was copied before asks the source for what was added since, and
// the destination for nothing.
func TestCopyRemembersTheDestination(t *testing.T) {
	directions(t, func(t *testing.T, from, to *registrytest.Proxy) {
		memory := &registrytest.Memory{}
		src, dst := from.Host+"/team/app", to.Host+"/prod/app"
		s := newSample(t, src)
		first, err := start(t, registry.Config{Memory: memory}, from.Host, to.Host).Copy(t.Context(), s.image, dst)
		if err != nil {
			t.Fatal(err)
		}
		checkContents(t, s, first)
		if n := len(memory.Holds(dst)); n != len(first.Contents) {
			t.Errorf("%d are remembered of %d", n, len(first.Contents))
		}
		// Another process, which has nothing but the memory.
		r := start(t, registry.Config{Memory: memory}, from.Host, to.Host)
		for _, what := range []string{"nothing was read", "manifests were read"} {
			from.Clear()
			to.Clear()
			again, err := r.Copy(t.Context(), s.image, dst)
			if err != nil {
				t.Fatal(err)
			}
			if n := len(to.Requests()); n != 0 {
				t.Errorf("%s: %d requests at the destination: %+v", what, n, to.Requests())
			}
			if again.Skipped != again.Blobs || !slices.Equal(again.Contents, first.Contents) || !slices.Equal(again.Referrers, first.Referrers) {
				t.Errorf("%s: %+v", what, again)
			}
			t.Logf("%s: %d requests at the source", what, len(from.Requests()))
		}
		// Somebody adds a signature at the source, in both layouts.
		s.refer(t, src, s.index, "application/vnd.example.late")
		delete(s.legacy, "sha256-"+s.image.Digest.Hex()+".sig")
		s.sign(t, src, s.image.Digest, ".sig", legacyLayer("index", "one"), legacyLayer("index", "two"), legacyLayer("index", "late"))
		to.Clear()
		if _, err := r.Copy(t.Context(), s.image, dst); err != nil {
			t.Fatal(err)
		}
		if n := to.Count("HEAD", "") + to.Count("PUT", "/blobs/uploads/"); n > 8 {
			t.Errorf("what was there is asked for again: %+v", to.Requests())
		}
		checkSignatures(t, dst, s.image.Digest, "one", "two", "late")
		s.check(t, dst)
	})
}

// Garbage collection, or somebody's hand, takes what the memory says is there.
func TestCopyNoticesThatMemoryIsWrong(t *testing.T) {
	for kind, host := range kinds() {
		t.Run(kind, func(t *testing.T) {
			from := registrytest.NewProxy(t, registrytest.Distribution(t))
			to := registrytest.NewProxy(t, host(t))
			memory := &registrytest.Memory{}
			src, dst := from.Host+"/team/app", to.Host+"/prod/app"
			s := bare(t, src)
			// The destination never saw any of it, says the registry.
			contents := []pipeline.Content{}
			for _, child := range s.children {
				m := must[*v1.Manifest](t)(child.Manifest())
				for _, l := range append(m.Layers, m.Config) {
					contents = append(contents, pipeline.Content{Digest: pipeline.Digest(l.Digest.String()), Size: l.Size})
				}
			}
			if err := memory.Remember(t.Context(), dst, contents); err != nil {
				t.Fatal(err)
			}
			r := start(t, registry.Config{Memory: memory}, from.Host, to.Host)
			got, err := r.Copy(t.Context(), s.image, dst)
			if err != nil {
				t.Fatal(err)
			}
			if got.Sent == 0 {
				t.Errorf("nothing was sent: %+v", got)
			}
			s.check(t, dst)
		})
	}
}

// An entry that is too old counts for nothing, and a memory that fails is none.
func TestMemoryThatDoesNotServe(t *testing.T) {
	from := registrytest.NewProxy(t, registrytest.Olareg(t))
	to := registrytest.NewProxy(t, registrytest.Distribution(t))
	s := newSample(t, from.Host+"/team/app")
	dst := to.Host + "/prod/app"
	for name, c := range map[string]registry.Config{
		"old":     {Memory: &registrytest.Memory{}, MemoryAge: time.Nanosecond},
		"failing": {Memory: &registrytest.Memory{Err: errors.New("the database is away")}},
	} {
		r := start(t, c, from.Host, to.Host)
		for range 2 {
			to.Clear()
			if _, err := r.Copy(t.Context(), s.image, dst); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if len(to.Requests()) < 25 {
				t.Errorf("%s: %d requests at the destination, which cannot have been asked for everything", name, len(to.Requests()))
			}
		}
	}
	s.check(t, dst)
	_, err := registry.New(t.Context(), registry.Config{Locker: &registrytest.Locker{}, Log: discardLog(), MemoryAge: -1})
	if err == nil {
		t.Error("a negative age is accepted")
	}
}

// A copy that broke off sends nothing again that arrived, and knows it without
// asking.
func TestBrokenCopyGoesOn(t *testing.T) {
	for _, with := range []string{"memory", "no memory"} {
		for kind, host := range kinds() {
			t.Run(with+" "+kind, func(t *testing.T) {
				from := registrytest.NewProxy(t, registrytest.Distribution(t))
				to := registrytest.NewProxy(t, host(t))
				c := registry.Config{Timing: registry.Timing{Attempts: 1}}
				if with == "memory" {
					c.Memory = &registrytest.Memory{}
				}
				r := start(t, c, from.Host, to.Host)
				s := newSample(t, from.Host+"/team/app")
				dst := to.Host + "/prod/app"
				to.Inject("PUT", "/manifests/"+string(s.image.Digest), 1, registrytest.Status(507))
				if _, err := r.Copy(t.Context(), s.image, dst); err == nil {
					t.Fatal("the copy did not break off")
				}
				from.Clear()
				to.Clear()
				got, err := r.Copy(t.Context(), s.image, dst)
				if err != nil {
					t.Fatal(err)
				}
				if n := to.Count("PUT", "/blobs/") + from.Count("GET", "/blobs/"); n != 0 || got.Sent != 0 {
					t.Errorf("%d blobs were moved again", n)
				}
				if n := to.Count("", "/blobs/"); with == "memory" && n != 0 {
					t.Errorf("%d blobs were asked for", n)
				}
				s.check(t, dst)
			})
		}
	}
}

// A registry that names the blob in its answer and does not have it is found out
// by its own refusal of the manifest.
func TestLieAboutABlobIsFoundOut(t *testing.T) {
	for kind, host := range kinds() {
		t.Run(kind, func(t *testing.T) {
			from := registrytest.Distribution(t)
			to := registrytest.NewProxy(t, host(t))
			s := bare(t, from+"/team/app")
			to.Inject("PUT", "/blobs/uploads/", 2, func(w http.ResponseWriter, r *http.Request, registry http.Handler) {
				w.Header().Set("Docker-Content-Digest", r.URL.Query().Get("digest"))
				registrytest.AcceptWithoutStoring()(w, r, registry)
			})
			memory := &registrytest.Memory{}
			r := start(t, registry.Config{Memory: memory}, from, to.Host)
			if _, err := r.Copy(t.Context(), s.image, to.Host+"/prod/app"); err != nil {
				t.Fatal(err)
			}
			s.check(t, to.Host+"/prod/app")
			if n := len(memory.Holds(to.Host + "/prod/app")); n != 11 {
				t.Errorf("%d are remembered, want 8 blobs and 3 manifests", n)
			}
		})
	}
}

// BuildKit puts its attestations into the index, as a manifest of no platform.
func TestCopyBringsAttestationsInTheIndex(t *testing.T) {
	directions(t, func(t *testing.T, from, to *registrytest.Proxy) {
		src, dst := from.Host+"/team/app", to.Host+"/prod/app"
		s := bare(t, src)
		statement := must[v1.Image](t)(random.Image(500, 1))
		statement = mutate.MediaType(statement, types.OCIManifestSchema1)
		s.index = mutate.AppendManifests(s.index, mutate.IndexAddendum{Add: statement, Descriptor: v1.Descriptor{
			Platform:    &v1.Platform{OS: "unknown", Architecture: "unknown"},
			Annotations: map[string]string{"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": string(digestOf(t, s.children[0]))},
		}})
		if err := remote.WriteIndex(refer(t, src, hashOf(t, s.index)), s.index); err != nil {
			t.Fatal(err)
		}
		s.image.Digest = digestOf(t, s.index)
		s.refer(t, src, statement, "application/vnd.example.signature")
		got, err := start(t, registry.Config{}, from.Host, to.Host).Copy(t.Context(), s.image, dst)
		if err != nil {
			t.Fatal(err)
		}
		if got.Manifests != 5 {
			t.Errorf("%d manifests, want the index, its three and the signature", got.Manifests)
		}
		s.check(t, dst)
	})
}
