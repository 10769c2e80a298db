package pipelinetest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dray-project/dray/pipeline"
)

func testStages(x *suite) {
	id := x.accept("app", "refs/heads/main", "one")
	job := id.Job()
	c := x.start(job, pipeline.StageScan)
	if c.Attempt != 1 {
		x.Fatalf("the first attempt is %d", c.Attempt)
	}
	if r := x.run(id); r.State != pipeline.StateRunning || r.StartedAt == nil {
		x.Fatalf("the run is %+v, want it running since a moment", r)
	}
	x.must(x.s.Holds(x.ctx, c))
	x.must(x.s.FailStage(x.ctx, c, "the database was away"))
	x.wants(x.s.FinishStage(x.ctx, c, json.RawMessage(`{}`)), pipeline.ErrStale) // it said that it failed

	c = x.start(job, pipeline.StageScan)
	if c.Attempt != 2 {
		x.Fatalf("the second attempt is %d", c.Attempt)
	}
	x.must(x.s.FinishStage(x.ctx, c, json.RawMessage(`{"a":[1,2,{"b":"ü"}],"n":null}`)))
	x.done(job, pipeline.StageScan, json.RawMessage(`{"a":[1,2,{"b":"ü"}],"n":null}`))
	if g := x.start(job, pipeline.StageGate); g.Attempt != 1 {
		x.Fatalf("another stage counts its own attempts, got %d", g.Attempt)
	}
	x.wantStory(job, "running", "scan/1 started", "scan/1 failed", "scan/2 started", "scan/2 succeeded", "gate/1 started")
	for _, e := range x.events(job) {
		if e.State == "failed" && e.Message != "the database was away" {
			x.Fatalf("the failure says %q", e.Message)
		}
	}
}

func testStageDone(x *suite) {
	job := x.accept("app", "refs/heads/main", "one").Job()
	c := x.start(job, pipeline.StageScan)
	x.must(x.s.FinishStage(x.ctx, c, json.RawMessage(`"out"`)))
	before := len(x.events(job))
	for range 3 {
		x.done(job, pipeline.StageScan, "out")
	}
	// Whoever finished it once has nothing left to finish.
	x.wants(x.s.FinishStage(x.ctx, c, json.RawMessage(`"other"`)), pipeline.ErrStale)
	x.wants(x.s.FailStage(x.ctx, c, "no"), pipeline.ErrStale)
	x.wants(x.s.Holds(x.ctx, c), pipeline.ErrStale)
	x.done(job, pipeline.StageScan, "out")
	if after := len(x.events(job)); after != before {
		x.Fatalf("%d events were written for a stage that was done", after-before)
	}
}

// writes lists every way to write with a claim.
func (x *suite) writes(s Store, c pipeline.Claim, run pipeline.RunID) map[string]func() error {
	src := source("app", "refs/heads/main", "one")
	b := built("app", run, src)
	return map[string]func() error{
		"Holds":        func() error { return s.Holds(x.ctx, c) },
		"FinishStage":  func() error { return s.FinishStage(x.ctx, c, json.RawMessage(`{}`)) },
		"FailStage":    func() error { return s.FailStage(x.ctx, c, "why") },
		"AppendEvents": func() error { return s.AppendEvents(x.ctx, c, []pipeline.JobEvent{{Kind: pipeline.KindLog}}) },
		"RecordSource": func() error { return s.RecordSource(x.ctx, c, src) },
		"RecordBuilt":  func() error { return s.RecordBuilt(x.ctx, c, b) },
		"RecordImage":  func() error { return s.RecordImage(x.ctx, c, record("app", run, b, true)) },
		"RecordDecision": func() error {
			return s.RecordDecision(x.ctx, c, pipeline.Judged{Decision: pipeline.Decision{Passed: true}})
		},
		"RecordPlacement": func() error {
			return s.RecordPlacement(x.ctx, c, pipeline.Placement{Copied: pipeline.Copied{Image: b.Image}})
		},
		"RecordTags": func() error {
			return s.RecordTags(x.ctx, c, []pipeline.TagMove{{Repository: b.Image.Repository, Tag: "1.0.0", To: b.Image.Digest, Held: true}}, nil)
		},
	}
}

