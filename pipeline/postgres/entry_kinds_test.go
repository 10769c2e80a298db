package postgres_test

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"github.com/dray-project/dray/migrations"
	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/pipelinetest"
	"github.com/dray-project/dray/pipeline/postgres"
	"github.com/dray-project/dray/pipeline/postgres/postgrestest"
)

// leaves reads the entries in their order.
func leaves(t testing.TB, pool *pgxpool.Pool) (out []pipeline.Entry) {
	t.Helper()
	rows, err := pool.Query(t.Context(), `SELECT leaf FROM log_entries ORDER BY id`)
	check(t, err)
	out, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (pipeline.Entry, error) {
		var leaf []byte
		if err := row.Scan(&leaf); err != nil {
			return pipeline.Entry{}, err
		}
		if len(leaf) > pipeline.MaxLeaf {
			t.Errorf("a leaf has %d bytes", len(leaf))
		}
		return pipeline.ParseEntry(leaf)
	})
	check(t, err)
	return out
}

// entryKinds are those that the code names.
func entryKinds(t *testing.T) (out []string) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "../entry.go", nil, 0)
	check(t, err)
	ast.Inspect(file, func(n ast.Node) bool {
		if spec, ok := n.(*ast.ValueSpec); ok && strings.HasPrefix(spec.Names[0].Name, "Entry") {
			if lit, ok := spec.Values[0].(*ast.BasicLit); ok && lit.Kind == token.STRING {
				kind, err := strconv.Unquote(lit.Value)
				check(t, err)
				out = append(out, kind)
			}
		}
		return true
	})
	slices.Sort(out)
	return out
}

// TestLogPage: the page names every kind, and of each what its entries hold.
func TestLogPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/reference/log.md")
	check(t, err)
	data, rows := map[string]string{}, map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z-]+\\.[a-z-]+)` \\| [^|]* \\| ([^|]*) \\|(?: ([^|]*) )?(?: )?\\|$").FindAllStringSubmatch(string(page), -1) {
		data[m[1]], rows[m[1]] = m[2], m[3]
		if like, ok := strings.CutPrefix(m[2], "as `"); ok {
			like = strings.TrimSuffix(like, "`")
			if data[m[1]] = data[like]; data[like] == "" {
				data[m[1]] = "as " + like
			}
		}
	}
	for kind, like := range data {
		if of, ok := strings.CutPrefix(like, "as "); ok {
			data[kind] = data[of]
		}
	}
	var described []string
	for kind := range data {
		described = append(described, kind)
	}
	slices.Sort(described)
	if want := entryKinds(t); !slices.Equal(described, want) {
		t.Errorf("the page describes %v, the code has %v", described, want)
	}

	pool := postgrestest.New(t)
	evidence(t, newStore(t, pool))
	written := map[string]bool{}
	for _, e := range leaves(t, pool) {
		written[e.Kind] = true
		var members map[string]json.RawMessage
		if len(e.Data) > 0 {
			check(t, json.Unmarshal(e.Data, &members))
		}
		for name := range members {
			if name, _ = strings.CutSuffix(name, "Omitted"); !strings.Contains(data[e.Kind], "`"+name+"`") {
				t.Errorf("%s has %s, which the page does not say", e.Kind, name)
			}
		}
		for _, r := range e.Rows {
			if !strings.Contains(rows[e.Kind], "`"+r.Table+"`") {
				t.Errorf("%s describes a row of %s, which the page does not say", e.Kind, r.Table)
			}
		}
		if e.Actor == "" || e.At.IsZero() {
			t.Errorf("nobody did it, or at no time: %+v", e)
		}
	}
	for _, kind := range described {
		if kind != pipeline.EntryAdopted && kind != pipeline.EntryRetentionApplied && !written[kind] {
			t.Errorf("nothing wrote %s", kind)
		}
	}
}

