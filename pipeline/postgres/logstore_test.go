package postgres_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/ledger"
	"github.com/dray-project/dray/pipeline/postgres"
	"github.com/dray-project/dray/pipeline/postgres/postgrestest"
)

// evidenceLog is the log of one database, as the world sees it.
type evidenceLog struct {
	*ledger.Log
	t      *testing.T
	dsn    string
	pool   *pgxpool.Pool
	store  *postgres.Store
	signer *ledger.Signer
	keys   ledger.Keys
}

func newEvidenceLog(t *testing.T) *evidenceLog {
	t.Helper()
	l := &evidenceLog{t: t, dsn: postgrestest.DSN(t)}
	l.pool = postgrestest.Pool(t, l.dsn)
	l.store = logStore(t, l.pool)
	private, _, err := ledger.GenerateKey("dray.example/log")
	if err != nil {
		t.Fatal(err)
	}
	if l.signer, err = ledger.ParseSigner(private); err != nil {
		t.Fatal(err)
	}
	if l.keys, err = ledger.ParseKeys(l.signer.PublicKey()); err != nil {
		t.Fatal(err)
	}
	if l.Log, err = ledger.NewLog(l.store); err != nil {
		t.Fatal(err)
	}
	return l
}

func logStore(t *testing.T, pool *pgxpool.Pool) *postgres.Store {
	t.Helper()
	s, err := postgres.New(t.Context(), postgres.Config{Seal: postgrestest.Seal(), Pool: pool})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// sequencer is that of another process.
func (l *evidenceLog) sequencer(batch int) *ledger.Sequencer {
	l.t.Helper()
	s, err := ledger.NewSequencer(ledger.SequencerConfig{Storage: logStore(l.t, postgrestest.Pool(l.t, l.dsn)), Signer: l.signer, Batch: batch, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		l.t.Fatal(err)
	}
	return s
}

// sequence gives everything its place.
func (l *evidenceLog) sequence() {
	l.t.Helper()
	if err := l.sequencer(0).Once(l.t.Context()); err != nil {
		l.t.Fatal(err)
	}
}

func (l *evidenceLog) checkpoint() []byte {
	l.t.Helper()
	c, err := l.Checkpoint(l.t.Context())
	if err != nil {
		l.t.Fatal(err)
	}
	return c
}

func (l *evidenceLog) follow(trusted ...[]byte) (ledger.Followed, error) {
	return ledger.Follow{Source: l, Keys: l.keys, Trusted: trusted}.Run(l.t.Context())
}

// exec runs SQL behind Dray's back.
func (l *evidenceLog) exec(sql string, args ...any) {
	l.t.Helper()
	if _, err := l.pool.Exec(l.t.Context(), sql, args...); err != nil {
		l.t.Fatal(err)
	}
}

type execer interface {
	Exec(context.Context, string, ...any) (pgconn.CommandTag, error)
	QueryRow(context.Context, string, ...any) pgx.Row
}

func testEntry(n int) pipeline.Entry {
	return pipeline.Entry{Version: pipeline.EntryVersion, Kind: []string{pipeline.EntryTagMoved, pipeline.EntryCopied, pipeline.EntryRunEnded}[n%3], At: time.Unix(int64(n), 0),
		Project: []string{"app", "web", ""}[n%3], Subject: fmt.Sprintf("prm_%d", n), Image: pipeline.Digest(fmt.Sprintf("sha256:%064d", n%5)), Data: json.RawMessage(`{"tag":"<1.0>"}`)}
}

func writeEntry(ctx context.Context, db execer, e pipeline.Entry) error {
	leaf, err := e.Leaf()
	if err != nil {
		return err
	}
	var id int64
	if err := db.QueryRow(ctx, `SELECT nextval(pg_get_serial_sequence('log_entries', 'id'))`).Scan(&id); err != nil {
		return err
	}
	_, err = db.Exec(ctx, `
		INSERT INTO log_entries (id, leaf, seal, kind, project, subject, image) OVERRIDING SYSTEM VALUE VALUES ($1, $2, $3, $4, $5, $6, $7)`,
		id, leaf, postgrestest.Seal().Of(id, leaf), e.Kind, e.Project, e.Subject, string(e.Image))
	return err
}

func (l *evidenceLog) write(from, to int) {
	l.t.Helper()
	for n := from; n < to; n++ {
		if err := writeEntry(l.t.Context(), l.pool, testEntry(n)); err != nil {
			l.t.Fatal(err)
		}
	}
}

// TestLogUnderFire: eight writers, some slow and some that change their minds,
// four processes that sequence, and connections that are cut all the time.
// Nothing is lost, nothing has two places, and there is no gap.
func TestLogUnderFire(t *testing.T) {
	l := newEvidenceLog(t)
	const writers, each = 8, 150
	var mu sync.Mutex
	committed := map[string]bool{}
	unsure := map[string]bool{} // the connection was cut around the commit
	stop, cancel := context.WithCancel(t.Context())
	defer cancel()
	var writing, others sync.WaitGroup
	for w := range writers {
		writing.Go(func() {
			pool := postgrestest.Pool(t, l.dsn)
			for n := range each {
				e := testEntry(w*each + n)
				err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
					if err := writeEntry(t.Context(), tx, e); err != nil {
						return err
					}
					if n%10 == 3 { // it gets its number now and is committed when many others are
						if _, err := tx.Exec(t.Context(), `SELECT pg_sleep(0.05)`); err != nil {
							return err
						}
					}
					if n%10 == 7 {
						return errors.New("changed its mind")
					}
					return nil
				})
				mu.Lock()
				switch {
				case err == nil:
					committed[e.Subject] = true
				case n%10 != 7:
					unsure[e.Subject] = true
				}
				mu.Unlock()
			}
		})
	}
	for i := range 4 {
		s := l.sequencer([]int{1, 7, 50, 1000}[i])
		others.Go(func() {
			for stop.Err() == nil {
				if err := s.Once(t.Context()); errors.Is(err, pipeline.ErrUnverified) {
					t.Error(err)
				}
			}
		})
	}
	others.Go(func() {
		for stop.Err() == nil {
			// Its own connection may be one of them.
			_, _ = l.pool.Exec(t.Context(), `
				SELECT pg_terminate_backend(pid) FROM pg_stat_activity
				WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle' ORDER BY random() LIMIT 1`)
			time.Sleep(time.Duration(rand.IntN(10)) * time.Millisecond)
		}
	})
	var seen []ledger.Followed
	written := make(chan struct{})
	go func() { writing.Wait(); close(written) }()
	for reading := true; reading; {
		// Readers see a log that only grows, whatever happens.
		if f, err := l.follow(); err == nil {
			if n := len(seen); n > 0 {
				if _, err := l.follow(seen[n-1].Signed); errors.Is(err, pipeline.ErrUnverified) {
					t.Error(err)
				}
			}
			seen = append(seen, f)
		} else if errors.Is(err, pipeline.ErrUnverified) {
			t.Error(err)
		}
		select {
		case <-written:
			reading = false
		default:
		}
	}
	cancel()
	others.Wait()
	l.sequence()

	var trusted [][]byte
	for _, f := range seen {
		trusted = append(trusted, f.Signed)
	}
	var leaves [][]byte
	found := map[string]bool{}
	f, err := ledger.Follow{Source: l, Keys: l.keys, Trusted: trusted, Each: func(_ int64, leaf []byte, e pipeline.Entry) error {
		if found[e.Subject] {
			t.Errorf("%s has two places", e.Subject)
		}
		found[e.Subject] = true
		leaves = append(leaves, leaf)
		return nil
	}}.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for subject := range committed {
		if !found[subject] {
			t.Errorf("%s is lost", subject)
		}
	}
	for subject := range found {
		if !committed[subject] && !unsure[subject] {
			t.Errorf("%s was never committed", subject)
		}
	}
	// The same by tlog alone.
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) (out []tlog.Hash, _ error) {
		for _, i := range indexes {
			out = append(out, stored[i])
		}
		return out, nil
	})
	for i, leaf := range leaves {
		h, err := tlog.StoredHashes(int64(i), leaf, reader)
		if err != nil {
			t.Fatal(err)
		}
		stored = append(stored, h...)
	}
	root, err := tlog.TreeHash(int64(len(leaves)), reader)
	if err != nil || root != f.Hash || f.N != int64(len(leaves)) {
		t.Errorf("the root of %d entries is %s, %v; the log's of %d is %s", len(leaves), root, err, f.N, f.Hash)
	}
	var out, late int
	if err := l.pool.QueryRow(t.Context(), `SELECT count(*) FILTER (WHERE index IS NULL), count(*) FILTER (WHERE EXISTS (
		SELECT FROM log_entries o WHERE o.id > e.id AND o.index < e.index)) FROM log_entries e`).Scan(&out, &late); err != nil || out != 0 {
		t.Errorf("%d entries have no place, %v", out, err)
	}
	t.Logf("%d entries committed, %d unsure, %d later than their number, %d checkpoints seen", len(committed), len(unsure), late, len(seen))
	if len(committed) < writers*each/2 || late == 0 {
		t.Error("the test did not try what it is for")
	}
}

