// Package oci reads manifests, blobs and referrers from registries with bounds
// on everything that a registry could make arbitrarily large.
package oci

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/dray-project/dray/pipeline"
)

// Config says how registries are reached.
type Config struct {
	// Hosts are the registries that need settings.
	Hosts []pipeline.RegistryHost
	// Keychain has the credentials for hosts that are not in Hosts; nil means
	// that those are used anonymously.
	Keychain authn.Keychain
	// Transport carries the requests; nil means one with sensible timeouts.
	Transport http.RoundTripper
}

// Access opens sessions with registries.
type Access struct {
	hosts     map[string]pipeline.RegistryHost
	keychain  authn.Keychain
	transport http.RoundTripper
}

// New checks the configuration.
func New(c Config) (*Access, error) {
	a := &Access{hosts: map[string]pipeline.RegistryHost{}, keychain: c.Keychain}
	for _, h := range c.Hosts {
		reg, err := name.NewRegistry(h.Host)
		if err != nil || h.Host == "" {
			return nil, fmt.Errorf("setting Hosts: %q: want a host or host:port, without a scheme or path: %w", h.Host, pipeline.ErrInvalid)
		}
		// The library's name for the host: Docker Hub has two.
		key := reg.RegistryStr()
		if _, twice := a.hosts[key]; twice {
			return nil, fmt.Errorf("setting Hosts: %q is listed twice: %w", h.Host, pipeline.ErrInvalid)
		}
		a.hosts[key] = h
	}
	base := c.Transport
	if base == nil {
		base = &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
			ForceAttemptHTTP2:     true,
			MaxIdleConnsPerHost:   8,
			IdleConnTimeout:       90 * time.Second,
			TLSHandshakeTimeout:   10 * time.Second,
			ResponseHeaderTimeout: time.Minute,
		}
	}
	a.transport = transport.NewRetry(&guard{inner: base, hosts: a.hosts},
		transport.WithRetryBackoff(remote.Backoff{Duration: 250 * time.Millisecond, Factor: 3, Jitter: 0.1, Steps: 4}),
		transport.WithRetryPredicate(worthRetrying),
		transport.WithRetryStatusCodes(http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
			http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout))
	return a, nil
}

func worthRetrying(err error) bool {
	var t interface{ Temporary() bool }
	if errors.As(err, &t) && t.Temporary() {
		return true
	}
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, net.ErrClosed)
}

// PlainHTTP reports whether the repository's registry is spoken to without TLS.
func (a *Access) PlainHTTP(repository string) bool {
	repo, err := name.NewRepository(repository)
	if err != nil {
		return false
	}
	return a.hosts[repo.RegistryStr()].PlainHTTP
}

// Resolve implements authn.Keychain. The credentials of a listed host are for
// that host, and a listed host gets no others.
func (a *Access) Resolve(r authn.Resource) (authn.Authenticator, error) {
	return a.ResolveContext(context.Background(), r)
}

// ResolveContext implements authn.ContextKeychain.
func (a *Access) ResolveContext(ctx context.Context, r authn.Resource) (authn.Authenticator, error) {
	if h, listed := a.hosts[r.RegistryStr()]; listed {
		if h.Username == "" && h.Password == "" {
			return authn.Anonymous, nil
		}
		return &authn.Basic{Username: h.Username, Password: h.Password}, nil
	}
	if a.keychain == nil {
		return authn.Anonymous, nil
	}
	return authn.Resolve(ctx, a.keychain, r)
}

// Read opens a session that may read the repository.
func (a *Access) Read(ctx context.Context, repository string) (*Session, error) {
	return a.open(ctx, repository, transport.PullScope)
}

// Write opens a session that may read and write the repository.
func (a *Access) Write(ctx context.Context, repository string) (*Session, error) {
	return a.open(ctx, repository, transport.PushScope)
}

func (a *Access) open(ctx context.Context, repository, scope string) (*Session, error) {
	var opts []name.Option
	if a.PlainHTTP(repository) {
		opts = append(opts, name.Insecure)
	}
	repo, err := name.NewRepository(repository, opts...)
	if err != nil {
		return nil, pipeline.Permanent(fmt.Errorf("repository %q: %w: %w", repository, err, pipeline.ErrInvalid))
	}
	auth, err := authn.Resolve(ctx, a, repo)
	if err != nil {
		return nil, fmt.Errorf("find the credentials for %s: %w", repo.RegistryStr(), err)
	}
	rt, err := transport.NewWithContext(ctx, repo.Registry, auth, a.transport, []string{repo.Scope(scope)})
	if err != nil {
		return nil, fmt.Errorf("reach the registry %s: %w", repo.RegistryStr(), err)
	}
	return newSession(repo, rt)
}
