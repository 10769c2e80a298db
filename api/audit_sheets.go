package api

import (
	"strings"
	"time"

	"github.com/dray-project/dray/pipeline"
)

var packageSheet = sheet[pipeline.PackageAudit]{
	id: func(p pipeline.PackageAudit) string { return p.ID },
	columns: []string{"project", "image", "package", "version", "type", "purl", "licences", "platforms", "layer", "path", "uncomparable", "run", "commit", "recorded",
		"first_run", "first_commit", "first_recorded", "promoted_now", "promoted_ever", "exceptions"},
	row: func(p pipeline.PackageAudit) []string {
		var accepted []string
		for _, e := range p.Exceptions {
			accepted = append(accepted, e.Finding+" by "+e.Author+" until "+stamp(e.ExpiresAt))
		}
		now, ever := places(p.Places)
		row := []string{p.Project, p.Image.String(), p.Package.Name, p.Package.Version, p.Package.Type, p.Package.PURL, strings.Join(p.Package.Licenses, "; "),
			platformList(p.Platforms), p.Package.Layer, p.Package.Path, yes(p.Uncomparable), string(p.Run), p.Commit, stamp(p.RecordedAt)}
		return append(append(row, origin(p.First)...), now, ever, strings.Join(accepted, "; "))
	},
}

var findingSheet = sheet[pipeline.FindingAudit]{
	id: func(f pipeline.FindingAudit) string { return f.ID },
	columns: []string{"project", "image", "finding", "severity", "package", "version", "fixed_in", "purl", "platforms", "path", "run", "commit", "recorded", "scanned",
		"first_run", "first_commit", "first_recorded", "promoted_now", "promoted_ever", "suppressed"},
	row: func(f pipeline.FindingAudit) []string {
		var spoken []string
		for _, s := range f.Suppressed {
			text := s.By + " " + s.ID + " by " + s.Author
			if s.Environment != "" {
				text += " in " + s.Environment
			}
			if s.ExpiresAt != nil {
				text += " until " + stamp(*s.ExpiresAt)
			}
			spoken = append(spoken, text)
		}
		now, ever := places(f.Places)
		row := []string{f.Project, f.Image.String(), f.Finding.ID, f.Finding.Severity.String(), f.Finding.Package, f.Finding.Version, f.Finding.FixedIn, f.Finding.PURL,
			platformList(f.Platforms), f.Finding.Path, string(f.Run), f.Commit, stamp(f.RecordedAt), stamp(f.ScannedAt)}
		return append(append(row, origin(f.First)...), now, ever, strings.Join(spoken, "; "))
	},
}

var eventSheet = sheet[pipeline.AuditEvent]{
	id:      func(e pipeline.AuditEvent) string { return e.ID },
	columns: []string{"at", "kind", "project", "environment", "actor", "subject", "image", "note"},
	row: func(e pipeline.AuditEvent) []string {
		return []string{stamp(e.At), e.Kind, e.Project, e.Environment, e.Actor, e.Subject, string(e.Image), e.Note}
	},
}

var environmentSheet = sheet[pipeline.EnvironmentAudit]{
	id:      func(e pipeline.EnvironmentAudit) string { return e.ID },
	columns: []string{"kind", "change", "image", "commit", "promotion", "action", "requested_by", "approved_by", "since", "until", "name", "type", "package", "severity", "from", "to"},
	row: func(e pipeline.EnvironmentAudit) []string {
		s, since, until, image, severity := pipeline.Stay{}, "", "", "", ""
		if e.Stay != nil {
			s = *e.Stay
			since, image = stamp(s.Since), s.Image.String()
			if s.Until != nil {
				until = stamp(*s.Until)
			}
		}
		if e.Kind == pipeline.AuditedFinding {
			severity = e.Severity.String()
		}
		return []string{e.Kind, e.Change, image, s.Commit, string(s.Promotion), s.Action, s.RequestedBy, strings.Join(s.ApprovedBy, "; "), since, until,
			e.Name, e.Type, e.Package, severity, e.From, e.To}
	},
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func yes(b bool) string {
	if b {
		return "yes"
	}
	return ""
}

func origin(o *pipeline.Origin) []string {
	if o == nil {
		return []string{"", "", ""}
	}
	return []string{string(o.Run), o.Commit, stamp(o.At)}
}

// places tells where an image is, and where it was, each with who let it in.
func places(stays []pipeline.Stay) (now, ever string) {
	var here, all []string
	for _, s := range stays {
		text := s.Environment + " since " + stamp(s.Since)
		if s.Until != nil {
			text = s.Environment + " from " + stamp(s.Since) + " to " + stamp(*s.Until)
		}
		text += ", requested by " + s.RequestedBy
		if len(s.ApprovedBy) > 0 {
			text += ", approved by " + strings.Join(s.ApprovedBy, " and ")
		}
		if s.Until == nil {
			here = append(here, text)
		}
		all = append(all, text)
	}
	return strings.Join(here, "; "), strings.Join(all, "; ")
}

func platformList(platforms []pipeline.Platform) string {
	var names []string
	for _, p := range platforms {
		names = append(names, string(p))
	}
	return strings.Join(names, "; ")
}