// TestLogDoesNotHoldWritersUp: somebody who writes an entry never waits for the
// sequencer, nor it for them.
func TestLogDoesNotHoldWritersUp(t *testing.T) {
	l := newEvidenceLog(t)
	l.write(0, 3)
	open, err := l.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = open.Rollback(context.Background()) }()
	if err := writeEntry(t.Context(), open, testEntry(3)); err != nil {
		t.Fatal(err)
	}
	n, mine, err := l.store.SequenceLog(t.Context(), 10, func(_ int64, _ []byte, leaves [][]byte, _ tlog.HashReader) ([]tlog.Hash, []byte, error) {
		// In the middle of it, somebody writes and somebody else wants to sequence.
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := writeEntry(ctx, l.pool, testEntry(4)); err != nil {
			t.Errorf("writing meanwhile: %v", err)
		}
		if _, mine, err := l.store.SequenceLog(ctx, 10, nil); mine || err != nil {
			t.Errorf("sequencing meanwhile: %v, %v", mine, err)
		}
		if len(leaves) != 3 {
			t.Errorf("%d entries wait", len(leaves))
		}
		return nil, nil, errors.New("enough")
	})
	if n != 0 || !mine || err == nil || !strings.Contains(err.Error(), "enough") {
		t.Errorf("%d, %v, %v", n, mine, err)
	}
	l.sequence()
	if err := open.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if waiting, oldest, _, err := l.store.LogLag(t.Context()); waiting != 1 || oldest <= 0 || err != nil {
		t.Errorf("%d wait, %s, %v", waiting, oldest, err)
	}
	l.sequence()
	entries, err := l.store.LogEntries(t.Context(), pipeline.EntryQuery{Ascending: true, Limit: 10})
	if err != nil || len(entries) != 5 {
		t.Fatalf("%d entries, %v", len(entries), err)
	}
	if e, err := pipeline.ParseEntry(entries[4].Leaf); err != nil || e.Subject != "prm_3" {
		t.Errorf("the entry that was committed last is %+v, %v", e, err)
	}
}

