package pipelinetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dray-project/dray/pipeline"
)

// PromotionStore is what the suite of promotions drives.
type PromotionStore interface {
	Store
	Approve(context.Context, pipeline.Approval) (pipeline.Promotion, error)
	// Ready takes the promotions that somebody should work on now, in the order
	// of their ids.
	Ready() []pipeline.PromotionID
}

// TestPromotions holds a store to what pipeline.Store says of promotions that
// wait, follow each other and go back. open returns a new, empty store.
func TestPromotions(t *testing.T, open func(t *testing.T) PromotionStore) {
	for _, c := range []struct {
		name string
		test func(*waiters)
	}{
		{"an approval ends the waiting", testApproval},
		{"what is no approval of this plan", testApprovalConflicts},
		{"a rejection ends the promotion", testRejection},
		{"time ends the waiting", testTimer},
		{"one is inside an environment", testLane},
		{"the end of one lets in the next", testBehind},
		{"one that has ended keeps nobody waiting", testBehindEnded},
		{"a refusal does not enter", testRefusedStaysOut},
		{"a newer one supersedes those that wait", testSupersede},
		{"where a rollback goes", testRollbackTargets},
		{"a rollback is asked for once", testRollbackOnce},
		{"reached and withdrawn", testReached},
		{"what an environment holds", testCurrent},
		{"what was pushed", testPushes},
		{"what is where", testPlaced},
		{"drift is on record once", testDrift},
		{"promotions follow from a job", testFollowing},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := open(t)
			x := &waiters{suite: &suite{T: t, ctx: t.Context(), s: s, other: s}, store: s}
			x.must(s.SyncProjects(x.ctx, []pipeline.Project{SampleProject("app"), SampleProject("web")}))
			c.test(x)
		})
	}
}

type waiters struct {
	*suite
	store PromotionStore
}

// ask requests a promotion, later than those before it.
func (x *waiters) ask(r pipeline.PromotionRequest) pipeline.Promotion {
	x.Helper()
	time.Sleep(2 * time.Millisecond) // ids sort by the millisecond
	if r.RequestedBy == "" {
		r.RequestedBy = "rita"
	}
	p, created, err := x.s.Promote(x.ctx, r)
	x.must(err)
	if !created {
		x.Fatalf("%+v was asked for before", r)
	}
	return p
}

func (x *waiters) promote(rec pipeline.ImageRecord, environment string) pipeline.Promotion {
	x.Helper()
	return x.ask(pipeline.PromotionRequest{Image: rec.Built.Image.String(), Environment: environment})
}

func (x *waiters) wantReady(want ...pipeline.Promotion) {
	x.Helper()
	var ids []pipeline.PromotionID
	for _, p := range want {
		ids = append(ids, p.ID)
	}
	slices.Sort(ids)
	if got := x.store.Ready(); !slices.Equal(got, ids) {
		x.Fatalf("ready are %v, want %v", got, ids)
	}
}

func (x *waiters) promotion(p pipeline.Promotion) pipeline.Promotion {
	x.Helper()
	p, err := x.s.Promotion(x.ctx, p.ID)
	x.must(err)
	return p
}

func (x *waiters) wantState(p pipeline.Promotion, want pipeline.State, reason ...string) {
	x.Helper()
	p = x.promotion(p)
	if p.State != want || p.State.Final() != (p.FinishedAt != nil) {
		x.Fatalf("%s is %s (%s, finished at %v), want %s", p.ID, p.State, p.Reason, p.FinishedAt, want)
	}
	for _, r := range reason {
		if !strings.Contains(p.Reason, r) {
			x.Fatalf("%s says %q, and nothing of %q", p.ID, p.Reason, r)
		}
	}
}

var somePlan = DigestOf("plan")

