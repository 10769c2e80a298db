package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/dray-project/dray/api/client"
	"github.com/dray-project/dray/pipeline"
)

func (w *writer) projects(list []pipeline.ProjectVersion) {
	if len(list) == 0 {
		w.printf("No projects that this token may see. The server's settings name them.\n")
		return
	}
	var rows [][]cell
	for _, v := range list {
		rows = append(rows, []cell{text(v.Project.Name), text(strconv.Itoa(v.Version)), text(way(v.Project.Environments)), text(v.Project.Source), text(v.AppliedBy), text(w.age(v.AppliedAt))})
	}
	w.table([]string{"PROJECT", "VERSION", "ENVIRONMENTS", "SOURCE", "APPLIED BY", "APPLIED"}, rows)
}

func (w *writer) versions(list []pipeline.ProjectVersion) {
	var rows [][]cell
	for _, v := range list {
		rows = append(rows, []cell{text(strconv.Itoa(v.Version)), text(v.Digest.Short()), text(way(v.Project.Environments)), text(v.AppliedBy), text(when(v.AppliedAt))})
	}
	w.table([]string{"VERSION", "DIGEST", "ENVIRONMENTS", "APPLIED BY", "APPLIED"}, rows)
}

func (w *writer) project(v pipeline.ProjectVersion) {
	p := v.Project
	latest := ""
	if p.Latest {
		latest = "moves with releases"
	}
	w.facts("Project", p.Name, "Version", fmt.Sprintf("%d, applied by %s at %s", v.Version, v.AppliedBy, when(v.AppliedAt)), "Source", p.Source+" at "+p.Forge,
		"Repository", p.Repository, "Platforms", platformNames(p.Platforms), "Latest", latest, "Gate", gate(p.Gate), "VEX keys", count(len(p.TrustedVEXKeys), ""))
	w.ruleNames("RULE", p.Rules)
	for _, e := range p.Environments {
		w.printf("\n")
		w.facts("Environment", cell{oneLine(e.Name), bold}, "Repository", e.Repository, "Gate", gate(e.Gate), "After", strings.Join(e.After, ", "), "Soak", soak(e.Soak),
			"Approvals", approvalRules(e.Approvals), "Freezes", freezes(e.Freezes), "Break glass", breakGlass(e.BreakGlass), "Rollback", rollbackGate(e.Rollback),
			"Automatic", yes(e.Auto), "Repairs tags", yes(e.RepairTags))
		w.ruleNames("RULE", e.Rules)
	}
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return ""
}

func count(n int, none string) string {
	if n == 0 {
		return none
	}
	return strconv.Itoa(n)
}

func gate(g pipeline.GateRules) string {
	s := "refuses findings of severity " + g.FailOn.String() + " or above"
	if g.IgnoreUnfixed {
		s += " that have a fix"
	}
	if !g.AllowRoot {
		s += ", and root"
	}
	return s
}

func soak(d pipeline.Duration) string {
	if d == 0 {
		return ""
	}
	return d.String()
}

func approvalRules(list []pipeline.ApprovalRule) string {
	return strings.Join(names(list, func(r pipeline.ApprovalRule) string {
		s := fmt.Sprintf("%d by %s", max(r.Count, 1), r.Role)
		if r.NotRequester {
			s += " (not the requester)"
		}
		return s
	}), ", ")
}

func freezes(list []pipeline.Freeze) string {
	return strings.Join(names(list, func(f pipeline.Freeze) string {
		s := fmt.Sprintf("%s from %s for %s", f.Name, f.Start, f.For)
		if f.Recur != "" {
			s += ", " + f.Recur
		}
		if f.TimeZone != "" {
			s += ", " + f.TimeZone
		}
		return s
	}), "; ")
}

func breakGlass(b *pipeline.BreakGlassRule) string {
	if b == nil {
		return ""
	}
	return strings.Join(b.Overrides, ", ") + " by " + strings.Join(b.Roles, ", ")
}

func rollbackGate(g *pipeline.RollbackGate) string {
	if g == nil {
		return ""
	}
	s := "the environment's rules"
	if len(g.Rules) > 0 {
		s = plural(len(g.Rules), "rule of its own", "rules of its own")
	}
	if len(g.Approvals) > 0 {
		s += ", " + approvalRules(g.Approvals)
	}
	return s
}

func (w *writer) ruleNames(head string, rules []pipeline.Rule) {
	if len(rules) == 0 {
		return
	}
	var rows [][]cell
	for _, r := range rules {
		if r.Use != "" {
			rows = append(rows, []cell{text("  " + r.Use), text(string(r.With))})
		} else {
			rows = append(rows, []cell{text("  " + r.Name), text(r.Expr)})
		}
	}
	w.table([]string{"  " + head, "IS"}, rows)
}

func (w *writer) applied(a client.Applied) {
	switch {
	case a.DryRun && a.Changed:
		w.printf("project %s: version %d is in force, and this would change\n", oneLine(a.Project.Name), a.Version)
	case a.Changed:
		w.printf("project %s: version %d is in force now\n", oneLine(a.Project.Name), a.Version)
	default:
		w.printf("project %s: nothing changes, version %d is in force\n", oneLine(a.Project.Name), a.Version)
	}
	if len(a.Changes) == 0 {
		return
	}
	var rows [][]cell
	for _, c := range a.Changes {
		from, to := string(c.From), string(c.To)
		if from == "" {
			from = "not set"
		}
		if to == "" {
			to = "not set"
		}
		rows = append(rows, []cell{text("  " + c.Path), {oneLine(from), red}, {oneLine(to), green}})
	}
	w.table([]string{"  SETTING", "WAS", "IS"}, rows)
}

