package postgres_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/pipelinetest"
	"github.com/dray-project/dray/pipeline/postgres"
	"github.com/dray-project/dray/pipeline/postgres/postgrestest"
)

// evidence makes at least one row of everything that is protected.
func evidence(t testing.TB, s *postgres.Store) {
	t.Helper()
	ctx := t.Context()
	syncSample(t, s)
	app := pipelinetest.SampleProject("app")
	finding := pipeline.Finding{ID: "CVE-1", Severity: pipeline.SeverityHigh, Package: "crypto", Version: "v1"}
	one := release(t, s, "app", "one", []pipeline.Package{pkg("crypto", "v1"), pkg("text", "v2")}, []pipeline.Finding{finding}, "1.0.0", "latest")
	recordAgain(t, s, release(t, s, "app", "again", nil, nil), pipeline.VulnerabilityDatabase{UpdatedAt: time.Now()})
	two := release(t, s, "app", "two", []pipeline.Package{pkg("crypto", "v3")}, nil, "latest")
	p := promote(t, s, one, "prod", "grace")
	place(t, s, p)
	place(t, s, promote(t, s, two, "prod", "grace"))

	// One of each of the ways in which an answer is not yes.
	waiting := promote(t, s, one, "staging", "grace")
	d := notYet(nil)
	d.Rules = append(d.Rules, pipeline.RuleResult{Rule: "severity", Reason: strings.Repeat("<long> ", 100)})
	check(t, s.Wait(ctx, start(t, s, waiting.ID.Job(), pipeline.StageGate), pipeline.Waiting{Decision: d}))
	_, err := s.Approve(ctx, pipeline.Approval{Promotion: waiting.ID, By: "rita", Roles: []string{"admin"}, Plan: plan, Comment: "fine \x00 by me"})
	check(t, err)
	rejected := promote(t, s, two, "staging", "grace")
	check(t, s.Wait(ctx, start(t, s, rejected.ID.Job(), pipeline.StageGate), pipeline.Waiting{Decision: notYet(nil)}))
	_, err = s.Approve(ctx, pipeline.Approval{Promotion: rejected.ID, By: "rita", Plan: plan, Rejected: true})
	check(t, err)
	emergency, _, err := s.Promote(ctx, pipeline.PromotionRequest{Image: one.Built.Image.String(), Environment: "prod", RequestedBy: "grace", Action: pipeline.ActionRollback, BreakGlass: "it burns"})
	check(t, err)
	check(t, s.RecordDecision(ctx, start(t, s, emergency.ID.Job(), pipeline.StageGate), pipeline.Judged{
		Decision: pipeline.Decision{Passed: true, EvaluatedAt: time.Now(), BreakGlass: &pipeline.BreakGlass{By: "grace", Reason: "it burns", Rules: []string{"soak"}}},
		Diff:     pipeline.Diff{From: &pipeline.DiffSide{Digest: two.Built.Image.Digest}, To: pipeline.DiffSide{Digest: one.Built.Image.Digest}},
		Summary:  pipeline.Sealed{Envelope: []byte(`{}`), Statement: pipelinetest.DigestOf("statement")}}))

	// A run that was refused, and another go at it.
	run := push(t, s, "app", "refs/heads/main", "three")
	check(t, s.RecordSource(ctx, start(t, s, run.Job(), pipeline.StageResolve), pipeline.Source{Commit: commit("three")}))
	check(t, s.FinishStage(ctx, start(t, s, run.Job(), pipeline.StageGate), []byte(`{"decision":{"passed":false}}`)))
	check(t, s.End(ctx, run.Job(), pipeline.Ending{State: pipeline.StateRefused, Reason: "severity"}))
	_, _, err = s.Retry(ctx, run, "grace")
	check(t, err)

	var ids []string
	for _, f := range []string{"CVE-1", "CVE-2"} {
		e, err := s.AddException(ctx, pipeline.Exception{Project: "app", Finding: f, Reason: "not reachable", Author: "rita", ExpiresAt: time.Now().Add(time.Hour)})
		check(t, err)
		v, err := s.AddVEX(ctx, pipeline.VEXDocument{Project: "app", Document: []byte("{}"), Signature: []byte("s"), UploadedBy: "rita"})
		check(t, err)
		ids = append(ids, e.ID, v.ID)
	}
	_, err = s.RevokeException(ctx, "app", ids[0], "grace")
	check(t, err)
	_, err = s.RevokeVEX(ctx, "app", ids[1], "grace")
	check(t, err)
	for range 2 { // the second replaces the first
		_, _, err = s.CreateToken(ctx, "ci", []pipeline.Grant{{Role: "developer", Project: "app"}}, nil)
		check(t, err)
	}
	app.Latest = !app.Latest
	_, _, err = s.ApplyProject(ctx, pipeline.ProjectChange{Project: app, AppliedBy: "rita"})
	check(t, err)
	at := pipeline.Placed{Project: "app", Environment: "prod", Promotion: p.ID, Image: pipeline.Image{Repository: "prod.example/acme/app", Digest: one.Built.Image.Digest}}
	moved := pipeline.Drift{Kind: pipeline.DriftTag, Subject: "1.0.0", Detail: "it is gone"}
	gone := pipeline.Drift{Kind: pipeline.DriftMissing, Subject: "sha256:0", Detail: "it is gone"}
	for _, found := range [][]pipeline.Drift{{moved, gone}, {moved, gone}, {gone}, nil, {gone}} {
		_, err = s.RecordDrift(ctx, at, found)
		check(t, err)
	}
	now := time.Now()
	gone.RepairedAt, gone.Repair = &now, "copied again"
	_, err = s.RecordDrift(ctx, at, []pipeline.Drift{gone})
	check(t, err)

	// A newer database takes a finding back, and brings another one.
	db := pipeline.VulnerabilityDatabase{Reference: "db", Digest: pipelinetest.DigestOf("db", "2"), UpdatedAt: time.Now()}
	pass, err := s.StartRematch(ctx, db)
	check(t, err)
	list, err := s.Unmatched(ctx, db.Digest, false, "", 100)
	check(t, err)
	finding.ID = "CVE-2"
	var matches []pipeline.Match
	for _, m := range list {
		match := pipeline.Match{Matchable: m, Findings: [][]pipeline.Finding{{finding}, {finding}}}
		match.Verdicts = []pipeline.Verdict{{Environment: "prod", Passed: true, Decision: pipeline.Decision{EvaluatedAt: now}}}
		matches = append(matches, match)
	}
	check(t, s.RecordMatches(ctx, pass.ID, matches[:1]))
	check(t, s.RefuseDelivery(ctx, pipeline.Refusal{Forge: "github", Reason: "the signature does not verify"}))
}

