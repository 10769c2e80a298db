package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/ledger"
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

// TestCheckLedgerTriesTheSeal: the line about the evidence log is not all right
// with a seal that drayd would not start with.
func TestCheckLedgerTriesTheSeal(t *testing.T) {
	dir := t.TempDir()
	key, seal := filepath.Join(dir, "log.key"), filepath.Join(dir, "log.seal")
	private, _, err := ledger.GenerateKey("dray.example/log")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(key, private, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		text, path, says string
		mode             os.FileMode
	}{
		{string(pipeline.NewSealKey()), seal, "", 0o600},
		{string(pipeline.NewSealKey()), "", "ledger.seal_file is required", 0o600},
		{string(pipeline.NewSealKey()), seal + "x", "no such file", 0o600},
		{string(pipeline.NewSealKey()), seal, "may be read by everybody", 0o644},
		{"nonsense", seal, "64 hexadecimal digits", 0o600},
	} {
		if err := os.WriteFile(seal, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(seal, c.mode); err != nil {
			t.Fatal(err)
		}
		p := &parts{settings: &Settings{}}
		p.settings.Ledger.KeyFile, p.settings.Ledger.SealFile = key, c.path
		good, err := p.checkLedger(t.Context())
		if c.says == "" && (err != nil || good == "") || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("want %q: %q, %v", c.says, good, err)
		}
	}
}
