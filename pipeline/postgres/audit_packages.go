package postgres

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

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
	out = []pipeline.PackageAudit{}
	err = s.read(ctx, func(tx pgx.Tx) error {
		var pairs []pair
		var uncomparable map[int64]bool
		if many, err := licensesMany(ctx, tx, q); err != nil {
			return err
		} else if many {
			if pairs, err = licensedPairs(ctx, tx, q, after); err != nil {
				return err
			}
		} else {
			var ids []int64
			if ids, uncomparable, err = candidates(ctx, tx, q); err != nil || len(ids) == 0 {
				return err
			}
			if pairs, err = packagePairs(ctx, tx, q.AuditScope, ids, after); err != nil {
				return err
			}
		}
		if len(pairs) == 0 {
			return nil
		}
		out, err = packageAudits(ctx, tx, pairs, uncomparable)
		return err
	})
	return out, err
}

// pair is a package in an image.
type pair struct{ image, pkg int64 }

// candidates finds the package versions that are asked about, whatever image has
// them. Those that cannot be compared with the range are among them: an answer
// that leaves them out would say that nobody has them.
func candidates(ctx context.Context, q querier, query pipeline.PackageAuditQuery) (ids []int64, uncomparable map[int64]bool, err error) {
	if query.Name == "" && query.PURL == "" && query.License == "" {
		return nil, nil, fmt.Errorf("a name, a purl or a licence is required: %w", pipeline.ErrInvalid)
	}
	w := where{}
	if query.Name != "" {
		name := w.arg(clean(query.Name))
		w.conds = append(w.conds, "left(p.name, 200) = left("+name+", 200)", "p.name = "+name)
	}
	if query.Version != "" {
		version := w.arg(clean(query.Version))
		w.conds = append(w.conds, "left(p.version, 200) = left("+version+", 200)", "p.version = "+version)
	}
	var wanted packageURL
	if query.PURL != "" {
		if wanted, err = parsePackageURL(query.PURL); err != nil {
			return nil, nil, err
		}
		w.add("p.purl <> '' AND left(split_part(split_part(split_part(p.purl, '@', 1), '?', 1), '#', 1), 200) = left(%s, 200)", wanted.base)
	}
	w.addIf(query.License != "", "EXISTS (SELECT FROM package_licenses l WHERE l.license = left(lower(%s), 100) AND l.package = p.id)", licenseOf(query))
	var among versions.Range
	if query.Range != "" {
		if among, err = versions.Parse(query.Range); err != nil {
			return nil, nil, fmt.Errorf("%w: %w", err, pipeline.ErrInvalid)
		}
	}
	rows, err := q.Query(ctx, `SELECT p.id, p.type, p.version, p.purl FROM packages p`+w.sql(), append([]any{fresh}, w.args...)...)
	if err != nil {
		return nil, nil, err
	}
	uncomparable = map[int64]bool{}
	var id int64
	var typ, version, purl string
	_, err = pgx.ForEachRow(rows, []any{&id, &typ, &version, &purl}, func() error {
		if query.PURL != "" && !wanted.covers(purl) {
			return nil
		}
		if query.Range != "" {
			holds, err := among.Holds(versions.Of(purl, typ), version)
			if err != nil {
				uncomparable[id] = true
			} else if !holds {
				return nil
			}
		}
		ids = append(ids, id)
		return nil
	})
	slices.Sort(ids)
	return ids, uncomparable, err
}

// packageURL is a package URL in the parts that matter here.
type packageURL struct {
	base       string // without version, qualifiers and subpath
	version    string // decoded; empty: any
	qualifiers url.Values
}

// parsePackageURL reads one as people write it: the scheme and the type in any
// case, an @ in front of an npm scope as it is.
func parsePackageURL(s string) (p packageURL, err error) {
	s = clean(s)
	rest, ok := strings.CutPrefix(s, "pkg:")
	rest, _, _ = strings.Cut(rest, "#")
	rest, qualifiers, _ := strings.Cut(rest, "?")
	rest = strings.TrimLeft(rest, "/")
	typ, path, slash := strings.Cut(rest, "/")
	if !ok || !slash || typ == "" || path == "" {
		return p, fmt.Errorf("purl %.80q: want pkg:type/namespace/name@version: %w", s, pipeline.ErrInvalid)
	}
	if i := strings.LastIndex(path, "@"); i > strings.LastIndex(path, "/")+1 || i > 0 && !strings.Contains(path[i:], "/") {
		if p.version, err = url.PathUnescape(path[i+1:]); err != nil {
			return p, fmt.Errorf("purl %.80q: the version is not percent-encoded: %w", s, pipeline.ErrInvalid)
		}
		path = path[:i]
	}
	if p.qualifiers, err = url.ParseQuery(qualifiers); err != nil {
		return p, fmt.Errorf("purl %.80q: the qualifiers cannot be read: %w", s, pipeline.ErrInvalid)
	}
	p.base = "pkg:" + strings.ToLower(typ) + "/" + strings.ReplaceAll(path, "@", "%40")
	return p, nil
}