// notYet is a decision that waits for an approval, or until a time.
func notYet(until *time.Time) pipeline.Decision {
	d := pipeline.Decision{Plan: somePlan, EvaluatedAt: sampleTime,
		Rules:  []pipeline.RuleResult{{Rule: "approvals", Pending: true, Until: until, Reason: "nobody has looked at it", Remedy: "approve it"}},
		Policy: pipeline.PolicyVersion{Gate: pipeline.Gate{Approvals: []pipeline.ApprovalRule{{Role: pipeline.RoleReleaseManager}}}}}
	d.Conclude()
	return d
}

func yes() pipeline.Judged {
	return pipeline.Judged{Decision: pipeline.Decision{Passed: true, EvaluatedAt: sampleTime, Rules: []pipeline.RuleResult{{Rule: "severity", Passed: true}}}}
}

// wait asks the gate, and is told to wait.
func (x *waiters) wait(p pipeline.Promotion, w pipeline.Waiting) pipeline.Claim {
	x.Helper()
	c := x.start(p.ID.Job(), pipeline.StageGate)
	x.must(x.s.Wait(x.ctx, c, w))
	return c
}

// enter asks the gate, and is let in.
func (x *waiters) enter(p pipeline.Promotion) {
	x.Helper()
	x.must(x.s.RecordDecision(x.ctx, x.start(p.ID.Job(), pipeline.StageGate), yes()))
}

// settle takes a promotion that has entered to its end. The tags are those that
// it holds then.
func (x *waiters) settle(p pipeline.Promotion, tags ...string) {
	x.Helper()
	e, _ := SampleProject(p.Project).Environment(p.Environment)
	dest := pipeline.Image{Repository: e.Repository, Digest: p.Image.Digest}
	copied := pipeline.Copied{Image: dest, Manifests: 1, Contents: []pipeline.Content{
		{Digest: dest.Digest, Size: 12, Manifest: true}, {Digest: DigestOf("blob", dest.Digest), Size: 1 << 33},
		{Digest: DigestOf("referrer", dest.Digest), Size: 5, Manifest: true, Subject: dest.Digest}}}
	x.must(x.s.RecordPlacement(x.ctx, x.start(p.ID.Job(), pipeline.StageRecord),
		pipeline.Placement{Copied: copied, Decision: yes().Decision, Verified: []pipeline.Verified{verified(dest)}}))
	var moves []pipeline.TagMove
	for _, tag := range tags {
		moves = append(moves, pipeline.TagMove{Repository: dest.Repository, Tag: tag, To: dest.Digest, Moved: true, Held: true})
	}
	x.must(x.s.RecordTags(x.ctx, x.start(p.ID.Job(), pipeline.StageTag), moves, nil))
}

// placed promotes an image, to the end.
func (x *waiters) placed(rec pipeline.ImageRecord, environment string, tags ...string) pipeline.Promotion {
	x.Helper()
	p := x.promote(rec, environment)
	x.enter(p)
	x.settle(p, tags...)
	return x.promotion(p)
}

func (x *waiters) rolledBack(r pipeline.PromotionRequest) pipeline.Promotion {
	x.Helper()
	r.Action = pipeline.ActionRollback
	p := x.ask(r)
	x.enter(p)
	x.settle(p)
	return x.promotion(p)
}

// release is an image with a version.
func (x *waiters) release(what, version string) pipeline.ImageRecord {
	x.Helper()
	_, rec := x.released("app", "refs/tags/v"+version, what, version)
	return rec
}

