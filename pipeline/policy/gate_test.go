package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dray-project/dray/pipeline"
)

var update = flag.Bool("update", false, "write the golden files")

func approval(by, plan string, roles ...string) pipeline.Approval {
	return pipeline.Approval{By: by, Roles: roles, Plan: "sha256:" + pipeline.Digest(hex64(plan)), At: noon.Add(-time.Hour)}
}

func rejection(by, plan string, roles ...string) pipeline.Approval {
	a := approval(by, plan, roles...)
	a.Rejected, a.Comment = true, "not before the audit"
	return a
}

const current, other = "e", "f" // the plan of good() and another

func TestStructuralRules(t *testing.T) {
	day := pipeline.Duration(24 * time.Hour)
	rm := pipeline.ApprovalRule{Role: "release-manager"}
	for _, tt := range []struct {
		name   string
		gate   pipeline.Gate
		change func(*pipeline.Facts)
		rule   string
		state  string // "passed", "pending", "refused" or "silent"
		says   string
		remedy string
		until  time.Time
	}{
		{name: "been there", gate: pipeline.Gate{After: []string{"dev", "staging"}}, rule: "reached", state: "passed", says: "it has been in dev, staging"},
		{name: "nowhere to have been", rule: "reached", state: "silent"},
		{name: "not been there", gate: pipeline.Gate{After: []string{"dev", "qa", "perf"}}, rule: "reached", state: "refused",
			says: "it has not been in qa; it has not been in perf", remedy: "promote it to qa first; promote it to perf first"},
		{name: "rolled back from there", gate: pipeline.Gate{After: []string{"staging"}}, rule: "reached", state: "refused",
			change: func(f *pipeline.Facts) { f.Reached[1].Withdrawn = true }, says: "staging was rolled back from this image", remedy: "promote it to staging again first"},
		{name: "newer ones have passed through since", gate: pipeline.Gate{After: []string{"staging"}, Soak: day}, rule: "soak", state: "passed",
			change: func(f *pipeline.Facts) { f.Reached[1].Current = false }, says: "it has been in staging for 1d or more"},
		{name: "no soak", gate: pipeline.Gate{After: []string{"staging"}}, rule: "soak", state: "silent"},
		{name: "a second too early", gate: pipeline.Gate{After: []string{"dev", "staging"}, Soak: day}, rule: "soak", state: "pending",
			change: func(f *pipeline.Facts) { f.Now = noon.Add(-time.Second) }, says: "in staging for 1d, which is at 2026-08-03 12:00:00 UTC; 1s are left", remedy: "by itself at 2026-08-03 12:00:00 UTC", until: noon},
		{name: "the latest counts", gate: pipeline.Gate{After: []string{"staging", "dev"}, Soak: 3 * day}, rule: "soak", state: "pending",
			says: "in staging for 3d", remedy: "nothing", until: noon.Add(48 * time.Hour)},
		{name: "soak where it never was", gate: pipeline.Gate{After: []string{"qa"}, Soak: day}, rule: "soak", state: "refused", says: "its 1d in qa have not begun", remedy: "promote it to qa first"},

		{name: "nobody yet", gate: pipeline.Gate{Approvals: []pipeline.ApprovalRule{rm}}, rule: "approvals", state: "pending",
			says: "approved 0 of 1 by release-manager", remedy: "1 more with the role release-manager"},
		{name: "none asked for", rule: "approvals", state: "silent"},
		{name: "enough", gate: pipeline.Gate{Approvals: []pipeline.ApprovalRule{rm}}, rule: "approvals", state: "passed",
			change: said(approval("paul", current, "release-manager")), says: "approved 1 of 1 by release-manager (paul)"},
		{name: "the wrong role", gate: pipeline.Gate{Approvals: []pipeline.ApprovalRule{rm}}, rule: "approvals", state: "pending",
			change: said(approval("paul", current, "developer", "admin")), says: "0 of 1 by release-manager", remedy: "1 more"},
		{name: "one person twice", gate: pipeline.Gate{Approvals: []pipeline.ApprovalRule{{Role: "release-manager", Count: 2}}}, rule: "approvals", state: "pending",
			change: said(approval("paul", current, "release-manager"), approval("paul", current, "release-manager")), says: "1 of 2 by release-manager (paul)", remedy: "1 more"},
		{name: "two people", gate: pipeline.Gate{Approvals: []pipeline.ApprovalRule{{Role: "release-manager", Count: 2}}}, rule: "approvals", state: "passed",
			change: said(approval("paul", current, "release-manager"), approval("mary", current, "release-manager")), says: "2 of 2 by release-manager (paul, mary)"},
		{name: "a stale approval", gate: pipeline.Gate{Approvals: []pipeline.ApprovalRule{rm}}, rule: "approvals", state: "pending",
			change: said(approval("paul", other, "release-manager")), says: "0 of 1 by release-manager; what paul said was of another change and does not count", remedy: "1 more"},
		{name: "an approval that was renewed", gate: pipeline.Gate{Approvals: []pipeline.ApprovalRule{rm}}, rule: "approvals", state: "passed",
			change: said(approval("paul", other, "release-manager"), approval("paul", current, "release-manager")), says: "(paul)"},
		{name: "no plan, no approval", gate: pipeline.Gate{Approvals: []pipeline.ApprovalRule{rm}}, rule: "approvals", state: "pending",
			change: func(f *pipeline.Facts) {
				f.Request.Plan = ""
				f.Approvals = []pipeline.Approval{{By: "paul", Roles: []string{"release-manager"}}}
			}, says: "0 of 1", remedy: "1 more"},
		{name: "the requester may", gate: pipeline.Gate{Approvals: []pipeline.ApprovalRule{rm}}, rule: "approvals", state: "passed",
			change: said(approval("rita", current, "release-manager")), says: "(rita)"},
		{name: "the requester may not", gate: pipeline.Gate{Approvals: []pipeline.ApprovalRule{{Role: "release-manager", NotRequester: true}}}, rule: "approvals", state: "pending",
			change: said(approval("rita", current, "release-manager")), says: "and rita, who asked for it, does not count", remedy: "1 more with the role release-manager other than rita"},
		{name: "two roles, two people", gate: pipeline.Gate{Approvals: []pipeline.ApprovalRule{rm, {Role: "security"}}}, rule: "approvals", state: "passed",
			change: said(approval("paul", current, "release-manager"), approval("sam", current, "security")), says: "1 of 1 by release-manager (paul); 1 of 1 by security (sam)"},
		{name: "two roles, one of them missing", gate: pipeline.Gate{Approvals: []pipeline.ApprovalRule{rm, {Role: "security"}}}, rule: "approvals", state: "pending",
			change: said(approval("paul", current, "release-manager")), says: "0 of 1 by security; 1 of 1 by release-manager (paul)", remedy: "1 more with the role security"},
		{name: "one person with both roles", gate: pipeline.Gate{Approvals: []pipeline.ApprovalRule{rm, {Role: "security"}}}, rule: "approvals", state: "passed",
			change: said(approval("paul", current, "release-manager", "security")), says: "by security (paul)"},
		{name: "rejected", gate: pipeline.Gate{Approvals: []pipeline.ApprovalRule{rm}}, rule: "approvals", state: "refused",
			change: said(approval("paul", current, "release-manager"), rejection("sam", current, "viewer")), says: `rejected by sam: "not before the audit"`, remedy: "settle it"},
		{name: "rejected where nobody was asked", rule: "approvals", state: "refused", change: said(rejection("sam", current)), says: "rejected by sam", remedy: "settle it"},
		{name: "another change was rejected", gate: pipeline.Gate{Approvals: []pipeline.ApprovalRule{rm}}, rule: "approvals", state: "pending",
			change: said(rejection("sam", other)), says: "what sam said was of another change", remedy: "1 more"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPolicy(t)
			tt.gate.Rules = []pipeline.Rule{{Use: "scanned"}}
			if err := p.Check(tt.gate); err != nil {
				t.Fatal(err)
			}
			f := good()
			if tt.change != nil {
				tt.change(&f)
			}
			res := find(p.Judge(tt.gate, f), tt.rule)
			state := map[bool]string{true: "passed", false: "refused"}[res.Passed]
			switch {
			case res.Rule == "":
				state = "silent"
			case res.Pending:
				state = "pending"
			}
			if state != tt.state {
				t.Fatalf("%s, want %s: %+v", state, tt.state, res)
			}
			if !strings.Contains(res.Reason, tt.says) || !strings.Contains(res.Remedy, tt.remedy) || (res.Remedy == "") != (state == "passed" || state == "silent") {
				t.Errorf("it says %q and %q, want %q and %q", res.Reason, res.Remedy, tt.says, tt.remedy)
			}
			if (res.Until != nil) != !tt.until.IsZero() || res.Until != nil && !res.Until.Equal(tt.until) {
				t.Errorf("until %v, want %v", res.Until, tt.until)
			}
			for name := range res.Facts {
				if !isFact(t, name) {
					t.Errorf("%s is no name of a fact", name)
				}
			}
		})
	}
}

