package api_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/dray-project/dray/api"
	"github.com/dray-project/dray/api/apitest"
	"github.com/dray-project/dray/pipeline"
)

const waitingPath = "/api/v1/promotions/" + string(apitest.PromotionWaiting)

func atNow(c *api.Config) {
	wired(c)
	c.Now = func() time.Time { return apitest.Now }
}

func TestWaitingPromotion(t *testing.T) {
	s := newServer(t, atNow)
	var p api.PromotionView
	a := s.get(waitingPath)
	s.ok(a, 200, &p)
	if p.State != pipeline.StateWaiting || !p.Decision.Waiting || p.Decision.Rules[1].Until == nil || p.Diff == nil || p.Plan != apitest.Diff.Plan() ||
		p.Summary == nil || len(p.Approvals) != 1 || !p.Approvals[0].OtherPlan || p.Note == "" {
		t.Errorf("%s", a.body)
	}
	if strings.Count(a.body, `"approvals":`) != 2 { // the gate's rules have some of their own
		t.Errorf("approvals are there %d times: %s", strings.Count(a.body, `"approvals":`), a.body)
	}
}

func TestApprove(t *testing.T) {
	s := newServer(t, atNow)
	s.store.Tokens["dray_sam"] = pipeline.Token{Name: "sam", Grants: []pipeline.Grant{{Role: "security", Project: "hello-go"}, {Role: "viewer", Project: "hello-go"}}}
	s.store.Tokens["dray_bare"] = pipeline.Token{Name: "bare", Grants: []pipeline.Grant{{Role: "security"}}}
	const sam = "Authorization: Bearer dray_sam"
	path := waitingPath + "/approvals"
	plan := func(d pipeline.Digest, more string) string { return fmt.Sprintf(`{"plan":%q%s}`, d, more) }
	today := apitest.Diff.Plan()

	// Roles: what the environment's rules name counts, and nothing else does.
	p := s.want(s.send("POST", path, plan(today, ""), "Authorization: Bearer dray_admin"), 403, "forbidden")
	if strings.Join(p.Roles, " ") != "release-manager security" || !strings.Contains(p.Detail, "the admin has admin") {
		t.Errorf("%+v", p)
	}
	s.want(s.send("POST", path, plan(today, ""), "Authorization: Bearer dray_viewer"), 403, "forbidden")
	s.want(s.send("POST", path, plan(today, ""), "Authorization: Bearer dray_bare"), 404, "not-found")

	// An approval is for what was shown.
	p = s.want(s.send("POST", path, plan(apitest.Digest("0"), ""), sam), 409, "plan-changed")
	if p.Plan != today || !strings.Contains(p.Detail, string(today)) {
		t.Errorf("%+v", p)
	}
	s.want(s.send("POST", path, `{}`, sam), 422, "invalid")
	s.want(s.send("POST", path, ``, sam), 400, "malformed")
	s.want(s.send("POST", path, plan(today, `,"force":true`), sam), 422, "invalid")
	s.want(s.send("POST", "/api/v1/promotions/prm_other/approvals", plan(today, ""), sam), 404, "not-found")

	var view api.PromotionView
	a := s.send("POST", path, plan(today, `,"comment":"go"`), sam)
	s.ok(a, 200, &view)
	last := view.Approvals[len(view.Approvals)-1]
	if last.By != "sam" || last.Plan != today || last.OtherPlan || last.Comment != "go" || strings.Join(last.Roles, " ") != "security viewer" || !last.At.Equal(apitest.Now) {
		t.Errorf("%+v", last)
	}
	// Saying it again is no second word.
	a = s.send("POST", path, plan(today, ""), sam)
	s.ok(a, 200, &view)
	if a.Header.Get("Idempotent-Replayed") != "true" || len(view.Approvals) != 2 {
		t.Errorf("%v %+v", a.Header, view.Approvals)
	}
	// Now it does not wait, so another's word is a conflict.
	s.want(s.send("POST", path, plan(today, ""), auth), 409, "conflict")

	// The answer was lost after the word was kept.
	s = newServer(t, atNow)
	s.store.Fail("Approve", apitest.ErrInjected, 1, true)
	s.want(s.send("POST", path, plan(today, ""), auth), 500, "internal")
	a = s.send("POST", path, plan(today, ""), auth)
	s.ok(a, 200, &view)
	if a.Header.Get("Idempotent-Replayed") != "true" || len(view.Approvals) != 2 {
		t.Errorf("%+v", view.Approvals)
	}
	// The plan changed between the question and the answer.
	s = newServer(t, atNow)
	other := apitest.Diff
	other.PackagesAdded = nil
	s.store.Wait(apitest.PromotionWaiting, apitest.WaitingDecision, other)
	if p := s.want(s.send("POST", path, plan(today, ""), auth), 409, "plan-changed"); p.Plan != other.Plan() {
		t.Errorf("%+v", p)
	}
}

