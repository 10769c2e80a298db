package pipeline

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// reportFacts fills what a scan and the source say. Nothing is suppressed yet.
func reportFacts(f *Facts, built Built, r Report) {
	f.Image = ImageFacts{Repository: built.Image.Repository, Digest: built.Image.Digest, Commit: built.Source.Commit,
		Platforms: []Platform{}, Versions: notNil(f.Image.Versions), BuiltAt: built.FinishedAt}
	for _, p := range built.Platforms {
		f.Image.Platforms = append(f.Image.Platforms, p.Platform)
	}
	f.Scan = ScanFacts{Scanner: r.Scanner, At: r.ScannedAt, Database: r.Database.Digest, DatabaseUpdatedAt: r.Database.UpdatedAt, Platforms: []Platform{}}
	for _, p := range r.Platforms {
		f.Scan.Platforms = append(f.Scan.Platforms, p.Platform)
	}
	f.Findings, f.Licenses, f.Hygiene = findingFacts(r), licenseFacts(r), hygieneFacts(built, r)
}

func findingFacts(r Report) []FindingFact {
	out := []FindingFact{}
	at := map[[3]string]int{}
	for _, p := range r.Platforms {
		for _, f := range p.Findings {
			k := [3]string{f.ID, f.Package, f.Version}
			i, ok := at[k]
			if !ok {
				i = len(out)
				at[k] = i
				out = append(out, FindingFact{Finding: f, Fixable: f.FixedIn != ""})
			}
			if !slices.Contains(out[i].Platforms, p.Platform) {
				out[i].Platforms = append(out[i].Platforms, p.Platform)
			}
		}
	}
	slices.SortStableFunc(out, func(a, b FindingFact) int {
		return cmp.Or(cmp.Compare(b.Severity, a.Severity), cmp.Compare(a.ID, b.ID), cmp.Compare(a.Package, b.Package), cmp.Compare(a.Version, b.Version))
	})
	return out
}

func licenseFacts(r Report) []LicenseFact {
	packages := map[string][]string{}
	for _, p := range r.Platforms {
		for _, pkg := range p.Packages {
			for _, l := range pkg.Licenses {
				if !slices.Contains(packages[l], pkg.Name) {
					packages[l] = append(packages[l], pkg.Name)
				}
			}
		}
	}
	out := []LicenseFact{}
	for l, names := range packages {
		slices.Sort(names)
		out = append(out, LicenseFact{License: l, Packages: names})
	}
	slices.SortFunc(out, func(a, b LicenseFact) int { return cmp.Compare(a.License, b.License) })
	return out
}

// hygieneFacts take the worst of each over all platforms.
func hygieneFacts(built Built, r Report) HygieneFacts {
	h := HygieneFacts{Known: len(r.Platforms) > 0, Healthcheck: true, BasesPinned: true,
		Users: []string{}, Shells: []string{}, PackageManagers: []string{}, Setuid: []string{}, Secrets: []ConfigSecret{},
		Bases: notNil(built.Source.Bases), Lint: notNil(built.Source.Lint)}
	for _, b := range built.Source.Bases {
		h.BasesPinned = h.BasesPinned && b.Pinned
	}
	union := func(into *[]string, more []string) {
		*into = append(*into, more...)
		slices.Sort(*into)
		*into = slices.Compact(*into)
	}
	for _, p := range r.Platforms {
		user := p.User
		if user == "" {
			user = "not set"
		}
		h.Users = append(h.Users, fmt.Sprintf("%s: %s", p.Platform, user))
		h.Root = h.Root || p.Root()
		if p.Hygiene == nil {
			h.Known, h.Healthcheck = false, false
			continue
		}
		union(&h.Shells, p.Hygiene.Shells)
		union(&h.PackageManagers, p.Hygiene.PackageManagers)
		union(&h.Setuid, p.Hygiene.Setuid)
		for _, s := range p.Hygiene.Secrets {
			if !slices.Contains(h.Secrets, s) {
				h.Secrets = append(h.Secrets, s)
			}
		}
		h.Healthcheck = h.Healthcheck && p.Hygiene.Healthcheck
		h.Size, h.Compressed, h.Wasted = max(h.Size, p.Hygiene.Size), max(h.Compressed, p.Hygiene.Compressed), max(h.Wasted, p.Hygiene.Wasted)
	}
	return h
}

