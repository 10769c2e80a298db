package pipeline

import (
	"strings"
	"testing"
	"time"
)

func TestGate(t *testing.T) {
	report := func(user string, findings ...Finding) Report {
		return Report{Database: VulnerabilityDatabase{Digest: "sha256:00"}, Platforms: []PlatformReport{
			{Platform: "linux/amd64", User: user, Findings: findings}, {Platform: "linux/arm64", User: user, Findings: findings}}}
	}
	critical := Finding{ID: "CVE-1", Severity: SeverityCritical, Package: "lib", Version: "1", FixedIn: "2"}
	unfixed := Finding{ID: "CVE-2", Severity: SeverityCritical, Package: "lib", Version: "1"}
	high := Finding{ID: "CVE-3", Severity: SeverityHigh, Package: "lib", Version: "1", FixedIn: "2"}
	for _, tt := range []struct {
		name   string
		rules  GateRules
		report Report
		refuse []string // what the reason must say; nil means passed
		remedy string
	}{
		{"clean", GateRules{FailOn: SeverityCritical}, report("65532", high), nil, ""},
		{"critical", GateRules{FailOn: SeverityCritical}, report("65532", critical, high), []string{"1 finding(s)", "CVE-1 (critical) in lib 1"}, "update lib to 2"},
		{"threshold", GateRules{FailOn: SeverityHigh}, report("65532", high, critical), []string{"2 finding(s)", "CVE-1", "CVE-3"}, "update lib to 2"},
		{"unfixed counts", GateRules{FailOn: SeverityCritical}, report("65532", unfixed), []string{"CVE-2"}, "no fixed version"},
		{"unfixed ignored", GateRules{FailOn: SeverityCritical, IgnoreUnfixed: true}, report("65532", unfixed), nil, ""},
		{"root by default", GateRules{FailOn: SeverityCritical}, report(""), []string{"non-root", "not set"}, "numeric USER"},
		{"root by number", GateRules{FailOn: SeverityCritical}, report("0:0"), []string{"USER is 0:0"}, "numeric USER"},
		{"root allowed", GateRules{FailOn: SeverityCritical, AllowRoot: true}, report("root"), nil, ""},
		{"nothing scanned", GateRules{FailOn: SeverityCritical}, Report{Database: VulnerabilityDatabase{Digest: "sha256:00"}}, []string{"no platform"}, "scan again"},
		{"no database", GateRules{FailOn: SeverityCritical}, Report{Platforms: []PlatformReport{{User: "1"}}}, []string{"vulnerability database"}, "scan again"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := tt.rules.Evaluate(tt.report, time.Now())
			if d.Passed != (tt.refuse == nil) {
				t.Fatalf("passed = %t: %s", d.Passed, d.Reason())
			}
			for _, want := range tt.refuse {
				if !strings.Contains(d.Reason(), want) {
					t.Errorf("reason %q does not say %q", d.Reason(), want)
				}
			}
			var remedies string
			for _, r := range d.Rules {
				remedies += r.Remedy
				if r.Reason == "" || (!r.Passed && r.Remedy == "") {
					t.Errorf("rule %s leaves the reader alone: %+v", r.Rule, r)
				}
			}
			if !strings.Contains(remedies, tt.remedy) {
				t.Errorf("remedy %q does not say %q", remedies, tt.remedy)
			}
		})
	}
}
