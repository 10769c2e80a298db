package main

import (
	"fmt"
	"strings"

	"github.com/dray-project/dray/pipeline"
)

func (w *writer) packageAudits(list []pipeline.PackageAudit) {
	if len(list) == 0 {
		w.printf("No image contains it.\n")
		return
	}
	var rows [][]cell
	for _, p := range list {
		version := text(p.Package.Version)
		if p.Uncomparable {
			version = cell{oneLine(p.Package.Version) + " ?", yellow}
		}
		accepted := ""
		for _, e := range p.Exceptions {
			accepted = strings.TrimPrefix(accepted+", "+e.Finding+" by "+e.Author, ", ")
		}
		rows = append(rows, []cell{text(p.Package.Name), version, text(p.Project), text(p.Image.Digest.Short()), text(shortCommit(p.Commit)),
			w.places(p.Places), text(firstIn(p.First)), text(accepted)})
	}
	w.table([]string{"PACKAGE", "VERSION", "PROJECT", "DIGEST", "COMMIT", "PROMOTED", "FIRST IN", "ACCEPTED"}, rows)
}

func (w *writer) findingAudits(list []pipeline.FindingAudit) {
	if len(list) == 0 {
		w.printf("No image has it.\n")
		return
	}
	var rows [][]cell
	for _, f := range list {
		fixed := f.Finding.FixedIn
		if fixed == "" {
			fixed = "no fix yet"
		}
		var spoken []string
		for _, s := range f.Suppressed {
			word := s.By + " by " + s.Author
			if s.Environment != "" {
				word += " for " + s.Environment
			}
			if s.ExpiresAt != nil {
				word += " until " + s.ExpiresAt.UTC().Format("2006-01-02")
			}
			spoken = append(spoken, word)
		}
		rows = append(rows, []cell{text(f.Finding.ID), severityCell(f.Finding.Severity), text(f.Finding.Package), text(f.Finding.Version), text(fixed), text(f.Project),
			text(f.Image.Digest.Short()), w.places(f.Places), text(strings.Join(spoken, ", "))})
	}
	w.table([]string{"FINDING", "SEVERITY", "PACKAGE", "VERSION", "FIXED IN", "PROJECT", "DIGEST", "PROMOTED", "ACCEPTED"}, rows)
}

// places says where an image is now, with who let it in, or that it was somewhere.
func (w *writer) places(stays []pipeline.Stay) cell {
	var now []string
	for _, s := range stays {
		if s.Until == nil {
			now = append(now, fmt.Sprintf("%s since %s (%s)", s.Environment, s.Since.UTC().Format("2006-01-02"), letIn(s)))
		}
	}
	switch {
	case len(now) > 0:
		return cell{oneLine(strings.Join(now, ", ")), green}
	case len(stays) > 0:
		last := stays[len(stays)-1]
		return cell{oneLine("not any more; " + last.Environment + " until " + last.Until.UTC().Format("2006-01-02")), faint}
	}
	return cell{"never", faint}
}

func letIn(s pipeline.Stay) string {
	who := "by " + s.RequestedBy
	if len(s.ApprovedBy) > 0 {
		who += ", approved by " + strings.Join(s.ApprovedBy, " and ")
	}
	if s.BreakGlass != "" {
		who += ", in an emergency"
	}
	return who
}

func firstIn(o *pipeline.Origin) string {
	if o == nil {
		return ""
	}
	return shortCommit(o.Commit) + " " + string(o.Run)
}

func (w *writer) auditEvents(list []pipeline.AuditEvent) {
	if len(list) == 0 {
		w.printf("Nothing.\n")
		return
	}
	var rows [][]cell
	for _, e := range list {
		rows = append(rows, []cell{text(when(e.At)), {clean(e.Kind), cyan}, text(e.Project), text(e.Environment), text(e.Actor), text(e.Subject), text(e.Image.Short()), text(e.Note)})
	}
	w.table([]string{"AT", "WHAT", "PROJECT", "ENVIRONMENT", "BY", "SUBJECT", "DIGEST", "NOTE"}, rows)
}

func (w *writer) environmentAudits(list []pipeline.EnvironmentAudit) {
	if len(list) == 0 {
		w.printf("It held nothing.\n")
		return
	}
	var images, changes [][]cell
	for _, e := range list {
		if s := e.Stay; s != nil {
			until := "now"
			if s.Until != nil {
				until = when(*s.Until)
			}
			images = append(images, []cell{text(e.Change), text(s.Image.Digest.Short()), text(shortCommit(s.Commit)), text(when(s.Since)), text(until), text(s.Action),
				text(string(s.Promotion)), text(letIn(*s))})
			continue
		}
		what := text(e.Kind)
		if e.Kind == pipeline.AuditedFinding {
			what = severityCell(e.Severity)
		}
		name := e.Name
		if e.Package != "" {
			name += " in " + e.Package
		}
		color := map[string]string{"added": green, "removed": red}[e.Change]
		if e.Kind == pipeline.AuditedFinding {
			color = map[string]string{"added": red, "removed": green}[e.Change]
		}
		changes = append(changes, []cell{{clean(e.Change), color}, what, text(name), text(e.From), text(e.To)})
	}
	if len(images) > 0 {
		w.table([]string{"IMAGE", "DIGEST", "COMMIT", "SINCE", "UNTIL", "ACTION", "PROMOTION", "WHO"}, images)
	}
	if len(changes) > 0 {
		if len(images) > 0 {
			w.printf("\n")
		}
		w.table([]string{"CHANGE", "WHAT", "NAME", "FROM", "TO"}, changes)
	}
}
