package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/pipelinetest"
	"github.com/dray-project/dray/pipeline/policy"
)

const (
	devRepo  = "dev.example/team/app"
	prodRepo = "prod.example/team/app"
	commitA  = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	commitB  = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
)

// bundle is a world with one project and a pipeline that works in it.
type bundle struct {
	*pipelinetest.World
	t *testing.T
	p *pipeline.Pipeline
	n int
	// now is the world's clock.
	now time.Time
}

func setup(t *testing.T) *bundle {
	t.Helper()
	rules := pipeline.GateRules{FailOn: pipeline.SeverityCritical}
	return setupWith(t, pipeline.Environment{Name: "prod", Repository: prodRepo, Gate: rules})
}

func setupWith(t *testing.T, environments ...pipeline.Environment) *bundle {
	t.Helper()
	w := pipelinetest.NewWorld(t)
	b := &bundle{World: w, t: t, now: time.Date(2026, 3, 2, 9, 0, 0, 0, time.UTC)} // a Monday
	w.Store.Clock = func() time.Time { b.now = b.now.Add(time.Millisecond); return b.now }
	b.configure(environments...)
	b.p = b.newPipeline()
	return b
}

// configure puts the project's settings into force.
func (b *bundle) configure(environments ...pipeline.Environment) {
	b.t.Helper()
	project := pipeline.Project{
		Name: "app", Forge: "github", Source: "team/app", CloneURL: "https://git.example/team/app.git",
		Repository: devRepo, Platforms: []pipeline.Platform{"linux/amd64", "linux/arm64"}, Latest: true,
		Gate: pipeline.GateRules{FailOn: pipeline.SeverityCritical}, Environments: environments, TrustedVEXKeys: []string{"a key"}, Version: 1,
	}
	if err := project.Check(); err != nil {
		b.t.Fatal(err)
	}
	if err := b.Store.SyncProjects(b.t.Context(), []pipeline.Project{project}); err != nil {
		b.t.Fatal(err)
	}
}