// column is one that CheckRows has to watch.
type column struct{ Table, Name, Type string }

// children are the tables that are part of another one's rows.
var children = map[string]string{
	"reports": "image_records", "sboms": "image_records", "findings": "image_records",
	"verdicts": "image_matches", "image_platforms": "images", "image_packages": "images", "packages": "images",
	"paths": "images", "layers": "images", "license_lists": "images",
}

// unwatched are the columns of protected tables that are no evidence: they
// change with the work on a job, or they are keys that lead from one table to
// another and are there once more as what they stand for; or they are compared with
// what they repeat (TestCheckRowsComparesRecords).
var unwatched = []string{"jobs.last_seq", "jobs.queue_job", "jobs.wake_at", "promotions.kind", "promotions.behind", "promotions.nudged", "runs.kind",
	"lanes.inside", "image_records.number", "image_records.digest", "packages.id", "packages.key", "paths.key", "layers.key", "license_lists.key", "stages.reason",
	"image_matches.rematch", "image_matches.matched", "image_matches.matched_at", "image_matches.failed"}

// columns lists what is watched of the tables, but for their keys.
func columns(t testing.TB, pool *pgxpool.Pool) (out []column, keys map[string][]string) {
	t.Helper()
	tables := append(postgres.ProtectedTables(), "reports", "sboms", "findings", "verdicts", "image_platforms", "image_packages", "packages", "paths", "layers", "license_lists", "verifications", "signatures", "attestations")
	rows, err := pool.Query(t.Context(), `
		SELECT c.table_name, c.column_name, c.udt_name, EXISTS (
			SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY(i.indkey)
			WHERE i.indisprimary AND i.indrelid = c.table_name::regclass AND a.attname = c.column_name)
		FROM information_schema.columns c WHERE c.table_schema = 'public' AND c.table_name = ANY($1) ORDER BY 1, 2`, tables)
	check(t, err)
	keys = map[string][]string{}
	var c column
	var key bool
	_, err = pgx.ForEachRow(rows, []any{&c.Table, &c.Name, &c.Type, &key}, func() error {
		if key {
			keys[c.Table] = append(keys[c.Table], c.Name)
		} else if !slices.Contains(unwatched, c.Table+"."+c.Name) {
			out = append(out, c)
		}
		return nil
	})
	check(t, err)
	return out, keys
}

