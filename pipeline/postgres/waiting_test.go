package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/pipelinetest"
	"github.com/dray-project/dray/pipeline/postgres"
)

var plan = pipelinetest.DigestOf("plan")

// notYet is a decision that asks for approvals.
func notYet(until *time.Time) pipeline.Decision {
	return pipeline.Decision{Waiting: true, Until: until, Plan: plan, EvaluatedAt: time.Now(),
		Rules:  []pipeline.RuleResult{{Rule: "approvals", Pending: true, Reason: "not enough"}},
		Policy: pipeline.PolicyVersion{Gate: pipeline.Gate{Approvals: []pipeline.ApprovalRule{{Role: "admin"}}}}}
}

func passed() pipeline.Judged {
	return pipeline.Judged{Decision: pipeline.Decision{Passed: true, EvaluatedAt: time.Now()}}
}

func (b *bundle) promoter(do func(context.Context, pipeline.Promotion) error) *postgres.Queue {
	return b.queue(leaveAlone, func(c *postgres.QueueConfig) {
		c.Concurrency = 4
		c.Promote = func(ctx context.Context, id pipeline.PromotionID) error {
			p, err := b.store.Promotion(ctx, id)
			if err != nil || p.State.Final() {
				return err
			}
			return do(ctx, p)
		}
	})
}

func (b *bundle) promotion(id pipeline.PromotionID) pipeline.Promotion {
	b.Helper()
	p, err := b.store.Promotion(context.Background(), id)
	check(b, err)
	return p
}

// settle does what comes after the gate.
func (b *bundle) settle(ctx context.Context, p pipeline.Promotion) error {
	c, err := b.store.StartStage(ctx, p.ID.Job(), pipeline.StageRecord)
	if err != nil {
		return err
	}
	env, _ := pipelinetest.SampleProject(p.Project).Environment(p.Environment)
	dest := pipeline.Image{Repository: env.Repository, Digest: p.Image.Digest}
	if err := b.store.RecordPlacement(ctx, c, pipeline.Placement{Copied: pipeline.Copied{Image: dest}, Decision: passed().Decision}); err != nil {
		return err
	}
	if c, err = b.store.StartStage(ctx, p.ID.Job(), pipeline.StageTag); err != nil {
		return err
	}
	return b.store.RecordTags(ctx, c, nil, nil)
}

// TestQueueTimer: the wait ends when it is over, by no later than the queue's
// own rounds.
func TestQueueTimer(t *testing.T) {
	b := newBundle(t)
	rec := release(t, b.store, "app", "one", nil, nil)
	for _, wait := range []time.Duration{200 * time.Millisecond, 1500 * time.Millisecond, 4 * time.Second} {
		t.Run(wait.String(), func(t *testing.T) {
			var until time.Time
			woken := make(chan time.Time, 10)
			var tries atomic.Int32
			q := b.promoter(func(ctx context.Context, p pipeline.Promotion) error {
				c, err := b.store.StartStage(ctx, p.ID.Job(), pipeline.StageGate)
				if err != nil {
					return err
				}
				if tries.Add(1) == 1 {
					until = time.Now().Add(wait)
					return b.store.Wait(ctx, c, pipeline.Waiting{Decision: notYet(&until)})
				}
				woken <- time.Now()
				if err := b.store.RecordDecision(ctx, c, passed()); err != nil {
					return err
				}
				return b.settle(ctx, p)
			})
			p := promote(t, b.store, rec, "prod", "grace")
			at := <-woken
			if at.Before(until) {
				t.Errorf("it was woken %s before its time", until.Sub(at))
			}
			t.Logf("a wait of %s took %s more", wait, at.Sub(until))
			await(t, "it succeeds", func() bool { return b.promotion(p.ID).State == pipeline.StateSucceeded })
			check(t, q.Stop(time.Minute))
		})
	}
}