func said(list ...pipeline.Approval) func(*pipeline.Facts) {
	return func(f *pipeline.Facts) { f.Approvals = list }
}

func TestBreakGlass(t *testing.T) {
	always := []pipeline.Freeze{{Name: "audit", Start: "2026-08-01T00:00", For: pipeline.Duration(14 * 24 * time.Hour)}}
	gate := func(b *pipeline.BreakGlassRule) pipeline.Gate {
		return pipeline.Gate{Rules: []pipeline.Rule{{Use: "scanned"}, {Use: "no-shell"}}, After: []string{"staging"}, Soak: pipeline.Duration(48 * time.Hour),
			Approvals: []pipeline.ApprovalRule{{Role: "release-manager"}}, Freezes: always, BreakGlass: b}
	}
	all := &pipeline.BreakGlassRule{Roles: []string{"release-manager", "admin"}, Overrides: []string{"freeze", "soak", "approvals", "no-shell"}}
	for _, tt := range []struct {
		name      string
		rule      *pipeline.BreakGlassRule
		roles     []string
		reason    string
		change    func(*pipeline.Facts)
		passed    bool
		waiting   bool
		overrides []string
		says      string // of the break-glass rule, which refuses
	}{
		{name: "no emergency", rule: all, roles: []string{"admin"}, waiting: true},
		{name: "only blanks", rule: all, roles: []string{"admin"}, reason: "  ", waiting: true},
		{name: "all of it", rule: all, roles: []string{"viewer", "admin"}, reason: "the shop is down", passed: true, overrides: []string{"soak", "approvals", "freeze"}},
		{name: "a ready-made rule, too", rule: all, roles: []string{"admin"}, reason: "the shop is down", passed: true, overrides: []string{"no-shell", "soak", "approvals", "freeze"},
			change: func(f *pipeline.Facts) { f.Hygiene.Shells = []string{"/bin/sh"} }},
		{name: "by default the freeze only", roles: []string{"admin"}, reason: "the shop is down", waiting: true, overrides: []string{"freeze"}},
		{name: "by default admins only", roles: []string{"release-manager"}, reason: "the shop is down", says: "rita may not break the glass here: it takes the role admin"},
		{name: "without the role", rule: all, roles: []string{"developer"}, reason: "the shop is down", says: "it takes the role release-manager or admin"},
		{name: "where nobody may", rule: &pipeline.BreakGlassRule{}, roles: []string{"admin"}, reason: "the shop is down", says: "nobody may break the glass here"},
		{name: "what is refused and not listed stays refused", rule: &pipeline.BreakGlassRule{Roles: []string{"admin"}, Overrides: []string{"freeze", "soak"}}, roles: []string{"admin"}, reason: "x",
			change: said(rejection("sam", current)), overrides: []string{"soak", "freeze"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPolicy(t)
			g := gate(tt.rule)
			if err := p.Check(g); err != nil {
				t.Fatal(err)
			}
			f := good()
			f.Request.Roles, f.Request.BreakGlass = tt.roles, tt.reason
			if tt.change != nil {
				tt.change(&f)
			}
			d := p.Judge(g, f)
			if d.Passed != tt.passed || d.Waiting != tt.waiting {
				t.Errorf("passed %t, waiting %t: %s", d.Passed, d.Waiting, d.Reason())
			}
			if (d.BreakGlass != nil) != (tt.overrides != nil) || d.BreakGlass != nil && !slices.Equal(d.BreakGlass.Rules, tt.overrides) {
				t.Errorf("break-glass is %+v, want %v", d.BreakGlass, tt.overrides)
			}
			for _, r := range d.Rules {
				switch over := slices.Contains(tt.overrides, r.Rule); {
				case over != r.Overridden:
					t.Errorf("%s overridden is %t", r.Rule, r.Overridden)
				case over && (!r.Passed || r.Pending || r.Until != nil || r.Remedy != "" || !strings.HasPrefix(r.Reason, "BREAK GLASS by rita: "+tt.reason+"; overridden: ")):
					t.Errorf("it does not shout: %+v", r)
				}
			}
			if b := d.BreakGlass; b != nil && (b.By != "rita" || b.Reason != tt.reason) {
				t.Errorf("%+v", b)
			}
			if res := find(d, "break-glass"); (res.Rule != "") != (tt.says != "") || res.Passed || res.Pending || !strings.Contains(res.Reason, tt.says) {
				t.Errorf("break-glass says %+v", res)
			}
		})
	}
	t.Run("without need", func(t *testing.T) {
		f := good()
		f.Request.Roles, f.Request.BreakGlass = []string{"admin"}, "just to be sure"
		d := newPolicy(t).Judge(pipeline.Gate{Rules: []pipeline.Rule{{Use: "scanned"}}}, f)
		if !d.Passed || d.BreakGlass != nil || len(d.Rules) != 1 || d.Rules[0].Overridden {
			t.Errorf("%+v", d)
		}
	})
}

