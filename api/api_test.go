package api_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dray-project/dray/api"
	"github.com/dray-project/dray/api/apitest"
	"github.com/dray-project/dray/pipeline"
)

// testForge signs like a forge and counts how often it was asked to parse.
type testForge struct{ parsed atomic.Int32 }

func (f *testForge) Verify(secret []byte, header http.Header, body []byte) error {
	mac := hmac.New(sha256.New, secret)
	mac.Write(body)
	if hmac.Equal([]byte(hex.EncodeToString(mac.Sum(nil))), []byte(header.Get("X-Sig"))) {
		return nil
	}
	return pipeline.ErrUnverified
}

func (f *testForge) Parse(header http.Header, body []byte) (pipeline.Event, string, error) {
	f.parsed.Add(1)
	var e pipeline.Event
	if err := json.Unmarshal(body, &e); err != nil {
		return e, "", fmt.Errorf("%v: %w", err, pipeline.ErrInvalid)
	}
	return e, header.Get("X-Id"), nil
}

// server is an API under test, with what it logged.
type server struct {
	t     testing.TB
	store *apitest.Store
	forge *testForge
	api   *api.API
	url   string
	logs  *syncBuffer
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func config(store *apitest.Store, forge api.Forge, log io.Writer) api.Config {
	return api.Config{
		Store:  store,
		Forges: map[string]api.Forge{"github": forge},
		Hooks: []api.Hook{
			{Forge: "github", Source: "acme/hello-go", Project: "hello-go", Secret: "secret-one"},
			{Forge: "github", Source: "acme/leaky", Project: "leaky", Secret: "secret-two"},
		},
		PublicKeyPEM:   []byte(apitest.PublicKey),
		TrustedRoot:    []byte(`{"mediaType":"application/vnd.dev.sigstore.trustedroot+json;version=0.1"}`),
		VerifyCommands: func(img pipeline.Image) []string { return []string{"dray verify " + img.String()} },
		Log:            slog.New(slog.NewJSONHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Now:            func() time.Time { return apitest.Clock },
		Version:        "v0.0.0-test",
		Poll:           time.Millisecond,
	}
}

func newServer(t testing.TB, change ...func(*api.Config)) *server {
	t.Helper()
	s := &server{t: t, store: apitest.Sample(), forge: &testForge{}, logs: &syncBuffer{}}
	c := config(s.store, s.forge, s.logs)
	for _, f := range change {
		f(&c)
	}
	var err error
	if s.api, err = api.New(c); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(s.api)
	t.Cleanup(srv.Close)
	t.Cleanup(s.api.Drain)
	s.url = srv.URL
	return s
}

// answer is a response that was read to its end.
type answer struct {
	*http.Response
	body string
}

func (a answer) problem(t testing.TB) api.Problem {
	t.Helper()
	if got := a.Header.Get("Content-Type"); got != "application/problem+json" {
		t.Fatalf("status %d has content type %q: %s", a.StatusCode, got, a.body)
	}
	var p api.Problem
	if err := json.Unmarshal([]byte(a.body), &p); err != nil {
		t.Fatalf("%v: %s", err, a.body)
	}
	if p.Status != a.StatusCode || !strings.HasPrefix(p.Type, "urn:dray:problem:") || p.Title == "" || !strings.HasPrefix(p.Instance, "urn:dray:request:") {
		t.Fatalf("incomplete problem: %s", a.body)
	}
	return p
}

// send sends a request; a header value may be given as "Name: value".
func (s *server) send(method, path, body string, headers ...string) answer {
	s.t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), method, s.url+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	return s.do(req)
}

func (s *server) do(req *http.Request) answer {
	s.t.Helper()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return answer{resp, string(body)}
}

const auth = "Authorization: Bearer dray_test"

func (s *server) get(path string, headers ...string) answer {
	s.t.Helper()
	return s.send("GET", path, "", append([]string{auth}, headers...)...)
}

func (s *server) want(a answer, status int, name string) api.Problem {
	s.t.Helper()
	if a.StatusCode != status {
		s.t.Fatalf("status %d, want %d: %s", a.StatusCode, status, a.body)
	}
	p := a.problem(s.t)
	if p.Type != "urn:dray:problem:"+name {
		s.t.Fatalf("type %s, want %s: %s", p.Type, name, a.body)
	}
	return p
}

func (s *server) ok(a answer, status int, v any) {
	s.t.Helper()
	if a.StatusCode != status {
		s.t.Fatalf("status %d, want %d: %s", a.StatusCode, status, a.body)
	}
	if v != nil {
		if err := json.Unmarshal([]byte(a.body), v); err != nil {
			s.t.Fatalf("%v: %s", err, a.body)
		}
	}
}

func TestConfigNamesWhatIsWrong(t *testing.T) {
	for want, change := range map[string]func(*api.Config){
		`"leaky" has no webhook secret`:     func(c *api.Config) { c.Hooks[1].Secret = "" },
		`"hello-go" has no webhook secret`:  func(c *api.Config) { c.Hooks[0].Secret = " \n" },
		`both watch ACME/hello-go`:          func(c *api.Config) { c.Hooks[1].Source = "ACME/hello-go" },
		`project "hello-go" has two`:        func(c *api.Config) { c.Hooks[1].Project = "hello-go" },
		`unknown forge "gitlab"`:            func(c *api.Config) { c.Hooks[0].Forge = "gitlab" },
		`a project and a source`:            func(c *api.Config) { c.Hooks[0].Source = "" },
		`the public key is not PEM`:         func(c *api.Config) { c.PublicKeyPEM = []byte("nonsense") },
		`the trusted root is not JSON`:      func(c *api.Config) { c.TrustedRoot = nil },
		`a store is required`:               func(c *api.Config) { c.Store = nil },
		`a logger is required`:              func(c *api.Config) { c.Log = nil },
		`readiness check needs a name`:      func(c *api.Config) { c.Checks = []api.Check{{}} },
		`forge "a/b": want a name of lower`: func(c *api.Config) { c.Forges["a/b"] = &testForge{} },
	} {
		c := config(apitest.New(), &testForge{}, io.Discard)
		change(&c)
		if _, err := api.New(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestAuthentication(t *testing.T) {
	s := newServer(t)
	past := apitest.Clock
	s.store.Tokens["dray_past"] = pipeline.Token{Name: "old", ExpiresAt: &past}
	for name, headers := range map[string][]string{
		"none":      nil,
		"basic":     {"Authorization: Basic ZHJheV90ZXN0Og=="},
		"no secret": {"Authorization: Bearer "},
		"unknown":   {"Authorization: Bearer dray_other"},
		"foreign":   {"Authorization: Bearer ghp_123456"},
		"expired":   {"Authorization: Bearer dray_past"},
		"long":      {"Authorization: Bearer dray_" + strings.Repeat("x", 600)},
	} {
		t.Run(name, func(t *testing.T) {
			a := s.send("GET", "/api/v1/runs", "", headers...)
			s.want(a, 401, "unauthenticated")
			if got := a.Header.Get("WWW-Authenticate"); !strings.HasPrefix(got, `Bearer realm="dray"`) {
				t.Errorf("WWW-Authenticate is %q", got)
			}
		})
	}
	// Every operation but the public ones asks for a token.
	for _, path := range []string{"/runs", "/runs/x", "/runs/x/events", "/promotions", "/promotions/x", "/promotions/x/events",
		"/images/x", "/images/x/sbom", "/images/x/provenance", "/packages?name=x", "/version"} {
		s.want(s.send("GET", "/api/v1"+path, ""), 401, "unauthenticated")
	}
	s.want(s.send("POST", "/api/v1/promotions", `{}`), 401, "unauthenticated")
	s.ok(s.send("GET", "/api/v1/version", "", "Authorization: bearer dray_test"), 200, nil)
	for _, secret := range []string{"dray_test", "dray_other", "ghp_123456", "dray_past"} {
		if strings.Contains(s.logs.String(), secret) {
			t.Errorf("the log has the token %s", secret)
		}
	}
	if !strings.Contains(s.logs.String(), `"token":"grace"`) {
		t.Error("the log does not say whose token it was")
	}
}

func TestPublicFiles(t *testing.T) {
	s := newServer(t)
	if a := s.send("GET", "/api/v1/public-key", ""); a.StatusCode != 200 || a.body != apitest.PublicKey || a.Header.Get("Content-Type") != "application/x-pem-file" {
		t.Errorf("public key: %d %q %s", a.StatusCode, a.body, a.Header.Get("Content-Type"))
	}
	if a := s.send("GET", "/api/v1/trusted-root.json", ""); a.StatusCode != 200 || !json.Valid([]byte(a.body)) || a.Header.Get("Content-Type") != "application/json" {
		t.Errorf("trusted root: %d %q", a.StatusCode, a.body)
	}
}

func TestHealth(t *testing.T) {
	var failing atomic.Bool
	s := newServer(t, func(c *api.Config) {
		c.Checks = []api.Check{{Name: "builder", Run: func(context.Context) error {
			if failing.Load() {
				return apitest.ErrInjected
			}
			return nil
		}}}
	})
	var health struct{ Checks []string }
	s.ok(s.send("GET", "/livez", ""), 200, nil)
	s.ok(s.send("GET", "/readyz", ""), 200, &health)
	if got := strings.Join(health.Checks, " "); got != "database builder" {
		t.Errorf("checked %q", got)
	}
	failing.Store(true)
	s.store.Fail("Ready", apitest.ErrInjected, 1, false)
	p := s.want(s.send("GET", "/readyz", ""), 503, "unavailable")
	if len(p.Errors) != 2 || p.Errors[0].Location != "database" || p.Errors[1].Location != "builder" {
		t.Errorf("failing: %+v", p.Errors)
	}
	if strings.Contains(p.Errors[0].Message, "hunter2") || !strings.Contains(s.logs.String(), "hunter2") {
		t.Error("the cause belongs into the log and not into the answer")
	}
	failing.Store(false)
	s.ok(s.send("GET", "/readyz", ""), 200, nil)
	s.api.Drain()
	s.want(s.send("GET", "/readyz", ""), 503, "unavailable")
	s.ok(s.send("GET", "/livez", ""), 200, nil)
}

func TestNoRouteIsAProblem(t *testing.T) {
	s := newServer(t)
	s.want(s.get("/api/v1/nothing"), 404, "not-found")
	s.want(s.get("/"), 404, "not-found")
	a := s.send("DELETE", "/api/v1/runs", "", auth)
	s.want(a, 405, "method-not-allowed")
	if got := a.Header.Get("Allow"); got != "GET, HEAD" {
		t.Errorf("Allow is %q", got)
	}
	s.want(s.send("GET", "/webhooks/github", ""), 405, "method-not-allowed")
	s.want(s.send("POST", "/webhooks/gitlab", "{}"), 404, "not-found")
}

func TestSecurityHeaders(t *testing.T) {
	s := newServer(t)
	for _, path := range []string{"/api/v1/runs", "/nothing", "/openapi.json"} {
		h := s.get(path).Header
		if h.Get("X-Content-Type-Options") != "nosniff" || h.Get("X-Frame-Options") != "DENY" ||
			!strings.Contains(h.Get("Content-Security-Policy"), "default-src 'none'") || h.Get("X-Request-Id") == "" {
			t.Errorf("%s: %v", path, h)
		}
	}
}

func TestUnforeseenErrorsStayInside(t *testing.T) {
	s := newServer(t)
	for method, path := range map[string]string{
		"Runs": "/runs", "RunDetail": "/runs/x", "Promotions": "/promotions", "PromotionDetail": "/promotions/x",
		"ImageDetails": "/images/" + string(apitest.Good.Digest), "SBOM": "/images/" + string(apitest.Good.Digest) + "/sbom?platform=linux/amd64",
		"Packages": "/packages?name=x", "TokenBySecret": "/runs",
	} {
		s.store.Fail(method, apitest.ErrInjected, 1, false)
		a := s.get("/api/v1" + path)
		p := s.want(a, 500, "internal")
		id := a.Header.Get("X-Request-Id")
		if strings.Contains(a.body, "hunter2") || !strings.Contains(p.Detail, id) || p.Instance != "urn:dray:request:"+id {
			t.Errorf("%s: %s", method, a.body)
		}
		found := false
		for line := range strings.Lines(s.logs.String()) {
			found = found || strings.Contains(line, id) && strings.Contains(line, "hunter2")
		}
		if !found {
			t.Errorf("%s: the log has no line with the id and the cause", method)
		}
	}
}

func TestPanicIsAProblem(t *testing.T) {
	s := newServer(t, func(c *api.Config) {
		c.VerifyCommands = func(pipeline.Image) []string { panic("boom") }
	})
	p := s.want(s.get("/api/v1/images/"+string(apitest.Good.Digest)), 500, "internal")
	if strings.Contains(p.Detail, "boom") || !strings.Contains(s.logs.String(), "boom") {
		t.Errorf("detail %q", p.Detail)
	}
	s.ok(s.get("/api/v1/runs"), 200, nil)
}

func TestServerBounds(t *testing.T) {
	s := newServer(t)
	srv := s.api.Server("127.0.0.1:0")
	if srv.ReadHeaderTimeout == 0 || srv.ReadTimeout == 0 || srv.IdleTimeout == 0 || srv.MaxHeaderBytes == 0 || srv.WriteTimeout != 0 || srv.Handler == nil {
		t.Errorf("%+v", srv)
	}
}
