package postgres_test

import (
	"errors"
	"sync"
	"testing"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/postgres"
	"github.com/dray-project/dray/pipeline/postgres/postgrestest"
)

func TestMigrate(t *testing.T) {
	dsn := postgrestest.Empty(t)
	pool := postgrestest.Pool(t, dsn)
	s := newStore(t, pool)
	if err := s.Ready(t.Context()); !errors.Is(err, pipeline.ErrConflict) {
		t.Fatalf("without a schema, ready is %v", err)
	}
	// Several processes that start at the same time, one of them with hardly a
	// connection to spare.
	var wg sync.WaitGroup
	for i := range 4 {
		small, err := postgres.Connect(t.Context(), dsn, int32(1+i))
		check(t, err)
		defer small.Close()
		wg.Go(func() {
			if err := postgres.Migrate(t.Context(), small, postgrestest.Seal()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	check(t, s.Ready(t.Context()))
	check(t, postgres.Migrate(t.Context(), pool, postgrestest.Seal())) // again

	exec := func(sql string) {
		t.Helper()
		_, err := pool.Exec(t.Context(), sql)
		check(t, err)
	}
	exec(`INSERT INTO goose_db_version (version_id, is_applied) VALUES (99999, true)`)
	for name, err := range map[string]error{"ready": s.Ready(t.Context()), "migrate": postgres.Migrate(t.Context(), pool, postgrestest.Seal())} {
		if !errors.Is(err, pipeline.ErrConflict) {
			t.Errorf("with a newer schema, %s: %v", name, err)
		}
	}
	exec(`DELETE FROM goose_db_version WHERE version_id = 99999 OR version_id = (SELECT max(version_id) FROM goose_db_version WHERE version_id < 99999)`)
	if err := s.Ready(t.Context()); !errors.Is(err, pipeline.ErrConflict) {
		t.Errorf("with an older schema, ready is %v", err)
	}
}

// TestForeignKeysHaveIndexes: a foreign key without one makes every deletion and
// many a join read the whole table. Those listed are never followed backwards.
func TestForeignKeysHaveIndexes(t *testing.T) {
	pool := postgrestest.New(t)
	rows, err := pool.Query(t.Context(), `
		SELECT c.conrelid::regclass || ' ' || pg_get_constraintdef(c.oid)
		FROM pg_constraint c
		WHERE c.contype = 'f' AND c.connamespace = 'public'::regnamespace AND NOT EXISTS (
			SELECT FROM pg_index i WHERE i.indrelid = c.conrelid AND i.indpred IS NULL
			AND (i.indkey::int2[])[0:cardinality(c.conkey) - 1] @> c.conkey)`)
	check(t, err)
	known := map[string]bool{
		"projects FOREIGN KEY (name, version) REFERENCES project_versions(project, version) DEFERRABLE INITIALLY DEFERRED": true, // one row each
		"images FOREIGN KEY (newest) REFERENCES image_records(run) DEFERRABLE INITIALLY DEFERRED":                          true, // records are not deleted
		"images FOREIGN KEY (project) REFERENCES projects(name)":                                                           true, // nor are projects
		"jobs FOREIGN KEY (project) REFERENCES projects(name)":                                                             true,
		"runs FOREIGN KEY (id, kind) REFERENCES jobs(id, kind) DEFERRABLE INITIALLY DEFERRED":                              true, // id is the primary key
		"promotions FOREIGN KEY (id, kind) REFERENCES jobs(id, kind) DEFERRABLE INITIALLY DEFERRED":                        true,
		"tags FOREIGN KEY (job) REFERENCES jobs(id)":                                                                       true,
	}
	for rows.Next() {
		var s string
		check(t, rows.Scan(&s))
		if !known[s] {
			t.Error(s)
		}
	}
	check(t, rows.Err())
}
