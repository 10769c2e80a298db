package pipeline

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unicode"
)

// Diff is what a promotion would change in an environment.
type Diff struct {
	Project     string `json:"project"`
	Environment string `json:"environment"`
	// From is what the environment holds; nil when it is empty.
	From *DiffSide `json:"from,omitempty"`
	To   DiffSide  `json:"to"`

	// Commits that To has and From lacks, newest first; when To is the older one,
	// CommitsTaken are those that From has and To lacks. CommitsKnown is false
	// when the pushes that Dray saw do not lead from one to the other; then
	// Commits holds what is known.
	Commits      []Commit `json:"commits"`
	CommitsTaken []Commit `json:"commitsTaken"`
	CommitsKnown bool     `json:"commitsKnown"`
	CompareURL   string   `json:"compareURL,omitempty"`

	PackagesAdded   []PackageChange `json:"packagesAdded"`
	PackagesRemoved []PackageChange `json:"packagesRemoved"`
	PackagesChanged []PackageChange `json:"packagesChanged"`
	FindingsFixed   []Finding       `json:"findingsFixed"`
	FindingsAdded   []Finding       `json:"findingsAdded"`
	LicensesAdded   []string        `json:"licensesAdded"`
	LicensesRemoved []string        `json:"licensesRemoved"`
}

// DiffSide is one of the two images of a Diff.
type DiffSide struct {
	Digest   Digest   `json:"digest"`
	Commit   string   `json:"commit"`
	Versions []string `json:"versions"`
	// Bases as the sources name them, with their digests.
	Bases []Material `json:"bases"`
	// Size of all platforms' layers together as they are stored, in bytes; 0 when unknown.
	Size      int64      `json:"size"`
	Builder   string     `json:"builder"`
	Platforms []Platform `json:"platforms"`
}

// PackageChange is a package that differs between two images.
type PackageChange struct {
	Name string `json:"name"`
	Type string `json:"type"`
	// From and To are the versions, comma-separated where there are several.
	From string `json:"from,omitempty"`
	To   string `json:"to,omitempty"`
}

// Plan is the digest by which approvals are bound to this difference. It
// changes when anything of consequence changes that a reader was shown; the
// wording of a finding's title is of none.
func (d Diff) Plan() Digest {
	bare := func(list []Finding) []Finding {
		out := make([]Finding, len(list))
		for i, f := range list {
			out[i] = Finding{ID: f.ID, Severity: f.Severity, Package: f.Package, Version: f.Version, FixedIn: f.FixedIn}
		}
		return out
	}
	d.FindingsFixed, d.FindingsAdded = bare(d.FindingsFixed), bare(d.FindingsAdded)
	b, err := json.Marshal(d)
	if err != nil {
		panic(err) // plain data always marshals
	}
	return digestOf(b)
}

// diffInput is an image as the difference looks at it.
type diffInput struct {
	record   ImageRecord
	report   Report // by the same vulnerability database as the other's
	versions []string
}

func (in diffInput) side() DiffSide {
	b := in.record.Built
	s := DiffSide{Digest: b.Image.Digest, Commit: b.Source.Commit, Versions: notNil(in.versions),
		Bases: notNil(b.Source.Bases), Builder: b.Builder, Platforms: []Platform{}}
	for _, p := range b.Platforms {
		s.Platforms = append(s.Platforms, p.Platform)
	}
	for _, p := range in.report.Platforms {
		if p.Hygiene != nil {
			s.Size += p.Hygiene.Compressed
		}
	}
	return s
}

