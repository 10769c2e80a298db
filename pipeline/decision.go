package pipeline

import (
	"strings"
	"time"
)

// Decision is what a gate said of an image at a moment.
type Decision struct {
	// Passed: every rule passed, or was overridden in an emergency.
	Passed bool `json:"passed"`
	// Waiting: nothing refuses, but something has to happen first. Such a
	// decision is not the last.
	Waiting bool `json:"waiting,omitempty"`
	// Until is when asking again is worthwhile without anybody doing anything;
	// nil: only people can change the answer, or nothing can.
	Until *time.Time `json:"until,omitempty"`
	// Rules holds every rule that was looked at, passed or not.
	Rules []RuleResult `json:"rules"`
	// Policy says which rules these were.
	Policy PolicyVersion `json:"policy"`
	// Suppressed are the findings that would have counted.
	Suppressed []FindingFact `json:"suppressed,omitempty"`
	// Ignored is evidence that was offered and did not count, in words.
	Ignored  []string              `json:"ignored,omitempty"`
	Database VulnerabilityDatabase `json:"database"`
	// BreakGlass is set when an emergency overrode a rule.
	BreakGlass *BreakGlass `json:"breakGlass,omitempty"`
	// Plan is the digest of the difference that was judged; empty for builds.
	Plan        Digest    `json:"plan,omitempty"`
	EvaluatedAt time.Time `json:"evaluatedAt"`
}

// PolicyVersion names the rules of a decision.
type PolicyVersion struct {
	Project     string `json:"project"`
	Environment string `json:"environment,omitempty"`
	// Version of the project's settings.
	Version int `json:"version"`
	// Digest of the Gate.
	Digest Digest `json:"digest"`
	// Gate itself, so that the decision can be read by itself.
	Gate Gate `json:"gate"`
}

// BreakGlass is a use of the emergency override.
type BreakGlass struct {
	By     string   `json:"by"`
	Reason string   `json:"reason"`
	Rules  []string `json:"rules"` // that were overridden
}

// RuleResult is one rule's answer.
type RuleResult struct {
	Rule   string `json:"rule"` // "severity", "soak"
	Passed bool   `json:"passed"`
	// Pending: it does not pass yet, and time or people can change that.
	Pending bool `json:"pending,omitempty"`
	// Until is when a pending rule passes by itself.
	Until *time.Time `json:"until,omitempty"`
	// Overridden: it did not pass and was overridden in an emergency; Passed is true.
	Overridden bool `json:"overridden,omitempty"`
	// Reason says in words why it passed or refused.
	Reason string `json:"reason"`
	// Remedy says what would change the answer; empty when it passed.
	Remedy string `json:"remedy,omitempty"`
	// Facts that the rule looked at, by their names.
	Facts map[string]any `json:"facts,omitempty"`
	// Findings that the rule objects to, most severe first.
	Findings []Finding `json:"findings,omitempty"`
}

// Reason puts what does not pass into one line; empty when the decision passed.
func (d Decision) Reason() string {
	var parts []string
	for _, r := range d.Rules {
		if !r.Passed && (d.Waiting || !r.Pending) {
			parts = append(parts, r.Rule+": "+r.Reason)
		}
	}
	return strings.Join(parts, "; ")
}

// Conclude sets Passed, Waiting and Until from the rules. No rules at all do
// not pass: nothing was looked at.
func (d *Decision) Conclude() {
	d.Passed, d.Waiting, d.Until = len(d.Rules) > 0, false, nil
	refused, timed := len(d.Rules) == 0, true
	for _, r := range d.Rules {
		if r.Passed {
			continue
		}
		d.Passed = false
		if !r.Pending {
			refused = true
			continue
		}
		// All that is pending must come true, so the latest moment counts; but
		// what has no moment may come true at any time and wakes us by itself.
		if r.Until == nil {
			timed = false
		} else if d.Until == nil || r.Until.After(*d.Until) {
			d.Until = r.Until
		}
	}
	d.Waiting = !d.Passed && !refused
	if !d.Waiting || !timed {
		d.Until = nil
	}
}

// Suppressions that a gate's findings carry, by id.
func (f Facts) Suppressed() []FindingFact {
	var out []FindingFact
	for _, x := range f.Findings {
		if x.Suppressed {
			out = append(out, x)
		}
	}
	return out
}
