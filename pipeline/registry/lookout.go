package registry

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/dray-project/dray/pipeline"
)

// lookout asks one repository what belongs to a digest, with as few questions
// as that repository allows. Lists are always asked for, because others may add
// to them; a manifest that was read before is not read again where a list that
// the registry keeps says that it is there.
type lookout struct {
	from *repository
	api  bool // it has the referrers API
	root pipeline.Digest
	// ofRoot is what the API said when it was tried with the root.
	ofRoot []descriptor
	// tags of the repository, nil when there are too many or no list: then each
	// tag is asked for.
	tags map[string]bool
}

func newLookout(ctx context.Context, from *repository, root pipeline.Digest) (*lookout, error) {
	l := &lookout{from: from, root: root}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		l.ofRoot, l.api, err = from.referrers(ctx, root)
		return err
	})
	g.Go(func() error { return l.listTags(ctx) })
	// It is asked for again in a moment, and is then in the cache.
	g.Go(func() error { _, err := from.cached(ctx, root); return err })
	return l, g.Wait()
}

func (l *lookout) listTags(ctx context.Context) error {
	tags, more, err := l.from.tags(ctx, l.from.r.limits.TagPages)
	switch {
	case err != nil && (statusOf(err) == 0 || statusOf(err) >= 500):
		return err
	case err == nil && !more:
		l.tags = make(map[string]bool, len(tags))
		for _, t := range tags {
			l.tags[t] = true
		}
	}
	return nil
}

// round asks for all of these at once.
func (l *lookout) round(ctx context.Context, list []found) ([]seen, error) {
	out := make([]seen, len(list))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(2 * l.from.r.parallel) // each waits for slots again and again
	for i, f := range list {
		g.Go(func() error {
			s, err := l.see(ctx, f)
			out[i] = s
			return err
		})
	}
	return out, g.Wait()
}

func (l *lookout) see(ctx context.Context, f found) (s seen, err error) {
	if s.m = f.legacy; s.m == nil {
		if s.m, err = l.manifest(ctx, f); s.m == nil || err != nil {
			return s, err
		}
	}
	digest := s.m.digest
	g, ctx := errgroup.WithContext(ctx)
	switch {
	case l.api && digest == l.root:
		s.referrers = l.ofRoot
	case l.api:
		g.Go(func() (err error) {
			s.referrers, _, err = l.from.referrers(ctx, digest)
			return err
		})
	}
	// A registry that got the API later may still have lists from before.
	if l.mayHave(referrerTag(digest)) && (!l.api || l.tags != nil) {
		g.Go(func() (err error) {
			s.listed, err = l.from.fallback(ctx, digest)
			return err
		})
	}
	var legacy [3]*legacyTag
	for i, tag := range legacyTags(digest) {
		if l.mayHave(tag) {
			g.Go(func() (err error) {
				legacy[i], err = l.from.legacyTag(ctx, digest, tag)
				return err
			})
		}
	}
	if err := g.Wait(); err != nil {
		return s, err
	}
	for _, t := range legacy {
		if t != nil {
			s.legacy = append(s.legacy, t)
		}
	}
	return s, nil
}

// manifest reads and checks one; nil if it is listed as a referrer and gone.
func (l *lookout) manifest(ctx context.Context, f found) (*manifest, error) {
	read := func() (raw, error) { return l.from.cached(ctx, f.desc.Digest) }
	if f.subject != "" && !f.said {
		// Who deletes a manifest by its digest leaves it in the fallback tag.
		read = func() (raw, error) { return l.from.get(ctx, string(f.desc.Digest)) }
	}
	got, err := read()
	if f.subject != "" && errors.Is(err, pipeline.ErrNotFound) {
		return nil, nil // listed and not there: there is nothing to bring
	}
	if err != nil {
		return nil, err
	}
	desc := f.desc
	if desc.MediaType == "" {
		desc = descriptor{}
	}
	m, err := l.from.r.limits.parse(got, desc)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", l.from, err)
	}
	return m, nil
}

func (l *lookout) mayHave(tag string) bool { return l.tags == nil || l.tags[tag] }

// legacyTag reads one of a subject's legacy tags; nil if there is none.
func (p *repository) legacyTag(ctx context.Context, subject pipeline.Digest, tag string) (*legacyTag, error) {
	got, err := p.get(ctx, tag)
	if errors.Is(err, pipeline.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	m, err := p.r.limits.parse(got, descriptor{})
	if err == nil && m.index {
		err = refuse("it is an index, not a manifest with one layer for each signature")
	}
	if err != nil {
		return nil, fmt.Errorf("legacy tag %s: %w", imageName(p, tag), err)
	}
	return &legacyTag{subject: subject, tag: tag, m: m}, nil
}
