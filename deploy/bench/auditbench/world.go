//go:build linux

package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// world is a record as many teams would fill it. Packages are as popular as Zipf
// has it: some are in every image, most in few. A team's next image has what its
// last had, some of it newer.
type world struct {
	images, each int
	projects     int
	names        int
	// releases of a package, over all the time that there are images.
	releases int
}

func newWorld(images, each int) world {
	return world{images: images, each: each, projects: max(1, images/50), names: 25_000, releases: 12}
}

// perImage is how many findings an image has.
const perImage = 30

var started = time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)

func (w world) at(image int) time.Time { return started.Add(time.Duration(image) * time.Minute) }
func (w world) project(image int) string {
	return fmt.Sprintf("project-%d", image%w.projects)
}
func digest(parts ...any) string {
	sum := sha256.Sum256([]byte(fmt.Sprint(parts...)))
	return "sha256:" + hex.EncodeToString(sum[:])
}
func runID(image int) string       { return fmt.Sprintf("run_%020d", image) }
func promotionID(image int) string { return fmt.Sprintf("prm_%020d", image) }

// name of a package by its popularity: 0 is the hottest.
func name(rank int) (name, typ string) {
	switch rank % 3 {
	case 0:
		return fmt.Sprintf("lib%s%d", hex.EncodeToString([]byte{byte(rank * 37)}), rank), "debian"
	case 1:
		return fmt.Sprintf("github.com/acme-%d/module-%d", rank%97, rank), "gobinary"
	}
	return fmt.Sprintf("package-%d", rank), "node-pkg"
}

func version(rank, release int) string {
	switch rank % 3 {
	case 0:
		return fmt.Sprintf("%d.%d.%d-1+deb12u%d", 1+rank%5, release/10, release%10, release%3)
	case 1:
		return fmt.Sprintf("v%d.%d.%d", rank%3, release/4, release%4)
	}
	return fmt.Sprintf("%d.%d.%d", 1+rank%4, release/8, release%8)
}

func purl(rank, release int) string {
	n, typ := name(rank)
	v := strings.ReplaceAll(version(rank, release), "+", "%2B")
	switch typ {
	case "debian":
		return "pkg:deb/debian/" + n + "@" + v + "?arch=amd64&distro=debian-12"
	case "gobinary":
		return "pkg:golang/" + n + "@" + v
	}
	return "pkg:npm/" + n + "@" + v
}

var licenses = []string{"MIT", "Apache-2.0", "BSD-3-Clause", "GPL-2.0-or-later", "LGPL-2.1-only", "ISC", "MPL-2.0", "GPL-3.0-or-later", "MIT OR Apache-2.0", "Zlib"}

// path of a package by its popularity: those of the distribution have none, those in
// a binary have its path, and others have their own.
func path(rank int) string {
	switch n, typ := name(rank); typ {
	case "debian":
		return ""
	case "gobinary":
		return "usr/local/bin/app"
	default:
		return "srv/app/node_modules/" + n + "/package.json"
	}
}

// bases is how many base images there are, one after the other. Each image has a
// layer of its own over its base.
const bases = 20

// chosen are the packages of a project, by popularity.
func (w world) chosen(project int) []int {
	r := rand.New(rand.NewPCG(uint64(project), 1))
	zipf := rand.NewZipf(r, 1.07, 8, uint64(w.names-1))
	seen := map[int]bool{0: true}
	out := []int{0} // the hottest is in every image
	for len(out) < w.each {
		rank := int(zipf.Uint64())
		if !seen[rank] {
			seen[rank] = true
			out = append(out, rank)
		}
	}
	return out
}

// release that an image has of a package: teams follow, some sooner.
func (w world) release(project, rank, image int) int {
	lag := float64((project*31+rank*17)%100) / 400
	progress := math.Max(0, float64(image)/float64(w.images)-lag)
	return min(w.releases-1, int(progress*float64(w.releases)))
}

func (w world) packageID(rank, release int) int64 { return int64(rank*w.releases + release + 1) }

// rows yields rows to copy, one at a time.
type rows struct {
	next func() []any
	row  []any
}

