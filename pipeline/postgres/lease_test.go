package postgres_test

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/postgres"
	"github.com/dray-project/dray/pipeline/postgres/postgrestest"
)

// workerProcess is a drayd that takes up work and never finishes any.
func workerProcess(dsn string) {
	ctx := context.Background()
	fail := func(err error) {
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	pool, err := postgres.Connect(ctx, dsn, 5)
	fail(err)
	store, err := postgres.New(ctx, postgres.Config{Seal: postgrestest.Seal(), Pool: pool})
	fail(err)
	q, err := postgres.NewQueue(ctx, postgres.QueueConfig{
		Pool: pool, Store: store, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), MaxAttempts: 1,
		Run: func(ctx context.Context, id pipeline.RunID) error {
			_, err := store.StartStage(ctx, id.Job(), pipeline.StageBuild)
			fail(err)
			_, err = store.Lock(ctx, "held by "+string(id))
			fail(err)
			fmt.Println("working")
			select {}
		},
		Promote: func(context.Context, pipeline.PromotionID) error { return nil },
	})
	fail(err)
	fail(q.Start(ctx))
	select {}
}

// process starts such a drayd and waits until it has taken the run.
func (b *bundle) process() *os.Process {
	b.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "DRAY_TEST_WORKER="+b.dsn)
	cmd.Stderr = b.Output()
	out, err := cmd.StdoutPipe()
	check(b, err)
	check(b, cmd.Start())
	b.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "working\n" {
		b.Fatalf("the worker process says %q: %v", line, err)
	}
	return cmd.Process
}

func TestKilledProcess(t *testing.T) {
	b := newBundle(t)
	id := push(t, b.store, "app", "refs/heads/main", "one")
	p := b.process()
	var resumed atomic.Int64
	// An attempt that was charged to the dead one would leave none.
	b.queue(func(ctx context.Context, id pipeline.RunID) error {
		resumed.Store(time.Now().UnixNano())
		unlock, err := b.store.Lock(ctx, "held by "+string(id)) // its locks went with it
		if err != nil {
			return err
		}
		unlock()
		return b.succeed(ctx, id.Job())
	}, func(c *postgres.QueueConfig) { c.MaxAttempts = 1 })
	died := time.Now()
	check(t, p.Kill())
	b.awaitState(id, pipeline.StateSucceeded)
	t.Logf("resumed %s after kill -9", time.Unix(0, resumed.Load()).Sub(died))
	await(t, "the first row is closed, the second completed", func() bool { return b.rows(id.Job()) == "cancelled completed" })
}

func TestStoppedProcessKeepsItsJobs(t *testing.T) {
	b := newBundle(t)
	id := push(t, b.store, "app", "refs/heads/main", "one")
	p := b.process()
	check(t, p.Signal(syscall.SIGSTOP))
	adopted, err := postgres.Adopt(t.Context(), b.pool)
	check(t, err)
	if len(adopted) != 0 || b.rows(id.Job()) != "running" {
		t.Fatalf("jobs %v were taken from a process that is only stopped", adopted)
	}
	check(t, p.Signal(syscall.SIGCONT))
	check(t, p.Kill())
	await(t, "the server notices that the process is dead", func() bool {
		adopted, err := postgres.Adopt(t.Context(), b.pool)
		check(t, err)
		return len(adopted) == 1 && adopted[0] == string(id)
	})
}

// terminate ends the session that says that a worker is alive.
func (b *bundle) terminate(q *postgres.Queue) {
	b.Helper()
	var ended int
	check(b, b.pool.QueryRow(context.Background(), `
		SELECT count(pg_terminate_backend(l.pid)) FROM workers w JOIN pg_locks l
		ON l.locktype = 'advisory' AND l.classid::bigint = (w.lock_key >> 32) & 4294967295 AND l.objid::bigint = w.lock_key & 4294967295
		WHERE w.id = $1`, q.ID()).Scan(&ended))
	if ended != 1 {
		b.Fatalf("ended %d sessions of %s", ended, q.ID())
	}
}

