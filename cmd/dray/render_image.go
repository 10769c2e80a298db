package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/dray-project/dray/api/client"
	"github.com/dray-project/dray/pipeline"
)

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
	w.hygiene(i.Hygiene, i.Source.Lint)
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
	again := ""
	if i.MatchedAt != nil {
		again = fmt.Sprintf(", matched again %s", when(*i.MatchedAt))
	}
	return fmt.Sprintf("%s with %s%s, database of %s", when(i.ScannedAt), i.Scanner, again, when(i.Database.UpdatedAt))
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
		rows = append(rows, []cell{text("  " + x.ID), severityCell(x.Severity), text(x.Package + " " + x.Version), text(fix), text(platformNames(x.Platforms)), {suppressions(x), faint}})
	}
	head := []string{"  ID", "SEVERITY", "PACKAGE", "FIXED IN", "PLATFORMS"}
	if slices.ContainsFunc(findings, func(x pipeline.ImageFinding) bool { return len(x.Suppressed) > 0 }) {
		head = append(head, "DOES NOT COUNT")
	}
	if len(rows) > 0 {
		w.table(head, rows)
	}
	if more := len(findings) - maxFindings; more > 0 {
		w.printf("  and %d more: -o json has all\n", more)
	}
}

func severityCell(s pipeline.Severity) cell {
	colors := map[pipeline.Severity]string{pipeline.SeverityCritical: red, pipeline.SeverityHigh: red, pipeline.SeverityMedium: yellow}
	return cell{s.String(), colors[s]}
}

// suppressions says why a finding does not count, and where.
func suppressions(f pipeline.ImageFinding) string {
	var parts []string
	for _, s := range f.Suppressed {
		part := suppression(&s.Suppression)
		if s.Environment != "" {
			part = "in " + oneLine(s.Environment) + ": " + part
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, "; ")
}

// suppression says by what, by whom, until when and why.
func suppression(s *pipeline.Suppression) string {
	if s == nil {
		return ""
	}
	out := fmt.Sprintf("%s %s by %s", s.By, s.ID, s.Author)
	if s.ExpiresAt != nil {
		out += " until " + s.ExpiresAt.UTC().Format("2006-01-02")
	}
	return oneLine(out + ": " + s.Reason)
}

// hygiene shows what an attacker would be glad of, and what it costs to carry.
func (w *writer) hygiene(platforms []pipeline.PlatformHygiene, lint []pipeline.LintFinding) {
	if len(platforms) > 0 {
		w.printf("\n")
		var rows [][]cell
		for _, p := range platforms {
			user := text(p.User)
			if (pipeline.PlatformReport{User: p.User}).Root() {
				user = cell{strings.TrimSpace(oneLine(p.User) + " (root)"), red}
			}
			health := cell{"yes", ""}
			if !p.Hygiene.Healthcheck {
				health = cell{"no", yellow}
			}
			var secrets []string
			for _, s := range p.Hygiene.Secrets {
				secrets = append(secrets, s.Where+" "+s.Name)
			}
			h := p.Hygiene
			rows = append(rows, []cell{text(string(p.Platform)), user, some(h.Shells, yellow), some(h.PackageManagers, yellow), some(h.Setuid, yellow),
				some(secrets, red), health, text(size(h.Compressed)), text(size(h.Size)), text(size(h.Wasted))})
		}
		w.table([]string{"HYGIENE", "USER", "SHELLS", "PACKAGE MANAGERS", "SETUID", "SECRETS", "HEALTH CHECK", "STORED", "UNPACKED", "WASTED"}, rows)
	}
	if len(lint) > 0 {
		w.printf("\n")
		var rows [][]cell
		for _, l := range lint {
			line := ""
			if l.Line > 0 {
				line = fmt.Sprint(l.Line)
			}
			rows = append(rows, []cell{text(l.Rule), text(line), text(l.Detail), text(l.Remedy)})
		}
		w.table([]string{"DOCKERFILE", "LINE", "DETAIL", "REMEDY"}, rows)
	}
}

// some names up to three things.
func some(list []string, color string) cell {
	switch n := len(list); {
	case n == 0:
		return cell{"none", ""}
	case n > 3:
		return cell{oneLine(fmt.Sprintf("%s and %d more", strings.Join(list[:3], ", "), n-3)), color}
	}
	return cell{oneLine(strings.Join(list, ", ")), color}
}
