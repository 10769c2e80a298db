package postgres

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/versions"
)

// fewPackages is how many package versions are asked for their images one by one.
const fewPackages = 2000

// AuditPackages says which images contain packages, by their newest record:
// newest images first. It looks at packages first, of which there are few, then
// finds the page by an index, and then joins that page with the rest.
func (s *Store) AuditPackages(ctx context.Context, q pipeline.PackageAuditQuery) (out []pipeline.PackageAudit, err error) {
	defer func() {
		err = wrap(err, "images with package %.80q", strings.Join([]string{q.Name, q.PURL, q.License}, " "))
	}()
	if err := q.Check(); err != nil {
		return nil, err
	}
	after := pair{}
	if q.Page.After != "" {
		if n, err := fmt.Sscanf(q.Page.After, "%d-%d", &after.image, &after.pkg); err != nil || n != 2 {
			return nil, fmt.Errorf("%.80q is not the id of an item: %w", q.Page.After, pipeline.ErrInvalid)
		}
	}
	plan := planEachTime
	if q.License == "" && !inScope(&where{}, q.AuditScope) {
		plan = planOnce // looked up in one way, whatever is asked for
	}
	err = s.snapshot(ctx, plan, func(t *snapshot) error {
		if plan == planOnce && q.Name != "" && q.PURL == "" && q.Range == "" {
			if few, err := auditNamed(ctx, t, q, after, &out); err != nil || few {
				return err
			}
		}
		pairs, packages, err := findPairs(ctx, t, q, after)
		if err != nil || pairs.sql == "" {
			return err
		}
		b := &pgx.Batch{}
		audits := queueAudits(b, t, pairs, q.Page.Limit, packages)
		if err := t.finish(ctx, b); err != nil {
			return err
		}
		out, err = audits()
		return err
	})
	return notNil(out), err
}

// auditNamed asks for packages by name and version, whatever image has them, in one
// round trip. Where there are more than few of those packages, it says so and out is
// left as it was.
func auditNamed(ctx context.Context, t *snapshot, q pipeline.PackageAuditQuery, after pair, out *[]pipeline.PackageAudit) (few bool, err error) {
	b := &pgx.Batch{}
	w := named(q)
	found := queuePackages(b, w.sql()+` LIMIT `+w.arg(fewPackages+1), w.args, nil)
	audits := queueAudits(b, t, namedPairs(q, after), q.Page.Limit, found)
	if err := t.finish(ctx, b); err != nil || len(found) > fewPackages {
		return false, err
	}
	*out, err = audits()
	return true, err
}

// findPairs finds the way to the page that fits the question. The packages that it had
// to find for that are found; nil: the page can be of any.
func findPairs(ctx context.Context, t *snapshot, q pipeline.PackageAuditQuery, after pair) (pairs statement, found askedFor, err error) {
	if many, err := licensesMany(ctx, t, q); err != nil {
		return statement{}, nil, err
	} else if many {
		return licensedPairs(q, after), nil, nil
	}
	if found, err = findPackages(ctx, t, q); err != nil || len(found) == 0 {
		return statement{}, nil, err
	}
	pairs, err = packagePairs(ctx, t, q.AuditScope, slices.Sorted(maps.Keys(found)), after)
	return pairs, found, err
}

// statement is SQL with its arguments.
type statement struct {
	sql  string
	args []any
}

// pair is a package in an image.
type pair struct{ image, pkg int64 }

// asked is a package version that is asked about, whatever image has it.
// Uncomparable: its version cannot be compared with the range. It is one of them: an
// answer that left it out would say that nobody has it.
type asked struct {
	pipeline.Package
	uncomparable bool
}

// askedFor are what is asked about, by the packages' numbers.
type askedFor map[int64]asked

// queuePackages asks for packages p, and keeps those that keep wants; nil: all.
func queuePackages(b *pgx.Batch, where string, args []any, keep func(*asked) bool) askedFor {
	out := askedFor{}
	b.Queue(`SELECT p.id, p.type, p.name, p.version, p.purl FROM packages p`+where, args...).Query(func(rows pgx.Rows) error {
		var id int64
		var p asked
		_, err := pgx.ForEachRow(rows, []any{&id, &p.Type, &p.Name, &p.Version, &p.PURL}, func() error {
			if found := p; keep == nil || keep(&found) {
				out[id] = found
			}
			return nil
		})
		return err
	})
	return out
}