// covers reports whether a recorded package URL is one of those that p means.
func (p packageURL) covers(recorded string) bool {
	have, err := parsePackageURL(recorded)
	if err != nil || have.base != p.base || p.version != "" && have.version != p.version {
		return false
	}
	for name := range p.qualifiers {
		if have.qualifiers.Get(name) != p.qualifiers.Get(name) {
			return false
		}
	}
	return true
}

func licenseOf(q pipeline.PackageAuditQuery) string { return strings.TrimSpace(clean(q.License)) }

// licensesMany reports whether the query asks for a licence that more packages are
// under than should be asked for one by one, and for nothing else about packages.
func licensesMany(ctx context.Context, q querier, query pipeline.PackageAuditQuery) (bool, error) {
	if query.License == "" || query.Name != "" || query.PURL != "" || query.Version != "" || query.Range != "" {
		return false, nil
	}
	var n int
	err := q.QueryRow(ctx, `SELECT count(*) FROM (SELECT FROM package_licenses WHERE license = left(lower($1), 100) LIMIT $2) few`,
		licenseOf(query), fewPackages+1).Scan(&n)
	return n > fewPackages, err
}

// licensedPairs finds the page of packages under a licence, image by image: where
// so many packages are, each image has some.
func licensedPairs(ctx context.Context, q querier, query pipeline.PackageAuditQuery, after pair) ([]pair, error) {
	w := where{}
	inScope(&w, query.AuditScope)
	cond := `EXISTS (SELECT FROM package_licenses l WHERE l.license = left(lower(` + w.arg(licenseOf(query)) + `), 100) AND l.package = x.package)`
	return imageByImage(ctx, q, w, cond, query.Page.Limit, after)
}

// imageByImage looks through the images that w selects, newest first, until there
// is a page of their packages that meet the condition.
func imageByImage(ctx context.Context, q querier, w where, cond string, limit int, after pair) ([]pair, error) {
	if after.image != 0 {
		image, pkg := w.arg(after.image), w.arg(after.pkg)
		w.conds = append(w.conds, "i.id <= "+image)
		cond += " AND (i.id < " + image + " OR x.package < " + pkg + ")"
	}
	rows, err := q.Query(ctx, `
		SELECT i.id, x.package FROM images i, LATERAL (SELECT DISTINCT x.package FROM image_packages x WHERE x.image = i.id AND `+cond+`) x`+w.sql()+`
		ORDER BY i.id DESC, x.package DESC LIMIT `+w.arg(limit), append([]any{fresh}, w.args...)...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scanPair)
}

func scanPair(row pgx.CollectableRow) (p pair, err error) { return p, row.Scan(&p.image, &p.pkg) }

// packagePairs finds the page: at most Limit pairs of the packages with images in
// scope, the highest first.
func packagePairs(ctx context.Context, tx pgx.Tx, s pipeline.AuditScope, ids []int64, after pair) ([]pair, error) {
	w := where{}
	scoped := inScope(&w, s)
	if len(ids) > fewPackages {
		cond := "x.package = ANY(" + w.arg(ids) + ")"
		return imageByImage(ctx, tx, w, cond, s.Page.Limit, after)
	}
	sql := ""
	if scoped {
		images, err := imagesIn(ctx, tx, w, after)
		switch {
		case err != nil || len(images) == 0:
			return nil, err
		case len(images)*len(ids) <= fewProbes:
			w = where{}
			sql = imagesFirst(&w, s.Page.Limit, images, ids, after)
		case len(images) <= fewImages:
			// The sum keeps it from looking into an index for each of the images.
			w = where{}
			w.add("x.image + 0 = ANY(%s::bigint[])", images)
		default:
			w.conds = []string{"EXISTS (SELECT FROM images i WHERE i.id = x.image AND " + strings.Join(w.conds, " AND ") + ")"}
		}
	}
	if sql == "" {
		sql = packagesFirst(&w, s.Page.Limit, ids, after)
	}
	rows, err := tx.Query(ctx, sql, append([]any{fresh}, w.args...)...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scanPair)
}

