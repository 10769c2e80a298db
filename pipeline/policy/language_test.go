package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/dray-project/dray/pipeline"
)

func celGate(expr string) pipeline.Gate {
	return pipeline.Gate{Rules: []pipeline.Rule{{Name: "mine", Expr: expr, Reason: "no", Remedy: "do it"}}}
}

func TestExpressions(t *testing.T) {
	p := newPolicy(t)
	f := good()
	f.Findings = []pipeline.FindingFact{finding("CVE-1", pipeline.SeverityCritical, "2"), suppressed(finding("CVE-2", pipeline.SeverityHigh, ""), "vex"), finding("CVE-3", pipeline.SeverityLow, "")}
	expires := noon.Add(100 * time.Hour)
	f.Findings[1].Suppression.ExpiresAt = &expires
	f.Approvals = []pipeline.Approval{approval("paul", current, "security")}
	for expr, want := range map[string]bool{
		`true`:  true,
		`false`: false,
		`findings.filter(f, f.severity >= HIGH && !f.suppressed).size() == 1`:          true,
		`findings.exists(f, f.severity == CRITICAL && f.fixable)`:                      true,
		`findings.all(f, f.severity < severity("critical"))`:                           false,
		`severity("High") == HIGH && UNKNOWN < LOW && LOW < MEDIUM`:                    true,
		`findings.map(f, f.id) == ["CVE-1", "CVE-2", "CVE-3"]`:                         true,
		`findings.exists(f, f.package == "lib" && f.fixedIn == "2")`:                   true,
		`findings.exists_one(f, has(f.suppression))`:                                   true,
		`findings.filter(f, has(f.suppression)).all(f, f.suppression.by == "vex")`:     true,
		`findings.exists(f, has(f.suppression.expiresAt))`:                             true,
		`findings.exists(f, f.suppression.expiresAt > now + days(4))`:                  true,
		`findings.exists(f, f.suppression.expiresAt > now + days(5))`:                  false,
		`findings[0].severity == CRITICAL && findings[0].platforms[0].glob("*/amd64")`: true,
		`findings == findings`:           true,
		`now - scan.at < duration("2m")`: true,
		`now > timestamp("2026-01-01T00:00:00Z") && now.getFullYear() == 2026`:                 true,
		`now.getHours("Europe/Zurich") == 14`:                                                  true,
		`provenance.branch.glob("main") && provenance.source.endsWith("shop.git")`:             true,
		`"release/1.2".glob("release/*") && !"release/1/2".glob("release/*")`:                  true,
		`compareVersions("1.10.0", "1.9.9") > 0 && compareVersions("1.0.0-rc.1", "1.0.0") < 0`: true,
		`image.versions.exists(v, v.matches("^[0-9]+[.][0-9]+[.][0-9]+$"))`:                    true,
		`image.digest.startsWith("sha256:") && image.repository.contains("shop")`:              true,
		`approvals.exists(a, "security" in a.roles && a.plan == request.plan)`:                 true,
		`reached.exists(r, r.environment == "staging" && now - r.since >= days(1))`:            true,
		`hygiene.bases.all(b, b.pinned) && hygiene.users.size() == 2`:                          true,
		`hygiene.size < 50 * 1024 * 1024`:                                                      true,
		`hygiene.size / 2.0 < 1e9`:                                                             false, // see below: it does not compile
		`action == "promote" && project == "shop" && version == 3`:                             true,
		`signatures.exists(s, s.keyID.startsWith("111"))`:                                      true,
		`licenses.exists(l, l.license == "MIT" && "left-pad" in l.packages)`:                   true,
		`ignored.size() == 0 && environment in ["prod", "staging"]`:                            true,
		`{"prod": 10, "staging": 100}[environment] > size(findings)`:                           true,
	} {
		g := celGate(expr)
		if err := p.Check(g); (err != nil) != strings.Contains(expr, "/ 2.0") {
			t.Errorf("%s: %v", expr, err)
		}
		if res := find(p.Judge(g, f), "mine"); res.Passed != want || res.Pending {
			t.Errorf("%s: %+v", expr, res)
		} else if !want && err(res) == "" && (res.Reason != "no" || res.Remedy != "do it") {
			t.Errorf("%s: it does not say what the rule says: %+v", expr, res)
		}
	}
}

func err(r pipeline.RuleResult) string {
	_, text, _ := strings.Cut(r.Reason, "cannot be evaluated, and so refuses: ")
	return text
}

