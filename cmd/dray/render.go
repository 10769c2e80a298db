package main

import (
	"fmt"
	"strings"

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
