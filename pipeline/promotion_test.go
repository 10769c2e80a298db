package pipeline_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/pipelinetest"
)

const stagingRepo = "staging.example/team/app"

var criticalOnly = pipeline.GateRules{FailOn: pipeline.SeverityCritical}

func staging() pipeline.Environment {
	return pipeline.Environment{Name: "staging", Repository: stagingRepo, Gate: criticalOnly}
}

// guarded is an environment with everything before it.
func guarded() pipeline.Environment {
	return pipeline.Environment{Name: "prod", Repository: prodRepo, Gate: criticalOnly, After: []string{"staging"}, Soak: pipeline.Duration(time.Hour),
		Approvals: []pipeline.ApprovalRule{{Role: "release-manager", NotRequester: true}}}
}

// ask asks for a promotion and works until everything rests.
func (b *bundle) ask(r pipeline.PromotionRequest) pipeline.PromotionID {
	b.t.Helper()
	r.RequestedBy, r.Project = "rita", "app"
	p, _, err := b.Store.Promote(b.t.Context(), r)
	if err != nil {
		b.t.Fatal(err)
	}
	b.work()
	return p.ID
}

// work is what the queue does: whatever can be worked on is.
func (b *bundle) work() {
	b.t.Helper()
	for ready := b.Store.Ready(); len(ready) > 0; ready = b.Store.Ready() {
		for _, id := range ready {
			if err := b.p.Promote(b.t.Context(), id); err != nil {
				b.t.Fatal(err)
			}
		}
	}
}

func (b *bundle) promotion(id pipeline.PromotionID) pipeline.Promotion {
	b.t.Helper()
	return must(b.Store.Promotion(b.t.Context(), id))
}

func (b *bundle) wantState(id pipeline.PromotionID, state pipeline.State, reason ...string) pipeline.Promotion {
	b.t.Helper()
	p := b.promotion(id)
	if p.State != state {
		b.t.Fatalf("promotion %s is %s (%s), want %s", id, p.State, p.Reason, state)
	}
	for _, r := range reason {
		if !strings.Contains(p.Reason, r) {
			b.t.Errorf("reason %q does not say %q", p.Reason, r)
		}
	}
	return p
}

func (b *bundle) approve(id pipeline.PromotionID, by string, plan pipeline.Digest) error {
	_, err := b.Store.Approve(b.t.Context(), pipeline.Approval{Promotion: id, By: by, Roles: []string{"release-manager"}, Plan: plan})
	return err
}

func to(d pipeline.Digest, environment string) pipeline.PromotionRequest {
	return pipeline.PromotionRequest{Image: string(d), Environment: environment}
}

func TestPromotionWaitsForSoakAndApproval(t *testing.T) {
	b := setupWith(t, staging(), guarded())
	run := b.release("1.0.0", commitA)
	d := run.Image.Digest

	early := b.ask(to(d, "prod"))
	b.wantState(early, pipeline.StateRefused, "reached", "staging")

	b.wantState(b.ask(to(d, "staging")), pipeline.StateSucceeded)
	id := b.ask(to(d, "prod"))
	p := b.wantState(id, pipeline.StateWaiting, "soak", "approvals")
	if p.Decision == nil || !p.Decision.Waiting || p.Decision.Until != nil {
		t.Fatalf("decision is %+v; what people have to do has no moment", p.Decision)
	}

	// Whoever asked does not count; somebody else's word on another plan is refused.
	if err := b.approve(id, "paul", pipelinetest.DigestOf("another plan")); !errors.Is(err, pipeline.ErrConflict) {
		t.Fatalf("an approval of another plan: %v", err)
	}
	if err := b.approve(id, "rita", p.Decision.Plan); err != nil {
		t.Fatal(err)
	}
	b.work()
	b.wantState(id, pipeline.StateWaiting, "approvals")
	if err := b.approve(id, "paul", p.Decision.Plan); err != nil {
		t.Fatal(err)
	}
	b.work()
	p = b.wantState(id, pipeline.StateWaiting, "soak")
	if strings.Contains(p.Reason, "approvals") || p.Decision.Until == nil {
		t.Fatalf("with the approvals there, it waits for %q until %v", p.Reason, p.Decision.Until)
	}
	b.now = p.Decision.Until.Add(-time.Second)
	b.work()
	b.wantState(id, pipeline.StateWaiting)
	b.now = *p.Decision.Until
	b.work()
	p = b.wantState(id, pipeline.StateSucceeded)
	wantTags(t, b.TagsOf(prodRepo), d, "sha-aaaaaaaaaaaa", "1.0.0", "1.0", "1", "latest")
	if !p.Decision.Passed || p.Decision.Policy.Version != 1 || p.Decision.Policy.Environment != "prod" || p.Decision.Policy.Digest == "" {
		t.Errorf("the decision does not name its policy: %+v", p.Decision.Policy)
	}
}