// other is SQL for another value than the column has.
func other(c column) string {
	switch c.Type {
	case "bool":
		return "NOT " + c.Name
	case "int2", "int4", "int8":
		return "coalesce(" + c.Name + ", 0) + 1"
	case "timestamptz":
		return "coalesce(" + c.Name + " + interval '1 microsecond', now())"
	case "json", "jsonb":
		return `'{"forged":true}'`
	case "bytea":
		return "coalesce(" + c.Name + `, '') || '\x00'`
	case "_text":
		return "array_append(" + c.Name + ", 'forged')"
	}
	return "coalesce(" + c.Name + ", '') || 'x'"
}

// attacker has the database's password: nothing in the schema is in the way.
type attacker struct {
	testing.TB
	s    *postgres.Store
	pool *pgxpool.Pool
	size int64
}

func newAttacker(t *testing.T) *attacker {
	pool := postgrestest.New(t)
	a := &attacker{TB: t, s: newStore(t, pool), pool: pool}
	evidence(t, a.s)
	a.size = sequence(t, pool)
	intact(t, a.s, pool)
	meddle(t, pool, `
		DO $$ DECLARE r record; BEGIN
			FOR r IN SELECT conrelid::regclass AS t, conname FROM pg_constraint
				WHERE connamespace = 'public'::regnamespace AND contype IN ('c', 'f', 'u') ORDER BY contype <> 'f'
			LOOP EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', r.t, r.conname); END LOOP;
			FOR r IN SELECT indexrelid::regclass AS i FROM pg_index JOIN pg_class c ON c.oid = indrelid
				WHERE indisunique AND NOT indisprimary AND c.relnamespace = 'public'::regnamespace
			LOOP EXECUTE format('DROP INDEX %s', r.i); END LOOP;
		END $$`)
	return a
}

func (a *attacker) exec(sql string, args ...any) int64 {
	a.Helper()
	tag, err := a.pool.Exec(context.WithoutCancel(a.Context()), sql, args...)
	check(a, err)
	return tag.RowsAffected()
}

// row names a row of a protected table as the log does: the newest, and of jobs
// one that is over.
func (a *attacker) row(table string) (key string, index int64) {
	a.Helper()
	err := a.pool.QueryRow(a.Context(), `
		SELECT r.row_key, e.index FROM log_rows r JOIN log_entries e ON e.id = r.entry
		WHERE r.table_name = $1 AND ($1 NOT IN ('jobs', 'runs') OR e.kind LIKE '%.ended') ORDER BY e.index DESC, r.row_key LIMIT 1`, table).Scan(&key, &index)
	if err != nil {
		a.Fatalf("the log describes no row of %s: %v", table, err)
	}
	return key, index
}

// newest is the run of an image's newest record.
func (a *attacker) newest(image string) (run string) {
	a.Helper()
	check(a, a.pool.QueryRow(a.Context(), `SELECT newest FROM images WHERE id = $1::bigint`, image).Scan(&run))
	return run
}

// in does something to the tables, lets look see what comes of it, and puts all
// back as it was.
func (a *attacker) in(tables []string, do, look func()) {
	a.Helper()
	for _, table := range tables {
		a.exec(`CREATE TABLE saved_` + table + ` AS TABLE ` + table)
	}
	do()
	look()
	for _, table := range tables {
		a.exec(`TRUNCATE ` + table)
		a.exec(`INSERT INTO ` + table + ` OVERRIDING SYSTEM VALUE SELECT * FROM saved_` + table)
		a.exec(`DROP TABLE saved_` + table)
	}
}

