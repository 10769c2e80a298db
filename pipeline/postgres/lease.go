package postgres

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// A lease tells the others that a worker is alive, so that a job of one that is
// not is worked on within about two seconds rather than never. (River's own
// rescue waits an hour, and passes over jobs without a timeout, as ours are.)
//
// The worker keeps one connection, outside the pool, whose session holds an
// advisory lock under the worker's key. When the process dies, however it dies,
// the kernel closes its sockets, the server ends the session and the lock is
// free: no clocks are compared and no heartbeat can come late. A process that is
// stopped (SIGSTOP, a laptop's lid, a long pause) keeps its connection, its
// lock, and its jobs. When the whole machine is gone, the keepalives of
// sessionConfig find out within about 11 s.
//
// Each worker looks every second for rows that are running under a worker whose
// lock is free. Such a row is closed and the job gets a new one: not the same
// again, because River lets whoever once fetched a row complete it. A worker
// that was taken for dead and is not can do nothing to the row of its successor;
// and what it writes about the job itself fails with pipeline.ErrStale.
//
// A worker that loses its connection must assume that others have taken its
// jobs: it cancels their contexts, then connects and takes its lock again.
type lease struct {
	id     string
	key    int64
	host   string
	config *pgx.ConnConfig
	log    *slog.Logger

	conn   *pgx.Conn // of keep alone, once it runs
	strays map[int64]time.Time
	ticks  int

	mu     sync.Mutex
	tenure context.Context // cancelled when the lock is lost; nil before it is held
	lose   context.CancelCauseFunc
	active map[int64]bool // river_job ids that are being worked on
}

var errLeaseLost = errors.New("this worker lost its database connection and counts as dead")

const (
	// leaseEvery is how often a worker looks for the jobs of dead ones.
	leaseEvery = time.Second
	// leaseTimeout is how long the database may take to answer before the
	// connection counts as lost. It is about what the server grants, so that both
	// sides come to the same view.
	leaseTimeout = 10 * time.Second
	// housekeepingEvery is how many looks there are to one round of the slow ones.
	housekeepingEvery = 30
)

func newLease(base *pgx.ConnConfig, log *slog.Logger) *lease {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "unknown"
	}
	var random [6]byte
	_, _ = rand.Read(random[:]) // never fails on a supported system
	plain := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' {
			return r
		}
		return -1
	}, strings.ToLower(host))
	id := fmt.Sprintf("%.40s-%d-%s", plain, os.Getpid(), hex.EncodeToString(random[:]))
	return &lease{
		id: id, key: lockKey("worker", id), host: host, config: sessionConfig(base, "drayd worker"), log: log.With("worker", id),
		strays: map[int64]time.Time{}, active: map[int64]bool{},
	}
}

// acquire connects, takes the lock and says so in the workers table.
func (l *lease) acquire(ctx context.Context) error {
	conn, err := pgx.ConnectConfig(ctx, l.config)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	var held bool
	err = conn.QueryRow(ctx, `SELECT pg_try_advisory_lock($1)`, l.key).Scan(&held)
	if err == nil && !held {
		// An earlier session of this worker, whose end the server has not noticed.
		err = errors.New("the lock is held by an earlier session")
	}
	if err == nil {
		_, err = conn.Exec(ctx, `
			INSERT INTO workers (id, lock_key, host, process) VALUES ($1, $2, $3, $4)
			ON CONFLICT (id) DO UPDATE SET started_at = now()`, // young, so that nobody is just forgetting it
			l.id, l.key, clean(l.host), os.Getpid())
	}
	if err != nil {
		closeConn(conn)
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conn = conn
	l.tenure, l.lose = context.WithCancelCause(context.WithoutCancel(ctx))
	return nil
}

// keep looks after the lease, and after the jobs of workers that have none,
// until ctx is done.
func (l *lease) keep(ctx context.Context) {
	tick := time.NewTicker(leaseEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		err := l.look(ctx)
		switch {
		case err == nil || ctx.Err() != nil:
		case !l.conn.IsClosed():
			l.log.WarnContext(ctx, "looking for the jobs of dead workers failed", "error", err)
		default:
			l.log.WarnContext(ctx, "lost the connection that says this worker is alive; its jobs are cancelled", "working", l.working(), "error", err)
			l.lost()
			l.reacquire(ctx)
			continue
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

func (l *lease) reacquire(ctx context.Context) {
	for wait := 50 * time.Millisecond; ctx.Err() == nil; wait = min(wait*2, 2*time.Second) {
		try, cancel := context.WithTimeout(ctx, leaseTimeout)
		err := l.acquire(try)
		cancel()
		if err == nil {
			l.log.InfoContext(ctx, "registered again")
			return
		}
		l.log.DebugContext(ctx, "not registered yet", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// lost cancels the jobs and drops the connection.
func (l *lease) lost() {
	l.mu.Lock()
	lose, conn := l.lose, l.conn
	l.tenure, l.conn = nil, nil
	l.mu.Unlock()
	lose(errLeaseLost)
	closeConn(conn)
}

// release gives up the lease when nothing is worked on any more.
func (l *lease) release() {
	l.mu.Lock()
	conn, lose := l.conn, l.lose
	l.tenure, l.conn = nil, nil
	l.mu.Unlock()
	if conn == nil {
		return
	}
	lose(errLeaseLost)
	ctx, cancel := context.WithTimeout(context.Background(), unlockTimeout)
	defer cancel()
	// If this fails, another worker's housekeeping removes the row.
	if _, err := conn.Exec(ctx, `DELETE FROM workers WHERE id = $1`, l.id); err != nil {
		l.log.DebugContext(ctx, "worker not removed from the table", "error", err)
	}
	closeConn(conn)
}

// enter notes that a row is worked on. The context that it returns is cancelled
// when the lease is lost. ok is false when there is no lease to work under.
func (l *lease) enter(ctx context.Context, row int64) (_ context.Context, leave func(), ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.tenure == nil {
		return ctx, nil, false
	}
	tenure := l.tenure
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(tenure, func() { cancel(context.Cause(tenure)) })
	l.active[row] = true
	return ctx, func() {
		stop()
		cancel(nil)
		l.mu.Lock()
		delete(l.active, row)
		l.mu.Unlock()
	}, true
}

// working is how many rows are worked on.
func (l *lease) working() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.active)
}