// TestLaneUnderLoad: twenty promotions, four workers, and never two inside.
func TestLaneUnderLoad(t *testing.T) {
	b := newBundle(t)
	var recs []pipeline.ImageRecord
	for i := range 3 {
		recs = append(recs, release(t, b.store, "app", fmt.Sprint(i), nil, nil))
	}
	var inside, entered atomic.Int32
	work := func(ctx context.Context, p pipeline.Promotion) error {
		c, err := b.store.StartStage(ctx, p.ID.Job(), pipeline.StageGate)
		if err != nil {
			return err
		}
		if !c.Done {
			time.Sleep(rand.N(10 * time.Millisecond))
			err := b.store.RecordDecision(ctx, c, passed())
			var busy *pipeline.BusyError
			if errors.As(err, &busy) {
				time.Sleep(rand.N(10 * time.Millisecond))
				return b.store.Wait(ctx, c, pipeline.Waiting{Decision: notYet(nil), Behind: busy.By})
			}
			if err != nil {
				return err
			}
		}
		entered.Add(1)
		if n := inside.Add(1); n != 1 {
			t.Errorf("%d are inside", n)
		}
		time.Sleep(rand.N(10 * time.Millisecond))
		inside.Add(-1)
		if rand.N(4) == 0 {
			return b.store.End(ctx, p.ID.Job(), pipeline.Ending{State: pipeline.StateFailed, Reason: "chance"})
		}
		return b.settle(ctx, p)
	}
	for range 4 {
		b.promoter(work)
	}
	var asked []pipeline.Promotion
	for i := range 20 {
		asked = append(asked, promote(t, b.store, recs[i%len(recs)], "prod", fmt.Sprintf("user-%d", i)))
	}
	ended := map[pipeline.State]int{}
	for _, p := range asked {
		await(t, string(p.ID)+" ends", func() bool { return b.promotion(p.ID).State.Final() })
		end := b.promotion(p.ID)
		ended[end.State]++
		if end.State == pipeline.StateSuperseded && !strings.Contains(end.Reason, "is newer and entered prod first") {
			t.Errorf("%s is superseded and says %q", p.ID, end.Reason)
		}
	}
	if s := b.promotion(asked[19].ID).State; s == pipeline.StateSuperseded {
		t.Error("the newest was superseded")
	}
	t.Logf("%d entered; they ended %v", entered.Load(), ended)
	if n := ended[pipeline.StateSucceeded] + ended[pipeline.StateFailed]; int32(n) != entered.Load() || n == 0 || n+ended[pipeline.StateSuperseded] != 20 {
		t.Errorf("%d entered, and they ended %v", entered.Load(), ended)
	}
	var free bool
	check(t, b.pool.QueryRow(t.Context(), `SELECT bool_and(inside IS NULL) FROM lanes`).Scan(&free))
	if !free {
		t.Error("somebody is inside for ever")
	}
}

// TestNoWakeUpIsLost: approvals arrive at every moment of a promotion's life, and
// the last of them is what it goes on with.
func TestNoWakeUpIsLost(t *testing.T) {
	const wanted = 4
	b := newBundle(t)
	rec := release(t, b.store, "app", "one", nil, nil)
	pause := func() { time.Sleep(rand.N(6 * time.Millisecond)) }
	var attempts atomic.Int32
	work := func(ctx context.Context, p pipeline.Promotion) error {
		pause() // after it was read
		c, err := b.store.StartStage(ctx, p.ID.Job(), pipeline.StageGate)
		if err != nil || c.Done {
			return errors.Join(err, b.settle(ctx, p))
		}
		attempts.Add(1)
		pause() // before what was read is acted upon
		if len(p.Approvals) < wanted {
			return b.store.Wait(ctx, c, pipeline.Waiting{Decision: notYet(nil)})
		}
		if err := b.store.RecordDecision(ctx, c, passed()); err != nil {
			return err
		}
		return b.settle(ctx, p)
	}
	for range 3 {
		b.promoter(work)
	}
	for round := range 12 {
		p := promote(t, b.store, rec, "prod", fmt.Sprintf("user-%d", round))
		var people sync.WaitGroup
		for i := range wanted {
			people.Go(func() {
				for {
					pause()
					_, err := b.store.Approve(context.Background(), pipeline.Approval{Promotion: p.ID, By: fmt.Sprint("approver ", i), Plan: plan})
					if !errors.Is(err, pipeline.ErrConflict) { // the gate has to be asked first
						check(t, err)
						return
					}
				}
			})
		}
		people.Wait()
		await(t, string(p.ID)+" goes on", func() bool { return b.promotion(p.ID).State.Final() })
		if got := b.promotion(p.ID); got.State != pipeline.StateSucceeded || len(got.Approvals) != wanted {
			t.Fatalf("it ended as %s: %s", got.State, got.Reason)
		}
	}
	t.Logf("12 promotions of %d approvals each took %d attempts", wanted, attempts.Load())
}