// describe writes an entry that says what the row is now, as well as somebody can
// who reads Dray's source, and returns its number.
func (a *attacker) describe(table, key string) (id int64) {
	a.Helper()
	digest, form := postgres.DigestOf(table)
	e := pipeline.Entry{Version: pipeline.EntryVersion, Kind: pipeline.EntryTokenCreated, At: time.Now(), Actor: "rita",
		Rows: []pipeline.EntryRow{{Table: table, Key: key, Form: form}}}
	check(a, a.pool.QueryRow(a.Context(), `SELECT `+digest+` FROM `+table+` t WHERE `+postgres.NameOf(table)+` = $1`, key).Scan((*string)(&e.Rows[0].Digest)))
	leaf, err := e.Leaf()
	check(a, err)
	check(a, a.pool.QueryRow(a.Context(), `INSERT INTO log_entries (leaf, kind) VALUES ($1, $2) RETURNING id`, leaf, e.Kind).Scan(&id))
	a.exec(`INSERT INTO log_rows VALUES ($1, $2, $3)`, table, key, id)
	return id
}

// finds compares what is found with "table key entry" of what must be.
func (a *attacker) finds(what string, want ...string) []pipeline.RowCheck {
	a.Helper()
	return a.findsFrom(0, what, want...)
}

func (a *attacker) findsFrom(from int64, what string, want ...string) []pipeline.RowCheck {
	a.Helper()
	found, err := a.s.CheckRows(a.Context(), from, a.size)
	check(a, err)
	var got []string
	for _, f := range found {
		got = append(got, fmt.Sprintf("%s %s %d", f.Table, f.Key, f.Entry))
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		a.Errorf("%s: found %q, want %q", what, got, want)
	}
	return found
}

// TestCheckRowsFindsChanges changes every column of every kind of row.
func TestCheckRowsFindsChanges(t *testing.T) {
	a := newAttacker(t)
	all, _ := columns(t, a.pool)
	for _, c := range all {
		table, key, index := c.Table, "", int64(0)
		parent := children[table]
		if parent == "" && slices.Contains([]string{"verifications", "signatures", "attestations"}, table) {
			parent = "placements"
		}
		if parent != "" {
			table = parent
		}
		key, index = a.row(table)
		// Of a table that is part of another's rows, the row's first.
		where := `ctid IN (SELECT ctid FROM ` + c.Table + ` ORDER BY ctid LIMIT 1)`
		if parent == "" {
			where = postgres.NameOf(table) + ` = '` + key + `'`
		}
		a.in([]string{c.Table}, func() {
			if c.Table == "attestations" {
				a.exec(`INSERT INTO attestations VALUES ((SELECT job FROM signatures LIMIT 1), 0, 0, 't', 'k', 'l', 'm', 's')`)
			}
			if a.exec(`UPDATE `+c.Table+` AS t SET `+c.Name+` = `+other(c)+` WHERE `+where) != 1 {
				t.Fatalf("%s.%s was not changed", c.Table, c.Name)
			}
		}, func() {
			if parent == "" {
				want := []string{fmt.Sprint(table, " ", key, " ", index)}
				switch c.Table + "." + c.Name { // some are repeated elsewhere
				case "images.digest":
					want = append(want, "image_records "+a.newest(key)+" -1")
				case "placements.repository":
					want = append(want, "stays "+key+" -1")
				}
				for _, f := range a.finds(c.Table+"."+c.Name, want...) {
					if c.Table == "stages" && c.Name == "state" || f.Entry == -1 {
						continue // it is no gate's answer any more; or it repeats the row
					}
					if f.Want == "" || f.Have == "" || f.Want == f.Have || f.Problem != "the row was changed, and no entry says so" {
						t.Errorf("%s.%s: %+v", c.Table, c.Name, f)
					}
				}
				return
			}
			found, err := a.s.CheckRows(t.Context(), 0, a.size)
			check(t, err)
			if len(found) == 0 || slices.ContainsFunc(found, func(f pipeline.RowCheck) bool {
				return f.Table != "images" && f.Table != "image_records" && f.Table != "image_matches" && f.Table != "placements"
			}) {
				t.Errorf("%s.%s: found %+v", c.Table, c.Name, found)
			}
		})
	}
	a.finds("in the end")
}

