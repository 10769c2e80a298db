package postgres_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/postgres"
	"github.com/dray-project/dray/pipeline/postgres/postgrestest"
)

// TestAuditReadsAPage: however many images hold the packages, a page of index
// entries is read of each that can be on it, and nothing else.
func TestAuditReadsAPage(t *testing.T) {
	pool := postgrestest.New(t)
	s := newStore(t, pool)
	syncSample(t, s)
	release(t, s, "app", "one", []pipeline.Package{pkg("crypto", "v1")}, nil)
	meddle(t, pool, `
		INSERT INTO packages (key, type, name, version, purl)
		SELECT sha256(i::text::bytea), 'debian', 'openssl', 'v' || i, '' FROM generate_series(1, 300) i;
		INSERT INTO images (project, digest, newest)
		SELECT CASE WHEN i % 10 = 0 THEN 'web' ELSE 'app' END, 'sha256:' || encode(sha256(i::text::bytea), 'hex'), (SELECT id FROM runs) FROM generate_series(1, 5000) i;
		INSERT INTO image_packages (image, report, position, platform, package, path, layer)
		SELECT i.id, r, n, 'linux/' || r, p.id, 1, 1 FROM images i, generate_series(0, 1) r, generate_series(10, 12) n,
			LATERAL (SELECT id FROM packages WHERE name = 'openssl' AND version = 'v' || (i.id * n) % 300 + 1) p`)
	// What was committed but is not on disk yet cannot be marked as visible to all,
	// and is then read from the table as well.
	await(t, "a vacuum that sees all", func() (seen bool) {
		_, err := pool.Exec(t.Context(), `VACUUM ANALYZE images, packages, image_packages`)
		check(t, err)
		check(t, pool.QueryRow(t.Context(), `SELECT relallvisible = relpages FROM pg_class WHERE oid = 'image_packages'::regclass`).Scan(&seen))
		return seen
	})
	rows, err := pool.Query(t.Context(), `SELECT id FROM packages WHERE name = 'openssl' ORDER BY id`)
	check(t, err)
	var ids []int64
	for rows.Next() {
		var id int64
		check(t, rows.Scan(&id))
		ids = append(ids, id)
	}
	const limit = 50
	type found struct{ image, pkg int64 }
	all := func() (out []found) {
		rows, err := pool.Query(t.Context(), `SELECT DISTINCT image, package FROM image_packages WHERE package = ANY($1) ORDER BY image DESC, package DESC`, ids)
		check(t, err)
		for rows.Next() {
			var f found
			check(t, rows.Scan(&f.image, &f.pkg))
			out = append(out, f)
		}
		return out
	}()
	for name, after := range map[string]found{"the first page": {}, "a page in the middle": all[len(all)/2], "the last page": all[len(all)-10]} {
		from := 0
		if after != (found{}) {
			from = slices.Index(all, after) + 1
		}
		want := all[from:min(from+limit, len(all))]
		read := func(how string, pairs, lines string, args []any) {
			t.Helper()
			rows, err := pool.Query(t.Context(), pairs, args...)
			check(t, err)
			var got []found
			for rows.Next() {
				var f found
				check(t, rows.Scan(&f.image, &f.pkg))
				got = append(got, f)
			}
			check(t, rows.Err())
			if !slices.Equal(got, want) {
				t.Errorf("%s, by %s, is %v, want %v", name, how, got, want)
			}
			for _, mode := range []string{"force_custom_plan", "force_generic_plan"} {
				plan := explain(t, pool, mode, lines, args)
				read := plan.Plan.read("image_packages", func(c counted) {
					if c.Type != "Index Only Scan" {
						t.Errorf("%s on %s", c.Type, c.Relation)
					}
				})
				t.Logf("%s, by %s, %s: %.2f ms, %.0f entries", name, how, mode, plan.Time, read)
				// One entry of each package, then a page of each that can be on the page, and
				// those of the page once more; two platforms each.
				if most := float64(len(ids) + 2*limit*limit + 2*limit); read > most {
					t.Errorf("%s, by %s, %s, reads %.0f entries, want at most %.0f", name, how, mode, read, most)
				}
			}
		}
		scope := pipeline.AuditScope{Reach: pipeline.Reach{All: true}, Page: pipeline.Page{Limit: limit}}
		pairs, lines, args := postgres.PackagesFirstSQL(scope, ids, after.image, after.pkg)
		read("number", pairs, lines, args)
		pairs, lines, args = postgres.NamedSQL(scope, "openssl", after.image, after.pkg)
		read("name", pairs, lines, args)
	}
}

