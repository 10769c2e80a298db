package registry_test

import (
	"net/http"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/registry"
	"github.com/dray-project/dray/pipeline/registry/registrytest"
)

// Eight copies of one image arrive at once, each from a source with a signature
// of its own in both layouts, through processes that share nothing but the
// locker. None is lost.
func TestConcurrentWritersLoseNothing(t *testing.T) {
	for kind, host := range kinds() {
		t.Run(kind, func(t *testing.T) {
			const writers = 8
			source, to := registrytest.Distribution(t), registrytest.NewProxy(t, host(t))
			dst := to.Host + "/prod/app"
			first := bare(t, source+"/w0/app")
			plain := start(t, registry.Config{}, source, to.Host)
			locker := &registrytest.Locker{}
			var own []pipeline.Digest
			var names []string
			var images []pipeline.Image
			for i := range writers {
				repo := source + "/w" + string(rune('0'+i)) + "/app"
				img := pipeline.Image{Repository: repo, Digest: first.image.Digest}
				if i > 0 {
					if _, err := plain.Copy(t.Context(), first.image, repo); err != nil {
						t.Fatal(err)
					}
				}
				images = append(images, img)
			}
			for i, img := range images {
				name := "writer " + string(rune('0'+i))
				ref := attachReferrer(t, img.Repository, first.index, "application/vnd.example.signature")
				own = append(own, digestOf(t, ref))
				attachLegacy(t, img.Repository, img.Digest, ".sig", legacyLayer("payload", name))
				names = append(names, name)
			}
			var wg sync.WaitGroup
			errs := make([]error, writers)
			for i, img := range images {
				r := start(t, registry.Config{Locker: locker}, source, to.Host)
				wg.Go(func() { _, errs[i] = r.Copy(t.Context(), img, dst) })
			}
			wg.Wait()
			for i, err := range errs {
				if err != nil {
					t.Errorf("writer %d: %v", i, err)
				}
			}
			have := referrersAt(t, dst, first.image.Digest)
			for i, d := range own {
				if _, ok := have[d]; !ok {
					t.Errorf("the referrer of writer %d is lost", i)
				}
			}
			checkSignatures(t, dst, first.image.Digest, names...)
		})
	}
}

// A writer that knows nothing of the lock overwrites the tag between our write
// and our look at it: what we had to add is added again.
func TestFallbackTagOverwrittenByOthers(t *testing.T) {
	from := registrytest.Olareg(t)
	to := registrytest.NewProxy(t, registrytest.Distribution(t))
	r := start(t, registry.Config{}, from, to.Host)
	s := bare(t, from+"/team/app")
	dst := to.Host + "/prod/app"
	if _, err := r.Copy(t.Context(), s.image, dst); err != nil {
		t.Fatal(err)
	}
	s.refer(t, from+"/team/app", s.index, "application/vnd.example.signature")
	var theirs v1.Image
	to.Inject("PUT", "/manifests/sha256-[0-9a-f]{64}$", 1, func(w http.ResponseWriter, q *http.Request, registry http.Handler) {
		// Their write is answered with success after ours was, and ours is gone.
		theirs = attachReferrer(t, dst, s.index, "application/vnd.example.other")
		registrytest.AcceptWithoutStoring()(w, q, registry)
	})
	if _, err := r.Copy(t.Context(), s.image, dst); err != nil {
		t.Fatal(err)
	}
	s.check(t, dst)
	if _, ok := referrersAt(t, dst, s.image.Digest)[digestOf(t, theirs)]; !ok {
		t.Error("the other writer's referrer is lost")
	}
}

func TestFallbackTagThatIsSomethingElse(t *testing.T) {
	from, to := registrytest.Olareg(t), registrytest.Distribution(t)
	r := start(t, registry.Config{}, from, to)
	s := bare(t, from+"/team/app")
	s.refer(t, from+"/team/app", s.index, "application/vnd.example.signature")
	attachLegacy(t, to+"/prod/app", s.image.Digest, "", legacyLayer("not a list", "x"))
	_, err := r.Copy(t.Context(), s.image, to+"/prod/app")
	wantError(t, err, true, pipeline.ErrInvalid, "fallback tag", "it is not an index")
}
