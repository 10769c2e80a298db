package postgres_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/pipelinetest"
	"github.com/dray-project/dray/pipeline/postgres"
	"github.com/dray-project/dray/pipeline/postgres/postgrestest"
)

func pkg(name, version string) pipeline.Package {
	return pipeline.Package{Name: name, Version: version, Type: "gobinary", PURL: "pkg:golang/" + name + "@" + version, Path: "bin/app"}
}

func TestPackages(t *testing.T) {
	s := newStore(t, postgrestest.New(t))
	syncSample(t, s)
	old := release(t, s, "app", "old", []pipeline.Package{pkg("crypto", "v1"), pkg("crypto", "v1"), pkg("zlib", "v1")}, nil, "1.0.0", "latest")
	both := release(t, s, "app", "both", []pipeline.Package{pkg("crypto", "v1"), pkg("crypto", "v2")}, nil, "2.0.0", "latest")
	web := release(t, s, "web", "web", []pipeline.Package{pkg("crypto", "v2")}, nil, "1.0.0")
	p := promote(t, s, old, "prod", "grace")
	place(t, s, p)
	failed := promote(t, s, both, "prod", "ada")
	check(t, s.End(t.Context(), failed.ID.Job(), pipeline.Ending{State: pipeline.StateFailed, Reason: "no"}))

	digests := func(q pipeline.PackageQuery) string {
		t.Helper()
		uses, err := s.Packages(t.Context(), q)
		check(t, err)
		var out []string
		for _, u := range uses {
			what := map[pipeline.Digest]string{old.Built.Image.Digest: "old", both.Built.Image.Digest: "both", web.Built.Image.Digest: "web"}[u.Image.Digest]
			out = append(out, what+" "+u.Package.Version)
		}
		return strings.Join(out, ", ")
	}
	for _, c := range []struct {
		q    pipeline.PackageQuery
		want string
	}{
		{pipeline.PackageQuery{Name: "crypto"}, "web v2, both v2, both v1, old v1"},
		{pipeline.PackageQuery{Name: "crypto", Version: "v1"}, "both v1, old v1"},
		{pipeline.PackageQuery{Name: "crypto", Project: "web"}, "web v2"},
		{pipeline.PackageQuery{Name: "crypto", Promoted: true}, "old v1"},
		{pipeline.PackageQuery{Name: "crypto", Environment: "prod"}, "old v1"},
		{pipeline.PackageQuery{Name: "crypto", Environment: "staging"}, ""},
		{pipeline.PackageQuery{Name: "zlib", Project: "web"}, ""},
		{pipeline.PackageQuery{Name: "crypt"}, ""},
		{pipeline.PackageQuery{Name: "crypto", Version: "v"}, ""},
	} {
		if got := digests(c.q); got != c.want {
			t.Errorf("%+v: got %q, want %q", c.q, got, c.want)
		}
	}

	uses, err := s.Packages(t.Context(), pipeline.PackageQuery{Name: "crypto", Promoted: true})
	check(t, err)
	u := uses[0]
	env, _ := pipelinetest.SampleProject("app").Environment("prod")
	if u.Project != "app" || u.Image != old.Built.Image || u.Commit != old.Built.Source.Commit || u.Run != old.Run ||
		fmt.Sprint(u.Platforms) != "[linux/amd64 linux/arm64]" || fmt.Sprint(u.Tags) != "[1.0.0]" || u.Package.Path != "bin/app" || u.Package.PURL != "pkg:golang/crypto@v1" {
		t.Errorf("the use is %+v", u)
	}
	if len(u.Promotions) != 1 || u.Promotions[0].Promotion != p.ID || u.Promotions[0].Environment != "prod" || u.Promotions[0].RequestedBy != "grace" ||
		u.Promotions[0].Image != (pipeline.Image{Repository: env.Repository, Digest: old.Built.Image.Digest}) || u.Promotions[0].At.IsZero() {
		t.Errorf("the promotions are %+v", u.Promotions)
	}

	// Page by page, the same list.
	var paged []string
	q := pipeline.PackageQuery{Name: "crypto", Page: pipeline.Page{Limit: 1}}
	for {
		uses, err := s.Packages(t.Context(), q)
		check(t, err)
		if len(uses) == 0 {
			break
		}
		if len(uses) > 1 {
			t.Fatalf("a page of %d", len(uses))
		}
		paged = append(paged, uses[0].ID)
		q.Page.After = uses[0].ID
	}
	if len(paged) != 4 {
		t.Errorf("paged through %v", paged)
	}
	for _, q := range []pipeline.PackageQuery{{}, {Name: "x", Page: pipeline.Page{After: "'; DROP"}}} {
		if _, err := s.Packages(t.Context(), q); !errors.Is(err, pipeline.ErrInvalid) {
			t.Errorf("%+v: %v", q, err)
		}
	}
}