// TestLogTampering: what somebody does with SQL is named, by the sequencer, which
// signs nothing more, or by whoever follows.
func TestLogTampering(t *testing.T) {
	for what, c := range map[string]struct {
		sql string
		// says: what the follower says; empty: it sees nothing wrong.
		says string
		// signs: the sequencer goes on.
		signs bool
	}{
		"an entry changed":         {`UPDATE log_entries SET leaf = convert_to(replace(convert_from(leaf, 'UTF8'), 'prm_7', 'prm_8'), 'UTF8') WHERE index = 7`, "entry 7 was changed", true},
		"an entry removed":         {`DELETE FROM log_entries WHERE index = 7`, "entry 7 of the evidence log is missing", true},
		"an entry taken out":       {`UPDATE log_entries SET index = NULL WHERE index = 7`, "entry 7 of the evidence log is missing", true},
		"the last entry removed":   {`DELETE FROM log_entries WHERE index = 19`, "entry 19 of the evidence log is missing", false},
		"an entry put in":          {`INSERT INTO log_entries (index, leaf, kind) VALUES (20, 'x', 'x')`, "", false},
		"two places swapped":       {`UPDATE log_entries SET index = -1 - index + 100 WHERE index IN (3, 4); UPDATE log_entries SET index = CASE index WHEN 96 THEN 4 ELSE 3 END WHERE index > 90`, "entry 3 was changed", true},
		"a hash of a leaf changed": {`UPDATE log_hashes SET hash = sha256('x') WHERE index = 0`, "tile/0/000.p/20", true},
		"a hash changed":           {`UPDATE log_hashes SET hash = sha256('x') WHERE index = 30`, "", false},
		"a hash removed":           {`DELETE FROM log_hashes WHERE index = 0`, "hash 0 of the evidence log is missing", true},
		"a hash cut short":         {`ALTER TABLE log_hashes DROP CONSTRAINT log_hashes_hash_check; UPDATE log_hashes SET hash = 'x' WHERE index = 0`, "hash 0 of the evidence log has 1 bytes", true},
		"the checkpoint changed":   {`UPDATE log_checkpoints SET note = replace(note, E'\n20\n', E'\n19\n') WHERE size = 20`, "checkpoint", false},
		"the checkpoint removed":   {`DELETE FROM log_checkpoints WHERE size = 20`, "shrunk", false},
		"taken back": {`DELETE FROM log_checkpoints WHERE size = 20; DELETE FROM log_hashes WHERE index >= 18;
			UPDATE log_entries SET index = NULL WHERE index >= 10; DELETE FROM log_entries WHERE subject = 'prm_15'`, "shrunk", true},
		"everything removed": {`TRUNCATE log_checkpoints, log_hashes, log_entries CASCADE`, "not found", true},
	} {
		t.Run(what, func(t *testing.T) {
			l := newEvidenceLog(t)
			l.write(0, 10)
			l.sequence()
			l.write(10, 20)
			l.sequence()
			trusted := l.checkpoint()
			for sql := range strings.SplitSeq(c.sql, ";") {
				l.exec(sql)
			}
			_, err := l.follow(trusted)
			if (c.says == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("following: %v", err)
			}
			l.write(20, 21)
			if err := l.sequencer(0).Once(t.Context()); (err == nil) != c.signs || err != nil && !errors.Is(err, pipeline.ErrUnverified) {
				t.Errorf("sequencing: %v", err)
			}
			if what == "taken back" || what == "everything removed" {
				// The sequencer cannot know; whoever has seen more does.
				for n := 21; n < 30; n++ {
					l.write(n, n+1)
				}
				l.sequence()
				if _, err := l.follow(trusted); !errors.Is(err, pipeline.ErrUnverified) {
					t.Errorf("after it has grown again: %v", err)
				}
			}
		})
	}
}

