package postgres

import (
	"context"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// strayAfter is how long a row may be running in this worker's name without
// being worked on: River marks a row before it calls the worker, and writes the
// result after. A result that could not be written leaves the row behind.
const strayAfter = 15 * time.Second

// alive selects the workers whose lock is held. The lock's 64 bits stand in
// pg_locks as two halves.
const alive = `
	SELECT w.id FROM workers w JOIN pg_locks l ON l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
		AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
		AND l.classid::bigint = (w.lock_key >> 32) & 4294967295 AND l.objid::bigint = w.lock_key & 4294967295`

// adopt closes the rows of dead workers and gives their jobs new ones. The
// attempt that was cut short is not charged, but counted apart.
const adopt = `
	WITH alive AS (` + alive + `), orphan AS (
		SELECT id FROM river.river_job
		WHERE state = 'running' AND queue = ANY($1)
		  AND (attempted_by[array_upper(attempted_by, 1)] NOT IN (SELECT id FROM alive) OR id = ANY($2))
		FOR UPDATE SKIP LOCKED
	), closed AS (
		UPDATE river.river_job r SET state = 'cancelled', finalized_at = now() FROM orphan o WHERE r.id = o.id
		RETURNING r.*
	), fresh AS (
		INSERT INTO river.river_job (args, attempt, errors, kind, max_attempts, metadata, priority, queue, state, tags)
		SELECT args, greatest(attempt - 1, 0), errors, kind, max_attempts,
		       metadata || jsonb_build_object('dray_orphaned', coalesce((metadata ->> 'dray_orphaned')::int, 0) + 1),
		       priority, queue, 'available', tags
		FROM closed
		-- A row that does not count any more has a successor already.
		WHERE EXISTS (SELECT FROM jobs j WHERE j.id = closed.args ->> 'job' AND j.queue_job = closed.id)
		RETURNING id, args ->> 'job' AS job
	)
	UPDATE jobs SET queue_job = fresh.id FROM fresh WHERE jobs.id = fresh.job RETURNING jobs.id`

// due makes rows available whose time comes in a moment. River's elected leader does so
// every few seconds; after that one was killed, its successor takes a while.
const due = `
	UPDATE river.river_job SET state = 'available' WHERE id IN (
		SELECT id FROM river.river_job
		WHERE state IN ('retryable', 'scheduled') AND queue = ANY($1) AND scheduled_at <= now() + $2::interval
		ORDER BY scheduled_at LIMIT 1000 FOR UPDATE SKIP LOCKED)`

// requeue is the second net: a job that is open but whose row has ended, or is
// gone, gets a new row; one that waits, if its time has come. It should find
// nothing, ever. The half minute is for whoever is about to write the job's end.
const requeue = `
	WITH lost AS (
		SELECT j.id, j.kind, r.metadata FROM jobs j LEFT JOIN river.river_job r ON r.id = j.queue_job
		WHERE j.state IN ('queued', 'running', 'waiting') AND (r.id IS NULL OR r.state IN ('completed', 'cancelled', 'discarded'))
		  AND coalesce(r.finalized_at, j.created_at) < now() - interval '30 seconds'
		  AND (j.state <> 'waiting' OR j.wake_at < now() - interval '30 seconds')
		LIMIT 100 FOR UPDATE OF j SKIP LOCKED
	), fresh AS (
		INSERT INTO river.river_job (args, kind, max_attempts, metadata, queue, state)
		SELECT jsonb_build_object('job', id), kind, $1,
		       jsonb_build_object('dray_orphaned', coalesce((metadata ->> 'dray_orphaned')::int, 0) + 1),
		       CASE kind WHEN 'run' THEN $2 ELSE $3 END, 'available'
		FROM lost
		RETURNING id, args ->> 'job' AS job
	)
	UPDATE jobs SET queue_job = fresh.id FROM fresh WHERE jobs.id = fresh.job RETURNING jobs.id`

// forget removes workers that are dead and have nothing left.
const forget = `
	DELETE FROM workers w WHERE w.started_at < now() - interval '1 minute' AND w.id NOT IN (` + alive + `)
		AND NOT EXISTS (SELECT FROM river.river_job WHERE state = 'running' AND attempted_by[array_upper(attempted_by, 1)] = w.id)`

// look does one round on the lease's connection, which shows by the way that it
// still stands.
func (l *lease) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, leaseTimeout)
	defer cancel()
	queues := []string{queueRuns, queuePromotions}
	strays, err := l.findStrays(ctx)
	if err != nil {
		return err
	}
	adopted, err := l.collect(ctx, adopt, queues, strays)
	if err != nil {
		return err
	}
	if len(adopted) > 0 {
		l.log.WarnContext(ctx, "jobs of dead workers are available again", "jobs", adopted)
	}
	if _, err := l.conn.Exec(ctx, due, queues, lookAhead); err != nil {
		return err
	}
	if l.ticks++; l.ticks%housekeepingEvery != 1 { // the first look is one of the slow ones

		return nil
	}
	lost, err := l.collect(ctx, requeue, riverMaxAttempts, queueRuns, queuePromotions)
	if err != nil {
		return err
	}
	if len(lost) > 0 {
		l.log.ErrorContext(ctx, "open jobs had left the queue and were put back", "jobs", lost)
	}
	if _, err = l.conn.Exec(ctx, pruneContents, contentsKept, maxContents, pruneAtOnce); err != nil {
		return err
	}
	_, err = l.conn.Exec(ctx, forget)
	return err
}

func (l *lease) collect(ctx context.Context, sql string, args ...any) ([]string, error) {
	rows, err := l.conn.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// findStrays returns the rows that have been running in this worker's name for
// long without being worked on.
func (l *lease) findStrays(ctx context.Context) ([]int64, error) {
	rows, err := l.conn.Query(ctx, `
		SELECT id FROM river.river_job
		WHERE state = 'running' AND attempted_by[array_upper(attempted_by, 1)] = $1`, l.id)
	if err != nil {
		return nil, err
	}
	mine, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	mine = slices.DeleteFunc(mine, func(id int64) bool { return l.active[id] })
	now := time.Now()
	strays := []int64{}
	for _, id := range mine {
		if since, ok := l.strays[id]; !ok {
			l.strays[id] = now
		} else if now.Sub(since) > strayAfter {
			strays = append(strays, id)
		}
	}
	for id := range l.strays {
		if !slices.Contains(mine, id) {
			delete(l.strays, id)
		}
	}
	return strays, nil
}