func testApproval(x *waiters) {
	p := x.promote(x.release("one", "1.0.0"), "prod")
	x.wantReady(p)
	d := notYet(nil)
	c := x.wait(p, pipeline.Waiting{Decision: d, Diff: pipeline.Diff{Project: "app"}})
	x.wantState(p, pipeline.StateWaiting, "nobody has looked at it")
	x.wantReady()
	got := x.promotion(p)
	x.same(got.Decision, d)
	x.wants(x.s.Holds(x.ctx, c), pipeline.ErrStale)
	x.wants(x.s.RecordDecision(x.ctx, c, yes()), pipeline.ErrStale)
	x.wants(x.s.Wait(x.ctx, c, pipeline.Waiting{Decision: d}), pipeline.ErrStale)

	a := pipeline.Approval{Promotion: p.ID, By: "grace", Roles: []string{"release-manager", "security"}, Plan: somePlan, Comment: "fine"}
	got, err := x.store.Approve(x.ctx, a)
	x.must(err)
	if len(got.Approvals) != 1 || got.Approvals[0].At.IsZero() || got.State != pipeline.StateWaiting {
		x.Fatalf("after the approval the promotion is %+v", got)
	}
	a.At = got.Approvals[0].At
	x.same(x.promotion(p).Approvals, []pipeline.Approval{a})
	x.wantReady(p)
	x.wantReady() // once

	// It may have to wait again, for another person.
	x.wait(p, pipeline.Waiting{Decision: d})
	x.wantReady()
	_, err = x.store.Approve(x.ctx, pipeline.Approval{Promotion: p.ID, By: "heidi", Plan: somePlan})
	x.must(err)
	x.wantReady(p)
	x.enter(p)
	x.wantState(p, pipeline.StateRunning)
	x.settle(p)
	x.wantState(p, pipeline.StateSucceeded)
	x.wantStory(p.ID.Job(), "running", "gate/1 started", "gate/1 waiting", "waiting", "running", "gate/2 started", "gate/2 waiting", "waiting",
		"running", "gate/3 started", "gate/3 succeeded", "record/1 started", "record/1 succeeded", "tag/1 started", "tag/1 succeeded", "succeeded")
	if got := x.promotion(p); len(got.Approvals) != 2 || got.Approvals[0].By != "grace" || got.Approvals[1].By != "heidi" || !got.Decision.Passed {
		x.Fatalf("in the end the promotion is %+v", got)
	}
}

func testApprovalConflicts(x *waiters) {
	_, err := x.store.Approve(x.ctx, pipeline.Approval{Promotion: "prm_00000000000000000000", By: "grace", Plan: somePlan})
	x.wants(err, pipeline.ErrNotFound)
	p := x.promote(x.release("one", "1.0.0"), "prod")
	x.wantReady(p)
	word := func(by string, plan pipeline.Digest) error {
		_, err := x.store.Approve(x.ctx, pipeline.Approval{Promotion: p.ID, By: by, Plan: plan})
		return err
	}
	x.wants(word("grace", somePlan), pipeline.ErrConflict) // nobody has asked the gate yet
	x.wait(p, pipeline.Waiting{Decision: notYet(nil)})
	x.wants(word("grace", DigestOf("another plan")), pipeline.ErrConflict)
	x.wants(word("grace", ""), pipeline.ErrConflict)
	x.wantReady()
	x.must(word("grace", somePlan))
	x.wants(word("grace", somePlan), pipeline.ErrConflict)
	x.wantReady(p)

	// Another plan is another question, to the same people.
	d := notYet(nil)
	d.Plan = DigestOf("another plan")
	x.wait(p, pipeline.Waiting{Decision: d})
	x.wants(word("heidi", somePlan), pipeline.ErrConflict)
	x.must(word("grace", d.Plan))
	x.wantReady(p)
	x.enter(p)
	x.wants(word("heidi", d.Plan), pipeline.ErrConflict)
	x.settle(p)
	x.wants(word("heidi", d.Plan), pipeline.ErrConflict)
	if got := x.promotion(p).Approvals; len(got) != 2 {
		x.Fatalf("the approvals are %+v", got)
	}
}