// sent counts what goes to the database.
type sent struct{ batches, queries int }

func (s *sent) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	s.batches++
	return ctx
}
func (*sent) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}
func (*sent) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData)     {}
func (s *sent) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	s.queries++
	return ctx
}
func (*sent) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// TestAuditByNameAsksOnce: what a page is about is asked for with the page.
func TestAuditByNameAsksOnce(t *testing.T) {
	pool := postgrestest.New(t)
	syncSample(t, newStore(t, pool))
	release(t, newStore(t, pool), "app", "one", []pipeline.Package{pkg("crypto", "v1")}, nil)
	config := pool.Config()
	var n sent
	config.ConnConfig.Tracer = &n
	traced, err := pgxpool.NewWithConfig(t.Context(), config)
	check(t, err)
	t.Cleanup(traced.Close)
	s := newStore(t, traced)
	for name, images := range map[string]int{"crypto": 1, "none": 0} {
		n = sent{}
		uses, err := s.AuditPackages(t.Context(), pipeline.PackageAuditQuery{Name: name, AuditScope: pipeline.AuditScope{Reach: everything}})
		check(t, err)
		if len(uses) != images || n != (sent{batches: 1}) {
			t.Errorf("%s: %d images, and %+v", name, len(uses), n)
		}
	}
}

// TestAuditFindingReadsAPage: however many images have a finding, no more of it is read
// than the page and the image after it.
func TestAuditFindingReadsAPage(t *testing.T) {
	pool := postgrestest.New(t)
	s := newStore(t, pool)
	syncSample(t, s)
	meddle(t, pool, `
		INSERT INTO jobs (id, kind, project, state, started_at, finished_at)
		SELECT 'run_' || lpad(i::text, 20, '0'), 'run', 'app', 'succeeded', now(), now() FROM generate_series(1, 5000) i;
		INSERT INTO runs (id, event_key, ref, event) SELECT id, sha256(id::bytea), 'refs/heads/main', '{}' FROM jobs;
		BEGIN; SET CONSTRAINTS ALL DEFERRED;
		INSERT INTO images (project, digest, newest) SELECT 'app', 'sha256:' || encode(sha256(id::bytea), 'hex'), id FROM jobs ORDER BY id;
		INSERT INTO image_records (run, image, digest, project, repository, commit_sha, plan_digest, built, scanned_at, scanner, db_reference, db_digest, db_updated_at)
		SELECT newest, id, digest, 'app', 'dev.example/app', 'c', 'p', '{}', now(), 's', 'r', 'd', now() FROM images;
		COMMIT;
		INSERT INTO reports (run, position, platform, digest, os, run_user) SELECT id, 0, 'linux/amd64', 'd', '', '' FROM jobs;
		INSERT INTO findings (run, report, position, id, severity, package, version, fixed_in, title, url, purl, path)
		SELECT j.id, 0, n, 'CVE-2025-' || CASE n WHEN 0 THEN '0000' ELSE (1000 + (right(j.id, 6)::bigint * n) % 2000)::text END, 1, 'p' || n, '1', '2', '', '', '', ''
		FROM jobs j, generate_series(0, 9) n;
		ANALYZE`)
	q := pipeline.FindingAuditQuery{Finding: "cve-2025-0000", AuditScope: pipeline.AuditScope{Reach: everything}}
	for pages := 0; ; pages++ {
		q.Page.Limit = 50
		sql, args, err := postgres.FindingPageSQL(q)
		check(t, err)
		plan := explain(t, pool, "force_custom_plan", sql, args)
		// What sorts a page by two columns has read the beginning of what is after it.
		if read := plan.Plan.read("findings", nil); read > 70 {
			t.Errorf("a page of 50, after %d of %d, reads %.0f findings", pages, pipeline.MaxAuditPage, read)
		}
		q.Page.Limit = pipeline.MaxAuditPage
		found, err := s.AuditFindings(t.Context(), q)
		check(t, err)
		if len(found) == 0 {
			if pages != 5 {
				t.Errorf("paged through %d of %d", pages, pipeline.MaxAuditPage)
			}
			break
		}
		q.Page.After = found[len(found)-1].ID
	}
}

