package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	ggcr "github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"golang.org/x/sync/errgroup"

	"github.com/dray-project/dray/pipeline"
)

// Survey implements pipeline.Pruner. Every tag's manifest is read and hashed, so
// that it takes as many requests as the repository has tags. What is listed and
// cannot be found is not in the answer; what cannot be read or understood is an
// error, because nothing may be removed beside it.
func (r *Registry) Survey(ctx context.Context, repository string, manifests, attached []pipeline.Digest) (*pipeline.Holdings, error) {
	p, err := r.open(repository, ggcr.PullScope)
	if err != nil {
		return nil, err
	}
	s := &survey{p: p, h: &pipeline.Holdings{
		Repository: repository, SeenAt: r.transport.now(), Tags: map[string]pipeline.Digest{}, Manifests: map[pipeline.Digest]pipeline.Held{},
	}}
	tags, more, err := p.tags(ctx, maxTagPages)
	switch {
	case errors.Is(err, pipeline.ErrNotFound):
		tags = nil
	case err != nil:
		return nil, err
	case more:
		return nil, refuse("list the tags of %s: more than %d pages", p, maxTagPages)
	}
	err = s.each(ctx, len(tags), func(ctx context.Context, i int) error { return s.tag(ctx, tags[i]) })
	if err != nil {
		return nil, err
	}
	next := append([]pipeline.Digest{}, attached...)
	for _, d := range attached {
		// That these are there is the question.
		r.cache.forget(p.String(), d)
	}
	next = append(next, manifests...)
	for _, d := range s.h.Tags {
		next = append(next, d)
	}
	if err := s.walk(ctx, next, false); err != nil {
		return nil, err
	}
	return s.h, s.walk(ctx, attached, true)
}

// survey is one Survey under way.
type survey struct {
	p *repository

	mu sync.Mutex
	h  *pipeline.Holdings
}

func (s *survey) each(ctx context.Context, n int, do func(context.Context, int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(s.p.r.parallel)
	for i := range n {
		g.Go(func() error { return do(ctx, i) })
	}
	return g.Wait()
}

func (s *survey) tag(ctx context.Context, tag string) error {
	got, err := s.p.get(ctx, tag)
	if errors.Is(err, pipeline.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.h.Tags[tag] = got.digest
	s.mu.Unlock()
	return s.take(got)
}

// take notes a manifest.
func (s *survey) take(got raw) error {
	held, err := s.p.r.limits.held(got)
	if err != nil {
		return fmt.Errorf("%s: %w", s.p, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.h.Manifests[got.digest] = held
	return nil
}

func (s *survey) has(d pipeline.Digest) (pipeline.Held, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	held, ok := s.h.Manifests[d]
	return held, ok
}

// walk reads these and their children, round by round; with attached, it asks
// the referrers API for each as well, where there is one. Where there is none,
// tags lead to what is attached, and they were read.
func (s *survey) walk(ctx context.Context, next []pipeline.Digest, attached bool) error {
	visited := map[pipeline.Digest]bool{}
	for len(next) > 0 {
		var round []pipeline.Digest
		for _, d := range next {
			if !visited[d] {
				visited[d] = true
				round = append(round, d)
			}
		}
		next = nil
		err := s.each(ctx, len(round), func(ctx context.Context, i int) error {
			found, err := s.visit(ctx, round[i], attached)
			s.mu.Lock()
			defer s.mu.Unlock()
			next = append(next, found...)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// visit reads one and returns what it leads to.
func (s *survey) visit(ctx context.Context, d pipeline.Digest, attached bool) ([]pipeline.Digest, error) {
	held, ok := s.has(d)
	if !ok {
		got, err := s.p.cached(ctx, d)
		if errors.Is(err, pipeline.ErrNotFound) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		if err := s.take(got); err != nil {
			return nil, err
		}
		held, _ = s.has(d)
	}
	found := held.Children
	if attached {
		list, _, err := s.p.referrers(ctx, d)
		if err != nil {
			return nil, err
		}
		for _, r := range list {
			found = append(found[:len(found):len(found)], r.Digest)
		}
	}
	return found, nil
}

// held reads what a manifest leads to. It is less strict than parse: build caches
// and what other tools push must be understood as well, and nothing of it is
// copied anywhere. But what it leads to must be beyond doubt.
func (l Limits) held(got raw) (pipeline.Held, error) {
	h := pipeline.Held{Size: int64(len(got.body))}
	if err := uniqueKeys(got.body); err != nil {
		return h, refuse("manifest %s: %w", got.digest, err)
	}
	var in struct {
		Config    *descriptor     `json:"config"`
		Layers    []descriptor    `json:"layers"`
		Blobs     []descriptor    `json:"blobs"` // of the artifact manifests of before OCI 1.1
		Manifests []descriptor    `json:"manifests"`
		Subject   *descriptor     `json:"subject"`
		FSLayers  json.RawMessage `json:"fsLayers"`
	}
	if err := json.Unmarshal(got.body, &in); err != nil {
		return h, refuse("manifest %s: %w", got.digest, err)
	}
	if len(in.Manifests) > max(l.Children, l.Referrers) {
		return h, refuse("index %s lists %d manifests, more than the limit of %d", got.digest, len(in.Manifests), max(l.Children, l.Referrers))
	}
	blobs := append(append([]descriptor{}, in.Layers...), in.Blobs...)
	if in.Config != nil {
		blobs = append(blobs, *in.Config)
	}
	for _, d := range in.Manifests {
		if isManifest(d.MediaType) {
			h.Index = true
			h.Children = append(h.Children, d.Digest)
		} else {
			blobs = append(blobs, d) // an index of layers, as build caches have it
		}
	}
	for _, d := range blobs {
		if len(d.URLs) == 0 {
			h.Blobs = append(h.Blobs, pipeline.Content{Digest: d.Digest, Size: d.Size})
		}
	}
	if in.Subject != nil {
		h.Subject = in.Subject.Digest
	}
	return h, nil
}