func TestLostLeaseCancelsAndResumes(t *testing.T) {
	b := newBundle(t)
	var tries atomic.Int32
	started, cancelled := make(chan bool, 10), make(chan error, 10)
	q := b.queue(func(ctx context.Context, id pipeline.RunID) error {
		if tries.Add(1) > 1 {
			return b.succeed(ctx, id.Job())
		}
		started <- true
		<-ctx.Done()
		cancelled <- context.Cause(ctx)
		return ctx.Err()
	}, func(c *postgres.QueueConfig) { c.MaxAttempts = 1 })
	id := push(t, b.store, "app", "refs/heads/main", "one")
	<-started
	b.terminate(q)
	if err := <-cancelled; err == nil || err == context.Canceled {
		t.Fatalf("the job's context ended with %v, which does not say why", err)
	}
	b.awaitState(id, pipeline.StateSucceeded)
}

// TestZombieCannotTouchItsSuccessor: a worker that is wrongly taken for dead
// ends its work in its own time. Neither the job nor the row is its any more.
func TestZombieCannotTouchItsSuccessor(t *testing.T) {
	b := newBundle(t)
	one := func(c *postgres.QueueConfig) { c.Concurrency = 1 }
	aStarted, aFinish, bStarted, bFinish := make(chan pipeline.Claim), make(chan bool), make(chan bool), make(chan bool)
	a := b.queue(func(_ context.Context, id pipeline.RunID) error {
		c, err := b.store.StartStage(context.Background(), id.Job(), pipeline.StageTag)
		if err != nil {
			return err
		}
		aStarted <- c
		<-aFinish // deaf to its context
		return nil
	}, one)
	id := push(t, b.store, "app", "refs/heads/main", "one")
	claim := <-aStarted
	b.terminate(a)
	b.queue(func(ctx context.Context, id pipeline.RunID) error {
		c, err := b.store.StartStage(ctx, id.Job(), pipeline.StageTag)
		if err != nil {
			return err
		}
		bStarted <- true
		<-bFinish
		return b.store.RecordTags(ctx, c, nil, nil)
	}, one)
	// The first may have come back to life before anybody looked; then its row
	// is adopted by hand, as by a worker that looked at the wrong moment.
	select {
	case <-bStarted:
	case <-time.After(3 * time.Second):
		_, err := b.pool.Exec(t.Context(), `UPDATE river.river_job SET attempted_by = '{nobody}' WHERE state = 'running'`)
		check(t, err)
		<-bStarted
	}
	if err := b.store.RecordTags(t.Context(), claim, nil, nil); err == nil {
		t.Error("the zombie's claim still counts")
	}
	close(aFinish)
	check(t, a.Stop(time.Minute)) // and its results are written
	if got := b.rows(id.Job()); got != "cancelled running" {
		t.Fatalf("the rows are %q, want the successor's running", got)
	}
	close(bFinish)
	b.awaitState(id, pipeline.StateSucceeded)
}

func TestJobThatKillsWorkersEnds(t *testing.T) {
	b := newBundle(t)
	id := push(t, b.store, "app", "refs/heads/main", "one")
	for i := range postgres.MaxOrphaned {
		_, err := b.pool.Exec(t.Context(), `
			UPDATE river.river_job SET state = 'running', attempt = attempt + 1, attempted_at = now(), attempted_by = '{dead}' WHERE state = 'available'`)
		check(t, err)
		adopted, err := postgres.Adopt(t.Context(), b.pool)
		check(t, err)
		if len(adopted) != 1 {
			t.Fatalf("death %d: adopted %v", i+1, adopted)
		}
	}
	b.queue(func(context.Context, pipeline.RunID) error {
		t.Error("it was given to another worker")
		return nil
	})
	r := b.awaitState(id, pipeline.StateFailed)
	if want := fmt.Sprintf("%d workers died while they had this job; it is not given to another", postgres.MaxOrphaned); r.Reason != want {
		t.Fatalf("failed for %q, want %q", r.Reason, want)
	}
}

// TestRowIsPickedUpAgainAfterARestart: whoever starts alone after everything
// died finds what was left.
func TestRowIsPickedUpAgainAfterARestart(t *testing.T) {
	b := newBundle(t)
	id := push(t, b.store, "app", "refs/heads/main", "one")
	p := b.process()
	check(t, p.Kill())
	_, err := p.Wait()
	check(t, err)
	b.queue(func(ctx context.Context, id pipeline.RunID) error { return b.succeed(ctx, id.Job()) })
	b.awaitState(id, pipeline.StateSucceeded)
}