func TestChangedPlanNeedsNewApproval(t *testing.T) {
	b := setupWith(t, staging(), guarded())
	d := b.release("1.0.0", commitA).Image.Digest
	b.ask(to(d, "staging"))
	id := b.ask(to(d, "prod"))
	before := b.promotion(id).Decision.Plan
	if err := b.approve(id, "paul", before); err != nil {
		t.Fatal(err)
	}
	// What becomes known meanwhile changes what was shown.
	b.Findings[commitA] = []pipeline.Finding{{ID: "CVE-2026-0002", Severity: pipeline.SeverityHigh, Package: "lib", Version: "1"}}
	b.now = b.now.Add(2 * time.Hour)
	b.work()
	p := b.wantState(id, pipeline.StateWaiting, "approvals")
	if p.Decision.Plan == before {
		t.Fatal("a new finding left the plan as it was")
	}
	if err := b.approve(id, "paul", p.Decision.Plan); err != nil {
		t.Fatal(err)
	}
	b.work()
	b.wantState(id, pipeline.StateSucceeded)
}

func TestRejectionEndsAPromotion(t *testing.T) {
	b := setupWith(t, staging(), guarded())
	d := b.release("1.0.0", commitA).Image.Digest
	b.ask(to(d, "staging"))
	id := b.ask(to(d, "prod"))
	if _, err := b.Store.Approve(t.Context(), pipeline.Approval{Promotion: id, By: "paul", Plan: b.promotion(id).Decision.Plan, Rejected: true, Comment: "not before Monday"}); err != nil {
		t.Fatal(err)
	}
	b.work()
	b.wantState(id, pipeline.StateRefused, "paul", "not before Monday")
	if tags := b.TagsOf(prodRepo); len(tags) > 0 {
		t.Errorf("prod carries %v", tags)
	}
}

// TestSoakIsPerDigest: newer images that pass through the earlier environment
// take nothing away from one that was there long enough.
func TestSoakIsPerDigest(t *testing.T) {
	prod := guarded()
	prod.Approvals = nil
	b := setupWith(t, staging(), prod)
	one := b.release("1.0.0", commitA).Image.Digest
	b.ask(to(one, "staging"))
	b.now = b.now.Add(59 * time.Minute)
	two := b.release("1.1.0", commitB).Image.Digest
	b.ask(to(two, "staging"))
	b.now = b.now.Add(2 * time.Minute)
	b.wantState(b.ask(to(one, "prod")), pipeline.StateSucceeded)
	b.wantState(b.ask(to(two, "prod")), pipeline.StateWaiting, "soak")
}

func TestFreezeAndBreakGlass(t *testing.T) {
	prod := pipeline.Environment{Name: "prod", Repository: prodRepo, Gate: criticalOnly,
		Freezes: []pipeline.Freeze{{Name: "mornings", Start: "2026-03-02T08:00", For: pipeline.Duration(4 * time.Hour), Recur: "FREQ=DAILY"}}}
	b := setupWith(t, prod)
	d := b.release("1.0.0", commitA).Image.Digest
	id := b.ask(to(d, "prod"))
	p := b.wantState(id, pipeline.StateWaiting, "freeze", "mornings")
	if want := time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC); p.Decision.Until == nil || !p.Decision.Until.Equal(want) {
		t.Fatalf("it waits until %v, want %v", p.Decision.Until, want)
	}

	// Without the role, an emergency is none.
	r := to(d, "prod")
	r.BreakGlass = "the shop is down"
	b.wantState(b.ask(r), pipeline.StateRefused, "break-glass", "admin")

	r.Grants = []pipeline.Grant{{Role: "admin"}}
	p = b.wantState(b.ask(r), pipeline.StateSucceeded)
	if bg := p.Decision.BreakGlass; bg == nil || bg.By != "rita" || bg.Reason != "the shop is down" || !slices.Contains(bg.Rules, "freeze") {
		t.Errorf("the record does not shout: %+v", bg)
	}
	// What waited was older than what went in.
	b.wantState(id, pipeline.StateSuperseded, string(p.ID))
}

