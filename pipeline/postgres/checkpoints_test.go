package postgres_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/ledger"
	"github.com/dray-project/dray/pipeline/postgres/postgrestest"
)

func checkpointSizes(t *testing.T, pool *pgxpool.Pool) []int64 {
	t.Helper()
	rows, err := pool.Query(t.Context(), `SELECT size FROM log_checkpoints ORDER BY size`)
	check(t, err)
	sizes, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	check(t, err)
	return sizes
}

// midnight of a UTC day, so many days ago.
func midnight(daysAgo int) time.Time {
	return time.Now().UTC().Truncate(24*time.Hour).AddDate(0, 0, -daysAgo)
}

func TestThinCheckpoints(t *testing.T) {
	const minute = time.Minute
	for name, tc := range map[string]struct {
		signed []time.Time // by size, from 1
		stay   []int64
	}{
		"none":                      {nil, nil},
		"one, however old":          {[]time.Time{midnight(1000)}, []int64{1}},
		"the newest of all":         {[]time.Time{midnight(500), midnight(500).Add(minute), midnight(500).Add(2 * minute)}, []int64{3}},
		"the newest of each day":    {[]time.Time{midnight(60), midnight(60).Add(minute), midnight(59).Add(-minute), midnight(59), midnight(59).Add(minute), midnight(0)}, []int64{3, 5, 6}},
		"all of the last 30 days":   {[]time.Time{midnight(28), midnight(28).Add(minute), midnight(28).Add(2 * minute), midnight(1), midnight(1).Add(minute)}, []int64{1, 2, 3, 4, 5}},
		"a clock that was set back": {[]time.Time{midnight(60).Add(-minute), midnight(60), midnight(60).Add(-minute), midnight(60), midnight(60).Add(minute), midnight(0)}, []int64{1, 2, 3, 5, 6}},
	} {
		t.Run(name, func(t *testing.T) {
			pool := postgrestest.New(t)
			s := newStore(t, pool)
			for i, at := range tc.signed {
				_, err := pool.Exec(t.Context(), `INSERT INTO log_checkpoints (size, note, signed_at) VALUES ($1, '', $2)`, i+1, at)
				check(t, err)
			}
			// Days are those of UTC, wherever the server is.
			_, err := pool.Exec(t.Context(), `DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET timezone = ''Asia/Kathmandu''', current_database()); END $$`)
			check(t, err)
			pool.Reset()
			for range 2 { // again changes nothing
				n, err := s.ThinCheckpoints(t.Context())
				check(t, err)
				if got := checkpointSizes(t, pool); !slices.Equal(got, tc.stay) {
					t.Fatalf("%d removed, and %v stay, want %v", n, got, tc.stay)
				}
			}
		})
	}
}

// TestThinOnTheThirtiethDay: some of a day are old, and others are not yet.
func TestThinOnTheThirtiethDay(t *testing.T) {
	pool := postgrestest.New(t)
	s := newStore(t, pool)
	limit := time.Now().UTC().AddDate(0, 0, -30)
	signed := []time.Time{limit.Add(-10 * time.Minute), limit.Add(-9 * time.Minute), limit.Add(9 * time.Minute), limit.Add(10 * time.Minute)}
	want := []int64{3, 4}
	for i, at := range signed {
		_, err := pool.Exec(t.Context(), `INSERT INTO log_checkpoints (size, note, signed_at) VALUES ($1, '', $2)`, i+1, at)
		check(t, err)
		// Around midnight, an old one is the newest of its day.
		if i < 2 && at.Day() != signed[i+1].Day() {
			want = slices.Insert(want, 0, int64(i+1))
		}
	}
	_, err := s.ThinCheckpoints(t.Context())
	check(t, err)
	if got := checkpointSizes(t, pool); !slices.Equal(got, want) {
		t.Errorf("%v stay, want %v", got, want)
	}
}

