//go:build goexperiment.jsonv2

package scanner

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"

	dbtypes "github.com/aquasecurity/trivy-db/pkg/types"
	"github.com/aquasecurity/trivy/pkg/fanal/analyzer"
	"github.com/aquasecurity/trivy/pkg/fanal/applier"
	ftypes "github.com/aquasecurity/trivy/pkg/fanal/types"
	"github.com/aquasecurity/trivy/pkg/scan/langpkg"
	"github.com/aquasecurity/trivy/pkg/scan/local"
	"github.com/aquasecurity/trivy/pkg/scan/ospkg"
	"github.com/aquasecurity/trivy/pkg/types"
	"github.com/aquasecurity/trivy/pkg/vulnerability"

	"github.com/dray-project/dray/pipeline"
)

var _ pipeline.Rematcher = (*Scanner)(nil)

// matcher is Trivy's matching without its layer cache.
type matcher struct {
	os    ospkg.Scanner
	lang  langpkg.Scanner
	vulns vulnerability.Client
}

func (m matcher) of(detail ftypes.ArtifactDetail) local.Service {
	return local.NewService(applied{detail}, m.os, m.lang, m.vulns)
}

// matching is how every image is matched, the first time and again.
func matching() types.ScanOptions {
	return types.ScanOptions{
		PkgTypes:         types.PkgTypes,
		PkgRelationships: ftypes.Relationships,
		Scanners:         types.Scanners{types.SBOMScanner, types.VulnerabilityScanner},
		// The source's own rating, else the national database's, else any.
		VulnSeveritySources: []dbtypes.SourceID{"auto"},
	}
}

// detail puts the layers of an image together, once for everything.
func detail(ctx context.Context, a applier.Applier, in inspection) (ftypes.ArtifactDetail, error) {
	d, err := a.ApplyLayers(ctx, in.ref.ID, in.ref.BlobIDs)
	if errors.Is(err, analyzer.ErrUnknownOS) || errors.Is(err, analyzer.ErrNoPkgsDetected) {
		err = nil // what is matched says so again
	}
	if err != nil {
		return d, fmt.Errorf("put the layers together: %w", err)
	}
	return d, nil
}

// Rematch matches what earlier scans kept with the database that is in force,
// which it names, on as many processors as there are. No registry is asked but
// for the database. The findings are those that Scan would find, in the same
// order.
func (s *Scanner) Rematch(ctx context.Context, analyses []pipeline.Analysis) (pipeline.VulnerabilityDatabase, []pipeline.Rematched, error) {
	info, release, err := s.db.acquire(ctx)
	if err != nil {
		return info, nil, fmt.Errorf("match again: %w", err)
	}
	defer release()
	s.known.begin(info.Digest)
	defer s.known.end()
	out := make([]pipeline.Rematched, len(analyses))
	if err := s.together(ctx, analyses, out); err != nil {
		return info, nil, fmt.Errorf("match again with %s: %w", info.Digest, err)
	}
	return info, out, nil
}

// matchAlone matches one image as a whole.
func (s *Scanner) matchAlone(ctx context.Context, d ftypes.ArtifactDetail) (_ []pipeline.Finding, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer recovered(&err, s.cfg.Log)
	res, err := s.matcher.of(d).Scan(ctx, "", "", nil, matching())
	if err != nil {
		return nil, err
	}
	return findings(res.Results), nil
}
