package pipeline

import (
	"fmt"
	"sort"
	"strings"
	"time"
)

// GateRules are what an image must satisfy.
type GateRules struct {
	// FailOn is the least severity that refuses an image. Empty (unknown)
	// would refuse everything, so the settings default it to critical.
	FailOn Severity `json:"failOn"`
	// IgnoreUnfixed lets findings pass that have no fixed version yet.
	IgnoreUnfixed bool `json:"ignoreUnfixed"`
	// AllowRoot lets an image pass whose process starts as root.
	AllowRoot bool `json:"allowRoot"`
}

// Decision is what the rules said of an image at a moment.
type Decision struct {
	Passed bool `json:"passed"`
	// Rules holds every rule that was looked at, passed or not.
	Rules       []RuleResult          `json:"rules"`
	GateRules   GateRules             `json:"policy"`
	Database    VulnerabilityDatabase `json:"database"`
	EvaluatedAt time.Time             `json:"evaluatedAt"`
}

// RuleResult is one rule's answer.
type RuleResult struct {
	Rule   string `json:"rule"` // "severity", "non-root"
	Passed bool   `json:"passed"`
	// Reason says in words why it passed or refused.
	Reason string `json:"reason"`
	// Remedy says what would change the answer; empty when it passed.
	Remedy string `json:"remedy,omitempty"`
	// Findings that the rule objects to, most severe first.
	Findings []Finding `json:"findings,omitempty"`
}

// Reason puts the refusals into one line; empty when the decision passed.
func (d Decision) Reason() string {
	var parts []string
	for _, r := range d.Rules {
		if !r.Passed {
			parts = append(parts, r.Rule+": "+r.Reason)
		}
	}
	return strings.Join(parts, "; ")
}

// Evaluate judges a report. It fails closed: a report without platforms or
// without a database is refused.
func (g GateRules) Evaluate(r Report, now time.Time) Decision {
	d := Decision{GateRules: g, Database: r.Database, EvaluatedAt: now.UTC()}
	d.Rules = append(d.Rules, g.scanned(r), g.severity(r), g.nonRoot(r))
	d.Passed = true
	for _, rule := range d.Rules {
		d.Passed = d.Passed && rule.Passed
	}
	return d
}

func (g GateRules) scanned(r Report) RuleResult {
	res := RuleResult{Rule: "scanned"}
	switch {
	case len(r.Platforms) == 0:
		res.Reason = "no platform of the image was scanned"
	case r.Database.Digest == "":
		res.Reason = "the scan does not say which vulnerability database it used"
	default:
		res.Passed = true
		res.Reason = fmt.Sprintf("%d platform(s) scanned with %s, database of %s",
			len(r.Platforms), r.Scanner, r.Database.UpdatedAt.UTC().Format("2006-01-02 15:04 MST"))
		return res
	}
	res.Remedy = "run the scan again"
	return res
}

func (g GateRules) severity(r Report) RuleResult {
	res := RuleResult{Rule: "severity"}
	seen := map[[3]string]bool{}
	unfixed := 0
	for _, p := range r.Platforms {
		for _, f := range p.Findings {
			k := [3]string{f.ID, f.Package, f.Version}
			if f.Severity < g.FailOn || seen[k] {
				continue
			}
			seen[k] = true
			if g.IgnoreUnfixed && f.FixedIn == "" {
				unfixed++
				continue
			}
			res.Findings = append(res.Findings, f)
		}
	}
	sort.SliceStable(res.Findings, func(i, j int) bool {
		a, b := res.Findings[i], res.Findings[j]
		if a.Severity != b.Severity {
			return a.Severity > b.Severity
		}
		return a.ID < b.ID
	})
	if len(res.Findings) == 0 {
		res.Passed = true
		res.Reason = fmt.Sprintf("no finding of severity %s or above", g.FailOn)
		if unfixed > 0 {
			res.Reason += fmt.Sprintf(" that has a fix (%d without one ignored)", unfixed)
		}
		return res
	}
	var names, fixes []string
	for i, f := range res.Findings {
		if i == 5 {
			names = append(names, fmt.Sprintf("and %d more", len(res.Findings)-i))
			break
		}
		names = append(names, fmt.Sprintf("%s (%s) in %s %s", f.ID, f.Severity, f.Package, f.Version))
		if f.FixedIn != "" {
			fixes = append(fixes, fmt.Sprintf("update %s to %s", f.Package, f.FixedIn))
		}
	}
	res.Reason = fmt.Sprintf("%d finding(s) of severity %s or above: %s", len(res.Findings), g.FailOn, strings.Join(names, ", "))
	if len(fixes) > 0 {
		res.Remedy = strings.Join(fixes, "; ")
	} else {
		res.Remedy = "remove the packages: no fixed version is known yet"
	}
	return res
}

func (g GateRules) nonRoot(r Report) RuleResult {
	res := RuleResult{Rule: "non-root"}
	var root []string
	for _, p := range r.Platforms {
		if p.Root() {
			user := p.User
			if user == "" {
				user = "not set"
			}
			root = append(root, fmt.Sprintf("%s (USER is %s)", p.Platform, user))
		}
	}
	switch {
	case len(root) == 0:
		res.Passed, res.Reason = true, "no platform starts as root"
	case g.AllowRoot:
		res.Passed, res.Reason = true, "starts as root, which the rules allow: "+strings.Join(root, ", ")
	default:
		res.Reason = "starts as root: " + strings.Join(root, ", ")
		res.Remedy = "set a numeric USER other than 0 in the last stage of the Dockerfile"
	}
	return res
}