func TestRejectAndCancel(t *testing.T) {
	s := newServer(t, atNow)
	var view api.PromotionView
	s.ok(s.send("POST", waitingPath+"/approvals", `{"reject":true,"comment":"no"}`, "Authorization: Bearer dray_admin"), 200, &view)
	if view.State != pipeline.StateRefused || !view.Approvals[1].Rejected || view.Approvals[1].Plan != apitest.Diff.Plan() {
		t.Errorf("%+v", view)
	}
	s.want(s.send("POST", waitingPath+"/cancel", `{"reason":"x"}`, auth), 409, "conflict")

	s = newServer(t, atNow)
	s.want(s.send("POST", waitingPath+"/cancel", `{}`, auth), 422, "invalid")
	a := s.send("POST", waitingPath+"/cancel", `{"reason":"x"}`, auth)
	s.ok(a, 200, &view)
	if view.State != pipeline.StateCancelled || !strings.Contains(view.Reason, "grace") {
		t.Errorf("%+v", view)
	}
	a = s.send("POST", waitingPath+"/cancel", `{"reason":"again"}`, auth)
	s.ok(a, 200, nil)
	if a.Header.Get("Idempotent-Replayed") != "true" {
		t.Error("cancelled twice")
	}
}

// A stream of a promotion that waits stays open, and one that was called off ends.
func TestStreamOfAWaitingPromotion(t *testing.T) {
	s := newServer(t, atNow)
	events, stop := s.follow(waitingPath + "/events")
	defer stop()
	for range 2 {
		if e := s.next(events); e.event != "stage" && e.event != "state" {
			t.Fatalf("%+v", e)
		}
	}
	for _, final := range []string{"cancelled"} {
		s.ok(s.send("POST", waitingPath+"/cancel", `{"reason":"x"}`, auth), 200, nil)
		if e := s.next(events); e.event != "state" || !strings.Contains(e.data, final) {
			t.Errorf("%+v", e)
		}
		if e := s.next(events); e.event != "end" || !strings.Contains(e.data, `"state":"`+final+`"`) {
			t.Errorf("%+v", e)
		}
	}
	if _, open := <-events; open {
		t.Error("the stream goes on after its end")
	}
}

func (s *server) next(events <-chan sse) sse {
	s.t.Helper()
	for {
		select {
		case e, open := <-events:
			if !open {
				s.t.Fatal("the stream ended")
			}
			if e.event != "" {
				return e
			}
		case <-time.After(10 * time.Second):
			s.t.Fatal("no event came")
		}
	}
}

func TestPromoteInAnEmergency(t *testing.T) {
	s := newServer(t, atNow)
	var p pipeline.Promotion
	s.ok(s.send("POST", "/api/v1/promotions", fmt.Sprintf(`{"image":%q,"environment":"prod","note":"n","breakGlass":" INC-42 "}`, apitest.Good.Digest), auth), 202, &p)
	if p.BreakGlass != "INC-42" || p.Note != "n" || p.Action != pipeline.ActionPromote || strings.Join(p.Roles, " ") != "release-manager admin" {
		t.Errorf("%+v", p)
	}
	for _, body := range []string{`{"environment":"prod"}`, `{"environment":"prod","action":"rollback"}`, `{"environment":"prod","project":"hello-go"}`,
		`{"image":"x","environment":"prod","action":"destroy"}`} {
		s.want(s.send("POST", "/api/v1/promotions", body, auth), 422, "invalid")
	}
}

func TestRollback(t *testing.T) {
	s := newServer(t, atNow)
	path := "/api/v1/projects/hello-go/environments/prod/rollback"
	var p, again pipeline.Promotion
	a := s.send("POST", path, fmt.Sprintf(`{"to":%q,"note":"n"}`, apitest.Good.Digest), auth, "Idempotency-Key: back")
	s.ok(a, 202, &p)
	if p.Action != pipeline.ActionRollback || a.Header.Get("Location") != "/api/v1/promotions/"+string(p.ID) {
		t.Errorf("%s", a.body)
	}
	a = s.send("POST", path, fmt.Sprintf(`{"to":%q,"note":"n"}`, apitest.Good.Digest), auth, "Idempotency-Key: back")
	s.ok(a, 202, &again)
	if again.ID != p.ID || a.Header.Get("Idempotent-Replayed") != "true" {
		t.Errorf("%s", a.body)
	}
	s.want(s.send("POST", path, `{}`, auth), 422, "invalid") // nothing was there before
	s.store.End(p.ID.Job(), pipeline.StateSucceeded, "")
	s.ok(s.send("POST", path, `{}`, auth), 202, &again)
	if again.Image.Digest != apitest.Good.Digest {
		t.Errorf("%+v", again)
	}
	s.want(s.send("POST", path, `{"to":"latest"}`, auth), 422, "invalid")
	s.want(s.send("POST", path, fmt.Sprintf(`{"to":%q}`, apitest.Shared.Digest), auth), 404, "not-found")
	s.want(s.send("POST", strings.Replace(path, "prod", "moon", 1), `{}`, auth), 404, "not-found")
	s.want(s.send("POST", strings.Replace(path, "hello-go", "nothing", 1), `{}`, auth), 404, "not-found")
}

