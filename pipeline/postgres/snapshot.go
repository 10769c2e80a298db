package postgres

import (
	"context"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// snapshot is a read-only transaction of a few batches, which goes to the database
// as often as there are batches: it begins with the first of them, and ends with
// the one that finish sends.
type snapshot struct {
	conn *pgxpool.Conn
	// next goes before the next batch.
	next  pgx.Batch
	begun bool
	// planned is how the first of its queries are planned, and mode how those are that
	// come next.
	planned, mode string
}

// How a snapshot's queries are planned: each time for what is asked, or once for a
// connection, where one plan is as good as another. Left to itself, PostgreSQL would
// plan each of them five times on a new connection, which takes longer than the answer.
const (
	planEachTime = "force_custom_plan"
	planOnce     = "force_generic_plan"
)

// snapshot runs fn on one state of the database. When fn returns, the transaction
// is over, whether it has finished it or not.
func (s *Store) snapshot(ctx context.Context, plan string, fn func(*snapshot) error) error {
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	// A connection that is not idle is closed, and not given to anybody else.
	defer conn.Release()
	err = fn(&snapshot{conn: conn, planned: plan, mode: plan})
	if pg := conn.Conn().PgConn(); !pg.IsClosed() && pg.TxStatus() != 'I' {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if _, rerr := conn.Exec(ctx, `ROLLBACK`); err == nil {
			err = rerr
		}
	}
	return err
}

// plan says how the queries behind what is in the batch are planned.
func (t *snapshot) plan(b *pgx.Batch, mode string) {
	if mode != t.mode {
		t.mode = mode
		b.Queue(planBy(mode))
	}
}

// planBy says it for the rest of a transaction.
func planBy(mode string) string { return "SET LOCAL plan_cache_mode = " + mode }

// send runs a batch.
func (t *snapshot) send(ctx context.Context, b *pgx.Batch) error {
	all := &pgx.Batch{}
	if !t.begun {
		t.begun = true
		all.Queue(`BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY`)
		all.Queue(planBy(t.planned))
	}
	all.QueuedQueries = slices.Concat(all.QueuedQueries, t.next.QueuedQueries, b.QueuedQueries)
	t.next.QueuedQueries = nil
	return t.conn.SendBatch(ctx, all).Close()
}

// finish runs the last batch. What is sent after it sees another state of the database.
func (t *snapshot) finish(ctx context.Context, b *pgx.Batch) error {
	b.Queue(`COMMIT`)
	err := t.send(ctx, b)
	t.begun, t.mode = false, t.planned
	return err
}

// collect runs a batch of one query.
func collect[T any](ctx context.Context, t *snapshot, scan pgx.RowToFunc[T], sql string, args ...any) (out []T, err error) {
	b := &pgx.Batch{}
	b.Queue(sql, args...).Query(func(rows pgx.Rows) (err error) {
		out, err = pgx.CollectRows(rows, scan)
		return err
	})
	err = t.send(ctx, b)
	return out, err
}
