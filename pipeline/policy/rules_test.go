package policy

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/dray-project/dray/pipeline"
)

func finding(id string, s pipeline.Severity, fixedIn string) pipeline.FindingFact {
	return pipeline.FindingFact{Finding: pipeline.Finding{ID: id, Severity: s, Package: "lib", Version: "1", FixedIn: fixedIn},
		Fixable: fixedIn != "", Platforms: []pipeline.Platform{"linux/amd64"}}
}

func suppressed(x pipeline.FindingFact, by string) pipeline.FindingFact {
	x.Suppressed = true
	x.Suppression = &pipeline.Suppression{By: by, ID: "exc_1", Author: "sam", Reason: "not reachable"}
	return x
}

func TestReadyMadeRules(t *testing.T) {
	critical := finding("CVE-1", pipeline.SeverityCritical, "2")
	unfixed := finding("CVE-2", pipeline.SeverityCritical, "")
	high := finding("CVE-3", pipeline.SeverityHigh, "2")
	with := func(list ...pipeline.FindingFact) func(*pipeline.Facts) {
		return func(f *pipeline.Facts) { f.Findings = list }
	}
	license := func(expr string, packages ...string) func(*pipeline.Facts) {
		return func(f *pipeline.Facts) {
			f.Licenses = []pipeline.LicenseFact{{License: expr, Packages: append([]string{"lib"}, packages...)}}
		}
	}
	one, two := hex64("1"), hex64("2")
	for _, tt := range []struct {
		name   string
		use    string
		args   string
		change func(*pipeline.Facts)
		refuse bool
		says   string // in the reason
		remedy string
		looks  string // a fact that must be shown
	}{
		{"", "scanned", "", nil, false, "2 platform(s) scanned with trivy v0.74.0, database of 2026-08-03 06:00 UTC", "", "scan.database"},
		{"no platform", "scanned", "", func(f *pipeline.Facts) { f.Scan.Platforms = nil }, true, "no platform of the image was scanned", "run the scan again", "scan.platforms"},
		{"not every platform", "scanned", "", func(f *pipeline.Facts) { f.Scan.Platforms = f.Scan.Platforms[:1] }, true, "not scanned: linux/arm64", "run the scan again", "image.platforms"},
		{"no database", "scanned", "", func(f *pipeline.Facts) { f.Scan.Database = "" }, true, "does not say which vulnerability database", "run the scan again", "scan.database"},

		{"clean", "severity", `{"failOn":"critical"}`, with(high), false, "no finding of severity critical or above", "", "findings"},
		{"critical", "severity", `{"failOn":"critical"}`, with(high, critical), true, "1 finding(s) of severity critical or above: CVE-1 (critical) in lib 1", "update lib to 2", "findings"},
		{"threshold", "severity", `{"failOn":"high"}`, with(high, critical), true, "2 finding(s) of severity high or above: CVE-1 (critical) in lib 1, CVE-3 (high) in lib 1", "update lib to 2", ""},
		{"unfixed counts", "severity", `{"failOn":"critical"}`, with(unfixed), true, "CVE-2", "no fixed version is known yet; or accept the findings for a time with an exception", ""},
		{"some unfixed", "severity", `{"failOn":"critical"}`, with(unfixed, critical), true, "2 finding(s)", "update lib to 2; 1 of the findings have no fixed version yet", ""},
		{"unfixed ignored", "severity", `{"failOn":"critical","ignoreUnfixed":true}`, with(unfixed), false, "that has a fix (1 without one ignored)", "", ""},
		{"suppressed do not count, and are said", "severity", `{"failOn":"high"}`, with(suppressed(critical, "exception"), suppressed(high, "vex")), false, "no finding of severity high or above (2 suppressed by an exception or a VEX statement)", "", ""},
		{"suppressed beside others", "severity", `{"failOn":"high"}`, with(suppressed(critical, "exception"), high), true, "1 finding(s) of severity high or above: CVE-3 (high) in lib 1 (1 suppressed", "update lib to 2", ""},
		{"unknown counts where asked for", "severity", `{"failOn":"unknown"}`, with(finding("CVE-9", pipeline.SeverityUnknown, "")), true, "CVE-9 (unknown)", "remove the packages", ""},
		{"many", "severity", `{"failOn":"low"}`, with(critical, high, unfixed, finding("CVE-4", 1, ""), finding("CVE-5", 1, ""), finding("CVE-6", 1, ""), finding("CVE-7", 1, "")), true, "and 2 more", "update lib to 2", ""},

		{"", "no-exception", "", with(critical, suppressed(high, "vex")), false, "is accepted by an exception", "", "findings"},
		{"accepted", "no-exception", "", with(suppressed(high, "exception")), true, "1 finding(s) of severity unknown or above pass only by an exception: CVE-3 (high) in lib 1 by sam (exc_1)", "mend the findings", ""},
		{"below the severity", "no-exception", `{"severity":"critical"}`, with(suppressed(high, "exception")), false, "severity critical", "", ""},

		{"", "database-age", `{"max":"48h"}`, nil, false, "the vulnerability database is 6h old (of 2026-08-03 06:00 UTC), at most 2d is allowed", "", "scan.databaseUpdatedAt"},
		{"too old", "database-age", `{"max":"5h"}`, nil, true, "is 6h old", "update the vulnerability database", "now"},
		{"exactly as old as allowed", "database-age", `{"max":"6h"}`, nil, false, "6h old", "", ""},
		{"of no date", "database-age", `{"max":"5h"}`, func(f *pipeline.Facts) { f.Scan.DatabaseUpdatedAt = time.Time{} }, true, "not known when", "update", ""},
		{"from the future", "database-age", `{"max":"5h"}`, func(f *pipeline.Facts) { f.Scan.DatabaseUpdatedAt = noon.Add(time.Hour) }, true, "in the future", "set the clocks right", ""},
		{"", "scan-age", `{"max":"1h"}`, nil, false, "the scan is 1m old", "", "scan.at"},
		{"too old", "scan-age", `{"max":"30s"}`, nil, true, "at most 30s is allowed", "scan the image again", "scan.at"},
		{"a clock slightly ahead", "scan-age", `{"max":"30s"}`, func(f *pipeline.Facts) { f.Scan.At = noon.Add(time.Second) }, false, "0s old", "", ""},

		{"", "non-root", "", nil, false, "no platform starts as root", "", "hygiene.users"},
		{"not set", "non-root", "", func(f *pipeline.Facts) { f.Hygiene.Root, f.Hygiene.Users = true, []string{"linux/amd64: not set"} }, true, "starts as root: linux/amd64 (USER is not set)", "set a numeric USER other than 0", "hygiene.root"},
		{"by number", "non-root", "", func(f *pipeline.Facts) {
			f.Hygiene.Root, f.Hygiene.Users = true, []string{"linux/amd64: 0:0", "linux/arm64: 65532"}
		}, true, "starts as root: linux/amd64 (USER is 0:0)", "numeric USER", ""},
		{"by an odd number", "non-root", "", func(f *pipeline.Facts) { f.Hygiene.Users = []string{"linux/amd64: 00"} }, true, "USER is 00", "numeric USER", ""},
		{"of nothing", "non-root", "", func(f *pipeline.Facts) { f.Hygiene.Users = nil }, true, "not known", "run the scan again", ""},

		{"", "no-shell", "", nil, false, "there is no shell in the image", "", "hygiene.shells"},
		{"shell", "no-shell", "", func(f *pipeline.Facts) { f.Hygiene.Shells = []string{"/bin/bash", "/bin/sh"} }, true, "there is a shell in the image: /bin/bash, /bin/sh", "without a shell", ""},
		{"not looked at", "no-shell", "", func(f *pipeline.Facts) { f.Hygiene.Known = false }, true, "did not look into the image", "run the scan again", "hygiene.known"},
		{"", "no-package-manager", "", nil, false, "no package manager", "", "hygiene.packageManagers"},
		{"apt", "no-package-manager", "", func(f *pipeline.Facts) { f.Hygiene.PackageManagers = []string{"/usr/bin/apt"} }, true, "/usr/bin/apt", "last stage", ""},
		{"", "no-setuid", "", nil, false, "no setuid or setgid file", "", "hygiene.setuid"},
		{"su", "no-setuid", "", func(f *pipeline.Facts) { f.Hygiene.Setuid = []string{"/bin/su", "/bin/mount"} }, true, "2 file(s) run with another's rights (setuid or setgid): /bin/su, /bin/mount", "chmod a-s", ""},
		{"allowed", "no-setuid", `{"allow":["/bin/su","/bin/ping"]}`, func(f *pipeline.Facts) { f.Hygiene.Setuid = []string{"bin/su"} }, false, "but 1 that are allowed", "", ""},
		{"one too many", "no-setuid", `{"allow":["/bin/su"]}`, func(f *pipeline.Facts) { f.Hygiene.Setuid = []string{"/bin/su", "/bin/mount"} }, true, ": /bin/mount", "chmod a-s", ""},
		{"", "no-config-secrets", "", nil, false, "nothing in the configuration", "", "hygiene.secrets"},
		{"secret", "no-config-secrets", "", func(f *pipeline.Facts) {
			f.Hygiene.Secrets = []pipeline.ConfigSecret{{Where: "env", Name: "TOKEN", Rule: "name"}}
		}, true, "1 secret(s): env TOKEN (name)", "--mount=type=secret", ""},
		{"", "healthcheck", "", nil, false, "has a health check", "", "hygiene.healthcheck"},
		{"none", "healthcheck", "", func(f *pipeline.Facts) { f.Hygiene.Healthcheck = false }, true, "no health check", "HEALTHCHECK", ""},
		{"not looked at", "healthcheck", "", func(f *pipeline.Facts) { f.Hygiene.Known = false }, true, "did not look", "scan again", ""},
		{"", "pinned-bases", "", nil, false, "every base is named by digest (1)", "", "hygiene.bases"},
		{"no base", "pinned-bases", "", func(f *pipeline.Facts) { f.Hygiene.Bases = nil }, false, "no base", "", ""},
		{"loose", "pinned-bases", "", func(f *pipeline.Facts) {
			f.Hygiene.Bases, f.Hygiene.BasesPinned = []pipeline.Material{{URI: "debian:13"}}, false
		}, true, "1 base(s) are not named by digest: debian:13", "@sha256:", ""},

		{"", "max-size", `{"bytes":"50MiB"}`, nil, false, "40 MiB unpacked, at most 50 MiB is allowed", "", "hygiene.size"},
		{"a number", "max-size", `{"bytes":41943039}`, nil, true, "40 MiB unpacked; at most 40 MiB is allowed", "smaller base", ""},
		{"compressed", "max-size", `{"bytes":"10MB","compressed":true}`, nil, true, "15 MiB compressed; at most 9.5 MiB", "smaller base", "hygiene.compressed"},
		{"", "max-wasted", `{"percent":5}`, nil, false, "1 MiB, 2.5 % of the image", "", "hygiene.wasted"},
		{"percent", "max-wasted", `{"percent":2}`, nil, true, "1 MiB, 2.5 % of the image; at most 2 % is allowed", "join the RUN", ""},
		{"bytes", "max-wasted", `{"bytes":"512KiB","percent":50}`, nil, true, "1 MiB; at most 512 KiB is allowed", "join the RUN", ""},
		{"an empty image", "max-wasted", `{"percent":0}`, func(f *pipeline.Facts) { f.Hygiene.Size, f.Hygiene.Wasted = 0, 0 }, false, "0 bytes", "", ""},

		{"", "no-lint", "", nil, false, "object to nothing", "", "hygiene.lint"},
		{"lint", "no-lint", "", lint, true, "2 time(s): SecretsUsedInArgOrEnv in line 4: do not use ENV for TOKEN, StageNameCasing: stage Build", "use a secret mount", ""},
		{"only some rules", "no-lint", `{"rules":["JSONArgsRecommended"]}`, lint, false, "(2 ignored)", "", ""},
		{"all but some", "no-lint", `{"except":["SecretsUsedInArgOrEnv"]}`, lint, true, "1 time(s): StageNameCasing", "mend the Dockerfile", ""},

		{"", "licenses", `{"deny":["AGPL-*"]}`, nil, false, "1 licence(s), none that is not allowed", "", "licenses"},
		{"denied", "licenses", `{"deny":["AGPL-*"]}`, license("AGPL-3.0-only", "other"), true, "1 licence(s) are not allowed: AGPL-3.0-only (lib, other)", "remove or replace lib, other", ""},
		{"a choice", "licenses", `{"deny":["GPL-*"]}`, license("MIT OR GPL-2.0-only"), false, "", "", ""},
		{"no choice", "licenses", `{"deny":["GPL-*"]}`, license("MIT AND GPL-2.0-only"), true, "MIT AND GPL-2.0-only", "lib", ""},
		{"not allowed", "licenses", `{"allow":["MIT","Apache-2.0"]}`, license("ISC"), true, "ISC", "lib", ""},
		{"allowed", "licenses", `{"allow":["mit","apache-2.0"]}`, license("(MIT AND Apache-2.0)"), false, "", "", ""},
		{"packages that do not count", "licenses", `{"deny":["GPL-*"],"ignorePackages":["lib*"]}`, license("GPL-2.0-only", "libc6"), false, "(2 package(s) ignored)", "", ""},
		{"others count", "licenses", `{"deny":["GPL-*"],"ignorePackages":["libc6"]}`, license("GPL-2.0-only", "libc6"), true, "GPL-2.0-only (lib) ", "lib", ""},

		{"", "signed-by", `{"keys":["` + one + `"]}`, nil, false, "signed by 111111111111", "", "signatures"},
		{"all of them", "signed-by", `{"keys":["` + one + `","` + hex64("3") + `"]}`, nil, true, "signed by 1 of the 2 key(s) that are asked for; 2 are needed; no signature by 333333333333", "signed by 333333333333", ""},
		{"some of them", "signed-by", `{"keys":["` + one + `","` + hex64("3") + `","sha256:` + two + `"],"count":2}`, nil, false, "111111111111, 222222222222", "", ""},
		{"one key twice is one key", "signed-by", `{"keys":["` + hex64("3") + `","` + hex64("3") + `"]}`, nil, true, "0 of the 1", "333333333333", ""},
		{"nobody", "signed-by", `{"keys":["` + one + `"]}`, func(f *pipeline.Facts) { f.Signatures = nil }, true, "0 of the 1", "111111111111", ""},

		{"", "provenance", `{"builder":"https://dray.example/builder","source":"https://git.example/shop","branches":["main","release/*"]}`, nil, false, "built by https://dray.example/builder from git+https://git.example/shop.git, refs/heads/main", "", "provenance.ref"},
		{"not verified", "provenance", "", func(f *pipeline.Facts) { f.Provenance = pipeline.ProvenanceFact{} }, true, "no provenance", "signed provenance", "provenance.verified"},
		{"another builder", "provenance", `{"builder":"https://dray.example/other"}`, nil, true, "not by https://dray.example/other", "build it with", "provenance.builder"},
		{"another source", "provenance", `{"source":"https://git.example/other"}`, nil, true, "not from https://git.example/other", "build it from", "provenance.source"},
		{"another branch", "provenance", `{"branches":["release/*"]}`, nil, true, "built from refs/heads/main, not from a branch release/*", "build it from a branch release/*", ""},
		{"a branch is not below its directory", "provenance", `{"branches":["*"]}`, func(f *pipeline.Facts) { f.Provenance.Branch = "feature/x" }, true, "not from a branch *", "branch *", ""},
		{"all below a directory", "provenance", `{"branches":["feature/**"]}`, func(f *pipeline.Facts) { f.Provenance.Branch = "feature/x/y" }, false, "", "", ""},
		{"a tag", "provenance", `{"branches":["main"],"tags":["v*"]}`, func(f *pipeline.Facts) {
			f.Provenance.Ref, f.Provenance.Branch, f.Provenance.Tag = "refs/tags/v1", "", "v1"
		}, false, "refs/tags/v1", "", ""},
		{"a tag where a branch is wanted", "provenance", `{"branches":["**"]}`, func(f *pipeline.Facts) {
			f.Provenance.Ref, f.Provenance.Branch, f.Provenance.Tag = "refs/tags/v1", "", "v1"
		}, true, "refs/tags/v1", "branch **", ""},
		{"", "not-fork", "", nil, false, "project's own repository", "", "provenance.fork"},
		{"a fork", "not-fork", "", func(f *pipeline.Facts) { f.Provenance.Fork = true }, true, "somebody else's repository", "merge", ""},
		{"not known", "not-fork", "", func(f *pipeline.Facts) { f.Provenance = pipeline.ProvenanceFact{} }, true, "not known", "signed provenance", ""},
	} {
		t.Run(tt.use+" "+tt.name, func(t *testing.T) {
			p := newPolicy(t)
			g := pipeline.Gate{Rules: []pipeline.Rule{{Use: tt.use, With: json.RawMessage(tt.args)}}}
			if tt.args == "" {
				g.Rules[0].With = nil
			}
			if err := p.Check(g); err != nil {
				t.Fatal(err)
			}
			f := good()
			if tt.change != nil {
				tt.change(&f)
			}
			d := p.Judge(g, f)
			res := find(d, tt.use)
			if res.Passed == tt.refuse || d.Passed == tt.refuse || res.Pending {
				t.Errorf("passed is %t: %s", res.Passed, res.Reason)
			}
			if !strings.Contains(res.Reason, tt.says) || res.Reason == "" {
				t.Errorf("reason %q does not say %q", res.Reason, tt.says)
			}
			if !strings.Contains(res.Remedy, tt.remedy) || (res.Remedy == "") != res.Passed {
				t.Errorf("remedy %q does not say %q", res.Remedy, tt.remedy)
			}
			if _, ok := res.Facts[tt.looks]; tt.looks != "" && !ok {
				t.Errorf("facts %v do not have %s", res.Facts, tt.looks)
			}
			if len(res.Facts) == 0 {
				t.Error("the facts that were looked at are not shown")
			}
			for name := range res.Facts {
				if !isFact(t, name) {
					t.Errorf("%s is no name of a fact", name)
				}
			}
		})
	}
}