// TestAuditLooksUpExceptions: however many findings a record has, and however many of them
// are accepted or were, only what is about the package is read.
func TestAuditLooksUpExceptions(t *testing.T) {
	pool := postgrestest.New(t)
	s := newStore(t, pool)
	syncSample(t, s)
	var packages []pipeline.Package
	var findings []pipeline.Finding
	for i := range 2000 {
		packages = append(packages, pkg(fmt.Sprintf("p%d", i), "v1.0.0"))
		findings = append(findings, pipeline.Finding{ID: fmt.Sprintf("CVE-2025-%04d", i), Severity: pipeline.SeverityLow, Package: packages[i].Name, Version: "v1.0.0"})
	}
	one := release(t, s, "app", "one", packages, findings)
	meddle(t, pool, `
		INSERT INTO exceptions (id, project, environment, image, finding, package, reason, author, expires_at)
		SELECT 'exc_' || lpad(i::text, 20, '0'), 'app', '', '', 'cve-2025-' || lpad((i / 2)::text, 4, '0'), CASE i % 4 WHEN 0 THEN 'p' || i / 2 ELSE '' END, 'r', 'sam', now() + CASE i % 2 WHEN 0 THEN interval '1 hour' ELSE interval '-1 hour' END
		FROM generate_series(0, 3999) i;
		ANALYZE`)
	var id int64
	check(t, pool.QueryRow(t.Context(), `SELECT id FROM packages WHERE name = 'p7'`).Scan(&id))
	page := postgres.LeavePage(fmt.Sprintf("('%s', 'app', %[2]d), ('%[1]s', 'app', %[2]d), ('run_none', 'web', %[2]d)", one.Run, id))
	plan := explain(t, pool, "force_generic_plan", postgres.ExceptionsOfLines, nil, page)
	// A finding to see that the package has some, and it on each platform; one exception to
	// see that the project has some, and those of the finding.
	if found, read := plan.Plan.read("findings", nil), plan.Plan.read("exceptions", nil); found != 3 || read > 5 {
		t.Errorf("reads %.0f findings and %.0f exceptions", found, read)
	}
	uses, err := s.AuditPackages(t.Context(), pipeline.PackageAuditQuery{Name: "p7", AuditScope: pipeline.AuditScope{Reach: everything}})
	check(t, err)
	if len(uses) != 1 || len(uses[0].Exceptions) != 1 || uses[0].Exceptions[0].Finding != "cve-2025-0007" || uses[0].Exceptions[0].ID != "exc_00000000000000000014" {
		t.Errorf("p7 is told with %+v", uses)
	}
}

// explained is what EXPLAIN says of a query that was run.
type explained struct {
	Plan counted
	Time float64 `json:"Execution Time"`
}

// explain runs a query as a prepared statement, with lists of numbers and numbers, in
// the transaction of what goes before.
func explain(t *testing.T, pool *pgxpool.Pool, mode, sql string, args []any, before ...string) explained {
	t.Helper()
	tx, err := pool.Begin(t.Context())
	check(t, err)
	defer tx.Rollback(t.Context()) //nolint:errcheck // only reads
	var literals []string
	for _, a := range args {
		text := fmt.Sprint(a)
		literals = append(literals, "'"+strings.NewReplacer("[", "{", "]", "}", " ", ",").Replace(text)+"'")
	}
	for _, sql := range append(before, `SET LOCAL plan_cache_mode = `+mode, `PREPARE it AS `+sql) {
		_, err := tx.Exec(t.Context(), sql)
		check(t, err)
	}
	with := ""
	if len(literals) > 0 {
		with = "(" + strings.Join(literals, ", ") + ")"
	}
	var raw json.RawMessage
	check(t, tx.QueryRow(t.Context(), `EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE it`+with).Scan(&raw))
	_, err = tx.Exec(t.Context(), `DEALLOCATE it`)
	check(t, err)
	var plans []explained
	check(t, json.Unmarshal(raw, &plans))
	return plans[0]
}

// counted is a node of a plan with what it read.
type counted struct {
	Type     string  `json:"Node Type"`
	Relation string  `json:"Relation Name"`
	Rows     float64 `json:"Actual Rows"`
	Loops    float64 `json:"Actual Loops"`
	Plans    []counted
}

// read is how many rows it and what is below it had of a relation. Each of those nodes
// is shown to see; nil: to nobody.
func (c counted) read(relation string, see func(counted)) (n float64) {
	if c.Relation == relation {
		if see != nil {
			see(c)
		}
		n = c.Rows * c.Loops
	}
	for _, p := range c.Plans {
		n += p.read(relation, see)
	}
	return n
}

