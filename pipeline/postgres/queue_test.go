package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/postgres"
	"github.com/dray-project/dray/pipeline/postgres/postgrestest"
)

// bundle is a database with what works on it.
type bundle struct {
	*testing.T
	dsn   string
	pool  *pgxpool.Pool
	store *postgres.Store
}

func newBundle(t *testing.T) *bundle {
	dsn := postgrestest.DSN(t)
	pool := postgrestest.Pool(t, dsn)
	b := &bundle{t, dsn, pool, newStore(t, pool)}
	syncSample(t, b.store)
	return b
}

// queue starts a worker with a pool of its own, as another process would have.
func (b *bundle) queue(run func(context.Context, pipeline.RunID) error, change ...func(*postgres.QueueConfig)) *postgres.Queue {
	b.Helper()
	pool := postgrestest.Pool(b, b.dsn)
	c := postgres.QueueConfig{
		Pool: pool, Store: newStore(b, pool), Run: run, Log: slog.New(slog.NewTextHandler(b.Output(), nil)),
		Promote:     func(context.Context, pipeline.PromotionID) error { return errors.New("no promotion was expected") },
		MaxAttempts: 3, Concurrency: 2, Backoff: func(int) time.Duration { return time.Millisecond },
	}
	for _, f := range change {
		f(&c)
	}
	q, err := postgres.NewQueue(b.Context(), c)
	check(b, err)
	check(b, q.Start(b.Context()))
	b.Cleanup(func() {
		if err := q.Stop(0); err != nil {
			b.Error(err)
		}
	})
	return q
}

// succeed is work that ends well.
func (b *bundle) succeed(ctx context.Context, job pipeline.JobID) error {
	c, err := b.store.StartStage(ctx, job, pipeline.StageTag)
	if err != nil {
		return err
	}
	return b.store.RecordTags(ctx, c, nil, nil)
}

func (b *bundle) run(id pipeline.RunID) pipeline.Run {
	b.Helper()
	r, err := b.store.Run(context.Background(), id)
	check(b, err)
	return r
}

func (b *bundle) awaitState(id pipeline.RunID, want pipeline.State) pipeline.Run {
	b.Helper()
	var r pipeline.Run
	await(b, fmt.Sprintf("%s is %s", id, want), func() bool { r = b.run(id); return r.State.Final() })
	if r.State != want {
		b.Fatalf("%s is %s (%s), want %s", id, r.State, r.Reason, want)
	}
	return r
}

// rows returns the states of the queue's rows of a job, oldest first.
func (b *bundle) rows(job pipeline.JobID) string {
	b.Helper()
	var states string
	check(b, b.pool.QueryRow(context.Background(), `
		SELECT coalesce(string_agg(state::text, ' ' ORDER BY id), '') FROM river.river_job WHERE args ->> 'job' = $1`, string(job)).Scan(&states))
	return states
}

func TestQueueSharesTheWork(t *testing.T) {
	b := newBundle(t)
	var mu sync.Mutex
	times := map[pipeline.RunID]int{}
	work := func(ctx context.Context, id pipeline.RunID) error {
		mu.Lock()
		times[id]++
		mu.Unlock()
		return b.succeed(ctx, id.Job())
	}
	b.queue(work)
	b.queue(work)
	var ids []pipeline.RunID
	for i := range 30 {
		ids = append(ids, push(t, b.store, "app", "refs/heads/main", fmt.Sprint(i)))
	}
	for _, id := range ids {
		b.awaitState(id, pipeline.StateSucceeded)
		await(t, "the row is completed", func() bool { return b.rows(id.Job()) == "completed" })
	}
	for id, n := range times {
		if n != 1 {
			t.Errorf("%s was worked on %d times", id, n)
		}
	}
}

func TestQueuePromotes(t *testing.T) {
	b := newBundle(t)
	rec := release(t, b.store, "app", "one", nil, nil)
	b.queue(leaveAlone, func(c *postgres.QueueConfig) {
		c.Promote = func(ctx context.Context, id pipeline.PromotionID) error { return b.succeed(ctx, id.Job()) }
	})
	p := promote(t, b.store, rec, "prod", "grace")
	await(t, "the promotion succeeds", func() bool {
		p, err := b.store.Promotion(t.Context(), p.ID)
		check(t, err)
		return p.State == pipeline.StateSucceeded
	})
}

// leaveAlone is for runs that end without the queue.
func leaveAlone(context.Context, pipeline.RunID) error { return nil }