func TestGatesThatCannotBe(t *testing.T) {
	p := newPolicy(t)
	cel := func(name, expr string) pipeline.Rule { return pipeline.Rule{Name: name, Expr: expr} }
	scanned := pipeline.Rule{Use: "scanned"}
	for _, tt := range []struct {
		gate pipeline.Gate
		says string
	}{
		{pipeline.Gate{}, "rules"},
		{pipeline.Gate{Rules: []pipeline.Rule{{}}}, "rules[0]: want use"},
		{pipeline.Gate{Rules: []pipeline.Rule{cel("", "true")}}, "name: a rule in CEL needs one"},
		{pipeline.Gate{Rules: []pipeline.Rule{cel("Big", "true")}}, "lower-case"},
		{pipeline.Gate{Rules: []pipeline.Rule{cel("severity", "true")}}, "severity is the name of a rule of Dray's own"},
		{pipeline.Gate{Rules: []pipeline.Rule{cel("freeze", "true")}}, "freeze is the name"},
		{pipeline.Gate{Rules: []pipeline.Rule{cel("built", "true")}}, "built is the name"},
		{pipeline.Gate{Rules: []pipeline.Rule{cel("a", "true"), cel("b", "true"), cel("a", "false")}}, "rules[2]: name: there are two rules a"},
		{pipeline.Gate{Rules: []pipeline.Rule{{Use: "scanned", Name: "x"}}}, "are for rules in CEL"},
		{pipeline.Gate{Rules: []pipeline.Rule{{Name: "a", Expr: "true", With: json.RawMessage(`{}`)}}}, "with is for ready-made rules"},
		{pipeline.Gate{Rules: slices.Repeat([]pipeline.Rule{scanned}, maxRules+1)}, "rules: there are 201; at most 200"},
		{pipeline.Gate{Rules: []pipeline.Rule{scanned}, Soak: 5}, "soak is time in another environment"},
		{pipeline.Gate{Rules: []pipeline.Rule{scanned}, After: []string{"a b"}}, "after"},
		{pipeline.Gate{Rules: []pipeline.Rule{scanned}, Approvals: []pipeline.ApprovalRule{{}}}, "approvals[0].role"},
		{pipeline.Gate{Rules: []pipeline.Rule{scanned}, Approvals: []pipeline.ApprovalRule{{Role: "x", Count: -1}}}, "approvals[0].count"},
		{pipeline.Gate{Rules: []pipeline.Rule{scanned}, BreakGlass: &pipeline.BreakGlassRule{Roles: []string{"admin"}}}, "breakGlass: want both"},
		{pipeline.Gate{Rules: []pipeline.Rule{scanned}, BreakGlass: &pipeline.BreakGlassRule{Roles: []string{"admin"}, Overrides: []string{"freezes"}}}, `no rule "freezes"`},
		{pipeline.Gate{Rules: []pipeline.Rule{scanned}, BreakGlass: &pipeline.BreakGlassRule{Roles: []string{"admin"}, Overrides: []string{"break-glass"}}}, "break-glass"},
		{pipeline.Gate{Rules: []pipeline.Rule{scanned}, BreakGlass: &pipeline.BreakGlassRule{Roles: []string{""}, Overrides: []string{"freeze"}}}, "breakGlass.roles"},
	} {
		err := p.Check(tt.gate)
		if !errors.Is(err, pipeline.ErrInvalid) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%v, want it to say %q", err, tt.says)
		}
		if d := p.Judge(tt.gate, good()); d.Passed || d.Waiting {
			t.Errorf("a gate that cannot be used (%s) lets images pass", tt.says)
		}
	}
}