// What cannot be meant does not compile, and the message says where.
func TestExpressionsThatDoNotCompile(t *testing.T) {
	p := newPolicy(t)
	for _, tt := range []struct{ expr, says string }{
		{`finding.size() == 0`, "undeclared reference to 'finding'"},
		{`findings.all(f, f.sevrity < HIGH)`, "undefined field 'sevrity'"},
		{`hygiene.rot`, "undefined field 'rot'"},
		{`findings.all(f, f.severity < "high")`, "no matching overload"},
		{`findings.size()`, "expr is of type int: want bool"},
		{`"yes"`, "want bool"},
		{`findings.map(f, f.fixable)`, "list(bool): want bool"},
		{`true &&`, "Syntax error"},
		{``, "Syntax error"},
		{`now > timestamp("yesterday")`, "invalid timestamp"},
		{`duration("2 days") > duration("1h")`, "invalid duration"},
		{`project.matches("(")`, "matches"},
		{`dyn(1) == "x"`, "undeclared reference to 'dyn'"},
		{`[1, "a"] == [2]`, "expected type"},
		{`FindingFact{id: "x"}.id == "x"`, "cannot be made"},
		{`google.protobuf.Any{}.type_url == ""`, "undeclared reference"},
		{`[[[[1]]]] == [[[[1]]]]`, "nested too deeply"},
		{`findings.all(a, findings.all(b, findings.all(c, findings.all(d, findings.all(e, true)))))`, "nesting"},
		{strings.Repeat("(", 100) + "true" + strings.Repeat(")", 100), "recursion"},
		{`project == "` + strings.Repeat("x", maxExpression) + `"`, "size"},
		{`project.replace("a", "b") == ""`, "undeclared reference to 'replace'"},
	} {
		began := time.Now()
		err := p.Check(celGate(tt.expr))
		if !errors.Is(err, pipeline.ErrInvalid) || !strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%.80s: %v, want it to say %q", tt.expr, err, tt.says)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("%.80s took %s", tt.expr, took)
		}
		if d := p.Judge(celGate(tt.expr), good()); d.Passed || d.Waiting {
			t.Errorf("%.80s lets images pass", tt.expr)
		}
	}
}

// What fails while it is evaluated refuses and says how.
func TestExpressionsThatFail(t *testing.T) {
	p := newPolicy(t)
	for _, tt := range []struct{ expr, says string }{
		{`findings[7].severity == LOW`, "index out of bounds"},
		{`1 / (version - 3) == 0`, "division by zero"},
		{`severity(project) > LOW`, `severity "shop"`},
		{`compareVersions(project, "1.0.0") > 0`, `"shop" is no semantic version`},
		{`project.glob("[" + project)`, "pattern"},
		{`days(version - 4) < duration("1h")`, "days: want 0 to"},
		{`{"dev": 1}[environment] == 1`, "no such key"},
		{`timestamp(project) < now`, "shop"},
		{`9223372036854775807 + version > 0`, "overflow"},
	} {
		if err := p.Check(celGate(tt.expr)); err != nil {
			t.Errorf("%s: %v", tt.expr, err)
			continue
		}
		f := good()
		f.Findings = f.Findings[:0]
		res := find(p.Judge(celGate(tt.expr), f), "mine")
		if res.Passed || res.Pending || !strings.Contains(err(res), tt.says) || res.Remedy == "" || len(res.Facts) == 0 {
			t.Errorf("%s: %+v, want it to say %q", tt.expr, res, tt.says)
		}
	}
}

