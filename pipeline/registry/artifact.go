package registry

import (
	"context"
	"encoding/json"
	"fmt"

	ggcr "github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/dray-project/dray/pipeline"
)

// The order of the fields is part of an artefact's digest: do not change it.
type artifactDocument struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	ArtifactType  string       `json:"artifactType"`
	Config        descriptor   `json:"config"`
	Layers        []descriptor `json:"layers"`
}

const mediaEmpty = "application/vnd.oci.empty.v1+json"

// PushArtifact puts body under a tag, as the one layer of an artefact of that
// media type (OCI image specification 1.1, "Guidelines for Artifact Usage"), and
// reads the tag back. The same again changes nothing.
func (r *Registry) PushArtifact(ctx context.Context, repository, tag, mediaType string, body []byte) error {
	p, err := r.openTag(repository, tag, ggcr.PushScope)
	if err != nil {
		return err
	}
	empty := []byte("{}")
	doc := artifactDocument{
		SchemaVersion: 2, MediaType: string(types.OCIManifestSchema1), ArtifactType: mediaType,
		Config: descriptor{MediaType: mediaEmpty, Digest: hash(empty), Size: int64(len(empty))},
		Layers: []descriptor{{MediaType: mediaType, Digest: hash(body), Size: int64(len(body))}},
	}
	raw, err := json.Marshal(doc)
	if err != nil {
		return fmt.Errorf("artefact %s:%s: %w", p, tag, err)
	}
	if err := p.push(ctx, doc.Config, empty); err != nil {
		return err
	}
	if err := p.push(ctx, doc.Layers[0], body); err != nil {
		return err
	}
	if _, err := p.put(ctx, tag, doc.MediaType, raw); err != nil {
		return err
	}
	return p.confirm(ctx, tag, hash(raw))
}

// PullArtifact returns what PushArtifact has put under a tag. A tag that is not
// there is pipeline.ErrNotFound; one that names something else is
// pipeline.ErrInvalid.
func (r *Registry) PullArtifact(ctx context.Context, repository, tag, mediaType string) ([]byte, error) {
	p, err := r.openTag(repository, tag, ggcr.PullScope)
	if err != nil {
		return nil, err
	}
	got, err := p.get(ctx, tag)
	if err != nil {
		return nil, err
	}
	m, err := r.limits.parse(got, descriptor{})
	if err != nil {
		return nil, fmt.Errorf("artefact %s:%s: %w", p, tag, err)
	}
	if m.artifactType != mediaType || len(m.layers) != 1 || m.layers[0].MediaType != mediaType {
		return nil, fmt.Errorf("artefact %s:%s is of type %q, want %s: %w", p, tag, clean(m.artifactType, 100), mediaType, pipeline.ErrInvalid)
	}
	return p.small(ctx, m.layers[0])
}
