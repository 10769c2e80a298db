package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/pipelinetest"
)

const (
	buildsAt = "dev.example/acme/app"
	prodAt   = "prod.example/acme/app"
)

var retentionNow = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

func days(n int) time.Time { return retentionNow.Add(-time.Duration(n) * 24 * time.Hour) }

func age(n int) *pipeline.AgeRetention {
	return &pipeline.AgeRetention{For: pipeline.Duration(time.Duration(n) * 24 * time.Hour)}
}

type locks struct {
	mu   sync.Mutex
	held map[string]bool
}

func (l *locks) Lock(_ context.Context, key string) (func(), error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held == nil {
		l.held = map[string]bool{}
	}
	if l.held[key] {
		return nil, fmt.Errorf("%s is locked twice", key)
	}
	l.held[key] = true
	return func() { l.mu.Lock(); delete(l.held, key); l.mu.Unlock() }, nil
}

// shelf is a project with its registries.
type shelf struct {
	t     *testing.T
	store *pipelinetest.Retentions
	repos *pipelinetest.Repositories
	*pipeline.Retainer
}

func newShelf(t *testing.T, rules *pipeline.Retention) *shelf {
	p := pipelinetest.SampleProject("app")
	p.Retention = rules
	faults := &pipelinetest.Faults{}
	s := &shelf{t: t, store: &pipelinetest.Retentions{Faults: faults, State: pipeline.Retained{Project: p, Now: retentionNow}}, repos: &pipelinetest.Repositories{Faults: faults}}
	var err error
	if s.Retainer, err = pipeline.NewRetainer(pipeline.RetentionConfig{Store: s.store, Pruner: s.repos, Locker: &locks{}, Log: slog.New(slog.DiscardHandler)}); err != nil {
		t.Fatal(err)
	}
	return s
}

func dig(parts ...any) pipeline.Digest { return pipelinetest.DigestOf(parts...) }

// image pushes an index of two platforms with signatures of all three, and
// returns it as the record has it.
func (s *shelf) image(repository, name string, recorded time.Time, children ...pipeline.Digest) pipeline.RetainedImage {
	if children == nil {
		children = []pipeline.Digest{dig(name, "amd64"), dig(name, "arm64")}
	}
	root := dig(name)
	for _, c := range children {
		s.repos.Push(repository, c, pipeline.Held{Size: 10, Blobs: []pipeline.Content{{Digest: dig("layer", c), Size: 1000}, {Digest: dig("base"), Size: 5000}}})
	}
	s.repos.Push(repository, root, pipeline.Held{Size: 5, Index: true, Children: children})
	for _, subject := range append([]pipeline.Digest{root}, children...) {
		s.repos.Push(repository, dig("referrer", subject), pipeline.Held{Size: 2, Subject: subject})
		legacy := dig("legacy", subject)
		s.repos.Push(repository, legacy, pipeline.Held{Size: 2})
		s.repos.Tag(repository, "sha256-"+subject.Hex()+".sig", legacy)
	}
	return pipeline.RetainedImage{Image: pipeline.Image{Repository: repository, Digest: root}, RecordedAt: recorded}
}

func (s *shelf) tag(img *pipeline.RetainedImage, repository, tag string, since time.Time) {
	s.repos.Tag(repository, tag, img.Image.Digest)
	img.Tags = append(img.Tags, pipeline.RetainedTag{Repository: repository, Tag: tag, Since: since})
}