func testStale(x *suite) {
	id := x.accept("app", "refs/heads/main", "one")
	old := x.start(id.Job(), pipeline.StageBuild)
	mine := x.start(id.Job(), pipeline.StageBuild)
	if mine.Attempt != old.Attempt+1 {
		x.Fatalf("attempt %d follows attempt %d", mine.Attempt, old.Attempt)
	}
	check := func(c pipeline.Claim) {
		x.Helper()
		before, run := x.events(id.Job()), x.run(id)
		for name, write := range x.writes(x.other, c, id) {
			if err := write(); !errors.Is(err, pipeline.ErrStale) {
				x.Errorf("%s with the claim %+v: %v, want ErrStale", name, c, err)
			}
		}
		x.same(x.events(id.Job()), before)
		x.same(x.run(id), run)
		_, err := x.s.ImageRecord(x.ctx, "app", DigestOf("index", commit("one")))
		x.wants(err, pipeline.ErrNotFound)
		if v := x.versions("app", DigestOf("index", commit("one"))); len(v) > 0 {
			x.Fatalf("a stale claim released %v", v)
		}
	}
	check(old)
	check(pipeline.Claim{Job: id.Job(), Stage: pipeline.StageBuild, Attempt: 99})
	check(pipeline.Claim{Job: id.Job(), Stage: pipeline.StageTag, Attempt: 1}) // never started
	x.must(x.s.Holds(x.ctx, mine))
	x.must(x.s.RecordBuilt(x.ctx, mine, built("app", id, source("app", "refs/heads/main", "one"))))
}

// testClaimRace: of many attempts that start and finish at the same time, one
// outcome is recorded, and it is that of an attempt that nobody superseded.
func testClaimRace(x *suite) {
	job := x.accept("app", "refs/heads/main", "one").Job()
	const n = 10
	var wg sync.WaitGroup
	var won atomic.Int32
	var winner atomic.Int64
	attempts := make([]int, n)
	for i := range n {
		s := x.s
		if i%2 == 0 {
			s = x.other
		}
		wg.Go(func() {
			c, err := s.StartStage(x.ctx, job, pipeline.StageScan)
			if err != nil {
				x.Error(err)
				return
			}
			if c.Done {
				return
			}
			attempts[i] = c.Attempt
			switch err := s.FinishStage(x.ctx, c, fmt.Appendf(nil, `{"attempt":%d}`, c.Attempt)); {
			case err == nil:
				won.Add(1)
				winner.Store(int64(c.Attempt))
			case !errors.Is(err, pipeline.ErrStale):
				x.Error(err)
			}
		})
	}
	wg.Wait()
	seen := map[int]bool{}
	for _, a := range attempts {
		if a != 0 && seen[a] {
			x.Fatalf("attempt %d was handed out twice", a)
		}
		seen[a] = true
	}
	if won.Load() != 1 {
		x.Fatalf("%d attempts finished the stage, want 1", won.Load())
	}
	x.done(job, pipeline.StageScan, map[string]any{"attempt": winner.Load()})
}

