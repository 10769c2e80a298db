package postgres_test

import (
	"strings"
	"testing"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/postgres/postgrestest"
)

// TestAuditTellsAllOrNothing: where what a record's numbers stand for is gone, the
// answer is an error, and not one that leaves it out.
func TestAuditTellsAllOrNothing(t *testing.T) {
	pool := postgrestest.New(t)
	s := newStore(t, pool)
	syncSample(t, s)
	release(t, s, "app", "one", []pipeline.Package{{Type: "npm", Name: "left-pad", Version: "1", Path: "package.json", Layer: "sha256:app", Licenses: []string{"MIT"}}}, nil)
	ask := func() ([]pipeline.PackageAudit, error) {
		return s.AuditPackages(t.Context(), pipeline.PackageAuditQuery{Name: "left-pad", AuditScope: pipeline.AuditScope{Reach: everything, Page: pipeline.Page{Limit: 10}}})
	}
	for _, table := range []string{"paths", "layers", "license_lists"} {
		meddle(t, pool, `CREATE TABLE kept AS SELECT * FROM `+table+`; DELETE FROM `+table)
		if uses, err := ask(); err == nil || !strings.Contains(err.Error(), "is not complete") {
			t.Errorf("without %s: %+v, %v", table, uses, err)
		}
		meddle(t, pool, `INSERT INTO `+table+` OVERRIDING SYSTEM VALUE SELECT * FROM kept; DROP TABLE kept`)
		if uses, err := ask(); err != nil || len(uses) != 1 {
			t.Errorf("with %s again: %+v, %v", table, uses, err)
		}
	}
}