// apply plans, applies and works until nothing is left.
func (s *shelf) apply() pipeline.RetentionRun {
	s.t.Helper()
	plan, err := s.Plan(s.t.Context(), "app")
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := s.Apply(s.t.Context(), "app", plan.Digest, "ada"); err != nil {
		s.t.Fatal(err)
	}
	if err := s.Work(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	return s.store.Last()
}

func whyKept(p pipeline.RetentionPlan, d pipeline.Digest) string {
	for _, k := range p.Keep {
		if k.Image.Digest == d && k.Tag == "" {
			return k.Reason
		}
	}
	return ""
}

func TestRetentionPlan(t *testing.T) {
	keep := func(n int) *pipeline.Retention { return &pipeline.Retention{Images: &pipeline.ImageRetention{Keep: n}} }
	old := func(s *shelf) pipeline.RetainedImage { return s.image(buildsAt, "old", days(100)) }
	place := func(depth int, since time.Time) []pipeline.RetainedPlace {
		return []pipeline.RetainedPlace{{Environment: "prod", Image: pipeline.Image{Repository: prodAt, Digest: dig("old")}, Since: since, Depth: depth}}
	}
	for name, tc := range map[string]struct {
		rules *pipeline.Retention
		set   func(*shelf, *pipeline.RetainedImage)
		why   string // it stays; empty: it goes
		goes  int    // manifests
	}{
		"no rules":              {nil, nil, "-", 0},
		"it goes":               {keep(1), nil, "", 9},
		"among the newest":      {keep(2), nil, "among the newest 2", 0},
		"young enough":          {&pipeline.Retention{Images: &pipeline.ImageRetention{For: age(101).For}}, nil, "recorded 100d ago", 0},
		"older than the time":   {&pipeline.Retention{Images: &pipeline.ImageRetention{For: age(99).For}}, nil, "", 9},
		"made today":            {&pipeline.Retention{Images: &pipeline.ImageRetention{For: 1}}, func(_ *shelf, i *pipeline.RetainedImage) { i.RecordedAt = days(0) }, "recorded 0s ago", 0},
		"a run works with it":   {keep(1), func(_ *shelf, i *pipeline.RetainedImage) { i.Busy = "run_1" }, "run_1 works with it", 0},
		"a commit's tag":        {keep(1), func(s *shelf, i *pipeline.RetainedImage) { s.tag(i, buildsAt, "sha-abc", days(100)) }, "", 9},
		"a commit's tag, young": {keep(1), func(s *shelf, i *pipeline.RetainedImage) { s.tag(i, buildsAt, "sha-abc", days(0)) }, "the tag sha-abc names it", 0},
		"keep what is tagged": {&pipeline.Retention{Images: &pipeline.ImageRetention{Keep: 1, KeepTagged: pipeline.KeepAll}},
			func(s *shelf, i *pipeline.RetainedImage) { s.tag(i, buildsAt, "sha-abc", days(100)) }, "the tag sha-abc names it", 0},
		"keep what is tagged, and let the tag go": {&pipeline.Retention{Images: &pipeline.ImageRetention{Keep: 1, KeepTagged: pipeline.KeepAll}, Tags: &pipeline.TagRetention{SHA: age(90)}},
			func(s *shelf, i *pipeline.RetainedImage) { s.tag(i, buildsAt, "sha-abc", days(100)) }, "", 9},
		"a release":           {keep(1), func(s *shelf, i *pipeline.RetainedImage) { s.tag(i, buildsAt, "1.2.3", days(100)) }, "the tag 1.2.3 names it", 0},
		"somebody else's tag": {keep(1), func(s *shelf, _ *pipeline.RetainedImage) { s.repos.Tag(buildsAt, "sha-mine", dig("old")) }, "the tag sha-mine names it", 0},
		"an index of somebody's": {keep(1), func(s *shelf, _ *pipeline.RetainedImage) {
			s.repos.Push(buildsAt, dig("bundle"), pipeline.Held{Index: true, Children: []pipeline.Digest{dig("old")}})
			s.repos.Tag(buildsAt, "bundle", dig("bundle"))
		}, "lists it", 0},
		"a referrer with a tag": {keep(1), func(s *shelf, _ *pipeline.RetainedImage) {
			s.repos.Tag(buildsAt, "sbom", dig("referrer", dig("old")))
		}, "is attached to it", 0},
		"attached to what stays": {keep(1), func(s *shelf, _ *pipeline.RetainedImage) {
			s.repos.Push(buildsAt, dig("old"), pipeline.Held{Subject: dig("new"), Index: true, Children: []pipeline.Digest{dig("old", "amd64")}})
		}, "it is attached to " + string(dig("new")), 0},
		"shares a platform with what stays": {keep(1), func(s *shelf, _ *pipeline.RetainedImage) {
			s.repos.Push(buildsAt, dig("new"), pipeline.Held{Index: true, Children: []pipeline.Digest{dig("old", "amd64"), dig("new", "arm64")}})
		}, "", 6},
		"lists an image that stays": {keep(1), func(s *shelf, _ *pipeline.RetainedImage) {
			s.repos.Push(buildsAt, dig("old"), pipeline.Held{Index: true, Children: []pipeline.Digest{dig("new"), dig("old", "arm64")}})
		}, "", 6},
		"another project's":     {keep(1), func(s *shelf, i *pipeline.RetainedImage) { s.store.State.Others = []pipeline.Image{i.Image} }, "another project", 0},
		"in prod":               {keep(1), func(_ *shelf, i *pipeline.RetainedImage) { i.Places = place(0, days(50)) }, "what prod holds", 0},
		"prod may go back":      {&pipeline.Retention{Images: keep(1).Images, Promoted: age(2)}, func(_ *shelf, i *pipeline.RetainedImage) { i.Places = place(3, days(50)) }, "prod may go back to it", 0},
		"was promoted once":     {keep(1), func(_ *shelf, i *pipeline.RetainedImage) { i.Places = place(9, days(50)) }, "it was promoted to prod", 0},
		"promoted not long ago": {&pipeline.Retention{Images: keep(1).Images, Promoted: age(60)}, func(_ *shelf, i *pipeline.RetainedImage) { i.Places = place(9, days(50)) }, "promoted to prod 50d ago", 0},
		"gone already":          {keep(1), func(_ *shelf, i *pipeline.RetainedImage) { i.Gone = true }, "-", 0},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShelf(t, tc.rules)
			img := old(s)
			newest := s.image(buildsAt, "new", days(10))
			if tc.set != nil {
				tc.set(s, &img)
			}
			s.store.State.Images = []pipeline.RetainedImage{img, newest}
			plan, err := s.Plan(t.Context(), "app")
			if err != nil {
				t.Fatal(err)
			}
			if tc.why == "" {
				if len(plan.Remove) != 1 || plan.Remove[0].Image != img.Image || len(plan.Remove[0].Manifests) != tc.goes {
					t.Fatalf("%+v", plan)
				}
				return
			}
			ours := func(r pipeline.Removal) bool { return r.Image == img.Image }
			if slices.ContainsFunc(plan.Remove, ours) || (tc.why != "-" && !strings.Contains(whyKept(plan, dig("old")), tc.why)) {
				t.Fatalf("want kept because %q, got %q and %+v", tc.why, whyKept(plan, dig("old")), plan.Remove)
			}
		})
	}
}