func testRejection(x *waiters) {
	p := x.promote(x.release("one", "1.0.0"), "prod")
	x.wantReady(p)
	x.wait(p, pipeline.Waiting{Decision: notYet(nil)})
	got, err := x.store.Approve(x.ctx, pipeline.Approval{Promotion: p.ID, By: "grace", Plan: somePlan, Comment: "not on a Friday", Rejected: true})
	x.must(err)
	if got.State != pipeline.StateRefused {
		x.Fatalf("the rejection answers with %+v", got)
	}
	x.wantState(p, pipeline.StateRefused, "grace", "not on a Friday")
	x.wantReady()
	_, err = x.s.StartStage(x.ctx, p.ID.Job(), pipeline.StageGate)
	x.wants(err, pipeline.ErrConflict)
	if !x.promotion(p).Approvals[0].Rejected {
		x.Fatal("the rejection is not on record")
	}
}

func testTimer(x *waiters) {
	p := x.promote(x.release("one", "1.0.0"), "prod")
	far := x.promote(x.release("two", "2.0.0"), "staging")
	x.wantReady(p, far)
	later := time.Now().Add(time.Hour)
	x.wait(far, pipeline.Waiting{Decision: notYet(&later)})
	soon := time.Now().Add(300 * time.Millisecond)
	x.wait(p, pipeline.Waiting{Decision: notYet(&soon)})
	for end := soon.Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		got := x.store.Ready()
		if slices.Equal(got, []pipeline.PromotionID{p.ID}) {
			if time.Now().Before(soon.Add(-50 * time.Millisecond)) {
				x.Fatal("it was ready before its time")
			}
			break
		}
		if len(got) > 0 || time.Now().After(end) {
			x.Fatalf("ready are %v", got)
		}
	}
	x.enter(p)
	// An approval comes before the time.
	_, err := x.store.Approve(x.ctx, pipeline.Approval{Promotion: far.ID, By: "grace", Plan: somePlan})
	x.must(err)
	x.wantReady(far)
	x.enter(far)
}

func (x *waiters) wantBusy(p, by pipeline.Promotion) {
	x.Helper()
	c := x.start(p.ID.Job(), pipeline.StageGate)
	err := x.s.RecordDecision(x.ctx, c, yes())
	var busy *pipeline.BusyError
	if !errors.As(err, &busy) || busy.By != by.ID || busy.Environment != p.Environment {
		x.Fatalf("the error is %v, want that %s is inside", err, by.ID)
	}
	x.must(x.s.Holds(x.ctx, c)) // nothing was written
	if d := x.promotion(p).Decision; d != nil && d.Passed {
		x.Fatalf("the decision was written: %+v", d)
	}
	x.must(x.s.Wait(x.ctx, c, pipeline.Waiting{Decision: notYet(nil), Behind: by.ID}))
}

func testLane(x *waiters) {
	one, two := x.release("one", "1.0.0"), x.release("two", "2.0.0")
	_, web := x.released("web", "refs/heads/main", "web")
	first, second := x.promote(one, "prod"), x.promote(two, "prod")
	x.enter(first)
	x.wantBusy(second, first)
	// Elsewhere there is room.
	x.enter(x.promote(two, "staging"))
	x.enter(x.promote(web, "prod"))
	x.settle(first)
	x.enter(second)
	x.wantBusy(x.promote(one, "prod"), second)
	x.settle(second)
}

func testBehind(x *waiters) {
	one, two := x.release("one", "1.0.0"), x.release("two", "2.0.0")
	for name, end := range map[string]func(pipeline.Promotion){
		"succeeded": func(p pipeline.Promotion) { x.settle(p) },
		"failed": func(p pipeline.Promotion) {
			x.must(x.s.End(x.ctx, p.ID.Job(), pipeline.Ending{State: pipeline.StateFailed, Reason: "no registry"}))
		},
		"refused": func(p pipeline.Promotion) {
			x.must(x.s.End(x.ctx, p.ID.Job(), pipeline.Ending{State: pipeline.StateRefused, Reason: "not verified"}))
		},
	} {
		first, second, third := x.promote(one, "prod"), x.promote(two, "prod"), x.promote(two, "prod")
		x.wantReady(first, second, third)
		x.enter(first)
		x.wantBusy(second, first)
		x.wantBusy(third, first)
		x.wantReady()
		end(first)
		if got := x.promotion(first).State; string(got) != name {
			x.Fatalf("the first is %s, want it %s", got, name)
		}
		x.wantReady(second, third)
		x.enter(second)
		x.wantBusy(third, second)
		x.settle(second)
		x.wantReady(third)
		x.enter(third)
		x.settle(third)
		x.wantReady()
	}
}

