package main

import (
	"fmt"
	"strings"

	"github.com/dray-project/dray/api/client"
	"github.com/dray-project/dray/pipeline"
)

func (w *writer) runs(runs []pipeline.Run) {
	if len(runs) == 0 {
		w.printf("No runs. A push to a repository that Dray watches starts one.\n")
		return
	}
	var rows [][]cell
	for _, r := range runs {
		commit := r.Commit
		if commit == "" {
			commit = r.Event.After
		}
		rows = append(rows, []cell{text(string(r.ID)), text(r.Project), text(shortRef(r.Event.Ref)), text(shortCommit(commit)),
			stateCell(string(r.State)), text(w.took(r.StartedAt, r.FinishedAt)), text(w.age(r.CreatedAt))})
	}
	w.table([]string{"RUN", "PROJECT", "REF", "COMMIT", "STATE", "TOOK", "CREATED"}, rows)
}

func (w *writer) run(r pipeline.RunDetail) {
	image := ""
	if r.Image != nil {
		image = r.Image.String()
	}
	state := stateCell(string(r.State))
	if took := w.took(r.StartedAt, r.FinishedAt); took != "" && r.State.Final() {
		state.text += " in " + took
	}
	source := r.Event.Source + " " + r.Event.Ref
	if r.Event.Pusher != "" {
		source += ", pushed by " + r.Event.Pusher
	}
	retry := string(r.RetryOf)
	if retry != "" && r.RequestedBy != "" {
		retry += ", asked for by " + r.RequestedBy
	}
	w.facts("Run", string(r.ID), "Retry of", retry, "State", state, "Project", r.Project, "Source", source, "Commit", r.Commit, "Image", image,
		"Created", when(r.CreatedAt))
	if r.Reason != "" && (r.Decision == nil || r.Decision.Passed) {
		w.facts("Reason", cell{clean(r.Reason), red})
	}
	w.stages(r.Stages)
	if r.Decision != nil {
		w.printf("\n%s\n", w.paint(cell{"FINDINGS", bold}))
		w.printf("  %s\n", counts(r.Findings))
		w.decision(*r.Decision)
	}
	w.tags(r.Tags)
}

// counts puts the findings into one line.
func counts(f pipeline.Findings) string {
	var parts []string
	for _, c := range []struct {
		n    int
		name string
	}{{f.Critical, "critical"}, {f.High, "high"}, {f.Medium, "medium"}, {f.Low, "low"}, {f.Unknown, "unknown"}} {
		if c.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", c.n, c.name))
		}
	}
	if len(parts) == 0 {
		return "none"
	}
	return strings.Join(parts, ", ")
}

func (w *writer) stages(stages []pipeline.StageStatus) {
	if len(stages) == 0 {
		return
	}
	w.printf("\n")
	var rows [][]cell
	for _, s := range stages {
		note := s.Reason
		if s.Attempt > 1 {
			note = strings.TrimSpace(fmt.Sprintf("attempt %d %s", s.Attempt, note))
		}
		state := s.State
		if state == "started" {
			state = "running"
		}
		rows = append(rows, []cell{text(string(s.Stage)), stateCell(state), text(w.took(&s.StartedAt, s.FinishedAt)), text(note)})
	}
	w.table([]string{"STAGE", "STATE", "TOOK", "NOTE"}, rows)
}

func (w *writer) decision(d pipeline.Decision) {
	verdict := cell{"passed", green}
	if !d.Passed {
		verdict = cell{"refused", yellow}
	}
	w.printf("\n%s %s\n", w.paint(cell{"DECISION", bold}), w.paint(verdict))
	for _, r := range d.Rules {
		mark := cell{"ok", green}
		if !r.Passed {
			mark = cell{"NO", red}
		}
		w.printf("  %s  %s: %s\n", w.paint(mark), clean(r.Rule), clean(r.Reason))
		if r.Remedy != "" {
			w.printf("      to change that: %s\n", clean(r.Remedy))
		}
	}
}

func (w *writer) tags(tags []pipeline.TagMove) {
	if len(tags) == 0 {
		return
	}
	w.printf("\n")
	var rows [][]cell
	for _, t := range tags {
		state := cell{"moved", green}
		switch {
		case !t.Held:
			state = cell{"not moved", faint}
		case !t.Moved:
			state = cell{"held", green}
		}
		rows = append(rows, []cell{text(t.Repository + ":" + t.Tag), state, text(t.Note)})
	}
	w.table([]string{"TAG", "STATE", "NOTE"}, rows)
}

func (w *writer) promotions(promotions []pipeline.Promotion) {
	if len(promotions) == 0 {
		w.printf("No promotions. 'dray promote IMAGE ENVIRONMENT' asks for one.\n")
		return
	}
	var rows [][]cell
	for _, p := range promotions {
		rows = append(rows, []cell{text(string(p.ID)), text(p.Project), text(p.Image.Digest.Short()), text(p.Environment),
			stateCell(string(p.State)), text(p.RequestedBy), text(w.age(p.CreatedAt))})
	}
	w.table([]string{"PROMOTION", "PROJECT", "DIGEST", "ENVIRONMENT", "STATE", "BY", "CREATED"}, rows)
}

