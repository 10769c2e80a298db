//go:build goexperiment.jsonv2

package scanner

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/aquasecurity/trivy/pkg/fanal/analyzer"
	ftypes "github.com/aquasecurity/trivy/pkg/fanal/types"
	"github.com/package-url/packageurl-go"

	"github.com/dray-project/dray/pipeline"
)

const (
	// analysisVersion changes with what an analysis holds or means. One of another
	// version is not read: its image is scanned again.
	analysisVersion = 2
	// maxAnalysis bounds what an analysis unpacks to, in bytes. A package takes
	// about 300.
	maxAnalysis = 256 << 20
)

// errAnalysis says that an analysis cannot be matched again.
var errAnalysis = errors.New("the analysis is not of this scanner's form")

// analysisDocument is what Trivy's detectors look at of an image, and nothing else: the
// operating system, the repositories it is fed from, and each package with where
// it came from. What the detectors do not read (licences, files, layers) stays
// out. TestAnalysisHoldsWhatDetectorsRead keeps the two lists complete.
//
// It is kept as lines of JSON: the document, which says how many packages there
// are, and then each package, in that order. Images share most of their packages,
// and one that was matched before is known by its line: it need not be decoded.
type analysisDocument struct {
	Version      int                 `json:"v"`
	OS           ftypes.OS           `json:"os,omitzero"`
	Repository   *ftypes.Repository  `json:"repo,omitempty"`
	Count        int                 `json:"n,omitempty"` // of Packages
	Applications []analysedArtifacts `json:"apps,omitempty"`

	Packages []packageLine `json:"-"`
}

type analysedArtifacts struct {
	Type     ftypes.LangType `json:"t"`
	FilePath string          `json:"f,omitempty"`
	Count    int             `json:"n"` // of Packages

	Packages []packageLine `json:"-"`
}

// packageLine is an analysedPackage as JSON.
type packageLine []byte

func (l packageLine) decode() (p analysedPackage, err error) {
	if err := json.Unmarshal(l, &p); err != nil {
		return p, fmt.Errorf("%w: %w", errAnalysis, err)
	}
	return p, nil
}

type analysedPackage struct {
	ID              string            `json:"i,omitempty"`
	Name            string            `json:"n,omitempty"`
	PURL            *analysedPURL     `json:"u,omitempty"`
	Version         string            `json:"v,omitempty"`
	Release         string            `json:"r,omitempty"`
	Epoch           int               `json:"e,omitempty"`
	Arch            string            `json:"a,omitempty"`
	Dev             bool              `json:"d,omitempty"`
	SrcName         string            `json:"sn,omitempty"`
	SrcVersion      string            `json:"sv,omitempty"`
	SrcRelease      string            `json:"sr,omitempty"`
	SrcEpoch        int               `json:"se,omitempty"`
	Maintainer      string            `json:"m,omitempty"`
	Modularitylabel string            `json:"ml,omitempty"`
	BuildInfo       *ftypes.BuildInfo `json:"b,omitempty"`
	Class           string            `json:"c,omitempty"`
	Indirect        bool              `json:"in,omitempty"`
	Relationship    int               `json:"rel,omitempty"`
	FilePath        string            `json:"f,omitempty"`
}

// analysedPURL is a package URL in its parts: one that an image's odd names give
// cannot always be parsed again.
type analysedPURL struct {
	Type       string   `json:"t"`
	Namespace  string   `json:"s,omitempty"`
	Name       string   `json:"n"`
	Version    string   `json:"v,omitempty"`
	Qualifiers []string `json:"q,omitempty"` // key, value, key, value
	Subpath    string   `json:"p,omitempty"`
}

// analyse puts into a few kilobytes what matching needs of the detail.
func analyse(detail ftypes.ArtifactDetail) (pipeline.Analysis, error) {
	doc := analysisDocument{Version: analysisVersion, OS: detail.OS, Repository: detail.Repository, Count: len(detail.Packages)}
	apps := slices.Clone(detail.Applications)
	slices.SortStableFunc(apps, func(a, b ftypes.Application) int {
		return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.FilePath, b.FilePath))
	})
	packages := analysedPackages(detail.Packages)
	for _, a := range apps {
		doc.Applications = append(doc.Applications, analysedArtifacts{Type: a.Type, FilePath: a.FilePath, Count: len(a.Packages)})
		packages = append(packages, analysedPackages(a.Packages)...)
	}
	var out bytes.Buffer
	zw := gzip.NewWriter(&out)
	lines := json.NewEncoder(zw)
	err := lines.Encode(doc)
	for _, p := range packages {
		err = errors.Join(err, lines.Encode(p))
	}
	if err = errors.Join(err, zw.Close()); err != nil {
		return pipeline.Analysis{}, fmt.Errorf("keep the analysis: %w", err)
	}
	return pipeline.Analysis{Data: out.Bytes(), Keys: analysisKeys(detail)}, nil
}

func analysedPackages(in []ftypes.Package) []analysedPackage {
	out := make([]analysedPackage, 0, len(in))
	for _, p := range in {
		out = append(out, analysedPackage{
			ID: p.ID, Name: p.Name, PURL: splitPURL(p.Identifier.PURL), Version: p.Version, Release: p.Release, Epoch: p.Epoch, Arch: p.Arch,
			Dev: p.Dev, SrcName: p.SrcName, SrcVersion: p.SrcVersion, SrcRelease: p.SrcRelease, SrcEpoch: p.SrcEpoch, Maintainer: p.Maintainer,
			Modularitylabel: p.Modularitylabel, BuildInfo: p.BuildInfo, Class: string(p.Repository.Class), Indirect: p.Indirect,
			Relationship: int(p.Relationship), FilePath: p.FilePath,
		})
	}
	// Trivy puts some of them together in no order.
	slices.SortStableFunc(out, func(a, b analysedPackage) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Version, b.Version), cmp.Compare(a.Release, b.Release), cmp.Compare(a.Arch, b.Arch),
			cmp.Compare(a.ID, b.ID), cmp.Compare(a.FilePath, b.FilePath))
	})
	return out
}

