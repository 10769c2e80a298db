package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

// attempt is the newest attempt at a stage; zero when there is none.
type attempt struct {
	number  int
	state   string
	outcome json.RawMessage
}

// newestAttempt must be called with the job locked, or what it says may be old
// before it is read. It is a statement of its own for that reason: it has to
// see what was committed while the lock was waited for.
func newestAttempt(ctx context.Context, tx pgx.Tx, id pipeline.JobID, stage pipeline.Stage) (a attempt, err error) {
	err = tx.QueryRow(ctx, `
		SELECT attempt, state, outcome FROM stages WHERE job = $1 AND stage = $2 ORDER BY attempt DESC LIMIT 1`,
		string(id), string(stage)).Scan(&a.number, &a.state, &a.outcome)
	if errors.Is(err, pgx.ErrNoRows) {
		return attempt{}, nil
	}
	return a, err
}

// StartStage implements pipeline.Store.
func (s *Store) StartStage(ctx context.Context, id pipeline.JobID, stage pipeline.Stage) (c pipeline.Claim, err error) {
	err = s.tx(ctx, func(tx pgx.Tx) error {
		j, err := lockJob(ctx, tx, id)
		if err != nil {
			return err
		}
		if j.state.Final() {
			return fmt.Errorf("the job is over (%s): %w", j.state, pipeline.ErrConflict)
		}
		if err := inSession(ctx, j); err != nil {
			return err
		}
		last, err := newestAttempt(ctx, tx, id, stage)
		if err != nil {
			return err
		}
		if last.state == stageSucceeded {
			c = pipeline.Claim{Job: id, Stage: stage, Attempt: last.number, Done: true, Outcome: last.outcome}
			return nil
		}
		c = pipeline.Claim{Job: id, Stage: stage, Attempt: last.number + 1}
		return startAttempt(ctx, tx, j, c, last)
	})
	if err != nil {
		return pipeline.Claim{}, wrap(err, "start %s of %s", stage, id)
	}
	return c, nil
}

func startAttempt(ctx context.Context, tx pgx.Tx, j job, c pipeline.Claim, last attempt) error {
	var events []pipeline.JobEvent
	if j.state != pipeline.StateRunning {
		_, err := tx.Exec(ctx, `
			UPDATE jobs SET state = 'running', reason = '', wake_at = NULL, started_at = coalesce(started_at, clock_timestamp())
			WHERE id = $1`, string(c.Job))
		if err != nil {
			return err
		}
		events = append(events, pipeline.JobEvent{Kind: pipeline.KindState, State: string(pipeline.StateRunning)})
	}
	if last.state == stageStarted {
		_, err := tx.Exec(ctx, `
			UPDATE stages SET state = 'failed', reason = $4, finished_at = clock_timestamp()
			WHERE job = $1 AND stage = $2 AND attempt = $3`,
			string(c.Job), string(c.Stage), last.number, fmt.Sprintf("superseded by attempt %d", c.Attempt))
		if err != nil {
			return err
		}
	}
	_, err := tx.Exec(ctx, `INSERT INTO stages (job, stage, attempt, started_at) VALUES ($1, $2, $3, clock_timestamp())`,
		string(c.Job), string(c.Stage), c.Attempt)
	if err != nil {
		return err
	}
	events = append(events, stageEvent(c, stageStarted, ""))
	return appendEvents(ctx, tx, c.Job, events...)
}

func stageEvent(c pipeline.Claim, state, message string) pipeline.JobEvent {
	return pipeline.JobEvent{Kind: pipeline.KindStage, Stage: c.Stage, Attempt: c.Attempt, State: state, Message: message}
}

func stale(c pipeline.Claim) error {
	return fmt.Errorf("attempt %d at %s of %s does not count any more: %w", c.Attempt, c.Stage, c.Job, pipeline.ErrStale)
}

// Holds implements pipeline.Store.
func (s *Store) Holds(ctx context.Context, c pipeline.Claim) error {
	var ok bool
	err := s.pool.QueryRow(ctx, `
		SELECT EXISTS (
			SELECT FROM stages s JOIN jobs j ON j.id = s.job
			WHERE s.job = $1 AND s.stage = $2 AND s.attempt = $3 AND s.state = 'started' AND j.state = 'running')`,
		string(c.Job), string(c.Stage), c.Attempt).Scan(&ok)
	if err != nil {
		return wrap(err, "ask for attempt %d at %s of %s", c.Attempt, c.Stage, c.Job)
	}
	if !ok {
		return stale(c)
	}
	return nil
}

// claimed runs write in a transaction in which the claim holds: the job is
// locked, so nobody can supersede it before the commit.
func (s *Store) claimed(ctx context.Context, c pipeline.Claim, what string, write func(pgx.Tx, job) error) error {
	err := s.tx(ctx, func(tx pgx.Tx) error { return ifHeld(ctx, tx, c, func(j job) error { return write(tx, j) }) })
	return wrap(err, "%s (%s of %s)", what, c.Stage, c.Job)
}

