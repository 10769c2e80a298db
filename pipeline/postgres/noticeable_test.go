package postgres_test

import (
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/postgres"
	"github.com/dray-project/dray/pipeline/postgres/postgrestest"
)

// told returns what a receiver of everything is told from now on.
func told(t *testing.T, s *postgres.Store) (events []string, last pipeline.Notice) {
	t.Helper()
	_, err := s.GiveNotices(t.Context(), func(pipeline.Notice) []string { return []string{"everything"} })
	check(t, err)
	list, err := s.DueNotices(t.Context(), "everything", time.Hour, 100)
	check(t, err)
	for _, d := range list {
		last = pipeline.Notice{}
		check(t, json.Unmarshal(d.Body, &last))
		if last.Summary == "" || last.Project != "app" {
			t.Errorf("it says too little: %s", d.Body)
		}
		events = append(events, last.Event)
		check(t, s.NoticeDelivered(t.Context(), "everything", d.ID))
	}
	return events, last
}

// TestChangesAreTold: what happens to promotions and places is told once, by
// whoever's hand it happened.
func TestChangesAreTold(t *testing.T) {
	s := newStore(t, postgrestest.New(t))
	syncSample(t, s)
	rec := release(t, s, "app", "a", nil, nil)
	if events, _ := told(t, s); len(events) != 0 {
		t.Fatalf("a run tells %v", events)
	}
	p := promote(t, s, rec, "prod", "rita")
	wait := func(rules ...string) {
		t.Helper()
		w := pipeline.Waiting{Decision: pipeline.Decision{Waiting: true, EvaluatedAt: time.Now(), Policy: pipeline.PolicyVersion{Environment: "prod"}}}
		for _, r := range rules {
			w.Decision.Rules = append(w.Decision.Rules, pipeline.RuleResult{Rule: r, Pending: true, Reason: "not yet"})
		}
		check(t, s.Wait(t.Context(), start(t, s, p.ID.Job(), pipeline.StageGate), w))
	}
	wait("soak", "approvals")
	wait("soak", "approvals") // woken up for nothing
	wait("soak")
	if events, last := told(t, s); !slices.Equal(events, []string{pipeline.NoticePromotionWaiting, pipeline.NoticePromotionWaiting}) ||
		last.Environment != "prod" || last.Subject != string(p.ID) {
		t.Fatalf("waiting tells %v, %+v", events, last)
	}
	place(t, s, p)
	if events, last := told(t, s); !slices.Equal(events, []string{pipeline.NoticePromotionSucceeded}) || last.Environment != "prod" {
		t.Fatalf("success tells %v, %+v", events, last)
	}
	at, err := s.PlacedAt(t.Context(), p.ID)
	check(t, err)
	drift := pipeline.Drift{Kind: pipeline.DriftTag, Subject: "1.0.0", Detail: "the tag is gone", Blocked: "nobody may"}
	for _, detail := range []string{"the tag is gone", "the tag is gone", "the tag names another"} {
		drift.Detail = detail
		_, err := s.RecordDrift(t.Context(), at, []pipeline.Drift{drift})
		check(t, err)
	}
	if events, last := told(t, s); !slices.Equal(events, []string{pipeline.NoticeDrift}) || last.Image == nil || last.Image.Digest != rec.Built.Image.Digest {
		t.Fatalf("a drift tells %v, %+v", events, last)
	}
	refused := promote(t, s, rec, "staging", "rita")
	start(t, s, refused.ID.Job(), pipeline.StageAdmit)
	check(t, s.End(t.Context(), refused.ID.Job(), pipeline.Ending{State: pipeline.StateRefused, Reason: "severity: too bad"}))
	cancelled := promote(t, s, rec, "staging", "rita")
	_, err = s.CancelPromotion(t.Context(), cancelled.ID, "rita", "never mind")
	check(t, err)
	if events, last := told(t, s); !slices.Equal(events, []string{pipeline.NoticePromotionRefused}) || last.Environment != "staging" {
		t.Fatalf("refusal tells %v, %+v", events, last)
	}
	broken := promote(t, s, rec, "staging", "rita")
	check(t, s.RecordDecision(t.Context(), start(t, s, broken.ID.Job(), pipeline.StageGate), pipeline.Judged{Decision: pipeline.Decision{Passed: true,
		EvaluatedAt: time.Now(), Policy: pipeline.PolicyVersion{Environment: "staging"},
		BreakGlass: &pipeline.BreakGlass{By: "rita", Reason: "the house burns", Rules: []string{"freeze"}}}}))
	if events, last := told(t, s); !slices.Equal(events, []string{pipeline.NoticeBreakGlass}) || last.Environment != "staging" {
		t.Fatalf("an emergency tells %v, %+v", events, last)
	}
}
