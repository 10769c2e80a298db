//go:build goexperiment.jsonv2

package scanner

import (
	"cmp"
	"slices"
	"strings"

	ftypes "github.com/aquasecurity/trivy/pkg/fanal/types"
	"github.com/aquasecurity/trivy/pkg/licensing"
	"github.com/aquasecurity/trivy/pkg/scan/utils"
	"github.com/aquasecurity/trivy/pkg/types"

	"github.com/dray-project/dray/pipeline"
)

// platformReport says in Dray's words what Trivy found, in a fixed order and
// each thing once.
func platformReport(r types.Report) pipeline.PlatformReport {
	out := pipeline.PlatformReport{Packages: []pipeline.Package{}, Findings: findings(r.Results)}
	if os := r.Metadata.OS; os != nil {
		out.OS = strings.TrimSpace(string(os.Family) + " " + os.Name)
	}
	for _, result := range r.Results {
		for _, p := range result.Packages {
			out.Packages = append(out.Packages, pipeline.Package{
				Name:     p.Name,
				Version:  utils.FormatVersion(p),
				Type:     string(result.Type),
				PURL:     purl(p.Identifier),
				Path:     packagePath(result, p.FilePath),
				Licenses: licenses(p.Licenses),
				Layer:    p.Layer.DiffID,
			})
		}
	}
	slices.SortStableFunc(out.Packages, func(a, b pipeline.Package) int {
		return cmp.Or(cmp.Compare(a.Type, b.Type), samePackage(a, b), cmp.Compare(a.Layer, b.Layer))
	})
	out.Packages = slices.CompactFunc(out.Packages, func(a, b pipeline.Package) bool {
		return a.Type == b.Type && samePackage(a, b) == 0
	})
	return out
}

// findings are in a fixed order, and each of them is there once.
func findings(results types.Results) []pipeline.Finding {
	out := []pipeline.Finding{}
	for _, result := range results {
		for _, v := range result.Vulnerabilities {
			out = append(out, finding(result, v))
		}
	}
	return inOrder(out)
}

func finding(result types.Result, v types.DetectedVulnerability) pipeline.Finding {
	// Trivy's names are these four; what it does not know stays unknown.
	//lint:ignore SA1019 it is the severity that Trivy chose among the sources; VendorSeverity would have us choose again
	severity, err := pipeline.ParseSeverity(v.Severity)
	if err != nil {
		severity = pipeline.SeverityUnknown
	}
	return pipeline.Finding{
		ID:       v.VulnerabilityID,
		Severity: severity,
		Package:  v.PkgName,
		Version:  v.InstalledVersion,
		FixedIn:  v.FixedVersion,
		Title:    v.Title,
		URL:      v.PrimaryURL,
		PURL:     purl(v.PkgIdentifier),
		Path:     packagePath(result, v.PkgPath),
	}
}

// inOrder sorts findings and leaves each once.
func inOrder(out []pipeline.Finding) []pipeline.Finding {
	slices.SortStableFunc(out, func(a, b pipeline.Finding) int {
		return cmp.Or(cmp.Compare(b.Severity, a.Severity), sameFinding(a, b), cmp.Compare(a.FixedIn, b.FixedIn))
	})
	return slices.CompactFunc(out, func(a, b pipeline.Finding) bool {
		return sameFinding(a, b) == 0
	})
}

func samePackage(a, b pipeline.Package) int {
	return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Version, b.Version),
		cmp.Compare(a.Path, b.Path), cmp.Compare(a.PURL, b.PURL))
}

func sameFinding(a, b pipeline.Finding) int {
	return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.Package, b.Package), cmp.Compare(a.Version, b.Version),
		cmp.Compare(a.Path, b.Path), cmp.Compare(a.PURL, b.PURL))
}

func purl(id ftypes.PkgIdentifier) string {
	if id.PURL == nil {
		return ""
	}
	return id.PURL.String()
}

// packagePath is that of the file that a package was found in: its own where
// Trivy knows it, else that of the binary or archive whose packages are the result.
func packagePath(r types.Result, own string) string {
	switch {
	case own != "":
		return own
	case r.Class == types.ClassLangPkg && !slices.Contains(ftypes.AggregatingTypes, r.Type):
		return r.Target
	}
	return ""
}

// licenses by name. Some packages carry a whole text instead: its first words
// have to do.
func licenses(in []string) []string {
	const longest = 80
	var out []string
	for _, l := range in {
		if text, ok := strings.CutPrefix(l, licensing.LicenseTextPrefix); ok {
			l = strings.Join(strings.Fields(text), " ")
		}
		if r := []rune(l); len(r) > longest {
			l = string(r[:longest]) + "…"
		}
		if l != "" {
			out = append(out, l)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