func (r *rows) Next() bool             { r.row = r.next(); return r.row != nil }
func (r *rows) Values() ([]any, error) { return r.row, nil }
func (r *rows) Err() error             { return nil }

func upTo(n int, row func(int) []any) *rows {
	i := -1
	return &rows{next: func() []any {
		if i++; i >= n {
			return nil
		}
		return row(i)
	}}
}

// fill writes the record as runs and promotions would have. Foreign keys are not
// checked and the large indexes come afterwards: both only cost time here.
func (b *bench) fill(ctx context.Context) error {
	tx, err := b.pool.Begin(ctx)
	if err != nil {
		return err
	}
	defer tx.Rollback(context.WithoutCancel(ctx)) //nolint:errcheck // committed below
	// Whatever the migrations say that they are.
	var indexes string
	if err := tx.QueryRow(ctx, `SELECT string_agg(indexdef, '; ') FROM pg_indexes
		WHERE indexname IN ('image_packages_by_package', 'packages_by_name', 'packages_by_purl')`).Scan(&indexes); err != nil {
		return err
	}
	exec := func(sql string) {
		if err == nil {
			_, err = tx.Exec(ctx, sql)
			if err != nil {
				err = fmt.Errorf("%.60s: %w", strings.TrimSpace(sql), err)
			}
		}
	}
	load := func(table string, columns []string, src pgx.CopyFromSource) {
		if err == nil {
			began := time.Now()
			var n int64
			n, err = tx.CopyFrom(ctx, pgx.Identifier{table}, columns, src)
			fmt.Fprintf(b.log, "%-18s %11d rows %6.1f s\n", table, n, time.Since(began).Seconds())
		}
	}
	exec(`SET LOCAL session_replication_role = replica; SET LOCAL maintenance_work_mem = '512MB';
		ALTER TABLE image_packages DROP CONSTRAINT image_packages_pkey; DROP INDEX image_packages_by_package, packages_by_name, packages_by_purl`)
	zero := "sha256:" + strings.Repeat("0", 64)
	load("projects", []string{"name", "version"}, upTo(b.projects, func(i int) []any { return []any{b.project(i), int32(1)} }))
	load("project_versions", []string{"project", "version", "digest", "settings"}, upTo(b.projects, func(i int) []any { return []any{b.project(i), int32(1), zero, `{}`} }))
	load("jobs", []string{"id", "kind", "project", "state", "created_at", "started_at", "finished_at"}, upTo(b.images, func(i int) []any {
		return []any{runID(i), "run", b.project(i), "succeeded", b.at(i), b.at(i), b.at(i)}
	}))
	load("runs", []string{"id", "event_key", "ref", "event", "commit_sha", "image_repository", "image_digest"}, upTo(b.images, func(i int) []any {
		key := sha256.Sum256([]byte(runID(i)))
		return []any{runID(i), key[:], "refs/heads/main", `{}`, digest("commit", i)[7:47], "dev.example/" + b.project(i), digest(i)}
	}))
	exec(`ALTER TABLE images ALTER COLUMN id SET GENERATED BY DEFAULT; ALTER TABLE packages ALTER COLUMN id SET GENERATED BY DEFAULT`)
	load("images", []string{"id", "project", "digest", "newest"}, upTo(b.images, func(i int) []any { return []any{int64(i + 1), b.project(i), digest(i), runID(i)} }))
	load("image_records", []string{"number", "run", "image", "digest", "project", "repository", "commit_sha", "plan_digest", "built", "scanned_at", "scanner", "db_reference", "db_digest", "db_updated_at", "recorded_at"},
		upTo(b.images, func(i int) []any {
			return []any{int64(i + 1), runID(i), int64(i + 1), digest(i), b.project(i), "dev.example/" + b.project(i), digest("commit", i)[7:47], "p", `{}`, b.at(i), "trivy", "db", zero, b.at(i), b.at(i)}
		}))
	load("reports", []string{"run", "position", "platform", "digest", "os", "run_user"}, upTo(b.images, func(i int) []any {
		return []any{runID(i), int32(0), "linux/amd64", digest("amd64", i), "debian 12", "65532"}
	}))
	load("packages", []string{"id", "key", "type", "name", "version", "purl"}, upTo(b.names*b.releases, func(i int) []any {
		rank, release := i/b.releases, i%b.releases
		n, typ := name(rank)
		key := sha256.Sum256([]byte(purl(rank, release)))
		return []any{b.packageID(rank, release), key[:], typ, n, version(rank, release), purl(rank, release)}
	}))
	exec(`ALTER TABLE paths ALTER COLUMN id SET GENERATED BY DEFAULT; ALTER TABLE layers ALTER COLUMN id SET GENERATED BY DEFAULT;
		ALTER TABLE license_lists ALTER COLUMN id SET GENERATED BY DEFAULT`)
	key := func(s string) []byte { sum := sha256.Sum256([]byte(s)); return sum[:] }
	// The numbers of the first two are those of the first two packages.
	load("paths", []string{"id", "key", "path"}, upTo(2+b.names/3, func(i int) []any {
		p := path(i)
		if i >= 2 {
			p = path(3*(i-2) + 2)
		}
		return []any{int64(i + 1), key(p), p}
	}))
	load("layers", []string{"id", "key", "layer"}, upTo(bases+b.images, func(i int) []any {
		layer := digest("layer", i)
		return []any{int64(i + 1), key(layer), layer}
	}))
	load("license_lists", []string{"id", "key", "licenses"}, upTo(len(licenses), func(i int) []any {
		return []any{int64(i + 1), key(licenses[i] + "\x00"), []string{licenses[i]}}
	}))
	load("image_packages", []string{"image", "package", "path", "layer", "licenses", "report", "position", "platform"}, b.contents())
	exec(`ALTER TABLE image_packages ADD PRIMARY KEY (image, report, position); ` + indexes)
	load("findings", []string{"run", "report", "position", "id", "severity", "package", "version", "fixed_in", "title", "url", "purl", "path"}, b.findings())
	b.exceptions(load)
	b.promotions(load)
	exec(`INSERT INTO stays (promotion, project, environment, placed, image, repository, action, requested_by, break_glass, approved_by, since, until)
		SELECT p.id, p.project, p.environment, p.placed, p.image, l.repository, p.action, p.requested_by, p.break_glass, ARRAY[a.author], j.finished_at,
			lead(j.finished_at) OVER (PARTITION BY p.project, p.environment ORDER BY p.placed)
		FROM promotions p JOIN jobs j ON j.id = p.id JOIN placements l ON l.promotion = p.id JOIN approvals a ON a.promotion = p.id`)
	exec(`INSERT INTO package_firsts (package, project, record)
		SELECT DISTINCT ON (x.package, r.project) x.package, r.project, r.number
		FROM image_packages x JOIN image_records r USING (image) ORDER BY x.package, r.project, x.image`)
	exec(`INSERT INTO package_licenses (license, package)
		SELECT DISTINCT t, x.package FROM (SELECT DISTINCT package, licenses FROM image_packages) x JOIN license_lists s ON s.id = x.licenses,
			unnest(s.licenses) AS l, license_terms(l) AS t`)
	if err != nil {
		return err
	}
	if err := tx.Commit(ctx); err != nil {
		return err
	}
	// As autovacuum does after many insertions.
	_, err = b.pool.Exec(ctx, `VACUUM ANALYZE`)
	return err
}

