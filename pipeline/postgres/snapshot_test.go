package postgres_test

import (
	"context"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/dray-project/dray/pipeline/postgres"
	"github.com/dray-project/dray/pipeline/postgres/postgrestest"
)

// TestSnapshotLeavesItsConnectionIdle: however reading ends, the connection goes
// back without a transaction, and the next one gets a state of its own.
func TestSnapshotLeavesItsConnectionIdle(t *testing.T) {
	watch := postgrestest.New(t)
	config := watch.Config()
	config.MaxConns = 1
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	check(t, err)
	t.Cleanup(pool.Close)
	s := newStore(t, pool)
	errOwn := errors.New("an error of the caller's")
	for name, c := range map[string]struct {
		query string
		fail  error
		want  func(error) bool
	}{
		"to its end":               {"SELECT 1", nil, func(err error) bool { return err == nil }},
		"the caller gives up":      {"SELECT 1", errOwn, func(err error) bool { return errors.Is(err, errOwn) }},
		"the database refuses":     {"SELECT 1/0", nil, func(err error) bool { return err != nil }},
		"it would write something": {"INSERT INTO paths (key, path) VALUES (sha256('1'), '') RETURNING 1", nil, func(err error) bool { return err != nil }},
	} {
		for _, finish := range []bool{true, false} {
			got, err := postgres.Snapshot(t.Context(), s, c.query, c.fail, finish)
			if !c.want(err) {
				t.Errorf("%s: %v", name, err)
			}
			if err == nil && len(got) > 0 && got[0] != "repeatable read, on" {
				t.Errorf("%s: it reads in %q", name, got[0])
			}
			conn, err := pool.Acquire(t.Context())
			check(t, err)
			var isolation string
			check(t, conn.QueryRow(t.Context(), `SHOW transaction_isolation`).Scan(&isolation))
			if status := conn.Conn().PgConn().TxStatus(); status != 'I' || isolation != "read committed" {
				t.Errorf("%s leaves its connection in %c, %s", name, status, isolation)
			}
			conn.Release()
		}
	}
	if n := pool.Stat().NewConnsCount(); n != 1 {
		t.Errorf("%d connections were made", n)
	}

	// One that hangs is given up, and its connection with it.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := postgres.Snapshot(ctx, s, "SELECT 1", nil, true); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled before: %v", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := postgres.Snapshot(ctx, s, "SELECT pg_sleep(600)::text = ''", nil, true)
		done <- err
	}()
	await(t, "the query", func() (runs bool) {
		check(t, watch.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(600)%' AND state = 'active' AND datname = current_database())`).Scan(&runs))
		return runs
	})
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled on the way: %v", err)
	}
	if _, err := postgres.Snapshot(t.Context(), s, "SELECT 1", nil, true); err != nil {
		t.Errorf("after that: %v", err)
	}
}
