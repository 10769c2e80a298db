package pipeline

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// vexByDocument reads documents whose statements a test made.
type vexByDocument map[string][]VEXStatement

func (v vexByDocument) Read(doc VEXDocument, _ []string) ([]VEXStatement, error) {
	out := v[doc.ID]
	for i := range out {
		out[i].Document, out[i].Vulnerability = doc.ID, []string{"CVE-1"}
	}
	return out, nil
}

// Matches: a statement of this test is about the platforms that it lists, or
// about all when it lists none.
func (vexByDocument) Matches(s VEXStatement, f Finding, _ Image, platforms []PlatformImage) bool {
	return f.ID == "CVE-1" && (len(s.Products) == 0 || slices.ContainsFunc(s.Products, func(p VEXProduct) bool {
		return slices.ContainsFunc(platforms, func(i PlatformImage) bool { return string(i.Platform) == p.ID })
	}))
}

// The last word counts, on every platform that has the finding.
func TestVEXOverrides(t *testing.T) {
	day := func(n int) time.Time { return time.Date(2026, 1, n, 0, 0, 0, 0, time.UTC) }
	not := func(at int) VEXStatement {
		return VEXStatement{Status: VEXNotAffected, Justification: "vulnerable_code_not_present", At: day(at), DocumentAt: day(at)}
	}
	is := func(status string, at int) VEXStatement {
		return VEXStatement{Status: status, At: day(at), DocumentAt: day(at)}
	}
	on := func(s VEXStatement, platform string) VEXStatement {
		s.Products = []VEXProduct{{ID: platform}}
		return s
	}
	reissued := func(s VEXStatement, at int) VEXStatement { s.DocumentAt = day(at); return s }
	for name, tt := range map[string]struct {
		a, b []VEXStatement
		by   string // the document that suppresses
		says string // among what was ignored
	}{
		"nothing":                        {nil, nil, "", ""},
		"not affected":                   {[]VEXStatement{not(1)}, nil, "a", ""},
		"fixed":                          {[]VEXStatement{is(VEXFixed, 1)}, nil, "a", ""},
		"affected":                       {[]VEXStatement{is(VEXAffected, 1)}, nil, "", ""},
		"under investigation":            {[]VEXStatement{is(VEXUnderInvestigation, 1)}, nil, "", ""},
		"no justification":               {[]VEXStatement{is(VEXNotAffected, 1)}, nil, "", "not_affected of CVE-1 has no justification"},
		"affected later":                 {[]VEXStatement{not(1), is(VEXAffected, 2)}, nil, "", ""},
		"affected earlier":               {[]VEXStatement{is(VEXAffected, 1), not(2)}, nil, "a", ""},
		"at once, the last in the list":  {[]VEXStatement{is(VEXAffected, 1), not(1)}, nil, "a", ""},
		"at once, the last is affected":  {[]VEXStatement{not(1), is(VEXAffected, 1)}, nil, "", ""},
		"no word against it":             {[]VEXStatement{not(1), is(VEXNotAffected, 2)}, nil, "a", "no justification"},
		"another says affected later":    {[]VEXStatement{not(1)}, []VEXStatement{is(VEXAffected, 2)}, "", ""},
		"another said affected before":   {[]VEXStatement{not(2)}, []VEXStatement{is(VEXAffected, 1)}, "a", ""},
		"another looks into it later":    {[]VEXStatement{not(1)}, []VEXStatement{is(VEXUnderInvestigation, 2)}, "", ""},
		"another clears it later":        {[]VEXStatement{is(VEXAffected, 1)}, []VEXStatement{not(2)}, "b", ""},
		"they differ at one time":        {[]VEXStatement{not(1)}, []VEXStatement{is(VEXAffected, 1)}, "", ""},
		"they differ, the other way":     {[]VEXStatement{is(VEXAffected, 1)}, []VEXStatement{not(1)}, "", ""},
		"issued again, now clear":        {[]VEXStatement{is(VEXAffected, 1)}, []VEXStatement{reissued(not(1), 2)}, "b", ""},
		"issued again, now affected":     {[]VEXStatement{reissued(is(VEXAffected, 1), 2)}, []VEXStatement{not(1)}, "", ""},
		"on one platform only":           {[]VEXStatement{on(not(1), "linux/amd64")}, nil, "", ""},
		"on each platform":               {[]VEXStatement{on(not(1), "linux/amd64")}, []VEXStatement{on(not(1), "linux/arm64")}, "b", ""},
		"affected on one platform":       {[]VEXStatement{not(1), on(is(VEXAffected, 2), "linux/arm64")}, nil, "", ""},
		"affected where it is not found": {[]VEXStatement{not(1), on(is(VEXAffected, 2), "linux/s390x")}, nil, "a", ""},
	} {
		t.Run(name, func(t *testing.T) {
			p := &Pipeline{Config{VEX: vexByDocument{"a": tt.a, "b": tt.b}}}
			f := Facts{Findings: []FindingFact{
				{Finding: Finding{ID: "CVE-1"}, Platforms: []Platform{"linux/amd64", "linux/arm64"}},
				{Finding: Finding{ID: "CVE-2"}, Platforms: []Platform{"linux/amd64"}},
			}}
			built := Built{Platforms: []PlatformImage{{Platform: "linux/amd64"}, {Platform: "linux/arm64"}, {Platform: "linux/s390x"}}}
			p.suppress(&f, Project{}, built, Standing{VEX: []VEXDocument{{ID: "a"}, {ID: "b"}}})
			by := ""
			if s := f.Findings[0].Suppression; s != nil {
				by = s.ID
			}
			if by != tt.by || f.Findings[0].Suppressed != (tt.by != "") {
				t.Errorf("suppressed by %q, want %q", by, tt.by)
			}
			if f.Findings[1].Suppressed {
				t.Error("another finding was suppressed as well")
			}
			if ignored := strings.Join(f.Ignored, "; "); !strings.Contains(ignored, tt.says) || tt.says == "" && ignored != "" {
				t.Errorf("ignored %q, want %q", ignored, tt.says)
			}
		})
	}
}

// A push of which commits were left out does not tell all that is between.
func TestCommitsBetweenOmitted(t *testing.T) {
	push := Event{Ref: "refs/heads/main", Before: "a", After: "d", Commits: []Commit{{SHA: "c"}, {SHA: "d"}}, CommitsOmitted: true}
	if commits, known := commitsBetween([]Event{push}, "a", "d"); known || len(commits) != 2 {
		t.Errorf("%+v, known %t; want what is known and that it is not all", commits, known)
	}
	if commits, known := commitsBetween([]Event{push}, "c", "d"); !known || len(commits) != 1 {
		t.Errorf("%+v, known %t; want the one after c", commits, known)
	}
}