func testEnded(x *suite) {
	id := x.accept("app", "refs/heads/main", "one")
	finished := x.start(id.Job(), pipeline.StageResolve)
	x.must(x.s.FinishStage(x.ctx, finished, json.RawMessage(`{}`)))
	open := x.start(id.Job(), pipeline.StageScan)
	x.must(x.s.End(x.ctx, id.Job(), pipeline.Ending{State: pipeline.StateFailed, Reason: "no registry"}))
	r := x.run(id)
	if r.State != pipeline.StateFailed || r.Reason != "no registry" || r.FinishedAt == nil {
		x.Fatalf("the run is %+v, want it failed for no registry", r)
	}
	events := x.events(id.Job())
	if last := events[len(events)-1]; last.Kind != pipeline.KindState || last.State != "failed" || last.Message != "no registry" {
		x.Fatalf("the last event is %+v", last)
	}

	x.must(x.s.End(x.ctx, id.Job(), pipeline.Ending{State: pipeline.StateRefused, Reason: "later"}))
	for _, st := range []pipeline.Stage{pipeline.StageResolve, pipeline.StageScan, pipeline.StageTag} {
		_, err := x.s.StartStage(x.ctx, id.Job(), st)
		x.wants(err, pipeline.ErrConflict)
	}
	for name, write := range x.writes(x.s, open, id) {
		if err := write(); !errors.Is(err, pipeline.ErrStale) {
			x.Errorf("%s of a run that ended: %v, want ErrStale", name, err)
		}
	}
	x.same(x.run(id), r)
	x.same(x.events(id.Job()), events)

	// A job can end before it starts.
	id = x.accept("app", "refs/heads/main", "two")
	x.must(x.s.End(x.ctx, id.Job(), pipeline.Ending{State: pipeline.StateRefused, Reason: "not today"}))
	if r := x.run(id); r.State != pipeline.StateRefused || r.Reason != "not today" {
		x.Fatalf("the run is %+v", r)
	}
}

func testUnknown(x *suite) {
	_, err := x.s.Run(x.ctx, "run_unknown")
	x.wants(err, pipeline.ErrNotFound)
	_, err = x.s.Promotion(x.ctx, "prm_unknown")
	x.wants(err, pipeline.ErrNotFound)
	_, err = x.s.StartStage(x.ctx, "run_unknown", pipeline.StageScan)
	x.wants(err, pipeline.ErrNotFound)
	x.wants(x.s.End(x.ctx, "run_unknown", pipeline.Ending{State: pipeline.StateFailed}), pipeline.ErrNotFound)
	_, _, err = x.s.Events(x.ctx, "run_unknown", 0, 10)
	x.wants(err, pipeline.ErrNotFound)
	_, err = x.s.ImageRecord(x.ctx, "app", DigestOf("unknown"))
	x.wants(err, pipeline.ErrNotFound)
}

func testEvents(x *suite) {
	job := x.accept("app", "refs/heads/main", "one").Job()
	c := x.start(job, pipeline.StageBuild)
	began := sampleTime
	want := []pipeline.JobEvent{
		{Time: sampleTime, Kind: pipeline.KindStep, Stage: c.Stage, Attempt: c.Attempt, Step: &pipeline.Step{ID: "1", Platform: "linux/amd64", Name: "RUN make", Started: &began, Cached: true, Error: "exit code 1"}},
		{Time: sampleTime, Kind: pipeline.KindLog, Stage: c.Stage, Attempt: c.Attempt, Log: &pipeline.Line{Step: "1", Platform: "linux/amd64", Text: "hello"}},
	}
	x.must(x.s.AppendEvents(x.ctx, c, want))
	x.must(x.s.AppendEvents(x.ctx, c, nil))
	events := x.events(job)
	got := events[len(events)-2:]
	for i := range want {
		want[i].Seq = got[i].Seq
	}
	x.same(got, want)
}

