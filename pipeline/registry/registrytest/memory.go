package registrytest

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/dray-project/dray/pipeline"
)

// Memory is a registry.Memory within one process.
type Memory struct {
	// Err is what every method fails with.
	Err error

	mu      sync.Mutex
	entries map[string]map[pipeline.Digest]memorised
}

type memorised struct {
	content pipeline.Content
	at      time.Time
}

// Known implements registry.Memory.
func (m *Memory) Known(_ context.Context, repository string, digests []pipeline.Digest, within time.Duration) (map[pipeline.Digest]pipeline.Content, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	known := map[pipeline.Digest]pipeline.Content{}
	for _, d := range digests {
		if e, ok := m.entries[repository][d]; ok && time.Since(e.at) <= within {
			known[d] = e.content
		}
	}
	return known, m.Err
}

// Remember implements registry.Memory.
func (m *Memory) Remember(_ context.Context, repository string, contents []pipeline.Content) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.Err != nil {
		return m.Err
	}
	if m.entries == nil {
		m.entries = map[string]map[pipeline.Digest]memorised{}
	}
	if m.entries[repository] == nil {
		m.entries[repository] = map[pipeline.Digest]memorised{}
	}
	for _, c := range contents {
		m.entries[repository][c.Digest] = memorised{c, time.Now()}
	}
	return nil
}

// Forget implements registry.Memory.
func (m *Memory) Forget(_ context.Context, repository string, digests []pipeline.Digest) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.Err != nil {
		return m.Err
	}
	for _, d := range digests {
		delete(m.entries[repository], d)
	}
	return nil
}

// Holds returns what is remembered of a repository, whatever its age.
func (m *Memory) Holds(repository string) map[pipeline.Digest]pipeline.Content {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := map[pipeline.Digest]pipeline.Content{}
	for d, e := range maps.All(m.entries[repository]) {
		all[d] = e.content
	}
	return all
}