// composite is a gate of every kind of rule.
func composite() pipeline.Gate {
	return pipeline.Gate{
		Rules: append(pipeline.GateRules{FailOn: pipeline.SeverityHigh, IgnoreUnfixed: true}.Rules(),
			pipeline.Rule{Use: "no-shell"},
			pipeline.Rule{Use: "licenses", With: json.RawMessage(`{"deny":["AGPL-*"]}`)},
			pipeline.Rule{Use: "provenance", With: json.RawMessage(`{"branches":["release/*"]}`)},
			pipeline.Rule{Name: "released", Expr: `image.versions.exists(v, compareVersions(v, "2.0.0") >= 0)`, Reason: "prod takes 2.x only", Remedy: "release 2.0.0"},
			pipeline.Rule{Name: "weekdays", Expr: `!(now.getDayOfWeek("Europe/Zurich") in [0, 6])`}),
		After: []string{"dev", "staging"}, Soak: pipeline.Duration(72 * time.Hour),
		Approvals: []pipeline.ApprovalRule{{Role: "release-manager", Count: 2, NotRequester: true}},
		Freezes:   []pipeline.Freeze{{Name: "audit", TimeZone: "Europe/Zurich", Start: "2026-08-01T00:00", For: pipeline.Duration(14 * 24 * time.Hour)}},
	}
}