func (w *writer) environments(list []pipeline.EnvironmentState) {
	if len(list) == 0 {
		w.printf("No environments. 'dray project apply' sets them.\n")
		return
	}
	var rows [][]cell
	for _, s := range list {
		row := []cell{text(s.Environment), {"empty", faint}, text(""), text(""), text("")}
		if c := s.Current; c != nil {
			version := ""
			if len(c.Versions) > 0 {
				version = c.Versions[0]
			} else {
				version = shortCommit(c.Commit)
			}
			if c.Action == pipeline.ActionRollback {
				version += " (rollback)"
			}
			row = []cell{text(s.Environment), text(version), text(c.Image.Digest.Short()), text(w.age(c.Since)), text(c.By)}
		}
		rows = append(rows, append(row, text(string(s.Entering)), text(strings.Join(names(s.Waiting, func(id pipeline.PromotionID) string { return string(id) }), ", "))))
	}
	w.table([]string{"ENVIRONMENT", "VERSION", "DIGEST", "SINCE", "BY", "ENTERING", "WAITING"}, rows)
}

func (w *writer) exceptions(list []pipeline.Exception) {
	if len(list) == 0 {
		w.printf("No exceptions.\n")
		return
	}
	var rows [][]cell
	for _, e := range list {
		scope := []string{e.Package}
		if e.Environment != "" {
			scope = append(scope, "in "+e.Environment)
		}
		if e.Image != "" {
			scope = append(scope, e.Image.Short())
		}
		state := w.holds(e.RevokedAt, e.RevokedBy, &e.ExpiresAt)
		rows = append(rows, []cell{text(e.ID), text(e.Finding), text(strings.TrimSpace(strings.Join(scope, " "))), text(e.Author), state, text(e.Reason)})
	}
	w.table([]string{"EXCEPTION", "FINDING", "ONLY", "AUTHOR", "HOLDS", "REASON"}, rows)
}

// holds says until when something does.
func (w *writer) holds(revoked *time.Time, by string, expires *time.Time) cell {
	switch {
	case revoked != nil:
		return cell{oneLine("revoked by " + by), faint}
	case expires == nil:
		return cell{"yes", green}
	case !expires.After(w.now):
		return cell{"expired " + expires.UTC().Format("2006-01-02"), faint}
	}
	return cell{"until " + expires.UTC().Format("2006-01-02"), green}
}

func (w *writer) vex(list []client.VEX) {
	if len(list) == 0 {
		w.printf("No VEX documents.\n")
		return
	}
	var rows [][]cell
	for _, v := range list {
		says := some(names(v.Statements, func(s client.VEXStatement) string { return s.Vulnerability + " " + s.Status }), "")
		rows = append(rows, []cell{text(v.ID), text(v.Author), text(v.UploadedBy), text(w.age(v.UploadedAt)), w.holds(v.RevokedAt, v.RevokedBy, nil), says})
	}
	w.table([]string{"DOCUMENT", "AUTHOR", "HANDED IN BY", "WHEN", "HOLDS", "SAYS"}, rows)
}

func (w *writer) drifts(list []pipeline.Drift) {
	if len(list) == 0 {
		w.printf("No drift: registries are as the record says.\n")
		return
	}
	var rows [][]cell
	for _, d := range list {
		subject := d.Subject
		if digest, err := pipeline.ParseDigest(subject); err == nil {
			subject = digest.Short()
		}
		state := cell{"open: " + oneLine(d.Blocked), red}
		switch {
		case d.RepairedAt != nil:
			state = cell{"repaired: " + oneLine(d.Repair), green}
		case d.ResolvedAt != nil:
			state = cell{"right again", green}
		}
		rows = append(rows, []cell{text(d.Kind), text(d.Project), text(d.Environment), text(subject), text(w.age(d.DetectedAt)), text(d.Detail), state})
	}
	w.table([]string{"KIND", "PROJECT", "ENVIRONMENT", "SUBJECT", "FOUND", "DETAIL", "STATE"}, rows)
}

func (w *writer) registries(list []pipeline.RegistryProbe) {
	if len(list) == 0 {
		w.printf("No registry was tried yet. 'dray registry probe HOST' does.\n")
		return
	}
	can := func(c pipeline.Capability) cell {
		return cell{oneLine(string(c)), map[pipeline.Capability]string{pipeline.CapabilityYes: green, pipeline.CapabilityNo: yellow}[c]}
	}
	var rows [][]cell
	for _, r := range list {
		largest := ""
		if r.MaxManifest > 0 {
			largest = size(r.MaxManifest)
		}
		note := cell{oneLine(strings.Join(r.Notes, "; ")), ""}
		if r.Error != "" {
			note = cell{oneLine("failed: " + r.Error), red}
		}
		rows = append(rows, []cell{text(r.Host), can(r.Referrers), can(r.Mount), can(r.Delete), can(r.ImmutableTags), text(largest), text(w.age(r.ProbedAt)), note})
	}
	w.table([]string{"REGISTRY", "REFERRERS", "MOUNT", "DELETE", "IMMUTABLE TAGS", "LARGEST MANIFEST", "TRIED", "NOTES"}, rows)
}
