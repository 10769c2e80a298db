// Package registrytest runs real registries inside a test, and puts a proxy
// that misbehaves on demand in front of them.
package registrytest

import (
	"context"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem" // DistributionOnDisk
	_ "github.com/distribution/distribution/v3/registry/storage/driver/inmemory"   // Distribution
	"github.com/olareg/olareg"
	"github.com/olareg/olareg/config"
	"github.com/sirupsen/logrus"

	"github.com/dray-project/dray/pipeline"
)

// Distribution starts a distribution v3 registry that keeps everything in
// memory and returns its host ("127.0.0.1:port", plain http). It has no
// referrers API: clients fall back to the tag "sha256-<hex>".
func Distribution(t testing.TB) string {
	t.Helper()
	return distribution(t, configuration.Storage{"inmemory": configuration.Parameters{}})
}

// DistributionOnDisk is Distribution with its content in a temporary
// directory, for tests that measure memory.
func DistributionOnDisk(t testing.TB) string {
	t.Helper()
	return distribution(t, configuration.Storage{
		"filesystem": configuration.Parameters{"rootdirectory": t.TempDir()},
	})
}

// The registry's logger is the process's own and cannot be given per instance.
var quiet = sync.OnceFunc(func() { logrus.SetOutput(io.Discard) })

func distribution(t testing.TB, storage configuration.Storage) string {
	t.Helper()
	quiet()
	storage["maintenance"] = configuration.Parameters{
		"uploadpurging": map[any]any{"enabled": false},
	}
	storage["delete"] = configuration.Parameters{"enabled": true}
	c := &configuration.Configuration{Storage: storage}
	c.HTTP.Secret = "registrytest"
	ctx, cancel := context.WithCancel(context.Background())
	app := handlers.NewApp(ctx, c)
	t.Cleanup(func() {
		cancel()
		if err := app.Shutdown(); err != nil {
			t.Logf("distribution: shut down: %v", err)
		}
	})
	return Serve(t, app)
}

// Olareg starts an olareg registry that keeps everything in memory and returns
// its host ("127.0.0.1:port", plain http). It has the referrers API.
func Olareg(t testing.TB) string {
	t.Helper()
	return Serve(t, newOlareg(t, config.ConfigStorage{StoreType: config.StoreMem}))
}

// OlaregOnDisk is Olareg with its content in a temporary directory, for tests
// that measure memory. It answers one request at a time: when the first upload
// makes a repository, its store on disk races with reads.
func OlaregOnDisk(t testing.TB) string {
	t.Helper()
	server := newOlareg(t, config.ConfigStorage{StoreType: config.StoreDir, RootDir: t.TempDir()})
	var mu sync.Mutex
	return Serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		server.ServeHTTP(w, r)
	}))
}

func newOlareg(t testing.TB, storage config.ConfigStorage) http.Handler {
	t.Helper()
	storage.GC.Frequency = -1
	yes := true
	server := olareg.New(config.Config{
		Storage: storage,
		API:     config.ConfigAPI{DeleteEnabled: &yes, Blob: config.ConfigAPIBlob{DeleteEnabled: &yes}},
		Log:     slog.New(slog.DiscardHandler),
	})
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Logf("olareg: close: %v", err)
		}
	})
	return server
}

// Serve serves a handler on a free port of the loopback interface until the
// test ends, and returns "127.0.0.1:port".
func Serve(t testing.TB, h http.Handler) string {
	t.Helper()
	// A handler that waits for its client learns here that the test is over: a
	// server does not notice a lost client before it has read the whole body.
	ctx, cancel := context.WithCancel(context.Background())
	server := httptest.NewUnstartedServer(h)
	server.Config.BaseContext = func(net.Listener) context.Context { return ctx }
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.Start()
	t.Cleanup(func() {
		cancel()
		server.CloseClientConnections()
		server.Close()
	})
	return strings.TrimPrefix(server.URL, "http://")
}

// Locker is a pipeline.Locker within one process.
type Locker struct {
	mu    sync.Mutex
	locks map[string]chan struct{}
}

var _ pipeline.Locker = (*Locker)(nil)

// Lock implements pipeline.Locker.
func (l *Locker) Lock(ctx context.Context, key string) (func(), error) {
	l.mu.Lock()
	if l.locks == nil {
		l.locks = map[string]chan struct{}{}
	}
	lock, ok := l.locks[key]
	if !ok {
		lock = make(chan struct{}, 1)
		l.locks[key] = lock
	}
	l.mu.Unlock()
	select {
	case lock <- struct{}{}:
		return sync.OnceFunc(func() { <-lock }), nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
