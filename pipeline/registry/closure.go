package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"

	"github.com/dray-project/dray/pipeline"
)

// closure is everything that belongs to an image: its manifests, what is
// attached to any of them, and the blobs of all.
type closure struct {
	root  pipeline.Digest
	nodes map[pipeline.Digest]*manifest
	// attached are the referrers of each subject, in the order of their digests.
	attached map[pipeline.Digest][]*manifest
	legacy   []*legacyTag
	blobs    map[pipeline.Digest]descriptor
	bytes    int64 // of all manifests
}

// referrers lists the digests of all that is attached, sorted.
func (c *closure) referrers() []pipeline.Digest {
	seen := map[pipeline.Digest]bool{}
	for _, refs := range c.attached {
		for _, m := range refs {
			seen[m.digest] = true
		}
	}
	for _, l := range c.legacy {
		seen[l.m.digest] = true
	}
	list := make([]pipeline.Digest, 0, len(seen))
	for d := range seen {
		list = append(list, d)
	}
	slices.Sort(list)
	return list
}

// waves lists the manifests such that each comes after its children and after
// its subject, and what is attached comes after the image. Those of one wave
// are independent of each other.
func (c *closure) waves() [][]*manifest {
	wave := map[pipeline.Digest]int{}
	floor := 0
	// The edges are digests of content, so that they cannot form a circle.
	var visit func(m *manifest) int
	visit = func(m *manifest) int {
		if n, ok := wave[m.digest]; ok {
			return n
		}
		n := floor
		for _, child := range m.manifests {
			if known := c.nodes[child.Digest]; known != nil {
				n = max(n, visit(known)+1)
			}
		}
		if subject := c.nodes[m.subject]; subject != nil {
			n = max(n, visit(subject)+1)
		}
		wave[m.digest] = n
		return n
	}
	floor = visit(c.nodes[c.root]) + 1
	var waves [][]*manifest
	for _, m := range c.nodes {
		n := visit(m)
		for len(waves) <= n {
			waves = append(waves, nil)
		}
		waves[n] = append(waves[n], m)
	}
	return waves
}

// found is one digest that the walk came to.
type found struct {
	desc descriptor
	// indexes is how many indexes lead to it, attachments how many steps from
	// subject to referrer.
	indexes, attachments int
	subject              pipeline.Digest // of a referrer
	legacy               *manifest       // of a legacy tag, read already
}

// seen is what asking for one digest brought.
type seen struct {
	m         *manifest
	referrers []descriptor
	legacy    []*legacyTag
}

// walk reads the whole closure's manifests. Blobs are not read.
func (r *Registry) walk(ctx context.Context, from *repository, root pipeline.Digest) (*closure, error) {
	c := &closure{
		root: root, nodes: map[pipeline.Digest]*manifest{}, attached: map[pipeline.Digest][]*manifest{},
		blobs: map[pipeline.Digest]descriptor{},
	}
	look, err := r.newLookout(ctx, from, root)
	if err != nil {
		return nil, err
	}
	// A manifest may be found as a child and as a referrer; each is looked at.
	type way struct {
		digest, subject pipeline.Digest
		legacy          bool
	}
	visited := map[way]bool{}
	attached := 0
	for next := []found{{desc: descriptor{Digest: root}}}; len(next) > 0; {
		round, err := look.round(ctx, next)
		if err != nil {
			return nil, err
		}
		var after []found
		for i, s := range round {
			f := next[i]
			if s.m == nil || (f.subject != "" && s.m.subject != f.subject) {
				r.log.WarnContext(ctx, "an entry in a list of referrers is no referrer and is left behind",
					"subject", from.String()+"@"+string(f.subject), "entry", f.desc.Digest, "missing", s.m == nil)
				continue
			}
			if err := c.add(r.limits, f, s.m); err != nil {
				return nil, err
			}
			for _, g := range f.leads(s) {
				if way := (way{g.desc.Digest, g.subject, g.legacy != nil}); visited[way] {
					continue
				} else {
					visited[way] = true
				}
				switch {
				case g.indexes > r.limits.IndexDepth, g.indexes == r.limits.IndexDepth && isIndex(g.desc):
					return nil, refuse("index %s is nested deeper than the limit of %d", g.desc.Digest, r.limits.IndexDepth)
				case g.attachments > r.limits.ReferrerDepth:
					return nil, refuse("what is attached to %s is nested deeper than the limit of %d", root, r.limits.ReferrerDepth)
				case g.attachments > 0:
					attached++
				}
				if attached > r.limits.Referrers {
					return nil, refuse("more is attached to %s and its parts than the limit of %d", root, r.limits.Referrers)
				}
				after = append(after, g)
			}
			c.legacy = append(c.legacy, s.legacy...)
		}
		next = after
	}
	c.tidy()
	return c, nil
}

