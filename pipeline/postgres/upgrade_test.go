package postgres_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

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

// TestUpgradeKeepsPromotions: what was promoted before there were lanes has its
// place in them, and a promotion that was under way goes on.
func TestUpgradeKeepsPromotions(t *testing.T) {
	pool := migrated(t, 4)
	settings, err := json.Marshal(pipelinetest.SampleProject("app"))
	check(t, err)
	one, two := pipelinetest.DigestOf("one"), pipelinetest.DigestOf("two")
	tx, err := pool.Begin(t.Context())
	check(t, err)
	exec := execIn(t, tx)
	exec(`INSERT INTO projects (name, version) VALUES ('app', 1)`)
	exec(`INSERT INTO project_versions (project, version, digest, settings) VALUES ('app', 1, $1, $2)`, string(one), settings)
	exec(`INSERT INTO tokens (name, hash) VALUES ('old', sha256('dray_old'))`)
	for i, d := range []pipeline.Digest{one, two} {
		run := "run_" + d.Hex()[:20]
		exec(`INSERT INTO jobs (id, kind, project, state, started_at, finished_at) VALUES ($1, 'run', 'app', 'succeeded', now(), now())`, run)
		exec(`INSERT INTO runs (id, event_key, ref, event) VALUES ($1, decode($2, 'hex'), 'refs/heads/main', '{}')`, run, d.Hex())
		exec(`INSERT INTO stages (job, stage, attempt, state, outcome, finished_at) VALUES ($1, 'gate', 1, 'succeeded', '{"passed":true}', now())`, run)
		exec(`INSERT INTO images (project, digest, newest) VALUES ('app', $1, $2)`, string(d), run)
		exec(`INSERT INTO image_records (run, image, project, repository, commit_sha, plan_digest, built, scanned_at, scanner, db_reference, db_digest, db_updated_at)
			VALUES ($1, $2, 'app', 'dev.example/acme/app', 'c', 'p', '{}', now(), 's', 'r', 'd', now())`, run, i+1)
		exec(`INSERT INTO decisions (job, passed, decision, evaluated_at) VALUES ($1, true, '{"passed":true}', now())`, run)
	}
	promotion := func(id, environment, state string, image, minute int) {
		t.Helper()
		exec(`INSERT INTO jobs (id, kind, project, state, started_at, finished_at)
			VALUES ($1, 'promotion', 'app', $2, now(), CASE WHEN $2 = 'running' THEN NULL ELSE now() + $3 * interval '1 minute' END)`, id, state, minute)
		exec(`INSERT INTO promotions (id, image, repository, environment, requested_by) VALUES ($1, $2, 'dev.example/acme/app', $3, 'grace')`, id, image, environment)
		exec(`INSERT INTO stages (job, stage, attempt, state, outcome, finished_at) VALUES ($1, 'gate', 1, 'succeeded', '{"passed":true}', now())`, id)
		if state == "succeeded" {
			exec(`INSERT INTO placements (promotion, image, environment, repository, copied) VALUES ($1, $2, $3, 'prod.example/acme/app', '{}')`, id, image, environment)
		}
	}
	promotion("prm_1", "prod", "succeeded", 2, 2) // later than the next
	promotion("prm_2", "prod", "succeeded", 1, 1)
	promotion("prm_3", "prod", "failed", 1, 3)
	promotion("prm_4", "prod", "running", 1, 0)
	promotion("prm_5", "staging", "succeeded", 1, 0)
	check(t, tx.Commit(t.Context()))

	check(t, postgres.Migrate(t.Context(), pool, postgrestest.Seal()))
	s := newStore(t, pool)
	var changed int
	check(t, pool.QueryRow(t.Context(), `SELECT count(*) FROM (`+postgres.ChangedStays+`) c`).Scan(&changed))
	if changed != 0 {
		t.Errorf("%d stays are not what they repeat", changed)
	}
	states, err := s.Environments(t.Context(), "app")
	check(t, err)
	if staging, prod := states[0], states[1]; staging.Current.Promotion != "prm_5" || prod.Current.Promotion != "prm_1" ||
		prod.Current.Image.Digest != two || prod.Entering != "prm_4" || len(prod.Waiting) != 0 {
		t.Fatalf("the environments are %+v", states)
	}
	_, _, err = s.Promote(t.Context(), pipeline.PromotionRequest{Project: "app", Environment: "prod", Action: pipeline.ActionRollback, RequestedBy: "rita"})
	check(t, err)

	// The one that was past its gate finds what its gate said, and ends in turn.
	c, err := s.StartStage(t.Context(), "prm_4", pipeline.StageGate)
	check(t, err)
	var judged pipeline.Judged
	check(t, json.Unmarshal(c.Outcome, &judged))
	if !c.Done || !judged.Decision.Passed {
		t.Fatalf("its gate says %s", c.Outcome)
	}
	p, err := s.Promotion(t.Context(), "prm_4")
	check(t, err)
	if p.Action != pipeline.ActionPromote || p.State != pipeline.StateRunning {
		t.Fatalf("the promotion is %+v", p)
	}
	dest := pipeline.Image{Repository: "prod.example/acme/app", Digest: one}
	check(t, s.RecordPlacement(t.Context(), start(t, s, "prm_4", pipeline.StageRecord), pipeline.Placement{Copied: pipeline.Copied{Image: dest}}))
	check(t, s.RecordTags(t.Context(), start(t, s, "prm_4", pipeline.StageTag), nil, nil))
	if states, err = s.Environments(t.Context(), "app"); err != nil || states[1].Current.Promotion != "prm_4" || states[1].Entering != "" {
		t.Fatalf("in the end the environments are %+v, %v", states, err)
	}
	history, err := s.AuditEnvironment(t.Context(), pipeline.EnvironmentAuditQuery{Project: "app", Environment: "prod"})
	check(t, err)
	var held []string
	for i, h := range history {
		held = append(held, string(h.Stay.Promotion))
		if last := i == 0; last != (h.Stay.Until == nil) || !last && !h.Stay.Until.Equal(history[i-1].Stay.Since) {
			t.Errorf("%s was there until %v", h.Stay.Promotion, h.Stay.Until)
		}
	}
	if !slices.Equal(held, []string{"prm_4", "prm_1", "prm_2"}) {
		t.Errorf("prod held %v", held)
	}
	tok, err := s.TokenBySecret(t.Context(), "dray_old")
	check(t, err)
	if len(tok.Grants) != 1 || tok.Grants[0].Role != pipeline.RoleAdmin {
		t.Fatalf("the old token grants %v", tok.Grants)
	}
}

