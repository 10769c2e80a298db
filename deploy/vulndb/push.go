package vulndb

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/dray-project/dray/pipeline"
)

// Media types of the artefact, as the scanner expects them.
const (
	LayerMediaType  = "application/vnd.aquasec.trivy.db.layer.v1.tar+gzip"
	ConfigMediaType = "application/vnd.aquasec.trivy.config.v1+json"
)

// Push writes the database of dir to ref and returns the digest of its
// manifest. The same database gives the same digest. Whether ref is reached
// over plain HTTP is part of ref; credentials come with opts.
func Push(ctx context.Context, dir string, ref name.Reference, opts ...remote.Option) (pipeline.Digest, error) {
	layer, updatedAt, err := pack(dir)
	if err != nil {
		return "", fmt.Errorf("pack the vulnerability database of %s: %w", dir, err)
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), ConfigMediaType)
	img, err = mutate.Append(img, mutate.Addendum{
		Layer:       static.NewLayer(layer, LayerMediaType),
		Annotations: map[string]string{"org.opencontainers.image.title": "db.tar.gz"},
	})
	if err != nil {
		return "", fmt.Errorf("pack the vulnerability database of %s: %w", dir, err)
	}
	img, ok := mutate.Annotations(img, map[string]string{
		"org.opencontainers.image.created": updatedAt.Format(time.RFC3339),
	}).(v1.Image)
	if !ok {
		return "", fmt.Errorf("annotate the vulnerability database of %s: not an image any more", dir)
	}
	digest, err := img.Digest()
	if err != nil {
		return "", fmt.Errorf("pack the vulnerability database of %s: %w", dir, err)
	}
	opts = append(slices.Clone(opts), remote.WithContext(ctx))
	if err := remote.Write(ref, img, opts...); err != nil {
		return "", fmt.Errorf("push the vulnerability database to %s: %w", ref, err)
	}
	return pipeline.ParseDigest(digest.String())
}

// pack makes the layer: both files, with the database's own time.
func pack(dir string) ([]byte, time.Time, error) {
	raw, err := os.ReadFile(filepath.Join(dir, metadataFile))
	if err != nil {
		return nil, time.Time{}, err
	}
	var meta metadata
	if err := json.Unmarshal(raw, &meta); err != nil {
		return nil, time.Time{}, fmt.Errorf("%s: %w", metadataFile, err)
	}
	var out bytes.Buffer
	zw := gzip.NewWriter(&out)
	tw := tar.NewWriter(zw)
	for _, file := range []string{databaseFile, metadataFile} {
		content, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			return nil, time.Time{}, err
		}
		err = tw.WriteHeader(&tar.Header{
			Typeflag: tar.TypeReg, Name: file, Size: int64(len(content)), Mode: 0o644,
			ModTime: meta.UpdatedAt, Format: tar.FormatPAX,
		})
		if err != nil {
			return nil, time.Time{}, err
		}
		if _, err := tw.Write(content); err != nil {
			return nil, time.Time{}, err
		}
	}
	if err := tw.Close(); err != nil {
		return nil, time.Time{}, err
	}
	if err := zw.Close(); err != nil {
		return nil, time.Time{}, err
	}
	return out.Bytes(), meta.UpdatedAt, nil
}