// TestOvertakenReaderStartsNothing: who read a promotion before an approval
// came cannot act on what they read.
func TestOvertakenReaderStartsNothing(t *testing.T) {
	b := newBundle(t)
	rec := release(t, b.store, "app", "one", nil, nil)
	read, proceed, late := make(chan int, 10), make(chan bool), make(chan error, 1)
	b.promoter(func(ctx context.Context, p pipeline.Promotion) error {
		read <- len(p.Approvals)
		if len(p.Approvals) == 1 {
			<-proceed
		}
		c, err := b.store.StartStage(ctx, p.ID.Job(), pipeline.StageGate)
		if len(p.Approvals) == 1 {
			late <- err
		}
		if err != nil {
			return err
		}
		if len(p.Approvals) < 2 {
			return b.store.Wait(ctx, c, pipeline.Waiting{Decision: notYet(nil)})
		}
		if err := b.store.RecordDecision(ctx, c, passed()); err != nil {
			return err
		}
		return b.settle(ctx, p)
	})
	p := promote(t, b.store, rec, "prod", "grace")
	<-read
	await(t, "it waits", func() bool { return b.promotion(p.ID).State == pipeline.StateWaiting })
	approve := func(by string) {
		_, err := b.store.Approve(t.Context(), pipeline.Approval{Promotion: p.ID, By: by, Plan: plan})
		check(t, err)
	}
	approve("heidi")
	if n := <-read; n != 1 {
		t.Fatalf("the first to look saw %d approvals", n)
	}
	approve("ivan")
	if n := <-read; n != 2 {
		t.Fatalf("the second to look saw %d approvals", n)
	}
	await(t, "it succeeds", func() bool { return b.promotion(p.ID).State == pipeline.StateSucceeded })
	close(proceed)
	if err := <-late; !errors.Is(err, pipeline.ErrConflict) && !errors.Is(err, pipeline.ErrStale) {
		t.Fatalf("the overtaken one starts with %v", err)
	}
	if got := b.promotion(p.ID); got.State != pipeline.StateSucceeded {
		t.Fatalf("it is %s", got.State)
	}
}

// TestApprovalWhileItIsLookedAt: such an approval is kept, and what comes of the
// look is not the last.
func TestApprovalWhileItIsLookedAt(t *testing.T) {
	b := newBundle(t)
	p := promote(t, b.store, release(t, b.store, "app", "one", nil, nil), "prod", "grace")
	check(t, b.store.Wait(t.Context(), start(t, b.store, p.ID.Job(), pipeline.StageGate), pipeline.Waiting{Decision: notYet(nil)}))
	if rows := b.rows(p.ID.Job()); rows != "available" { // that of the request; nobody took it
		t.Fatalf("the rows are %q", rows)
	}
	c := start(t, b.store, p.ID.Job(), pipeline.StageGate)
	_, err := b.store.Approve(t.Context(), pipeline.Approval{Promotion: p.ID, By: "heidi", Plan: plan})
	check(t, err)
	if rows := b.rows(p.ID.Job()); rows != "available" {
		t.Fatalf("a second worker is called while one is at it: %q", rows)
	}
	later := time.Now().Add(time.Hour)
	check(t, b.store.Wait(t.Context(), c, pipeline.Waiting{Decision: notYet(&later)}))
	if rows := b.rows(p.ID.Job()); rows != "available available" {
		t.Fatalf("the rows are %q, want that it is looked at again at once", rows)
	}
	// Once: the next look has seen it.
	check(t, b.store.Wait(t.Context(), start(t, b.store, p.ID.Job(), pipeline.StageGate), pipeline.Waiting{Decision: notYet(&later)}))
	if rows := b.rows(p.ID.Job()); rows != "available available scheduled" {
		t.Fatalf("the rows are %q", rows)
	}
	// A wake-up takes the place of the timer.
	_, err = b.store.Approve(t.Context(), pipeline.Approval{Promotion: p.ID, By: "ivan", Plan: plan})
	check(t, err)
	if rows := b.rows(p.ID.Job()); rows != "available available cancelled available" {
		t.Fatalf("the rows are %q", rows)
	}
}

