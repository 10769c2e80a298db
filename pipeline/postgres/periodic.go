package postgres

import (
	"context"
	"fmt"
	"runtime/debug"
	"time"
)

// Periodic is work that one of the queues of a database does at a time.
type Periodic struct {
	// Name under which turns are taken: the same in every process.
	Name string
	// Every is counted from start to start.
	Every time.Duration
	Do    func(context.Context) error
	// Failed is what the log says when Do fails.
	Failed string
}

// turn takes a turn at periodic work: not before its time, and not while a
// worker that is alive is still at the one before.
const turn = `
	INSERT INTO periodic (name, started_at, worker) VALUES ($1, clock_timestamp(), $2)
	ON CONFLICT (name) DO UPDATE SET started_at = excluded.started_at, worker = excluded.worker
	WHERE periodic.started_at <= clock_timestamp() - $3::interval
	  AND (periodic.worker IS NULL OR periodic.worker = $2 OR periodic.worker NOT IN (` + alive + `))`

// periodic does the work whenever it is this worker's turn, until ctx is done.
func (q *Queue) periodic(ctx context.Context, p Periodic) {
	// Often enough that a turn comes about when it should, whoever takes it.
	tick := time.NewTicker(min(max(p.Every/10, 10*time.Millisecond), 10*time.Second))
	defer tick.Stop()
	for ctx.Err() == nil {
		if err := q.once(ctx, p); err != nil && ctx.Err() == nil {
			q.Log.WarnContext(ctx, p.Failed, "work", p.Name, "error", err)
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

func (q *Queue) once(ctx context.Context, p Periodic) error {
	tag, err := q.Pool.Exec(ctx, turn, p.Name, q.lease.id, p.Every)
	if err != nil || tag.RowsAffected() == 0 {
		return wrap(err, "take a turn")
	}
	defer func() {
		after, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
		defer cancel()
		if _, err := q.Pool.Exec(after, `UPDATE periodic SET worker = NULL WHERE name = $1 AND worker = $2`, p.Name, q.lease.id); err != nil {
			q.Log.WarnContext(ctx, "the end of a turn was not written; the next one starts when this worker takes it", "work", p.Name, "error", err)
		}
	}()
	return q.protected(ctx, p)
}

// protected makes an error of a panic.
func (q *Queue) protected(ctx context.Context, p Periodic) (err error) {
	defer func() {
		if v := recover(); v != nil {
			q.Log.ErrorContext(ctx, "periodic work panicked", "work", p.Name, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
			err = fmt.Errorf("internal error: %v", v)
		}
	}()
	return p.Do(ctx)
}
