package postgres_test

import (
	"encoding/json"
	"testing"

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
	pool := postgrestest.Pool(t, postgrestest.Empty(t))
	db := stdlib.OpenDBFromPool(pool)
	defer func() { check(t, db.Close()) }()
	provider, err := goose.NewProvider(goose.DialectPostgres, db, migrations.Files)
	check(t, err)
	_, err = provider.UpTo(t.Context(), 4)
	check(t, err)
	settings, err := json.Marshal(pipelinetest.SampleProject("app"))
	check(t, err)
	one, two := pipelinetest.DigestOf("one"), pipelinetest.DigestOf("two")
	tx, err := pool.Begin(t.Context())
	check(t, err)
	exec := func(sql string, args ...any) {
		t.Helper()
		_, err := tx.Exec(t.Context(), sql, args...)
		check(t, err)
	}
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
	tok, err := s.TokenBySecret(t.Context(), "dray_old")
	check(t, err)
	if len(tok.Grants) != 1 || tok.Grants[0].Role != pipeline.RoleAdmin {
		t.Fatalf("the old token grants %v", tok.Grants)
	}
}