func lint(f *pipeline.Facts) {
	f.Hygiene.Lint = []pipeline.LintFinding{
		{Rule: "SecretsUsedInArgOrEnv", Line: 4, Detail: "do not use ENV for TOKEN", Remedy: "use a secret mount"},
		{Rule: "StageNameCasing", Detail: "stage Build"},
	}
}

// isFact reports whether a rule in CEL could refer to that name.
func isFact(t *testing.T, name string) bool {
	t.Helper()
	l, err := newLanguage()
	if err != nil {
		t.Fatal(err)
	}
	_, issues := l.env.Compile(name)
	return issues.Err() == nil
}

func TestArgumentsAreStrict(t *testing.T) {
	p := newPolicy(t)
	for _, tt := range []struct{ use, args, says string }{
		{"severity", `{"failon2":"high"}`, `unknown field "failon2"`},
		{"severity", "", "with.failOn is required"},
		{"severity", `{"failOn":"severe"}`, `severity "severe"`},
		{"severity", `{"failOn":"high"} {}`, "more after the object"},
		{"severity", `{"failOn":"high","ignoreUnfixed":"yes"}`, "ignoreUnfixed"},
		{"severity", `["high"]`, "with"},
		{"severity", `{`, "with"},
		{"scanned", `{"x":1}`, `unknown field "x"`},
		{"non-root", `{"allow":true}`, `unknown field "allow"`},
		{"no-shell", `{"x":1}`, "unknown field"},
		{"no-package-manager", `{"x":1}`, "unknown field"},
		{"no-setuid", `{"allow":["su"]}`, "not an absolute path"},
		{"no-config-secrets", `{"x":1}`, "unknown field"},
		{"healthcheck", `{"x":1}`, "unknown field"},
		{"pinned-bases", `{"x":1}`, "unknown field"},
		{"max-size", "", "with.bytes is required"},
		{"max-size", `{"bytes":"big"}`, `size "big"`},
		{"max-size", `{"bytes":"-5MiB"}`, "size"},
		{"max-size", `{"bytes":"0x10"}`, "size"},
		{"max-size", `{"bytes":"5 parsecs"}`, "size"},
		{"max-size", `{"bytes":0}`, "with.bytes is required"},
		{"max-wasted", "", "with.bytes or with.percent"},
		{"max-wasted", `{"percent":101}`, "0 to 100"},
		{"no-lint", `{"rules":[""]}`, "want names"},
		{"licenses", "", "with.deny or with.allow"},
		{"licenses", `{"deny":["[a"]}`, "no pattern"},
		{"database-age", "", "with.max is required"},
		{"database-age", `{"max":"2 days"}`, `duration "2 days"`},
		{"scan-age", `{"max":"0s"}`, "with.max is required"},
		{"signed-by", "", "with.keys is required"},
		{"signed-by", `{"keys":["me"]}`, "64 lower-case hexadecimal digits"},
		{"signed-by", `{"keys":["` + hex64("1") + `"],"count":2}`, "with.count is 2"},
		{"signed-by", `{"keys":["` + hex64("1") + `"],"count":-1}`, "with.count is -1"},
		{"provenance", `{"branches":["[x"]}`, "with.branches"},
		{"provenance", `{"tags":[""]}`, "with.tags"},
		{"no-exception", `{"severity":"x"}`, "severity"},
		{"not-fork", `{"x":1}`, "unknown field"},
		{"no-such", "", "there is no ready-made rule"},
	} {
		g := pipeline.Gate{Rules: []pipeline.Rule{{Use: "scanned"}, {Use: tt.use, With: json.RawMessage(tt.args)}}}
		if tt.args == "" {
			g.Rules[1].With = nil
		}
		err := p.Check(g)
		if !errors.Is(err, pipeline.ErrInvalid) || !strings.Contains(err.Error(), tt.says) || !strings.HasPrefix(err.Error(), "rules[1]: ") {
			t.Errorf("%s %s: %v, want it to say %q", tt.use, tt.args, err, tt.says)
		}
		if d := p.Judge(g, good()); d.Passed || d.Waiting || !strings.Contains(d.Reason(), tt.says) || len(d.Rules) != 2 {
			t.Errorf("%s %s judged: %s", tt.use, tt.args, d.Reason())
		}
	}
}