// TestRetentionOfPromoted: what was promoted long ago goes from its environment
// and from where it was built, releases excepted.
func TestRetentionOfPromoted(t *testing.T) {
	s := newShelf(t, &pipeline.Retention{Images: &pipeline.ImageRetention{Keep: 1}, Promoted: age(60)})
	var images []pipeline.RetainedImage
	for n := range 8 {
		name := fmt.Sprint("image", n)
		img := s.image(buildsAt, name, days(200-n))
		s.image(prodAt, name, days(200-n))
		img.Places = []pipeline.RetainedPlace{{Environment: "prod", Image: pipeline.Image{Repository: prodAt, Digest: img.Image.Digest}, Since: days(200 - n), Depth: 7 - n}}
		images = append(images, img)
	}
	s.tag(&images[1], prodAt, "1.0.1", days(199))
	s.store.State.Images = images
	run := s.apply()
	if run.FinishedAt == nil || run.Done != 6 || run.Error != "" {
		t.Fatalf("%+v", run)
	}
	for n := range 8 {
		_, built := s.repos.Contents(buildsAt).Manifests[images[n].Image.Digest]
		_, there := s.repos.Contents(prodAt).Manifests[images[n].Image.Digest]
		want := n == 1 || n >= 4
		if built != want || there != want {
			t.Errorf("image %d: where it was built %t, in prod %t, want %t", n, built, there, want)
		}
	}
}

