package pipelinetest

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"

	"github.com/dray-project/dray/pipeline"
)

// Repositories are the contents of registries in memory: a pipeline.Pruner that
// fails on demand. A tag names one manifest, and a manifest that is deleted takes
// its tags along.
type Repositories struct {
	mu       sync.Mutex
	contents map[string]*pipeline.Holdings
	// Refuses is what the registry does not delete; empty: it does.
	Refuses string
	// Faults of deletions; may be nil.
	Faults *Faults
}

func (r *Repositories) at(repository string) *pipeline.Holdings {
	if r.contents == nil {
		r.contents = map[string]*pipeline.Holdings{}
	}
	h := r.contents[repository]
	if h == nil {
		h = &pipeline.Holdings{Repository: repository, Tags: map[string]pipeline.Digest{}, Manifests: map[pipeline.Digest]pipeline.Held{}}
		r.contents[repository] = h
	}
	return h
}

// Push adds a manifest.
func (r *Repositories) Push(repository string, d pipeline.Digest, m pipeline.Held) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.at(repository).Manifests[d] = m
}

// Tag makes a tag name a manifest.
func (r *Repositories) Tag(repository, tag string, d pipeline.Digest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.at(repository).Tags[tag] = d
}

// Contents copies what a repository holds.
func (r *Repositories) Contents(repository string) *pipeline.Holdings {
	r.mu.Lock()
	defer r.mu.Unlock()
	h := r.at(repository)
	return &pipeline.Holdings{Repository: repository, Tags: maps.Clone(h.Tags), Manifests: maps.Clone(h.Manifests)}
}

// Survey implements pipeline.Pruner: only what is led to is seen.
func (r *Repositories) Survey(_ context.Context, repository string, manifests, attached []pipeline.Digest) (*pipeline.Holdings, error) {
	all := r.Contents(repository)
	seen := &pipeline.Holdings{Repository: repository, Tags: all.Tags, Manifests: map[pipeline.Digest]pipeline.Held{}}
	var visit func(d pipeline.Digest, deep bool)
	deep := map[pipeline.Digest]bool{}
	visit = func(d pipeline.Digest, attachments bool) {
		m, ok := all.Manifests[d]
		if _, known := seen.Manifests[d]; !ok || (known && (!attachments || deep[d])) {
			return
		}
		seen.Manifests[d] = m
		deep[d] = deep[d] || attachments
		for _, c := range m.Children {
			visit(c, attachments)
		}
		if attachments {
			for o, other := range all.Manifests {
				if other.Subject == d {
					visit(o, true)
				}
			}
		}
	}
	for _, d := range manifests {
		visit(d, false)
	}
	for _, d := range all.Tags {
		visit(d, false)
	}
	for _, d := range attached {
		visit(d, true)
	}
	return seen, nil
}

// Prune implements pipeline.Pruner.
func (r *Repositories) Prune(_ context.Context, h *pipeline.Holdings, x pipeline.Removal) (string, error) {
	if r.Refuses != "" {
		return r.Refuses, nil
	}
	now := r.Contents(h.Repository)
	for _, tag := range x.Tags {
		if d, there := now.Tags[tag]; there && d != x.Image.Digest {
			return "", errors.Join(pipeline.ErrConflict, errors.New("the tag moved"))
		}
	}
	for tag, d := range now.Tags {
		if _, seen := h.Tags[tag]; !seen && slices.Contains(x.Manifests, d) {
			return "", errors.Join(pipeline.ErrConflict, errors.New("a tag appeared"))
		}
	}
	step := func(op string, do func(*pipeline.Holdings)) error {
		return r.Faults.try(op, func() error {
			r.mu.Lock()
			defer r.mu.Unlock()
			do(r.at(h.Repository))
			return nil
		})
	}
	for _, tag := range x.Tags {
		if err := step("untag", func(h *pipeline.Holdings) { delete(h.Tags, tag) }); err != nil {
			return "", err
		}
	}
	for _, d := range x.Manifests {
		err := step("delete", func(h *pipeline.Holdings) {
			delete(h.Manifests, d)
			maps.DeleteFunc(h.Tags, func(_ string, named pipeline.Digest) bool { return named == d })
		})
		if err != nil {
			return "", err
		}
	}
	return "", nil
}
