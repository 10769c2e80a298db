package postgres

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

// PackagesFirstSQL finds a page of these packages after image, of everything in scope:
// as pairs, and as the lines that are made of them.
func PackagesFirstSQL(s pipeline.AuditScope, ids []int64, image, pkg int64) (pairs, lines string, args []any) {
	w := where{}
	inScope(&w, s)
	pairs = packagesFirst(&w, s.Page.Limit, `unnest(`+w.arg(ids)+`::bigint[]) AS c (id)`, pair{image, pkg})
	return pairs, linesOf(pairs), w.args
}

// NamedSQL does the same for all packages of that name.
func NamedSQL(s pipeline.AuditScope, name string, image, pkg int64) (pairs, lines string, args []any) {
	named := namedPairs(pipeline.PackageAuditQuery{Name: name, AuditScope: s}, pair{image, pkg})
	return named.sql, linesOf(named.sql), named.args
}

// FindingPageSQL finds a page of the images with a finding.
func FindingPageSQL(q pipeline.FindingAuditQuery) (sql string, args []any, err error) {
	return findingPageSQL(q)
}

// ExceptionsOfLines are those of the page that LeavePage left behind.
var ExceptionsOfLines = exceptionsOfLines

// LeavePage is SQL that leaves a page of lines behind: of runs, projects and packages.
func LeavePage(values string) string {
	return `SELECT ` + leave("runs", "run") + `, ` + leave("projects", "project") + `, ` + leave("packages", "package") + ` FROM (VALUES ` + values + `) AS l (run, project, package)`
}

// The rows that are not what they repeat.
const (
	ChangedStays   = changedStays
	ChangedRecords = changedRecords
)

// Snapshot runs a query in a snapshot, and says in what transaction that was. It
// returns the error before it finishes, if there is one.
func Snapshot(ctx context.Context, s *Store, sql string, fail error, finish bool) (in []string, err error) {
	err = s.snapshot(ctx, planOnce, func(t *snapshot) error {
		if _, err := collect(ctx, t, func(row pgx.CollectableRow) (any, error) { v, err := row.Values(); return v, err }, sql); err != nil {
			return err
		}
		if in, err = collect(ctx, t, pgx.RowTo[string], `SELECT current_setting('transaction_isolation') || ', ' || current_setting('transaction_read_only')`); err != nil || fail != nil {
			return errors.Join(err, fail)
		}
		if !finish {
			return nil
		}
		return t.finish(ctx, &pgx.Batch{})
	})
	return in, err
}
