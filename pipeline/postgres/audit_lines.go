package postgres

import (
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

// line is a pair with what the image is, the platforms that it is on, and where the
// package is in the first of them.
type line struct {
	pair
	project     string
	subject     pipeline.Image
	run, commit string
	recordedAt  time.Time
	platforms   []pipeline.Platform
	path, layer int64
	licenses    int64 // 0: none are known
}

// queueAudits asks for a page of pairs and for all that is told of it, in what the batch
// has come to. It asks for each thing once, however many lines are about it, by the
// lists that the page leaves behind: that takes PostgreSQL half the time that joining
// line by line does. What is known of the packages is known of all of them; nil: of none.
// When the batch was sent, the result is ready.
func queueAudits(b *pgx.Batch, t *snapshot, pairs statement, limit int, known askedFor) func() ([]pipeline.PackageAudit, error) {
	page := queueLines(b, pairs, limit)
	t.plan(b, planOnce)
	if known == nil {
		known = queuePackages(b, ` WHERE p.id = ANY(`+ofPage("packages")+`)`, nil, nil)
	}
	text := func(rows pgx.Rows, id *int64) (s string, err error) { return s, rows.Scan(id, &s) }
	path := queueBy(b, `SELECT id, path FROM paths WHERE id = ANY(`+ofPage("paths")+`)`, text)
	layer := queueBy(b, `SELECT id, layer FROM layers WHERE id = ANY(`+ofPage("layers")+`)`, text)
	list := queueBy(b, `SELECT id, licenses FROM license_lists WHERE id = ANY(`+ofPage("licenses")+`)`, func(rows pgx.Rows, id *int64) (s []string, err error) {
		return s, rows.Scan(id, &s)
	})
	first := queueFirsts(b)
	places := queueStays(b, ofPage("images"))
	exceptions := queueExceptions(b)
	return func() ([]pipeline.PackageAudit, error) {
		out := make([]pipeline.PackageAudit, len(*page))
		for i, l := range *page {
			about, isKnown := known[l.pkg]
			p := about.Package
			at, hasPath := path[l.path]
			in, hasLayer := layer[l.layer]
			hasLicenses := l.licenses == 0
			if !hasLicenses {
				p.Licenses, hasLicenses = list[l.licenses]
			}
			if !isKnown || !hasPath || !hasLayer || !hasLicenses {
				return nil, fmt.Errorf("the record of image %d or of its package %d is not complete", l.image, l.pkg)
			}
			p.Path, p.Layer = at, in
			slices.Sort(l.platforms)
			out[i] = pipeline.PackageAudit{ID: fmt.Sprintf("%d-%d", l.image, l.pkg),
				Project: l.project, Image: l.subject, Platforms: l.platforms, Run: pipeline.RunID(l.run), Commit: l.commit, RecordedAt: l.recordedAt,
				Package: p, Uncomparable: about.uncomparable, First: first[inProject{l.pkg, l.project}],
				Places: placesOf(places[l.image], l.subject.Digest, l.commit), Exceptions: l.covering(exceptions[inRecord{l.run, p.Name}])}
		}
		return out, nil
	}
}

// queueLines asks for lines, made of a statement for pairs: one for each of an image's
// platforms that has the package. An image without a record has a run without an id.
func queueLines(b *pgx.Batch, pairs statement, limit int) *[]line {
	page := make([]line, 0, limit)
	b.Queue(linesOf(pairs.sql), pairs.args...).Query(func(rows pgx.Rows) error {
		var l line
		var platform pipeline.Platform
		_, err := pgx.ForEachRow(rows, []any{&l.image, &l.pkg, (*string)(&platform), &l.path, &l.layer, &l.licenses,
			&l.project, &l.subject.Repository, (*string)(&l.subject.Digest), &l.run, &l.commit, &l.recordedAt}, func() error {
			if n := len(page); n == 0 || page[n-1].pair != l.pair {
				if l.run == "" {
					return fmt.Errorf("the record of image %d is not complete", l.image)
				}
				l.recordedAt = l.recordedAt.UTC()
				page = append(page, l)
			}
			if last := &page[len(page)-1]; !slices.Contains(last.platforms, platform) {
				last.platforms = append(last.platforms, platform)
			}
			return nil
		})
		return err
	})
	return &page
}

// linesOf is the SQL. It leaves lists of what the page is about to the statements behind
// it, which read them with ofPage, so that nobody has to bring them: an entry for each
// line and platform, in one order. The limit keeps the lookup of an image to that one,
// whatever the planner thinks of their number.
func linesOf(pairs string) string {
	return `
		WITH page (image, package) AS MATERIALIZED (` + pairs + `),
		lines AS MATERIALIZED (
			SELECT p.image, p.package, x.report, x.platform, x.path, x.layer, coalesce(x.licenses, 0) AS licenses,
			       coalesce(r.project, '') AS project, coalesce(r.repository, '') AS repository, coalesce(r.digest, '') AS digest,
			       coalesce(r.run, '') AS run, coalesce(r.commit_sha, '') AS commit_sha, coalesce(r.recorded_at, to_timestamp(0)) AS recorded_at
			FROM page p LEFT JOIN LATERAL (
				SELECT r.project, r.repository, r.digest, r.run, r.commit_sha, r.recorded_at
				FROM image_records r WHERE r.image = p.image ORDER BY r.number DESC LIMIT 1) r ON true, LATERAL (
				SELECT DISTINCT ON (x.report) x.report, x.platform, x.path, x.layer, x.licenses
				FROM image_packages x WHERE x.package = p.package AND x.image = p.image ORDER BY x.report, x.position) x),
		left_behind AS MATERIALIZED (
			SELECT ` + leave("images", "image") + `, ` + leave("packages", "package") + `, ` + leave("paths", "path") + `, ` + leave("layers", "layer") + `,
			       ` + leave("licenses", "licenses") + `, ` + leave("projects", "project") + `, ` + leave("runs", "run") + `
			FROM lines)
		SELECT l.image, l.package, l.platform, l.path, l.layer, l.licenses, l.project, l.repository, l.digest, l.run, l.commit_sha, l.recorded_at
		FROM left_behind, lines l
		ORDER BY l.image DESC, l.package DESC, l.report`
}

// leave is SQL that keeps a list of a column's values until the transaction ends. It is
// a setting, as the transaction may write nothing else.
func leave(list, column string) string {
	return `set_config('dray.page_` + list + `', array_agg(` + column + `)::text, true)`
}

// ofPage is the list; NULL if the page has no lines.
func ofPage(list string) string {
	kind := "bigint[]"
	if list == "projects" || list == "runs" {
		kind = "text[]"
	}
	return `nullif(current_setting('dray.page_` + list + `'), '')::` + kind
}

// queueBy asks for values by their numbers. They can be looked up in the map when the
// batch was sent.
func queueBy[V any](b *pgx.Batch, sql string, scan func(rows pgx.Rows, id *int64) (V, error)) map[int64]V {
	out := map[int64]V{}
	b.Queue(sql).Query(func(rows pgx.Rows) error {
		for rows.Next() {
			var id int64
			v, err := scan(rows, &id)
			if err != nil {
				return err
			}
			out[id] = v
		}
		return rows.Err()
	})
	return out
}

// inProject is a package in a project.
type inProject struct {
	pkg     int64
	project string
}

// queueFirsts asks which run brought each package of the page into its project.
func queueFirsts(b *pgx.Batch) map[inProject]*pipeline.Origin {
	out := map[inProject]*pipeline.Origin{}
	b.Queue(`
		SELECT u.package, u.project, r.run, r.commit_sha, r.digest, r.recorded_at
		FROM (SELECT DISTINCT package, project FROM unnest(` + ofPage("packages") + `, ` + ofPage("projects") + `) AS u (package, project)) u
		JOIN package_firsts f ON f.package = u.package AND f.project = u.project
		JOIN image_records r ON r.number = f.record`).Query(func(rows pgx.Rows) error {
		var at inProject
		var o pipeline.Origin
		_, err := pgx.ForEachRow(rows, []any{&at.pkg, &at.project, (*string)(&o.Run), &o.Commit, (*string)(&o.Digest), &o.At}, func() error {
			first := o
			first.At = o.At.UTC()
			out[at] = &first
			return nil
		})
		return wrap(err, "where packages come from")
	})
	return out
}

// inRecord is a package in what a run recorded, by name.
type inRecord struct{ run, name string }

// exceptionsOfLines are the exceptions in force that are about findings in the page's
// packages. It looks for findings only in packages that have some in any image, and where
// the project has exceptions, and for exceptions only of those findings: most packages
// have none, and a project can have many of either.
var exceptionsOfLines = `
	WITH known (package, name) AS MATERIALIZED (
		SELECT p.id, p.name FROM packages p, LATERAL (SELECT FROM findings f WHERE ` + inPackage("p.name") + ` LIMIT 1) f
		WHERE p.id = ANY(` + ofPage("packages") + `)),
	lines AS MATERIALIZED (
		SELECT DISTINCT u.run, u.project, k.name
		FROM known k JOIN unnest(` + ofPage("runs") + `, ` + ofPage("projects") + `, ` + ofPage("packages") + `) AS u (run, project, package) USING (package)),
	accepting (project) AS MATERIALIZED (
		SELECT p.project FROM (SELECT DISTINCT project FROM lines) p, LATERAL (SELECT FROM exceptions e WHERE ` + inForce("p") + ` LIMIT 1) e)
	SELECT f.run, f.package, ` + exceptionColumnsOf("e") + `
	FROM (SELECT project, run, name FROM accepting JOIN lines USING (project) OFFSET 0) l
	JOIN findings f ON ` + inPackage("l.name") + ` AND f.package = l.name AND f.run = l.run
	JOIN exceptions e ON ` + inForce("l") + ` AND ` + sameFinding("e.finding", "f.id") + ` AND e.package IN ('', f.package)
	ORDER BY e.id`

// inPackage is of the findings f in packages whose names begin like this one.
func inPackage(name string) string {
	return `left(f.package, 200) = left(` + name + `, 200) AND f.gone_at IS NULL`
}

// inForce is of the exceptions e of the project.
func inForce(of string) string {
	return `e.project = ` + of + `.project AND e.revoked_at IS NULL AND e.expires_at > now()`
}

// queueExceptions asks for those of the page. Which are for another image, covering tells.
func queueExceptions(b *pgx.Batch) map[inRecord][]pipeline.Exception {
	out := map[inRecord][]pipeline.Exception{}
	b.Queue(exceptionsOfLines).Query(func(rows pgx.Rows) error {
		for rows.Next() {
			var in inRecord
			e, err := scanExceptionAfter(rows, &in.run, &in.name)
			if err != nil {
				return wrap(err, "exceptions")
			}
			// Once, wherever the finding is.
			if have := out[in]; len(have) == 0 || have[len(have)-1].ID != e.ID {
				out[in] = append(have, e)
			}
		}
		return wrap(rows.Err(), "exceptions")
	})
	return out
}

// covering are those of the exceptions that are for the line's image.
func (l *line) covering(exceptions []pipeline.Exception) []pipeline.Exception {
	out := []pipeline.Exception{}
	for _, e := range exceptions {
		if e.Image == "" || e.Image == l.subject.Digest {
			out = append(out, e)
		}
	}
	return out
}