func TestLicenseExpressions(t *testing.T) {
	for _, tt := range []struct {
		deny, allow, expr string
		permit            bool
	}{
		{"GPL-2.0", "", "GPL-2.0", false},
		{"GPL-2.0", "", "GPL-2.0-only", false},
		{"GPL-2.0", "", "GPL-2.0-or-later", false},
		{"GPL-2.0", "", "GPL-2.0+", false},
		{"GPL-2.0-only", "", "GPL-2.0-or-later", true},
		{"GPL-2.0-only", "", "GPL-2.0", false},
		{"GPL-2.0-or-later", "", "GPL-2.0+", false},
		{"GPL-2.0", "", "LGPL-2.0", true},
		{"GPL-2.0", "", "GPL-3.0", true},
		{"GPL-*", "", "lgpl-3.0-only", true},
		{"GPL-*", "", "gpl-3.0-only", false},
		{"*GPL-*", "", "LGPL-3.0-only", false},
		{"GPL-*", "", "GPL-2.0-only WITH Classpath-exception-2.0", false},
		{"* WITH Classpath-exception-2.0", "", "GPL-2.0-only WITH Classpath-exception-2.0", false},
		{"", "GPL-2.0-only WITH Classpath-exception-2.0", "GPL-2.0 WITH Classpath-exception-2.0", true},
		{"", "GPL-2.0-only WITH Classpath-exception-2.0", "GPL-2.0-only", false},
		{"", "GPL-2.0-only", "GPL-2.0-only WITH Classpath-exception-2.0", true},
		{"", "MIT,Apache-2.0", "MIT OR GPL-2.0-only", true},
		{"", "MIT,Apache-2.0", "MIT AND GPL-2.0-only", false},
		{"", "MIT,Apache-2.0", "(MIT OR GPL-2.0-only) AND Apache-2.0", true},
		{"", "MIT,Apache-2.0", "MIT OR GPL-2.0-only AND ISC", true},
		{"", "ISC", "MIT OR GPL-2.0-only AND ISC", false},
		{"", "MIT", "mit or isc", true},
		{"", "MIT", "custom license text: see COPYING", false},
		{"GPL-2.0", "", "GPL-2.0, Artistic", false},
		{"GPL-2.0", "", "Artistic/GPL-2.0", false},
		{"GPL-2.0", "", "public domain", true},
		{"", "public-domain", "public-domain", true},
		{"AGPL-3.0", "", strings.Repeat("(", 40) + "AGPL-3.0-only" + strings.Repeat(")", 40), false},
		{"", "MIT", "MIT AND", false},
		{"", "MIT", "", false},
		{"", "LicenseRef-ours", "LicenseRef-ours", true},
	} {
		split := func(s string) []string {
			if s == "" {
				return nil
			}
			return strings.Split(s, ",")
		}
		terms := licenseTerms{deny: denied(split(tt.deny)), allow: canonicalAll(split(tt.allow))}
		if got := terms.permit(tt.expr); got != tt.permit {
			t.Errorf("deny %q allow %q: %.60s is permitted %t, want %t", tt.deny, tt.allow, tt.expr, got, tt.permit)
		}
	}
}

