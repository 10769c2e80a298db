// Package signertest runs real registries of both kinds inside a test and puts
// images into them.
package signertest

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/inmemory" // the storage of Distribution
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/olareg/olareg"
	"github.com/olareg/olareg/config"
	"github.com/sirupsen/logrus"

	"github.com/dray-project/dray/pipeline"
)

// Registry is a registry that runs inside the test.
type Registry struct {
	// Host is "127.0.0.1:port", plain http.
	Host string

	mu       sync.Mutex
	handler  http.Handler
	override func(w http.ResponseWriter, r *http.Request, registry http.Handler)
	requests []string
}

// Kinds are the two kinds of registry: with and without the referrers API.
var Kinds = map[string]func(testing.TB) *Registry{"olareg": Olareg, "distribution": Distribution}

// Olareg starts a registry that has the referrers API, in small pages.
func Olareg(t testing.TB) *Registry {
	t.Helper()
	reg := olareg.New(config.Config{
		Storage: config.ConfigStorage{StoreType: config.StoreMem},
		API:     config.ConfigAPI{Referrer: config.ConfigAPIReferrer{Limit: 2000}},
		Log:     slog.New(slog.DiscardHandler),
	})
	t.Cleanup(func() { _ = reg.Close() })
	return serve(t, reg)
}

// Its logger is the process's own.
var quiet = sync.OnceFunc(func() { logrus.SetOutput(io.Discard) })

// Distribution starts a registry without the referrers API: clients fall back
// to the tag "sha256-<hex>".
func Distribution(t testing.TB) *Registry {
	t.Helper()
	quiet()
	c := &configuration.Configuration{Storage: configuration.Storage{
		"inmemory":    configuration.Parameters{},
		"maintenance": configuration.Parameters{"uploadpurging": map[any]any{"enabled": false}},
	}}
	c.HTTP.Secret = "signertest"
	ctx, cancel := context.WithCancel(context.Background())
	app := handlers.NewApp(ctx, c)
	t.Cleanup(func() { cancel(); _ = app.Shutdown() })
	return serve(t, app)
}

func serve(t testing.TB, h http.Handler) *Registry {
	r := &Registry{handler: h}
	server := httptest.NewServer(r)
	t.Cleanup(server.Close)
	r.Host = strings.TrimPrefix(server.URL, "http://")
	return r
}

// ServeHTTP implements http.Handler.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	r.requests = append(r.requests, req.Method+" "+req.URL.Path)
	override := r.override
	r.mu.Unlock()
	if override != nil {
		override(w, req, r.handler)
		return
	}
	r.handler.ServeHTTP(w, req)
}

// Override puts f before the registry; nil takes it away.
func (r *Registry) Override(f func(w http.ResponseWriter, req *http.Request, registry http.Handler)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.override = f
}

// Requests returns "METHOD /path" of the requests since the last call.
func (r *Registry) Requests() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	seen := r.requests
	r.requests = nil
	return seen
}

// Repository is one in the registry.
func (r *Registry) Repository(path string) string { return r.Host + "/" + path }

// Image pushes a small random image by digest.
func (r *Registry) Image(t testing.TB, path string) pipeline.Image {
	t.Helper()
	img, err := random.Image(100, 1)
	if err != nil {
		t.Fatal(err)
	}
	h, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	repo := Repo(t, r.Repository(path))
	if err := remote.Write(repo.Digest(h.String()), img); err != nil {
		t.Fatal(err)
	}
	return pipeline.Image{Repository: r.Repository(path), Digest: pipeline.Digest(h.String())}
}

// Index pushes an index of two images by digest and returns it and them.
func (r *Registry) Index(t testing.TB, path string) (index pipeline.Image, children []pipeline.Image) {
	t.Helper()
	idx, err := random.Index(100, 1, 2)
	if err != nil {
		t.Fatal(err)
	}
	h, err := idx.Digest()
	if err != nil {
		t.Fatal(err)
	}
	repo := Repo(t, r.Repository(path))
	if err := remote.WriteIndex(repo.Digest(h.String()), idx); err != nil {
		t.Fatal(err)
	}
	m, err := idx.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range m.Manifests {
		children = append(children, pipeline.Image{Repository: r.Repository(path), Digest: pipeline.Digest(d.Digest.String())})
	}
	return pipeline.Image{Repository: r.Repository(path), Digest: pipeline.Digest(h.String())}, children
}

// Repo parses a repository.
func Repo(t testing.TB, repository string) name.Repository {
	t.Helper()
	repo, err := name.NewRepository(repository, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	return repo
}

// Locker is a pipeline.Locker within the process.
type Locker struct {
	mu   sync.Mutex
	held map[string]chan struct{}
	// Keys that were locked so far.
	Keys []string
}

// Lock implements pipeline.Locker.
func (l *Locker) Lock(ctx context.Context, key string) (func(), error) {
	for {
		l.mu.Lock()
		if l.held == nil {
			l.held = map[string]chan struct{}{}
		}
		free, taken := l.held[key]
		if !taken {
			done := make(chan struct{})
			l.held[key] = done
			l.Keys = append(l.Keys, key)
			l.mu.Unlock()
			return func() {
				l.mu.Lock()
				delete(l.held, key)
				l.mu.Unlock()
				close(done)
			}, nil
		}
		l.mu.Unlock()
		select {
		case <-free:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
