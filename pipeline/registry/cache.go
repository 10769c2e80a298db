package registry

import (
	"container/list"
	"sync"
	"time"

	"github.com/dray-project/dray/pipeline"
)

// cacheBytes bounds the bodies that a Registry keeps.
const cacheBytes = 16 << 20

// cache keeps the manifests that were read in a repository or written to it. A
// digest names its content for ever, so that a body is never out of date; what
// may be is that the repository has it, which is why the cache is asked only
// where that does not matter. It is by repository: who names the wrong one must
// not be answered for another, and one registry's media types say nothing about
// another's.
type cache struct {
	age time.Duration
	now func() time.Time

	mu      sync.Mutex
	bytes   int64
	entries map[cacheKey]*list.Element
	order   *list.List // of cacheEntry, the one used last in front
}

type cacheKey struct {
	repository string
	digest     pipeline.Digest
}

type cacheEntry struct {
	key cacheKey
	raw raw
	at  time.Time
}

func newCache(age time.Duration, now func() time.Time) *cache {
	return &cache{age: age, now: now, entries: map[cacheKey]*list.Element{}, order: list.New()}
}

func (c *cache) get(repository string, d pipeline.Digest) (raw, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries[cacheKey{repository, d}]
	if !ok {
		return raw{}, false
	}
	entry := e.Value.(cacheEntry)
	if c.now().Sub(entry.at) > c.age {
		c.drop(e)
		return raw{}, false
	}
	c.order.MoveToFront(e)
	return entry.raw, true
}

func (c *cache) put(repository string, got raw) {
	size := int64(len(got.body))
	if size > cacheBytes/8 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	key := cacheKey{repository, got.digest}
	if e, ok := c.entries[key]; ok {
		c.drop(e)
	}
	c.entries[key] = c.order.PushFront(cacheEntry{key, got, c.now()})
	for c.bytes += size; c.bytes > cacheBytes; {
		c.drop(c.order.Back())
	}
}

func (c *cache) forget(repository string, d pipeline.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.entries[cacheKey{repository, d}]; ok {
		c.drop(e)
	}
}

func (c *cache) drop(e *list.Element) {
	entry := c.order.Remove(e).(cacheEntry)
	delete(c.entries, entry.key)
	c.bytes -= int64(len(entry.raw.body))
}