// No expression burns time or memory without bound.
func TestHostileExpressions(t *testing.T) {
	p := newPolicy(t)
	f := good()
	for i := range 3000 {
		f.Findings = append(f.Findings, finding(fmt.Sprintf("CVE-%d", i), pipeline.SeverityHigh, "2"))
	}
	double := strings.Repeat(`.map(s, s + s)`, 40)
	for name, expr := range map[string]string{
		"loops within loops":    `findings.all(a, findings.all(b, findings.all(c, a.id + b.id + c.id != "")))`,
		"a string that doubles": `["xxxxxxxxxxxxxxxx"]` + double + `[0].size() > 0`,
		"a list that doubles":   `[[1]].map(l, l + l)` + strings.Repeat(`.map(l, l + l)`, 60) + `.size() == 0`,
		"lists that are equal":  `[findings].map(l, l + l)` + strings.Repeat(`.map(l, l + l)`, 20) + ` == [findings].map(l, l + l)` + strings.Repeat(`.map(l, l + l)`, 20),
		"a list of all pairs":   `findings.map(a, findings.map(b, [a.id, b.id])).size() == 0`,
		"patterns":              `findings.all(f, findings.all(g, (f.id + g.id).matches("(C*)*(V*)*(E*)*-[0-9]+" + g.id)))`,
		"a long name":           `["x"]` + strings.Repeat(`.map(s, s + s)`, 15) + `[0].glob("**")`,
	} {
		t.Run(name, func(t *testing.T) {
			g := celGate(expr)
			if err := p.Check(g); err != nil {
				t.Logf("refused at once: %v", err)
				return
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			began := time.Now()
			res := find(p.Judge(g, f), "mine")
			took := time.Since(began)
			runtime.ReadMemStats(&after)
			mib := (after.TotalAlloc - before.TotalAlloc) >> 20
			t.Logf("%s, %d MiB allocated in all: %s", took.Round(time.Millisecond), mib, res.Reason)
			if took > 2*maxTime {
				t.Errorf("it took %s", took)
			}
			if err(res) == "" && !strings.Contains(name, "list") {
				t.Errorf("it was evaluated: %+v", res)
			}
		})
	}
}

// The facts of a rule are those that its expression refers to, and not too many.
func TestFactsOfAnExpression(t *testing.T) {
	p := newPolicy(t)
	f := good()
	for _, tt := range []struct{ expr, want string }{
		{`hygiene.size < 5 && hygiene.root`, "hygiene.root hygiene.size"},
		{`hygiene.bases.all(hygiene, hygiene.pinned) && project != ""`, "hygiene.bases project"},
		{`findings.all(f, f.severity < HIGH && now > scan.at)`, "findings now scan.at"},
		{`true`, ""},
		{`has(provenance.tag) || provenance.branch.glob(environment)`, "environment provenance.branch provenance.tag"},
		{`reached[0].environment == "dev"`, "reached"},
		{`[image.digest, image.commit].size() == {"a": version}["a"]`, "image.commit image.digest version"},
	} {
		res := find(p.Judge(celGate(tt.expr), f), "mine")
		if got := strings.Join(sortedKeys(res.Facts), " "); got != tt.want {
			t.Errorf("%s looks at %q, want %q", tt.expr, got, tt.want)
		}
	}
	for i := range 5000 {
		f.Findings = append(f.Findings, finding(fmt.Sprintf("CVE-%d", i), pipeline.SeverityHigh, "2"))
	}
	res := find(p.Judge(celGate(`findings.size() == 0 && project == "" && licenses.size() == 0`), f), "mine")
	b, err := json.Marshal(res)
	if err != nil || len(b) > 2*mostShown {
		t.Errorf("a result of %d bytes, %v", len(b), err)
	}
	for _, want := range []string{`"CVE-0"`, `more"`, `"project":"shop"`} {
		if !strings.Contains(string(b), want) {
			t.Errorf("the facts do not say %s", want)
		}
	}
}

func FuzzExpression(f *testing.F) {
	for _, seed := range []string{
		`findings.all(f, f.severity < HIGH || f.suppressed)`, `has(findings[0].suppression.by)`, `image.versions.exists(v, compareVersions(v, "1.0.0") > 0)`,
		`now - scan.at < days(2) && provenance.branch.glob("release/*")`, `{"a": [1]}["a"][0] == 1 ? true : !false`, `b"\xff" == b'''x'''`, `type(1) == int`,
		`[1].map(x, x > 0, [x])[0] == [1]`, `string(now) + string(1u) != ""`, `timestamp(0) < now`,
	} {
		f.Add(seed)
	}
	p := newPolicy(f)
	facts := compositeFacts()
	f.Fuzz(func(t *testing.T, expr string) {
		g := celGate(expr)
		err := p.Check(g)
		d := p.Judge(g, facts)
		if err != nil && d.Passed {
			t.Errorf("%q does not compile (%v) and lets images pass", expr, err)
		}
		if err != nil && !errors.Is(err, pipeline.ErrInvalid) {
			t.Errorf("%q: %v", expr, err)
		}
		if strings.Contains(d.Reason(), "broke down") {
			t.Errorf("%q: %s", expr, d.Reason())
		}
		if _, err := json.Marshal(d); err != nil {
			t.Errorf("%q: %v", expr, err)
		}
	})
}

func BenchmarkJudge(b *testing.B) {
	p := newPolicy(b)
	f := compositeFacts()
	for i := range 1000 {
		f.Findings = append(f.Findings, finding(fmt.Sprintf("CVE-2020-%d", i), pipeline.SeverityLow, "2"))
	}
	g := composite()
	g.Rules = append(g.Rules, pipeline.Rule{Name: "fixable", Expr: `findings.filter(f, f.fixable && f.severity >= HIGH).size() < 10`})
	b.Run("cached", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			p.Judge(g, f)
		}
	})
	b.Run("compile", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := p.compileAll(g).err; err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("new", func(b *testing.B) {
		for b.Loop() {
			newPolicy(b)
		}
	})
}