// TestEntriesSayWhatHappened looks at some entries as a reader of the log does.
func TestEntriesSayWhatHappened(t *testing.T) {
	pool := postgrestest.New(t)
	s := newStore(t, pool)
	evidence(t, s)
	secret, _, err := s.CreateToken(t.Context(), "auditor", []pipeline.Grant{{Role: pipeline.RoleAuditor}}, nil)
	check(t, err)
	found := map[string]pipeline.Entry{}
	for _, e := range leaves(t, pool) {
		found[e.Kind] = e
		if leaf, err := e.Leaf(); err != nil || strings.Contains(string(leaf), secret) || strings.Contains(string(leaf), "\\u0000") {
			t.Errorf("a leaf holds a secret or a NUL: %s, %v", leaf, err)
		}
	}
	for kind, want := range map[string]string{
		pipeline.EntryBreakGlass:        `grace app {"reason":"it burns","rules":["soak"]}`,
		pipeline.EntryPromotionApproved: `rita app {"comment":"fine � by me","environment":"staging","plan":"` + string(plan) + `","roles":["admin"]}`,
		pipeline.EntryPromotionRejected: `rita app {"environment":"staging","plan":"` + string(plan) + `"}`,
		pipeline.EntryTokenCreated:      `dray  {"grants":["auditor"]}`,
		pipeline.EntryTokenRevoked:      `dray  {"reason":"replaced"}`,
		pipeline.EntryExceptionRevoked:  `grace app {"finding":"CVE-1"}`,
		pipeline.EntryDeliveryRefused:   `dray  {"count":1,"forge":"github","reason":"the signature does not verify"}`,
	} {
		e := found[kind]
		if got := fmt.Sprintf("%s %s %s", e.Actor, e.Project, e.Data); got != want {
			t.Errorf("%s is %s\nwant %s", kind, got, want)
		}
	}
	if e := found[pipeline.EntryPromotionDecided]; e.Image == "" || !strings.Contains(string(e.Data), `"from":"sha256:`) || len(e.Rows) != 2 {
		t.Errorf("the last decision is %+v, %s", e, e.Data)
	}
}

// TestLongEntries: what is too long is cut, and what is recorded is recorded.
func TestLongEntries(t *testing.T) {
	pool := postgrestest.New(t)
	s := newStore(t, pool)
	syncSample(t, s)
	rec := release(t, s, "app", "one", nil, nil)
	p := promote(t, s, rec, "prod", "grace")
	d := notYet(nil)
	d.Rules = nil
	for i := range 500 {
		d.Rules = append(d.Rules, pipeline.RuleResult{Rule: fmt.Sprint("rule-", i), Pending: true, Reason: strings.Repeat("\x01€", 1000)})
	}
	check(t, s.Wait(t.Context(), start(t, s, p.ID.Job(), pipeline.StageGate), pipeline.Waiting{Decision: d}))
	run := push(t, s, "app", "refs/heads/main", "two")
	var moves []pipeline.TagMove
	for i := range 200 {
		moves = append(moves, pipeline.TagMove{Repository: strings.Repeat("r", 255), Tag: fmt.Sprintf("%s%d", strings.Repeat("t", 120), i),
			From: pipelinetest.DigestOf("a"), To: pipelinetest.DigestOf("b"), Moved: true, Held: true, Note: strings.Repeat("<", 2000)})
	}
	check(t, s.RecordTags(t.Context(), start(t, s, run.Job(), pipeline.StageTag), moves, nil))
	tags, omitted := 0, 0
	for _, e := range leaves(t, pool) {
		var said struct {
			Tags         []any
			RulesOmitted int
			Rules        []struct{ Reason string }
			Omitted      int
		}
		if len(e.Data) > 0 {
			check(t, json.Unmarshal(e.Data, &said))
		}
		tags += len(said.Tags)
		if e.Kind == pipeline.EntryPromotionDecided {
			omitted = said.RulesOmitted + said.Omitted
		}
	}
	if tags != len(moves) || omitted == 0 {
		t.Errorf("%d of %d tags are in the log; %d rules or bytes were left out", tags, len(moves), omitted)
	}
}

