package signer_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/signer/internal/signertest"
	"github.com/dray-project/dray/signer/verify"
)

// attacker may write anything to the registry, and has no key.
type attacker struct {
	t   *testing.T
	reg *signertest.Registry
}

type rawManifest []byte

func (m rawManifest) RawManifest() ([]byte, error)      { return m, nil }
func (rawManifest) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }

// blob pushes content and describes it.
func (a attacker) blob(repository string, content []byte, mediaType types.MediaType) v1.Descriptor {
	a.t.Helper()
	layer := static.NewLayer(content, mediaType)
	if err := remote.WriteLayer(signertest.Repo(a.t, repository), layer); err != nil {
		a.t.Fatal(err)
	}
	h, _ := layer.Digest()
	return v1.Descriptor{MediaType: mediaType, Digest: h, Size: int64(len(content))}
}

// manifest with those layers; tag is empty to push by digest.
func (a attacker) manifest(repository, tag string, m v1.Manifest) {
	a.t.Helper()
	m.SchemaVersion, m.MediaType = 2, types.OCIManifestSchema1
	if m.Config.Digest.Hex == "" {
		m.Config = a.blob(repository, []byte("{}"), "application/vnd.oci.empty.v1+json")
	}
	raw, err := json.Marshal(m)
	if err != nil {
		a.t.Fatal(err)
	}
	repo := signertest.Repo(a.t, repository)
	if tag != "" {
		err = remote.Put(repo.Tag(tag), rawManifest(raw))
	} else {
		h, _, _ := v1.SHA256(bytes.NewReader(raw))
		err = remote.Put(repo.Digest(h.String()), rawManifest(raw))
	}
	if err != nil {
		a.t.Fatal(err)
	}
}

func (a attacker) subject(img pipeline.Image) *v1.Descriptor {
	a.t.Helper()
	d, err := remote.Head(signertest.Repo(a.t, img.Repository).Digest(string(img.Digest)))
	if err != nil {
		a.t.Fatal(err)
	}
	return d
}

// refer pushes a bundle that refers to the image.
func (a attacker) refer(img pipeline.Image, content []byte, annotations map[string]string) {
	a.t.Helper()
	a.manifest(img.Repository, "", v1.Manifest{
		ArtifactType: verify.BundleType, Subject: a.subject(img), Annotations: annotations,
		Layers: []v1.Descriptor{a.blob(img.Repository, content, verify.BundleType)},
	})
}

// layers reads the first layer of a manifest, and its annotations.
func (a attacker) layer(repository string, in pipeline.Digest) (content []byte, annotations map[string]string) {
	a.t.Helper()
	img, err := remote.Image(signertest.Repo(a.t, repository).Digest(string(in)))
	if err != nil {
		a.t.Fatal(err)
	}
	m, err := img.Manifest()
	if err != nil {
		a.t.Fatal(err)
	}
	l, err := img.LayerByDigest(m.Layers[0].Digest)
	if err != nil {
		a.t.Fatal(err)
	}
	r, err := l.Compressed()
	if err != nil {
		a.t.Fatal(err)
	}
	defer r.Close()
	if content, err = io.ReadAll(r); err != nil {
		a.t.Fatal(err)
	}
	return content, m.Layers[0].Annotations
}

func unverified(t *testing.T, err error, says ...string) {
	t.Helper()
	if !errors.Is(err, pipeline.ErrUnverified) {
		t.Fatalf("error %v, want one that wraps ErrUnverified", err)
	}
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("error %q does not say %q", err, s)
		}
	}
}