// diff compares two images; from is nil when the environment is empty. events
// are pushes to the project, newest first.
func diff(project, environment string, from *diffInput, to diffInput, events []Event) Diff {
	d := Diff{Project: project, Environment: environment, To: to.side(),
		Commits: []Commit{}, CommitsTaken: []Commit{}, PackagesAdded: []PackageChange{}, PackagesRemoved: []PackageChange{}, PackagesChanged: []PackageChange{},
		FindingsFixed: []Finding{}, FindingsAdded: []Finding{}, LicensesAdded: []string{}, LicensesRemoved: []string{}}
	var old diffInput
	if from != nil {
		old = *from
		side := from.side()
		d.From = &side
		if d.Commits, d.CommitsKnown = commitsBetween(events, side.Commit, d.To.Commit); !d.CommitsKnown {
			if taken, back := commitsBetween(events, d.To.Commit, side.Commit); back {
				d.Commits, d.CommitsTaken, d.CommitsKnown = []Commit{}, taken, true
			}
		}
		d.CompareURL = compareURL(to.record.Built.Source.CloneURL, side.Commit, d.To.Commit)
	}
	before, after := versionsOf(old.report), versionsOf(to.report)
	for k, v := range after {
		was, had := before[k]
		c := PackageChange{Name: k.name, Type: k.typ, From: was, To: v}
		switch {
		case !had:
			d.PackagesAdded = append(d.PackagesAdded, c)
		case was != v:
			d.PackagesChanged = append(d.PackagesChanged, c)
		}
	}
	for k, v := range before {
		if _, has := after[k]; !has {
			d.PackagesRemoved = append(d.PackagesRemoved, PackageChange{Name: k.name, Type: k.typ, From: v})
		}
	}
	for _, list := range [][]PackageChange{d.PackagesAdded, d.PackagesChanged, d.PackagesRemoved} {
		slices.SortFunc(list, func(a, b PackageChange) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Type, b.Type)) })
	}
	d.FindingsFixed = findingsOnlyIn(old.report, to.report)
	d.FindingsAdded = findingsOnlyIn(to.report, old.report)
	d.LicensesAdded = onlyIn(licensesOf(to.report), licensesOf(old.report))
	d.LicensesRemoved = onlyIn(licensesOf(old.report), licensesOf(to.report))
	return d
}

type packageKey struct{ name, typ string }

// versionsOf joins the versions of each package over all platforms.
func versionsOf(r Report) map[packageKey]string {
	all := map[packageKey][]string{}
	for _, p := range r.Platforms {
		for _, pkg := range p.Packages {
			k := packageKey{pkg.Name, pkg.Type}
			if !slices.Contains(all[k], pkg.Version) {
				all[k] = append(all[k], pkg.Version)
			}
		}
	}
	out := make(map[packageKey]string, len(all))
	for k, v := range all {
		slices.Sort(v)
		out[k] = strings.Join(v, ", ")
	}
	return out
}

// findingsOnlyIn lists what a has and b lacks: by vulnerability and package,
// so that a finding that stays through an update of its package is none.
func findingsOnlyIn(a, b Report) []Finding {
	type key struct{ id, pkg string }
	seen := map[key]bool{}
	for _, p := range b.Platforms {
		for _, f := range p.Findings {
			seen[key{f.ID, f.Package}] = true
		}
	}
	out := []Finding{}
	for _, p := range a.Platforms {
		for _, f := range p.Findings {
			if k := (key{f.ID, f.Package}); !seen[k] {
				seen[k] = true
				out = append(out, f)
			}
		}
	}
	SortFindings(out)
	return out
}

// SortFindings puts the most severe first.
func SortFindings(list []Finding) {
	slices.SortStableFunc(list, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(b.Severity, a.Severity), cmp.Compare(a.ID, b.ID), cmp.Compare(a.Package, b.Package), cmp.Compare(a.Version, b.Version))
	})
}

func licensesOf(r Report) []string {
	var out []string
	for _, f := range licenseFacts(r) {
		out = append(out, f.License)
	}
	return out
}

func onlyIn(a, b []string) []string {
	out := []string{}
	for _, s := range a {
		if !slices.Contains(b, s) {
			out = append(out, s)
		}
	}
	return out
}

func notNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

// commitsBetween follows the pushes back from one commit to another.
func commitsBetween(events []Event, from, to string) (commits []Commit, known bool) {
	commits = []Commit{}
	seen := map[string]bool{}
	for at := to; at != from; {
		i := slices.IndexFunc(events, func(e Event) bool {
			return e.After == at && strings.HasPrefix(e.Ref, "refs/heads/") && e.Before != "" && e.Before != at
		})
		if i < 0 || seen[at] {
			return commits, false
		}
		seen[at] = true
		list := events[i].Commits
		for j := len(list) - 1; j >= 0; j-- {
			commits = append(commits, list[j])
			if list[j].SHA == from { // the push brought both
				return commits[:len(commits)-1], true
			}
		}
		if events[i].CommitsOmitted {
			return commits, false
		}
		at = events[i].Before
	}
	return commits, true
}

// compareURL is where a forge's people see the difference.
func compareURL(cloneURL, from, to string) string {
	base, ok := strings.CutSuffix(cloneURL, ".git")
	if !ok || !strings.HasPrefix(base, "https://") || from == to {
		return ""
	}
	return base + "/compare/" + from + "..." + to
}