func splitPURL(p *packageurl.PackageURL) *analysedPURL {
	if p == nil {
		return nil
	}
	out := &analysedPURL{Type: p.Type, Namespace: p.Namespace, Name: p.Name, Version: p.Version, Subpath: p.Subpath}
	for _, q := range p.Qualifiers {
		out.Qualifiers = append(out.Qualifiers, q.Key, q.Value)
	}
	return out
}

// recall is the detail that an analysis was made of, as far as matching goes.
func recall(a pipeline.Analysis) (ftypes.ArtifactDetail, error) {
	doc, err := readAnalysis(a)
	if err != nil {
		return ftypes.ArtifactDetail{}, err
	}
	return doc.detail()
}

func readAnalysis(a pipeline.Analysis) (doc analysisDocument, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w: %w", errAnalysis, err)
		}
	}()
	zr, err := gzip.NewReader(bytes.NewReader(a.Data))
	if err != nil {
		return doc, err
	}
	raw, err := io.ReadAll(io.LimitReader(zr, maxAnalysis+1))
	if err != nil {
		return doc, err
	}
	if len(raw) > maxAnalysis {
		return doc, fmt.Errorf("it unpacks to more than %d bytes", maxAnalysis)
	}
	header, rest, _ := bytes.Cut(raw, []byte("\n"))
	if err := json.Unmarshal(header, &doc); err != nil {
		return doc, err
	}
	if doc.Version != analysisVersion {
		return doc, fmt.Errorf("version %d, this scanner's is %d", doc.Version, analysisVersion)
	}
	take := func(n int) (out []packageLine, err error) {
		for i := range n {
			line, after, ended := bytes.Cut(rest, []byte("\n"))
			if !ended {
				return nil, fmt.Errorf("it ends after %d of %d packages", i, n)
			}
			out, rest = append(out, line), after
		}
		return out, nil
	}
	if doc.Packages, err = take(doc.Count); err != nil {
		return doc, err
	}
	for i := range doc.Applications {
		if doc.Applications[i].Packages, err = take(doc.Applications[i].Count); err != nil {
			return doc, err
		}
	}
	if len(rest) > 0 {
		return doc, fmt.Errorf("%d bytes come after the last package", len(rest))
	}
	return doc, nil
}

func (doc analysisDocument) detail() (detail ftypes.ArtifactDetail, err error) {
	detail = ftypes.ArtifactDetail{OS: doc.OS, Repository: doc.Repository}
	if detail.Packages, err = recalled(doc.Packages); err != nil {
		return detail, err
	}
	for _, app := range doc.Applications {
		packages, err := recalled(app.Packages)
		if err != nil {
			return detail, err
		}
		detail.Applications = append(detail.Applications, ftypes.Application{Type: app.Type, FilePath: app.FilePath, Packages: packages})
	}
	return detail, nil
}

func recalled(in []packageLine) (ftypes.Packages, error) {
	if len(in) == 0 {
		return nil, nil
	}
	out := make(ftypes.Packages, 0, len(in))
	for _, line := range in {
		p, err := line.decode()
		if err != nil {
			return nil, err
		}
		out = append(out, p.join())
	}
	return out, nil
}

func (p analysedPackage) join() ftypes.Package {
	return ftypes.Package{
		ID: p.ID, Name: p.Name, Identifier: ftypes.PkgIdentifier{PURL: p.PURL.join()}, Version: p.Version, Release: p.Release, Epoch: p.Epoch,
		Arch: p.Arch, Dev: p.Dev, SrcName: p.SrcName, SrcVersion: p.SrcVersion, SrcRelease: p.SrcRelease, SrcEpoch: p.SrcEpoch,
		Maintainer: p.Maintainer, Modularitylabel: p.Modularitylabel, BuildInfo: p.BuildInfo,
		Repository: ftypes.PackageRepository{Class: ftypes.RepositoryClass(p.Class)}, Indirect: p.Indirect,
		Relationship: ftypes.Relationship(p.Relationship), FilePath: p.FilePath,
	}
}

func (p *analysedPURL) join() *packageurl.PackageURL {
	if p == nil {
		return nil
	}
	out := &packageurl.PackageURL{Type: p.Type, Namespace: p.Namespace, Name: p.Name, Version: p.Version, Subpath: p.Subpath}
	for i := 0; i+1 < len(p.Qualifiers); i += 2 {
		out.Qualifiers = append(out.Qualifiers, packageurl.Qualifier{Key: p.Qualifiers[i], Value: p.Qualifiers[i+1]})
	}
	return out
}

// applied gives Trivy's matching a detail that is there already, whether it was
// just put together from layers or kept from an earlier scan: both are matched
// by the same code.
type applied struct{ detail ftypes.ArtifactDetail }

// ApplyLayers implements Trivy's applier.Applier.
func (a applied) ApplyLayers(context.Context, string, []string) (ftypes.ArtifactDetail, error) {
	switch {
	case !a.detail.OS.Detected():
		return a.detail, analyzer.ErrUnknownOS
	case a.detail.Packages == nil:
		return a.detail, analyzer.ErrNoPkgsDetected
	}
	return a.detail, nil
}
