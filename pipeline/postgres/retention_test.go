package postgres_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/pipelinetest"
	"github.com/dray-project/dray/pipeline/postgres"
	"github.com/dray-project/dray/pipeline/postgres/postgrestest"
)

// keeper is a project with retention in Postgres, and registries in memory.
type keeper struct {
	t     *testing.T
	pool  *pgxpool.Pool
	store *postgres.Store
	repos *pipelinetest.Repositories
	*pipeline.Retainer
}

func newKeeper(t *testing.T, rules *pipeline.Retention) *keeper {
	k := &keeper{t: t, pool: postgrestest.New(t), repos: &pipelinetest.Repositories{}}
	k.store = newStore(t, k.pool)
	app := pipelinetest.SampleProject("app")
	app.Retention = rules
	check(t, k.store.SyncProjects(t.Context(), []pipeline.Project{app, pipelinetest.SampleProject("web")}))
	var err error
	k.Retainer, err = pipeline.NewRetainer(pipeline.RetentionConfig{Store: aMonthLater{k.store}, Pruner: k.repos, Locker: k.store, Log: slog.New(slog.DiscardHandler)})
	check(t, err)
	return k
}

// build records an image and pushes it to where it is built.
func (k *keeper) build(what string, tags ...string) pipeline.ImageRecord {
	k.t.Helper()
	rec := release(k.t, k.store, "app", what, []pipeline.Package{{Name: "busybox", Version: "1", Type: "debian"}}, nil, tags...)
	k.push(rec.Built.Image.Repository, rec, tags...)
	return rec
}

func (k *keeper) push(repository string, rec pipeline.ImageRecord, tags ...string) {
	var children []pipeline.Digest
	for _, p := range rec.Built.Platforms {
		children = append(children, p.Digest)
		k.repos.Push(repository, p.Digest, pipeline.Held{Size: 1})
	}
	k.repos.Push(repository, rec.Built.Image.Digest, pipeline.Held{Size: 1, Index: true, Children: children})
	for _, tag := range tags {
		k.repos.Tag(repository, tag, rec.Built.Image.Digest)
	}
}

// aMonthLater is the store when nothing has happened for a month.
type aMonthLater struct{ *postgres.Store }

func (s aMonthLater) Retained(ctx context.Context, project string) (pipeline.Retained, error) {
	return postgres.RetainedLater(ctx, s.Store, project, 30*24*time.Hour)
}

func (k *keeper) work() pipeline.RetentionRun {
	k.t.Helper()
	check(k.t, k.Work(k.t.Context()))
	run, err := k.store.Retention(k.t.Context(), "app")
	check(k.t, err)
	return run
}

func (k *keeper) apply() pipeline.RetentionRun {
	k.t.Helper()
	plan, err := k.Plan(k.t.Context(), "app")
	check(k.t, err)
	_, err = k.Apply(k.t.Context(), "app", plan.Digest, "ada")
	check(k.t, err)
	return k.work()
}

func (k *keeper) count(sql string, args ...any) (n int) {
	k.t.Helper()
	check(k.t, k.pool.QueryRow(k.t.Context(), sql, args...).Scan(&n))
	return n
}

func keepNewest(n int) *pipeline.Retention {
	return &pipeline.Retention{Images: &pipeline.ImageRetention{Keep: n}}
}

func TestRetentionRemovesAndRecords(t *testing.T) {
	k := newKeeper(t, &pipeline.Retention{Images: &pipeline.ImageRetention{Keep: 1}, Logs: &pipeline.AgeRetention{For: pipeline.Duration(48 * time.Hour)}})
	old := k.build("old", "sha-old")
	released := k.build("released", "1.0.0")
	promoted := k.build("promoted")
	p := promote(t, k.store, promoted, "staging", "ada")
	place(t, k.store, p)
	c := start(t, k.store, push(t, k.store, "app", "refs/heads/main", "fails").Job(), pipeline.StageResolve)
	var lines []pipeline.JobEvent
	for range 50 {
		lines = append(lines, pipeline.JobEvent{Kind: pipeline.KindLog, Log: &pipeline.Line{Text: "a line"}})
	}
	check(t, k.store.AppendEvents(t.Context(), c, lines))
	check(t, k.store.End(t.Context(), c.Job, pipeline.Ending{State: pipeline.StateFailed, Reason: "no"}))
	newest := k.build("newest")

	run := k.apply()
	if run.FinishedAt == nil || run.Done != 1 || run.LogRuns != 1 || run.LogEvents != 50 || run.RequestedBy != "ada" {
		t.Fatalf("%+v", run)
	}
	for _, rec := range []pipeline.ImageRecord{released, promoted, newest} {
		if _, there := k.repos.Contents(rec.Built.Image.Repository).Manifests[rec.Built.Image.Digest]; !there {
			t.Errorf("%s is gone", rec.Built.Image)
		}
	}
	if _, there := k.repos.Contents(old.Built.Image.Repository).Manifests[old.Built.Image.Digest]; there {
		t.Error("it is still there")
	}
	// Evidence stays, and how the run went.
	if _, err := k.store.ImageRecord(t.Context(), "app", old.Built.Image.Digest); err != nil {
		t.Error(err)
	}
	events, end, err := k.store.Events(t.Context(), c.Job, 0, 1000)
	if err != nil || !end || len(events) == 0 || slices.ContainsFunc(events, func(e pipeline.JobEvent) bool { return e.Kind == pipeline.KindLog }) {
		t.Errorf("%d events, end %t, %v", len(events), end, err)
	}
	if n := k.count(`SELECT count(*) FROM tags WHERE digest = $1`, string(old.Built.Image.Digest)); n != 0 {
		t.Errorf("the record still has %d tags", n)
	}
	if n := k.count(`SELECT count(*) FROM log_entries WHERE kind = 'retention.applied' AND project = 'app'`); n != 2 {
		t.Errorf("%d entries of the log", n)
	}
	// What is gone is not promoted, and says why.
	_, _, err = k.store.Promote(t.Context(), pipeline.PromotionRequest{Image: old.Built.Image.String(), Environment: "staging", RequestedBy: "ada"})
	if !errors.Is(err, pipeline.ErrConflict) || !strings.Contains(err.Error(), "it was removed from the registry on ") {
		t.Errorf("%v", err)
	}
	if plan, err := k.Plan(t.Context(), "app"); err != nil || !plan.Empty() {
		t.Errorf("%+v %v", plan.Remove, err)
	}
}

