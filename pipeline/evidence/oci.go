package evidence

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/dray-project/dray/pipeline"
)

// descriptor and ociManifest are what is looked at of the OCI image
// specification's documents.
type descriptor struct {
	MediaType    string            `json:"mediaType"`
	Digest       pipeline.Digest   `json:"digest"`
	Size         int64             `json:"size"`
	ArtifactType string            `json:"artifactType,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
	Platform     *platform         `json:"platform,omitempty"`
}

type platform struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Variant      string `json:"variant,omitempty"`
}

func (p *platform) String() string {
	if p == nil {
		return ""
	}
	return strings.TrimSuffix(p.OS+"/"+p.Architecture+"/"+p.Variant, "/")
}

type ociManifest struct {
	MediaType    string            `json:"mediaType"`
	ArtifactType string            `json:"artifactType"`
	Config       *descriptor       `json:"config"`
	Layers       []descriptor      `json:"layers"`
	Manifests    []descriptor      `json:"manifests"`
	Subject      *descriptor       `json:"subject"`
	Annotations  map[string]string `json:"annotations"`
}

func parseManifest(raw []byte) (m ociManifest, err error) {
	if err := uniqueNames(raw); err != nil {
		return m, err
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return m, fmt.Errorf("not a manifest: %w", err)
	}
	if len(m.Manifests) > 0 && (len(m.Layers) > 0 || m.Config != nil) {
		return m, errors.New("it claims to be an image and an index at once")
	}
	return m, nil
}

// blobs are the config and the layers.
func (m ociManifest) blobs() []descriptor {
	if m.Config == nil {
		return m.Layers
	}
	return append([]descriptor{*m.Config}, m.Layers...)
}

// Media types of what signs and attests.
const (
	bundleTypePrefix  = "application/vnd.dev.sigstore.bundle"
	envelopeType      = "application/vnd.dsse.envelope.v1+json"
	simpleSigningType = "application/vnd.dev.cosign.simplesigning.v1+json"
	emptyType         = "application/vnd.oci.empty.v1+json"
)

// keeps reports whether a blob belongs into a bundle: configs, signatures and
// attestations, and not the image's content or whatever else was attached.
func (m ociManifest) keeps(d descriptor) bool {
	if m.Config != nil && d.Digest == m.Config.Digest {
		return true
	}
	return strings.HasPrefix(d.MediaType, bundleTypePrefix) || d.MediaType == envelopeType || d.MediaType == simpleSigningType || d.MediaType == emptyType
}