func testBehindEnded(x *waiters) {
	one, two := x.release("one", "1.0.0"), x.release("two", "2.0.0")
	first, second := x.promote(one, "prod"), x.promote(two, "prod")
	x.wantReady(first, second)
	x.enter(first)
	c := x.start(second.ID.Job(), pipeline.StageGate)
	x.wants(x.s.RecordDecision(x.ctx, c, yes()), pipeline.ErrConflict)
	x.settle(first) // between the answer and the waiting
	x.must(x.s.Wait(x.ctx, c, pipeline.Waiting{Decision: notYet(nil), Behind: first.ID}))
	x.wantReady(second)
	x.enter(second)
}

func testRefusedStaysOut(x *waiters) {
	one := x.release("one", "1.0.0")
	first, second := x.promote(one, "prod"), x.promote(one, "prod")
	no := yes()
	no.Decision.Passed, no.Decision.Rules[0].Passed = false, false
	x.must(x.s.RecordDecision(x.ctx, x.start(first.ID.Job(), pipeline.StageGate), no))
	x.enter(second)
	x.must(x.s.End(x.ctx, first.ID.Job(), pipeline.Ending{State: pipeline.StateRefused, Reason: "severity"}))
	x.wantBusy(x.promote(one, "prod"), second) // the end of one that was never inside frees nothing
}

func testSupersede(x *waiters) {
	one, two := x.release("one", "1.0.0"), x.release("two", "2.0.0")
	_, web := x.released("web", "refs/heads/main", "web")
	old, elsewhere, other, by, newer := x.promote(one, "prod"), x.promote(one, "staging"), x.promote(web, "prod"), x.promote(two, "prod"), x.promote(one, "prod")
	x.wantReady(old, elsewhere, other, by, newer)
	soon := time.Now().Add(time.Hour)
	for _, p := range []pipeline.Promotion{old, elsewhere, other, newer} {
		x.wait(p, pipeline.Waiting{Decision: notYet(&soon)})
	}
	x.enter(by)
	x.wantState(old, pipeline.StateSuperseded, string(by.ID))
	for _, p := range []pipeline.Promotion{elsewhere, other, newer} {
		x.wantState(p, pipeline.StateWaiting)
	}
	_, err := x.s.StartStage(x.ctx, old.ID.Job(), pipeline.StageGate)
	x.wants(err, pipeline.ErrConflict)
	x.wantReady()
	x.settle(by)
	x.wantReady()
	x.wantState(newer, pipeline.StateWaiting)
}

func testFollowing(x *waiters) {
	id, rec := x.recorded("app", "refs/heads/main", "one", true)
	next := pipeline.PromotionRequest{Image: string(rec.Built.Image.Digest), Project: "app", Environment: "staging", Note: "automatic",
		RequestedBy: pipeline.Automatic, IdempotencyKey: fmt.Sprintf("auto/%s/staging", id)}
	x.must(x.s.RecordTags(x.ctx, x.start(id.Job(), pipeline.StageTag), nil, []pipeline.PromotionRequest{next}))
	p, created, err := x.s.Promote(x.ctx, next)
	x.must(err)
	if created || p.RequestedBy != pipeline.Automatic || p.Note != "automatic" || p.State != pipeline.StateQueued || p.Action != pipeline.ActionPromote {
		x.Fatalf("what follows is %+v, created anew: %v", p, created)
	}
	x.wantReady(p)
	x.enter(p)
	x.settle(p)
}
