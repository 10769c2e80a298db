package postgres_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/dray-project/dray/pipeline/postgres"
)

// sequence gives the entries their places, in the order in which they were
// numbered, and returns how many there are.
func sequence(t testing.TB, pool *pgxpool.Pool) (size int64) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	_, err := pool.Exec(ctx, `
		UPDATE log_entries e SET index = n.index FROM (
			SELECT id, (SELECT coalesce(max(index), -1) FROM log_entries) + row_number() OVER (ORDER BY id) AS index
			FROM log_entries WHERE index IS NULL) n
		WHERE n.id = e.id`)
	check(t, err)
	check(t, pool.QueryRow(ctx, `SELECT count(*) FROM log_entries`).Scan(&size))
	return size
}

// meddle changes protected rows behind Dray's back; the log is not expected to
// be intact at the end of the test.
func meddle(t testing.TB, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	_, err := pool.Exec(t.Context(), `CREATE TABLE IF NOT EXISTS meddled ()`)
	check(t, err)
	_, err = pool.Exec(t.Context(), sql, args...)
	check(t, err)
}

// intact checks that the log says of every row what it is. Every test with a
// store ends with it.
func intact(t testing.TB, s *postgres.Store, pool *pgxpool.Pool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
	defer cancel()
	var meddled bool
	if check(t, pool.QueryRow(ctx, `SELECT to_regclass('meddled') IS NOT NULL`).Scan(&meddled)); meddled {
		return
	}
	found, err := s.CheckRows(ctx, 0, sequence(t, pool))
	check(t, err)
	for i, f := range found {
		if i == 20 {
			t.Errorf("and %d more", len(found)-i)
			break
		}
		t.Errorf("the log and the database differ: %+v", f)
	}
}
