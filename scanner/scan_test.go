//go:build goexperiment.jsonv2

package scanner_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/scanner"
)

// both kinds of registry.
var registries = map[string]func(*testing.T) *testRegistry{"olareg": newRegistry, "distribution": newDistribution}

func TestScan(t *testing.T) {
	for kind, open := range registries {
		t.Run(kind, func(t *testing.T) {
			reg := open(t)
			repo := reg.host + "/team/app"
			dbRef := reg.host + "/mirror/vulndb:2"
			dbDigest := pushDatabase(t, dbRef, start)

			amd := push(t, repo, "linux/amd64", image(t, "amd64", "",
				debian([3]string{"openssl", "openssl", "3.0.11-1~deb12u1"}, [3]string{"libc6", "glibc", "2.36-9+deb12u9"}),
				files{
					"usr/lib/node_modules/minimist/package.json":                       `{"name":"minimist","version":"1.2.5","license":"MIT"}`,
					"usr/lib/python3/dist-packages/requests-2.30.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: requests\nVersion: 2.30.0\nLicense: Apache-2.0\n",
					"opt/app/log4j-core-2.14.1.jar":                                    jar(t, "org.apache.logging.log4j", "log4j-core", "2.14.1"),
					"opt/app/package-lock.json":                                        `{"lockfileVersion":3,"packages":{"node_modules/lodash":{"version":"4.17.20"}}}`,
				}))
			arm := push(t, repo, "linux/arm64", image(t, "arm64", "65532:65532",
				files{"app": goBinary(t, "arm64", "golang.org/x/crypto", "v0.30.0")}))

			b := openScanner(t, dbRef)
			report, err := b.Scan(t.Context(), named(repo, amd), []pipeline.PlatformImage{amd, arm})
			if err != nil {
				t.Fatal(err)
			}
			if want := (pipeline.VulnerabilityDatabase{Reference: dbRef, Digest: dbDigest, UpdatedAt: start}); report.Database != want {
				t.Errorf("database %+v, want %+v", report.Database, want)
			}
			if report.ScannedAt != start || report.Scanner != "trivy v0.74.0" || len(report.Platforms) != 2 {
				t.Errorf("scanned at %s by %s, %d platforms", report.ScannedAt, report.Scanner, len(report.Platforms))
			}

			debianReport, goReport := report.Platforms[0], report.Platforms[1]
			if debianReport.Platform != "linux/amd64" || debianReport.Digest != amd.Digest || debianReport.OS != "debian 12.5" || !debianReport.Root() {
				t.Errorf("amd64: %s %s os %q user %q", debianReport.Platform, debianReport.Digest, debianReport.OS, debianReport.User)
			}
			if goReport.Platform != "linux/arm64" || goReport.User != "65532:65532" || goReport.Root() || goReport.OS != "" {
				t.Errorf("arm64: %s os %q user %q", goReport.Platform, goReport.OS, goReport.User)
			}
			wantPackages(t, debianReport, []string{
				"debian libc6 2.36-9+deb12u9 pkg:deb/debian/libc6@2.36-9%2Bdeb12u9?arch=amd64&distro=debian-12.5 at ''",
				"debian openssl 3.0.11-1~deb12u1 pkg:deb/debian/openssl@3.0.11-1~deb12u1?arch=amd64&distro=debian-12.5 at ''",
				"jar org.apache.logging.log4j:log4j-core 2.14.1 pkg:maven/org.apache.logging.log4j/log4j-core@2.14.1 at 'opt/app/log4j-core-2.14.1.jar'",
				"node-pkg minimist 1.2.5 pkg:npm/minimist@1.2.5 at 'usr/lib/node_modules/minimist/package.json'",
				"python-pkg requests 2.30.0 pkg:pypi/requests@2.30.0 at 'usr/lib/python3/dist-packages/requests-2.30.0.dist-info/METADATA'",
			})
			for _, p := range debianReport.Packages {
				if !strings.HasPrefix(p.Layer, "sha256:") || (len(p.Licenses) == 0 && p.Type != "jar") {
					t.Errorf("%s: layer %q licences %v", p.Name, p.Layer, p.Licenses)
				}
			}
			wantFindings(t, debianReport, []string{
				"critical CVE-2021-44228 org.apache.logging.log4j:log4j-core 2.14.1 fixed in 2.15.0, 2.12.2, 2.3.1",
				"critical CVE-2021-44906 minimist 1.2.5 fixed in 0.2.4, 1.2.6",
				"high CVE-2023-5363 openssl 3.0.11-1~deb12u1 fixed in 3.0.11-1~deb12u2",
				"high CVE-2024-6119 openssl 3.0.11-1~deb12u1 fixed in 3.0.14-1~deb12u2",
				"medium CVE-2023-32681 requests 2.30.0 fixed in 2.31.0",
				"medium CVE-2024-35195 requests 2.30.0 fixed in 2.32.0",
			})
			wantFindings(t, goReport, []string{
				"critical CVE-2024-45337 golang.org/x/crypto v0.30.0 fixed in 0.31.0",
				"high CVE-2025-22869 golang.org/x/crypto v0.30.0 fixed in 0.35.0",
			})
			for _, f := range goReport.Findings {
				if f.Path != "app" || f.PURL != "pkg:golang/golang.org/x/crypto@v0.30.0" || f.Title == "" || !strings.HasPrefix(f.URL, "https://") {
					t.Errorf("finding says too little: %+v", f)
				}
			}
		})
	}
}