// allPages asks, within everything, until there are no more, in pages of 700.
func allPages(t *testing.T, s *postgres.Store, q pipeline.PackageAuditQuery) (all []pipeline.PackageAudit) {
	t.Helper()
	q.AuditScope = pipeline.AuditScope{Reach: everything, Page: pipeline.Page{Limit: 700}}
	for {
		uses, err := s.AuditPackages(t.Context(), q)
		check(t, err)
		if len(uses) == 0 {
			return all
		}
		all = append(all, uses...)
		q.Page.After = uses[len(uses)-1].ID
	}
}

// TestAuditThousandsOfVersions: a name that thousands of versions have is found image
// by image, and gives the same list.
func TestAuditThousandsOfVersions(t *testing.T) {
	pool := postgrestest.New(t)
	s := newStore(t, pool)
	syncSample(t, s)
	var many []pipeline.Package
	for i := range 2100 {
		many = append(many, pkg("often", fmt.Sprintf("v1.%d.0", i)))
	}
	release(t, s, "app", "one", many[:2000], nil)
	ask := func() (ids []string) {
		for _, u := range allPages(t, s, pipeline.PackageAuditQuery{Name: "often"}) {
			ids = append(ids, u.ID)
		}
		return ids
	}
	before := ask()
	release(t, s, "app", "two", many[2000:], nil)
	after := ask()
	if len(before) != 2000 || len(after) != 2100 || !slices.Equal(after[100:], before) {
		t.Errorf("%d, then %d, of which the last %v", len(before), len(after), slices.Equal(after[100:], before))
	}
}

// TestAuditLicencesOfThousands: a licence that thousands of packages are under is
// looked for image by image, and gives the same list.
func TestAuditLicencesOfThousands(t *testing.T) {
	pool := postgrestest.New(t)
	s := newStore(t, pool)
	syncSample(t, s)
	var many []pipeline.Package
	for i := range 2500 {
		many = append(many, debianPackage(fmt.Sprintf("package-%d", i), "1", "MIT"))
	}
	one := release(t, s, "app", "one", many, nil)
	two := release(t, s, "app", "two", many[:3], nil)
	web := release(t, s, "web", "web", append(many[2:4:4], debianPackage("other", "1", "ISC")), nil)
	q := pipeline.PackageAuditQuery{License: "MIT", AuditScope: pipeline.AuditScope{Reach: everything, Page: pipeline.Page{Limit: 700}}}
	count := map[pipeline.Digest]int{}
	last := ""
	for _, u := range allPages(t, s, q) {
		if u.ID == last || u.Package.Name == "other" {
			t.Fatalf("%s again, or %s", u.ID, u.Package.Name)
		}
		last = u.ID
		count[u.Image.Digest]++
	}
	if count[one.Built.Image.Digest] != 2500 || count[two.Built.Image.Digest] != 3 || count[web.Built.Image.Digest] != 2 {
		t.Errorf("counted %v", count)
	}
	q.Project = "web"
	uses, err := s.AuditPackages(t.Context(), q)
	check(t, err)
	if len(uses) != 2 {
		t.Errorf("of web, %d", len(uses))
	}
	q.Reach = pipeline.Reach{Projects: []string{"app"}}
	if uses, err = s.AuditPackages(t.Context(), q); err != nil || len(uses) != 0 {
		t.Errorf("out of reach, %d, %v", len(uses), err)
	}
}