// findPackages finds the package versions that are asked about.
func findPackages(ctx context.Context, t *snapshot, query pipeline.PackageAuditQuery) (askedFor, error) {
	if query.Name == "" && query.PURL == "" && query.License == "" {
		return nil, fmt.Errorf("a name, a purl or a licence is required: %w", pipeline.ErrInvalid)
	}
	w := named(query)
	var wanted packageURL
	var among versions.Range
	var err error
	if query.PURL != "" {
		if wanted, err = parsePackageURL(query.PURL); err != nil {
			return nil, err
		}
		w.add("p.purl <> '' AND left(split_part(split_part(split_part(p.purl, '@', 1), '?', 1), '#', 1), 200) = left(%s, 200)", wanted.base)
	}
	w.addIf(query.License != "", "EXISTS (SELECT FROM package_licenses l WHERE l.license = left(lower(%s), 100) AND l.package = p.id)", licenseOf(query))
	if query.Range != "" {
		if among, err = versions.Parse(query.Range); err != nil {
			return nil, fmt.Errorf("%w: %w", err, pipeline.ErrInvalid)
		}
	}
	b := &pgx.Batch{}
	found := queuePackages(b, w.sql(), w.args, func(p *asked) bool {
		if query.PURL != "" && !wanted.covers(p.PURL) {
			return false
		}
		if query.Range == "" {
			return true
		}
		holds, err := among.Holds(versions.Of(p.PURL, p.Type), p.Version)
		p.uncomparable = err != nil
		return holds || p.uncomparable
	})
	return found, t.send(ctx, b)
}

// named selects packages p by what is asked of their name and version.
func named(query pipeline.PackageAuditQuery) (w where) {
	if query.Name != "" {
		name := w.arg(clean(query.Name))
		w.conds = append(w.conds, "left(p.name, 200) = left("+name+", 200)", "p.name = "+name)
	}
	if query.Version != "" {
		version := w.arg(clean(query.Version))
		w.conds = append(w.conds, "left(p.version, 200) = left("+version+", 200)", "p.version = "+version)
	}
	return w
}

// namedPairs finds the page of packages by name and version, of a few of them.
func namedPairs(q pipeline.PackageAuditQuery, after pair) statement {
	packages := named(q)
	w := where{args: packages.args}
	some := `(SELECT p.id FROM packages p` + packages.sql() + ` LIMIT ` + w.arg(fewPackages) + `) c (id)`
	sql := packagesFirst(&w, q.Page.Limit, some, after)
	return statement{sql, w.args}
}

func licenseOf(q pipeline.PackageAuditQuery) string { return strings.TrimSpace(clean(q.License)) }

// licensesMany reports whether the query asks for a licence that more packages are
// under than should be asked for one by one, and for nothing else about packages.
func licensesMany(ctx context.Context, t *snapshot, query pipeline.PackageAuditQuery) (bool, error) {
	if query.License == "" || query.Name != "" || query.PURL != "" || query.Version != "" || query.Range != "" {
		return false, nil
	}
	n, err := collect(ctx, t, pgx.RowTo[int], `SELECT count(*) FROM (SELECT FROM package_licenses WHERE license = left(lower($1), 100) LIMIT $2) few`,
		licenseOf(query), fewPackages+1)
	return err == nil && n[0] > fewPackages, err
}

// licensedPairs finds the page of packages under a licence, image by image: where
// so many packages are, each image has some.
func licensedPairs(q pipeline.PackageAuditQuery, after pair) statement {
	w := where{}
	inScope(&w, q.AuditScope)
	cond := `EXISTS (SELECT FROM package_licenses l WHERE l.license = left(lower(` + w.arg(licenseOf(q)) + `), 100) AND l.package = x.package)`
	sql := imageByImage(&w, cond, q.Page.Limit, after)
	return statement{sql, w.args}
}

// imageByImage looks through the images that w selects, newest first, until there
// is a page of their packages that meet the condition.
func imageByImage(w *where, cond string, limit int, after pair) string {
	if after.image != 0 {
		image, pkg := w.arg(after.image), w.arg(after.pkg)
		w.conds = append(w.conds, "i.id <= "+image)
		cond += " AND (i.id < " + image + " OR x.package < " + pkg + ")"
	}
	return `
		SELECT i.id, x.package FROM images i, LATERAL (SELECT DISTINCT x.package FROM image_packages x WHERE x.image = i.id AND ` + cond + `) x` + w.sql() + `
		ORDER BY i.id DESC, x.package DESC LIMIT ` + w.arg(limit)
}