// migrated is a database as a version of the schema had it.
func migrated(t *testing.T, version int64) *pgxpool.Pool {
	t.Helper()
	pool := postgrestest.Pool(t, postgrestest.Empty(t))
	db := stdlib.OpenDBFromPool(pool)
	defer func() { check(t, db.Close()) }()
	provider, err := goose.NewProvider(goose.DialectPostgres, db, migrations.Files)
	check(t, err)
	_, err = provider.UpTo(t.Context(), version)
	check(t, err)
	return pool
}

// execIn runs statements in a transaction that have to succeed.
func execIn(t *testing.T, tx pgx.Tx) func(sql string, args ...any) {
	return func(sql string, args ...any) {
		t.Helper()
		_, err := tx.Exec(t.Context(), sql, args...)
		check(t, err)
	}
}

// TestUpgradeKeepsContents: what was in an image before its places had tables of
// their own is in it afterwards, to the byte: the log's entries about it hold.
func TestUpgradeKeepsContents(t *testing.T) {
	pool := migrated(t, 13)
	settings, err := json.Marshal(pipelinetest.SampleProject("app"))
	check(t, err)
	zero := string(pipelinetest.DigestOf("zero"))
	tx, err := pool.Begin(t.Context())
	check(t, err)
	exec := execIn(t, tx)
	exec(`INSERT INTO projects (name, version) VALUES ('app', 1)`)
	exec(`INSERT INTO project_versions (project, version, digest, settings) VALUES ('app', 1, $1, $2)`, zero, settings)
	exec(`INSERT INTO jobs (id, kind, project, state, started_at, finished_at) VALUES ('run_1', 'run', 'app', 'succeeded', now(), now())`)
	exec(`INSERT INTO runs (id, event_key, ref, event) VALUES ('run_1', sha256('1'), 'refs/heads/main', '{}')`)
	exec(`INSERT INTO images (project, digest, newest) VALUES ('app', $1, 'run_1')`, zero)
	exec(`INSERT INTO image_records (run, image, project, repository, commit_sha, plan_digest, built, scanned_at, scanner, db_reference, db_digest, db_updated_at)
		VALUES ('run_1', 1, 'app', 'dev.example/acme/app', 'c', 'p', '{}', now(), 's', 'r', 'd', now())`)
	exec(`INSERT INTO packages (key, type, name, version, purl) VALUES (sha256('1'), 'deb', 'openssl', '1', ''), (sha256('2'), 'npm', 'left-pad', '2', 'pkg:npm/left-pad@2')`)
	long := "opt/" + strings.Repeat("long/", 2000)
	for i, p := range []struct {
		path, layer string
		licenses    []string
	}{
		{"", "sha256:base", nil},
		{"", "sha256:base", []string{}},
		{"app/package.json", "sha256:app", []string{"MIT"}},
		{"app/package.json", "sha256:app", []string{"MIT", "ISC"}},
		{"app/package.json", "", []string{"ISC", "MIT"}},
		{long, "sha256:app", []string{""}},
		{"naïve \\ path\n", "sha256:app", []string{"", ""}},
	} {
		exec(`INSERT INTO image_packages (image, report, position, platform, package, path, layer, licenses) VALUES (1, $1, $2, $3, $4, $5, $6, $7)`,
			i%2, i, []string{"linux/amd64", "linux/arm64"}[i%2], i%2+1, p.path, p.layer, p.licenses)
	}
	check(t, tx.Commit(t.Context()))

	digest := func(sql string) (d string) {
		t.Helper()
		check(t, pool.QueryRow(t.Context(), `SELECT `+sql+` FROM images t WHERE id = 1`).Scan(&d))
		return d
	}
	// As the version before had it.
	before := digest(`'sha256:' || encode(sha256(convert_to((jsonb_build_object('id', t.id, 'project', t.project, 'digest', t.digest, 'newest', t.newest,
		'pruned_at', t.pruned_at AT TIME ZONE 'UTC',
		'platforms', (SELECT encode(sha256(convert_to((coalesce(string_agg(jsonb_build_array(c.position, c.platform, c.digest, c.size, c.media_type)::text, E'\n'
			ORDER BY c.position), ''))::text, 'UTF8')), 'hex') FROM image_platforms c WHERE c.image = t.id),
		'packages', (SELECT encode(sha256(convert_to((coalesce(string_agg(jsonb_build_array(c.report, c.position, c.platform, p.type, p.name, p.version, p.purl,
			c.path, c.layer, c.licenses)::text, E'\n' ORDER BY c.report, c.position), ''))::text, 'UTF8')), 'hex')
			FROM image_packages c JOIN packages p ON p.id = c.package WHERE c.image = t.id)))::text, 'UTF8')), 'hex')`)
	check(t, postgres.Migrate(t.Context(), pool, postgrestest.Seal()))
	sql, form := postgres.DigestOf("images")
	if after := digest(sql); form != 1 || after != before {
		t.Errorf("the log called the image %s, and calls it %s in form %d", before, after, form)
	}

	// What is known already is not kept once more.
	counts := func() (n [3]int) {
		t.Helper()
		check(t, pool.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM paths), (SELECT count(*) FROM layers), (SELECT count(*) FROM license_lists)`).Scan(&n[0], &n[1], &n[2]))
		return n
	}
	if n := counts(); n != [3]int{4, 3, 6} {
		t.Errorf("%v paths, layers and lists of licences", n)
	}
	s := newStore(t, pool)
	old := []pipeline.Package{
		{Type: "deb", Name: "a", Version: "1", Layer: "sha256:base"},
		{Type: "deb", Name: "b", Version: "1", Path: long, Layer: "sha256:app", Licenses: []string{""}},
		{Type: "deb", Name: "c", Version: "1", Path: "app/package.json", Licenses: []string{"MIT", "ISC"}},
		{Type: "deb", Name: "d", Version: "1", Path: "naïve \\ path\n", Licenses: []string{"", ""}},
	}
	release(t, s, "app", "next", old, nil)
	if n := counts(); n != [3]int{4, 3, 6} {
		t.Errorf("then %v paths, layers and lists of licences", n)
	}
	uses, err := s.AuditPackages(t.Context(), pipeline.PackageAuditQuery{Name: "b", AuditScope: pipeline.AuditScope{Reach: pipeline.Reach{All: true}, Page: pipeline.Page{Limit: 10}}})
	check(t, err)
	if len(uses) != 1 || uses[0].Package.Path != long || uses[0].Package.Layer != "sha256:app" || !slices.Equal(uses[0].Package.Licenses, []string{""}) {
		t.Errorf("found %+v", uses)
	}
	release(t, s, "app", "last", append(old, pipeline.Package{Type: "deb", Name: "e", Version: "1", Path: "new", Layer: "new", Licenses: []string{"new"}}), nil)
	if n := counts(); n != [3]int{5, 4, 7} {
		t.Errorf("in the end %v paths, layers and lists of licences", n)
	}
}

// TestUpgradeNumbersRecords: an image's newest record has its highest number, even where
// the clock was set back before it was made, and what a run brought first is known by
// the number of its record.
func TestUpgradeNumbersRecords(t *testing.T) {
	pool := migrated(t, 15)
	settings, err := json.Marshal(pipelinetest.SampleProject("app"))
	check(t, err)
	digest := func(name string) string { return string(pipelinetest.DigestOf(name)) }
	tx, err := pool.Begin(t.Context())
	check(t, err)
	exec := execIn(t, tx)
	exec(`INSERT INTO projects (name, version) VALUES ('app', 1)`)
	exec(`INSERT INTO project_versions (project, version, digest, settings) VALUES ('app', 1, $1, $2)`, digest("zero"), settings)
	exec(`INSERT INTO packages (key, type, name, version, purl) VALUES (sha256('1'), 'deb', 'openssl', '1', ''), (sha256('2'), 'deb', 'openssl', '2', '')`)
	exec(`INSERT INTO paths (key, path) VALUES (sha256(''), ''); INSERT INTO layers (key, layer) VALUES (sha256(''), '')`)
	for i, r := range []struct {
		run, newest string
		image       int
		at          string
	}{
		{"run_1", "run_3", 1, "2026-01-02"},
		{"run_2", "run_2", 2, "2026-01-03"},
		{"run_3", "", 1, "2026-01-01"},
	} {
		exec(`INSERT INTO jobs (id, kind, project, state, started_at, finished_at) VALUES ($1, 'run', 'app', 'succeeded', now(), now())`, r.run)
		exec(`INSERT INTO runs (id, event_key, ref, event) VALUES ($1, sha256($1::text::bytea), 'refs/heads/main', '{}')`, r.run)
		if r.newest != "" {
			exec(`INSERT INTO images (project, digest, newest) VALUES ('app', $1, $2)`, digest(r.run), r.newest)
			exec(`INSERT INTO image_packages (image, report, position, platform, package, path, layer) VALUES ($1, 0, 0, 'linux/amd64', $1, 1, 1)`, i+1)
			exec(`INSERT INTO package_firsts (package, project, run) VALUES ($1, 'app', $2)`, i+1, r.run)
		}
		exec(`INSERT INTO image_records (run, image, project, repository, commit_sha, plan_digest, built, scanned_at, scanner, db_reference, db_digest, db_updated_at, recorded_at)
			VALUES ($1, $2, 'app', 'dev.example/acme/app', 'of ' || $1, 'p', '{}', now(), 's', 'r', 'd', now(), $3)`, r.run, r.image, r.at)
	}
	check(t, tx.Commit(t.Context()))

	check(t, postgres.Migrate(t.Context(), pool, postgrestest.Seal()))
	s := newStore(t, pool)
	ask := func() (told []string) {
		t.Helper()
		var changed int
		check(t, pool.QueryRow(t.Context(), `SELECT count(*) FROM (`+postgres.ChangedRecords+`) c`).Scan(&changed))
		if changed != 0 {
			t.Errorf("%d records do not repeat what they must", changed)
		}
		items, err := s.AuditPackages(t.Context(), pipeline.PackageAuditQuery{Name: "openssl", AuditScope: pipeline.AuditScope{Reach: pipeline.Reach{All: true}, Page: pipeline.Page{Limit: 10}}})
		check(t, err)
		for _, i := range items {
			told = append(told, fmt.Sprint(i.Package.Version, " ", i.Run, " ", i.Commit, " ", i.Image.Digest == i.First.Digest, " first ", i.First.Run))
		}
		return told
	}
	if told, want := ask(), []string{"2 run_2 of run_2 true first run_2", "1 run_3 of run_3 true first run_1"}; !slices.Equal(told, want) {
		t.Errorf("it tells %q, want %q", told, want)
	}
	// What is recorded from now on goes on from there.
	rec := release(t, s, "app", "next", []pipeline.Package{{Type: "deb", Name: "openssl", Version: "3"}}, nil)
	again := recordAgain(t, s, rec, pipeline.VulnerabilityDatabase{UpdatedAt: time.Now()})
	if told := ask(); len(told) != 3 || !strings.HasPrefix(told[0], "3 "+string(again)) || !strings.HasSuffix(told[0], "first "+string(rec.Run)) {
		t.Errorf("then it tells %q", told)
	}
}
