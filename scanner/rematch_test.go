//go:build goexperiment.jsonv2

package scanner_test

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dray-project/dray/deploy/vulndb"
	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/scanner"
)

// fromDocker makes the last package one of Docker's apt repository, which
// Debian's advisories do not speak of.
func fromDocker(in files) files {
	status := in["var/lib/dpkg/status"]
	i := strings.LastIndex(status, "Maintainer: Somebody")
	in["var/lib/dpkg/status"] = status[:i] + strings.Replace(status[i:], "Somebody <somebody@example.org>", "Docker <support@docker.com>", 1)
	return in
}

// alpine is an Alpine 3.20 with these packages: name, origin, version.
func alpine(packages ...[3]string) files {
	installed := ""
	for _, p := range packages {
		installed += "C:Q1dm2MMr0UhCFOtgDRpgxYXiK6wXQ=\nP:" + p[0] + "\nV:" + p[2] + "\nA:x86_64\no:" + p[1] + "\nL:MIT\n\n"
	}
	return files{"etc/alpine-release": "3.20.1\n", "etc/os-release": "ID=alpine\nVERSION_ID=3.20.1\n", "lib/apk/db/installed": installed}
}

type sample struct {
	name     string
	image    pipeline.Image
	platform pipeline.PlatformImage
}

func samples(t *testing.T, host string) []sample {
	t.Helper()
	node := func(name, version string) files {
		return files{"usr/lib/node_modules/" + name + "/package.json": fmt.Sprintf(`{"name":%q,"version":%q,"license":"MIT"}`, name, version)}
	}
	python := func(name, version string) files {
		return files{"usr/lib/python3/dist-packages/" + name + "-" + version + ".dist-info/METADATA": "Metadata-Version: 2.1\nName: " + name + "\nVersion: " + version + "\nLicense: MIT\n"}
	}
	var out []sample
	for name, layers := range map[string][]files{
		"go":         {{"app": goBinary(t, "amd64", "golang.org/x/crypto", "v0.30.0")}},
		"npm":        {node("minimist", "1.2.5"), node("@scope/thing", "2.0.0")},
		"pip":        {python("Requests", "2.30.0"), python("some_thing", "1.0")},
		"java":       {{"opt/log4j-core-2.14.1.jar": jar(t, "org.apache.logging.log4j", "log4j-core", "2.14.1")}},
		"deb":        {debian([3]string{"libssl3", "openssl", "3.0.11-1~deb12u1"}, [3]string{"libc6", "glibc", "2.36-9+deb12u9"})},
		"apk":        {alpine([3]string{"busybox-binsh", "busybox", "1.36.1-r28"}, [3]string{"musl", "musl", "1.2.5-r0"})},
		"third":      {fromDocker(debian([3]string{"libc6", "glibc", "2.36-9+deb12u9"}, [3]string{"containerd.io", "containerd", "1.6.20-1"}))},
		"rebuilt":    {debian([3]string{"libssl3", "openssl", "3.0.11-1~deb12u1"}, [3]string{"libc6", "glibc", "2.36-9+deb12u9.root.io.1"})},
		"everything": {debian([3]string{"openssl", "openssl", "3.0.11-1~deb12u1"}), node("minimist", "1.2.5"), python("Requests", "2.30.0")},
		"nothing":    {{"hello": "world"}},
		"odd":        {debian([3]string{"a%2fb c", "a%2fb c", "1:2~3"}), node("we?rd/n#me", "1.0.0")},
	} {
		repo := host + "/team/" + name
		p := push(t, repo, "linux/amd64", image(t, "amd64", "", layers...))
		out = append(out, sample{name, named(repo, p), p})
	}
	slices.SortFunc(out, func(a, b sample) int { return strings.Compare(a.name, b.name) })
	return out
}

func scanAll(t *testing.T, b *bench, in []sample) map[string]pipeline.PlatformReport {
	t.Helper()
	out := map[string]pipeline.PlatformReport{}
	for _, s := range in {
		r, err := b.Scan(t.Context(), s.image, []pipeline.PlatformImage{s.platform})
		if err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		out[s.name] = r.Platforms[0]
	}
	return out
}

func known(id, ecosystem, pkg, severity string) vulndb.Advisory {
	a := vulndb.Advisory{ID: id, Ecosystem: ecosystem, Package: pkg, Severity: severity, Title: "about " + id, URL: "https://example.org/" + id}
	if !strings.Contains(ecosystem, " ") {
		a.Vulnerable, a.Fixed = []string{"<99"}, []string{"99"}
	}
	return a
}