func FuzzLicense(f *testing.F) {
	f.Add("MIT OR (GPL-2.0-only WITH Classpath-exception-2.0 AND ISC)")
	f.Add("((((")
	f.Fuzz(func(t *testing.T, s string) {
		// Whatever is written around it, what is denied cannot come to be allowed
		// by adding to it with AND.
		terms := licenseTerms{deny: []string{"agpl-3.0-only"}}
		if terms.permit("AGPL-3.0-only AND " + s) {
			if _, ok := parseLicense("AGPL-3.0-only AND " + s); !ok || !strings.Contains(strings.ToUpper(s), "OR") {
				t.Errorf("%q is permitted", s)
			}
		}
	})
}

func TestSizes(t *testing.T) {
	for in, want := range map[string]byteSize{"0": 0, "17": 17, "1KB": 1000, "1KiB": 1024, "1.5 MiB": 1572864, "2GB": 2e9, "3 TiB": 3 << 40, "12B": 12} {
		if got, err := parseSize(in); err != nil || got != want {
			t.Errorf("%s is %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "x", "MiB", "1QiB", "1e400", "NaN", "-1", "9999999TiB", "1 2", "Inf"} {
		if got, err := parseSize(in); !errors.Is(err, pipeline.ErrInvalid) {
			t.Errorf("%q is %d, %v", in, got, err)
		}
	}
}