// imagesIn lists the images that w selects and that can be after the pair, or one
// more than are few. Where they are few, they are looked up once and not for every
// entry of an index.
func imagesIn(ctx context.Context, tx pgx.Tx, w where, after pair) ([]int64, error) {
	w = where{conds: slices.Clone(w.conds), args: slices.Clone(w.args)}
	w.addIf(after.image != 0, "i.id <= %s", after.image)
	rows, err := tx.Query(ctx, `SELECT i.id FROM images i`+w.sql()+` LIMIT `+w.arg(fewImages+1), append([]any{fresh}, w.args...)...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[int64])
}

// packagesFirst asks each package for its newest images, so that no more than a
// page of index entries is read of any, and only of those packages whose newest
// image can be on the page. The conditions of w are about x, an entry.
func packagesFirst(w *where, limit int, ids []int64, after pair) string {
	scope := strings.Join(append([]string{""}, w.conds...), " AND ")
	list := w.arg(ids)
	if after.image != 0 {
		image, pkg := w.arg(after.image), w.arg(after.pkg)
		scope = fmt.Sprintf(" AND x.image <= CASE WHEN c.id < %[2]s THEN %[1]s::bigint ELSE %[1]s::bigint - 1 END", image, pkg) + scope
	}
	n := w.arg(limit)
	if len(ids) == 1 {
		return `SELECT DISTINCT x.image, x.package FROM unnest(` + list + `::bigint[]) AS c (id), LATERAL (
			SELECT DISTINCT x.image, x.package FROM image_packages x WHERE x.package = c.id` + scope + ` ORDER BY x.image DESC LIMIT ` + n + `) x
			ORDER BY image DESC, package DESC LIMIT ` + n
	}
	return `
		WITH newest AS MATERIALIZED (
			SELECT c.id, x.image FROM unnest(` + list + `::bigint[]) AS c (id), LATERAL (
				SELECT x.image FROM image_packages x WHERE x.package = c.id` + scope + ` ORDER BY x.image DESC LIMIT 1) x
			ORDER BY x.image DESC, c.id DESC LIMIT ` + n + `)
		SELECT x.image, c.id FROM newest c, LATERAL (
			SELECT DISTINCT x.image FROM image_packages x WHERE x.package = c.id` + scope + ` ORDER BY x.image DESC LIMIT ` + n + `) x
		ORDER BY x.image DESC, c.id DESC LIMIT ` + n
}

// imagesFirst asks each of few images for the packages.
func imagesFirst(w *where, limit int, images, ids []int64, after pair) string {
	w.add("x.image = ANY(%s::bigint[]) AND x.package = ANY(%s::bigint[])", images, ids)
	if after.image != 0 {
		w.add("x.image <= %s AND (x.image, x.package) < (%s, %s)", after.image, after.image, after.pkg)
	}
	return `SELECT DISTINCT x.image, x.package FROM image_packages x` + w.sql() + ` ORDER BY x.image DESC, x.package DESC LIMIT ` + w.arg(limit)
}

// packageAudits joins a page with all that is told of it.
func packageAudits(ctx context.Context, tx pgx.Tx, pairs []pair, uncomparable map[int64]bool) ([]pipeline.PackageAudit, error) {
	images, packages := make([]int64, len(pairs)), make([]int64, len(pairs))
	for i, p := range pairs {
		images[i], packages[i] = p.image, p.pkg
	}
	out := make([]pipeline.PackageAudit, 0, len(pairs))
	var places map[int64][]pipeline.Stay
	var covering map[int][]pipeline.Exception
	// One way to the database and back.
	b := planOnce()
	b.Queue(`
		SELECT i.project, r.repository, i.digest, r.run, r.commit_sha, r.recorded_at, p.type, p.name, p.version, p.purl,
		       x.platforms, x.path, x.layer, x.licenses, o.run, o.commit_sha, fi.digest, o.recorded_at
		FROM unnest($1::bigint[], $2::bigint[]) WITH ORDINALITY AS u (image, package, n)
		JOIN images i ON i.id = u.image
		JOIN image_records r ON r.run = i.newest
		JOIN packages p ON p.id = u.package
		LEFT JOIN package_firsts f ON f.package = u.package AND f.project = i.project
		LEFT JOIN image_records o ON o.run = f.run
		LEFT JOIN images fi ON fi.id = o.image
		CROSS JOIN LATERAL (
			SELECT array_agg(DISTINCT x.platform ORDER BY x.platform) AS platforms,
			       (array_agg(x.path ORDER BY x.report, x.position))[1] AS path, (array_agg(x.layer ORDER BY x.report, x.position))[1] AS layer,
			       (array_agg(x.licenses::text ORDER BY x.report, x.position))[1]::text[] AS licenses
			FROM image_packages x WHERE x.package = u.package AND x.image = u.image) x
		ORDER BY u.n`, images, packages).Query(func(rows pgx.Rows) error {
		var err error
		out, err = pgx.AppendRows(out, rows, func(row pgx.CollectableRow) (a pipeline.PackageAudit, err error) {
			var platforms []string
			var run, commit, digest *string
			var at *time.Time
			err = row.Scan(&a.Project, &a.Image.Repository, (*string)(&a.Image.Digest), (*string)(&a.Run), &a.Commit, &a.RecordedAt,
				&a.Package.Type, &a.Package.Name, &a.Package.Version, &a.Package.PURL, &platforms, &a.Package.Path, &a.Package.Layer, &a.Package.Licenses,
				&run, &commit, &digest, &at)
			for _, p := range platforms {
				a.Platforms = append(a.Platforms, pipeline.Platform(p))
			}
			a.RecordedAt, a.First = a.RecordedAt.UTC(), origin(run, commit, digest, at)
			return a, err
		})
		return wrap(err, "images")
	})
	queueStays(b, slices.Compact(slices.Clone(images)), &places)
	queueExceptions(b, pairs, &covering)
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return nil, err
	}
	if len(out) != len(pairs) {
		return nil, fmt.Errorf("%d of %d images have no record", len(pairs)-len(out), len(pairs))
	}
	for i, p := range pairs {
		out[i].ID, out[i].Uncomparable = fmt.Sprintf("%d-%d", p.image, p.pkg), uncomparable[p.pkg]
		out[i].Places, out[i].Exceptions = notNil(places[p.image]), notNil(covering[i])
	}
	return out, nil
}