// TestRetentionAndPromotionsMeet: whoever comes first has it.
func TestRetentionAndPromotionsMeet(t *testing.T) {
	k := newKeeper(t, keepNewest(1))
	old := k.build("old")
	k.build("newest")
	plan, err := k.Plan(t.Context(), "app")
	check(t, err)
	_, err = k.Apply(t.Context(), "app", plan.Digest, "ada")
	check(t, err)

	// The promotion first.
	p := promote(t, k.store, old, "staging", "ada")
	if run := k.work(); run.Outcomes[0].Outcome != pipeline.PruneSkipped || !strings.Contains(run.Outcomes[0].Detail, string(p.ID)) {
		t.Fatalf("%+v", run)
	}
	check(t, k.store.End(t.Context(), p.ID.Job(), pipeline.Ending{State: pipeline.StateFailed, Reason: "no"}))

	// The removal first: until it has ended, there is no promotion.
	k.repos.Faults = &pipelinetest.Faults{}
	k.repos.Faults.Arm(2, pipelinetest.FailBefore)
	plan, err = k.Plan(t.Context(), "app")
	check(t, err)
	_, err = k.Apply(t.Context(), "app", plan.Digest, "ada")
	check(t, err)
	if err := k.Work(t.Context()); !errors.Is(err, pipelinetest.ErrInjected) {
		t.Fatalf("%v", err)
	}
	_, _, err = k.store.Promote(t.Context(), pipeline.PromotionRequest{Image: old.Built.Image.String(), Environment: "staging", RequestedBy: "ada"})
	if !errors.Is(err, pipeline.ErrConflict) || !strings.Contains(err.Error(), "being removed") {
		t.Fatalf("%v", err)
	}
	// Nor a run that has built the same.
	id := push(t, k.store, "app", "refs/heads/other", "same")
	check(t, k.store.RecordSource(t.Context(), start(t, k.store, id.Job(), pipeline.StageResolve), old.Built.Source))
	c := start(t, k.store, id.Job(), pipeline.StageBuild)
	if err := k.store.RecordBuilt(t.Context(), c, old.Built); err == nil || pipeline.IsPermanent(err) || !strings.Contains(err.Error(), "retention is removing") {
		t.Fatalf("%v", err)
	}
	shared := old.Built
	shared.Image.Digest, shared.Platforms = pipelinetest.DigestOf("another index"), old.Built.Platforms[:1]
	if err := k.store.RecordBuilt(t.Context(), c, shared); err == nil || !strings.Contains(err.Error(), "retention is removing") {
		t.Fatalf("a platform that is going was built upon: %v", err)
	}
	if run := k.work(); run.FinishedAt == nil || run.Outcomes[0].Outcome != pipeline.PruneRemoved {
		t.Fatalf("%+v", run)
	}
	// What was pushed before it went is not believed to be there; what is pushed
	// afterwards is, and brings the image back.
	if err := k.store.RecordBuilt(t.Context(), c, old.Built); err == nil {
		t.Fatal("what was removed during the build was recorded as built")
	}
	check(t, k.store.FailStage(t.Context(), c, "going"))
	check(t, k.store.RecordBuilt(t.Context(), start(t, k.store, id.Job(), pipeline.StageBuild), old.Built))
	again := old
	again.Run, again.Built.Run = id, id
	check(t, k.store.RecordImage(t.Context(), start(t, k.store, id.Job(), pipeline.StageRecord), again))
	promote(t, k.store, again, "staging", "ada")
}

