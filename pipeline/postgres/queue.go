package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivertype"

	"github.com/dray-project/dray/pipeline"
)

// QueueConfig is what a Queue needs.
type QueueConfig struct {
	Pool  *pgxpool.Pool
	Store *Store
	// Run and Promote do the work. An error that is pipeline.Permanent ends the
	// job; one that wraps pipeline.ErrStale means that another attempt has it;
	// every other is tried again. When ctx is cancelled they should return soon:
	// the job then goes on elsewhere.
	Run     func(context.Context, pipeline.RunID) error
	Promote func(context.Context, pipeline.PromotionID) error
	// MaxAttempts is how often a job is tried before it has failed; 5 if zero.
	// An attempt that was cut short by a shutdown or a dead worker is not counted.
	MaxAttempts int
	// Backoff is the wait after the nth failed attempt, counting from 1. Nil
	// means 1 s, doubled each time, at most a minute.
	Backoff func(attempt int) time.Duration
	// Concurrency is how many runs, and how many promotions, are worked on at a
	// time; 4 if zero.
	Concurrency int
	// Reconcile is called every ReconcileEvery, by one of the queues of a database
	// at a time; the time counts from start to start. Not at all if either is zero.
	Reconcile      func(context.Context) error
	ReconcileEvery time.Duration
	// Periodic is other work that is done now and then, each by one of the queues
	// of a database at a time.
	Periodic []Periodic
	// Log is required.
	Log *slog.Logger
}

// Queue works on the jobs of a database, together with the Queues of other
// processes.
type Queue struct {
	QueueConfig
	client *river.Client[pgx.Tx]
	lease  *lease
	cancel context.CancelFunc
	done   chan struct{}
}

// NewQueue checks the configuration. Nothing is worked on before Start.
func NewQueue(_ context.Context, c QueueConfig) (*Queue, error) {
	switch {
	case c.Pool == nil:
		return nil, errors.New("queue: Pool is required")
	case c.Store == nil:
		return nil, errors.New("queue: Store is required")
	case c.Run == nil || c.Promote == nil:
		return nil, errors.New("queue: Run and Promote are required")
	case c.Log == nil:
		return nil, errors.New("queue: Log is required")
	case c.MaxAttempts < 0 || c.MaxAttempts >= riverMaxAttempts:
		return nil, fmt.Errorf("queue: MaxAttempts is %d, want 1 to %d, or 0 for the default of 5", c.MaxAttempts, riverMaxAttempts-1)
	case c.ReconcileEvery < 0:
		return nil, fmt.Errorf("queue: ReconcileEvery is %s, want more than 0, or 0 for never", c.ReconcileEvery)
	case c.Concurrency < 0 || c.Concurrency > 1000:
		return nil, fmt.Errorf("queue: Concurrency is %d, want 1 to 1000, or 0 for the default of 4", c.Concurrency)
	}
	if c.Reconcile != nil && c.ReconcileEvery > 0 {
		c.Periodic = append(slices.Clone(c.Periodic), Periodic{Name: "reconcile", Every: c.ReconcileEvery, Do: c.Reconcile,
			Failed: "the registries could not all be compared with the record"})
	}
	for _, p := range c.Periodic {
		if p.Name == "" || p.Do == nil || p.Every <= 0 {
			return nil, fmt.Errorf("queue: periodic work %q needs a name, a function and a time above 0", p.Name)
		}
	}
	if c.MaxAttempts == 0 {
		c.MaxAttempts = 5
	}
	if c.Concurrency == 0 {
		c.Concurrency = 4
	}
	if c.Backoff == nil {
		c.Backoff = defaultBackoff
	}
	q := &Queue{QueueConfig: c, lease: newLease(c.Pool.Config().ConnConfig, c.Log)}
	workers := river.NewWorkers()
	river.AddWorker(workers, &worker[runArgs]{queue: q, do: func(ctx context.Context, a runArgs) error {
		return q.Run(ctx, pipeline.RunID(a.Job))
	}})
	river.AddWorker(workers, &worker[promotionArgs]{queue: q, do: func(ctx context.Context, a promotionArgs) error {
		return q.Promote(ctx, pipeline.PromotionID(a.Job))
	}})
	var err error
	q.client, err = river.NewClient(riverpgxv5.New(c.Pool), &river.Config{
		ID:                q.lease.id,
		Schema:            riverSchema,
		Logger:            quiet(c.Log),
		Queues:            map[string]river.QueueConfig{queueRuns: {MaxWorkers: c.Concurrency}, queuePromotions: {MaxWorkers: c.Concurrency}},
		Workers:           workers,
		FetchCooldown:     fetchCooldown,
		FetchPollInterval: fetchPoll,
		MaxAttempts:       riverMaxAttempts,
		RetryPolicy:       retryPolicy(c.Backoff),
	})
	if err != nil {
		return nil, fmt.Errorf("queue: %w", err)
	}
	return q, nil
}

func defaultBackoff(attempt int) time.Duration {
	return min(time.Second<<min(max(attempt-1, 0), 10), time.Minute)
}

type retryPolicy func(attempt int) time.Duration

// NextRetry implements river.ClientRetryPolicy.
func (b retryPolicy) NextRetry(job *rivertype.JobRow) time.Time {
	return time.Now().Add(max(b(job.Attempt), 0))
}

// ID names this worker in the workers table and in River's.
func (q *Queue) ID() string { return q.lease.id }

// Start begins to work. ctx bounds the start only: Stop is what ends it.
func (q *Queue) Start(ctx context.Context) error {
	// The lease comes first: a worker without one counts as dead, and its jobs
	// would be handed to others as fast as it fetches them.
	if err := q.lease.acquire(ctx); err != nil {
		return fmt.Errorf("queue: register worker %s: %w", q.lease.id, err)
	}
	if err := q.client.Start(context.WithoutCancel(ctx)); err != nil {
		q.lease.release()
		return fmt.Errorf("queue: start: %w", err)
	}
	background, cancel := context.WithCancel(context.WithoutCancel(ctx))
	q.cancel, q.done = cancel, make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() { q.lease.keep(background) })
	for _, p := range q.Periodic {
		all.Go(func() { q.periodic(background, p) })
	}
	go func() {
		defer close(q.done)
		all.Wait()
	}()
	return nil
}

// stopTimeout is how long jobs may take to notice that their context is cancelled.
const stopTimeout = 30 * time.Second

// Stop takes on nothing new and lets what is being worked on finish for as long
// as drain. What is left is then cancelled, and goes on in another process at
// the stage where it stood. An error names what did not even end then.
func (q *Queue) Stop(drain time.Duration) error {
	if q.cancel == nil {
		return nil // never started
	}
	err := errors.New("no time to drain")
	if drain > 0 {
		ctx, cancel := context.WithTimeout(context.Background(), drain)
		err = q.client.Stop(ctx)
		cancel()
	}
	if err != nil {
		ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
		err = q.client.StopAndCancel(ctx)
		cancel()
	}
	q.cancel()
	<-q.done
	q.lease.release()
	if err != nil {
		return fmt.Errorf("queue: %d jobs did not stop within %s of being cancelled: %w", q.lease.working(), stopTimeout, err)
	}
	return nil
}
