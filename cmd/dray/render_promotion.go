package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/dray-project/dray/api/client"
	"github.com/dray-project/dray/pipeline"
)

// until is when a rule passes by itself.
func (w *writer) until(t *time.Time) string {
	if t == nil {
		return ""
	}
	out := "until " + when(*t)
	if left := t.Sub(w.now); left > 0 {
		out += ", in " + duration(left)
	}
	return " (" + out + ")"
}

// rules writes those that are wanted, each with a mark, its reason and what
// would change it.
func (w *writer) rules(rules []pipeline.RuleResult, want func(pipeline.RuleResult) bool) {
	for _, r := range rules {
		if want != nil && !want(r) {
			continue
		}
		mark := cell{"ok", green}
		switch {
		case r.Overridden:
			mark = cell{"!!", red}
		case r.Pending && !r.Passed:
			mark = cell{"..", cyan}
		case !r.Passed:
			mark = cell{"NO", red}
		}
		w.printf("  %s  %s: %s%s\n", w.paint(mark), oneLine(r.Rule), oneLine(r.Reason), w.until(r.Until))
		if r.Overridden {
			w.printf("      overridden in an emergency\n")
		}
		if r.Remedy != "" && !r.Passed {
			w.printf("      to change that: %s\n", oneLine(r.Remedy))
		}
	}
}

func (w *writer) decision(d pipeline.Decision) {
	verdict := cell{"refused", yellow}
	switch {
	case d.Passed:
		verdict = cell{"passed", green}
	case d.Waiting:
		verdict = cell{"not yet", cyan}
	}
	w.printf("\n%s %s%s\n", w.paint(cell{"DECISION", bold}), w.paint(verdict), w.until(d.Until))
	w.rules(d.Rules, nil)
	if b := d.BreakGlass; b != nil {
		w.printf("  %s\n", w.paint(cell{oneLine(fmt.Sprintf("BREAK GLASS by %s, overriding %s: %s", b.By, strings.Join(b.Rules, ", "), b.Reason)), red}))
	}
	for _, f := range d.Suppressed {
		w.printf("  does not count: %s\n", oneLine(fmt.Sprintf("%s (%s) in %s %s, %s", f.ID, f.Severity, f.Package, f.Version, suppression(f.Suppression))))
	}
	for _, s := range d.Ignored {
		w.printf("  ignored: %s\n", oneLine(s))
	}
	if d.Policy.Version > 0 {
		w.printf("  by version %d of the settings of %s\n", d.Policy.Version, oneLine(d.Policy.Project))
	}
}

// maxDiff is how many lines of each part of a difference are shown in passing.
const maxDiff = 10

func (w *writer) diff(d *pipeline.Diff) {
	if d != nil {
		w.printf("\n%s\n%s", w.paint(cell{"CHANGES", bold}), clean(d.Text(maxDiff)))
	}
}

func (w *writer) eligibility(e pipeline.Eligibility) {
	w.facts("Project", e.Project, "Image", e.Image.String(), "Environment", e.Environment, "Plan", string(e.Plan))
	w.decision(e.Decision)
	w.diff(&e.Diff)
}

func (w *writer) approvals(list []client.Approval) {
	if len(list) == 0 {
		return
	}
	w.printf("\n")
	var rows [][]cell
	for _, a := range list {
		word := cell{"approved", green}
		switch {
		case a.Rejected:
			word = cell{"rejected", red}
		case a.OtherPlan:
			word = cell{"approved another plan", faint}
		}
		rows = append(rows, []cell{text(a.By), text(strings.Join(a.Roles, ", ")), word, text(w.age(a.At)), text(a.Comment)})
	}
	w.table([]string{"APPROVAL BY", "ROLES", "WORD", "WHEN", "COMMENT"}, rows)
}

func (w *writer) promotions(promotions []pipeline.Promotion) {
	if len(promotions) == 0 {
		w.printf("No promotions. 'dray promote IMAGE ENVIRONMENT' asks for one.\n")
		return
	}
	var rows [][]cell
	for _, p := range promotions {
		what := p.Environment
		if p.Action == pipeline.ActionRollback {
			what += " (rollback)"
		}
		rows = append(rows, []cell{text(string(p.ID)), text(p.Project), text(p.Image.Digest.Short()), text(what),
			stateCell(string(p.State)), text(p.RequestedBy), text(w.age(p.CreatedAt))})
	}
	w.table([]string{"PROMOTION", "PROJECT", "DIGEST", "ENVIRONMENT", "STATE", "BY", "CREATED"}, rows)
}

func (w *writer) promotion(p client.Promotion) {
	state := stateCell(string(p.State))
	if p.FinishedAt != nil {
		state.text += " in " + w.took(&p.CreatedAt, p.FinishedAt)
	}
	destination, action := "", ""
	if p.Destination != nil {
		destination = p.Destination.String()
	}
	if p.Action == pipeline.ActionRollback {
		action = p.Action
	}
	w.facts("Promotion", string(p.ID), "Action", action, "State", state, "Project", p.Project, "Environment", p.Environment, "From", p.Image.String(),
		"To", destination, "By", p.RequestedBy, "Created", when(p.CreatedAt), "Note", p.Note, "Break glass", cell{oneLine(p.BreakGlass), red}, "Plan", string(p.Plan))
	if p.Reason != "" && (p.Decision == nil || p.Decision.Passed || p.State != pipeline.StateRefused) {
		w.facts("Reason", cell{oneLine(p.Reason), red})
	}
	w.stages(p.Stages)
	if p.Decision != nil {
		w.decision(*p.Decision)
	}
	w.approvals(p.Approvals)
	w.diff(p.Diff)
	if c := p.Copied; c != nil {
		w.printf("\n%s %s, %s (%s sent, %d there already, %d mounted), %s\n", w.paint(cell{"COPIED", bold}),
			plural(c.Manifests, "manifest", "manifests"), plural(c.Blobs, "blob", "blobs"), size(c.Sent), c.Skipped, c.Mounted,
			plural(len(c.Referrers), "referrer", "referrers"))
	}
	w.tags(p.Tags)
	if s := p.Summary; s != nil && s.Statement != "" {
		w.printf("\n%s statement %s, signed by key %s (-o json has it)\n", w.paint(cell{"SUMMARY", bold}), oneLine(string(s.Statement)), oneLine(shortKey(s.KeyID)))
	}
	w.commands(p.VerifyCommands)
}