// TestRetentionOfAnEnvironmentAndEntering: nothing enters while something goes,
// and nothing goes while something enters.
func TestRetentionOfAnEnvironmentAndEntering(t *testing.T) {
	k := newKeeper(t, &pipeline.Retention{Images: &pipeline.ImageRetention{Keep: 1}, Promoted: &pipeline.AgeRetention{For: pipeline.Duration(48 * time.Hour)}})
	var all []pipeline.ImageRecord
	for _, name := range []string{"a", "b", "c", "d", "e", "f"} {
		rec := k.build(name)
		p := promote(t, k.store, rec, "staging", "ada")
		env, _ := pipelinetest.SampleProject("app").Environment("staging")
		k.push(env.Repository, rec)
		place(t, k.store, p)
		all = append(all, rec)
	}
	enters := promote(t, k.store, all[5], "prod", "ada")
	plan, err := k.Plan(t.Context(), "app")
	check(t, err)
	if len(plan.Remove) != 4 { // a and b, in staging and where they were built
		t.Fatalf("%+v", plan.Remove)
	}
	next := promote(t, k.store, all[4], "staging", "ada")
	gate := start(t, k.store, next.ID.Job(), pipeline.StageGate)
	passed := pipeline.Judged{Decision: pipeline.Decision{Passed: true, EvaluatedAt: time.Now()}}

	_, err = k.Apply(t.Context(), "app", plan.Digest, "ada")
	check(t, err)
	k.repos.Faults = &pipelinetest.Faults{}
	k.repos.Faults.Arm(1, pipelinetest.FailBefore)
	if err := k.Work(t.Context()); err == nil {
		t.Fatal("no fault")
	}
	if err := k.store.RecordDecision(t.Context(), gate, passed); err == nil || pipeline.IsPermanent(err) || !strings.Contains(err.Error(), "being removed") {
		t.Fatalf("%v", err)
	}
	if run := k.work(); run.FinishedAt == nil || run.Done != 4 {
		t.Fatalf("%+v", run)
	}
	check(t, k.store.RecordDecision(t.Context(), gate, passed))
	_, err = k.store.BeginPruning(t.Context(), pipeline.Pruning{Project: "app", Run: k.last(), Removal: pipeline.Removal{
		Kind: pipeline.RemoveImage, Environment: "staging", Image: pipeline.Image{Repository: plan.Remove[0].Image.Repository, Digest: all[2].Built.Image.Digest}, Tags: []string{}}})
	if !errors.Is(err, pipeline.ErrConflict) || !strings.Contains(err.Error(), string(next.ID)) {
		t.Fatalf("%v", err)
	}
	_ = enters
	if n := k.count(`SELECT count(*) FROM placements WHERE pruned_at IS NOT NULL`); n != 2 {
		t.Errorf("%d places are marked", n)
	}
}

func (k *keeper) last() string {
	r, err := k.store.Retention(k.t.Context(), "app")
	check(k.t, err)
	return r.ID
}

// TestRetentionAppliesItself: where the project says so, and not more often than
// it should.
func TestRetentionAppliesItself(t *testing.T) {
	rules := keepNewest(1)
	rules.Auto = true
	k := newKeeper(t, rules)
	k.build("old")
	k.build("newest")
	run := k.work()
	if run.RequestedBy != pipeline.Automatic || run.FinishedAt == nil || run.Done != 1 {
		t.Fatalf("%+v", run)
	}
	names, err := k.store.AutoRetention(context.Background())
	if err != nil || len(names) != 0 {
		t.Errorf("%v %v", names, err)
	}
	if _, err := k.store.Retention(t.Context(), "web"); !errors.Is(err, pipeline.ErrNotFound) {
		t.Errorf("%v", err)
	}
}

func TestRetentionOfSharedRepositories(t *testing.T) {
	k := newKeeper(t, keepNewest(1))
	old := k.build("old")
	// Another project has recorded the very same image in the same repository.
	web := pipelinetest.SampleProject("web")
	id := push(t, k.store, "web", "refs/heads/main", "old")
	check(t, k.store.RecordSource(t.Context(), start(t, k.store, id.Job(), pipeline.StageResolve), old.Built.Source))
	check(t, k.store.RecordBuilt(t.Context(), start(t, k.store, id.Job(), pipeline.StageBuild), old.Built))
	same := old
	same.Project, same.Run = web.Name, id
	check(t, k.store.RecordImage(t.Context(), start(t, k.store, id.Job(), pipeline.StageRecord), same))
	check(t, k.store.End(t.Context(), id.Job(), pipeline.Ending{State: pipeline.StateFailed, Reason: "no"}))
	k.build("newest")
	plan, err := k.Plan(t.Context(), "app")
	if err != nil || len(plan.Remove) != 0 || !slices.ContainsFunc(plan.Keep, func(x pipeline.Kept) bool { return strings.Contains(x.Reason, "another project") }) {
		t.Fatalf("%+v %v", plan, err)
	}
}
