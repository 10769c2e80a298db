package registry_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/registry"
	"github.com/dray-project/dray/pipeline/registry/registrytest"
)

// What can be read of an image is what a copy would bring, and a blob that is not
// what its digest says is never taken for whole.
func TestClosureAndBlobs(t *testing.T) {
	directions(t, func(t *testing.T, from, _ *registrytest.Proxy) {
		r := start(t, registry.Config{}, from.Host)
		s := newSample(t, from.Host+"/team/app")
		c, err := r.Closure(t.Context(), s.image)
		if err != nil {
			t.Fatal(err)
		}
		// Index, two platforms, four referrers, four legacy manifests.
		if len(c.Manifests) != 11 || len(c.Tags) != 4 || c.Image != s.image {
			t.Errorf("%d manifests, tags %v, of %s", len(c.Manifests), c.Tags, c.Image)
		}
		if !slices.IsSortedFunc(c.Manifests, func(a, b pipeline.Manifest) int { return strings.Compare(string(a.Digest), string(b.Digest)) }) {
			t.Error("the manifests are in no order")
		}
		blobs := 0
		for _, m := range c.Manifests {
			if sum := sha256.Sum256(m.Body); "sha256:"+hex.EncodeToString(sum[:]) != string(m.Digest) || m.MediaType == "" {
				t.Errorf("%s (%s) has another body", m.Digest, m.MediaType)
			}
			var doc struct {
				Layers []struct {
					Digest pipeline.Digest
					Size   int64
				}
			}
			if err := json.Unmarshal(m.Body, &doc); err != nil {
				t.Fatal(err)
			}
			for _, l := range doc.Layers {
				var out bytes.Buffer
				if err := r.Blob(t.Context(), s.image.Repository, l.Digest, l.Size, &out); err != nil || int64(out.Len()) != l.Size {
					t.Errorf("blob %s: %d of %d bytes, %v", l.Digest, out.Len(), l.Size, err)
				}
				if err := r.Blob(t.Context(), s.image.Repository, l.Digest, l.Size+1, &out); err == nil {
					t.Errorf("blob %s was taken for one byte longer", l.Digest)
				}
				blobs++
				if blobs == 1 {
					from.Inject("GET", "/blobs/", 0, registrytest.FlipByte())
					if err := r.Blob(t.Context(), s.image.Repository, l.Digest, l.Size, &out); err == nil {
						t.Errorf("blob %s was changed on the way, and nobody noticed", l.Digest)
					}
					from.Clear()
				}
			}
		}
		if blobs == 0 {
			t.Error("there are no blobs")
		}
		unknown := pipeline.Image{Repository: s.image.Repository, Digest: "sha256:" + pipeline.Digest(strings.Repeat("0", 64))}
		if _, err := r.Closure(t.Context(), unknown); !errors.Is(err, pipeline.ErrNotFound) {
			t.Errorf("an unknown image: %v", err)
		}
		if err := r.Blob(t.Context(), unknown.Repository, unknown.Digest, 1, &bytes.Buffer{}); !errors.Is(err, pipeline.ErrNotFound) {
			t.Errorf("an unknown blob: %v", err)
		}
	})
}
