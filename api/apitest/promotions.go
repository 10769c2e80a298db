package apitest

import (
	"context"
	"fmt"
	"slices"

	"github.com/dray-project/dray/pipeline"
)

// Promotions lists promotions, newest first.
func (s *Store) Promotions(ctx context.Context, q pipeline.PromotionQuery) (out []pipeline.Promotion, err error) {
	err = s.do(ctx, "Promotions", func() error {
		var all []pipeline.Promotion
		for _, p := range s.promotions {
			if (q.Project == "" || p.Project == q.Project) && (q.Environment == "" || p.Environment == q.Environment) && (q.State == "" || p.State == q.State) {
				all = append(all, p.Promotion)
			}
		}
		out = cut(all, q.Page, func(p pipeline.Promotion) string { return string(p.ID) })
		return nil
	})
	return out, err
}

// PromotionDetail returns a promotion.
func (s *Store) PromotionDetail(ctx context.Context, id pipeline.PromotionID) (out pipeline.PromotionDetail, err error) {
	err = s.do(ctx, "PromotionDetail", func() error {
		for _, p := range s.promotions {
			if p.ID == id {
				out = p
				return nil
			}
		}
		return fmt.Errorf("promotion %s: %w", id, pipeline.ErrNotFound)
	})
	return out, err
}

// before is what an environment had before what it has now.
func (s *Store) before(project, environment string) (pipeline.Digest, error) {
	var had []pipeline.Digest
	for _, p := range s.promotions {
		if p.Project == project && p.Environment == environment && p.State == pipeline.StateSucceeded {
			had = append(had, p.Image.Digest)
		}
	}
	if len(had) < 2 {
		return "", fmt.Errorf("environment %s of project %s had nothing before what it has now: %w", environment, project, pipeline.ErrInvalid)
	}
	return had[len(had)-2], nil
}

// change finds a promotion and lets f change it.
func (s *Store) change(id pipeline.PromotionID, f func(*pipeline.PromotionDetail) error) (pipeline.Promotion, error) {
	for i := range s.promotions {
		if s.promotions[i].ID == id {
			err := f(&s.promotions[i])
			return s.promotions[i].Promotion, err
		}
	}
	return pipeline.Promotion{}, fmt.Errorf("promotion %s: %w", id, pipeline.ErrNotFound)
}

// Approve keeps a word about the plan of a promotion that waits. With as many
// approvals as the rule "approvals" of its decision asks for (one), it is
// queued again.
func (s *Store) Approve(ctx context.Context, a pipeline.Approval) (p pipeline.Promotion, err error) {
	var ended bool
	err = s.do(ctx, "Approve", func() (err error) {
		p, err = s.change(a.Promotion, func(d *pipeline.PromotionDetail) error {
			switch {
			case d.State != pipeline.StateWaiting:
				return fmt.Errorf("promotion %s is %s and waits for nobody: %w", d.ID, d.State, pipeline.ErrConflict)
			case d.Decision.Plan != a.Plan:
				return fmt.Errorf("promotion %s has another plan by now: %w", d.ID, pipeline.ErrConflict)
			case slices.ContainsFunc(d.Approvals, func(o pipeline.Approval) bool { return o.By == a.By && o.Plan == a.Plan }):
				return fmt.Errorf("%s spoke already: %w", a.By, pipeline.ErrConflict)
			}
			d.Approvals = append(slices.Clone(d.Approvals), a)
			if ended = a.Rejected; ended {
				d.State, d.Reason = pipeline.StateRefused, "rejected by "+a.By
				d.FinishedAt = at(400)
			} else {
				d.State = pipeline.StateQueued
			}
			return nil
		})
		return err
	})
	if err == nil && ended {
		s.End(a.Promotion.Job(), pipeline.StateRefused, "rejected by "+a.By)
	}
	return p, err
}

// CancelPromotion calls off a promotion that is queued or waits.
func (s *Store) CancelPromotion(ctx context.Context, id pipeline.PromotionID, by, reason string) (p pipeline.Promotion, err error) {
	why := "cancelled by " + by + ": " + reason
	err = s.do(ctx, "CancelPromotion", func() (err error) {
		p, err = s.change(id, func(d *pipeline.PromotionDetail) error {
			if d.State != pipeline.StateQueued && d.State != pipeline.StateWaiting {
				return fmt.Errorf("promotion %s is %s: %w", d.ID, d.State, pipeline.ErrConflict)
			}
			d.State, d.Reason, d.FinishedAt = pipeline.StateCancelled, why, at(400)
			return nil
		})
		return err
	})
	if err == nil {
		s.End(id.Job(), pipeline.StateCancelled, why)
	}
	return p, err
}

// Wait puts a promotion to sleep, as its gate would.
func (s *Store) Wait(id pipeline.PromotionID, d pipeline.Decision, diff pipeline.Diff) {
	s.mu.Lock()
	_, err := s.change(id, func(p *pipeline.PromotionDetail) error {
		d.Plan = diff.Plan()
		p.State, p.Decision, p.Diff = pipeline.StateWaiting, &d, &diff
		return nil
	})
	s.mu.Unlock()
	if err != nil {
		panic(err)
	}
	s.Append(id.Job(), pipeline.JobEvent{Kind: pipeline.KindState, State: string(pipeline.StateWaiting), Message: d.Reason()})
}