func origin(run, commit, digest *string, at *time.Time) *pipeline.Origin {
	if run == nil {
		return nil
	}
	return &pipeline.Origin{Run: pipeline.RunID(*run), Commit: *commit, Digest: pipeline.Digest(*digest), At: at.UTC()}
}

// queueExceptions asks for the exceptions in force that cover a finding in each of
// the packages, by the place of the pair in the list.
func queueExceptions(b *pgx.Batch, pairs []pair, out *map[int][]pipeline.Exception) {
	images, packages := make([]int64, len(pairs)), make([]int64, len(pairs))
	for i, p := range pairs {
		images[i], packages[i] = p.image, p.pkg
	}
	b.Queue(`
		SELECT u.n, `+exceptionColumnsOf("e")+`
		FROM unnest($1::bigint[], $2::bigint[]) WITH ORDINALITY AS u (image, package, n)
		JOIN images i ON i.id = u.image
		JOIN packages p ON p.id = u.package
		JOIN exceptions e ON e.project = i.project AND e.revoked_at IS NULL AND e.expires_at > clock_timestamp()
			AND e.package IN ('', p.name) AND e.image IN ('', i.digest)
		WHERE EXISTS (SELECT FROM findings f WHERE f.run = i.newest AND f.package = p.name AND lower(f.id) = lower(e.finding) AND f.gone_at IS NULL)
		ORDER BY u.n, e.id`, images, packages).Query(func(rows pgx.Rows) error {
		*out = map[int][]pipeline.Exception{}
		for rows.Next() {
			var n int
			e, err := scanExceptionAfter(rows, &n)
			if err != nil {
				return wrap(err, "exceptions")
			}
			(*out)[n-1] = append((*out)[n-1], e)
		}
		return wrap(rows.Err(), "exceptions")
	})
}

// exceptionColumnsOf are exceptionColumns of a table that goes by another name.
func exceptionColumnsOf(alias string) string {
	return fmt.Sprintf(`%[1]s.id, %[1]s.project, %[1]s.environment, %[1]s.image, %[1]s.finding, %[1]s.package, %[1]s.reason, %[1]s.author,
		%[1]s.created_at, %[1]s.expires_at, %[1]s.revoked_at, coalesce(%[1]s.revoked_by, '')`, alias)
}

// scanExceptionAfter reads a row of other columns and then an exception's.
func scanExceptionAfter(row pgx.CollectableRow, before ...any) (e pipeline.Exception, err error) {
	err = row.Scan(append(before, &e.ID, &e.Project, &e.Environment, (*string)(&e.Image), &e.Finding, &e.Package, &e.Reason, &e.Author,
		&e.CreatedAt, &e.ExpiresAt, &e.RevokedAt, &e.RevokedBy)...)
	e.CreatedAt, e.ExpiresAt, e.RevokedAt = e.CreatedAt.UTC(), e.ExpiresAt.UTC(), utc(e.RevokedAt)
	return e, err
}
