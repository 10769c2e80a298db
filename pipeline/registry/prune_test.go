package registry_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/pipelinetest"
	"github.com/dray-project/dray/pipeline/registry"
	"github.com/dray-project/dray/pipeline/registry/registrytest"
)

// pantry is a project whose images are in a real registry.
type pantry struct {
	t     *testing.T
	repo  string
	proxy *registrytest.Proxy
	r     *registry.Registry
	store *pipelinetest.Retentions
	*pipeline.Retainer
}

func newPantry(t *testing.T, kind func(testing.TB) string) *pantry {
	p := &pantry{t: t, proxy: registrytest.NewProxy(t, kind(t))}
	p.repo = p.proxy.Host + "/team/app"
	p.r = start(t, registry.Config{Memory: &registrytest.Memory{}}, p.proxy.Host)
	project := pipelinetest.SampleProject("app")
	project.Repository, project.Retention = p.repo, &pipeline.Retention{Images: &pipeline.ImageRetention{Keep: 1}, Tags: &pipeline.TagRetention{SHA: &pipeline.AgeRetention{For: pipeline.Duration(240 * time.Hour)}}}
	p.store = &pipelinetest.Retentions{State: pipeline.Retained{Project: project, Now: time.Now()}}
	var err error
	p.Retainer, err = pipeline.NewRetainer(pipeline.RetentionConfig{Store: p.store, Pruner: p.r, Locker: &registrytest.Locker{}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// record adds an image to the record, with tags in the registry.
func (p *pantry) record(s *sample, daysAgo int, tags ...string) {
	p.t.Helper()
	at := time.Now().Add(-time.Duration(daysAgo) * 24 * time.Hour)
	img := pipeline.RetainedImage{Image: s.image, RecordedAt: at}
	for _, tag := range tags {
		if err := p.r.Tag(p.t.Context(), s.image, tag); err != nil {
			p.t.Fatal(err)
		}
		img.Tags = append(img.Tags, pipeline.RetainedTag{Repository: p.repo, Tag: tag, Since: at})
	}
	p.store.State.Images = append(p.store.State.Images, img)
}

func (p *pantry) apply() pipeline.RetentionRun {
	p.t.Helper()
	plan, err := p.Plan(p.t.Context(), "app")
	if err != nil {
		p.t.Fatal(err)
	}
	if _, err := p.Apply(p.t.Context(), "app", plan.Digest, "ada"); err != nil {
		p.t.Fatal(err)
	}
	if err := p.Work(p.t.Context()); err != nil {
		p.t.Fatal(err)
	}
	return p.store.Last()
}

func (p *pantry) there(d pipeline.Digest) bool {
	p.t.Helper()
	ok, err := p.r.Exists(p.t.Context(), pipeline.Image{Repository: p.repo, Digest: d})
	if err != nil {
		p.t.Fatal(err)
	}
	return ok
}

// withPlatformOf makes an index that shares its second platform with the sample.
func withPlatformOf(t testing.TB, repo string, s *sample) (*sample, v1.ImageIndex) {
	t.Helper()
	own := bare(t, repo)
	index := mutate.AppendManifests(own.index, mutate.IndexAddendum{Add: s.children[1]})
	index = mutate.IndexMediaType(index, types.OCIImageIndex)
	if err := remote.WriteIndex(refer(t, repo, hashOf(t, index)), index); err != nil {
		t.Fatal(err)
	}
	own.image.Digest = digestOf(t, index)
	return own, index
}

// TestPruneTakesWhatNothingElseNeeds: the image goes with all that is attached to
// it; what it shares stays, with what is attached to that.
func TestPruneTakesWhatNothingElseNeeds(t *testing.T) {
	for kind, run := range kinds() {
		t.Run(kind, func(t *testing.T) {
			p := newPantry(t, run)
			old := newSample(t, p.repo)
			keep, index := withPlatformOf(t, p.repo, old)
			p.record(old, 30, "sha-0123456789ab")
			p.record(keep, 2, "1.0.0", "sha-ba9876543210")
			result := p.apply()
			if result.Done != 1 || result.Outcomes[0].Outcome != pipeline.PruneRemoved || result.Error != "" {
				t.Fatalf("%+v", result)
			}
			if p.there(old.image.Digest) || p.there(digestOf(t, old.children[0])) {
				t.Error("the image or its own platform is still there")
			}
			shared := digestOf(t, old.children[1])
			for subject, refs := range old.referrers {
				for _, d := range refs {
					if want := subject == shared || slices.Contains(old.referrers[shared], subject); p.there(d) != want {
						t.Errorf("%s, attached to %s: there %t, want %t", d, subject, !want, want)
					}
				}
			}
			list := referrersAt(t, p.repo, shared)
			for _, d := range old.referrers[shared] {
				if _, ok := list[d]; !ok {
					t.Errorf("%s is not listed any more", d)
				}
			}
			for tag, d := range old.legacy {
				holds, ok, err := p.r.TagHolds(t.Context(), p.repo, tag)
				want := slices.ContainsFunc(append(slices.Clone(old.referrers[shared]), shared), func(d pipeline.Digest) bool {
					return strings.HasPrefix(tag, "sha256-"+d.Hex())
				})
				if err != nil || ok != want || (ok && holds != d) {
					t.Errorf("legacy tag %s: %t %s %v, want %t", tag, ok, holds, err, want)
				}
			}
			tags, err := p.r.Tags(t.Context(), p.repo)
			if err != nil || slices.Contains(tags, "sha-0123456789ab") || !slices.Contains(tags, "1.0.0") || !slices.Contains(tags, "sha-ba9876543210") {
				t.Errorf("%v %v", tags, err)
			}
			if slices.ContainsFunc(tags, func(tag string) bool { return strings.HasPrefix(tag, "dray-probe") }) {
				t.Errorf("a probe is left: %v", tags)
			}
			// What is kept is whole.
			manifest, err := index.IndexManifest()
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range manifest.Manifests {
				got, err := remote.Image(refer(t, p.repo, m.Digest))
				if err != nil {
					t.Fatal(err)
				}
				whole(t, got)
			}
			if copied, err := p.r.Copy(t.Context(), keep.image, p.proxy.Host+"/prod/app"); err != nil || copied.Image.Digest != keep.image.Digest {
				t.Errorf("%v", err)
			}
			// There is nothing left to do.
			if plan, err := p.Plan(t.Context(), "app"); err != nil || !plan.Empty() {
				t.Errorf("%+v %v", plan, err)
			}
		})
	}
}

// TestPruneTagAlone: the tag goes and the image stays, on a registry that can.
func TestPruneTagAlone(t *testing.T) {
	for kind, run := range kinds() {
		t.Run(kind, func(t *testing.T) {
			p := newPantry(t, run)
			s := newSample(t, p.repo)
			p.record(s, 30, "sha-0123456789ab")
			result := p.apply()
			_, tagged, err := p.r.TagHolds(t.Context(), p.repo, "sha-0123456789ab")
			if err != nil {
				t.Fatal(err)
			}
			switch o := result.Outcomes[0]; o.Outcome {
			case pipeline.PruneRemoved:
				if tagged {
					t.Error("the tag is still there")
				}
			case pipeline.PruneBlocked:
				if !strings.Contains(o.Detail, "without the image") || !tagged {
					t.Errorf("%+v, tagged %t", o, tagged)
				}
			default:
				t.Errorf("%+v", o)
			}
			t.Logf("%s: %s %s", kind, result.Outcomes[0].Outcome, result.Outcomes[0].Detail)
			s.check(t, p.repo)
		})
	}
}

// TestPruneNoticesWhatChanged: what somebody did since the survey keeps it from
// removing anything.
func TestPruneNoticesWhatChanged(t *testing.T) {
	for kind, run := range kinds() {
		t.Run(kind, func(t *testing.T) {
			for what, change := range map[string]func(p *pantry, s *sample){
				"a new tag": func(p *pantry, s *sample) {
					tag, err := name.NewTag(p.repo + ":mine")
					if err != nil {
						t.Fatal(err)
					}
					if err := remote.Tag(tag, s.children[1]); err != nil {
						t.Fatal(err)
					}
				},
				"a tag that moved": func(p *pantry, s *sample) {
					other := bare(t, p.repo)
					if err := p.r.Tag(t.Context(), other.image, "sha-0123456789ab"); err != nil {
						t.Fatal(err)
					}
				},
				"an index of it": func(p *pantry, s *sample) {
					_, index := withPlatformOf(t, p.repo, s)
					tag, err := name.NewTag(p.repo + ":theirs")
					if err != nil {
						t.Fatal(err)
					}
					if err := remote.WriteIndex(tag, index); err != nil {
						t.Fatal(err)
					}
				},
			} {
				t.Run(what, func(t *testing.T) {
					p := newPantry(t, run)
					s := newSample(t, p.repo)
					p.record(s, 30, "sha-0123456789ab")
					p.record(bare(t, p.repo), 2)
					plan, err := p.Plan(t.Context(), "app")
					if err != nil || len(plan.Remove) != 1 {
						t.Fatalf("%+v %v", plan, err)
					}
					h, err := p.r.Survey(t.Context(), p.repo, nil, []pipeline.Digest{s.image.Digest})
					if err != nil {
						t.Fatal(err)
					}
					change(p, s)
					if _, err := p.r.Prune(t.Context(), h, plan.Remove[0]); !errors.Is(err, pipeline.ErrConflict) {
						t.Fatalf("%v", err)
					}
					if !p.there(s.image.Digest) || !p.there(digestOf(t, s.children[1])) {
						t.Error("something was removed")
					}
				})
			}
		})
	}
}

// TestPruneWhereNothingIsDeleted: it says so and has touched nothing.
func TestPruneWhereNothingIsDeleted(t *testing.T) {
	for _, status := range []int{http.StatusMethodNotAllowed, http.StatusForbidden, http.StatusBadRequest} {
		p := newPantry(t, registrytest.Distribution)
		p.proxy.Inject(http.MethodDelete, "", 1000, registrytest.Status(status))
		old := newSample(t, p.repo)
		p.record(old, 30, "sha-0123456789ab")
		p.record(bare(t, p.repo), 2)
		result := p.apply()
		if o := result.Outcomes[0]; o.Outcome != pipeline.PruneBlocked || !strings.Contains(o.Detail, "does not delete manifests") {
			t.Errorf("%d: %+v", status, o)
		}
		old.check(t, p.repo)
		if p.store.State.Images[0].Gone {
			t.Error("the record says that it is gone")
		}
	}
}

// TestPruneGoesOnAfterABreak: each deletion fails once, and going on removes the rest.
func TestPruneGoesOnAfterABreak(t *testing.T) {
	for kind, run := range kinds() {
		t.Run(kind, func(t *testing.T) {
			for n := range 6 {
				p := newPantry(t, run)
				old, keep := newSample(t, p.repo), bare(t, p.repo)
				p.record(old, 30, "sha-0123456789ab")
				p.record(keep, 2, "1.0.0")
				plan, err := p.Plan(t.Context(), "app")
				if err != nil || len(plan.Remove) != 1 || len(plan.Remove[0].Manifests) < 6 {
					t.Fatalf("%+v %v", plan, err)
				}
				if _, err := p.Apply(t.Context(), "app", plan.Digest, "ada"); err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				d := plan.Remove[0].Manifests[n]
				p.proxy.Inject(http.MethodDelete, string(d), 1, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
					if n%2 == 0 { // it happened, and nobody heard of it
						next.ServeHTTP(w, r)
					}
					cancel()
					panic(http.ErrAbortHandler)
				})
				if err := p.Work(ctx); err == nil {
					t.Fatal("no break")
				}
				cancel()
				keep.check(t, p.repo)
				if err := p.Work(t.Context()); err != nil {
					t.Fatal(err)
				}
				for _, d := range plan.Remove[0].Manifests {
					if p.there(d) {
						t.Errorf("break at %d: %s is still there", n, d)
					}
				}
				keep.check(t, p.repo)
				if !p.store.State.Images[0].Gone {
					t.Error("the record does not say that it is gone")
				}
			}
		})
	}
}