// newPipeline is what a restarted process has: nothing but the store.
func (b *bundle) newPipeline() *pipeline.Pipeline {
	b.t.Helper()
	judge, err := policy.New(b.t.Context(), policy.Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.t.Fatal(err)
	}
	p, err := pipeline.New(pipeline.Config{
		Store: b.Store, Locker: b.Store, Builder: b.Builder(), Scanner: b.Scanner(), Signer: b.Signer(), Registry: b.Registry(),
		Judge: judge, VEX: pipelinetest.VEX{}, BaseURL: "https://dray.example", BuilderID: "https://example.com/builder", Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return p
}

func (b *bundle) push(ref, commit string) pipeline.RunID {
	b.t.Helper()
	b.n++
	a, err := b.Store.Accept(b.t.Context(), pipeline.Delivery{
		Forge: "github", ID: fmt.Sprint("delivery-", b.n), Project: "app", ReceivedAt: b.Store.Clock(),
		Event: pipeline.Event{Kind: pipeline.EventPush, Source: "team/app", Ref: ref, After: commit},
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return a.Run
}

// release pushes a tag and runs it to its end.
func (b *bundle) release(version, commit string) pipeline.Run {
	b.t.Helper()
	id := b.push("refs/tags/v"+version, commit)
	if err := b.p.Run(b.t.Context(), id); err != nil {
		b.t.Fatal(err)
	}
	return b.run(id)
}

func (b *bundle) run(id pipeline.RunID) pipeline.Run {
	b.t.Helper()
	r, err := b.Store.Run(b.t.Context(), id)
	if err != nil {
		b.t.Fatal(err)
	}
	return r
}

func (b *bundle) promote(d pipeline.Digest) pipeline.PromotionID {
	b.t.Helper()
	p, _, err := b.Store.Promote(b.t.Context(), pipeline.PromotionRequest{Image: string(d), Environment: "prod", RequestedBy: "rita"})
	if err != nil {
		b.t.Fatal(err)
	}
	return p.ID
}

func wantTags(t *testing.T, have map[string]pipeline.Digest, d pipeline.Digest, tags ...string) {
	t.Helper()
	if got := slices.Sorted(maps.Keys(have)); !slices.Equal(got, slices.Sorted(slices.Values(tags))) {
		t.Errorf("tags are %v, want %v", got, tags)
	}
	for tag, holds := range have {
		if holds != d {
			t.Errorf("tag %s names %s, want %s", tag, holds, d)
		}
	}
}

func TestRunAndPromote(t *testing.T) {
	b := setup(t)
	run := b.release("1.0.0", commitA)
	if run.State != pipeline.StateSucceeded || run.Commit != commitA || run.Image == nil {
		t.Fatalf("run is %+v", run)
	}
	wantTags(t, b.TagsOf(devRepo), run.Image.Digest, "sha-aaaaaaaaaaaa", "1.0.0", "1.0", "1", "latest")
	for _, img := range b.Store.Images()[0].Built.PlatformImages() {
		v, err := b.Signer().Verify(t.Context(), img)
		if err != nil || !v.Has(pipeline.PredicateProvenance) || !v.Has(pipeline.PredicateCycloneDX) {
			t.Errorf("%s: provenance and SBOM are not both attested: %+v, %v", img, v.Attestations, err)
		}
	}

	id := b.promote(run.Image.Digest)
	if err := b.p.Promote(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	promo, err := b.Store.Promotion(t.Context(), id)
	if err != nil || promo.State != pipeline.StateSucceeded {
		t.Fatalf("promotion is %+v, %v", promo, err)
	}
	wantTags(t, b.TagsOf(prodRepo), run.Image.Digest, "sha-aaaaaaaaaaaa", "1.0.0", "1.0", "1", "latest")
}

// TestEveryFault fails a run and a promotion at every effect, in every way,
// until they are through, and then looks at what is left. The world itself
// fails the test when a tag moves too early.
func TestEveryFault(t *testing.T) {
	clean := setup(t)
	clean.Faults.Arm(0, 0)
	runThrough(t, clean, func() {})
	effects := clean.Faults.Trace()
	if len(effects) < 50 {
		t.Fatalf("only %d effects were seen: %v", len(effects), effects)
	}
	for n := 1; n <= len(effects); n++ {
		for _, mode := range pipelinetest.Modes() {
			t.Run(fmt.Sprintf("%03d %s %s", n, effects[n-1], mode), func(t *testing.T) {
				b := setup(t)
				b.Faults.Arm(n, mode)
				runThrough(t, b, func() {
					b.Faults.Restart()
					b.p = b.newPipeline()
				})
				img := *must(b.Store.Run(t.Context(), b.onlyRun(t))).Image
				if n := len(b.Store.Images()); n != 1 {
					t.Errorf("the store holds %d records of the image, want 1", n)
				}
				wantTags(t, b.TagsOf(devRepo), img.Digest, "sha-aaaaaaaaaaaa", "1.0.0", "1.0", "1", "latest")
				wantTags(t, b.TagsOf(prodRepo), img.Digest, "sha-aaaaaaaaaaaa", "1.0.0", "1.0", "1", "latest")
				for _, repo := range []string{devRepo, prodRepo} {
					v, err := b.Signer().Verify(t.Context(), pipeline.Image{Repository: repo, Digest: img.Digest})
					if err != nil || len(v.Signatures) != 1 || len(v.Attestations) != 4 {
						t.Errorf("in %s: %d signatures, %d attestations, %v; want one signature, a provenance, an SBOM and the summaries of two decisions", repo, len(v.Signatures), len(v.Attestations), err)
					}
				}
			})
		}
	}
}

// runThrough pushes, runs, promotes; each step is tried again, after restart,
// until it succeeds. No single fault may need more than two tries.
func runThrough(t *testing.T, b *bundle, restart func()) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	try := func(what string, step func() error) {
		t.Helper()
		var err error
		for range 3 {
			if err = step(); err == nil {
				return
			}
			if !errors.Is(err, pipelinetest.ErrInjected) {
				t.Fatalf("%s: %v", what, err)
			}
			restart()
		}
		t.Fatalf("%s did not recover: %v", what, err)
	}
	var accepted pipeline.Accepted
	try("accept", func() (err error) {
		accepted, err = b.Store.Accept(ctx, pipeline.Delivery{
			Forge: "github", ID: "d1", Project: "app", ReceivedAt: time.Now(),
			Event: pipeline.Event{Kind: pipeline.EventPush, Source: "team/app", Ref: "refs/tags/v1.0.0", After: commitA},
		})
		return err
	})
	try("run", func() error { return b.p.Run(ctx, accepted.Run) })
	var run pipeline.Run
	try("read the run", func() (err error) { run, err = b.Store.Run(ctx, accepted.Run); return err })
	if run.State != pipeline.StateSucceeded {
		t.Fatalf("run is %s: %s", run.State, run.Reason)
	}
	var promo pipeline.Promotion
	try("ask for the promotion", func() (err error) {
		promo, _, err = b.Store.Promote(ctx, pipeline.PromotionRequest{
			Image: string(run.Image.Digest), Environment: "prod", RequestedBy: "rita", IdempotencyKey: "k1"})
		return err
	})
	id := promo.ID
	try("promote", func() error { return b.p.Promote(ctx, id) })
	try("read the promotion", func() (err error) { promo, err = b.Store.Promotion(ctx, id); return err })
	if promo.State != pipeline.StateSucceeded {
		t.Fatalf("promotion is %s: %s", promo.State, promo.Reason)
	}
}

func (b *bundle) onlyRun(t *testing.T) pipeline.RunID {
	t.Helper()
	images := b.Store.Images()
	if len(images) == 0 {
		t.Fatal("no image was recorded")
	}
	return images[0].Run
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestTwoWorkersOneRun lets two workers believe that they own the same run.
func TestTwoWorkersOneRun(t *testing.T) {
	for range 50 {
		b := setup(t)
		id := b.push("refs/tags/v1.0.0", commitA)
		var wg sync.WaitGroup
		for range 2 {
			p := b.newPipeline()
			wg.Go(func() {
				if err := p.Run(t.Context(), id); err != nil && !errors.Is(err, pipeline.ErrStale) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if err := b.p.Run(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		run := b.run(id)
		if run.State != pipeline.StateSucceeded || len(b.Store.Images()) != 1 {
			t.Fatalf("run is %s (%s) with %d records", run.State, run.Reason, len(b.Store.Images()))
		}
		wantTags(t, b.TagsOf(devRepo), run.Image.Digest, "sha-aaaaaaaaaaaa", "1.0.0", "1.0", "1", "latest")
	}
}

func TestRefusedImageIsRecordedButNeitherSignedNorTagged(t *testing.T) {
	b := setup(t)
	b.User = "root"
	b.Findings[commitA] = []pipeline.Finding{{ID: "CVE-2024-45337", Severity: pipeline.SeverityCritical, Package: "golang.org/x/crypto", Version: "v0.30.0", FixedIn: "0.31.0"}}
	run := b.release("1.0.0", commitA)
	if run.State != pipeline.StateRefused {
		t.Fatalf("run is %s, want refused", run.State)
	}
	for _, want := range []string{"severity", "CVE-2024-45337", "golang.org/x/crypto v0.30.0", "non-root", "USER is root"} {
		if !strings.Contains(run.Reason, want) {
			t.Errorf("reason %q does not name %q", run.Reason, want)
		}
	}
	if tags := b.TagsOf(devRepo); len(tags) != 0 {
		t.Errorf("a refused image carries %v", tags)
	}
	if _, err := b.Signer().Verify(t.Context(), *run.Image); !errors.Is(err, pipeline.ErrUnverified) {
		t.Errorf("a refused image is signed: %v", err)
	}
	if images := b.Store.Images(); len(images) != 1 || images[0].Decision.Passed {
		t.Errorf("the refusal is not on record: %+v", images)
	}
	if _, _, err := b.Store.Promote(t.Context(), pipeline.PromotionRequest{Image: string(run.Image.Digest), Environment: "prod"}); !errors.Is(err, pipeline.ErrRefused) {
		t.Errorf("a refused image may be promoted: %v", err)
	}
}

func TestOneCommitIsOneImage(t *testing.T) {
	b := setup(t)
	first := b.release("1.0.0", commitA)
	second := b.release("1.0.1", commitA)
	if *first.Image != *second.Image || b.Builds() != 1 {
		t.Errorf("one commit gave %v and %v in %d builds", first.Image, second.Image, b.Builds())
	}
	wantTags(t, b.TagsOf(devRepo), first.Image.Digest, "sha-aaaaaaaaaaaa", "1.0.0", "1.0.1", "1.0", "1", "latest")

	b.Forget(*first.Image)
	third := b.release("1.0.2", commitA)
	if b.Builds() != 2 || *third.Image != *first.Image {
		t.Errorf("an image that is gone was not built again: %d builds, %v", b.Builds(), third.Image)
	}
}

func TestFloatingTagsMoveForwardOnly(t *testing.T) {
	b := setup(t)
	newer := b.release("2.0.0", commitA)
	older := b.release("1.2.4", commitB)
	tags := b.TagsOf(devRepo)
	for tag, want := range map[string]pipeline.Digest{
		"latest": newer.Image.Digest, "2": newer.Image.Digest, "2.0": newer.Image.Digest,
		"1": older.Image.Digest, "1.2": older.Image.Digest, "1.2.4": older.Image.Digest,
	} {
		if tags[tag] != want {
			t.Errorf("%s names %s, want %s", tag, tags[tag].Short(), want.Short())
		}
	}
}

func TestReleaseTagNeverMoves(t *testing.T) {
	b := setup(t)
	first := b.release("1.0.0", commitA)
	id := b.push("refs/tags/v1.0.0", commitB) // the same version, moved to another commit
	err := b.p.Run(t.Context(), id)
	var conflict *pipeline.TagConflict
	if !errors.As(err, &conflict) || !pipeline.IsPermanent(err) {
		t.Fatalf("run ended with %v, want a permanent tag conflict", err)
	}
	if conflict.Holds != first.Image.Digest || !strings.Contains(err.Error(), string(first.Image.Digest)) {
		t.Errorf("the error does not say what the tag names today: %v", err)
	}
	tags := b.TagsOf(devRepo)
	if tags["1.0.0"] != first.Image.Digest || tags["1"] != first.Image.Digest {
		t.Errorf("tags moved: %v", tags)
	}
	if _, ok := tags["sha-bbbbbbbbbbbb"]; ok {
		t.Error("a run that failed on a conflict left a tag")
	}
}

func TestPromotionRefusals(t *testing.T) {
	b := setup(t)
	run := b.release("1.0.0", commitA)

	t.Run("a finding that became known after the build", func(t *testing.T) {
		b.Findings[commitA] = []pipeline.Finding{{ID: "CVE-2026-0001", Severity: pipeline.SeverityCritical, Package: "lib", Version: "1"}}
		defer delete(b.Findings, commitA)
		id := b.promote(run.Image.Digest)
		if err := b.p.Promote(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		promo := must(b.Store.Promotion(t.Context(), id))
		if promo.State != pipeline.StateRefused || !strings.Contains(promo.Reason, "CVE-2026-0001") {
			t.Errorf("promotion is %s: %s", promo.State, promo.Reason)
		}
	})
	t.Run("a platform whose signature is gone", func(t *testing.T) {
		img := b.Store.Images()[0].Built.PlatformImages()[1]
		b.Unsign(img)
		id := b.promote(run.Image.Digest)
		err := b.p.Promote(t.Context(), id)
		if !errors.Is(err, pipeline.ErrUnverified) || !pipeline.IsPermanent(err) || !strings.Contains(err.Error(), img.String()) {
			t.Errorf("promotion ended with %v, want a permanent error that names %s", err, img)
		}
	})
	if tags := b.TagsOf(prodRepo); len(tags) != 0 {
		t.Errorf("prod carries %v", tags)
	}
}