// TestWaitSurvivesItsWorker: a worker that dies after it wrote that a promotion
// waits leaves a row that stands for nothing.
func TestWaitSurvivesItsWorker(t *testing.T) {
	b := newBundle(t)
	p := promote(t, b.store, release(t, b.store, "app", "one", nil, nil), "prod", "grace")
	_, err := b.pool.Exec(t.Context(), `UPDATE river.river_job SET state = 'running', attempted_by = '{nobody}', attempt = 1 WHERE args ->> 'job' = $1`, string(p.ID))
	check(t, err)
	later := time.Now().Add(time.Hour)
	check(t, b.store.Wait(t.Context(), start(t, b.store, p.ID.Job(), pipeline.StageGate), pipeline.Waiting{Decision: notYet(&later)}))
	adopted, err := postgres.Adopt(t.Context(), b.pool)
	check(t, err)
	if rows := b.rows(p.ID.Job()); len(adopted) != 0 || rows != "cancelled scheduled" {
		t.Fatalf("adopted %v, the rows are %q", adopted, rows)
	}

	// The net: nothing before its time, and after it even what lost its row.
	put := func() []string {
		lost, err := postgres.Requeue(t.Context(), b.pool)
		check(t, err)
		return lost
	}
	_, err = b.pool.Exec(t.Context(), `DELETE FROM river.river_job`)
	check(t, err)
	meddle(t, b.pool, `UPDATE jobs SET created_at = created_at - interval '1 hour'`)
	if lost := put(); len(lost) != 0 {
		t.Fatalf("put back %v before its time", lost)
	}
	_, err = b.pool.Exec(t.Context(), `UPDATE jobs SET wake_at = now() - interval '1 minute' WHERE id = $1`, string(p.ID))
	check(t, err)
	if lost := put(); len(lost) != 1 || lost[0] != string(p.ID) {
		t.Fatalf("put back %v, want %s", lost, p.ID)
	}
	if lost := put(); len(lost) != 0 {
		t.Fatalf("put back %v again", lost)
	}
}

// TestOlderOneComesLate: one that was being looked at when a newer one entered
// is superseded when it comes to wait.
func TestOlderOneComesLate(t *testing.T) {
	b := newBundle(t)
	s := b.store
	one, two := release(t, s, "app", "one", nil, nil), release(t, s, "app", "two", nil, nil)
	old, young := promote(t, s, one, "prod", "grace"), promote(t, s, two, "prod", "heidi")
	c := start(t, s, old.ID.Job(), pipeline.StageGate)
	check(t, s.RecordDecision(t.Context(), start(t, s, young.ID.Job(), pipeline.StageGate), passed()))
	err := s.RecordDecision(t.Context(), c, passed())
	var busy *pipeline.BusyError
	if !errors.As(err, &busy) || busy.By != young.ID {
		t.Fatalf("the error is %v", err)
	}
	check(t, s.Wait(t.Context(), c, pipeline.Waiting{Decision: notYet(nil), Behind: young.ID}))
	if p := b.promotion(old.ID); p.State != pipeline.StateSuperseded || !strings.Contains(p.Reason, string(young.ID)) {
		t.Fatalf("it is %s: %s", p.State, p.Reason)
	}
}

// TestPlanOfYesterday: what passed a gate does so against what the environment
// held at that time.
func TestPlanOfYesterday(t *testing.T) {
	b := newBundle(t)
	s := b.store
	one, two := release(t, s, "app", "one", nil, nil), release(t, s, "app", "two", nil, nil)
	first, second := promote(t, s, one, "prod", "grace"), promote(t, s, two, "prod", "heidi")
	c := start(t, s, second.ID.Job(), pipeline.StageGate)
	place(t, s, first)
	j := passed()
	j.Diff.To.Digest = two.Built.Image.Digest // into an empty environment
	err := s.RecordDecision(t.Context(), c, j)
	var busy *pipeline.BusyError
	if !errors.As(err, &busy) || busy.By != first.ID {
		t.Fatalf("the error is %v", err)
	}
	check(t, s.Wait(t.Context(), c, pipeline.Waiting{Decision: notYet(nil), Behind: busy.By}))
	if p := b.promotion(second.ID); p.State != pipeline.StateWaiting || b.rows(second.ID.Job()) != "available available" {
		t.Fatalf("it is %s, its rows are %s; want it to be looked at again at once", p.State, b.rows(second.ID.Job()))
	}
	j.Diff.From = &pipeline.DiffSide{Digest: one.Built.Image.Digest}
	check(t, s.RecordDecision(t.Context(), start(t, s, second.ID.Job(), pipeline.StageGate), j))
	d, err := s.PromotionDetail(t.Context(), second.ID)
	check(t, err)
	if d.Diff == nil || d.Diff.From == nil || d.Diff.From.Digest != one.Built.Image.Digest {
		t.Fatalf("the details show %+v", d.Diff)
	}
}
