package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/dray-project/dray/api"
	"github.com/dray-project/dray/api/apitest"
	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/ledger"
	"github.com/dray-project/dray/pipeline/ledger/ledgertest"
)

// auditor is somebody with the command line, a server's log and a home.
type auditor struct {
	t      *testing.T
	log    *ledgertest.Served
	url    string
	home   string
	key    string // file
	token  string
	stdout bytes.Buffer
	stderr bytes.Buffer
}

func newAuditor(t *testing.T, entries int) *auditor {
	t.Helper()
	a := &auditor{t: t, home: t.TempDir(), token: "dray_auditor"}
	a.key = filepath.Join(a.home, "log.pub")
	a.serve(entries)
	if err := os.WriteFile(a.key, []byte(a.log.PublicKey()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return a
}

// serve puts another log behind the same address.
func (a *auditor) serve(entries int) {
	a.t.Helper()
	var err error
	if a.log, err = ledgertest.Serve(a.t.Context()); err != nil {
		a.t.Fatal(err)
	}
	a.add(entries)
	h, err := api.New(api.Config{Store: apitest.Sample(), PublicKeyPEM: []byte(apitest.PublicKey), TrustedRoot: []byte(`{}`), Log: slog.New(slog.DiscardHandler), Ledger: a.log})
	if err != nil {
		a.t.Fatal(err)
	}
	srv := httptest.NewServer(h)
	a.t.Cleanup(srv.Close)
	a.url = srv.URL
}

func (a *auditor) add(entries int) {
	a.t.Helper()
	for i := range entries {
		if err := a.log.Add(a.t.Context(), pipeline.Entry{Kind: pipeline.EntryTagMoved, At: apitest.Clock, Project: "hello-go", Actor: "dray", Subject: fmt.Sprintf("prm_%d", i)}); err != nil {
			a.t.Fatal(err)
		}
	}
}

// dray runs a command line, which must end with that code and say that.
func (a *auditor) dray(code int, says string, args ...string) string {
	a.t.Helper()
	a.stdout.Reset()
	a.stderr.Reset()
	env := map[string]string{"DRAY_URL": a.url, "DRAY_TOKEN": a.token, "HOME": a.home}
	got := run(a.t.Context(), args, func(k string) string { return env[k] }, strings.NewReader(""), &a.stdout, &a.stderr)
	all := a.stdout.String() + a.stderr.String()
	if got != code || !strings.Contains(all, says) {
		a.t.Errorf("dray %s: exit code %d, want %d and %q:\n%s", strings.Join(args, " "), got, code, says, all)
	}
	return a.stdout.String()
}

func TestLogVerify(t *testing.T) {
	a := newAuditor(t, 5)
	a.dray(0, "Trusting the key", "log", "verify")
	if !strings.Contains(a.stdout.String(), "recomputed       5 entries") || !strings.Contains(a.stdout.String(), "Every row is as its newest entry says.") {
		t.Error(a.stdout.String())
	}
	a.add(3)
	var out logVerified
	if err := json.Unmarshal([]byte(a.dray(0, "", "log", "verify", "-o", "json")), &out); err != nil || out.Size != 8 || out.Recomputed != 3 || out.Consistent != 1 || out.Rows == nil {
		t.Errorf("%+v, %v", out, err)
	}
	if strings.Contains(a.stderr.String(), "Trusting") {
		t.Errorf("the key is trusted anew: %s", a.stderr.String())
	}
	a.dray(0, "recomputed       8 entries", "log", "verify", "--all", "--no-rows", "--key", a.key)
	a.dray(0, "dray.example/log 8", "log", "verify", "-o", "name")

	// A checkpoint that was kept elsewhere.
	kept := filepath.Join(a.home, "checkpoint")
	if err := os.WriteFile(kept, []byte(a.dray(0, "", "log", "checkpoint", "--key", a.key)), 0o600); err != nil {
		t.Fatal(err)
	}
	a.add(1)
	a.dray(0, "2 earlier checkpoints", "log", "verify", "--state", filepath.Join(a.home, "other"), "--key", a.key, "--since", kept, "--since", firstCheckpoint(a))

	// Rows that are not as the log says are named.
	a.log.SetRows(pipeline.RowCheck{Table: "promotions", Key: "prm_1", Entry: 3, Want: "sha256:aa", Have: "sha256:bb", Problem: "changed"},
		pipeline.RowCheck{Table: "tags", Key: "x:1", Entry: 4, Want: "sha256:aa", Problem: "gone"},
		pipeline.RowCheck{Table: "approvals", Key: "app_1", Entry: -1, Have: "sha256:aa", Problem: "forged"})
	a.dray(6, "row approvals/app_1: no entry says that it is there", "log", "verify")
	for _, want := range []string{"row promotions/prm_1 was changed: entry 3 says sha256:aa, and it is sha256:bb", "row tags/x:1 is gone: entry 4 says", "3 rows are not as the log says", "and 2 more"} {
		if !strings.Contains(a.stdout.String()+a.stderr.String(), want) {
			t.Errorf("%q is not said:\n%s%s", want, a.stdout.String(), a.stderr.String())
		}
	}
	a.dray(0, "not compared", "log", "verify", "--no-rows")

	a.token = "dray_viewer"
	a.dray(1, "needs the role auditor or admin", "log", "verify")
	a.token = "dray_auditor"
	a.dray(1, "no such file", "log", "verify", "--key", "nowhere")
	a.dray(1, "no such file", "log", "verify", "--since", "nowhere")
	a.dray(2, "not what dray log verify writes", "log", "verify", "--state", a.key)
	a.dray(2, "accepts 0 arg(s)", "log", "verify", "extra")
}

// firstCheckpoint is a file with the checkpoint of the log when it was empty.
func firstCheckpoint(a *auditor) string {
	a.t.Helper()
	c, err := a.log.LogCheckpoint(a.t.Context(), 0)
	if err != nil {
		a.t.Fatal(err)
	}
	path := filepath.Join(a.home, "first")
	if err := os.WriteFile(path, c, 0o600); err != nil {
		a.t.Fatal(err)
	}
	return path
}

// TestLogRewritten: each thing that somebody can do to the log ends with 6 and its
// name, and what was trusted stays trusted.
func TestLogRewritten(t *testing.T) {
	for what, c := range map[string]struct {
		change func(a *auditor)
		all    bool
		says   string
	}{
		"an entry changed": {func(a *auditor) {
			a.log.Change(func(l *[][]byte, _ *[]tlog.Hash, _ map[int64][]byte) {
				(*l)[3] = bytes.Replace((*l)[3], []byte(`"dray"`), []byte(`"evil"`), 1)
			})
		}, true, "entry 3 was changed"},
		"an entry removed": {func(a *auditor) { a.log.Remove(3) }, true, "entry 3 of the evidence log is missing"},
		"another history": {func(a *auditor) {
			signer := a.log.Signer
			a.log.Change(func(l *[][]byte, h *[]tlog.Hash, c map[int64][]byte) {
				other, err := ledgertest.Serve(a.t.Context())
				if err != nil {
					a.t.Fatal(err)
				}
				for range 8 {
					if err := other.Add(a.t.Context(), pipeline.Entry{Kind: pipeline.EntryCopied, At: apitest.Clock}); err != nil {
						a.t.Fatal(err)
					}
				}
				other.Change(func(l2 *[][]byte, h2 *[]tlog.Hash, _ map[int64][]byte) { *l, *h = *l2, *h2 })
				root, err := tlog.TreeHash(8, tlog.HashReaderFunc(func(i []int64) (out []tlog.Hash, _ error) {
					for _, at := range i {
						out = append(out, (*h)[at])
					}
					return out, nil
				}))
				if err != nil {
					a.t.Fatal(err)
				}
				if c[8], err = signer.Sign(tlog.Tree{N: 8, Hash: root}); err != nil {
					a.t.Fatal(err)
				}
			})
		}, false, "history was rewritten: the first 5 entries"},
		"another log of another key": {func(a *auditor) {
			a.serve(8)
		}, false, "not by the trusted key"},
	} {
		t.Run(what, func(t *testing.T) {
			a := newAuditor(t, 5)
			state := filepath.Join(a.home, "state")
			a.dray(0, "verified", "log", "verify", "--state", state)
			before, err := os.ReadFile(state)
			if err != nil {
				t.Fatal(err)
			}
			c.change(a)
			args := []string{"log", "verify", "--state", state}
			if c.all {
				a.dray(0, "verified", args...) // it was verified before, and is not read again
				args = append(args, "--all")
			}
			a.dray(6, c.says, args...)
			after, err := os.ReadFile(state)
			var one, two ledger.Trust
			if json.Unmarshal(before, &one) != nil || json.Unmarshal(after, &two) != nil || err != nil || one.Checkpoint != two.Checkpoint || one.Key != two.Key {
				t.Errorf("what is trusted was %s and is %s", before, after)
			}
		})
	}
}

func TestLogShow(t *testing.T) {
	a := newAuditor(t, 3)
	a.dray(0, "prm_2", "log", "show", "--project", "hello-go")
	if lines := strings.Split(a.stdout.String(), "\n"); len(lines) != 5 || !strings.HasPrefix(lines[0], "INDEX  AT (UTC)") || !strings.HasPrefix(lines[1], "2      2026-03-14 09:26:53  tag.moved  hello-go  prm_2") {
		t.Error(a.stdout.String())
	}
	a.dray(0, "no such entry", "log", "show", "--kind", "run.ended")
	a.dray(0, "1\n", "log", "show", "--subject", "prm_1", "-o", "name")
	a.dray(0, `"leaf": "eyJ2`, "log", "show", "--limit", "1", "-o", "json")
	a.dray(2, "digest", "log", "show", "--image", "x")
	a.dray(6, "not by the trusted key", "log", "checkpoint", "--key", func() string {
		path := filepath.Join(a.home, "other.pub")
		_, public, err := ledger.GenerateKey("dray.example/log")
		if err == nil {
			err = os.WriteFile(path, public, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		return path
	}())
}
