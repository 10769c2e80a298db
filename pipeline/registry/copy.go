package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	ggcr "github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"golang.org/x/sync/errgroup"

	"github.com/dray-project/dray/pipeline"
)

// Copy implements pipeline.Registry. It brings the image's manifests and blobs,
// and whatever is attached to any of its manifests: referrers (by the referrers
// API or the fallback tag, on either side), and cosign's legacy tags.
//
// Blobs go first, then manifests from the leaves up, then what is attached.
// When it returns nil, every manifest was read back at the destination and
// hashed, every blob was confirmed with its size, and every referrer is listed.
// What is there already is not sent again, so that a copy that broke off can be
// repeated. The locks of the destination's subjects are taken here: the caller
// must not hold them.
func (r *Registry) Copy(ctx context.Context, img pipeline.Image, repo string) (pipeline.Copied, error) {
	done, err := r.copy(ctx, img, repo)
	if err != nil {
		return pipeline.Copied{}, fmt.Errorf("copy %s to %s: %w", img, repo, err)
	}
	return done, nil
}

func (r *Registry) copy(ctx context.Context, img pipeline.Image, repo string) (pipeline.Copied, error) {
	var none pipeline.Copied
	if _, err := pipeline.ParseDigest(string(img.Digest)); err != nil {
		return none, pipeline.Permanent(err)
	}
	from, err := r.open(img.Repository, ggcr.PullScope)
	if err != nil {
		return none, err
	}
	to, err := r.open(repo, ggcr.PushScope)
	if err != nil {
		return none, err
	}
	c, err := r.walk(ctx, from, img.Digest)
	if err != nil {
		return none, err
	}
	done := pipeline.Copied{
		Image:     pipeline.Image{Repository: repo, Digest: img.Digest},
		Manifests: len(c.nodes) + len(c.legacy), Blobs: len(c.blobs), Referrers: c.referrers(),
	}
	if err := r.copyBlobs(ctx, from, to, c, &done); err != nil {
		return none, err
	}
	unconfirmed, err := r.copyManifests(ctx, to, c)
	if err != nil {
		return none, err
	}
	if err := r.attachAll(ctx, from, to, c); err != nil {
		return none, err
	}
	return done, r.each(ctx, unconfirmed, func(ctx context.Context, m *manifest) error {
		return to.confirm(ctx, string(m.digest), m.digest)
	})
}

// attachAll makes what is attached known at the destination.
func (r *Registry) attachAll(ctx context.Context, from, to *repository, c *closure) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(min(r.parallel, 4)) // a lock may cost a database connection
	for subject, refs := range c.attached {
		g.Go(func() error { return to.attach(ctx, subject, refs) })
	}
	for _, l := range c.legacy {
		g.Go(func() error { return r.bring(ctx, from, to, l) })
	}
	return g.Wait()
}

// each works on all of them, so many at a time as a host takes requests.
func (r *Registry) each(ctx context.Context, list []*manifest, do func(context.Context, *manifest) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(r.parallel)
	for _, m := range list {
		g.Go(func() error { return do(ctx, m) })
	}
	return g.Wait()
}

func (r *Registry) copyBlobs(ctx context.Context, from, to *repository, c *closure, done *pipeline.Copied) error {
	list := make([]descriptor, 0, len(c.blobs))
	for _, d := range c.blobs {
		list = append(list, d)
	}
	// The largest first: the last transfer to finish is then a short one.
	slices.SortFunc(list, func(a, b descriptor) int {
		switch {
		case a.Size > b.Size, a.Size == b.Size && a.Digest < b.Digest:
			return -1
		}
		return 1
	})
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(r.parallel)
	for _, d := range list {
		g.Go(func() error {
			how, err := r.copyBlob(ctx, from, to, d)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			switch how {
			case skipped:
				done.Skipped++
			case mounted:
				done.Mounted++
			case sent:
				done.Sent += d.Size
			}
			return nil
		})
	}
	return g.Wait()
}

// copyManifests writes those that the destination lacks and returns them; the
// others were read there, and hashed.
func (r *Registry) copyManifests(ctx context.Context, to *repository, c *closure) (written []*manifest, err error) {
	var mu sync.Mutex
	for _, wave := range c.waves() {
		err := r.each(ctx, wave, func(ctx context.Context, m *manifest) error {
			_, err := to.get(ctx, string(m.digest))
			if err == nil || !errors.Is(err, pipeline.ErrNotFound) {
				return err
			}
			if err := to.put(ctx, string(m.digest), m.mediaType, m.body); err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			written = append(written, m)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return written, nil
}
