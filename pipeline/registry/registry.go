package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/dray-project/dray/pipeline"
)

// Config is what a Registry works with. Locker and Log are required.
type Config struct {
	// Hosts are the registries that need settings. Others are reached with
	// https and without credentials.
	Hosts []pipeline.RegistryHost
	// Locker serialises the writers of one subject's fallback and legacy tags,
	// under the key that LockKey returns.
	Locker pipeline.Locker
	// Memory of what was verified at destinations; nil for none, then everything
	// is asked for every time.
	Memory Memory
	// MemoryAge is how long an entry of Memory is believed; 24 h. A registry that
	// collects garbage behind Dray's back is noticed after that at the latest,
	// and before where it refuses a manifest that names what it lost.
	MemoryAge time.Duration
	// MaxParallel is how many requests may be in flight to one host, from 1 to
	// 256; 0 means 8.
	MaxParallel int
	Limits      Limits
	Timing      Timing
	Log         *slog.Logger
	// Now is the clock that dates in Retry-After are compared with.
	Now func() time.Time
}

// Timing says how patient the Registry is. Zero fields take their defaults.
type Timing struct {
	// Attempts is how often a request or the transfer of a blob is tried; 4.
	Attempts int
	// Backoff is the wait before the second attempt; it doubles from there,
	// with jitter; 250 ms.
	Backoff time.Duration
	// MaxWait bounds the sum of the waits that a registry can ask of one request
	// with Retry-After; 60 s.
	MaxWait time.Duration
	// Stall is how long a transfer may go without a byte; 60 s.
	Stall time.Duration
	// Response is how long a registry may take to answer once the request was
	// sent; 5 min, because committing a large upload is slow in some.
	Response time.Duration
}

func (t Timing) withDefaults() Timing {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	if t.Attempts == 0 {
		t.Attempts = 4
	}
	set(&t.Backoff, 250*time.Millisecond)
	set(&t.MaxWait, time.Minute)
	set(&t.Stall, time.Minute)
	set(&t.Response, 5*time.Minute)
	return t
}

// Registry implements pipeline.Registry. It is safe for concurrent use.
type Registry struct {
	hosts     map[string]pipeline.RegistryHost // by canonical name
	locker    pipeline.Locker
	limits    Limits
	timing    Timing
	parallel  int
	log       *slog.Logger
	transport *transport
	roots     http.RoundTripper // transport with the user agent
	bare      *http.Client      // for hosts that want no credentials
	memory    Memory
	memoryAge time.Duration
	cache     *cache
	learned   *learned

	mu       sync.Mutex
	sessions map[string]*session // by registry and scopes
}

var _ pipeline.Registry = (*Registry)(nil)

