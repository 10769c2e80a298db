package postgres

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

// packageAudits adds to a page all that is told of it. It asks for each thing once,
// however many lines are about it, by lists of numbers: that takes PostgreSQL half
// the time that joining line by line does.
func packageAudits(ctx context.Context, t *snapshot, page []line, known askedFor) ([]pipeline.PackageAudit, error) {
	images, packages := column(page, func(l *line) int64 { return l.image }), column(page, func(l *line) int64 { return l.pkg })
	projects := column(page, func(l *line) string { return l.project })
	t.plan(planOnce)
	b := &pgx.Batch{}
	if slices.ContainsFunc(packages, func(id int64) bool { _, ok := known[id]; return !ok }) {
		known = queuePackages(b, ` WHERE p.id = ANY($1)`, []any{packages}, nil)
	}
	text := func(rows pgx.Rows, id *int64) (s string, err error) { return s, rows.Scan(id, &s) }
	path := queueBy(b, `SELECT id, path FROM paths WHERE id = ANY($1)`, column(page, func(l *line) int64 { return l.path }), text)
	layer := queueBy(b, `SELECT id, layer FROM layers WHERE id = ANY($1)`, column(page, func(l *line) int64 { return l.layer }), text)
	list := queueBy(b, `SELECT id, licenses FROM license_lists WHERE id = ANY($1)`, column(page, func(l *line) int64 { return l.licenses }), func(rows pgx.Rows, id *int64) (s []string, err error) {
		return s, rows.Scan(id, &s)
	})
	first := queueFirsts(b, packages, projects)
	places := queueStays(b, slices.Compact(slices.Clone(images)))
	exceptions := queueExceptions(b, page)
	if err := t.finish(ctx, b); err != nil {
		return nil, err
	}
	out := make([]pipeline.PackageAudit, len(page))
	for i, l := range page {
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

// column lists one thing of each line.
func column[V any](page []line, of func(*line) V) []V {
	out := make([]V, len(page))
	for i := range page {
		out[i] = of(&page[i])
	}
	return out
}

// queueBy asks for what has these keys. It can be looked up in the map when the
// batch was sent.
func queueBy[K cmp.Ordered, V any](b *pgx.Batch, sql string, keys []K, scan func(rows pgx.Rows, key *K) (V, error)) map[K]V {
	keys = slices.Compact(slices.Sorted(slices.Values(keys)))
	out := make(map[K]V, len(keys))
	b.Queue(sql, keys).Query(func(rows pgx.Rows) error {
		for rows.Next() {
			var key K
			v, err := scan(rows, &key)
			if err != nil {
				return err
			}
			out[key] = v
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

// queueFirsts asks which run brought each package into the project beside it.
func queueFirsts(b *pgx.Batch, packages []int64, projects []string) map[inProject]*pipeline.Origin {
	out := map[inProject]*pipeline.Origin{}
	for i, p := range packages {
		out[inProject{p, projects[i]}] = nil
	}
	packages, projects = nil, nil // each pair once
	for at := range out {
		packages, projects = append(packages, at.pkg), append(projects, at.project)
	}
	b.Queue(`
		SELECT u.package, u.project, r.run, r.commit_sha, r.digest, r.recorded_at
		FROM unnest($1::bigint[], $2::text[]) AS u (package, project)
		JOIN package_firsts f ON f.package = u.package AND f.project = u.project
		JOIN image_records r ON r.number = f.record`, packages, projects).Query(func(rows pgx.Rows) error {
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

// exceptionsOfLines are the exceptions in force that are about findings in the packages
// of runs. It looks for findings only where the project has exceptions, and for exceptions
// only of those findings: a project can have many of either.
var exceptionsOfLines = `
	SELECT f.run, f.package, ` + exceptionColumnsOf("e") + `
	FROM (SELECT u.run, u.project, u.package
	      FROM unnest($1::text[], $2::text[], $3::bigint[]) AS u (run, project, package),
	           LATERAL (SELECT FROM exceptions e WHERE ` + inForce + ` LIMIT 1) has OFFSET 0) u
	JOIN packages p ON p.id = u.package
	JOIN findings f ON f.run = u.run AND left(f.package, 200) = left(p.name, 200) AND f.package = p.name AND f.gone_at IS NULL
	JOIN exceptions e ON ` + inForce + ` AND ` + sameFinding("e.finding", "f.id") + ` AND e.package IN ('', f.package)
	ORDER BY e.id`

// inForce is of the exceptions e of a line u's project.
const inForce = `e.project = u.project AND e.revoked_at IS NULL AND e.expires_at > now()`

// queueExceptions asks for those of a page. Which are for another image, covering tells.
func queueExceptions(b *pgx.Batch, page []line) map[inRecord][]pipeline.Exception {
	out := map[inRecord][]pipeline.Exception{}
	runs, projects := column(page, func(l *line) string { return l.run }), column(page, func(l *line) string { return l.project })
	packages := column(page, func(l *line) int64 { return l.pkg })
	b.Queue(exceptionsOfLines, runs, projects, packages).Query(func(rows pgx.Rows) error {
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
