package postgres_test

import (
	"errors"
	"testing"

	"github.com/dray-project/dray/pipeline"
)

func TestCancelPromotion(t *testing.T) {
	b := newBundle(t)
	s := b.store
	rec := release(t, s, "app", "one", nil, nil)
	cancel := func(id pipeline.PromotionID) error {
		p, err := s.CancelPromotion(t.Context(), id, "grace", "not today")
		if err == nil && (p.State != pipeline.StateCancelled || p.Reason != "cancelled by grace: not today" || p.FinishedAt == nil) {
			t.Errorf("the answer is %+v", p)
		}
		return err
	}
	if err := cancel("prm_x"); !errors.Is(err, pipeline.ErrNotFound) {
		t.Errorf("one that does not exist: %v", err)
	}
	queued := promote(t, s, rec, "prod", "grace")
	check(t, cancel(queued.ID))
	if rows := b.rows(queued.ID.Job()); rows != "cancelled" {
		t.Errorf("its row is %s", rows)
	}
	running := promote(t, s, rec, "prod", "grace")
	c := start(t, s, running.ID.Job(), pipeline.StageGate)
	check(t, cancel(running.ID))
	if err := s.RecordDecision(t.Context(), c, passed()); !errors.Is(err, pipeline.ErrStale) {
		t.Errorf("it enters all the same: %v", err)
	}
	waiting := promote(t, s, rec, "prod", "grace")
	check(t, s.Wait(t.Context(), start(t, s, waiting.ID.Job(), pipeline.StageGate), pipeline.Waiting{Decision: notYet(nil)}))
	check(t, cancel(waiting.ID))
	inside := promote(t, s, rec, "prod", "grace")
	check(t, s.RecordDecision(t.Context(), start(t, s, inside.ID.Job(), pipeline.StageGate), passed()))
	for _, id := range []pipeline.PromotionID{inside.ID, waiting.ID} {
		if err := cancel(id); !errors.Is(err, pipeline.ErrConflict) {
			t.Errorf("%s: %v", id, err)
		}
	}
	other := promote(t, s, rec, "prod", "heidi")
	states, err := s.Environments(t.Context(), "app")
	check(t, err)
	if len(states) != 2 || states[1].Entering != inside.ID || len(states[1].Waiting) != 1 || states[1].Waiting[0] != other.ID || states[1].Current != nil {
		t.Errorf("the environments are %+v", states)
	}
}
