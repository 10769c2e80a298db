package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

// Retry starts a run that failed or was refused over again: a new run of the
// same event and its job, in one transaction. The old run stays as it was.
// While any run of that event is open, asking again gives that one (created is
// false); once one has succeeded, there is nothing to retry: ErrConflict.
func (s *Store) Retry(ctx context.Context, id pipeline.RunID, requestedBy string) (r pipeline.Run, created bool, err error) {
	defer func() { err = wrap(err, "retry") }()
	if requestedBy == "" {
		return r, false, fmt.Errorf("run %.40q: who asks is required: %w", id, pipeline.ErrInvalid)
	}
	err = s.tx(ctx, func(tx pgx.Tx) (err error) {
		r, created, err = s.retry(ctx, tx, id, requestedBy)
		return err
	})
	if err != nil {
		return pipeline.Run{}, false, err
	}
	return r, created, nil
}

func (s *Store) retry(ctx context.Context, tx pgx.Tx, id pipeline.RunID, requestedBy string) (r pipeline.Run, created bool, err error) {
	var first pipeline.RunID
	err = tx.QueryRow(ctx, `SELECT coalesce(first_run, id) FROM runs WHERE id = $1`, string(id)).Scan((*string)(&first))
	if errors.Is(err, pgx.ErrNoRows) {
		return r, false, fmt.Errorf("run %.40q: %w", id, pipeline.ErrNotFound)
	}
	if err != nil {
		return r, false, err
	}
	// One at a time for each event; what follows sees what those before wrote.
	if _, err := lockJob(ctx, tx, first.Job()); err != nil {
		return r, false, err
	}
	asked, err := getRun(ctx, tx, id)
	if err != nil {
		return r, false, err
	}
	if err := asked.Retryable(); err != nil {
		return r, false, err
	}
	rows, err := tx.Query(ctx, selectRuns+`WHERE (r.id = $1 OR r.first_run = $1) AND j.state IN ('queued', 'running', 'succeeded')`, string(first))
	if err != nil {
		return r, false, err
	}
	others, err := pgx.CollectRows(rows, scanRun)
	if err != nil {
		return r, false, err
	}
	if len(others) > 0 { // and then it is one
		if others[0].State.Final() {
			return r, false, others[0].Retryable()
		}
		return others[0], false, nil
	}
	var active bool
	if err := tx.QueryRow(ctx, `SELECT active FROM projects WHERE name = $1`, asked.Project).Scan(&active); err != nil {
		return r, false, err
	}
	if !active {
		return r, false, fmt.Errorf("run %s: its project %s is gone from the settings: %w", id, asked.Project, pipeline.ErrConflict)
	}
	made := pipeline.NewRunID(time.Now())
	_, err = tx.Exec(ctx, `
		INSERT INTO runs (id, ref, event, retry_of, first_run, requested_by)
		SELECT $1, ref, event, id, $3, $4 FROM runs WHERE id = $2`, string(made), string(id), string(first), clean(requestedBy))
	if err != nil {
		return r, false, err
	}
	if err := s.insertJob(ctx, tx, made.Job(), kindRun, asked.Project); err != nil {
		return r, false, err
	}
	if r, err = getRun(ctx, tx, made); err != nil {
		return r, false, err
	}
	return r, true, s.startedEntry(ctx, tx, r, requestedBy)
}

// newestRun returns the newest run of the event that started first: its last
// retry, or first itself.
func newestRun(ctx context.Context, tx pgx.Tx, first pipeline.RunID) (newest pipeline.RunID, err error) {
	err = tx.QueryRow(ctx, `
		SELECT r.id FROM runs r JOIN jobs j ON j.id = r.id
		WHERE r.id = $1 OR r.first_run = $1 ORDER BY j.created_at DESC, r.id DESC LIMIT 1`, string(first)).Scan((*string)(&newest))
	return newest, err
}
