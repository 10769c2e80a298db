package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	ggcr "github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"

	"github.com/dray-project/dray/pipeline"
)

// The order of the fields is the order in the index, and part of its digest:
// do not change it.
type indexDocument struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	Manifests     []indexEntry      `json:"manifests"`
	Annotations   map[string]string `json:"annotations,omitempty"`
}

type indexEntry struct {
	MediaType string          `json:"mediaType"`
	Digest    pipeline.Digest `json:"digest"`
	Size      int64           `json:"size"`
	Platform  indexPlatform   `json:"platform"`
}

type indexPlatform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	Variant      string `json:"variant,omitempty"`
}

// Assemble implements pipeline.Registry. Platforms are listed in the order of
// their names. Every platform's manifest must be in the repository, with the
// size and media type that are given.
func (r *Registry) Assemble(ctx context.Context, repo string, platforms []pipeline.PlatformImage, annotations map[string]string) (pipeline.Image, error) {
	p, err := r.open(repo, ggcr.PushScope)
	if err != nil {
		return pipeline.Image{}, err
	}
	body, err := indexBytes(platforms, annotations)
	if err != nil {
		return pipeline.Image{}, fmt.Errorf("assemble an index in %s: %w", repo, err)
	}
	if int64(len(body)) > r.limits.ManifestBytes {
		return pipeline.Image{}, refuse("assemble an index in %s: it would have %d bytes, more than the limit of %d", repo, len(body), r.limits.ManifestBytes)
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(r.parallel)
	for _, child := range platforms {
		g.Go(func() error {
			got, err := p.get(gctx, string(child.Digest))
			if err == nil {
				_, err = r.limits.parse(got, descriptor{MediaType: child.MediaType, Digest: child.Digest, Size: child.Size})
			}
			if err != nil {
				return fmt.Errorf("assemble an index in %s: platform %s: %w", repo, child.Platform, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return pipeline.Image{}, err
	}
	img := pipeline.Image{Repository: repo, Digest: hash(body)}
	if _, err := p.put(ctx, string(img.Digest), string(types.OCIImageIndex), body); err != nil {
		return pipeline.Image{}, err
	}
	if err := p.confirm(ctx, string(img.Digest), img.Digest); err != nil {
		return pipeline.Image{}, err
	}
	return img, nil
}

// indexBytes is a pure function: the same platforms in any order and the same
// annotations give the same bytes.
func indexBytes(platforms []pipeline.PlatformImage, annotations map[string]string) ([]byte, error) {
	if len(platforms) == 0 {
		return nil, refuse("no platform was built")
	}
	sorted := slices.Clone(platforms)
	slices.SortFunc(sorted, func(a, b pipeline.PlatformImage) int {
		if a.Platform < b.Platform {
			return -1
		}
		if a.Platform > b.Platform {
			return 1
		}
		return 0
	})
	doc := indexDocument{SchemaVersion: 2, MediaType: string(types.OCIImageIndex), Annotations: annotations}
	for i, p := range sorted {
		if _, err := pipeline.ParsePlatform(string(p.Platform)); err != nil {
			return nil, pipeline.Permanent(err)
		}
		if i > 0 && sorted[i-1].Platform == p.Platform {
			return nil, refuse("platform %s is there twice", p.Platform)
		}
		if _, err := pipeline.ParseDigest(string(p.Digest)); err != nil {
			return nil, pipeline.Permanent(fmt.Errorf("platform %s: %w", p.Platform, err))
		}
		if !types.MediaType(p.MediaType).IsImage() {
			return nil, refuse("platform %s: %q is not the media type of an image manifest", p.Platform, p.MediaType)
		}
		if p.Size <= 0 {
			return nil, refuse("platform %s: manifest of %d bytes", p.Platform, p.Size)
		}
		os, arch, variant := p.Platform.Parts()
		doc.Manifests = append(doc.Manifests, indexEntry{
			MediaType: p.MediaType, Digest: p.Digest, Size: p.Size,
			Platform: indexPlatform{Architecture: arch, OS: os, Variant: variant},
		})
	}
	return json.Marshal(doc)
}
