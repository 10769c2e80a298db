//go:build goexperiment.jsonv2

package scanner

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	"github.com/aquasecurity/trivy/pkg/cache"
	"github.com/aquasecurity/trivy/pkg/fanal/analyzer"
	"github.com/aquasecurity/trivy/pkg/fanal/artifact"
	artimage "github.com/aquasecurity/trivy/pkg/fanal/artifact/image"
	"github.com/aquasecurity/trivy/pkg/scan"

	"github.com/dray-project/dray/pipeline"
)

// inspection is what was found in one platform's image, before matching.
type inspection struct {
	platform pipeline.PlatformImage
	image    *remoteImage
	ref      artifact.Reference
	hygiene  *pipeline.Hygiene
}

// inspected gives Trivy's scan service an inspection that was done before, so
// that the database is held for the matching only.
type inspected struct{ ref artifact.Reference }

func (i inspected) Inspect(context.Context) (artifact.Reference, error) { return i.ref, nil }
func (inspected) Clean(artifact.Reference) error                        { return nil }

// inspector is Trivy's analysis of one image at a time. Making one writes to
// analyzers that all of them share, and would race with those that run: New
// makes all of them, before the first scan.
type inspector struct {
	// The image that is being read. Trivy sees the inspector as the image.
	*remoteImage
	art artifact.Artifact
}

func newInspectors(c Config, layers cache.FSCache, kept contents) (chan *inspector, error) {
	inspectors := make(chan *inspector, c.Parallel)
	for range c.Parallel {
		in := &inspector{}
		var err error
		if in.art, err = artimage.NewArtifact(in, layerCache{layers, kept, in}, analysis(c)); err != nil {
			return nil, fmt.Errorf("scanner: prepare the analysis of images: %w", err)
		}
		inspectors <- in
	}
	return inspectors, nil
}

// inspect reads the layers that were not seen before.
func (s *Scanner) inspect(ctx context.Context, repository string, p pipeline.PlatformImage) (_ inspection, err error) {
	var in *inspector
	select {
	case in = <-s.inspectors:
	case <-ctx.Done():
		return inspection{}, ctx.Err()
	}
	if in == nil {
		return inspection{}, errClosed
	}
	defer func() {
		in.remoteImage = nil
		s.inspectors <- in
	}()
	start := time.Now()
	image := pipeline.Image{Repository: repository, Digest: p.Digest}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	defer func() {
		if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
			err = fmt.Errorf("not read within %s (the scanner's timeout per image): %w", s.cfg.Timeout, err)
		}
		if err != nil {
			err = fmt.Errorf("platform %s: read %s: %w", p.Platform, image, err)
		}
	}()
	defer recovered(&err, s.cfg.Log)

	remote, err := s.open(ctx, image)
	if err != nil {
		return inspection{}, err
	}
	in.remoteImage = remote
	ref, err := in.art.Inspect(ctx)
	if err != nil {
		// What went wrong in a layer says more than what Trivy made of it.
		if cause := remote.failure(); cause != nil {
			return inspection{}, cause
		}
		return inspection{}, err
	}
	hygiene, err := remote.hygiene(ctx, s.contents)
	if err != nil {
		return inspection{}, err
	}
	s.cfg.Log.DebugContext(ctx, "inspected an image", "image", image.String(), "platform", string(p.Platform),
		"layers", len(ref.BlobIDs), "took", time.Since(start))
	return inspection{platform: p, image: remote, ref: ref, hygiene: hygiene}, nil
}

// match finds the vulnerabilities. The caller holds the database.
func (s *Scanner) match(ctx context.Context, in inspection) (_ pipeline.PlatformReport, err error) {
	// A database file that is cut off under our feet faults when it is read.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer recovered(&err, s.cfg.Log)
	d, err := detail(ctx, s.applier, in)
	if err != nil {
		return pipeline.PlatformReport{}, err
	}
	// Before it is matched: Trivy's matching may change what it is given.
	kept, err := analyse(d)
	if err != nil {
		return pipeline.PlatformReport{}, err
	}
	report, err := scan.NewService(s.matcher.of(d), inspected{in.ref}).ScanArtifact(ctx, matching())
	if err != nil {
		return pipeline.PlatformReport{}, err
	}
	in.image.ownLayers(report)
	sbom, err := cycloneDX(ctx, report, in.platform.Digest, in.image.created())
	if err != nil {
		return pipeline.PlatformReport{}, fmt.Errorf("write the SBOM: %w", err)
	}
	out := platformReport(report)
	out.Platform, out.Digest, out.SBOM = in.platform.Platform, in.platform.Digest, sbom
	out.User = in.ref.ImageMetadata.ConfigFile.Config.User
	out.Hygiene, out.Analysis = in.hygiene, kept
	return out, nil
}

// analysis is what is looked for, and how. It is part of the layer cache's keys.
func analysis(c Config) artifact.Option {
	disabled := slices.Concat(
		// What is in an image is installed; a lock file only says what was meant.
		analyzer.TypeLockfiles,
		analyzer.TypeConfigFiles,
		[]analyzer.Type{
			analyzer.TypeApkCommand, // asks the network
			analyzer.TypeExecutable, // asks the network
			analyzer.TypeHistoryDockerfile,
			analyzer.TypeImageConfigSecret,
			analyzer.TypeLicenseFile,
			analyzer.TypeRpmArchive,
			analyzer.TypeSecret,
		})
	return artifact.Option{
		DisabledAnalyzers: disabled,
		Parallel:          c.Parallel,
		NoProgress:        true,
		Offline:           true,
		// CycloneDX wants the files' digests.
		FileChecksum: true,
	}
}