// TestCheckRowsFindsRemovedAndForged removes a row of each kind, and makes up one.
func TestCheckRowsFindsRemovedAndForged(t *testing.T) {
	a := newAttacker(t)
	_, keys := columns(t, a.pool)
	for _, table := range postgres.ProtectedTables() {
		key, index := a.row(table)
		row := fmt.Sprint(table, " ", key, " ", index)
		a.in([]string{table}, func() {
			a.exec(`DELETE FROM ` + table + ` t WHERE ` + postgres.NameOf(table) + ` = '` + key + `'`)
		}, func() {
			want := []string{row}
			switch table { // some rows depend on others
			case "jobs": // whether a run is over
				want = append(want, fmt.Sprint("runs ", key, " ", index))
			case "image_matches": // whether findings may have come later
				var recorded int64
				check(t, a.pool.QueryRow(t.Context(), `SELECT index FROM log_entries WHERE kind = 'image.recorded' AND subject = $1`, key).Scan(&recorded))
				want = append(want, fmt.Sprint("image_records ", key, " ", recorded))
			case "placements":
				want = append(want, "stays "+key+" -1")
			}
			for _, f := range a.finds("a row of "+table+" removed", want...) {
				if f.Table == table && (f.Have != "" || f.Problem != "the row is gone, and no entry says so") {
					t.Errorf("a row of %s removed: %+v", table, f)
				}
			}
		})
		// A copy under another name.
		var forged string
		last := keys[table][0] // of stages the attempt
		a.in([]string{table}, func() {
			err := a.pool.QueryRow(t.Context(), `
				INSERT INTO `+table+` AS t OVERRIDING SYSTEM VALUE
				SELECT (jsonb_populate_record(t, jsonb_build_object('`+last+`', '990099'))).* FROM `+table+` t WHERE `+postgres.NameOf(table)+` = $1
				RETURNING `+postgres.NameOf(table), key).Scan(&forged)
			check(t, err)
		}, func() {
			want := []string{fmt.Sprint(table, " ", forged, " -1")}
			if table == "image_records" { // of two with a number, none is the newest
				want = append(want, "image_records "+key+" -1")
			}
			for _, f := range a.finds("a row of "+table+" forged", want...) {
				if f.Key != forged {
					continue
				}
				if f.Want != "" || f.Have == "" || f.Problem != "no entry describes the row" {
					t.Errorf("a row of %s forged: %+v", table, f)
				}
			}
		})
	}
	a.finds("in the end")
}

// TestCheckRowsComparesRecords changes what a record repeats of its image, and which is
// the newest of an image's records.
func TestCheckRowsComparesRecords(t *testing.T) {
	a := newAttacker(t)
	var older, newest string
	check(t, a.pool.QueryRow(t.Context(), `SELECT o.run, i.newest FROM images i JOIN image_records o ON o.image = i.id AND o.run <> i.newest LIMIT 1`).Scan(&older, &newest))
	for _, run := range []string{older, newest} {
		a.in([]string{"image_records"}, func() { a.exec(`UPDATE image_records SET digest = digest || 'x' WHERE run = $1`, run) }, func() {
			if found := a.finds("a record's digest", "image_records "+run+" -1"); len(found) == 1 && found[0].Problem != "the digest is not that of the image" {
				t.Errorf("found %+v", found)
			}
		})
	}
	a.in([]string{"image_records"}, func() {
		a.exec(`UPDATE image_records SET number = number + 1000 WHERE run = $1`, older)
	}, func() {
		if found := a.finds("an older record is the newest", "image_records "+newest+" -1"); len(found) == 1 && !strings.Contains(found[0].Problem, "not the highest") {
			t.Errorf("found %+v", found)
		}
		a.findsFrom(1, "the same, not from the start")
	})
	a.finds("in the end")
}

// TestCheckRowsComparesStays changes what an environment held where it is repeated.
func TestCheckRowsComparesStays(t *testing.T) {
	a := newAttacker(t)
	var id string
	check(t, a.pool.QueryRow(t.Context(), `SELECT promotion FROM stays LIMIT 1`).Scan(&id))
	rows, err := a.pool.Query(t.Context(), `SELECT table_name, column_name, udt_name FROM information_schema.columns WHERE table_schema = 'public' AND table_name = 'stays' AND column_name <> 'promotion'`)
	check(t, err)
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[column])
	check(t, err)
	if len(all) != 11 {
		t.Errorf("columns %v", all)
	}
	for _, c := range all {
		a.in([]string{"stays"}, func() { a.exec(`UPDATE stays SET `+c.Name+` = `+other(c)+` WHERE promotion = $1`, id) }, func() {
			for _, f := range a.finds("stays."+c.Name, "stays "+id+" -1") {
				if !strings.Contains(f.Problem, "is not what the promotion") {
					t.Errorf("stays.%s: %+v", c.Name, f)
				}
			}
		})
	}
	a.in([]string{"stays"}, func() { a.exec(`DELETE FROM stays WHERE promotion = $1`, id) }, func() {
		a.finds("a stay removed", "stays "+id+" -1")
	})
	a.in([]string{"stays"}, func() {
		a.exec(`INSERT INTO stays SELECT (jsonb_populate_record(s, '{"promotion": "prm_forged", "placed": 9}')).* FROM stays s WHERE promotion = $1`, id)
	}, func() {
		a.finds("a stay made up", "stays prm_forged -1")
		a.findsFrom(1, "the same, not from the start")
	})
	a.finds("in the end")
}