func TestPromotionsIntoOneEnvironmentTakeTurns(t *testing.T) {
	start := func() (b *bundle, one, two pipeline.Digest, first, second pipeline.PromotionID) {
		b = setupWith(t, pipeline.Environment{Name: "prod", Repository: prodRepo, Gate: criticalOnly})
		one, two = b.release("1.0.0", commitA).Image.Digest, b.release("1.1.0", commitB).Image.Digest
		var ids []pipeline.PromotionID
		for _, d := range []pipeline.Digest{one, two} {
			p, _, err := b.Store.Promote(t.Context(), to(d, "prod"))
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, p.ID)
		}
		b.Faults.Arm(0, 0)
		return b, one, two, ids[0], ids[1]
	}
	b, _, _, id, _ := start()
	if err := b.p.Promote(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	copying := 1 + slices.Index(b.Faults.Trace(), "registry.Copy")

	// The first is inside and breaks off in its copy.
	b, one, two, first, second := start()
	b.Faults.Arm(copying, pipelinetest.CrashBefore)
	if err := b.p.Promote(t.Context(), first); !errors.Is(err, pipelinetest.ErrInjected) {
		t.Fatalf("the copy did not break off: %v", err)
	}
	b.Faults.Restart()
	b.Faults.Arm(0, 0)
	if err := b.p.Promote(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	b.wantState(second, pipeline.StateWaiting, string(first))
	if err := b.p.Promote(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	b.wantState(first, pipeline.StateSucceeded)
	b.work()
	b.wantState(second, pipeline.StateSucceeded)
	if tags := b.TagsOf(prodRepo); tags["latest"] != two || tags["1.0"] != one {
		t.Errorf("tags are %v", tags)
	}
}

func TestRollback(t *testing.T) {
	b := setupWith(t, pipeline.Environment{Name: "prod", Repository: prodRepo, Gate: criticalOnly,
		Approvals: []pipeline.ApprovalRule{{Role: "release-manager"}}})
	one, two := b.release("1.0.0", commitA).Image.Digest, b.release("1.1.0", commitB).Image.Digest
	for _, d := range []pipeline.Digest{one, two} {
		id := b.ask(to(d, "prod"))
		if err := b.approve(id, "paul", b.promotion(id).Decision.Plan); err != nil {
			t.Fatal(err)
		}
		b.work()
		b.wantState(id, pipeline.StateSucceeded)
		b.now = b.now.Add(time.Hour)
	}
	if _, _, err := b.Store.Promote(t.Context(), pipeline.PromotionRequest{Project: "app", Environment: "prod", Action: pipeline.ActionRollback, Image: string(two)}); !errors.Is(err, pipeline.ErrConflict) {
		t.Errorf("rolling back to what is there: %v", err)
	}

	// Its own gate: no approval is asked for.
	back := b.wantState(b.ask(pipeline.PromotionRequest{Environment: "prod", Action: pipeline.ActionRollback}), pipeline.StateSucceeded)
	if back.Image.Digest != one {
		t.Fatalf("rolled back to %s, want %s", back.Image.Digest, one)
	}
	tags := b.TagsOf(prodRepo)
	if tags["latest"] != one || tags["1"] != one || tags["1.1"] != two || tags["1.1.0"] != two {
		t.Errorf("after the rollback tags are %v", tags)
	}
	st := must(b.Store.Standing(t.Context(), "app", "prod", two))
	if len(st.Reached) != 1 || !st.Reached[0].Withdrawn || !slices.Equal(st.Withdrawn, []string{"1.1.0"}) {
		t.Errorf("1.1.0 does not count as withdrawn: %+v, %v", st.Reached, st.Withdrawn)
	}
	if _, _, err := b.Store.Promote(t.Context(), pipeline.PromotionRequest{Project: "app", Environment: "prod", Action: pipeline.ActionRollback}); !errors.Is(err, pipeline.ErrConflict) {
		t.Errorf("there is nothing to roll back to, and yet: %v", err)
	}

	// A release after the rollback takes the tags that the withdrawn one had.
	const commitC = "cccccccccccccccccccccccccccccccccccccccc"
	three := b.release("1.0.1", commitC).Image.Digest
	id := b.ask(to(three, "prod"))
	if err := b.approve(id, "paul", b.promotion(id).Decision.Plan); err != nil {
		t.Fatal(err)
	}
	b.work()
	b.wantState(id, pipeline.StateSucceeded)
	if tags := b.TagsOf(prodRepo); tags["latest"] != three || tags["1"] != three || tags["1.1"] != two {
		t.Errorf("after the fix tags are %v", tags)
	}
}

func TestAutomaticPromotion(t *testing.T) {
	auto, next := staging(), guarded()
	auto.Auto, next.Auto, next.Approvals = true, true, nil
	b := setupWith(t, auto, next)
	newer := b.release("2.0.0", commitA).Image.Digest
	b.work()
	wantTags(t, b.TagsOf(stagingRepo), newer, "sha-aaaaaaaaaaaa", "2.0.0", "2.0", "2", "latest")
	if tags := b.TagsOf(prodRepo); len(tags) > 0 {
		t.Fatalf("prod carries %v before the soak is over", tags)
	}
	b.now = b.now.Add(61 * time.Minute)
	b.work()
	wantTags(t, b.TagsOf(prodRepo), newer, "sha-aaaaaaaaaaaa", "2.0.0", "2.0", "2", "latest")

	// Nothing goes back by itself.
	b.release("1.2.4", commitB)
	b.work()
	b.now = b.now.Add(61 * time.Minute)
	b.work()
	wantTags(t, b.TagsOf(prodRepo), newer, "sha-aaaaaaaaaaaa", "2.0.0", "2.0", "2", "latest")
}

func TestExceptionsAndVEX(t *testing.T) {
	critical := pipeline.Finding{ID: "CVE-2026-0001", Severity: pipeline.SeverityCritical, Package: "lib", Version: "1", FixedIn: "2"}
	for _, tt := range []struct {
		name  string
		setup func(b *bundle, d pipeline.Digest)
		state pipeline.State
		says  string // in the reason, or among what was ignored
	}{
		{"nothing", func(*bundle, pipeline.Digest) {}, pipeline.StateRefused, "CVE-2026-0001"},
		{"an exception", func(b *bundle, _ pipeline.Digest) {
			b.Store.Exceptions = []pipeline.Exception{{ID: "exc_1", Project: "app", Environment: "prod", Finding: "CVE-2026-0001", Author: "sam", Reason: "not reachable", ExpiresAt: b.now.Add(time.Hour)}}
		}, pipeline.StateSucceeded, ""},
		{"one for another environment", func(b *bundle, _ pipeline.Digest) {
			b.Store.Exceptions = []pipeline.Exception{{ID: "exc_1", Project: "app", Environment: "staging", Finding: "CVE-2026-0001", ExpiresAt: b.now.Add(time.Hour)}}
		}, pipeline.StateRefused, "CVE-2026-0001"},
		{"one for another image", func(b *bundle, _ pipeline.Digest) {
			b.Store.Exceptions = []pipeline.Exception{{ID: "exc_1", Project: "app", Image: pipelinetest.DigestOf("other"), Finding: "CVE-2026-0001", ExpiresAt: b.now.Add(time.Hour)}}
		}, pipeline.StateRefused, "CVE-2026-0001"},
		{"one that has expired", func(b *bundle, _ pipeline.Digest) {
			b.Store.Exceptions = []pipeline.Exception{{ID: "exc_1", Project: "app", Finding: "CVE-2026-0001", ExpiresAt: b.now.Add(-time.Hour)}}
		}, pipeline.StateRefused, "exc_1 for CVE-2026-0001 expired"},
		{"a VEX document", func(b *bundle, d pipeline.Digest) { b.Store.VEX = vexOf(d, "signed") }, pipeline.StateSucceeded, ""},
		{"one that nobody trusted signed", func(b *bundle, d pipeline.Digest) { b.Store.VEX = vexOf(d, "forged") }, pipeline.StateRefused, "vex_1: no trusted key"},
		{"one about another image", func(b *bundle, _ pipeline.Digest) {
			b.Store.VEX = vexOf(pipelinetest.DigestOf("other"), "signed")
		}, pipeline.StateRefused, "CVE-2026-0001"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := setup(t)
			d := b.release("1.0.0", commitA).Image.Digest
			b.Findings[commitA] = []pipeline.Finding{critical}
			tt.setup(b, d)
			p := b.wantState(b.ask(to(d, "prod")), tt.state)
			if text := p.Reason + strings.Join(p.Decision.Ignored, "; "); !strings.Contains(text, tt.says) {
				t.Errorf("nothing says %q: %q", tt.says, text)
			}
			if tt.state == pipeline.StateSucceeded && (len(p.Decision.Suppressed) != 1 || p.Decision.Suppressed[0].Suppression.ID == "") {
				t.Errorf("the decision does not show what was suppressed: %+v", p.Decision.Suppressed)
			}
		})
	}
}

func vexOf(d pipeline.Digest, signature string) []pipeline.VEXDocument {
	doc, err := json.Marshal([]pipeline.VEXStatement{{Document: "vex_1", Author: "vendor", Vulnerability: []string{"CVE-2026-0001"},
		Status: "not_affected", Justification: "vulnerable_code_not_present", Products: []pipeline.VEXProduct{{ID: string(d)}}}})
	if err != nil {
		panic(err)
	}
	return []pipeline.VEXDocument{{ID: "vex_1", Project: "app", Document: doc, Signature: []byte(signature)}}
}

// TestEligibilityIsWhatAPromotionWouldSay asks without promoting, and then
// promotes.
func TestEligibilityIsWhatAPromotionWouldSay(t *testing.T) {
	b := setupWith(t, staging(), guarded())
	d := b.release("1.0.0", commitA).Image.Digest
	ask := func() pipeline.Eligibility {
		t.Helper()
		b.Faults.Arm(0, 0)
		e, err := b.p.Eligibility(t.Context(), pipeline.PromotionRequest{Image: string(d), Project: "app", Environment: "prod", RequestedBy: "rita"})
		if err != nil {
			t.Fatal(err)
		}
		for _, effect := range b.Faults.Trace() {
			if strings.HasPrefix(effect, "signer.S") || strings.HasPrefix(effect, "signer.A") || strings.HasPrefix(effect, "registry.") || strings.HasPrefix(effect, "store.Record") {
				t.Errorf("asking had the effect %s", effect)
			}
		}
		return e
	}
	if e := ask(); e.Decision.Passed || e.Decision.Waiting || !strings.Contains(e.Decision.Reason(), "reached") {
		t.Errorf("before staging: %+v", e.Decision)
	}
	b.ask(to(d, "staging"))
	e := ask()
	if !e.Decision.Waiting || e.Plan == "" || e.Diff.From != nil || len(e.Diff.PackagesAdded) == 0 {
		t.Errorf("after staging: %+v, diff %+v", e.Decision, e.Diff)
	}
	p := b.promotion(b.ask(to(d, "prod")))
	if p.Decision.Plan != e.Plan || p.Reason == "" || len(p.Decision.Rules) != len(e.Decision.Rules) {
		t.Errorf("a promotion says %q of plan %s, eligibility said %q of plan %s", p.Reason, p.Decision.Plan, e.Decision.Reason(), e.Plan)
	}
}

// TestEveryDecisionIsSealed reads the summaries of a decision that passed and of
// one that refused.
func TestEveryDecisionIsSealed(t *testing.T) {
	b := setup(t)
	d := b.release("1.0.0", commitA).Image.Digest
	summary := func(s pipeline.Sealed) (out struct {
		PredicateType string
		Subject       []struct{ Digest map[string]string }
		Predicate     struct {
			ResourceURI        string
			VerificationResult string
			Policy             struct {
				URI    string
				Digest map[string]string
			}
			InputAttestations []struct{ URI string }
			VerifiedLevels    []string
		}
	}) {
		t.Helper()
		var envelope struct{ Payload string }
		if err := json.Unmarshal(s.Envelope, &envelope); err != nil {
			t.Fatal(err)
		}
		payload, err := base64.StdEncoding.DecodeString(envelope.Payload)
		if err == nil {
			err = json.Unmarshal(payload, &out)
		}
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	passed := b.ask(to(d, "prod"))
	b.Findings[commitA] = []pipeline.Finding{{ID: "CVE-1", Severity: pipeline.SeverityCritical, Package: "lib", Version: "1"}}
	refused := b.ask(to(d, "prod"))
	for id, want := range map[pipeline.PromotionID]string{passed: "PASSED", refused: "FAILED"} {
		s := summary(b.Store.Judged(id).Summary)
		if s.PredicateType != pipeline.PredicateSummary || s.Predicate.VerificationResult != want ||
			s.Predicate.ResourceURI != "https://dray.example/projects/app/environments/prod" ||
			s.Predicate.Policy.Digest["sha256"] != b.promotion(id).Decision.Policy.Digest.Hex() ||
			!strings.HasSuffix(s.Predicate.Policy.URI, "/projects/app/versions/1") ||
			len(s.Predicate.InputAttestations) == 0 || s.Subject[0].Digest["sha256"] != d.Hex() {
			t.Errorf("the summary of %s is %+v", id, s)
		}
	}
	v, err := b.Signer().Verify(t.Context(), pipeline.Image{Repository: prodRepo, Digest: d})
	if err != nil || !v.Has(pipeline.PredicateSummary) {
		t.Errorf("the summary did not arrive in prod: %+v, %v", v.Attestations, err)
	}
	if s := summary(b.Store.Images()[0].Summary); s.Predicate.ResourceURI != "https://dray.example/projects/app" {
		t.Errorf("the build's summary is about %s", s.Predicate.ResourceURI)
	}
}

// TestEveryFaultOfAPromotionThatWaits fails at every effect, in every way.
func TestEveryFaultOfAPromotionThatWaits(t *testing.T) {
	through := func(t *testing.T, b *bundle, d pipeline.Digest, restart func()) {
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
		var id pipeline.PromotionID
		try("ask", func() error {
			p, _, err := b.Store.Promote(ctx, pipeline.PromotionRequest{Image: string(d), Environment: "prod", RequestedBy: "rita", IdempotencyKey: "k"})
			id = p.ID
			return err
		})
		try("promote", func() error { return b.p.Promote(ctx, id) })
		plan := b.Store.Judged(id).Decision.Plan
		try("approve", func() error {
			err := b.approve(id, "paul", plan)
			if errors.Is(err, pipeline.ErrConflict) {
				return nil // it had been written
			}
			return err
		})
		b.now = b.now.Add(2 * time.Hour)
		try("promote", func() error { return b.p.Promote(ctx, id) })
		b.Faults.Arm(0, 0)
		b.wantState(id, pipeline.StateSucceeded)
		wantTags(t, b.TagsOf(prodRepo), d, "sha-aaaaaaaaaaaa", "1.0.0", "1.0", "1", "latest")
		other := b.ask(to(d, "staging")) // nobody is left inside, anywhere
		b.wantState(other, pipeline.StateSucceeded)
	}
	prepare := func(t *testing.T) (*bundle, pipeline.Digest) {
		b := setupWith(t, staging(), guarded())
		d := b.release("1.0.0", commitA).Image.Digest
		b.wantState(b.ask(to(d, "staging")), pipeline.StateSucceeded)
		b.Faults.Arm(0, 0)
		return b, d
	}
	clean, d := prepare(t)
	through(t, clean, d, func() {})
	clean, d = prepare(t)
	var effects []string
	{
		clean.Faults.Arm(0, 0)
		id := clean.ask(to(d, "prod"))
		_ = clean.approve(id, "paul", clean.Store.Judged(id).Decision.Plan)
		clean.now = clean.now.Add(2 * time.Hour)
		if err := clean.p.Promote(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		effects = clean.Faults.Trace()
	}
	for n := 1; n <= len(effects); n++ {
		for _, mode := range pipelinetest.Modes() {
			t.Run(fmt.Sprintf("%03d %s %s", n, effects[n-1], mode), func(t *testing.T) {
				b, d := prepare(t)
				b.Faults.Arm(n, mode)
				through(t, b, d, func() {
					b.Faults.Restart()
					b.p = b.newPipeline()
				})
			})
		}
	}
}

func TestReconcile(t *testing.T) {
	prod := pipeline.Environment{Name: "prod", Repository: prodRepo, Gate: criticalOnly}
	b := setupWith(t, prod)
	d := b.release("1.0.0", commitA).Image.Digest
	b.wantState(b.ask(to(d, "prod")), pipeline.StateSucceeded)
	at := pipeline.Image{Repository: prodRepo, Digest: d}
	pass := func(drifts, repaired int) {
		t.Helper()
		sum, err := b.p.Reconcile(t.Context())
		if err != nil || sum != (pipeline.Reconciled{Places: 1, Drifts: drifts, Repaired: repaired}) {
			t.Fatalf("pass: %+v, %v; want %d drifts and %d repaired", sum, err, drifts, repaired)
		}
	}
	pass(0, 0)

	b.Unsign(at)
	pass(0, 1)
	if v, err := b.Signer().Verify(t.Context(), at); err != nil || len(v.Signatures) == 0 {
		t.Fatalf("the signature was not put back: %v", err)
	}
	pass(0, 0)

	b.MoveTag(prodRepo, "1.0", "")
	pass(0, 1)
	wantTags(t, b.TagsOf(prodRepo), d, "sha-aaaaaaaaaaaa", "1.0.0", "1.0", "1", "latest")

	// What somebody moved on purpose is reported, until the settings say otherwise.
	other := pipelinetest.DigestOf("somebody else's")
	b.MoveTag(prodRepo, "latest", other)
	pass(1, 0)
	pass(1, 0)
	if b.TagsOf(prodRepo)["latest"] != other {
		t.Error("a tag was moved back without leave")
	}
	prod.RepairTags = true
	b.configure(prod)
	pass(0, 1)
	wantTags(t, b.TagsOf(prodRepo), d, "sha-aaaaaaaaaaaa", "1.0.0", "1.0", "1", "latest")

	// What the source lost as well cannot be put back, and no tag is put on it.
	b.Unsign(at)
	b.Unsign(pipeline.Image{Repository: devRepo, Digest: d})
	b.MoveTag(prodRepo, "1.0", "")
	sum, err := b.p.Reconcile(t.Context())
	if err != nil || sum.Drifts != 2 || sum.Repaired != 0 {
		t.Fatalf("pass: %+v, %v", sum, err)
	}
	if _, ok := b.TagsOf(prodRepo)["1.0"]; ok {
		t.Error("a tag was put on an image that does not verify")
	}
	var kinds []string
	for _, d := range b.Store.Drifts() {
		if d.Detail == "" || (d.RepairedAt == nil && d.ResolvedAt == nil && d.Blocked == "") {
			t.Errorf("the drift does not say what is the matter: %+v", d)
		}
		kinds = append(kinds, d.Kind)
	}
	if want := []string{"missing", "tag", "tag", "missing", "tag"}; !slices.Equal(kinds, want) {
		t.Errorf("drifts are %v, want %v", kinds, want)
	}
}

// TestCopyThatTrustsTooMuch: a copy that takes what it saw before for granted
// leaves a hole; the promotion finds it and brings what is missing.
func TestCopyThatTrustsTooMuch(t *testing.T) {
	b := setup(t)
	d := b.release("1.0.0", commitA).Image.Digest
	b.wantState(b.ask(to(d, "prod")), pipeline.StateSucceeded)
	at := pipeline.Image{Repository: prodRepo, Digest: d}
	b.Unsign(at)
	b.TrustOnce(at)
	b.wantState(b.ask(to(d, "prod")), pipeline.StateSucceeded)
	if v, err := b.Signer().Verify(t.Context(), at); err != nil || len(v.Signatures) == 0 {
		t.Errorf("prod holds an image without its signature: %v", err)
	}
}

func TestDiffFollowsThePushes(t *testing.T) {
	b := setupWith(t, pipeline.Environment{Name: "prod", Repository: prodRepo, Gate: criticalOnly})
	b.n++
	one := b.release("1.0.0", commitA).Image.Digest
	b.ask(to(one, "prod"))
	push := func(before, after string, commits ...pipeline.Commit) {
		t.Helper()
		b.n++
		a, err := b.Store.Accept(t.Context(), pipeline.Delivery{Forge: "github", ID: fmt.Sprint("delivery-", b.n), Project: "app", ReceivedAt: b.Store.Clock(),
			Event: pipeline.Event{Kind: pipeline.EventPush, Source: "team/app", Ref: "refs/heads/main", Before: before, After: after, Commits: commits}})
		if err == nil {
			err = b.p.Run(t.Context(), a.Run)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	const commitC = "cccccccccccccccccccccccccccccccccccccccc"
	push(commitA, commitC, pipeline.Commit{SHA: "c0", Title: "prepare"}, pipeline.Commit{SHA: commitC, Title: "change"})
	push(commitC, commitB, pipeline.Commit{SHA: commitB, Title: "finish\x1b[31m", Author: "Ann"})
	b.Findings[commitB] = []pipeline.Finding{{ID: "CVE-2026-7", Severity: pipeline.SeverityLow, Package: "lib", Version: "2"}}
	two := b.release("1.1.0", commitB).Image.Digest
	e, err := b.p.Eligibility(t.Context(), pipeline.PromotionRequest{Image: string(two), Project: "app", Environment: "prod"})
	if err != nil {
		t.Fatal(err)
	}
	var titles []string
	for _, c := range e.Diff.Commits {
		titles = append(titles, c.Title)
	}
	if !e.Diff.CommitsKnown || len(titles) != 3 || titles[2] != "prepare" {
		t.Errorf("commits are %q, known %t", titles, e.Diff.CommitsKnown)
	}
	if len(e.Diff.PackagesAdded)+len(e.Diff.PackagesRemoved) != 0 {
		t.Errorf("packages came and went: %+v, %+v", e.Diff.PackagesAdded, e.Diff.PackagesRemoved)
	}
	text := e.Diff.Text(0)
	for _, want := range []string{"1.0.0 -> 1.1.0", "CVE-2026-7 low in lib 2", "finish[31m (Ann)", "https://git.example/team/app/compare/" + commitA + "..." + commitB} {
		if !strings.Contains(text, want) {
			t.Errorf("the text does not say %q:\n%s", want, text)
		}
	}
	if strings.ContainsRune(text, 0x1b) {
		t.Error("an escape sequence of a commit reached the terminal")
	}
	b.wantState(b.ask(to(two, "prod")), pipeline.StateSucceeded)
	e, err = b.p.Eligibility(t.Context(), pipeline.PromotionRequest{Image: string(one), Project: "app", Environment: "prod", Action: pipeline.ActionRollback})
	if err != nil || len(e.Diff.Commits) != 0 || len(e.Diff.CommitsTaken) != 3 || !strings.Contains(e.Diff.Text(0), "Commits taken back (3)") {
		t.Errorf("the way back takes %+v, %v", e.Diff.CommitsTaken, err)
	}
}

// TestRollbackGateOfItsOwn: what an emergency may override in the environment
// need not be a rule of its rollbacks.
func TestRollbackGateOfItsOwn(t *testing.T) {
	e := guarded()
	e.Rules = []pipeline.Rule{{Name: "released", Expr: "image.versions.size() > 0", Reason: "no version", Remedy: "tag it"}}
	e.BreakGlass = &pipeline.BreakGlassRule{Roles: []string{"admin"}, Overrides: []string{"released", "soak"}}
	e.Rollback = &pipeline.RollbackGate{Rules: []pipeline.Rule{{Use: "scanned"}}}
	judge := setup(t).p.Judge
	for _, action := range []string{pipeline.ActionPromote, pipeline.ActionRollback} {
		if err := judge.Check(e.EntryGate(action)); err != nil {
			t.Errorf("gate to %s: %v", action, err)
		}
	}
	if g := e.EntryGate(pipeline.ActionRollback); !slices.Equal(g.BreakGlass.Overrides, []string{"soak"}) || len(g.After) > 0 {
		t.Errorf("the gate of a rollback is %+v", g)
	}
}