// claimedInLane is claimed, with the promotion's lane locked as well.
func (s *Store) claimedInLane(ctx context.Context, c pipeline.Claim, what string, write func(pgx.Tx, *lane, job) error) error {
	err := s.tx(ctx, func(tx pgx.Tx) error {
		l, err := lockLane(ctx, tx, c.Job)
		if err != nil {
			return err
		}
		return ifHeld(ctx, tx, c, func(j job) error { return write(tx, l, j) })
	})
	return wrap(err, "%s (%s of %s)", what, c.Stage, c.Job)
}

// onlyPromotions is what a write answers that is about promotions.
func onlyPromotions(l *lane, id pipeline.JobID) error {
	if l == nil {
		return fmt.Errorf("%s is no promotion: %w", id, pipeline.ErrInvalid)
	}
	return nil
}

// ifHeld locks the job and runs write if the claim holds.
func ifHeld(ctx context.Context, tx pgx.Tx, c pipeline.Claim, write func(job) error) error {
	j, err := lockJob(ctx, tx, c.Job)
	if err != nil {
		return err
	}
	last, err := newestAttempt(ctx, tx, c.Job, c.Stage)
	if err != nil {
		return err
	}
	if j.state.Final() || last.number != c.Attempt || last.state != stageStarted {
		return stale(c)
	}
	return write(j)
}

// finished runs write like claimed, and finishes the stage with the outcome.
func (s *Store) finished(ctx context.Context, c pipeline.Claim, what string, outcome any, write func(pgx.Tx, job) error) error {
	doc, err := document(outcome)
	if err != nil {
		return wrap(err, "%s (%s of %s): outcome", what, c.Stage, c.Job)
	}
	return s.claimed(ctx, c, what, func(tx pgx.Tx, j job) error {
		if write != nil {
			if err := write(tx, j); err != nil {
				return err
			}
		}
		if c.Stage == pipeline.StageGate {
			if err := s.judgedEntries(ctx, tx, j, c, doc); err != nil {
				return err
			}
		}
		return succeed(ctx, tx, c, doc)
	})
}

func succeed(ctx context.Context, tx pgx.Tx, c pipeline.Claim, outcome json.RawMessage) error {
	_, err := tx.Exec(ctx, `
		UPDATE stages SET state = 'succeeded', outcome = $4, finished_at = clock_timestamp()
		WHERE job = $1 AND stage = $2 AND attempt = $3`, string(c.Job), string(c.Stage), c.Attempt, outcome)
	if err != nil {
		return err
	}
	return appendEvents(ctx, tx, c.Job, stageEvent(c, stageSucceeded, ""))
}

// FinishStage implements pipeline.Store.
func (s *Store) FinishStage(ctx context.Context, c pipeline.Claim, outcome json.RawMessage) error {
	return s.finished(ctx, c, "finish", outcome, nil)
}

// FailStage implements pipeline.Store.
func (s *Store) FailStage(ctx context.Context, c pipeline.Claim, reason string) error {
	reason = clean(reason)
	return s.claimed(ctx, c, "fail", func(tx pgx.Tx, _ job) error {
		_, err := tx.Exec(ctx, `
			UPDATE stages SET state = 'failed', reason = $4, finished_at = clock_timestamp()
			WHERE job = $1 AND stage = $2 AND attempt = $3`, string(c.Job), string(c.Stage), c.Attempt, reason)
		if err != nil {
			return err
		}
		return appendEvents(ctx, tx, c.Job, stageEvent(c, stageFailed, reason))
	})
}

// stageStatuses returns the newest attempt at each stage, in the stages' order.
func stageStatuses(ctx context.Context, q querier, id pipeline.JobID, order []pipeline.Stage) ([]pipeline.StageStatus, error) {
	rows, err := q.Query(ctx, `
		SELECT DISTINCT ON (stage) stage, attempt, state, reason, started_at, finished_at
		FROM stages WHERE job = $1 ORDER BY stage, attempt DESC`, string(id))
	if err != nil {
		return nil, err
	}
	out, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (pipeline.StageStatus, error) {
		var st pipeline.StageStatus
		err := row.Scan((*string)(&st.Stage), &st.Attempt, &st.State, &st.Reason, &st.StartedAt, &st.FinishedAt)
		st.StartedAt, st.FinishedAt = st.StartedAt.UTC(), utc(st.FinishedAt)
		return st, err
	})
	slices.SortStableFunc(out, func(a, b pipeline.StageStatus) int {
		return slices.Index(order, a.Stage) - slices.Index(order, b.Stage)
	})
	return notNil(out), err
}

// stageOutcome reads what a stage recorded into v; ok is false if it has not
// succeeded.
func stageOutcome(ctx context.Context, q querier, id pipeline.JobID, stage pipeline.Stage, v any) (ok bool, err error) {
	var doc json.RawMessage
	err = q.QueryRow(ctx, `SELECT outcome FROM stages WHERE job = $1 AND stage = $2 AND state = 'succeeded'`,
		string(id), string(stage)).Scan(&doc)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, wrap(json.Unmarshal(doc, v), "read the outcome of %s", stage)
}
