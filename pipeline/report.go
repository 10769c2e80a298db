package pipeline

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// Severity orders findings.
type Severity int

// From the least to the most severe.
const (
	SeverityUnknown Severity = iota
	SeverityLow
	SeverityMedium
	SeverityHigh
	SeverityCritical
)

var severityNames = [...]string{"unknown", "low", "medium", "high", "critical"}

func (s Severity) String() string {
	if s < 0 || int(s) >= len(severityNames) {
		return "unknown"
	}
	return severityNames[s]
}

// ParseSeverity takes the names in either case.
func ParseSeverity(s string) (Severity, error) {
	for i, n := range severityNames {
		if strings.EqualFold(s, n) {
			return Severity(i), nil
		}
	}
	return 0, fmt.Errorf("severity %q: want one of %s: %w", s, strings.Join(severityNames[:], ", "), ErrInvalid)
}

// MarshalText writes the severity's name.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads the severity's name.
func (s *Severity) UnmarshalText(b []byte) error {
	v, err := ParseSeverity(string(b))
	*s = v
	return err
}

// Report is what a scan found in an index.
type Report struct {
	ScannedAt time.Time             `json:"scannedAt"`
	Scanner   string                `json:"scanner"` // "trivy v0.74.0"
	Database  VulnerabilityDatabase `json:"database"`
	Platforms []PlatformReport      `json:"platforms"`
}

// VulnerabilityDatabase says against what an image was matched.
type VulnerabilityDatabase struct {
	// Reference it was pulled from, and the digest of its manifest.
	Reference string    `json:"reference"`
	Digest    Digest    `json:"digest"`
	UpdatedAt time.Time `json:"updatedAt"`
}

// PlatformReport is what a scan found in one platform's image.
type PlatformReport struct {
	Platform Platform  `json:"platform"`
	Digest   Digest    `json:"digest"`
	OS       string    `json:"os,omitempty"` // "debian 12.11"
	User     string    `json:"user"`         // as the image configuration has it; empty means root
	Packages []Package `json:"packages"`
	Findings []Finding `json:"findings"`
	// Hygiene is nil in reports from before it was looked at.
	Hygiene *Hygiene `json:"hygiene,omitempty"`
	// SBOM is a CycloneDX document in JSON.
	SBOM json.RawMessage `json:"sbom"`
	// Analysis is what the scanner needs to match this image again; empty when it
	// keeps none. It survives in the outcome of the scan, and no answer shows it.
	Analysis Analysis `json:"analysis,omitzero"`
}

// Analysis is what a scanner learnt of one platform's image, kept so that it can
// be matched with another vulnerability database without the image.
type Analysis struct {
	// Data is the scanner's own. One that it does not understand (any more) has
	// the image scanned again.
	Data []byte `json:"data,omitempty"`
	// Keys are hashes of what of a database can matter to the image, eight bytes
	// each: see Changes.
	Keys []byte `json:"keys,omitempty"`
}

// Root reports whether the image's process starts as root.
func (r PlatformReport) Root() bool {
	user, _, _ := strings.Cut(r.User, ":")
	return user == "" || user == "root" || user == "0"
}

// Package is one installed package.
type Package struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Type    string `json:"type"` // "debian", "gobinary", …
	PURL    string `json:"purl,omitempty"`
	// Path of the file that the package was found in; empty for the distribution's own.
	Path     string   `json:"path,omitempty"`
	Licenses []string `json:"licenses,omitempty"`
	// Layer that brought it in: the digest of the uncompressed layer.
	Layer string `json:"layer,omitempty"`
}

// Finding is a known vulnerability in an installed package.
type Finding struct {
	ID       string   `json:"id"` // "CVE-2024-45337"
	Severity Severity `json:"severity"`
	Package  string   `json:"package"`
	Version  string   `json:"version"`
	// FixedIn is empty when there is no fix yet.
	FixedIn string `json:"fixedIn,omitempty"`
	Title   string `json:"title,omitempty"`
	URL     string `json:"url,omitempty"`
	PURL    string `json:"purl,omitempty"`
	Path    string `json:"path,omitempty"`
}

// Count returns how many findings of each severity there are over all
// platforms; the same finding in the same package version counts once.
func (r Report) Count() map[Severity]int {
	counts := map[Severity]int{}
	seen := map[[3]string]bool{}
	for _, p := range r.Platforms {
		for _, f := range p.Findings {
			k := [3]string{f.ID, f.Package, f.Version}
			if !seen[k] {
				seen[k] = true
				counts[f.Severity]++
			}
		}
	}
	return counts
}
