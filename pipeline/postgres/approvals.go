package postgres

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

// Approve keeps an approval or a rejection of the plan that the promotion has
// now. A rejection ends the promotion as refused; an approval has it looked at
// again. A promotion that does not wait for approvals, a second word by the same
// person on the same plan, and another plan are pipeline.ErrConflict. The time
// is the database's.
func (s *Store) Approve(ctx context.Context, a pipeline.Approval) (p pipeline.Promotion, err error) {
	what := "approve"
	if a.Rejected {
		what = "reject"
	}
	defer func() { err = wrap(err, "%s promotion %.40q", what, a.Promotion) }()
	switch {
	case a.By == "":
		return p, fmt.Errorf("who says so is required: %w", pipeline.ErrInvalid)
	case len(a.Comment) > maxText:
		return p, fmt.Errorf("a comment has at most %d bytes: %w", maxText, pipeline.ErrInvalid)
	}
	return s.change(ctx, a.Promotion, func(tx pgx.Tx, l *lane, j job, now pipeline.Promotion) error {
		if err := canApprove(now, a); err != nil {
			return err
		}
		roles := []string{}
		for _, r := range a.Roles {
			roles = append(roles, clean(r))
		}
		var seq int64
		err := tx.QueryRow(ctx, `
			INSERT INTO approvals (promotion, author, roles, plan, comment, rejected) VALUES ($1, $2, $3, $4, $5, $6) RETURNING seq`,
			string(a.Promotion), clean(a.By), roles, string(a.Plan), clean(a.Comment), a.Rejected).Scan(&seq)
		if err != nil {
			return err
		}
		kind := pipeline.EntryPromotionApproved
		if a.Rejected {
			kind = pipeline.EntryPromotionRejected
		}
		said := data{"environment": now.Environment, "plan": a.Plan, "comment": short(a.Comment)}
		listed(said, "roles", roles)
		err = s.entry(ctx, tx, pipeline.Entry{Kind: kind, Project: now.Project, Actor: a.By, Subject: string(a.Promotion),
			Image: now.Image.Digest, Data: said.json()}, row("approvals", seq))
		if err != nil {
			return err
		}
		if !a.Rejected {
			return s.wake(ctx, tx, j)
		}
		return s.endJob(ctx, tx, l, j, a.By, pipeline.Ending{State: pipeline.StateRefused, Reason: because("rejected", a.By, a.Comment)})
	})
}

func canApprove(p pipeline.Promotion, a pipeline.Approval) error {
	d := p.Decision
	switch {
	case p.State.Final():
		return fmt.Errorf("it is over (%s): %w", p.State, pipeline.ErrConflict)
	case d == nil:
		return fmt.Errorf("its gate has not been asked yet, so there is no plan to speak of: %w", pipeline.ErrConflict)
	case !d.Waiting:
		return fmt.Errorf("its gate has answered already: %w", pipeline.ErrConflict)
	case len(d.Policy.Gate.Approvals) == 0:
		return fmt.Errorf("%s asks for no approvals: %w", p.Environment, pipeline.ErrConflict)
	case d.Plan != a.Plan:
		return fmt.Errorf("its plan is %s now, not %.80q; look at what would change before you say yes to it: %w", d.Plan, a.Plan, pipeline.ErrConflict)
	case slices.ContainsFunc(p.Approvals, func(o pipeline.Approval) bool { return o.By == clean(a.By) && o.Plan == a.Plan }):
		return fmt.Errorf("%s has spoken on this plan already: %w", a.By, pipeline.ErrConflict)
	}
	return nil
}

// CancelPromotion calls off a promotion that has not entered its environment;
// else it is pipeline.ErrConflict.
func (s *Store) CancelPromotion(ctx context.Context, id pipeline.PromotionID, by, reason string) (p pipeline.Promotion, err error) {
	defer func() { err = wrap(err, "cancel promotion %.40q", id) }()
	switch {
	case by == "":
		return p, fmt.Errorf("who calls it off is required: %w", pipeline.ErrInvalid)
	case len(reason) > maxText:
		return p, fmt.Errorf("a reason has at most %d bytes: %w", maxText, pipeline.ErrInvalid)
	}
	return s.change(ctx, id, func(tx pgx.Tx, l *lane, j job, now pipeline.Promotion) error {
		switch {
		case now.State.Final():
			return fmt.Errorf("it is over (%s): %w", now.State, pipeline.ErrConflict)
		case l.holds(id.Job()):
			return fmt.Errorf("it is entering %s at this moment: %w", now.Environment, pipeline.ErrConflict)
		case now.Decision != nil && !now.Decision.Waiting:
			return fmt.Errorf("its gate has answered already: %w", pipeline.ErrConflict)
		}
		return s.endJob(ctx, tx, l, j, by, pipeline.Ending{State: pipeline.StateCancelled, Reason: because("cancelled", by, reason)})
	})
}

func because(what, by, reason string) string {
	if reason == "" {
		return what + " by " + by
	}
	return what + " by " + by + ": " + reason
}

// change runs write with the promotion, its job and its lane locked, and returns
// the promotion as it then is.
func (s *Store) change(ctx context.Context, id pipeline.PromotionID, write func(pgx.Tx, *lane, job, pipeline.Promotion) error) (p pipeline.Promotion, err error) {
	err = s.tx(ctx, func(tx pgx.Tx) error {
		l, err := lockLane(ctx, tx, id.Job())
		if err != nil {
			return err
		}
		if l == nil {
			return fmt.Errorf("no such promotion: %w", pipeline.ErrNotFound)
		}
		j, err := lockJob(ctx, tx, id.Job())
		if err != nil {
			return err
		}
		now, err := getPromotion(ctx, tx, id)
		if err != nil {
			return err
		}
		if err := write(tx, l, j, now); err != nil {
			return err
		}
		p, err = getPromotion(ctx, tx, id)
		return err
	})
	if err != nil {
		return pipeline.Promotion{}, err
	}
	return p, nil
}