// TestForgedEntries: who can write into the database, and no more, has no entry
// signed, and what is Dray's does not wait for that.
func TestForgedEntries(t *testing.T) {
	l := newEvidenceLog(t)
	l.write(0, 5)
	l.sequence()
	leaf, err := testEntry(99).Leaf()
	if err != nil {
		t.Fatal(err)
	}
	l.exec(`INSERT INTO log_entries (leaf, kind) VALUES ($1, 'tag.moved')`, leaf)                                          // without a seal
	l.exec(`INSERT INTO log_entries (leaf, kind, seal) VALUES ($1, 'tag.moved', sha256($1))`, leaf)                        // with something
	l.exec(`INSERT INTO log_entries (leaf, kind, seal) SELECT leaf, kind, seal FROM log_entries WHERE index = 2`)          // said again
	l.exec(`INSERT INTO log_entries (leaf, kind, seal) SELECT $1, kind, seal FROM log_entries WHERE index = 2`, leaf)      // another's seal
	l.exec(`INSERT INTO log_entries (leaf, kind) SELECT $1, 'x' FROM generate_series(1, 50)`, []byte("to hold others up")) // many
	l.write(5, 8)
	s := l.sequencer(10)
	for range 10 { // ten at a time
		if err := s.Once(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	got, err := l.follow()
	if err != nil || got.N != 8 {
		t.Errorf("the log has %d entries: %v", got.N, err)
	}
	waiting, _, refused, err := l.store.LogLag(t.Context())
	if err != nil || waiting != 0 || refused != 54 {
		t.Errorf("%d entries wait, %d are refused: %v", waiting, refused, err)
	}
	// Not even if somebody says that they are not.
	l.exec(`UPDATE log_entries SET refused = false`)
	for range 10 {
		if err := s.Once(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := l.follow(); err != nil || got.N != 8 {
		t.Errorf("the log has %d entries: %v", got.N, err)
	}
	found, err := l.store.CheckRows(t.Context(), 8, 8)
	if err != nil || len(found) != 54 || found[0].Table != "log_entries" || found[0].Entry != -1 || !strings.Contains(found[0].Problem, "seal") {
		t.Errorf("found %d: %+v, %v", len(found), found[:min(1, len(found))], err)
	}
}

// TestRewrittenSuffix: somebody who can write the database, and has the seal's key
// too, rewrites an entry and all that came after it, and lets Dray itself sign the
// result.
func TestRewrittenSuffix(t *testing.T) {
	l := newEvidenceLog(t)
	l.write(0, 10)
	l.sequence()
	early := l.checkpoint()
	l.write(10, 20)
	l.sequence()
	trusted := l.checkpoint()
	l.exec(`DELETE FROM log_checkpoints WHERE size > 10`)
	l.exec(`DELETE FROM log_hashes WHERE index >= $1`, tlog.StoredHashCount(10))
	l.exec(`UPDATE log_entries SET index = NULL WHERE index >= 10`)
	var id int64
	var leaf []byte
	if err := l.pool.QueryRow(t.Context(), `
		UPDATE log_entries SET leaf = convert_to(replace(convert_from(leaf, 'UTF8'), 'prm_15', 'prm_99'), 'UTF8') WHERE subject = 'prm_15' RETURNING id, leaf`).Scan(&id, &leaf); err != nil {
		t.Fatal(err)
	}
	l.exec(`UPDATE log_entries SET seal = $2 WHERE id = $1`, id, postgrestest.Seal().Of(id, leaf))
	l.sequence()
	if f, err := l.follow(); err != nil || f.N != 20 {
		t.Errorf("the new history agrees with itself: %+v, %v", f, err)
	}
	if _, err := l.follow(early); err != nil {
		t.Errorf("and with what was before it: %v", err)
	}
	_, err := l.follow(trusted)
	if !errors.Is(err, pipeline.ErrUnverified) || !strings.Contains(err.Error(), "forked") {
		t.Errorf("whoever saw the old one: %v", err)
	}
	l.write(20, 25)
	l.sequence()
	_, err = l.follow(trusted)
	if !errors.Is(err, pipeline.ErrUnverified) || !strings.Contains(err.Error(), "history was rewritten: the first 20 entries") {
		t.Errorf("and when it has grown: %v", err)
	}
}

func TestLogEntries(t *testing.T) {
	l := newEvidenceLog(t)
	l.write(0, 12)
	l.sequence()
	l.write(12, 13) // has no place
	indexes := func(q pipeline.EntryQuery) string {
		t.Helper()
		if q.Limit == 0 {
			q.Limit = 100
		}
		entries, err := l.store.LogEntries(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, e := range entries {
			out = append(out, fmt.Sprint(e.Index))
			if want, err := testEntry(int(e.Index)).Leaf(); err != nil || string(want) != string(e.Leaf) {
				t.Errorf("entry %d is %s", e.Index, e.Leaf)
			}
		}
		return strings.Join(out, " ")
	}
	for want, q := range map[string]pipeline.EntryQuery{
		"11 10 9 8 7 6 5 4 3 2 1 0": {},
		"11 10":                     {Limit: 2},
		"9 8":                       {Before: 10, Limit: 2},
		"3 4 5":                     {Ascending: true, From: 3, Limit: 3},
		"10 9 7 6 4 3 1 0":          {Projects: []string{"app", "web"}},
		"9 6 3 0":                   {Projects: []string{"app"}},
		"0 3 6 9":                   {Kind: pipeline.EntryTagMoved, Ascending: true},
		"5":                         {Subject: "prm_5"},
		"7 2":                       {Image: testEntry(2).Image},
		"7":                         {Image: testEntry(2).Image, Projects: []string{"web"}},
		"":                          {Projects: []string{}},
		"10 9 7 6":                  {InProject: true, Limit: 4},
	} {
		if got := indexes(q); got != want {
			t.Errorf("%+v gives %q, want %q", q, got, want)
		}
	}
	if mine, err := l.store.LogTurn(t.Context(), "publish", time.Hour); !mine || err != nil {
		t.Errorf("the first turn: %v, %v", mine, err)
	}
	if mine, err := l.store.LogTurn(t.Context(), "publish", time.Hour); mine || err != nil {
		t.Errorf("the second: %v, %v", mine, err)
	}
	if mine, err := l.store.LogTurn(t.Context(), "publish", 0); !mine || err != nil {
		t.Errorf("when it is due: %v, %v", mine, err)
	}
}
