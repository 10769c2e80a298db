package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

// Kinds of jobs, as the column has them.
const (
	kindRun       = "run"
	kindPromotion = "promotion"
)

// States of a stage's attempt.
const (
	stageStarted   = "started"
	stageSucceeded = "succeeded"
	stageFailed    = "failed"
	stageWaiting   = "waiting"
)

// insertJob writes a queued job, its first event, and the row that brings it to
// a worker: either all of them exist or none.
func (s *Store) insertJob(ctx context.Context, tx pgx.Tx, id pipeline.JobID, kind, project string) error {
	row, err := s.enqueue(ctx, tx, id, kind)
	if err != nil {
		return wrap(err, "enqueue %s", id)
	}
	_, err = tx.Exec(ctx, `INSERT INTO jobs (id, kind, project, queue_job) VALUES ($1, $2, $3, $4)`, string(id), kind, project, row)
	if err != nil {
		return wrap(err, "insert job %s", id)
	}
	return appendEvents(ctx, tx, id, pipeline.JobEvent{Kind: pipeline.KindState, State: string(pipeline.StateQueued)})
}

// job is a job's row, locked.
type job struct {
	id      pipeline.JobID
	kind    string
	project string
	state   pipeline.State
	row     *int64 // of the queue, that counts
}

func lockJob(ctx context.Context, tx pgx.Tx, id pipeline.JobID) (job, error) {
	j := job{id: id}
	err := tx.QueryRow(ctx, `SELECT kind, project, state, queue_job FROM jobs WHERE id = $1 FOR UPDATE`, string(id)).
		Scan(&j.kind, &j.project, (*string)(&j.state), &j.row)
	if errors.Is(err, pgx.ErrNoRows) {
		return j, fmt.Errorf("no such job: %w", pipeline.ErrNotFound)
	}
	return j, err
}

// End implements pipeline.Store.
func (s *Store) End(ctx context.Context, id pipeline.JobID, e pipeline.Ending) error {
	if !e.State.Final() {
		return fmt.Errorf("end %s as %q: not a final state: %w", id, e.State, pipeline.ErrInvalid)
	}
	err := s.tx(ctx, func(tx pgx.Tx) error {
		l, err := lockLane(ctx, tx, id)
		if err != nil {
			return err
		}
		j, err := lockJob(ctx, tx, id)
		if err != nil || j.state.Final() {
			return err
		}
		if err := inSession(ctx, j); err != nil {
			return err
		}
		return s.endJob(ctx, tx, l, j, actorDray, e)
	})
	return wrap(err, "end %s as %s", id, e.State)
}

// endJob ends a job that is locked, with its lane, and open. An attempt that was
// under way will never finish: nothing is left looking as if it were.
func (s *Store) endJob(ctx context.Context, tx pgx.Tx, l *lane, j job, by string, e pipeline.Ending) error {
	id, reason := j.id, clean(e.Reason)
	rows, err := tx.Query(ctx, `
		UPDATE stages SET state = 'failed', reason = $2, finished_at = clock_timestamp()
		WHERE job = $1 AND state = 'started' RETURNING stage, attempt`, string(id), reason)
	if err != nil {
		return err
	}
	events, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (pipeline.JobEvent, error) {
		ev := pipeline.JobEvent{Kind: pipeline.KindStage, State: stageFailed, Message: reason}
		return ev, row.Scan((*string)(&ev.Stage), &ev.Attempt)
	})
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `UPDATE jobs SET state = $2, reason = $3, finished_at = clock_timestamp(), wake_at = NULL WHERE id = $1`,
		string(id), string(e.State), reason)
	if err != nil {
		return err
	}
	if err := s.endedEntry(ctx, tx, l, j, by, e); err != nil {
		return err
	}
	events = append(events, pipeline.JobEvent{Kind: pipeline.KindState, State: string(e.State), Message: reason})
	if err := appendEvents(ctx, tx, id, events...); err != nil || l == nil {
		return err
	}
	if err := retireRow(ctx, tx, j.row); err != nil {
		return err
	}
	return s.leave(ctx, tx, l, id)
}
