package postgres

import (
	"context"
	"fmt"
	"runtime/debug"
	"time"
)

// reconcileName names the work in the table.
const reconcileName = "reconcile"

// turn takes a turn at periodic work: not before its time, and not while a
// worker that is alive is still at the one before.
const turn = `
	INSERT INTO periodic (name, started_at, worker) VALUES ($1, clock_timestamp(), $2)
	ON CONFLICT (name) DO UPDATE SET started_at = excluded.started_at, worker = excluded.worker
	WHERE periodic.started_at <= clock_timestamp() - $3::interval
	  AND (periodic.worker IS NULL OR periodic.worker = $2 OR periodic.worker NOT IN (` + alive + `))`

// reconcile calls Reconcile whenever it is this worker's turn, until ctx is done.
func (q *Queue) reconcile(ctx context.Context) {
	if q.Reconcile == nil || q.ReconcileEvery <= 0 {
		return
	}
	// Often enough that a turn comes about when it should, whoever takes it.
	tick := time.NewTicker(min(max(q.ReconcileEvery/10, 10*time.Millisecond), 10*time.Second))
	defer tick.Stop()
	for ctx.Err() == nil {
		if err := q.reconcileOnce(ctx); err != nil && ctx.Err() == nil {
			q.Log.WarnContext(ctx, "the registries could not all be compared with the record", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

func (q *Queue) reconcileOnce(ctx context.Context) error {
	tag, err := q.Pool.Exec(ctx, turn, reconcileName, q.lease.id, q.ReconcileEvery)
	if err != nil || tag.RowsAffected() == 0 {
		return wrap(err, "take a turn")
	}
	defer func() {
		after, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
		defer cancel()
		if _, err := q.Pool.Exec(after, `UPDATE periodic SET worker = NULL WHERE name = $1 AND worker = $2`, reconcileName, q.lease.id); err != nil {
			q.Log.WarnContext(ctx, "the end of a turn was not written; the next one starts when this worker takes it", "error", err)
		}
	}()
	return q.protected(ctx)
}

// protected makes an error of a panic.
func (q *Queue) protected(ctx context.Context) (err error) {
	defer func() {
		if p := recover(); p != nil {
			q.Log.ErrorContext(ctx, "reconciliation panicked", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			err = fmt.Errorf("internal error: %v", p)
		}
	}()
	return q.Reconcile(ctx)
}