// contents yields what is in the images.
func (b *bench) contents() *rows {
	chosen := make([][]int, b.projects)
	for p := range chosen {
		chosen[p] = b.chosen(p)
	}
	image, position := 0, 0
	return &rows{next: func() []any {
		if position == b.each {
			image, position = image+1, 0
		}
		if image == b.images {
			return nil
		}
		project := image % b.projects
		rank := chosen[project][position]
		position++
		path, layer := rank%3, image/(b.images/bases+1)
		if path == 2 {
			path = 2 + rank/3
		}
		if path > 0 {
			layer = bases + image
		}
		return []any{int64(image + 1), b.packageID(rank, b.release(project, rank, image)), int64(path + 1), int64(layer + 1), int64(rank%len(licenses) + 1),
			int32(0), int32(position - 1), "linux/amd64"}
	}}
}

// found is the package that a project's finding at a position is in, by popularity.
func (w world) found(project, position int) int {
	if position == 0 {
		return 0
	}
	return (project*perImage + position*position*7) % (w.names / 10)
}

func cve(rank int) string { return fmt.Sprintf("CVE-2025-%05d", rank) }

// exceptions of one project in three: what its images have is accepted in prod for most of
// it, half of it in the package that it was found in, half in whatever package.
func (b *bench) exceptions(load func(string, []string, pgx.CopyFromSource)) {
	const each, apart = 20, 3
	load("exceptions", []string{"id", "project", "environment", "image", "finding", "package", "reason", "author", "created_at", "expires_at"},
		upTo(each*((b.projects+apart-1)/apart), func(i int) []any {
			project := i / each * apart
			rank := b.found(project, i%each)
			in := ""
			if i%2 == 0 {
				in, _ = name(rank)
			}
			return []any{fmt.Sprintf("exc_%020d", i), b.project(project), "prod", "", cve(rank), in, "It cannot be reached.", fmt.Sprintf("person-%d", i%40), started, started.AddDate(100, 0, 0)}
		}))
}