func testEventsParallel(x *suite) {
	job := x.accept("app", "refs/heads/main", "one").Job()
	c := x.start(job, pipeline.StageBuild)
	before := len(x.events(job))
	const writers, batches, size = 6, 10, 7
	var wg sync.WaitGroup
	for w := range writers {
		s := x.s
		if w%2 == 0 {
			s = x.other
		}
		wg.Go(func() {
			for b := range batches {
				batch := make([]pipeline.JobEvent, size)
				for i := range batch {
					batch[i] = pipeline.JobEvent{Kind: pipeline.KindLog, Log: &pipeline.Line{Step: fmt.Sprint(w), Text: fmt.Sprint(b*size + i)}}
				}
				if err := s.AppendEvents(x.ctx, c, batch); err != nil {
					x.Error(err)
				}
			}
		})
	}
	stop, followed := make(chan struct{}), make(chan struct{})
	go func() { // a follower never sees a number before the one that precedes it
		defer close(followed)
		var last int64
		for {
			events, _, err := x.other.Events(x.ctx, job, last, 100)
			if err != nil {
				x.Error(err)
				return
			}
			for _, e := range events {
				if e.Seq != last+1 {
					x.Errorf("a follower saw event %d after event %d", e.Seq, last)
				}
				last = e.Seq
			}
			if len(events) == 0 {
				select {
				case <-stop:
					return
				case <-time.After(time.Millisecond):
				}
			}
		}
	}()
	wg.Wait()
	close(stop)
	<-followed
	events := x.events(job)
	if got := len(events) - before; got != writers*batches*size {
		x.Fatalf("%d events were stored, want %d", got, writers*batches*size)
	}
	next := map[string]int{}
	for _, e := range events[before:] {
		if e.Log.Text != fmt.Sprint(next[e.Log.Step]) {
			x.Fatalf("writer %s: line %s came when %d was next", e.Log.Step, e.Log.Text, next[e.Log.Step])
		}
		next[e.Log.Step]++
	}
}

func testEventPages(x *suite) {
	job := x.accept("app", "refs/heads/main", "one").Job()
	c := x.start(job, pipeline.StageBuild)
	lines := make([]pipeline.JobEvent, 10)
	for i := range lines {
		lines[i] = pipeline.JobEvent{Kind: pipeline.KindLog, Log: &pipeline.Line{Text: fmt.Sprint(i)}}
	}
	x.must(x.s.AppendEvents(x.ctx, c, lines))
	all := x.events(job)
	if _, end, err := x.s.Events(x.ctx, job, int64(len(all)), 10); err != nil || end {
		x.Fatalf("a running job has an end: %v, %v", end, err)
	}
	x.must(x.s.End(x.ctx, job, pipeline.Ending{State: pipeline.StateFailed, Reason: "why"}))
	all = x.events(job)
	var read []pipeline.JobEvent
	for {
		part, end, err := x.s.Events(x.ctx, job, int64(len(read)), 4)
		x.must(err)
		if len(part) > 4 {
			x.Fatalf("%d events, want at most 4", len(part))
		}
		read = append(read, part...)
		if end != (len(read) == len(all)) {
			x.Fatalf("after %d of %d events, end is %v", len(read), len(all), end)
		}
		if end {
			break
		}
	}
	x.same(read, all)
}

func testLock(x *suite) {
	const n = 8
	var wg sync.WaitGroup
	var inside, count atomic.Int32
	for i := range n {
		s := x.s
		if i%2 == 0 {
			s = x.other
		}
		wg.Go(func() {
			unlock, err := s.Lock(x.ctx, "key")
			if err != nil {
				x.Error(err)
				return
			}
			if inside.Add(1) != 1 {
				x.Error("two hold the lock")
			}
			count.Add(1)
			time.Sleep(time.Millisecond)
			inside.Add(-1)
			unlock()
			unlock() // a second time does nothing
		})
	}
	wg.Wait()
	if count.Load() != n {
		x.Fatalf("%d of %d got the lock", count.Load(), n)
	}

	// Another key is another lock, also for who holds one already.
	var unlocks []func()
	for i := range 30 {
		unlock, err := x.s.Lock(x.ctx, fmt.Sprint("other-", i))
		x.must(err)
		unlocks = append(unlocks, unlock)
	}
	_, err := x.s.Run(x.ctx, "run_unknown") // and the store still answers
	x.wants(err, pipeline.ErrNotFound)
	for _, unlock := range unlocks {
		unlock()
	}
}

func testLockContext(x *suite) {
	unlock, err := x.s.Lock(x.ctx, "key")
	x.must(err)
	for _, s := range []Store{x.s, x.other} {
		ctx, cancel := context.WithTimeout(x.ctx, 20*time.Millisecond)
		_, err := s.Lock(ctx, "key")
		cancel()
		x.wants(err, context.DeadlineExceeded)
	}
	unlock()
	unlock, err = x.other.Lock(x.ctx, "key")
	x.must(err)
	unlock()
}
