package registry

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"

	ggcr "github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"golang.org/x/sync/errgroup"

	"github.com/dray-project/dray/pipeline"
)

// Audit says what an image's repository lacks of the contents that were recorded
// there. Manifests are read and hashed, blobs are asked for with their size, and
// every referrer is looked for where others would: in the referrers API, or in
// the fallback tag where there is none. What is attached by a legacy tag counts
// as listed if a tag of the subject's names it, or names a manifest with all of
// its layers.
//
// It reads only, and believes no Memory: it renews what that says, and makes it
// forget what is missing, so that a Copy afterwards puts it back. An error says
// that the registry could not be asked, and nothing about the image.
func (r *Registry) Audit(ctx context.Context, img pipeline.Image, contents []pipeline.Content) (pipeline.Audit, error) {
	p, err := r.open(img.Repository, ggcr.PullScope)
	if err != nil {
		return pipeline.Audit{}, err
	}
	a := &audit{p: p, found: map[pipeline.Digest]*manifest{}, result: pipeline.Audit{Image: img}}
	for _, c := range append([]pipeline.Content{{Digest: img.Digest, Manifest: true}}, contents...) {
		if _, err := pipeline.ParseDigest(string(c.Digest)); err != nil {
			return pipeline.Audit{}, pipeline.Permanent(err)
		}
		a.contents = append(a.contents, c)
	}
	// What is recorded of the image itself comes before what is assumed of it.
	slices.SortStableFunc(a.contents[1:], func(x, y pipeline.Content) int { return strings.Compare(string(x.Digest), string(y.Digest)) })
	if slices.ContainsFunc(a.contents[1:], func(c pipeline.Content) bool { return c.Digest == img.Digest }) {
		a.contents = a.contents[1:]
	}
	a.contents = slices.CompactFunc(a.contents, func(x, y pipeline.Content) bool { return x.Digest == y.Digest })
	if err := a.run(ctx); err != nil {
		return pipeline.Audit{}, err
	}
	return a.result, a.tell(ctx)
}

// audit is one Audit under way.
type audit struct {
	p        *repository
	contents []pipeline.Content

	mu     sync.Mutex
	found  map[pipeline.Digest]*manifest
	result pipeline.Audit
}

func (a *audit) run(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(a.p.r.parallel)
	for i := range a.contents {
		g.Go(func() error { return a.look(gctx, &a.contents[i]) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	subjects := map[pipeline.Digest][]pipeline.Content{}
	for _, c := range a.contents {
		if c.Subject != "" && a.found[c.Digest] != nil {
			subjects[c.Subject] = append(subjects[c.Subject], c)
		}
	}
	if len(subjects) > 0 {
		tags := &lookout{from: a.p}
		if err := tags.listTags(ctx); err != nil {
			return err
		}
		g, ctx := errgroup.WithContext(ctx)
		g.SetLimit(a.p.r.parallel)
		for subject, attached := range subjects {
			g.Go(func() error { return a.lookAt(ctx, tags, subject, attached) })
		}
		if err := g.Wait(); err != nil {
			return err
		}
	}
	for _, list := range [][]pipeline.Content{a.result.Missing, a.result.Unlisted} {
		slices.SortFunc(list, func(x, y pipeline.Content) int { return strings.Compare(string(x.Digest), string(y.Digest)) })
	}
	return nil
}

// look asks for one content, and corrects what was said of its size if it was
// nothing.
func (a *audit) look(ctx context.Context, c *pipeline.Content) error {
	gone, err := false, error(nil)
	if c.Manifest {
		gone, err = a.read(ctx, c)
	} else {
		d := descriptor{Digest: c.Digest, Size: c.Size}
		err = a.p.r.again(ctx, func() error {
			there, err := a.p.has(ctx, d)
			gone = err == nil && !there
			return err
		})
		if differs := (*differsError)(nil); errors.As(err, &differs) {
			gone, err = true, nil
		}
		err = a.p.r.explain(a.p.host, "look for blob", blobName(a.p, d), err)
	}
	if gone {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.result.Missing = append(a.result.Missing, *c)
	}
	return err
}

func (a *audit) read(ctx context.Context, c *pipeline.Content) (gone bool, err error) {
	got, err := a.p.get(ctx, string(c.Digest))
	if changed := (*changedError)(nil); errors.Is(err, pipeline.ErrNotFound) || errors.As(err, &changed) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	m, err := a.p.r.limits.parse(got, descriptor{})
	if err != nil {
		return false, err
	}
	if c.Size == 0 {
		c.Size = int64(len(got.body))
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.found[c.Digest] = m
	return false, nil
}

// lookAt looks for what is attached to one subject.
func (a *audit) lookAt(ctx context.Context, tags *lookout, subject pipeline.Digest, attached []pipeline.Content) error {
	var referrers, legacy []pipeline.Content
	for _, c := range attached {
		if a.found[c.Digest].subject == subject {
			referrers = append(referrers, c)
		} else {
			legacy = append(legacy, c)
		}
	}
	var unlisted []pipeline.Content
	if len(referrers) > 0 {
		listed, api, err := a.p.referrers(ctx, subject)
		if err == nil && !api && tags.mayHave(referrerTag(subject)) {
			listed, err = a.p.fallback(ctx, subject)
		}
		if err != nil {
			return err
		}
		for _, c := range referrers {
			if !slices.ContainsFunc(listed, func(d descriptor) bool { return d.Digest == c.Digest }) {
				unlisted = append(unlisted, c)
			}
		}
	}
	if len(legacy) > 0 {
		var there []*legacyTag
		for _, tag := range legacyTags(subject) {
			if !tags.mayHave(tag) {
				continue
			}
			t, err := a.p.legacyTag(ctx, subject, tag)
			if err != nil {
				return err
			}
			if t != nil {
				there = append(there, t)
			}
		}
		for _, c := range legacy {
			if !slices.ContainsFunc(there, func(t *legacyTag) bool { return t.m.includes(a.found[c.Digest]) }) {
				unlisted = append(unlisted, c)
			}
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.result.Unlisted = append(a.result.Unlisted, unlisted...)
	return nil
}

// includes reports whether m is that manifest, or has all of its layers.
func (m *manifest) includes(other *manifest) bool {
	if m.digest == other.digest {
		return true
	}
	have := map[string]bool{}
	for _, l := range m.layers {
		have[layerKey(l)] = true
	}
	for _, l := range other.layers {
		if !have[layerKey(l)] {
			return false
		}
	}
	return len(other.layers) > 0
}

// tell corrects the memory.
func (a *audit) tell(ctx context.Context) error {
	gone := map[pipeline.Digest]bool{}
	var forget []pipeline.Digest
	for _, c := range a.result.Missing {
		gone[c.Digest] = true
		forget = append(forget, c.Digest)
	}
	for _, c := range a.result.Unlisted {
		forget = append(forget, c.Digest)
		gone[c.Digest] = true // another copy would believe that it is listed
	}
	var there []pipeline.Content
	for _, c := range a.contents {
		if !gone[c.Digest] {
			there = append(there, c)
		}
	}
	a.p.remember(ctx, there)
	return a.p.forget(ctx, forget)
}
