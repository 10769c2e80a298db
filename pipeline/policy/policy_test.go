package policy

import (
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/dray-project/dray/pipeline"
)

func newPolicy(t testing.TB) *Policy {
	t.Helper()
	p, err := New(t.Context(), Config{Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

var noon = time.Date(2026, 8, 3, 12, 0, 0, 0, time.UTC)

// good are facts that every ready-made rule is content with.
func good() pipeline.Facts {
	const amd, arm = pipeline.Platform("linux/amd64"), pipeline.Platform("linux/arm64")
	return pipeline.Facts{
		Now: noon, Action: pipeline.ActionPromote, Project: "shop", Version: 3, Environment: "prod",
		Image: pipeline.ImageFacts{Repository: "registry.example/shop", Digest: "sha256:" + pipeline.Digest(hex64("a")), Commit: "c0ffee",
			Platforms: []pipeline.Platform{amd, arm}, Versions: []string{"1.4.2"}, BuiltAt: noon.Add(-72 * time.Hour)},
		Findings: []pipeline.FindingFact{},
		Hygiene: pipeline.HygieneFacts{Known: true, Users: []string{"linux/amd64: 65532", "linux/arm64: 65532"}, Healthcheck: true,
			Size: 40 << 20, Compressed: 15 << 20, Wasted: 1 << 20, BasesPinned: true,
			Bases: []pipeline.Material{{URI: "registry.example/base:1", Digest: "sha256:" + pipeline.Digest(hex64("b")), Pinned: true}}},
		Licenses: []pipeline.LicenseFact{{License: "MIT", Packages: []string{"left-pad"}}},
		Scan: pipeline.ScanFacts{Scanner: "trivy v0.74.0", At: noon.Add(-time.Minute), Database: "sha256:" + pipeline.Digest(hex64("d")),
			DatabaseUpdatedAt: noon.Add(-6 * time.Hour), Platforms: []pipeline.Platform{amd, arm}},
		Signatures: []pipeline.SignerFact{{KeyID: hex64("1")}, {KeyID: hex64("2")}},
		Provenance: pipeline.ProvenanceFact{Verified: true, Builder: "https://dray.example/builder", Source: "git+https://git.example/shop.git",
			Ref: "refs/heads/main", Branch: "main"},
		Reached:   []pipeline.ReachedFact{{Environment: "dev", Since: noon.Add(-48 * time.Hour)}, {Environment: "staging", Since: noon.Add(-24 * time.Hour), Current: true}},
		Approvals: []pipeline.Approval{},
		Request:   pipeline.RequestFacts{By: "rita", Roles: []string{"developer"}, Plan: "sha256:" + pipeline.Digest(hex64("e"))},
		Ignored:   []string{},
	}
}

func hex64(c string) string {
	s := ""
	for range 64 {
		s += c
	}
	return s
}

func find(d pipeline.Decision, name string) pipeline.RuleResult {
	for _, r := range d.Rules {
		if r.Rule == name {
			return r
		}
	}
	return pipeline.RuleResult{}
}

func TestSmoke(t *testing.T) {
	p := newPolicy(t)
	for _, e := range []string{
		`findings.all(f, f.severity < HIGH || f.suppressed || f.package == "x" && f.id.startsWith("CVE"))`,
		`now - scan.at < duration("48h") && now - scan.databaseUpdatedAt < days(2)`,
		`provenance.branch.glob("release/*") || provenance.branch == "main"`,
		`hygiene.size < 100 * 1024 * 1024 && size(hygiene.shells) == 0`,
		`approvals.exists(a, "security" in a.roles) || size(approvals) == 0`,
		`image.versions.exists(v, compareVersions(v, "1.4.0") >= 0)`,
		`findings.all(f, has(f.suppression) ? f.suppression.expiresAt > now + days(7) : true)`,
	} {
		d := p.Judge(pipeline.Gate{Rules: []pipeline.Rule{{Name: "x", Expr: e}}}, good())
		t.Log(d.Passed, d.Rules[0].Reason, d.Rules[0].Facts)
		if !d.Passed {
			t.Error(e)
		}
	}
}