// packagePairs finds the page: at most Limit of the packages with images in scope, the
// highest first. None, if no image is in scope.
func packagePairs(ctx context.Context, t *snapshot, s pipeline.AuditScope, ids []int64, after pair) (statement, error) {
	w := where{}
	scoped := inScope(&w, s)
	if len(ids) > fewPackages {
		t.plan(&t.next, planEachTime)
		cond := "x.package = ANY(" + w.arg(ids) + ")"
		sql := imageByImage(&w, cond, s.Page.Limit, after)
		return statement{sql, w.args}, nil
	}
	if scoped {
		images, err := imagesIn(ctx, t, w, after)
		switch {
		case err != nil || len(images) == 0:
			return statement{}, err
		case len(images)*len(ids) <= fewProbes:
			w = where{}
			sql := imagesFirst(&w, s.Page.Limit, images, ids, after)
			return statement{sql, w.args}, nil
		case len(images) <= fewImages:
			// The sum keeps it from looking into an index for each of the images.
			w = where{}
			w.add("x.image + 0 = ANY(%s::bigint[])", images)
		default:
			w.conds = []string{"EXISTS (SELECT FROM images i WHERE i.id = x.image AND " + strings.Join(w.conds, " AND ") + ")"}
		}
	}
	sql := packagesFirst(&w, s.Page.Limit, `unnest(`+w.arg(ids)+`::bigint[]) AS c (id)`, after)
	return statement{sql, w.args}, nil
}

// imagesIn lists the images that w selects and that can be after the pair, or one
// more than are few. Where they are few, they are looked up once and not for every
// entry of an index.
func imagesIn(ctx context.Context, t *snapshot, w where, after pair) ([]int64, error) {
	w = where{conds: slices.Clone(w.conds), args: slices.Clone(w.args)}
	w.addIf(after.image != 0, "i.id <= %s", after.image)
	return collect(ctx, t, pgx.RowTo[int64], `SELECT i.id FROM images i`+w.sql()+` LIMIT `+w.arg(fewImages+1), w.args...)
}

// packagesFirst asks packages c for their newest images, and reads no more of them than
// can be on the page. The first few packages each tell a quarter of a page of images:
// where those are a page together, whatever is before its last image is not on the page
// of all packages. The conditions of w are about x, an entry.
func packagesFirst(w *where, limit int, packages string, after pair) string {
	const few = 8
	entries := strings.Join(append([]string{"x.package = c.id"}, w.conds...), " AND ")
	if after.image != 0 {
		image, pkg := w.arg(after.image), w.arg(after.pkg)
		entries += fmt.Sprintf(" AND x.image <= CASE WHEN c.id < %[2]s THEN %[1]s::bigint ELSE %[1]s::bigint - 1 END", image, pkg)
	}
	most, quarter, last := w.arg(limit), w.arg((limit+3)/4), w.arg(limit-1)
	return fmt.Sprintf(`
		WITH newest (package, image) AS MATERIALIZED (
			SELECT c.id, x.image FROM %[1]s, LATERAL (
				SELECT x.image FROM image_packages x WHERE %[2]s ORDER BY x.image DESC LIMIT 1) x
			ORDER BY x.image DESC, c.id DESC LIMIT %[3]s),
		least (image) AS MATERIALIZED (
			SELECT coalesce((SELECT x.image FROM (SELECT package FROM newest LIMIT %[6]d) AS c (id), LATERAL (
				SELECT x.image FROM image_packages x WHERE %[2]s GROUP BY x.image ORDER BY x.image DESC LIMIT %[4]s) x
			ORDER BY x.image DESC OFFSET %[5]s LIMIT 1), 0))
		SELECT x.image, c.id FROM least, newest AS c (id, image), LATERAL (
			SELECT x.image FROM image_packages x WHERE %[2]s AND x.image >= least.image GROUP BY x.image ORDER BY x.image DESC LIMIT %[3]s) x
		WHERE c.image >= least.image
		ORDER BY x.image DESC, c.id DESC LIMIT %[3]s`, packages, entries, most, quarter, last, few)
}

// imagesFirst asks each of few images for the packages.
func imagesFirst(w *where, limit int, images, ids []int64, after pair) string {
	w.add("x.image = ANY(%s::bigint[]) AND x.package = ANY(%s::bigint[])", images, ids)
	if after.image != 0 {
		w.add("x.image <= %s AND (x.image, x.package) < (%s, %s)", after.image, after.image, after.pkg)
	}
	return `SELECT DISTINCT x.image, x.package FROM image_packages x` + w.sql() + ` ORDER BY x.image DESC, x.package DESC LIMIT ` + w.arg(limit)
}
