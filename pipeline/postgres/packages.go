package postgres

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

// Packages says which images hold a package, by their newest record: where each
// was promoted to and by whom, from which commit it was built and what tags name
// it. Newest images first.
func (s *Store) Packages(ctx context.Context, query pipeline.PackageQuery) ([]pipeline.PackageUse, error) {
	sql, args, err := packagesSQL(query)
	if err != nil {
		return nil, err
	}
	rows, err := s.pool.Query(ctx, sql, args...)
	if err != nil {
		return nil, wrap(err, "images with package %.80q", query.Name)
	}
	out, err := pgx.CollectRows(rows, scanPackageUse)
	return notNil(out), wrap(err, "images with package %.80q", query.Name)
}

// packagesSQL is one query. Its inner part finds the page by the indexes on
// packages and image_packages alone; only that page is then joined with the
// rest, however many images hold the package.
func packagesSQL(query pipeline.PackageQuery) (sql string, args []any, err error) {
	if query.Name == "" {
		return "", nil, fmt.Errorf("packages: a name is required: %w", pipeline.ErrInvalid)
	}
	limit, after := page(query.Page)
	w := where{}
	name := w.arg(clean(query.Name))
	w.conds = append(w.conds, "left(p.name, 200) = left("+name+", 200)", "p.name = "+name)
	if query.Version != "" {
		version := w.arg(clean(query.Version))
		w.conds = append(w.conds, "left(p.version, 200) = left("+version+", 200)", "p.version = "+version)
	}
	w.addIf(query.Project != "", "EXISTS (SELECT FROM images i WHERE i.id = x.image AND i.project = %s)", query.Project)
	if query.Promoted || query.Environment != "" {
		env := ""
		if query.Environment != "" {
			env = " AND l.environment = " + w.arg(query.Environment)
		}
		w.conds = append(w.conds, `EXISTS (
			SELECT FROM placements l JOIN jobs j ON j.id = l.promotion AND j.state = 'succeeded' WHERE l.image = x.image`+env+`)`)
	}
	if after != "" {
		var image, pkg int64
		if n, err := fmt.Sscanf(after, "%d-%d", &image, &pkg); err != nil || n != 2 {
			return "", nil, fmt.Errorf("packages: %q is not the id of an item: %w", after, pipeline.ErrInvalid)
		}
		w.add("(x.image, x.package) < (%s, %s)", image, pkg)
	}
	return `
		WITH uses AS (
			SELECT x.image, x.package, array_agg(DISTINCT x.platform ORDER BY x.platform) AS platforms
			FROM packages p JOIN image_packages x ON x.package = p.id` + w.sql() + `
			GROUP BY x.image, x.package
			ORDER BY x.image DESC, x.package DESC
			LIMIT ` + w.arg(limit) + `
		)
		SELECT u.image || '-' || u.package, i.project, r.repository, i.digest, u.platforms,
		       p.name, p.version, p.type, p.purl, a.path, l.layer, s.licenses, r.commit_sha, r.run,
		       coalesce((SELECT array_agg(DISTINCT t.tag ORDER BY t.tag) FROM tags t JOIN jobs j ON j.id = t.job
		                 WHERE t.digest = i.digest AND j.project = i.project), '{}') AS tags,
		       (SELECT json_agg(json_build_object('promotion', l.promotion, 'environment', l.environment,
		                   'image', json_build_object('repository', l.repository, 'digest', i.digest),
		                   'requestedBy', m.requested_by, 'at', l.recorded_at) ORDER BY l.promotion)
		        FROM placements l JOIN promotions m ON m.id = l.promotion JOIN jobs j ON j.id = l.promotion
		        WHERE l.image = u.image AND j.state = 'succeeded') AS promotions
		FROM uses u
		JOIN packages p ON p.id = u.package
		JOIN images i ON i.id = u.image
		JOIN image_records r ON r.run = i.newest
		JOIN LATERAL (SELECT path, layer, licenses FROM image_packages x
		              WHERE x.image = u.image AND x.package = u.package ORDER BY x.report, x.position LIMIT 1) x ON true` + joinPlaces + `
		ORDER BY u.image DESC, u.package DESC`, w.args, nil
}

func scanPackageUse(row pgx.CollectableRow) (u pipeline.PackageUse, err error) {
	var platforms []string
	var placed json.RawMessage
	err = row.Scan(&u.ID, &u.Project, &u.Image.Repository, (*string)(&u.Image.Digest), &platforms,
		&u.Package.Name, &u.Package.Version, &u.Package.Type, &u.Package.PURL, &u.Package.Path, &u.Package.Layer, &u.Package.Licenses,
		&u.Commit, (*string)(&u.Run), &u.Tags, &placed)
	if err != nil {
		return u, err
	}
	for _, p := range platforms {
		u.Platforms = append(u.Platforms, pipeline.Platform(p))
	}
	u.Tags, u.Promotions = notNil(u.Tags), []pipeline.PlacedAt{}
	if placed != nil {
		if err := json.Unmarshal(placed, &u.Promotions); err != nil {
			return u, err
		}
	}
	for i := range u.Promotions {
		u.Promotions[i].At = u.Promotions[i].At.UTC()
	}
	return u, nil
}