func TestRetentionOfTagsCachesAndLogs(t *testing.T) {
	s := newShelf(t, &pipeline.Retention{Caches: age(14), Logs: age(30), Tags: &pipeline.TagRetention{SHA: age(90)}})
	img := s.image(buildsAt, "one", days(100))
	s.tag(&img, buildsAt, "sha-abc", days(100))
	s.tag(&img, buildsAt, "1.0.0", days(100))
	s.store.State.Images = []pipeline.RetainedImage{img}
	for _, tag := range []string{"cache-release-linux-amd64", "cache-release-linux-arm64", "cache-release-linux-s390x"} {
		s.repos.Push(buildsAt, dig(tag), pipeline.Held{Blobs: []pipeline.Content{{Digest: dig("blob", tag), Size: 7}}})
		s.repos.Tag(buildsAt, tag, dig(tag))
	}
	s.store.State.Caches = map[pipeline.Platform]time.Time{"linux/amd64": days(3), "linux/arm64": days(20)}
	s.store.State.Logs = []pipeline.LogRemoval{{Run: "run_1", EndedAt: days(40)}, {Run: "run_2", EndedAt: days(20)}}
	s.store.State.Building = "run_3"
	plan, err := s.Plan(t.Context(), "app")
	if err != nil || len(plan.Remove) != 1 || len(plan.Logs) != 1 {
		t.Fatalf("while a run builds, no cache goes: %+v %v", plan, err)
	}
	s.store.State.Building = ""
	run := s.apply()
	if run.Done != 2 || len(s.store.State.Logs) != 1 {
		t.Fatalf("%+v", run)
	}
	got := s.repos.Contents(buildsAt)
	for tag, want := range map[string]bool{"sha-abc": false, "1.0.0": true, "cache-release-linux-amd64": true, "cache-release-linux-arm64": false, "cache-release-linux-s390x": true} {
		if _, ok := got.Tags[tag]; ok != want {
			t.Errorf("tag %s: %t, want %t", tag, ok, want)
		}
	}
	if _, ok := got.Manifests[img.Image.Digest]; !ok {
		t.Error("the image went with its tag")
	}
}

