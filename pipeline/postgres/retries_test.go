package postgres_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/pipelinetest"
)

// TestRetryIsWorkedOn: a run that used up its attempts is brought to a worker
// once more by a retry.
func TestRetryIsWorkedOn(t *testing.T) {
	b := newBundle(t)
	var up atomic.Bool
	b.queue(func(ctx context.Context, id pipeline.RunID) error {
		if !up.Load() {
			return errors.New("the registry is away")
		}
		return b.succeed(ctx, id.Job())
	})
	first := push(t, b.store, "app", "refs/heads/main", "one")
	failed := b.awaitState(first, pipeline.StateFailed)
	up.Store(true)
	r, created, err := b.store.Retry(t.Context(), first, "grace")
	check(t, err)
	if !created {
		t.Fatalf("no new run: %+v", r)
	}
	b.awaitState(r.ID, pipeline.StateSucceeded)
	if now := b.run(first); now.State != pipeline.StateFailed || now.Reason != failed.Reason || !now.FinishedAt.Equal(*failed.FinishedAt) {
		t.Errorf("the first run changed from %+v to %+v", failed, now)
	}
	list, err := b.store.Runs(t.Context(), "app", "", pipeline.Page{Limit: 10})
	check(t, err)
	if len(list) != 2 || list[0].ID != r.ID || list[0].RetryOf != first || list[0].RequestedBy != "grace" {
		t.Errorf("the list is %+v", list)
	}
}

// TestRetryWritesAllOrNothing: a retry that cannot be written leaves no run
// without a job, and no job without a run.
func TestRetryWritesAllOrNothing(t *testing.T) {
	b := newBundle(t)
	first := push(t, b.store, "app", "refs/heads/main", "one")
	check(t, b.store.End(t.Context(), first.Job(), pipeline.Ending{State: pipeline.StateFailed, Reason: "x"}))
	_, err := b.pool.Exec(t.Context(), `ALTER TABLE events ADD CONSTRAINT broken CHECK (job = '`+string(first)+`')`)
	check(t, err)
	if _, _, err := b.store.Retry(t.Context(), first, "grace"); err == nil {
		t.Fatal("the event that cannot be written was written")
	}
	var runs, jobs, queued int
	check(t, b.pool.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM runs), (SELECT count(*) FROM jobs), (SELECT count(*) FROM river.river_job)`).Scan(&runs, &jobs, &queued))
	if runs != 1 || jobs != 1 || queued != 1 {
		t.Errorf("%d runs, %d jobs, %d in the queue; want one of each", runs, jobs, queued)
	}
}

func TestRetryInAProjectThatIsGone(t *testing.T) {
	s := newSample(t)
	first := push(t, s, "app", "refs/heads/main", "one")
	check(t, s.End(t.Context(), first.Job(), pipeline.Ending{State: pipeline.StateFailed, Reason: "x"}))
	check(t, s.SyncProjects(t.Context(), []pipeline.Project{pipelinetest.SampleProject("web")}))
	_, _, err := s.Retry(t.Context(), first, "grace")
	if !errors.Is(err, pipeline.ErrConflict) || !strings.Contains(err.Error(), "app is gone from the settings") {
		t.Errorf("%v", err)
	}
}

// TestDeliveryOfARetriedEvent: the note says both what the event started and
// what became of it.
func TestDeliveryOfARetriedEvent(t *testing.T) {
	s := newSample(t)
	first := push(t, s, "app", "refs/heads/main", "one")
	check(t, s.End(t.Context(), first.Job(), pipeline.Ending{State: pipeline.StateFailed, Reason: "x"}))
	r, _, err := s.Retry(t.Context(), first, "grace\x00\xff")
	check(t, err)
	if r.RequestedBy != "grace\uFFFD\uFFFD" {
		t.Errorf("requested by %q", r.RequestedBy)
	}
	a, err := s.Accept(t.Context(), pipeline.Delivery{Forge: "github", ID: "another", Project: "app",
		Event: pipeline.Event{Kind: pipeline.EventPush, Ref: "refs/heads/main", After: commit("one")}})
	check(t, err)
	if a.Run != r.ID || !strings.Contains(a.Note, "started run "+string(first)) || !strings.Contains(a.Note, "retried as run "+string(r.ID)) {
		t.Errorf("accepted %+v", a)
	}
}
