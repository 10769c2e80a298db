package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/dray-project/dray/pipeline"
)

// Adopt does what every worker does each second: it gives the jobs of dead
// workers back to the queue, and returns them.
func Adopt(ctx context.Context, pool *pgxpool.Pool) ([]string, error) {
	rows, err := pool.Query(ctx, adopt, []string{queueRuns, queuePromotions}, []int64{})
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// Requeue is the second net.
func Requeue(ctx context.Context, pool *pgxpool.Pool) ([]string, error) {
	rows, err := pool.Query(ctx, requeue, riverMaxAttempts, queueRuns, queuePromotions)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// PackagesSQL is the query behind Packages.
func PackagesSQL(q pipeline.PackageQuery) (string, []any, error) { return packagesSQL(q) }

// MaxOrphaned is how many workers a job may lose.
const MaxOrphaned = maxOrphaned

// PruneContents removes what is remembered beyond these bounds.
func PruneContents(ctx context.Context, pool *pgxpool.Pool, kept time.Duration, most, atOnce int) error {
	_, err := pool.Exec(ctx, pruneContents, kept, most, atOnce)
	return err
}

// ProtectedTables are the tables whose rows the evidence log describes.
func ProtectedTables() []string { return newRenditions().tables() }

// NameOf is the SQL of the name that the log has for a row t of the table.
func NameOf(table string) string {
	r, _ := newRenditions().newest(table)
	return r.name()
}

// DigestOf is the SQL of what the log says of a row t of the table, and the form.
func DigestOf(table string) (sql string, form int) {
	r, _ := newRenditions().newest(table)
	return r.digest(), r.form
}

// RetainedLater is what Retained says so much later, if nothing happens until then.
func RetainedLater(ctx context.Context, s *Store, project string, later time.Duration) (pipeline.Retained, error) {
	return s.retained(ctx, project, later)
}