func compositeFacts() pipeline.Facts {
	f := good()
	f.Findings = []pipeline.FindingFact{finding("CVE-2026-1", pipeline.SeverityCritical, "2"), finding("CVE-2026-2", pipeline.SeverityHigh, ""),
		suppressed(finding("CVE-2026-3", pipeline.SeverityHigh, "3"), "exception"), finding("CVE-2026-4", pipeline.SeverityLow, "")}
	f.Hygiene.Root, f.Hygiene.Users = true, []string{"linux/amd64: 0", "linux/arm64: 65532"}
	f.Hygiene.Shells = []string{"/bin/sh"}
	f.Approvals = []pipeline.Approval{approval("paul", current, "release-manager"), approval("rita", current, "release-manager"), approval("mary", other, "release-manager")}
	f.Request.BreakGlass = "the shop is down"
	f.Ignored = []string{"exception exc_2 for CVE-2026-4 expired at 2026-08-01T00:00:00Z"}
	return f
}

// TestGolden keeps what people read of a decision, in its order.
func TestGolden(t *testing.T) {
	p := newPolicy(t)
	if err := p.Check(composite()); err != nil {
		t.Fatal(err)
	}
	for name, roles := range map[string][]string{"refused": {"developer"}, "emergency": {"admin"}} {
		f := compositeFacts()
		f.Request.Roles = roles
		d := p.Judge(composite(), f)
		var b strings.Builder
		fmt.Fprintf(&b, "passed %t, waiting %t, break-glass %+v\n", d.Passed, d.Waiting, d.BreakGlass)
		for _, r := range d.Rules {
			looked, err := json.Marshal(r.Facts)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&b, "\n%s: passed %t, pending %t\n  %s\n", r.Rule, r.Passed, r.Pending, r.Reason)
			if r.Remedy != "" {
				fmt.Fprintf(&b, "  remedy: %s\n", r.Remedy)
			}
			fmt.Fprintf(&b, "  looked at %s\n", looked)
		}
		golden := filepath.Join("testdata", name+".golden")
		if *update {
			if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if b.String() != string(want) {
			t.Errorf("%s is not what it was; if that is meant, run the test with -update\n%s", golden, b.String())
		}
	}
}

