package registry

import (
	"sync"
	"time"
)

// withoutAPI is how long a repository is believed to be without the referrers
// API. Registries are upgraded: what is attached afterwards must be found.
const withoutAPI = 10 * time.Minute

// learned is what registries turned out to be like, within this process.
type learned struct {
	now func() time.Time

	mu     sync.Mutex
	mount  map[string]bool      // by host: a blob was mounted from where it is already
	auth   map[string]bool      // by host: it wants more than a bare request
	proven map[string]bool      // by host: it answers as a registry
	noAPI  map[string]time.Time // by repository: when it said so
	remove map[string]removed   // by host: how it removes
}

// removed is what was learnt of how a registry removes, and when.
type removed struct {
	how removal
	at  time.Time
}

func newLearned(now func() time.Time) *learned {
	return &learned{
		now: now, mount: map[string]bool{}, auth: map[string]bool{}, proven: map[string]bool{}, noAPI: map[string]time.Time{},
		remove: map[string]removed{},
	}
}

func (l *learned) has(m map[string]bool, host string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return m[host]
}

func (l *learned) note(m map[string]bool, host string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	m[host] = true
}

// lacksAPI reports whether the repository said within the last minutes that it
// has no referrers API.
func (l *learned) lacksAPI(repository string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	at, ok := l.noAPI[repository]
	return ok && l.now().Sub(at) < withoutAPI
}

func (l *learned) noteAPI(repository string, has bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if has {
		delete(l.noAPI, repository)
	} else {
		l.noAPI[repository] = l.now()
	}
}

// removal is how the host was found to remove within the last minutes.
func (l *learned) removal(host string) (removal, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, ok := l.remove[host]
	return r.how, ok && l.now().Sub(r.at) < withoutAPI
}

func (l *learned) noteRemoval(host string, how removal) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.remove[host] = removed{how, l.now()}
}