func TestRetentionIsBoundToItsPlan(t *testing.T) {
	s := newShelf(t, &pipeline.Retention{Images: &pipeline.ImageRetention{Keep: 1}})
	s.store.State.Images = []pipeline.RetainedImage{s.image(buildsAt, "old", days(100)), s.image(buildsAt, "new", days(10))}
	plan, err := s.Plan(t.Context(), "app")
	if err != nil {
		t.Fatal(err)
	}
	again, err := s.Plan(t.Context(), "app")
	if err != nil || again.Digest != plan.Digest {
		t.Fatalf("the same plan has another digest: %v", err)
	}
	s.repos.Push(buildsAt, dig("late"), pipeline.Held{Subject: dig("old")})
	if _, err := s.Apply(t.Context(), "app", plan.Digest, "ada"); !errors.Is(err, pipeline.ErrConflict) || !strings.Contains(err.Error(), "look at it again") {
		t.Fatalf("a plan that changed was applied: %v", err)
	}
	// What changes between the application and the removal is left alone.
	if plan, err = s.Plan(t.Context(), "app"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Apply(t.Context(), "app", plan.Digest, "ada"); err != nil {
		t.Fatal(err)
	}
	s.repos.Tag(buildsAt, "mine", dig("old"))
	if err := s.Work(t.Context()); err != nil {
		t.Fatal(err)
	}
	if run := s.store.Last(); run.Done != 1 || run.Outcomes[0].Outcome != pipeline.PruneSkipped || !strings.Contains(run.Outcomes[0].Detail, "the tag mine names it") {
		t.Fatalf("%+v", run)
	}
	if len(s.repos.Contents(buildsAt).Manifests) != 19 {
		t.Error("something was removed")
	}
	// A registry that does not delete says so.
	s = newShelf(t, &pipeline.Retention{Images: &pipeline.ImageRetention{Keep: 1}})
	s.store.State.Images = []pipeline.RetainedImage{s.image(buildsAt, "old", days(100)), s.image(buildsAt, "new", days(10))}
	s.repos.Refuses = "it does not delete"
	if run := s.apply(); run.Outcomes[0].Outcome != pipeline.PruneBlocked || run.Outcomes[0].Detail != "it does not delete" || s.store.State.Images[0].Gone {
		t.Fatalf("%+v", run)
	}
}

// TestRetentionNeverTakesWhatIsKept makes random graphs of images, tags,
// promotions and things attached, lets every effect fail in every way, and
// compares with what an independent rule says must be whole.
func TestRetentionNeverTakesWhatIsKept(t *testing.T) {
	seeds, faulty := 300, 12 // so many of them with faults
	removed := 0
	for seed := range seeds {
		effects := 0
		for at := 0; at <= effects; at++ {
			modes := pipelinetest.Modes()
			if at == 0 {
				modes = modes[:1]
			}
			for _, mode := range modes {
				s, whole := randomShelf(t, uint64(seed))
				before := map[string]int{}
				for _, repository := range []string{buildsAt, prodAt} {
					before[repository] = len(s.repos.Contents(repository).Manifests)
				}
				plan, err := s.Plan(t.Context(), "app")
				if err != nil {
					t.Fatal(err)
				}
				if plan.Empty() {
					continue
				}
				s.store.Faults.Arm(at, mode)
				for range 6 {
					_, refused := s.Apply(t.Context(), "app", plan.Digest, "ada")
					if err = refused; err != nil && !errors.Is(err, pipelinetest.ErrInjected) && !errors.Is(err, pipeline.ErrConflict) {
						t.Fatal(err)
					}
					err = s.Work(t.Context())
					s.check(fmt.Sprintf("seed %d, effect %d, %s", seed, at, mode), whole)
					if err == nil && !errors.Is(refused, pipelinetest.ErrInjected) && len(must2(s.store.OpenPrunings(t.Context()))) == 0 {
						break
					}
					s.store.Faults.Restart()
				}
				if err != nil {
					t.Fatalf("seed %d, effect %d, %s: it does not come to an end: %v", seed, at, mode, err)
				}
				if at == 0 && seed < faulty {
					effects = min(len(s.store.Faults.Trace()), 40)
				}
				s.agree(fmt.Sprintf("seed %d, effect %d, %s", seed, at, mode), plan)
				for _, repository := range []string{buildsAt, prodAt} {
					removed += before[repository] - len(s.repos.Contents(repository).Manifests)
				}
			}
		}
	}
	if removed < 1000 {
		t.Errorf("only %d manifests were removed in all: this tries too little", removed)
	}
}

func must2[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// check: what must be whole has every manifest that it had.
func (s *shelf) check(when string, whole map[pipeline.Image]bool) {
	s.t.Helper()
	for img := range whole {
		if _, ok := s.repos.Contents(img.Repository).Manifests[img.Digest]; !ok {
			s.t.Fatalf("%s: %s is gone and was to be kept", when, img)
		}
	}
}

// agree: the record says gone of what is gone, and of nothing else.
func (s *shelf) agree(when string, plan pipeline.RetentionPlan) {
	s.t.Helper()
	planned := map[pipeline.Image]bool{}
	for _, r := range plan.Remove {
		planned[r.Image] = r.Kind == pipeline.RemoveImage
	}
	for _, img := range s.store.State.Images {
		_, there := s.repos.Contents(img.Image.Repository).Manifests[img.Image.Digest]
		if there == img.Gone || (planned[img.Image] && there) {
			s.t.Fatalf("%s: %s is there: %t, and the record says that it is gone: %t (planned %t)", when, img.Image, there, img.Gone, planned[img.Image])
		}
		for _, tag := range img.Tags {
			if s.repos.Contents(tag.Repository).Tags[tag.Tag] != img.Image.Digest {
				s.t.Fatalf("%s: the record has the tag %s, and the registry has not", when, tag.Tag)
			}
		}
		for _, at := range img.Places {
			if _, there := s.repos.Contents(prodAt).Manifests[img.Image.Digest]; there == at.Gone {
				s.t.Fatalf("%s: %s is in prod: %t, and the record says that it is gone: %t", when, img.Image, there, at.Gone)
			}
		}
	}
}

// randomShelf makes a project, and says what must stay whole: the closure, in
// every direction, of whatever the rules or anybody's tag keeps.
func randomShelf(t *testing.T, seed uint64) (*shelf, map[pipeline.Image]bool) {
	r := rand.New(rand.NewPCG(seed, 1))
	rules := &pipeline.Retention{Images: &pipeline.ImageRetention{Keep: r.IntN(3), For: age(20).For}}
	if r.IntN(2) == 0 {
		rules.Promoted = age(30)
	}
	if r.IntN(3) == 0 {
		rules.Images.KeepTagged = pipeline.KeepAll
	}
	if r.IntN(2) == 0 {
		rules.Tags = &pipeline.TagRetention{SHA: age(40)}
	}
	s := newShelf(t, rules)
	kept := map[pipeline.Image]bool{}
	n := 4 + r.IntN(4)
	var images []pipeline.RetainedImage
	var pool []pipeline.Digest
	places := 0
	for i := range n {
		name := fmt.Sprint("image", seed, "-", i)
		children := []pipeline.Digest{dig(name, "a"), dig(name, "b")}
		if len(pool) > 0 && r.IntN(3) == 0 {
			children[0] = pool[r.IntN(len(pool))] // shared
		}
		pool = append(pool, children...)
		old := 5 + r.IntN(100)
		img := s.image(buildsAt, name, days(old), children...)
		if r.IntN(3) == 0 {
			s.image(prodAt, name, days(old), children...)
			img.Places = []pipeline.RetainedPlace{{Environment: "prod", Image: pipeline.Image{Repository: prodAt, Digest: img.Image.Digest}, Since: days(old), Depth: r.IntN(7)}}
			if places == 0 {
				img.Places[0].Depth = 0
			}
			places++
			if rules.Promoted == nil || img.Places[0].Depth <= pipeline.RollbackDepth || old <= 30 {
				kept[img.Image], kept[img.Places[0].Image] = true, true
			}
			if r.IntN(3) == 0 {
				s.tag(&img, prodAt, fmt.Sprintf("1.%d.0", i), days(old))
				kept[img.Image], kept[img.Places[0].Image] = true, true
			}
		}
		if r.IntN(2) == 0 {
			s.tag(&img, buildsAt, fmt.Sprint("sha-", i), days(old))
			if rules.Images.KeepTagged == pipeline.KeepAll && (rules.Tags == nil || old <= 40) {
				kept[img.Image] = true
			}
		}
		switch r.IntN(8) {
		case 0:
			s.tag(&img, buildsAt, fmt.Sprintf("2.%d.0", i), days(old))
			kept[img.Image] = true
		case 1:
			img.Busy = "run_1"
			kept[img.Image] = true
		case 2:
			s.repos.Tag(buildsAt, fmt.Sprint("mine", i), children[0])
			kept[pipeline.Image{Repository: buildsAt, Digest: children[0]}] = true
		case 3:
			s.store.State.Others = append(s.store.State.Others, img.Image)
			kept[img.Image] = true
		case 4: // an attestation with a tag of its own keeps what it is about
			d := dig("theirs", name)
			s.repos.Push(buildsAt, d, pipeline.Held{Subject: img.Image.Digest})
			s.repos.Tag(buildsAt, fmt.Sprint("theirs", i), d)
			kept[img.Image] = true
		case 5: // signed by somebody else, without the referrers API
			list, d := dig("list", name), dig("other", name)
			s.repos.Push(buildsAt, d, pipeline.Held{Subject: children[1]})
			s.repos.Push(buildsAt, list, pipeline.Held{Index: true, Children: []pipeline.Digest{d}})
			s.repos.Tag(buildsAt, "sha256-"+children[1].Hex(), list)
		}
		if img.RecordedAt.After(days(20)) || old == 20 {
			kept[img.Image] = true
		}
		images = append(images, img)
	}
	newest := slices.Clone(images)
	slices.SortFunc(newest, func(a, b pipeline.RetainedImage) int {
		if c := b.RecordedAt.Compare(a.RecordedAt); c != 0 {
			return c
		}
		return strings.Compare(string(a.Image.Digest), string(b.Image.Digest))
	})
	for _, img := range newest[:min(rules.Images.Keep, len(newest))] {
		kept[img.Image] = true
	}
	s.store.State.Images = images
	// What is kept keeps its parts, what is attached to it, and what it is
	// attached to.
	for changed := true; changed; {
		changed = false
		for img := range maps.Clone(kept) {
			h := s.repos.Contents(img.Repository)
			m, ok := h.Manifests[img.Digest]
			if !ok {
				delete(kept, img)
				continue
			}
			lead := slices.Clone(m.Children)
			if m.Subject != "" {
				lead = append(lead, m.Subject)
			}
			for d, other := range h.Manifests {
				if other.Subject == img.Digest {
					lead = append(lead, d)
				}
			}
			for tag, d := range h.Tags {
				if strings.HasPrefix(tag, "sha256-"+img.Digest.Hex()) {
					lead = append(lead, d)
				}
			}
			for _, d := range lead {
				if to := (pipeline.Image{Repository: img.Repository, Digest: d}); !kept[to] {
					kept[to], changed = true, true
				}
			}
		}
	}
	return s, kept
}
