package main

import (
	"log/slog"
	"slices"
	"testing"

	"github.com/dray-project/dray/pipeline/postgres"
	"github.com/dray-project/dray/pipeline/postgres/postgrestest"
)

// TestCheckpointsAreThinned: it is among what a drayd does now and then.
func TestCheckpointsAreThinned(t *testing.T) {
	pool := postgrestest.New(t)
	store, err := postgres.New(t.Context(), postgres.Config{Seal: postgrestest.Seal(), Pool: pool, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	if _, err := pool.Exec(t.Context(), `INSERT INTO log_checkpoints (size, note, signed_at) SELECT n, '', '2020-03-14T09:00:00Z' FROM generate_series(1, 3) n`); err != nil {
		t.Fatal(err)
	}
	p := &parts{settings: &Settings{}, store: store}
	work := p.periodic()
	i := slices.IndexFunc(work, func(w postgres.Periodic) bool { return w.Name == "checkpoints" })
	if i < 0 || work[i].Every <= 0 {
		t.Fatalf("nobody does it: %+v", work)
	}
	if err := work[i].Do(t.Context()); err != nil {
		t.Fatal(err)
	}
	var left, newest int
	if err := pool.QueryRow(t.Context(), `SELECT count(*), max(size) FROM log_checkpoints`).Scan(&left, &newest); err != nil {
		t.Fatal(err)
	}
	if left != 1 || newest != 3 {
		t.Errorf("%d are left, up to size %d", left, newest)
	}
}