func TestEligibilityAndDiff(t *testing.T) {
	s := newServer(t, atNow)
	image := "/api/v1/images/" + string(apitest.Good.Digest)
	var e pipeline.Eligibility
	s.ok(s.get(image+"/eligibility?environment=prod"), 200, &e)
	if e.Plan != apitest.Diff.Plan() || len(e.Decision.Rules) != 3 || e.Project != "hello-go" {
		t.Errorf("%+v", e)
	}
	if a := s.get(image + "/eligibility?environment=prod&action=rollback"); !strings.Contains(a.body, `"rules":[]`) {
		t.Errorf("%s", a.body)
	}
	s.want(s.get(image+"/eligibility"), 422, "invalid")
	s.want(s.get(image+"/eligibility?environment=moon"), 422, "invalid")
	s.want(s.get(image+"/eligibility?environment=prod&action=destroy"), 422, "invalid")
	s.want(s.get("/api/v1/images/"+string(apitest.Shared.Digest)+"/eligibility?environment=prod"), 409, "ambiguous")

	var d pipeline.Diff
	for _, accept := range []string{"", "*/*", "application/json", "application/json, text/plain"} {
		a := s.get(image+"/diff?environment=prod", "Accept: "+accept)
		s.ok(a, 200, &d)
		if a.Header.Get("Content-Type") != "application/json" || d.Plan() != apitest.Diff.Plan() {
			t.Errorf("%s: %v %s", accept, a.Header, a.body)
		}
	}
	for _, accept := range []string{"text/plain", "text/plain;q=0.9, application/json", "text/*"} {
		a := s.get(image+"/diff?environment=prod", "Accept: "+accept)
		if a.StatusCode != 200 || !strings.HasPrefix(a.Header.Get("Content-Type"), "text/plain") || !strings.Contains(a.body, "Findings fixed (1)") || strings.Contains(a.body, "\x1b") {
			t.Errorf("%s: %v %s", accept, a.Header, a.body)
		}
	}
	// A server that cannot ask says so, and an error inside stays inside.
	none := newServer(t)
	none.want(none.get(image+"/diff?environment=prod"), 501, "disabled")
	broken := newServer(t, func(c *api.Config) {
		c.Eligibility = func(context.Context, pipeline.PromotionRequest) (pipeline.Eligibility, error) {
			return pipeline.Eligibility{}, apitest.ErrInjected
		}
	})
	if a := broken.get(image + "/eligibility?environment=prod"); a.StatusCode != 500 || strings.Contains(a.body, "hunter2") {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
}

// What does not count is said beside the finding.
func TestSuppressedFindings(t *testing.T) {
	s := newServer(t, atNow)
	image := "/api/v1/images/" + string(apitest.Good.Digest)
	var img api.ImageView
	s.ok(s.get(image), 200, &img)
	if len(img.Hygiene) != 2 || len(img.Findings) != 1 || len(img.Findings[0].Suppressed) != 1 {
		t.Fatalf("%+v", img.Findings)
	}
	if got := img.Findings[0].Suppressed[0]; got.By != "exception" || got.ID != apitest.Exception || got.Author != "grace" || got.Environment != "prod" || got.ExpiresAt == nil {
		t.Errorf("%+v", got)
	}
	s.ok(s.send("DELETE", "/api/v1/projects/hello-go/exceptions/"+apitest.Exception, "", auth), 200, nil)
	img = api.ImageView{}
	s.ok(s.get(image), 200, &img)
	if len(img.Findings[0].Suppressed) != 0 {
		t.Errorf("a revoked exception holds: %+v", img.Findings[0].Suppressed)
	}
	// A VEX statement that a gate went by, until its document is taken back.
	details, err := s.store.ImageDetails(context.Background(), apitest.Good.Digest, "")
	if err != nil {
		t.Fatal(err)
	}
	vexed := details[0]
	vexed.Project, vexed.Image.Digest = "hello-go", apitest.Digest("9")
	vexed.Decision.Suppressed = []pipeline.FindingFact{{Finding: vexed.Findings[0].Finding, Suppressed: true,
		Suppression: &pipeline.Suppression{By: "vex", ID: apitest.VEX, Author: "acme security", Reason: "not_affected"}}}
	s.store.AddImage(vexed, nil)
	image = "/api/v1/images/" + string(apitest.Digest("9"))
	for _, want := range []int{1, 0} {
		img = api.ImageView{}
		s.ok(s.get(image), 200, &img)
		if len(img.Findings[0].Suppressed) != want {
			t.Errorf("%d by VEX, want %d: %+v", len(img.Findings[0].Suppressed), want, img.Findings[0].Suppressed)
		}
		s.ok(s.send("DELETE", "/api/v1/projects/hello-go/vex/"+apitest.VEX, "", auth), 200, nil)
	}
}