// findings yields what is known of the images: a CVE in the hottest package, and others.
func (b *bench) findings() *rows {
	image, position := 0, 0
	return &rows{next: func() []any {
		if position == perImage {
			image, position = image+1, 0
		}
		if image == b.images {
			return nil
		}
		rank := b.found(image%b.projects, position)
		position++
		n, _ := name(rank)
		v := b.release(image%b.projects, rank, image)
		return []any{runID(image), int32(0), int32(position - 1), cve(rank), int16(rank % 5), n, version(rank, v), version(rank, v+1),
			"A flaw in " + n, "https://example.com/advisory", purl(rank, v), ""}
	}}
}

// environments of every project, each of which an image enters one after the other.
var environments = []string{"dev", "staging", "prod"}

// promotions: one image in five went to prod, after the others.
func (b *bench) promotions(load func(string, []string, pgx.CopyFromSource)) {
	const apart = 5
	n := b.images / apart
	per := len(environments)
	// Turn by turn, so that every project has its share.
	at := func(i int) (image, environment int) {
		k := i / per
		return k*apart + k*apart/b.projects%apart, i % per
	}
	load("jobs", []string{"id", "kind", "project", "state", "created_at", "started_at", "finished_at"}, upTo(n*per, func(i int) []any {
		image, env := at(i)
		t := b.at(image).Add(time.Duration(env+1) * time.Hour)
		return []any{promotionID(i), "promotion", b.project(image), "succeeded", t, t, t}
	}))
	placed := make([]map[string]int64, per)
	for e := range placed {
		placed[e] = map[string]int64{}
	}
	current := map[[2]string]string{}
	load("promotions", []string{"id", "project", "image", "repository", "environment", "requested_by", "placed"}, upTo(n*per, func(i int) []any {
		image, env := at(i)
		project := b.project(image)
		placed[env][project]++
		current[[2]string{project, environments[env]}] = promotionID(i)
		return []any{promotionID(i), project, int64(image + 1), "dev.example/" + project, environments[env], fmt.Sprintf("person-%d", i%40), placed[env][project]}
	}))
	load("placements", []string{"promotion", "image", "environment", "repository", "copied", "recorded_at"}, upTo(n*per, func(i int) []any {
		image, env := at(i)
		return []any{promotionID(i), int64(image + 1), environments[env], environments[env] + ".example/" + b.project(image), `{}`, b.at(image)}
	}))
	load("approvals", []string{"promotion", "author", "roles", "plan", "comment", "rejected", "at"}, upTo(n*per, func(i int) []any {
		image, _ := at(i)
		return []any{promotionID(i), fmt.Sprintf("person-%d", (i+1)%40), []string{"release-manager"}, "", "", false, b.at(image)}
	}))
	var lanes [][]any
	for k, id := range current {
		var e int
		for i, name := range environments {
			if name == k[1] {
				e = i
			}
		}
		lanes = append(lanes, []any{k[0], k[1], id, placed[e][k[0]]})
	}
	load("lanes", []string{"project", "environment", "current", "placed"}, upTo(len(lanes), func(i int) []any { return lanes[i] }))
}
