package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// Counts are what metrics are made of.
type Counts struct {
	// Runs by project and state.
	Runs []Count
	// Promotions by project, environment and state.
	Promotions []Count
	// BreakGlass counts the promotions for which an emergency overrode a rule,
	// by project and environment.
	BreakGlass []Count
	// Drift counts what is open now, Repaired what was put right; by project,
	// environment and kind.
	Drift, Repaired []Count
	// Findings counts what is known now of what environments hold, each finding in
	// a package version once; by project, environment and severity.
	Findings []Count
	// DatabaseAge is how old the newest vulnerability database is that images were
	// matched with, in seconds; negative when there was none.
	DatabaseAge float64
}

// Count is a number with its labels.
type Count struct {
	Labels []string
	N      int64
}

// Counts counts, as of one moment.
func (s *Store) Counts(ctx context.Context) (c Counts, err error) {
	err = s.read(ctx, func(tx pgx.Tx) error {
		err := tx.QueryRow(ctx, `
			SELECT coalesce(extract(epoch FROM clock_timestamp() - max(at)), -1)::float8 FROM (
				SELECT max(db_updated_at) AS at FROM rematches UNION ALL
				SELECT r.db_updated_at FROM images i JOIN image_records r ON r.run = i.newest WHERE i.id = (SELECT max(id) FROM images)) d`).Scan(&c.DatabaseAge)
		if err != nil {
			return err
		}
		for _, q := range []struct {
			into *[]Count
			sql  string
		}{
			{&c.Runs, `SELECT ARRAY[project, state], count(*) FROM jobs WHERE kind = 'run' GROUP BY project, state`},
			{&c.Promotions, `
				SELECT ARRAY[p.project, p.environment, j.state], count(*)
				FROM promotions p JOIN jobs j ON j.id = p.id GROUP BY p.project, p.environment, j.state`},
			{&c.BreakGlass, `
				SELECT ARRAY[p.project, p.environment], count(*)
				FROM promotions p JOIN decisions d ON d.job = p.id
				WHERE p.break_glass <> '' AND d.passed AND d.decision->'breakGlass' IS NOT NULL GROUP BY p.project, p.environment`},
			{&c.Drift, `
				SELECT ARRAY[project, environment, kind], count(*) FROM drifts
				WHERE repaired_at IS NULL AND resolved_at IS NULL GROUP BY project, environment, kind`},
			{&c.Repaired, `
				SELECT ARRAY[project, environment, kind], count(*) FROM drifts
				WHERE repaired_at IS NOT NULL GROUP BY project, environment, kind`},
			{&c.Findings, `
				SELECT ARRAY[l.project, l.environment, (ARRAY['unknown', 'low', 'medium', 'high', 'critical'])[f.severity + 1]],
				       count(DISTINCT (f.id, f.package, f.version))
				FROM lanes l JOIN promotions p ON p.id = l.current JOIN images i ON i.id = p.image
				JOIN findings f ON f.run = i.newest AND f.gone_at IS NULL GROUP BY l.project, l.environment, f.severity`},
		} {
			rows, err := tx.Query(ctx, q.sql)
			if err != nil {
				return err
			}
			if *q.into, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Count]); err != nil {
				return err
			}
		}
		return nil
	})
	return c, wrap(err, "count")
}
