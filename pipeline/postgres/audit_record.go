package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

// insertOrigins notes what the record is the first in its project to contain, and
// the licences that it found. Rows go in in one order everywhere, as packages do.
func insertOrigins(ctx context.Context, tx pgx.Tx, record int64, rec pipeline.ImageRecord, ids map[[32]byte]int64) error {
	all := make([]int64, 0, len(ids))
	for _, id := range ids {
		all = append(all, id)
	}
	_, err := tx.Exec(ctx, `
		INSERT INTO package_firsts (package, project, record)
		SELECT p, $1, $3 FROM unnest($2::bigint[]) AS p
		WHERE NOT EXISTS (SELECT FROM package_firsts f WHERE f.package = p AND f.project = $1) ORDER BY p
		ON CONFLICT DO NOTHING`, rec.Project, all, record)
	if err != nil {
		return wrap(err, "where packages come from")
	}
	var licensed []int64
	var licenses []string
	seen := map[int64]map[string]bool{}
	for _, r := range rec.Report.Platforms {
		for _, p := range r.Packages {
			id := ids[packageKey(p)]
			for _, l := range p.Licenses {
				if seen[id] == nil {
					seen[id] = map[string]bool{}
				}
				if !seen[id][l] {
					seen[id][l] = true
					licensed, licenses = append(licensed, id), append(licenses, clean(l))
				}
			}
		}
	}
	if len(licensed) == 0 {
		return nil
	}
	_, err = tx.Exec(ctx, `
		INSERT INTO package_licenses (license, package)
		SELECT DISTINCT t, p.id FROM unnest($1::bigint[], $2::text[]) AS p (id, license), license_terms(p.license) AS t
		WHERE NOT EXISTS (SELECT FROM package_licenses l WHERE l.license = t AND l.package = p.id)
		ORDER BY t, p.id
		ON CONFLICT DO NOTHING`, licensed, licenses)
	return wrap(err, "licences")
}