// The same gate and facts give the same bytes, also from many at once and from
// another process's Policy.
func TestSameDecision(t *testing.T) {
	first, err := json.Marshal(newPolicy(t).Judge(composite(), compositeFacts()))
	if err != nil {
		t.Fatal(err)
	}
	p := newPolicy(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				again, err := json.Marshal(p.Judge(composite(), compositeFacts()))
				if err != nil || !bytes.Equal(first, again) {
					t.Errorf("another decision, %v:\n%s\n%s", err, first, again)
					return
				}
			}
		})
	}
	wg.Wait()
	var back pipeline.Decision
	if err := json.Unmarshal(first, &back); err != nil {
		t.Fatal(err)
	}
	if again, err := json.Marshal(back); err != nil || !bytes.Equal(first, again) {
		t.Errorf("it does not survive being stored, %v:\n%s\n%s", err, first, again)
	}
}

func TestCompiledGatesAreBounded(t *testing.T) {
	p := newPolicy(t)
	for i := range cachedGates + 50 {
		g := pipeline.Gate{Rules: []pipeline.Rule{{Name: "x", Expr: fmt.Sprintf("image.versions.size() < %d", i)}}}
		want := i > 1
		for range 2 {
			if d := p.Judge(g, good()); d.Passed != want {
				t.Fatalf("%d: %s", i, d.Reason())
			}
		}
	}
	if n := len(p.gates.by); n != cachedGates || p.gates.order.Len() != n {
		t.Errorf("%d gates are kept, at most %d should be", n, cachedGates)
	}
}

// A rule that breaks down refuses, and the others are still asked.
func TestRuleThatBreaksDown(t *testing.T) {
	p := newPolicy(t)
	p.ready["broken"] = func(arguments) (func(facts) result, error) {
		return func(facts) result { panic("oh") }, nil
	}
	p.ready["silent"] = func(arguments) (func(facts) result, error) {
		return func(facts) result { return result{Passed: true} }, nil
	}
	d := p.Judge(pipeline.Gate{Rules: []pipeline.Rule{{Use: "broken"}, {Use: "silent"}, {Use: "scanned"}}}, good())
	if d.Passed || len(d.Rules) != 3 || d.Rules[0].Passed || d.Rules[1].Passed || !d.Rules[2].Passed || !strings.Contains(d.Rules[0].Reason, "broke down: oh") {
		t.Errorf("%+v", d.Rules)
	}
}

func TestNewNeedsALog(t *testing.T) {
	if _, err := New(t.Context(), Config{}); !errors.Is(err, pipeline.ErrInvalid) || !strings.Contains(err.Error(), "Log") {
		t.Error(err)
	}
}