// TestAuditScopesOfEverySize: whether images in scope are asked one by one, looked
// up beforehand or found on the way, the list is the same.
func TestAuditScopesOfEverySize(t *testing.T) {
	pool := postgrestest.New(t)
	s := newStore(t, pool)
	syncSample(t, s)
	release(t, s, "app", "one", []pipeline.Package{pkg("crypto", "v1")}, nil)
	meddle(t, pool, `
		BEGIN; SET CONSTRAINTS ALL DEFERRED;
		INSERT INTO projects (name, version) SELECT 'p' || n, 1 FROM generate_series(1, 3) n;
		INSERT INTO project_versions (project, version, digest, settings) SELECT name, 1, 'sha256:' || repeat('0', 64), '{}' FROM projects WHERE name LIKE 'p_';
		COMMIT;
		INSERT INTO packages (key, type, name, version, purl)
		SELECT sha256(i::text::bytea), 'debian', 'openssl', 'v' || i, '' FROM generate_series(1, 8) i;
		INSERT INTO jobs (id, kind, project, state, started_at, finished_at)
		SELECT 'run_' || lpad(i::text, 20, '0'), 'run', CASE WHEN i % 1000 = 0 THEN 'p1' WHEN i % 20 = 0 THEN 'p2' ELSE 'p3' END, 'succeeded', now(), now() FROM generate_series(1, 54000) i;
		INSERT INTO runs (id, event_key, ref, event) SELECT id, sha256(id::bytea), 'refs/heads/main', '{}' FROM jobs WHERE id LIKE 'run_000%';
		BEGIN; SET CONSTRAINTS ALL DEFERRED;
		INSERT INTO images (project, digest, newest)
		SELECT project, 'sha256:' || encode(sha256(id::bytea), 'hex'), id FROM jobs WHERE id LIKE 'run_000%' ORDER BY id;
		INSERT INTO image_records (run, image, digest, project, repository, commit_sha, plan_digest, built, scanned_at, scanner, db_reference, db_digest, db_updated_at)
		SELECT newest, id, digest, project, 'dev.example/app', 'c', 'p', '{}', now(), 's', 'r', 'd', now() FROM images WHERE newest LIKE 'run_000%';
		COMMIT;
		INSERT INTO image_packages (image, report, position, platform, package, path, layer)
		SELECT i.id, 0, n, 'linux/amd64', p.id, 1, 1 FROM images i, generate_series(10, 11) n,
			LATERAL (SELECT id FROM packages WHERE name = 'openssl' AND version = 'v' || (i.id * n) % 8 + 1) p WHERE i.id % 3 > 0;
		ANALYZE`)
	for scope, c := range map[string]struct {
		scope pipeline.AuditScope
		where string
	}{
		"one by one":             {pipeline.AuditScope{Reach: everything, Project: "p1"}, `i.project = 'p1'`},
		"looked up":              {pipeline.AuditScope{Reach: everything, Project: "p2"}, `i.project = 'p2'`},
		"looked up, by reach":    {pipeline.AuditScope{Reach: pipeline.Reach{Projects: []string{"p2", "p1", "none"}}}, `i.project IN ('p1', 'p2')`},
		"found on the way":       {pipeline.AuditScope{Reach: everything, Project: "p3"}, `i.project = 'p3'`},
		"without a scope":        {pipeline.AuditScope{Reach: everything}, `true`},
		"nothing is in scope":    {pipeline.AuditScope{Reach: pipeline.Reach{Projects: []string{"none"}}}, `false`},
		"nothing was ever there": {pipeline.AuditScope{Reach: everything, Environment: "prod", Promoted: pipeline.PromotedNow}, `false`},
	} {
		for _, version := range []string{"", "v5"} {
			rows, err := pool.Query(t.Context(), `
				SELECT DISTINCT x.image, x.package FROM image_packages x JOIN images i ON i.id = x.image JOIN packages p ON p.id = x.package
				WHERE p.name = 'openssl' AND ($1 = '' OR p.version = $1) AND `+c.where+` ORDER BY 1 DESC, 2 DESC`, version)
			check(t, err)
			var want []string
			var image, id int64
			_, err = pgx.ForEachRow(rows, []any{&image, &id}, func() error { want = append(want, fmt.Sprintf("%d-%d", image, id)); return nil })
			check(t, err)
			// The first pages, and the last of those that are long.
			starts := []int{0}
			if len(want) > 5000 {
				starts = append(starts, len(want)-2500)
			}
			for _, start := range starts {
				q := pipeline.PackageAuditQuery{Name: "openssl", Version: version, AuditScope: c.scope}
				q.Page.Limit = 400
				if start > 0 {
					q.Page.After = want[start-1]
				}
				for at := start; at < min(start+2400, len(want)+1); {
					uses, err := s.AuditPackages(t.Context(), q)
					check(t, err)
					for _, u := range uses {
						if at >= len(want) || u.ID != want[at] {
							t.Fatalf("%s, %q: %s is the %dth of %d", scope, version, u.ID, at, len(want))
						}
						at++
					}
					if len(uses) < q.Page.Limit {
						if at != len(want) {
							t.Errorf("%s, %q: it ends after %d of %d", scope, version, at, len(want))
						}
						break
					}
					q.Page.After = uses[len(uses)-1].ID
				}
			}
		}
	}
}
