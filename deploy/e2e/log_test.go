//go:build linux

package e2e

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/jackc/pgx/v5"
)

// TestEvidenceLog: what happens is in the log, an auditor verifies it, and what
// somebody changes with SQL is named. What they put back is right again.
func TestEvidenceLog(t *testing.T) {
	need(t)
	w := repository(t, "logged", map[string]string{"Dockerfile": "FROM {{base/busybox}}\nUSER 1000\nCOPY README.md /\n"})
	run := released(t, w, "v1.0.0")
	state := filepath.Join(t.TempDir(), "state")
	verify := []string{"log", "verify", "--key", at.LogKey, "--state", state}
	// Its entries have their places within a second of the end of the run.
	for until := time.Now().Add(10 * time.Second); ; {
		if strings.Contains(mustDray(t, at.Token, 0, "log", "show", "--subject", string(run.ID)), "run.ended") {
			break
		}
		if time.Now().After(until) {
			t.Fatal("the end of the run is not in the log")
		}
		time.Sleep(100 * time.Millisecond)
	}
	out := mustDray(t, at.Token, 0, verify...)
	says(t, out, "verified dray.example/log", "Every row is as its newest entry says.")

	// What was published is the same log.
	published := filepath.Join(at.Dir, "checkpoints.jsonl")
	for until := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if _, err := os.Stat(published); err == nil {
			break
		} else if !errors.Is(err, fs.ErrNotExist) || time.Now().After(until) {
			t.Fatal(err)
		}
	}
	mustDray(t, at.Token, 0, append(verify, "--all", "--since", published)...)
	latest, err := name.NewTag(at.Stack.Dev.Host+"/evidence/log:latest", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	for until := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if _, err := remote.Get(latest, remote.WithContext(t.Context())); err == nil {
			break
		} else if time.Now().After(until) {
			t.Fatal(err)
		}
	}

	dsn, err := at.Stack.Postgres.Database(t.Context(), "dray")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context()) //nolint:errcheck // the test is over
	exec := func(sql string, args ...any) {
		t.Helper()
		if tag, err := conn.Exec(t.Context(), sql, args...); err != nil || tag.RowsAffected() != 1 {
			t.Fatalf("%s: %s, %v", sql, tag, err)
		}
	}
	exec(`UPDATE jobs SET state = 'failed', reason = 'nothing to see' WHERE id = $1`, string(run.ID))
	says(t, mustDray(t, at.Token, 6, verify...), "row jobs/"+string(run.ID), "entry ")
	exec(`UPDATE jobs SET state = 'succeeded', reason = '' WHERE id = $1`, string(run.ID))
	mustDray(t, at.Token, 0, verify...)

	exec(`UPDATE log_entries SET leaf = convert_to(replace(convert_from(leaf, 'UTF8'), 'succeeded', 'cancelled'), 'UTF8') WHERE subject = $1 AND kind = 'run.ended'`, string(run.ID))
	says(t, mustDray(t, at.Token, 6, append(verify, "--all")...), "was changed: its hash is", "run.ended "+string(run.ID))
	exec(`UPDATE log_entries SET leaf = convert_to(replace(convert_from(leaf, 'UTF8'), 'cancelled', 'succeeded'), 'UTF8') WHERE subject = $1 AND kind = 'run.ended'`, string(run.ID))
	mustDray(t, at.Token, 0, append(verify, "--all")...)

	// An entry of somebody else's never gets a place, whatever it says.
	exec(`INSERT INTO log_entries (leaf, kind) SELECT leaf, kind FROM log_entries WHERE subject = $1 AND kind = 'run.ended'`, string(run.ID))
	var refused bool
	for !refused {
		if err := conn.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM log_entries WHERE refused)`).Scan(&refused); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	says(t, mustDray(t, at.Token, 6, verify...), "row log_entries/", "has not Dray's seal")
	exec(`DELETE FROM log_entries WHERE refused`)
	mustDray(t, at.Token, 0, verify...)

	// A drayd that dies in the middle and one that comes after it make one log.
	kill(t)
	run = released(t, w, "v1.0.1")
	mustDray(t, at.Token, 0, append(verify, "--since", published)...)
}