// Text is the difference for people to read in a terminal. Lists are cut at
// limit entries each; 0 shows all.
func (d Diff) Text(limit int) string {
	var b strings.Builder
	if d.From == nil {
		fmt.Fprintf(&b, "%s has nothing of %s yet\n", d.Environment, d.Project)
	}
	row := func(label, from, to string) {
		switch {
		case d.From == nil:
			fmt.Fprintf(&b, "%-10s %s\n", label, to)
		case from == to:
			fmt.Fprintf(&b, "%-10s %s (same)\n", label, to)
		default:
			fmt.Fprintf(&b, "%-10s %s -> %s\n", label, from, to)
		}
	}
	var from DiffSide
	if d.From != nil {
		from = *d.From
	}
	row("version", versionName(from), versionName(d.To))
	row("digest", from.Digest.Short(), d.To.Digest.Short())
	row("commit", shortCommit(from.Commit), shortCommit(d.To.Commit))
	row("bases", baseNames(from.Bases), baseNames(d.To.Bases))
	row("size", sizeText(from.Size), sizeText(d.To.Size))
	row("builder", from.Builder, d.To.Builder)
	row("platforms", joinPlatforms(from.Platforms), joinPlatforms(d.To.Platforms))

	section := func(title string, lines []string, notes ...string) {
		if len(lines)+len(notes) == 0 {
			return
		}
		fmt.Fprintf(&b, "\n%s (%d)\n", title, len(lines))
		for i, l := range lines {
			if limit > 0 && i == limit {
				fmt.Fprintf(&b, "  and %d more\n", len(lines)-i)
				break
			}
			fmt.Fprintf(&b, "  %s\n", l)
		}
		for _, n := range notes {
			fmt.Fprintf(&b, "  %s\n", n)
		}
	}
	var notes []string
	if d.From != nil && !d.CommitsKnown {
		notes = append(notes, "(the pushes that were seen do not lead from one commit to the other; this list may be short)")
	}
	if d.CompareURL != "" && len(d.Commits) > 0 {
		notes = append(notes, d.CompareURL)
	}
	section("Commits", commitLines(d.Commits), notes...)
	section("Commits taken back", commitLines(d.CommitsTaken))
	section("Findings brought in", findingLines(d.FindingsAdded))
	section("Findings fixed", findingLines(d.FindingsFixed))
	section("Packages changed", packageLines(d.PackagesChanged))
	section("Packages added", packageLines(d.PackagesAdded))
	section("Packages removed", packageLines(d.PackagesRemoved))
	section("Licences brought in", d.LicensesAdded)
	section("Licences gone", d.LicensesRemoved)
	return b.String()
}

func versionName(s DiffSide) string {
	if len(s.Versions) > 0 {
		return s.Versions[0]
	}
	if s.Commit != "" {
		return ShaTag(s.Commit)
	}
	return "none"
}

func shortCommit(s string) string { return s[:min(len(s), ShaTagLength)] }

func baseNames(list []Material) string {
	var out []string
	for _, m := range list {
		s := m.URI
		if m.Digest != "" {
			s += "@" + m.Digest.Short()
		}
		out = append(out, s)
	}
	if len(out) == 0 {
		return "none"
	}
	return strings.Join(out, ", ")
}

func sizeText(n int64) string {
	switch {
	case n == 0:
		return "unknown"
	case n < 1<<20:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
}

func joinPlatforms(list []Platform) string {
	var out []string
	for _, p := range list {
		out = append(out, string(p))
	}
	return strings.Join(out, ", ")
}

func oneLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return strings.Map(func(r rune) rune {
		if unicode.In(r, unicode.Cc, unicode.Cf) { // escapes, and what turns the direction of writing
			return -1
		}
		return r
	}, s)
}

func commitLines(list []Commit) []string {
	var out []string
	for _, c := range list {
		out = append(out, strings.TrimSpace(shortCommit(c.SHA)+" "+oneLine(c.Title)+byline(c.Author)))
	}
	return out
}

func byline(author string) string {
	if author == "" {
		return ""
	}
	return " (" + oneLine(author) + ")"
}

func findingLines(list []Finding) []string {
	var out []string
	for _, f := range list {
		s := fmt.Sprintf("%s %s in %s %s", f.ID, f.Severity, f.Package, f.Version)
		if f.FixedIn != "" {
			s += ", fixed in " + f.FixedIn
		}
		out = append(out, s)
	}
	return out
}

func packageLines(list []PackageChange) []string {
	var out []string
	for _, p := range list {
		switch {
		case p.From == "":
			out = append(out, p.Name+" "+p.To)
		case p.To == "":
			out = append(out, p.Name+" "+p.From)
		default:
			out = append(out, p.Name+" "+p.From+" -> "+p.To)
		}
	}
	return out
}