// TestCheckRowsDoesNotTrustItsIndex: who changes a row can change log_rows too.
func TestCheckRowsDoesNotTrustItsIndex(t *testing.T) {
	a := newAttacker(t)
	var id, before string
	var added, revoked int64
	check(t, a.pool.QueryRow(t.Context(), `SELECT id FROM exceptions WHERE revoked_at IS NOT NULL`).Scan(&id))
	check(t, a.pool.QueryRow(t.Context(), `SELECT min(e.index), max(e.index) FROM log_rows r JOIN log_entries e ON e.id = r.entry WHERE table_name = 'exceptions' AND row_key = $1`, id).Scan(&added, &revoked))
	key, index := a.row("tokens")
	tables := []string{"exceptions", "tokens", "log_rows", "log_entries"}

	a.in(tables, func() {
		a.exec(`UPDATE exceptions SET revoked_at = NULL, revoked_by = NULL WHERE id = $1`, id)
		a.exec(`DELETE FROM log_rows WHERE table_name = 'exceptions' AND row_key = $1 AND entry = (SELECT id FROM log_entries WHERE index = $2)`, id, revoked)
	}, func() {
		a.finds("a revocation is undone with its line in the index", fmt.Sprint("exceptions ", id, " ", revoked))
	})
	a.in(tables, func() {
		a.exec(`INSERT INTO exceptions SELECT 'exc_forged', project, environment, image, finding, package, reason, author, created_at, expires_at FROM exceptions WHERE id = $1`, id)
		a.exec(`INSERT INTO log_rows SELECT 'exceptions', 'exc_forged', id FROM log_entries WHERE index = 0`)
	}, func() {
		a.finds("a forged row is listed for another entry", "exceptions exc_forged 0")
	})
	a.in(tables, func() {
		a.exec(`UPDATE tokens SET grants = '{admin}' WHERE id = $1::bigint`, key)
		a.exec(`INSERT INTO log_rows SELECT 'tokens', $1, max(id) FROM log_entries`, key)
	}, func() {
		a.finds("a changed row is listed for a later entry", fmt.Sprint("tokens ", key, " ", a.size-1))
	})
	a.in(tables, func() {
		a.exec(`INSERT INTO log_entries (leaf, kind) VALUES ('{}', 'x')`)
		a.exec(`UPDATE tokens SET grants = '{admin}' WHERE id = $1::bigint`, key)
		a.exec(`INSERT INTO log_rows SELECT 'tokens', $1, max(id) FROM log_entries`, key)
	}, func() {
		if found, err := a.s.CheckRows(t.Context(), 0, a.size); err != nil || !slices.ContainsFunc(found, func(f pipeline.RowCheck) bool { return f.Table == "tokens" && f.Key == key }) {
			t.Errorf("a changed row is listed for something that is no entry: %+v, %v", found, err)
		}
	})
	// A whole entry, in the right form, about the row as it was changed.
	var forged int64
	a.in(tables, func() {
		a.exec(`UPDATE tokens SET grants = '{admin}' WHERE id = $1::bigint`, key)
		forged = a.describe("tokens", key)
	}, func() {
		a.finds("a changed row is described by an entry of somebody else's", fmt.Sprint("log_entries ", forged, " -1"), fmt.Sprint("tokens ", key, " ", index))
		a.findsFrom(1, "the same, not from the start", fmt.Sprint("log_entries ", forged, " -1"), fmt.Sprint("tokens ", key, " ", index))
	})
	// An entry that waits, kept out of the log.
	a.in(tables, func() {
		_, err := a.s.AddException(t.Context(), pipeline.Exception{Project: "app", Finding: "CVE-3", Reason: "r", Author: "rita", ExpiresAt: time.Now().Add(time.Hour)})
		check(t, err)
		check(t, a.pool.QueryRow(t.Context(), `UPDATE log_entries SET refused = true WHERE index IS NULL RETURNING id`).Scan(&forged))
	}, func() {
		found := a.finds("an entry of Dray's is kept out", fmt.Sprint("log_entries ", forged, " -1"))
		if len(found) != 1 || !strings.Contains(found[0].Problem, "marked it as refused") {
			t.Errorf("found %+v", found)
		}
	})
	a.in(tables, func() {
		a.exec(`INSERT INTO exceptions SELECT 'exc_forged', project, environment, image, finding, package, reason, author, created_at, expires_at FROM exceptions WHERE id = $1`, id)
		forged = a.describe("exceptions", "exc_forged")
	}, func() {
		a.finds("so is a forged row", fmt.Sprint("log_entries ", forged, " -1"), "exceptions exc_forged -1")
	})
	a.in(tables, func() {
		check(t, a.pool.QueryRow(t.Context(), `DELETE FROM log_rows WHERE table_name = 'tokens' AND row_key = $1 RETURNING row_key`, key).Scan(&before))
	}, func() {
		a.finds("a row is not listed at all", fmt.Sprint("tokens ", key, " ", index))
	})
	a.in(tables, func() {
		a.exec(`DELETE FROM log_entries WHERE index IN (3, 4, 7)`)
	}, func() {
		found, err := a.s.CheckRows(t.Context(), 0, a.size)
		check(t, err)
		var gaps []string
		for _, f := range found {
			if f.Table == "log_entries" {
				gaps = append(gaps, f.Key+" "+f.Problem)
			}
		}
		if want := []string{"3 2 entries are gone, from this one on", "7 1 entries are gone, from this one on"}; !slices.Equal(gaps, want) {
			t.Errorf("the gaps are %q", gaps)
		}
	})
	a.in(tables, func() { a.exec(`DELETE FROM log_entries WHERE index >= $1`, a.size-2) }, func() {
		found, err := a.s.CheckRows(t.Context(), a.size-3, a.size)
		check(t, err)
		if n := len(found); n == 0 || found[n-1].Key != fmt.Sprint(a.size-2) {
			t.Errorf("the end is gone, found %+v", found)
		}
	})
	a.finds("in the end")
}