// TestRematchEqualsScan: whatever the database becomes, matching again what a
// scan kept gives what scanning the image again gives, finding by finding and in
// the same order; and an image that Changes leaves out has the same findings.
func TestRematchEqualsScan(t *testing.T) {
	reg := newRegistry(t)
	dbRef := reg.host + "/mirror/vulndb:2"
	all := samples(t, reg.host)
	// What may be known of what: by the names that are looked up, by names that
	// are not (a binary package, another ecosystem's), and of what nobody has.
	var pool []vulndb.Advisory
	for ecosystem, packages := range map[string][]string{
		"go": {"golang.org/x/crypto", "stdlib"}, "npm": {"minimist", "@scope/thing", "we?rd/n#me", "requests"}, "pip": {"requests", "some-thing"},
		"maven":     {"org.apache.logging.log4j:log4j-core"},
		"debian 12": {"openssl", "libssl3", "glibc", "containerd", "containerd.io", "a%2fb c", "nobody"},
		"debian 11": {"openssl", "glibc"}, "alpine 3.20": {"busybox", "musl", "openssl"}, "alpine 3.19": {"busybox"},
	} {
		for _, p := range packages {
			for n := range 2 {
				pool = append(pool, known(fmt.Sprintf("CVE-2026-%d%03d", n, len(pool)), ecosystem, p, "high"))
			}
		}
	}
	slices.SortFunc(pool, func(a, b vulndb.Advisory) int { return strings.Compare(a.ID, b.ID) })

	rng := rand.New(rand.NewPCG(4, 2))
	var current []vulndb.Advisory
	for _, a := range pool {
		if rng.IntN(2) == 0 {
			current = append(current, a)
		}
	}
	first := pushDatabase(t, dbRef, start, current...)
	b := openScanner(t, dbRef, func(c *scanner.Config) { c.MaxAge = 365 * 24 * time.Hour })
	kept := scanAll(t, b, all)
	was, changed, unaffected := kept, 0, 0
	from := first
	for round := range 12 {
		// A few come, a few go, some are rated or titled otherwise.
		next := slices.Clone(current)
		for range 1 + rng.IntN(3) {
			a := pool[rng.IntN(len(pool))]
			i := slices.IndexFunc(next, func(x vulndb.Advisory) bool { return x.ID == a.ID })
			switch {
			case i < 0:
				next = append(next, a)
			case rng.IntN(2) == 0:
				next = slices.Delete(next, i, i+1)
			default:
				next[i].Severity = []string{"low", "medium", "critical"}[rng.IntN(3)]
				next[i].Title += " again"
			}
		}
		current = next
		to := pushDatabase(t, dbRef, start.Add(time.Duration(round+1)*time.Hour), current...)
		b.clock.add(2 * scanner.DefaultRefreshEvery)
		if db, err := b.Database(t.Context()); err != nil || db.Digest != to {
			t.Fatalf("round %d: database %s in force, want %s: %v", round, db.Digest, to, err)
		}
		before := reg.count("")
		db, changes, err := b.Changes(t.Context(), from)
		if err != nil || db.Digest != to || changes.All {
			t.Fatalf("round %d: changes since %s: %+v, %v", round, from, db, err)
		}
		var analyses []pipeline.Analysis
		for _, s := range all {
			analyses = append(analyses, kept[s.name].Analysis)
		}
		db, got, err := b.Rematch(t.Context(), analyses)
		if err != nil || db.Digest != to || len(got) != len(all) {
			t.Fatalf("round %d: %d of %d matched with %s: %v", round, len(got), len(all), db.Digest, err)
		}
		if n := reg.count("") - before; n != 0 {
			t.Errorf("round %d: matching again sent %d requests to registries", round, n)
		}
		now := scanAll(t, b, all)
		for i, s := range all {
			if got[i].Unreadable != "" || !reflect.DeepEqual(got[i].Findings, now[s.name].Findings) {
				t.Errorf("round %d: %s: matched again:\n%+v %s\nscanned again:\n%+v", round, s.name, got[i].Findings, got[i].Unreadable, now[s.name].Findings)
			}
			same := reflect.DeepEqual(was[s.name].Findings, now[s.name].Findings)
			if !changes.Touch(kept[s.name].Analysis.Keys) {
				unaffected++
				if !same {
					t.Errorf("round %d: %s was left out, and its findings changed:\n%+v\n%+v", round, s.name, was[s.name].Findings, now[s.name].Findings)
				}
			}
			if !same {
				changed++
			}
			if !reflect.DeepEqual(kept[s.name].Analysis, now[s.name].Analysis) {
				t.Errorf("round %d: %s: the analysis depends on the database", round, s.name)
			}
		}
		was, from = now, to
	}
	if changed < 5 || unaffected < 20 {
		t.Errorf("%d findings changed and %d images were left out in all: the test shows little", changed, unaffected)
	}
	for _, f := range was["third"].Findings {
		if strings.HasPrefix(f.Package, "containerd") {
			t.Errorf("Debian's advisory was matched with Docker's package: %+v", f)
		}
	}

	// A database that nobody remembers, and an analysis that nobody can read.
	_, changes, err := b.Changes(t.Context(), pipeline.Digest("sha256:"+strings.Repeat("0", 64)))
	if err != nil || !changes.All || !changes.Touch(kept["go"].Analysis.Keys) {
		t.Errorf("changes since a database that was never here: %+v, %v", changes, err)
	}
	_, got, err := b.Rematch(t.Context(), []pipeline.Analysis{{Data: []byte("nonsense")}, kept["deb"].Analysis})
	if err != nil || got[0].Unreadable == "" || got[1].Unreadable != "" {
		t.Errorf("one analysis that cannot be read: %+v, %v", got, err)
	}
	// After a restart, what databases changed is still known.
	cfg := b.cfg
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	again := openScanner(t, dbRef, func(c *scanner.Config) { c.CacheDir, c.Now, c.MaxAge = cfg.CacheDir, cfg.Now, cfg.MaxAge })
	if _, changes, err = again.Changes(t.Context(), first); err == nil && changes.All {
		_, changes, err = again.Changes(t.Context(), from)
	}
	if err != nil || changes.All {
		t.Errorf("after a restart nothing is known of earlier databases: %v", err)
	}
}