// leads lists what a manifest leads to.
func (f found) leads(s seen) (list []found) {
	for _, d := range s.m.manifests {
		list = append(list, found{desc: d, indexes: f.indexes + 1, attachments: f.attachments})
	}
	for _, d := range s.referrers {
		list = append(list, found{desc: d, attachments: f.attachments + 1, subject: s.m.digest})
	}
	for _, l := range s.legacy {
		list = append(list, found{desc: descriptor{Digest: l.m.digest}, attachments: f.attachments + 1, legacy: l.m})
	}
	return list
}

func isIndex(d descriptor) bool { return types.MediaType(d.MediaType).IsIndex() }

// tidy drops what was found in two ways and makes the order predictable.
func (c *closure) tidy() {
	for subject, refs := range c.attached {
		slices.SortFunc(refs, func(a, b *manifest) int { return strings.Compare(string(a.digest), string(b.digest)) })
		c.attached[subject] = slices.CompactFunc(refs, func(a, b *manifest) bool { return a.digest == b.digest })
	}
	slices.SortFunc(c.legacy, func(a, b *legacyTag) int { return strings.Compare(a.tag, b.tag) })
	c.legacy = slices.CompactFunc(c.legacy, func(a, b *legacyTag) bool { return a.tag == b.tag })
}

// add takes a manifest and its blobs into the closure.
func (c *closure) add(l Limits, f found, m *manifest) error {
	if f.legacy == nil {
		c.nodes[m.digest] = m
	}
	if f.subject != "" {
		c.attached[f.subject] = append(c.attached[f.subject], m)
	}
	if c.bytes += int64(len(m.body)); c.bytes > l.ClosureBytes {
		return refuse("the manifests of %s and of what is attached to it have more bytes than the limit of %d", c.root, l.ClosureBytes)
	}
	for _, d := range m.blobs() {
		if other, ok := c.blobs[d.Digest]; ok && other.Size != d.Size {
			return refuse("manifest %s says that blob %s has %d bytes, another says %d", m.digest, d.Digest, d.Size, other.Size)
		}
		c.blobs[d.Digest] = d
	}
	return nil
}

// lookout asks one repository what belongs to a digest, with as few questions
// as that repository allows.
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

func (r *Registry) newLookout(ctx context.Context, from *repository, root pipeline.Digest) (*lookout, error) {
	l := &lookout{from: from, root: root}
	var err error
	if l.ofRoot, l.api, err = from.referrers(ctx, root); err != nil {
		return nil, err
	}
	tags, more, err := from.tags(ctx, r.limits.TagPages)
	switch {
	case err != nil && (statusOf(err) == 0 || statusOf(err) >= 500):
		return nil, err
	case err == nil && !more:
		l.tags = make(map[string]bool, len(tags))
		for _, t := range tags {
			l.tags[t] = true
		}
	}
	return l, nil
}

// round asks for all of these at once.
func (l *lookout) round(ctx context.Context, list []found) ([]seen, error) {
	out := make([]seen, len(list))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(l.from.r.parallel)
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
	p, limits := l.from, l.from.r.limits
	if s.m = f.legacy; s.m == nil {
		got, err := p.get(ctx, string(f.desc.Digest))
		if f.subject != "" && errors.Is(err, pipeline.ErrNotFound) {
			return s, nil // listed and not there: there is nothing to bring
		}
		if err != nil {
			return s, err
		}
		desc := f.desc
		if desc.MediaType == "" {
			desc = descriptor{}
		}
		if s.m, err = limits.parse(got, desc); err != nil {
			return s, fmt.Errorf("%s: %w", p, err)
		}
	}
	digest := s.m.digest
	switch {
	case l.api && digest == l.root:
		s.referrers = slices.Clone(l.ofRoot)
	case l.api:
		if s.referrers, _, err = p.referrers(ctx, digest); err != nil {
			return s, err
		}
	}
	// A registry that got the API later may still have lists from before.
	if l.mayHave(referrerTag(digest)) && (!l.api || l.tags != nil) {
		list, err := p.fallback(ctx, digest)
		if err != nil {
			return s, err
		}
		s.referrers = append(s.referrers, list...)
	}
	for _, tag := range legacyTags(digest) {
		if !l.mayHave(tag) {
			continue
		}
		got, err := p.get(ctx, tag)
		if errors.Is(err, pipeline.ErrNotFound) {
			continue
		}
		if err != nil {
			return s, err
		}
		m, err := limits.parse(got, descriptor{})
		if err == nil && m.index {
			err = refuse("it is an index, not a manifest with one layer for each signature")
		}
		if err != nil {
			return s, fmt.Errorf("legacy tag %s: %w", imageName(p, tag), err)
		}
		s.legacy = append(s.legacy, &legacyTag{subject: digest, tag: tag, m: m})
	}
	return s, nil
}

func (l *lookout) mayHave(tag string) bool { return l.tags == nil || l.tags[tag] }