// TestPackagesUseIndexes: with many images, the planner finds the page by
// indexes. Rows are made by the server; what is tested is the query.
func TestPackagesUseIndexes(t *testing.T) {
	pool := postgrestest.New(t)
	s := newStore(t, pool)
	syncSample(t, s)
	release(t, s, "app", "one", []pipeline.Package{pkg("crypto", "v1")}, nil)
	meddle(t, pool, `
		INSERT INTO packages (key, type, name, version, purl)
		SELECT sha256(i::text::bytea), 'debian', 'package-' || i / 5, 'v' || i % 5, '' FROM generate_series(1, 10000) i;
		INSERT INTO images (project, digest, newest)
		SELECT 'app', 'sha256:' || encode(sha256(i::text::bytea), 'hex'), (SELECT id FROM runs) FROM generate_series(1, 2000) i;
		INSERT INTO image_packages (image, report, position, platform, package, path, layer)
		SELECT i.id, 0, n, 'linux/amd64', (i.id * 31 + n * 17) % 10000 + 1, 1, 1 FROM images i, generate_series(1, 50) n;
		INSERT INTO image_packages (image, report, position, platform, package, path, layer)
		SELECT i.id, 0, 0, 'linux/amd64', (SELECT id FROM packages WHERE name = 'crypto'), 1, 1 FROM images i WHERE NOT EXISTS (
			SELECT FROM image_packages x WHERE x.image = i.id AND x.position = 0 AND x.report = 0);
		ANALYZE`)
	for name, q := range map[string]pipeline.PackageQuery{
		"rare, by name":                {Name: "package-77"},
		"rare, by name and version":    {Name: "package-77", Version: "v3"},
		"rare, promoted":               {Name: "package-77", Promoted: true},
		"rare, promoted there":         {Name: "package-77", Environment: "prod"},
		"hottest":                      {Name: "crypto", Version: "v1"},
		"hottest, second page":         {Name: "crypto", Page: pipeline.Page{After: "1000-1"}},
		"nobody has it":                {Name: "nothing"},
		"rare, in a project, one item": {Name: "package-77", Project: "app", Page: pipeline.Page{Limit: 1}},
	} {
		sql, args, err := postgres.PackagesSQL(q)
		check(t, err)
		var raw json.RawMessage
		check(t, pool.QueryRow(t.Context(), `EXPLAIN (ANALYZE, FORMAT JSON) `+sql, args...).Scan(&raw))
		var plan []struct {
			Plan node
			Time float64 `json:"Execution Time"`
		}
		check(t, json.Unmarshal(raw, &plan))
		t.Logf("%s: %.2f ms", name, plan[0].Time)
		plan[0].Plan.walk(func(n node) {
			if n.Type == "Seq Scan" && (n.Relation == "packages" || n.Relation == "image_packages") {
				t.Errorf("%s reads all of %s", name, n.Relation)
			}
		})
		if !strings.Contains(string(raw), "packages_by_name") {
			t.Errorf("%s does not use the index on names: %s", name, raw)
		}
	}
}

type node struct {
	Type     string `json:"Node Type"`
	Relation string `json:"Relation Name"`
	Plans    []node `json:"Plans"`
}

func (n node) walk(f func(node)) {
	f(n)
	for _, p := range n.Plans {
		p.walk(f)
	}
}
