package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

// A session is the work on one row of the queue. A job has many rows in its
// life, one after the other: one for each time that it is taken up. Only the
// newest counts, whose id stands in jobs.queue_job; every writer of that column
// makes the row that it names. So whoever has read a job, and was overtaken
// since by somebody who had reason to have it looked at again, cannot start a
// stage with what they read, nor end the job.
type sessionKey struct{}

func withSession(ctx context.Context, row int64) context.Context {
	return context.WithValue(ctx, sessionKey{}, row)
}

// inSession returns ErrStale if ctx belongs to a row that does not count any
// more. The job must be locked. What is done outside the queue is not asked.
func inSession(ctx context.Context, j job) error {
	row, ok := ctx.Value(sessionKey{}).(int64)
	if !ok || (j.row != nil && *j.row == row) {
		return nil
	}
	return fmt.Errorf("row %d of the queue does not stand for %s any more: %w", row, j.id, pipeline.ErrStale)
}

// enqueueNow makes a row that brings a job to a worker at once the one that
// counts. The job must be locked.
func (s *Store) enqueueNow(ctx context.Context, tx pgx.Tx, j job) error {
	row, err := s.enqueue(ctx, tx, j.id, j.kind)
	if err != nil {
		return wrap(err, "enqueue %s", j.id)
	}
	if err := retireRow(ctx, tx, j.row); err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `UPDATE jobs SET queue_job = $2, wake_at = CASE WHEN state = 'waiting' THEN clock_timestamp() END WHERE id = $1`,
		string(j.id), row)
	return err
}

// retireRow cancels a row that nobody has fetched yet. One that somebody has is
// theirs to complete.
func retireRow(ctx context.Context, tx pgx.Tx, row *int64) error {
	if row == nil {
		return nil
	}
	_, err := tx.Exec(ctx, `
		UPDATE river.river_job SET state = 'cancelled', finalized_at = now()
		WHERE id IN (SELECT id FROM river.river_job WHERE id = $1 AND state IN ('scheduled', 'available', 'retryable') FOR UPDATE SKIP LOCKED)`, *row)
	return wrap(err, "retire row %d of the queue", *row)
}
