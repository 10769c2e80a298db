package pipelinetest

import (
	"strings"
	"sync"

	"github.com/dray-project/dray/pipeline"
)

// end ends a run in that state.
func (x *suite) end(id pipeline.RunID, state pipeline.State) {
	x.Helper()
	x.must(x.s.End(x.ctx, id.Job(), pipeline.Ending{State: state, Reason: "the registry was away"}))
}

// retry starts a run over again.
func (x *suite) retry(id pipeline.RunID) pipeline.Run {
	x.Helper()
	r, created, err := x.s.Retry(x.ctx, id, "grace")
	x.must(err)
	if !created || r.ID == id || r.RetryOf != id {
		x.Fatalf("retry of %s is %+v (created %v), want a new run", id, r, created)
	}
	return r
}

func testRetry(x *suite) {
	d := x.delivery("app", "refs/tags/v1.0.0", "one")
	accepted, err := x.s.Accept(x.ctx, d)
	x.must(err)
	first := accepted.Run
	refuse := func(id pipeline.RunID, want error, says ...string) {
		x.Helper()
		_, created, err := x.s.Retry(x.ctx, id, "grace")
		x.wants(err, want)
		if created {
			x.Fatal("created, and an error")
		}
		for _, s := range says {
			if !strings.Contains(err.Error(), s) {
				x.Fatalf("%q does not say %q", err, s)
			}
		}
	}
	refuse("run_x", pipeline.ErrNotFound, "run_x")
	refuse(first, pipeline.ErrConflict, string(first), "queued")
	x.must(x.s.FailStage(x.ctx, x.start(first.Job(), pipeline.StageResolve), "no answer"))
	refuse(first, pipeline.ErrConflict, string(first), "running")
	x.end(first, pipeline.StateFailed)
	before, story := x.run(first), x.story(first.Job())

	_, _, err = x.s.Retry(x.ctx, first, "")
	x.wants(err, pipeline.ErrInvalid)
	second := x.retry(first)
	x.same(second.Event, d.Event)
	if second.Project != "app" || second.State != pipeline.StateQueued || second.RequestedBy != "grace" || second.Reason != "" ||
		second.CreatedAt.IsZero() || second.StartedAt != nil || second.FinishedAt != nil {
		x.Fatalf("the retry is %+v", second)
	}
	got, err := x.other.Run(x.ctx, second.ID)
	x.must(err)
	x.same(got, second)
	if before.RetryOf != "" || before.RequestedBy != "" {
		x.Fatalf("a run that an event started is %+v", before)
	}

	// While it is open, asking again, whoever asks, gives it as it stands.
	x.start(second.ID.Job(), pipeline.StageResolve)
	again, created, err := x.other.Retry(x.ctx, first, "ada")
	x.must(err)
	if created || again.ID != second.ID || again.State != pipeline.StateRunning || again.RequestedBy != "grace" {
		x.Fatalf("asking again gave %+v (created %v), want %s as it stands", again, created, second.ID)
	}
	refuse(second.ID, pipeline.ErrConflict, string(second.ID), "running")

	// The same webhook once more is answered with the newest run.
	redeliver := func(id string, want pipeline.RunID) {
		x.Helper()
		d.ID = id
		a, err := x.other.Accept(x.ctx, d)
		x.must(err)
		if a.Run != want || !a.Duplicate {
			x.Fatalf("delivery %s gave %+v, want %s as a duplicate", id, a, want)
		}
	}
	redeliver(d.ID, second.ID)
	redeliver("another-1", second.ID)

	// What failed twice can be tried a third time, by the name of either run.
	x.end(second.ID, pipeline.StateRefused)
	third := x.retry(first)
	again, created, err = x.s.Retry(x.ctx, second.ID, "grace")
	x.must(err)
	if created || again.ID != third.ID {
		x.Fatalf("retrying the retry gave %+v (created %v), want %s", again, created, third.ID)
	}
	redeliver("another-1", third.ID)
	redeliver("another-2", third.ID)
	x.end(third.ID, pipeline.StateFailed)
	fourth := x.retry(third.ID)

	// The event is dealt with once a run of it succeeded.
	x.must(x.s.RecordTags(x.ctx, x.start(fourth.ID.Job(), pipeline.StageTag), nil, nil))
	for _, id := range []pipeline.RunID{first, second.ID, third.ID, fourth.ID} {
		refuse(id, pipeline.ErrConflict, string(fourth.ID), "succeeded")
	}
	redeliver("another-3", fourth.ID)

	// The first run stayed as it was, and other events have their own runs.
	x.same(x.run(first), before)
	x.wantStory(first.Job(), story)
	x.accept("app", "refs/heads/main", "one")
}

func testRetryParallel(x *suite) {
	first := x.accept("app", "refs/heads/main", "one")
	x.end(first, pipeline.StateFailed)
	const n = 12
	var wg sync.WaitGroup
	ids, fresh, errs := make([]pipeline.RunID, n), make([]bool, n), make([]error, n)
	for i := range n {
		s := x.s
		if i%2 == 0 {
			s = x.other
		}
		wg.Go(func() {
			r, created, err := s.Retry(x.ctx, first, "grace")
			ids[i], fresh[i], errs[i] = r.ID, created, err
		})
	}
	wg.Wait()
	created := 0
	for i := range n {
		x.must(errs[i])
		if ids[i] != ids[0] {
			x.Errorf("request %d gave %s, another %s", i, ids[i], ids[0])
		}
		if fresh[i] {
			created++
		}
	}
	if created != 1 {
		x.Fatalf("%d requests say they created the retry, want 1", created)
	}
}

// testRetryFindsBuilt: a run that failed after its record leaves its image to
// the retry, one that was refused does not; either way the retry has a record
// of its own.
func testRetryFindsBuilt(x *suite) {
	for what, passed := range map[string]bool{"passed": true, "refused": false} {
		first, rec := x.recorded("app", "refs/heads/main", what, passed)
		if passed {
			x.end(first, pipeline.StateFailed)
		}
		retry := x.retry(first)
		src := rec.Built.Source
		x.must(x.s.RecordSource(x.ctx, x.start(retry.ID.Job(), pipeline.StageResolve), src))
		b, err := x.other.FindBuilt(x.ctx, "app", src)
		if passed {
			x.must(err)
			x.same(b, rec.Built)
		} else {
			x.wants(err, pipeline.ErrNotFound)
			b = built("app", retry.ID, src)
		}
		x.must(x.s.RecordBuilt(x.ctx, x.start(retry.ID.Job(), pipeline.StageBuild), b))
		x.must(x.s.RecordImage(x.ctx, x.start(retry.ID.Job(), pipeline.StageRecord), record("app", retry.ID, b, true)))
		x.must(x.s.RecordTags(x.ctx, x.start(retry.ID.Job(), pipeline.StageTag), nil, nil))
		newest, err := x.s.ImageRecord(x.ctx, "app", b.Image.Digest)
		x.must(err)
		if newest.Run != retry.ID || !newest.Decision.Passed {
			x.Fatalf("%s: the newest record is of run %s (passed %v), want the retry %s", what, newest.Run, newest.Decision.Passed, retry.ID)
		}
	}
}
