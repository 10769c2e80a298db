package registry

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	ggcr "github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/dray-project/dray/pipeline"
)

// Closure reads the manifests of an image and of everything that is attached to
// it: what Copy would copy, within the same limits. An image that is not there is
// an error that wraps pipeline.ErrNotFound.
func (r *Registry) Closure(ctx context.Context, img pipeline.Image) (pipeline.Closure, error) {
	p, err := r.open(img.Repository, ggcr.PullScope)
	if err != nil {
		return pipeline.Closure{}, err
	}
	c, err := r.walk(ctx, p, img.Digest)
	if err != nil {
		return pipeline.Closure{}, fmt.Errorf("read the manifests of %s: %w", img, err)
	}
	out := pipeline.Closure{Image: img, Tags: map[string]pipeline.Digest{}}
	add := func(m *manifest) {
		out.Manifests = append(out.Manifests, pipeline.Manifest{Digest: m.digest, MediaType: m.mediaType, Body: m.body})
	}
	for _, m := range c.nodes {
		add(m)
	}
	for _, l := range c.legacy {
		out.Tags[l.tag] = l.m.digest
		if c.nodes[l.m.digest] == nil {
			add(l.m)
		}
	}
	slices.SortFunc(out.Manifests, func(a, b pipeline.Manifest) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
	// Two tags may name one manifest.
	out.Manifests = slices.CompactFunc(out.Manifests, func(a, b pipeline.Manifest) bool { return a.Digest == b.Digest })
	return out, nil
}

// Blob writes a blob of that size to w. What was written is the blob if and only
// if the error is nil. It is not tried again once bytes were written.
func (r *Registry) Blob(ctx context.Context, repository string, digest pipeline.Digest, size int64, w io.Writer) error {
	if _, err := pipeline.ParseDigest(string(digest)); err != nil {
		return pipeline.Permanent(err)
	}
	p, err := r.open(repository, ggcr.PullScope)
	if err != nil {
		return err
	}
	d := descriptor{Digest: digest, Size: size}
	var source *verified
	var body io.Closer
	if err := r.again(ctx, func() (err error) {
		source, body, err = p.source(ctx, d, &upload{})
		return err
	}); err != nil {
		return r.explain(p.host, "read blob", blobName(p, d), err)
	}
	defer body.Close() //nolint:errcheck // read to its end or abandoned
	if _, err := io.Copy(w, source); err != nil {
		return r.explain(p.host, "read blob", blobName(p, d), err)
	}
	if size == 0 {
		return r.explain(p.host, "read blob", blobName(p, d), source.finish())
	}
	return nil
}
