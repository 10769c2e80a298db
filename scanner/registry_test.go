//go:build goexperiment.jsonv2

package scanner_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/inmemory"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/olareg/olareg"
	"github.com/olareg/olareg/config"
	"github.com/sirupsen/logrus"

	"github.com/dray-project/dray/deploy/vulndb"
	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/scanner"
)

// TestMain sends everything that would leave this machine into a trap: a scan
// talks to its two registries, which are on the loopback here, and nobody else.
func TestMain(m *testing.M) {
	trap, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	var caught atomic.Int64
	go func() {
		for {
			conn, err := trap.Accept()
			if err != nil {
				return
			}
			caught.Add(1)
			_ = conn.Close()
		}
	}()
	for _, v := range []string{"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"} {
		_ = os.Setenv(v, "http://"+trap.Addr().String())
	}
	_ = os.Unsetenv("NO_PROXY")
	_ = os.Unsetenv("no_proxy")
	logrus.SetOutput(io.Discard) // distribution's
	code := m.Run()
	if n := caught.Load(); n > 0 {
		println("the scanner tried to reach the internet:", n, "times")
		code = 1
	}
	os.Exit(code)
}

// testRegistry is a real registry whose answers a test may spoil.
type testRegistry struct {
	host   string
	server *httptest.Server

	mu       sync.Mutex
	spoil    func(path string, body []byte) []byte
	down     bool
	requests []string
}

func (r *testRegistry) serve(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		r.requests = append(r.requests, req.Method+" "+req.URL.Path)
		down, spoil := r.down, r.spoil
		r.mu.Unlock()
		switch {
		case down:
			http.Error(w, "the registry is being repaired", http.StatusForbidden)
		case spoil != nil && req.Method == http.MethodGet:
			rec := httptest.NewRecorder()
			next.ServeHTTP(rec, req)
			body := spoil(req.URL.Path, rec.Body.Bytes())
			for k, v := range rec.Header() {
				w.Header()[k] = v
			}
			w.Header().Del("Content-Length")
			w.WriteHeader(rec.Code)
			_, _ = w.Write(body)
		default:
			next.ServeHTTP(w, req)
		}
	})
}

func (r *testRegistry) set(down bool, spoil func(string, []byte) []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.down, r.spoil = down, spoil
}

func (r *testRegistry) count(part string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, req := range r.requests {
		if strings.Contains(req, part) {
			n++
		}
	}
	return n
}

func (r *testRegistry) start(t *testing.T, next http.Handler) *testRegistry {
	r.server = httptest.NewServer(r.serve(next))
	r.host = strings.TrimPrefix(r.server.URL, "http://")
	t.Cleanup(r.server.Close)
	return r
}

// newRegistry starts olareg, which has the referrers API.
func newRegistry(t *testing.T) *testRegistry {
	t.Helper()
	s := olareg.New(config.Config{Storage: config.ConfigStorage{StoreType: config.StoreMem}})
	t.Cleanup(func() { _ = s.Close() })
	return (&testRegistry{}).start(t, s)
}

// newDistribution starts the other kind.
func newDistribution(t *testing.T) *testRegistry {
	t.Helper()
	c := &configuration.Configuration{Storage: configuration.Storage{"inmemory": configuration.Parameters{}}}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	return (&testRegistry{}).start(t, handlers.NewApp(ctx, c))
}

func reference(t *testing.T, s string) name.Reference {
	t.Helper()
	ref, err := name.ParseReference(s, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// pushDatabase builds a database of the advisories and pushes it.
func pushDatabase(t *testing.T, to string, updatedAt time.Time, advisories ...vulndb.Advisory) pipeline.Digest {
	t.Helper()
	if len(advisories) == 0 {
		var err error
		if advisories, err = vulndb.Default(); err != nil {
			t.Fatal(err)
		}
	}
	dir, err := vulndb.Build(t.Context(), advisories, updatedAt)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	digest, err := vulndb.Push(t.Context(), dir, reference(t, to))
	if err != nil {
		t.Fatal(err)
	}
	return digest
}

// log keeps what was logged, for the tests that look and for those that fail.
type log struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// clock is a time that a test moves.
type clock struct{ at atomic.Int64 }

func (c *clock) now() time.Time      { return time.Unix(c.at.Load(), 0).UTC() }
func (c *clock) add(d time.Duration) { c.at.Add(int64(d / time.Second)) }

// start is when the tests play.
var start = time.Date(2026, 3, 10, 12, 0, 0, 0, time.UTC)

type bench struct {
	*scanner.Scanner
	clock *clock
	log   *log
	cfg   scanner.Config
}

// open makes a scanner against the database reference, with its own cache
// directory unless the configuration is changed.
func openScanner(t *testing.T, database string, change ...func(*scanner.Config)) *bench {
	t.Helper()
	b := &bench{clock: &clock{}, log: &log{}}
	b.clock.at.Store(start.Unix())
	b.cfg = scanner.Config{
		Database: database,
		MaxAge:   scanner.DefaultMaxAge,
		CacheDir: t.TempDir(),
		Log:      slog.New(slog.NewTextHandler(b.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Now:      b.clock.now,
	}
	for _, f := range change {
		f(&b.cfg)
	}
	s, err := scanner.New(t.Context(), b.cfg)
	if err != nil {
		t.Fatal(err)
	}
	b.Scanner = s
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return b
}
