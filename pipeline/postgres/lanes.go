package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

// lane is the way into an environment, locked. Of a run it is nil.
//
// The order of locks is: a lane, then the jobs in it. Whoever locks one job
// only, and no lane, waits for nobody while holding it.
type lane struct {
	project     string
	environment string
	inside      *string
	current     *string
	placed      int64
}

func (l *lane) holds(id pipeline.JobID) bool {
	return l != nil && l.inside != nil && *l.inside == string(id)
}

// lockLane locks the lane of a promotion, before its job.
func lockLane(ctx context.Context, tx pgx.Tx, id pipeline.JobID) (*lane, error) {
	l := &lane{}
	err := tx.QueryRow(ctx, `
		SELECT l.project, l.environment, l.inside, l.current, l.placed FROM lanes l
		WHERE (l.project, l.environment) = (SELECT p.project, p.environment FROM promotions p WHERE p.id = $1)
		FOR NO KEY UPDATE`, string(id)).Scan(&l.project, &l.environment, &l.inside, &l.current, &l.placed)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	return l, wrap(err, "lock the lane of %s", id)
}

func (l *lane) set(ctx context.Context, tx pgx.Tx) error {
	_, err := tx.Exec(ctx, `UPDATE lanes SET inside = $3, current = $4, placed = $5 WHERE project = $1 AND environment = $2`,
		l.project, l.environment, l.inside, l.current, l.placed)
	return err
}

// enter puts a promotion that passed its gate into the lane. If another is
// inside, or if the environment holds something else by now than what the
// promotion was judged against, the error is a *BusyError that names who is to
// blame.
func (s *Store) enter(ctx context.Context, tx pgx.Tx, l *lane, id pipeline.JobID, j pipeline.Judged) error {
	if l.inside != nil && !l.holds(id) {
		return &pipeline.BusyError{Environment: l.environment, By: pipeline.PromotionID(*l.inside)}
	}
	if l.current != nil && j.Diff.To.Digest != "" {
		var holds string
		err := tx.QueryRow(ctx, `SELECT i.digest FROM promotions p JOIN images i ON i.id = p.image WHERE p.id = $1`, *l.current).Scan(&holds)
		if err != nil {
			return err
		}
		if j.Diff.From == nil || string(j.Diff.From.Digest) != holds {
			return &pipeline.BusyError{Environment: l.environment, By: pipeline.PromotionID(*l.current)}
		}
	}
	me := string(id)
	l.inside = &me
	if err := l.set(ctx, tx); err != nil {
		return err
	}
	return s.supersede(ctx, tx, l, id)
}

// older is the order in which promotions were asked for.
const older = `(a.created_at, a.id) < (b.created_at, b.id)`

// supersede ends the promotions into the lane that are older than the one that
// is entering and wait.
func (s *Store) supersede(ctx context.Context, tx pgx.Tx, l *lane, by pipeline.JobID) error {
	rows, err := tx.Query(ctx, `
		SELECT a.id FROM promotions p JOIN jobs a ON a.id = p.id, jobs b
		WHERE p.project = $1 AND p.environment = $2 AND p.placed IS NULL AND a.state = 'waiting' AND b.id = $3 AND `+older+`
		ORDER BY a.id`, l.project, l.environment, string(by))
	if err != nil {
		return err
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, id := range ids {
		// It may have been taken up just now: then it does not wait, and learns of
		// us when it wants to enter.
		j, err := lockJob(ctx, tx, pipeline.JobID(id))
		if err != nil {
			return err
		}
		if j.state != pipeline.StateWaiting {
			continue
		}
		if err := s.endJob(ctx, tx, l, j, actorDray, overtaken(l.environment, pipeline.PromotionID(by))); err != nil {
			return err
		}
	}
	return nil
}

func overtaken(environment string, by pipeline.PromotionID) pipeline.Ending {
	return pipeline.Ending{State: pipeline.StateSuperseded, Reason: fmt.Sprintf("promotion %s is newer and entered %s first", by, environment)}
}

// leave frees the lane if the job that ends is inside, and has those looked at
// that wait for it.
func (s *Store) leave(ctx context.Context, tx pgx.Tx, l *lane, id pipeline.JobID) error {
	if !l.holds(id) {
		return nil // nobody waits behind it
	}
	l.inside = nil
	if err := l.set(ctx, tx); err != nil {
		return err
	}
	rows, err := tx.Query(ctx, `SELECT id FROM promotions WHERE behind = $1 ORDER BY id`, string(id))
	if err != nil {
		return err
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, waiting := range ids {
		j, err := lockJob(ctx, tx, pipeline.JobID(waiting))
		if err != nil {
			return err
		}
		if err := s.wake(ctx, tx, j); err != nil {
			return err
		}
	}
	return nil
}

// wake has a promotion looked at again: at once if it waits, and if it is being
// looked at, as soon as it comes to wait. The job must be locked.
func (s *Store) wake(ctx context.Context, tx pgx.Tx, j job) error {
	switch {
	case j.state == pipeline.StateWaiting:
		return s.enqueueNow(ctx, tx, j)
	case j.state.Final():
		return nil
	}
	_, err := tx.Exec(ctx, `UPDATE promotions SET nudged = true WHERE id = $1`, string(j.id))
	return err
}