// New checks the configuration. It contacts no registry.
func New(_ context.Context, c Config) (*Registry, error) {
	switch {
	case c.Locker == nil:
		return nil, errors.New("registry: a locker is required")
	case c.Log == nil:
		return nil, errors.New("registry: a logger is required")
	case c.MaxParallel < 0 || c.MaxParallel > 256:
		return nil, fmt.Errorf("registry: at most %d parallel requests per host: want 1 to 256, or 0 for the default", c.MaxParallel)
	}
	if c.MaxParallel == 0 {
		c.MaxParallel = 8
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.MemoryAge < 0 {
		return nil, fmt.Errorf("registry: what was verified is believed for %s: want a time above 0, or 0 for the default", c.MemoryAge)
	}
	if c.MemoryAge == 0 {
		c.MemoryAge = 24 * time.Hour
	}
	r := &Registry{
		hosts:    make(map[string]pipeline.RegistryHost, len(c.Hosts)),
		locker:   c.Locker,
		limits:   c.Limits.withDefaults(),
		timing:   c.Timing.withDefaults(),
		parallel: c.MaxParallel,
		log:      c.Log,
		sessions: map[string]*session{},
		memory:   c.Memory, memoryAge: c.MemoryAge,
		cache:   newCache(c.MemoryAge, c.Now),
		learned: newLearned(c.Now),
	}
	for i, h := range c.Hosts {
		host, err := canonicalHost(h.Host)
		if err != nil {
			return nil, fmt.Errorf("registries[%d].host: %w", i, err)
		}
		if _, twice := r.hosts[host]; twice {
			return nil, fmt.Errorf("registries[%d].host: %s is listed twice", i, h.Host)
		}
		if (h.Username == "") != (h.Password == "") {
			return nil, fmt.Errorf("registries[%d] (%s): username and password go together, one is empty", i, h.Host)
		}
		if h.TokenHost == "" && host == name.DefaultRegistry {
			h.TokenHost = "auth.docker.io"
		}
		h.Host = host
		r.hosts[host] = h
	}
	r.transport = newTransport(r.hosts, c.MaxParallel, r.timing, c.Log, c.Now)
	r.roots = userAgent(r.transport)
	r.bare = httpClient(r.roots)
	return r, nil
}

// Close closes idle connections. Requests that are under way are not touched.
func (r *Registry) Close() { r.transport.base.CloseIdleConnections() }

// LockKey is the key under which the writers of a subject's fallback tag and
// legacy tags take turns. Registries without the referrers API keep a subject's
// referrers in one tag, which parallel writers would overwrite.
func LockKey(subject pipeline.Image) string {
	return "referrers:" + subject.Repository + "@" + string(subject.Digest)
}

// canonicalHost is the name that requests use: "docker.io" is served by
// index.docker.io.
func canonicalHost(host string) (string, error) {
	if host == "" || strings.Contains(host, "/") {
		return "", fmt.Errorf("%q: want a host or host:port, without a scheme or path: %w", host, pipeline.ErrInvalid)
	}
	reg, err := name.NewRegistry(strings.ToLower(host), name.StrictValidation)
	if err != nil {
		return "", fmt.Errorf("%q: want a host or host:port: %w: %w", host, err, pipeline.ErrInvalid)
	}
	return reg.RegistryStr(), nil
}

// Keychain gives each registry the credentials that are set for exactly that
// host, and no other registry any. It never reads a Docker configuration.
func (r *Registry) Keychain() authn.Keychain { return keychain(r.hosts) }

type keychain map[string]pipeline.RegistryHost

// Resolve implements authn.Keychain.
func (k keychain) Resolve(target authn.Resource) (authn.Authenticator, error) {
	h, ok := k[strings.ToLower(target.RegistryStr())]
	if !ok || h.Username == "" {
		return authn.Anonymous, nil
	}
	return authn.FromConfig(authn.AuthConfig{Username: h.Username, Password: h.Password}), nil
}

// NameOptions are for parsing references to that host. Plain http is an option
// only where the setting says so.
func (r *Registry) NameOptions(host string) []name.Option {
	canonical, err := canonicalHost(host)
	if err == nil && r.hosts[canonical].PlainHTTP {
		return []name.Option{name.Insecure}
	}
	return nil
}

// Transport is what every request to a registry should go through. It limits
// parallel requests per host, waits as Retry-After says, repeats what can be
// repeated safely, refuses plain http where it was not set, and drops or
// refuses credentials that would leave their origin.
func (r *Registry) Transport() http.RoundTripper { return r.transport }

// RemoteOptions are for other packages' calls of go-containerregistry: the
// shared transport and the keychain, without a second layer of retries. Add
// remote.WithContext to each call.
func (r *Registry) RemoteOptions() []remote.Option {
	return []remote.Option{
		remote.WithTransport(r.transport),
		remote.WithAuthFromKeychain(r.Keychain()),
		remote.WithUserAgent("dray"),
		remote.WithJobs(r.parallel),
		remote.WithRetryBackoff(remote.Backoff{Duration: time.Millisecond, Factor: 1, Steps: 1}),
		remote.WithRetryStatusCodes(),
	}
}