// TestEntriesInParallel: rows that many change at a time are what the newest
// entry says.
func TestEntriesInParallel(t *testing.T) {
	dsn := postgrestest.DSN(t)
	stores := []*postgres.Store{newStore(t, postgrestest.Pool(t, dsn)), newStore(t, postgrestest.Pool(t, dsn))}
	syncSample(t, stores[0])
	var all sync.WaitGroup
	for w := range 8 {
		s := stores[w%2]
		all.Go(func() {
			for i := range 5 {
				project := pipelinetest.SampleProject("app")
				project.CloneURL = fmt.Sprintf("https://git.example/%d-%d", w, i%3)
				if err := s.SyncProjects(t.Context(), []pipeline.Project{project, pipelinetest.SampleProject("web")}[:1+i%2]); err != nil {
					t.Error(err)
				}
				if _, _, err := s.CreateToken(t.Context(), "ci", []pipeline.Grant{{Role: "viewer"}}, nil); err != nil {
					t.Error(err)
				}
				release(t, s, "app", fmt.Sprint(w, " ", i), []pipeline.Package{pkg("crypto", fmt.Sprint("v", i))}, nil, "latest")
			}
		})
	}
	all.Wait()
}

// TestAdoption: rows from before the log are taken over once.
func TestAdoption(t *testing.T) {
	pool := postgrestest.New(t)
	s := newStore(t, pool)
	evidence(t, s)
	_, err := pool.Exec(t.Context(), `
		INSERT INTO tags SELECT repeat('r', 255), repeat('t', 120) || i, 'sha256:0', (SELECT id FROM jobs LIMIT 1), now() FROM generate_series(1, 700) i;
		TRUNCATE log_rows, log_entries`)
	check(t, err)
	check(t, postgres.Migrate(t.Context(), pool, postgrestest.Seal()))
	size := sequence(t, pool)
	intact(t, s, pool)
	rows := 0
	for _, e := range leaves(t, pool) {
		if e.Kind != pipeline.EntryAdopted || len(e.Rows) == 0 {
			t.Errorf("there is %+v", e)
		}
		rows += len(e.Rows)
	}
	if rows < 700 {
		t.Errorf("%d rows were taken over", rows)
	}
	// What is forged afterwards is not, however often somebody migrates.
	meddle(t, pool, `INSERT INTO tags SELECT 'forged', tag, digest, job, since FROM tags LIMIT 1`)
	check(t, postgres.Migrate(t.Context(), pool, postgrestest.Seal()))
	if again := sequence(t, pool); again != size {
		t.Errorf("the second migration wrote %d entries", again-size)
	}
	found, err := s.CheckRows(t.Context(), 0, size)
	check(t, err)
	if len(found) != 1 || !strings.HasPrefix(found[0].Key, "forged:") {
		t.Errorf("found %+v", found)
	}
}

// TestAdoptionOnUpgrade: a database without a log has one afterwards, and work
// goes on in it.
func TestAdoptionOnUpgrade(t *testing.T) {
	pool := postgrestest.Pool(t, postgrestest.Empty(t))
	db := stdlib.OpenDBFromPool(pool)
	defer func() { check(t, db.Close()) }()
	provider, err := goose.NewProvider(goose.DialectPostgres, db, migrations.Files)
	check(t, err)
	_, err = provider.UpTo(t.Context(), 7)
	check(t, err)
	settings, err := json.Marshal(pipelinetest.SampleProject("app"))
	check(t, err)
	_, err = pool.Exec(t.Context(), `
		BEGIN;
		INSERT INTO projects (name, version) VALUES ('app', 1);
		INSERT INTO project_versions (project, version, digest, settings) VALUES ('app', 1, 'sha256:' || repeat('0', 64), '`+string(settings)+`');
		INSERT INTO jobs (id, kind, project) VALUES ('run_1', 'run', 'app');
		INSERT INTO runs (id, event_key, ref, event) VALUES ('run_1', sha256('x'), 'refs/heads/main', '{}');
		COMMIT`)
	check(t, err)
	check(t, postgres.Migrate(t.Context(), pool, postgrestest.Seal()))
	s := newStore(t, pool) // which checks the rows in the end
	check(t, s.RecordSource(t.Context(), start(t, s, "run_1", pipeline.StageResolve), pipeline.Source{Commit: commit("one")}))
	check(t, s.End(t.Context(), "run_1", pipeline.Ending{State: pipeline.StateFailed, Reason: "no"}))
	if all := leaves(t, pool); len(all) != 5 || all[4].Kind != pipeline.EntryRunEnded {
		t.Errorf("the log is %+v", all)
	}
}