func (w *writer) promotion(p client.Promotion) {
	state := stateCell(string(p.State))
	if p.FinishedAt != nil {
		state.text += " in " + w.took(&p.CreatedAt, p.FinishedAt)
	}
	destination := ""
	if p.Destination != nil {
		destination = p.Destination.String()
	}
	w.facts("Promotion", string(p.ID), "State", state, "Project", p.Project, "Environment", p.Environment, "From", p.Image.String(),
		"To", destination, "By", p.RequestedBy, "Created", when(p.CreatedAt))
	if p.Reason != "" && (p.Decision == nil || p.Decision.Passed) {
		w.facts("Reason", cell{clean(p.Reason), red})
	}
	w.stages(p.Stages)
	if p.Decision != nil {
		w.decision(*p.Decision)
	}
	if c := p.Copied; c != nil {
		w.printf("\n%s %s, %s (%s sent, %d there already, %d mounted), %s\n", w.paint(cell{"COPIED", bold}),
			plural(c.Manifests, "manifest", "manifests"), plural(c.Blobs, "blob", "blobs"), size(c.Sent), c.Skipped, c.Mounted,
			plural(len(c.Referrers), "referrer", "referrers"))
	}
	w.tags(p.Tags)
	w.commands(p.VerifyCommands)
}

// commands shows how to verify without Dray.
func (w *writer) commands(commands []string) {
	if len(commands) == 0 {
		return
	}
	w.printf("\n%s\n", w.paint(cell{"VERIFY IT YOURSELF", bold}))
	for _, c := range commands {
		w.printf("  %s\n", clean(c))
	}
}

func (w *writer) image(i client.Image) {
	w.facts("Image", i.Image.String(), "Project", i.Project, "Run", string(i.Run), "Commit", i.Source.Commit, "Source", i.Source.Ref+" of "+i.Source.CloneURL,
		"Builder", i.Builder, "Recorded", when(i.RecordedAt), "Scanned", scanned(i.ImageDetail), "Packages", fmt.Sprint(i.Packages))
	if len(i.Platforms) > 0 {
		w.printf("\n")
		var rows [][]cell
		for _, p := range i.Platforms {
			rows = append(rows, []cell{text(string(p.Platform)), text(string(p.Digest))})
		}
		w.table([]string{"PLATFORM", "DIGEST"}, rows)
	}
	w.findings(i.Findings)
	w.decision(i.Decision)
	w.tags(i.Tags)
	w.evidence(i.Signatures, i.Attestations)
	if len(i.Promotions) > 0 {
		w.printf("\n")
		w.promotions(i.Promotions)
	}
	w.commands(i.VerifyCommands)
}

func scanned(i pipeline.ImageDetail) string {
	if i.ScannedAt.IsZero() {
		return ""
	}
	return fmt.Sprintf("%s with %s, database of %s", when(i.ScannedAt), i.Scanner, when(i.Database.UpdatedAt))
}

// maxFindings is how many findings a table shows; the other formats have all.
const maxFindings = 20

func (w *writer) findings(findings []pipeline.ImageFinding) {
	var f pipeline.Findings
	for _, x := range findings {
		switch x.Severity {
		case pipeline.SeverityCritical:
			f.Critical++
		case pipeline.SeverityHigh:
			f.High++
		case pipeline.SeverityMedium:
			f.Medium++
		case pipeline.SeverityLow:
			f.Low++
		default:
			f.Unknown++
		}
	}
	w.printf("\n%s %s\n", w.paint(cell{"FINDINGS", bold}), counts(f))
	var rows [][]cell
	for _, x := range findings[:min(len(findings), maxFindings)] {
		fix := x.FixedIn
		if fix == "" {
			fix = "no fix yet"
		}
		rows = append(rows, []cell{text("  " + x.ID), severityCell(x.Severity), text(x.Package + " " + x.Version), text(fix), text(platformNames(x.Platforms))})
	}
	if len(rows) > 0 {
		w.table([]string{"  ID", "SEVERITY", "PACKAGE", "FIXED IN", "PLATFORMS"}, rows)
	}
	if more := len(findings) - maxFindings; more > 0 {
		w.printf("  and %d more: -o json has all\n", more)
	}
}

func severityCell(s pipeline.Severity) cell {
	colors := map[pipeline.Severity]string{pipeline.SeverityCritical: red, pipeline.SeverityHigh: red, pipeline.SeverityMedium: yellow}
	return cell{s.String(), colors[s]}
}

// evidence lists signatures and attestations.
func (w *writer) evidence(signatures []pipeline.Signature, attestations []pipeline.Attestation) {
	var rows [][]cell
	for _, s := range signatures {
		rows = append(rows, []cell{text("signature"), text(s.Layout), text("key " + shortKey(s.KeyID)), text(s.Image.Digest.Short())})
	}
	for _, t := range attestations {
		rows = append(rows, []cell{text(t.PredicateType), text(t.Layout), text("key " + shortKey(t.KeyID)), text(t.Image.Digest.Short())})
	}
	if len(rows) > 0 {
		w.printf("\n")
		w.table([]string{"EVIDENCE", "LAYOUT", "BY", "OF"}, rows)
	}
}

func shortKey(id string) string { return id[:min(len(id), 12)] }

func (w *writer) packages(uses []pipeline.PackageUse) {
	if len(uses) == 0 {
		w.printf("No image contains it.\n")
		return
	}
	var rows [][]cell
	for _, u := range uses {
		var places []string
		for _, p := range u.Promotions {
			places = append(places, fmt.Sprintf("%s (by %s)", p.Environment, p.RequestedBy))
		}
		rows = append(rows, []cell{text(u.Package.Name), text(u.Package.Version), text(u.Project), text(u.Image.Digest.Short()),
			text(strings.Join(u.Tags, ", ")), text(platformNames(u.Platforms)), text(strings.Join(places, ", "))})
	}
	w.table([]string{"PACKAGE", "VERSION", "PROJECT", "DIGEST", "TAGS", "PLATFORMS", "PROMOTED TO"}, rows)
}

func size(n int64) string {
	switch {
	case n < 1<<10:
		return fmt.Sprintf("%d B", n)
	case n < 1<<20:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
}