func TestQueueOutcomes(t *testing.T) {
	for _, c := range []struct {
		name   string
		work   func(b *bundle, try int, job pipeline.JobID) error
		state  pipeline.State
		reason string
		tries  int
		rows   string
	}{
		{"permanent", func(*bundle, int, pipeline.JobID) error {
			return pipeline.Permanent(errors.New("the Dockerfile\x00 does not parse"))
		}, pipeline.StateFailed, "the Dockerfile\uFFFD does not parse", 1, "cancelled"},
		{"refused", func(*bundle, int, pipeline.JobID) error {
			return pipeline.Permanent(fmt.Errorf("gate: %w", pipeline.ErrRefused))
		}, pipeline.StateRefused, "gate: refused by policy", 1, "cancelled"},
		{"exhausted", func(_ *bundle, try int, _ pipeline.JobID) error { return fmt.Errorf("no registry, time %d", try) },
			pipeline.StateFailed, "no registry, time 3", 3, "cancelled"},
		{"panic", func(*bundle, int, pipeline.JobID) error { panic("boom") },
			pipeline.StateFailed, "internal error: boom", 3, "cancelled"},
		{"mended", func(b *bundle, try int, job pipeline.JobID) error {
			if try < 3 {
				return errors.New("not yet")
			}
			return b.succeed(context.Background(), job)
		}, pipeline.StateSucceeded, "", 3, "completed"},
		{"own timeout is an error like any other", func(_ *bundle, try int, _ pipeline.JobID) error {
			return fmt.Errorf("push: %w", context.DeadlineExceeded)
		}, pipeline.StateFailed, "push: context deadline exceeded", 3, "cancelled"},
		{"ended by the work itself", func(b *bundle, _ int, job pipeline.JobID) error {
			return b.store.End(context.Background(), job, pipeline.Ending{State: pipeline.StateRefused, Reason: "rule"})
		}, pipeline.StateRefused, "rule", 1, "completed"},
		{"an error after the end changes nothing", func(b *bundle, _ int, job pipeline.JobID) error {
			return errors.Join(b.succeed(context.Background(), job), errors.New("connection lost"))
		}, pipeline.StateSucceeded, "", 1, "completed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBundle(t)
			var tries atomic.Int32
			b.queue(func(_ context.Context, id pipeline.RunID) error { return c.work(b, int(tries.Add(1)), id.Job()) })
			id := push(t, b.store, "app", "refs/heads/main", "one")
			r := b.awaitState(id, c.state)
			await(t, "the row is "+c.rows, func() bool { return b.rows(id.Job()) == c.rows })
			if r.Reason != c.reason || int(tries.Load()) != c.tries {
				t.Fatalf("ended with %q after %d tries, want %q after %d", r.Reason, tries.Load(), c.reason, c.tries)
			}
		})
	}
}

func TestQueueStale(t *testing.T) {
	b := newBundle(t)
	var tries atomic.Int32
	b.queue(func(context.Context, pipeline.RunID) error {
		tries.Add(1)
		return fmt.Errorf("sign: %w", pipeline.ErrStale)
	})
	id := push(t, b.store, "app", "refs/heads/main", "one")
	await(t, "the row is completed", func() bool { return b.rows(id.Job()) == "completed" })
	if r := b.run(id); r.State != pipeline.StateQueued || tries.Load() != 1 {
		t.Fatalf("the run is %s after %d tries; it is the other attempt's to end", r.State, tries.Load())
	}
	// If there is no other attempt after all, the second net catches it, though
	// not before half a minute is over.
	lost, err := postgres.Requeue(t.Context(), b.pool)
	check(t, err)
	if len(lost) != 0 {
		t.Fatalf("%v was put back at once", lost)
	}
	_, err = b.pool.Exec(t.Context(), `UPDATE river.river_job SET finalized_at = finalized_at - interval '1 minute'`)
	check(t, err)
	lost, err = postgres.Requeue(t.Context(), b.pool)
	check(t, err)
	if len(lost) != 1 || lost[0] != string(id) {
		t.Fatalf("put back %v, want %s", lost, id)
	}
	await(t, "it is tried again", func() bool { return tries.Load() == 2 })
}