func wantPackages(t *testing.T, r pipeline.PlatformReport, want []string) {
	t.Helper()
	got := []string{}
	for _, p := range r.Packages {
		got = append(got, fmt.Sprintf("%s %s %s %s at '%s'", p.Type, p.Name, p.Version, p.PURL, p.Path))
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("packages:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func wantFindings(t *testing.T, r pipeline.PlatformReport, want []string) {
	t.Helper()
	got := []string{}
	for _, f := range r.Findings {
		got = append(got, fmt.Sprintf("%s %s %s %s fixed in %s", f.Severity, f.ID, f.Package, f.Version, f.FixedIn))
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("findings:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// An image without anything known in it is a report, not an error.
func TestScanOfNothing(t *testing.T) {
	reg := newRegistry(t)
	dbRef := reg.host + "/vulndb:2"
	pushDatabase(t, dbRef, start)
	p := push(t, reg.host+"/app", "linux/amd64", image(t, "amd64", "10", files{"hello": "world"}))
	report, err := openScanner(t, dbRef).Scan(t.Context(), named(reg.host+"/app", p), []pipeline.PlatformImage{p})
	if err != nil {
		t.Fatal(err)
	}
	got := report.Platforms[0]
	if got.Packages == nil || got.Findings == nil || len(got.Packages)+len(got.Findings) != 0 || !json.Valid(got.SBOM) {
		t.Errorf("got %+v", got)
	}
}

// The SBOM is attested: an attempt that is repeated, on another machine and with
// another database, must write the same bytes.
func TestSBOMIsReproducible(t *testing.T) {
	reg := newRegistry(t)
	dbRef := reg.host + "/vulndb:2"
	pushDatabase(t, dbRef, start)
	repo := reg.host + "/app"
	base := debian([3]string{"openssl", "openssl", "3.0.11-1~deb12u1"}, [3]string{"libc6", "glibc", "2.36-9+deb12u9"})
	binary := goBinary(t, "amd64", "golang.org/x/crypto", "v0.30.0")
	apps := files{
		// The same package in two places, and the same binary twice: their
		// components have no unique package URL.
		"a/node_modules/minimist/package.json": `{"name":"minimist","version":"1.2.5","license":"MIT"}`,
		"b/node_modules/minimist/package.json": `{"name":"minimist","version":"1.2.5","license":"MIT"}`,
		"usr/bin/one":                          binary,
		"usr/bin/two":                          binary,
	}
	p := push(t, repo, "linux/amd64", image(t, "amd64", "", base, apps))
	scan := func(b *bench) []byte {
		t.Helper()
		report, err := b.Scan(t.Context(), named(repo, p), []pipeline.PlatformImage{p})
		if err != nil {
			t.Fatal(err)
		}
		return report.Platforms[0].SBOM
	}

	b := openScanner(t, dbRef)
	first := scan(b)
	b.clock.add(2 * scanner.DefaultRefreshEvery)
	if again := scan(b); !bytes.Equal(first, again) {
		t.Errorf("scanned again, from the cache:\n%s\n%s", first, again)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}

	// Another machine, which saw the base layer before, compressed otherwise.
	pushDatabase(t, dbRef, start.Add(1))
	other := openScanner(t, dbRef)
	img, err := mutate.Append(image(t, "amd64", ""), mutate.Addendum{Layer: layer(t, archive(t, base), tarball.WithCompressionLevel(9))})
	if err != nil {
		t.Fatal(err)
	}
	q := push(t, repo, "linux/amd64", img)
	if _, err := other.Scan(t.Context(), named(repo, q), []pipeline.PlatformImage{q}); err != nil {
		t.Fatal(err)
	}
	if again := scan(other); !bytes.Equal(first, again) {
		t.Errorf("scanned elsewhere:\n%s\n%s", first, again)
	}

	var bom struct {
		SerialNumber string
		Metadata     struct {
			Timestamp string
			Component struct{ Name string }
		}
		Components []struct {
			BOMRef string `json:"bom-ref"`
			Name   string
		}
		Dependencies []struct {
			Ref       string
			DependsOn []string
		}
		Vulnerabilities []any
	}
	if err := json.Unmarshal(first, &bom); err != nil {
		t.Fatal(err)
	}
	if bom.Metadata.Timestamp != created.Format("2006-01-02T15:04:05+00:00") || bom.Metadata.Component.Name != repo+"@"+string(p.Digest) {
		t.Errorf("metadata %+v", bom.Metadata)
	}
	if !strings.HasPrefix(bom.SerialNumber, "urn:uuid:") || len(bom.Vulnerabilities) != 0 {
		t.Errorf("serial %s, %d vulnerabilities", bom.SerialNumber, len(bom.Vulnerabilities))
	}
	refs := map[string]bool{}
	for _, c := range bom.Components {
		if refs[c.BOMRef] {
			t.Errorf("two components have the reference %s", c.BOMRef)
		}
		refs[c.BOMRef] = true
	}
	minimist := 0
	for _, c := range bom.Components {
		if c.Name == "minimist" {
			minimist++
		}
	}
	if minimist != 2 {
		t.Errorf("minimist is in the SBOM %d times, want 2", minimist)
	}
	for _, d := range bom.Dependencies {
		for _, to := range d.DependsOn {
			if !refs[to] {
				t.Errorf("%s depends on %s, which is not in the document", d.Ref, to)
			}
		}
	}
}

func TestConcurrentScans(t *testing.T) {
	reg := newRegistry(t)
	dbRef := reg.host + "/vulndb:2"
	pushDatabase(t, dbRef, start)
	b := openScanner(t, dbRef)
	var group sync.WaitGroup
	for i := range 8 {
		repo := fmt.Sprintf("%s/app%d", reg.host, i)
		version := fmt.Sprintf("3.0.%d-1", i)
		p := push(t, repo, "linux/amd64", image(t, "amd64", "", debian([3]string{"openssl", "openssl", version}),
			files{
				"app.jar": jar(t, "org.example", "app", version),
				"usr/lib/python3/dist-packages/thing-1.egg-info": "Metadata-Version: 1.0\nName: thing\nVersion: " + version + "\nLicense: MIT\n",
			}))
		for range 2 {
			group.Go(func() {
				report, err := b.Scan(t.Context(), named(repo, p), []pipeline.PlatformImage{p})
				if err != nil {
					t.Error(err)
					return
				}
				if got := report.Platforms[0].Packages; len(got) != 3 || got[0].Version != version || got[1].Version != version || got[2].Version != version {
					t.Errorf("%s: packages %+v, want openssl, app and thing %s", repo, got, version)
				}
				if got := report.Platforms[0].Findings; len(got) != 2 {
					t.Errorf("%s: findings %+v, want 2", repo, got)
				}
			})
		}
	}
	group.Wait()
	if n := reg.count("GET /v2/vulndb/blobs/"); n != 1 {
		t.Errorf("the database was pulled %d times", n)
	}
}

// The version is written into reports and SBOMs by hand: a library cannot ask.
func TestVersionIsThatOfTheModule(t *testing.T) {
	mod, err := os.ReadFile("../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	reg := newRegistry(t)
	pushDatabase(t, reg.host+"/vulndb:2", start)
	p := push(t, reg.host+"/app", "linux/amd64", image(t, "amd64", "", files{"a": "b"}))
	report, err := openScanner(t, reg.host+"/vulndb:2").Scan(t.Context(), named(reg.host+"/app", p), []pipeline.PlatformImage{p})
	if err != nil {
		t.Fatal(err)
	}
	version, ok := strings.CutPrefix(report.Scanner, "trivy ")
	if !ok || !strings.Contains(string(mod), "github.com/aquasecurity/trivy "+version+"\n") {
		t.Errorf("reports say %q, which go.mod does not", report.Scanner)
	}
}
