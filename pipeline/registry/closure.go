package registry

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/types"

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

// digests lists everything in it, once each.
func (c *closure) digests() []pipeline.Digest {
	seen := map[pipeline.Digest]bool{}
	for d := range c.nodes {
		seen[d] = true
	}
	for _, l := range c.legacy {
		seen[l.m.digest] = true
	}
	for d := range c.blobs {
		seen[d] = true
	}
	return slices.Sorted(maps.Keys(seen))
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
	// said: the referrers API lists it, so that it is there.
	said bool
}

// seen is what asking for one digest brought.
type seen struct {
	m         *manifest
	referrers []descriptor // by the API
	listed    []descriptor // by the fallback tag
	legacy    []*legacyTag
}

// walk reads the whole closure's manifests. Blobs are not read.
func (r *Registry) walk(ctx context.Context, from *repository, root pipeline.Digest) (*closure, error) {
	c := &closure{
		root: root, nodes: map[pipeline.Digest]*manifest{}, attached: map[pipeline.Digest][]*manifest{},
		blobs: map[pipeline.Digest]descriptor{},
	}
	look, err := newLookout(ctx, from, root)
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
		list = append(list, found{desc: d, attachments: f.attachments + 1, subject: s.m.digest, said: true})
	}
	for _, d := range s.listed {
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