func TestQueueStopPutsBack(t *testing.T) {
	b := newBundle(t)
	started := make(chan pipeline.RunID, 1)
	once := func(c *postgres.QueueConfig) { c.MaxAttempts = 1 } // so that an attempt that counts is seen
	a := b.queue(func(ctx context.Context, id pipeline.RunID) error {
		started <- id
		<-ctx.Done()
		return pipeline.Permanent(errors.New("solve: canceled")) // what it says then counts for nothing
	}, once)
	id := push(t, b.store, "app", "refs/heads/main", "one")
	<-started
	check(t, a.Stop(0))
	if got := b.rows(id.Job()); got != "available" {
		t.Fatalf("the row is %q after the stop", got)
	}
	var workers int
	check(t, b.pool.QueryRow(t.Context(), `SELECT count(*) FROM workers`).Scan(&workers))
	if workers != 0 {
		t.Fatalf("%d workers are registered after the stop", workers)
	}
	b.queue(func(ctx context.Context, id pipeline.RunID) error { return b.succeed(ctx, id.Job()) }, once)
	b.awaitState(id, pipeline.StateSucceeded)
}

func TestQueueStopDrains(t *testing.T) {
	b := newBundle(t)
	started, finish := make(chan bool, 2), make(chan bool)
	q := b.queue(func(ctx context.Context, id pipeline.RunID) error {
		started <- true
		<-finish
		return b.succeed(ctx, id.Job())
	})
	id := push(t, b.store, "app", "refs/heads/main", "one")
	<-started
	stopped := make(chan error)
	go func() { stopped <- q.Stop(time.Minute) }()
	later := push(t, b.store, "app", "refs/heads/main", "two")
	close(finish)
	check(t, <-stopped)
	if r := b.run(id); r.State != pipeline.StateSucceeded {
		t.Fatalf("the run that was drained is %s", r.State)
	}
	// One that arrived meanwhile was finished as well, or not begun.
	if r := b.run(later); r.State != pipeline.StateSucceeded && r.State != pipeline.StateQueued {
		t.Fatalf("a run that arrived meanwhile is %s", r.State)
	}
}

func TestQueueEndIsDurable(t *testing.T) {
	b := newBundle(t)
	_, err := b.pool.Exec(t.Context(), `
		CREATE TABLE broken (yes boolean);
		CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN IF EXISTS (SELECT FROM broken) THEN RAISE 'disk full'; END IF; RETURN NEW; END $$;
		CREATE TRIGGER refuse BEFORE UPDATE ON jobs FOR EACH ROW WHEN (NEW.state = 'failed') EXECUTE FUNCTION refuse();
		INSERT INTO broken VALUES (true)`)
	check(t, err)
	var tries atomic.Int32
	b.queue(func(context.Context, pipeline.RunID) error {
		tries.Add(1)
		return errors.New("no registry")
	}, func(c *postgres.QueueConfig) { c.MaxAttempts = 1 })
	id := push(t, b.store, "app", "refs/heads/main", "one")
	await(t, "the end could not be written twice", func() bool {
		var attempt int
		check(t, b.pool.QueryRow(t.Context(), `SELECT attempt FROM river.river_job`).Scan(&attempt))
		return attempt > 2
	})
	_, err = b.pool.Exec(t.Context(), `DELETE FROM broken`)
	check(t, err)
	r := b.awaitState(id, pipeline.StateFailed)
	if !strings.Contains(r.Reason, "no registry") || tries.Load() != 1 {
		t.Fatalf("failed for %q after %d tries", r.Reason, tries.Load())
	}
}

func TestQueueConfig(t *testing.T) {
	pool := postgrestest.New(t)
	store := newStore(t, pool)
	good := postgres.QueueConfig{Pool: pool, Store: store, Run: leaveAlone, Promote: func(context.Context, pipeline.PromotionID) error { return nil }, Log: slog.Default()}
	for want, change := range map[string]func(*postgres.QueueConfig){
		"Pool":        func(c *postgres.QueueConfig) { c.Pool = nil },
		"Store":       func(c *postgres.QueueConfig) { c.Store = nil },
		"Promote":     func(c *postgres.QueueConfig) { c.Promote = nil },
		"Log":         func(c *postgres.QueueConfig) { c.Log = nil },
		"MaxAttempts": func(c *postgres.QueueConfig) { c.MaxAttempts = -1 },
		"Concurrency": func(c *postgres.QueueConfig) { c.Concurrency = 1001 },
	} {
		bad := good
		change(&bad)
		if _, err := postgres.NewQueue(t.Context(), bad); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("with a bad %s: %v", want, err)
		}
	}
	q, err := postgres.NewQueue(t.Context(), good)
	check(t, err)
	if err := q.Stop(time.Second); err != nil {
		t.Errorf("stop before start: %v", err)
	}
}

func TestMain(m *testing.M) {
	if dsn := os.Getenv("DRAY_TEST_WORKER"); dsn != "" {
		workerProcess(dsn)
	}
	os.Exit(m.Run())
}