// TestThinManyCheckpoints: a year of a checkpoint every ten minutes goes in parts.
func TestThinManyCheckpoints(t *testing.T) {
	pool := postgrestest.New(t)
	s := newStore(t, pool)
	exec := func(sql string, args ...any) {
		t.Helper()
		_, err := pool.Exec(t.Context(), sql, args...)
		check(t, err)
	}
	const days, each = 365, 144
	exec(`INSERT INTO log_checkpoints (size, note, signed_at)
		SELECT 10 * n, 'x', $1::timestamptz + n * interval '10 minutes' FROM generate_series(0, $2::int - 1) n`, midnight(days), days*each)
	exec(`CREATE TABLE thinned (tx bigint NOT NULL)`)
	exec(`CREATE FUNCTION note_thinned() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO thinned VALUES (txid_current()); RETURN NULL; END'`)
	exec(`CREATE TRIGGER note_thinned AFTER DELETE ON log_checkpoints FOR EACH ROW EXECUTE FUNCTION note_thinned()`)

	// What is interrupted is gone on with.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if n, err := s.ThinCheckpoints(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("%d, %v", n, err)
	}
	began := time.Now()
	n, err := s.ThinCheckpoints(t.Context())
	check(t, err)
	t.Logf("%d removed in %s", n, time.Since(began))
	var most, parts int
	check(t, pool.QueryRow(t.Context(), `SELECT max(n), count(*) FROM (SELECT count(*) AS n FROM thinned GROUP BY tx) x`).Scan(&most, &parts))
	if most > 10_000 || parts < 4 {
		t.Errorf("%d in one of %d transactions", most, parts)
	}
	var perDay, old, young int
	check(t, pool.QueryRow(t.Context(), `
		SELECT max(n) FILTER (WHERE day < now() - interval '32 days'), count(*) FILTER (WHERE day < now() - interval '32 days'), min(n) FILTER (WHERE day > now() - interval '29 days')
		FROM (SELECT date_trunc('day', signed_at, 'UTC') AS day, count(*) AS n FROM log_checkpoints GROUP BY 1) x`).Scan(&perDay, &old, &young))
	if perDay != 1 || old < days-34 || young != each {
		t.Errorf("%d a day of %d old days, and %d on young ones", perDay, old, young)
	}
	if n, err = s.ThinCheckpoints(t.Context()); n != 0 || err != nil {
		t.Errorf("again: %d, %v", n, err)
	}
}

// TestThinnedLogVerifies: the log of years goes on, and whoever holds any of its
// checkpoints, kept or not, can compare it with the log and have entries proven.
func TestThinnedLogVerifies(t *testing.T) {
	l := newEvidenceLog(t)
	var signed [][]byte
	for n := range 12 { // four a day, long ago
		l.write(10*n, 10*n+10)
		l.sequence()
		signed = append(signed, l.checkpoint())
	}
	l.exec(`UPDATE log_checkpoints SET signed_at = $1::timestamptz + (size / 10 - 1) / 4 * interval '1 day' + (size / 10 - 1) % 4 * interval '1 hour'`, midnight(100))
	before := l.sequencer(0) // it remembers nothing, and has not sequenced
	n, err := l.store.ThinCheckpoints(t.Context())
	check(t, err)
	if got := checkpointSizes(t, l.pool); n != 9 || !slices.Equal(got, []int64{40, 80, 120}) {
		t.Fatalf("%d removed, and %v stay", n, got)
	}
	verify := func(size int64) {
		t.Helper()
		f, err := l.follow(signed...)
		if err != nil || f.N != size || f.Entries != size {
			t.Fatalf("all entries, from all checkpoints: %+v, %v", f.Checkpoint, err)
		}
		for i, c := range signed {
			old, err := l.keys.Open(c)
			check(t, err)
			if f, err := (ledger.Follow{Source: l, Keys: l.keys, Trusted: [][]byte{c}, From: old.N}).Run(t.Context()); err != nil || f.Consistent != 1 {
				t.Errorf("from the checkpoint of size %d on: %+v, %v", old.N, f, err)
			}
			p, err := l.Prove(t.Context(), 3, old.N)
			check(t, err)
			kept := (i+1)%4 == 0
			if (p.Checkpoint != "") != kept || kept && p.Checkpoint != string(c) || p.Size != old.N {
				t.Errorf("proof for size %d: of size %d with the checkpoint %q", old.N, p.Size, p.Checkpoint)
			}
			if err := tlog.CheckRecord(hashList(p.Proof), old.N, old.Hash, 3, tlog.RecordHash(p.Leaf)); err != nil {
				t.Errorf("proof for size %d: %v", old.N, err)
			}
			if old.N == size {
				continue
			}
			_, proof, err := l.ProveTree(t.Context(), old.N, 0)
			check(t, err)
			if err := tlog.CheckTree(hashList(proof), f.N, f.Hash, old.N, old.Hash); err != nil {
				t.Errorf("consistency from size %d: %v", old.N, err)
			}
		}
	}
	verify(120)
	l.write(120, 130)
	check(t, before.Once(t.Context()))
	verify(130)

	// Somebody who removes all, and not the old ones only, is noticed as ever.
	l.exec(`DELETE FROM log_checkpoints WHERE size > 120`)
	l.write(130, 131)
	if err := before.Once(t.Context()); !errors.Is(err, pipeline.ErrUnverified) {
		t.Errorf("without the newest: %v", err)
	}
}

func hashList(raw [][]byte) []tlog.Hash {
	out := make([]tlog.Hash, len(raw))
	for i := range raw {
		out[i] = tlog.Hash(raw[i])
	}
	return out
}
