// Package vulndb builds a small vulnerability database from advisories that
// this repository holds as facts, in the layout that Trivy reads, and pushes
// it as an OCI artefact: for the demo, for tests, and as an example of how a
// site without internet access feeds the scanner.
//
// It is no substitute for the public database: it knows a few dozen
// vulnerabilities out of several hundred thousand.
package vulndb

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/aquasecurity/trivy-db/pkg/types"
)

// Advisory is one vulnerability in one package.
type Advisory struct {
	// ID is the vulnerability's: "CVE-2024-45337".
	ID string `json:"id"`
	// Ecosystem is "go", "npm", "pip", "maven", "rubygems", "cargo", or a release of
	// a distribution: "debian 12", "alpine 3.20".
	Ecosystem string `json:"ecosystem"`
	// Package as the ecosystem names it; of a distribution, the source package.
	Package string `json:"package"`
	// Vulnerable are version ranges ("<0.31.0", ">=2.4.0, <2.12.2"), of which
	// one must hold. Language ecosystems only.
	Vulnerable []string `json:"vulnerable,omitempty"`
	// Fixed are the versions that mend it, one per range; empty when none does.
	Fixed []string `json:"fixed,omitempty"`
	// Severity is low, medium, high or critical.
	Severity string `json:"severity"`
	Title    string `json:"title"`
	URL      string `json:"url"`
}

//go:embed advisories.json
var defaultAdvisories []byte

// Default returns the advisories that this repository holds.
func Default() ([]Advisory, error) {
	var advisories []Advisory
	if err := json.Unmarshal(defaultAdvisories, &advisories); err != nil {
		return nil, fmt.Errorf("read the embedded advisories: %w", err)
	}
	return advisories, nil
}

// bucket is where the database keeps an ecosystem, and the source that the
// scanner will name and whose severity it prefers.
type bucket struct {
	name   string
	source types.DataSource
}

func (a Advisory) bucket() (bucket, error) {
	if release, ok := strings.CutPrefix(a.Ecosystem, "debian "); ok && release != "" {
		return bucket{a.Ecosystem, types.DataSource{
			ID: "debian", Name: "Debian Security Tracker", URL: "https://security-tracker.debian.org/tracker/",
		}}, nil
	}
	if release, ok := strings.CutPrefix(a.Ecosystem, "alpine "); ok && release != "" {
		return bucket{a.Ecosystem, types.DataSource{ID: "alpine", Name: "Alpine Secdb", URL: "https://secdb.alpinelinux.org/"}}, nil
	}
	github, ok := map[string]string{
		"go": "Go", "npm": "npm", "pip": "pip", "maven": "Maven", "rubygems": "RubyGems", "cargo": "Rust",
	}[a.Ecosystem]
	if !ok {
		return bucket{}, fmt.Errorf("ecosystem %q: want go, npm, pip, maven, rubygems, cargo, \"debian <release>\" or \"alpine <release>\"", a.Ecosystem)
	}
	name := "GitHub Security Advisory " + github
	return bucket{a.Ecosystem + "::" + name, types.DataSource{
		ID: "ghsa", Name: name, URL: "https://github.com/advisories?query=type%3Areviewed+ecosystem%3A" + strings.ToLower(github),
	}}, nil
}

func (a Advisory) distribution() bool {
	return strings.HasPrefix(a.Ecosystem, "debian ") || strings.HasPrefix(a.Ecosystem, "alpine ")
}

func (a Advisory) severity() (types.Severity, error) {
	s, err := types.NewSeverity(strings.ToUpper(a.Severity))
	if err != nil || s == types.SeverityUnknown {
		return 0, fmt.Errorf("severity %q: want low, medium, high or critical", a.Severity)
	}
	return s, nil
}

// entry is the advisory as the database holds it.
func (a Advisory) entry() *types.Advisory {
	if !a.distribution() {
		return &types.Advisory{VulnerableVersions: a.Vulnerable, PatchedVersions: a.Fixed}
	}
	if len(a.Fixed) == 0 {
		return &types.Advisory{Status: types.StatusAffected}
	}
	return &types.Advisory{FixedVersion: a.Fixed[0]}
}

func (a Advisory) validate() error {
	switch {
	case a.ID == "":
		return errors.New("an id is required")
	case a.Package == "":
		return errors.New("a package is required")
	case a.distribution() && len(a.Vulnerable) > 0:
		return errors.New("a distribution's advisory has a fixed version, no version ranges")
	case a.distribution() && len(a.Fixed) > 1:
		return errors.New("a distribution's advisory has one fixed version")
	case !a.distribution() && len(a.Vulnerable) == 0:
		return errors.New("at least one vulnerable version range is required")
	}
	if _, err := a.bucket(); err != nil {
		return err
	}
	_, err := a.severity()
	return err
}