// suppress marks the findings that an exception or a VEX statement speaks for,
// and notes what was offered and does not count.
func (p *Pipeline) suppress(f *Facts, project Project, built Built, st Standing) {
	var statements []VEXStatement
	for _, doc := range st.VEX {
		read, err := p.VEX.Read(doc, project.TrustedVEXKeys)
		if err != nil {
			f.Ignored = append(f.Ignored, fmt.Sprintf("VEX document %s: %v", doc.ID, err))
			continue
		}
		for _, v := range read {
			if v.Counts() {
				statements = append(statements, v)
				continue
			}
			f.Ignored = append(f.Ignored, fmt.Sprintf("VEX document %s: %s of %s has no justification", doc.ID, v.Status, strings.Join(v.Vulnerability, ", ")))
		}
	}
	for i := range f.Findings {
		finding := &f.Findings[i]
		s := exceptionFor(finding.Finding, f, built.Image.Digest, st)
		if s == nil {
			s = p.vexFor(*finding, built, statements)
		}
		finding.Suppressed, finding.Suppression = s != nil, s
	}
}

func exceptionFor(finding Finding, f *Facts, image Digest, st Standing) *Suppression {
	for _, e := range st.Exceptions {
		if !e.Covers(finding, f.Environment, image) {
			continue
		}
		if !e.ExpiresAt.After(st.Now) {
			note := fmt.Sprintf("exception %s for %s expired at %s", e.ID, e.Finding, e.ExpiresAt.UTC().Format(time.RFC3339))
			if !slices.Contains(f.Ignored, note) {
				f.Ignored = append(f.Ignored, note)
			}
			continue
		}
		at := e.ExpiresAt
		return &Suppression{By: "exception", ID: e.ID, Author: e.Author, Reason: e.Reason, ExpiresAt: &at}
	}
	return nil
}

// vexFor is the statement that speaks for the finding on every platform that
// has it: on each, the last word of all that is said of it.
func (p *Pipeline) vexFor(finding FindingFact, built Built, statements []VEXStatement) *Suppression {
	if len(statements) == 0 || len(finding.Platforms) == 0 {
		return nil
	}
	var last *VEXStatement
	for _, platform := range finding.Platforms {
		here := slices.DeleteFunc(slices.Clone(built.Platforms), func(i PlatformImage) bool { return i.Platform != platform })
		last = nil
		for i, s := range statements {
			if p.VEX.Matches(s, finding.Finding, built.Image, here) && (last == nil || s.Overrides(*last)) {
				last = &statements[i]
			}
		}
		if last == nil || !last.Suppresses() {
			return nil
		}
	}
	reason := last.Status
	if last.Justification != "" {
		reason += ": " + last.Justification
	}
	return &Suppression{By: "vex", ID: last.Document, Author: last.Author, Reason: reason}
}

// signerFacts are the keys by which every one of the images is signed.
func signerFacts(verified []Verified) []SignerFact {
	out := []SignerFact{}
	if len(verified) == 0 {
		return out
	}
	for _, s := range verified[0].Signatures {
		everywhere := !slices.ContainsFunc(verified, func(v Verified) bool {
			return !slices.ContainsFunc(v.Signatures, func(o Signature) bool { return o.KeyID == s.KeyID })
		})
		if f := (SignerFact{KeyID: s.KeyID}); everywhere && !slices.Contains(out, f) {
			out = append(out, f)
		}
	}
	return out
}

// provenanceFact reads the provenance as it was recorded. The admission has
// checked that it is the one that verified, by this builder and this source.
func provenanceFact(raw json.RawMessage, verified bool) ProvenanceFact {
	var p slsaProvenance
	if !verified || json.Unmarshal(raw, &p) != nil {
		return ProvenanceFact{}
	}
	f := ProvenanceFact{Verified: true, Builder: p.RunDetails.Builder.ID,
		Source: p.BuildDefinition.ExternalParameters.Source.URI, Ref: p.BuildDefinition.ExternalParameters.Source.Ref}
	f.Branch, _ = strings.CutPrefix(f.Ref, "refs/heads/")
	if f.Branch == f.Ref {
		f.Branch = ""
	}
	if strings.HasPrefix(f.Ref, "refs/tags/") {
		f.Tag = strings.TrimPrefix(f.Ref, "refs/tags/")
	}
	return f
}
