package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"

	"github.com/dray-project/dray/pipeline"
)

// endTimeout bounds writing the end of a job.
const endTimeout = 30 * time.Second

// maxOrphaned is how many workers a job may lose before it is taken to be what
// kills them. Without a bound, one that exhausts the memory of its process
// would take down one drayd after another for ever.
const maxOrphaned = 10

// worker does one kind of job.
type worker[A interface {
	river.JobArgs
	job() pipeline.JobID
}] struct {
	river.WorkerDefaults[A]
	queue *Queue
	do    func(context.Context, A) error
}

func (a runArgs) job() pipeline.JobID       { return a.Job }
func (a promotionArgs) job() pipeline.JobID { return a.Job }

// Timeout is none: stages bound themselves, and a build may take hours.
func (w *worker[A]) Timeout(*river.Job[A]) time.Duration { return -1 }

// Work does a job and says what becomes of its row. The row only brings the job
// to a worker: what is true of the job stands in the jobs table, and is written
// there first. A crash in between leaves a row that finds its job ended.
func (w *worker[A]) Work(ctx context.Context, row *river.Job[A]) error {
	q, id := w.queue, row.Args.job()
	ctx, leave, ok := q.lease.enter(ctx, row.ID)
	if !ok {
		// Counted as dead at this moment: others may have taken the job already.
		return river.JobSnooze(time.Second)
	}
	defer leave()
	log := q.Log.With("job", id, "try", row.Attempt)

	ctx = withSession(ctx, row.ID)
	state, current, err := q.Store.jobState(ctx, id, row.ID)
	switch {
	case errors.Is(err, pipeline.ErrNotFound):
		log.ErrorContext(ctx, "queued job does not exist", "error", err)
		return river.JobCancel(forRiver(err))
	case err != nil:
		return w.retry(ctx, err)
	case state.Final(), !current:
		return nil
	}
	if n := orphaned(row.Metadata); n >= maxOrphaned {
		return w.end(ctx, id, pipeline.Permanent(fmt.Errorf("%d workers died while they had this job; it is not given to another", n)))
	}
	if row.Attempt > q.MaxAttempts { // the last attempt's end could not be written
		return w.end(ctx, id, lastError(row))
	}

	err = w.protect(ctx, row.Args, func(p any, stack []byte) {
		log.ErrorContext(ctx, "job panicked", "panic", fmt.Sprint(p), "stack", string(stack))
	})
	switch {
	case err == nil:
		return nil
	case errors.Is(err, pipeline.ErrStale):
		log.InfoContext(ctx, "another attempt has taken over", "error", err)
		return nil
	case ctx.Err() != nil:
		// Whatever the error says, it may say it because of the cancellation.
		log.InfoContext(ctx, "job put back", "cause", context.Cause(ctx), "error", err)
		return river.JobSnooze(0)
	case pipeline.IsPermanent(err), row.Attempt >= q.MaxAttempts:
		log.WarnContext(ctx, "job failed", "permanent", pipeline.IsPermanent(err), "error", err)
		return w.end(ctx, id, err)
	default:
		log.WarnContext(ctx, "job will be tried again", "in", q.Backoff(row.Attempt), "error", err)
		return forRiver(err)
	}
}

// retry puts a job back that this worker could not even look at.
func (w *worker[A]) retry(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return river.JobSnooze(0)
	}
	return forRiver(err)
}

// forRiver is an error that River can store. It writes the results of many jobs
// in one statement, which a single NUL in one message would fail for all.
func forRiver(err error) error { return errors.New(clean(err.Error())) }

// protect makes an error of a panic.
func (w *worker[A]) protect(ctx context.Context, args A, report func(p any, stack []byte)) (err error) {
	defer func() {
		if p := recover(); p != nil {
			report(p, debug.Stack())
			err = fmt.Errorf("internal error: %v", p)
		}
	}()
	return w.do(ctx, args)
}

// end writes the end of a job, and only then gives up its row. If the end
// cannot be written, the row comes back.
func (w *worker[A]) end(ctx context.Context, id pipeline.JobID, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	e := pipeline.Ending{State: pipeline.StateFailed, Reason: cause.Error()}
	if errors.Is(cause, pipeline.ErrRefused) {
		e.State = pipeline.StateRefused
	}
	if err := w.queue.Store.End(ctx, id, e); errors.Is(err, pipeline.ErrStale) {
		return nil // another row stands for the job
	} else if err != nil {
		w.queue.Log.ErrorContext(ctx, "the end of a job could not be written", "job", id, "end", e.State, "reason", e.Reason, "error", err)
		return forRiver(cause)
	}
	return river.JobCancel(forRiver(cause))
}

func lastError[A river.JobArgs](row *river.Job[A]) error {
	if n := len(row.Errors); n > 0 {
		return errors.New(row.Errors[n-1].Error)
	}
	return fmt.Errorf("failed %d times", row.Attempt-1)
}

// orphaned is how many workers of the job have died.
func orphaned(metadata []byte) int {
	var m struct {
		Orphaned int `json:"dray_orphaned"`
	}
	_ = json.Unmarshal(metadata, &m) // without the field it is none
	return m.Orphaned
}

// jobState returns the job's state, and whether the row of the queue is the one
// that counts.
func (s *Store) jobState(ctx context.Context, id pipeline.JobID, row int64) (state pipeline.State, current bool, err error) {
	err = s.pool.QueryRow(ctx, `SELECT state, queue_job IS NOT DISTINCT FROM $2 FROM jobs WHERE id = $1`, string(id), row).Scan((*string)(&state), &current)
	if errors.Is(err, pgx.ErrNoRows) {
		err = pipeline.ErrNotFound
	}
	return state, current, wrap(err, "state of job %s", id)
}