// TestCheckRowsOfARange: only what the entries of the range describe is looked
// at, by what was said of it last, wherever that stands.
func TestCheckRowsOfARange(t *testing.T) {
	a := newAttacker(t)
	var key string
	var index int64
	check(t, a.pool.QueryRow(t.Context(), `
		SELECT row_key, e.index FROM log_rows r JOIN log_entries e ON e.id = r.entry JOIN exceptions x ON x.id = r.row_key
		WHERE r.table_name = 'exceptions' AND x.revoked_at IS NULL`).Scan(&key, &index))
	row := fmt.Sprint("exceptions ", key, " ", index)
	forged := func() {
		a.exec(`UPDATE exceptions SET reason = 'x' WHERE id = $1`, key)
		a.exec(`INSERT INTO tags VALUES ('r', 'forged', 'sha256:0', 'j')`)
	}
	a.in([]string{"exceptions", "tags"}, forged, func() {
		a.finds("from the start", row, "tags r:forged -1")
		a.findsFrom(1, "from the second entry", row)
		a.findsFrom(index, "from the entry on", row)
		a.findsFrom(index+1, "after the entry")
		whole := a.size
		a.size = index
		a.findsFrom(1, "before it")
		a.size = whole
	})
	for _, r := range [][2]int64{{-1, 2}, {3, 2}} {
		if _, err := a.s.CheckRows(t.Context(), r[0], r[1]); err == nil {
			t.Errorf("%d to %d is accepted", r[0], r[1])
		}
	}
	// Described again by an entry that has no place yet.
	_, err := a.s.RevokeException(t.Context(), "app", key, "grace")
	check(t, err)
	a.findsFrom(1, "an entry that has no place yet counts")
	a.in([]string{"exceptions"}, forged, func() { a.findsFrom(1, "and says what the row must be", fmt.Sprint("exceptions ", key, " -1")) })
}
