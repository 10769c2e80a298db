package api_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/dray-project/dray/api/apitest"
	"github.com/dray-project/dray/pipeline"
)

func signature(secret, body string) string {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(body))
	return "X-Sig: " + hex.EncodeToString(mac.Sum(nil))
}

func (s *server) deliver(path, secret, id, body string) answer {
	s.t.Helper()
	return s.send("POST", path, body, signature(secret, body), "X-Id: "+id)
}

func push(source, ref string) string {
	return `{"kind":"push","source":"` + source + `","ref":"` + ref + `","after":"` + apitest.Commit + `"}`
}

func TestWebhookAccepts(t *testing.T) {
	s := newServer(t)
	for _, path := range []string{"/webhooks/github", "/webhooks/github/hello-go"} {
		body := push("Acme/Hello-Go", "refs/heads/"+path[10:])
		var first, again pipeline.Accepted
		a := s.deliver(path, "secret-one", "id"+path, body)
		s.ok(a, 202, &first)
		if first.Run == "" || first.Duplicate || a.Header.Get("Location") != "/api/v1/runs/"+string(first.Run) {
			t.Fatalf("%s: %s, Location %s", path, a.body, a.Header.Get("Location"))
		}
		a = s.deliver(path, "secret-one", "id"+path, body)
		s.ok(a, 202, &again)
		if again.Run != first.Run || !again.Duplicate || a.Header.Get("Location") != "/api/v1/runs/"+string(first.Run) {
			t.Fatalf("again: %s", a.body)
		}
		s.ok(s.deliver(path, "secret-one", "other"+path, body), 202, &again)
		if again.Run != first.Run || !again.Duplicate {
			t.Fatalf("other id: %+v", again)
		}
	}
	got := s.store.Accepted()
	if len(got) != 2 {
		t.Fatalf("%d deliveries started something, want 2", len(got))
	}
	sum := sha256.Sum256([]byte(push("Acme/Hello-Go", "refs/heads/github")))
	d := got[0]
	if d.Project != "hello-go" || d.Forge != "github" || d.Event.Source != "acme/hello-go" || d.ReceivedAt != apitest.Clock ||
		d.BodyDigest != pipeline.Digest("sha256:"+hex.EncodeToString(sum[:])) {
		t.Errorf("delivery %+v", d)
	}
}

func TestWebhookOfARetriedRun(t *testing.T) {
	s := newServer(t)
	body := push("acme/hello-go", "refs/heads/main")
	var first, again pipeline.Accepted
	s.ok(s.deliver("/webhooks/github", "secret-one", "one", body), 202, &first)
	s.store.End(first.Run.Job(), pipeline.StateFailed, "x")
	var retry pipeline.Run
	s.ok(s.send("POST", "/api/v1/runs/"+string(first.Run)+"/retry", "", auth), 202, &retry)
	for _, id := range []string{"one", "two"} {
		a := s.deliver("/webhooks/github", "secret-one", id, body)
		s.ok(a, 202, &again)
		if again.Run != retry.ID || !again.Duplicate || a.Header.Get("Location") != "/api/v1/runs/"+string(retry.ID) {
			t.Errorf("delivery %s: %s, Location %s", id, a.body, a.Header.Get("Location"))
		}
	}
}

func TestWebhookWithoutWork(t *testing.T) {
	s := newServer(t)
	for name, tc := range map[string]struct {
		body   string
		status int
		note   string
	}{
		"ping":                 {`{"kind":"ping","source":"acme/hello-go"}`, 200, "pong"},
		"ping, no repository":  {`{"kind":"ping"}`, 200, "pong"},
		"other event":          {`{"kind":"issues"}`, 202, `ignored: Dray does not act on "issues" events`},
		"deleted ref":          {`{"kind":"push","source":"acme/hello-go","ref":"refs/heads/x","deleted":true}`, 202, "nothing to build"},
		"deleted ref at a tag": {`{"kind":"push","source":"acme/hello-go","ref":"refs/tags/x","deleted":true}`, 202, "nothing to build"},
	} {
		var got pipeline.Accepted
		a := s.deliver("/webhooks/github", "secret-one", name, tc.body)
		s.ok(a, tc.status, &got)
		if got.Run != "" || !strings.Contains(got.Note, tc.note) || a.Header.Get("Location") != "" {
			t.Errorf("%s: %s", name, a.body)
		}
	}
}

func TestWebhookRefuses(t *testing.T) {
	known, unknown := push("acme/hello-go", "refs/heads/main"), push("acme/nothing", "refs/heads/main")
	for name, tc := range map[string]struct {
		path, secret, body string
		status             int
		problem            string
		parsed             bool
	}{
		"bad signature":                         {"", "wrong", known, 401, "bad-signature", false},
		"bad signature, unknown repository":     {"", "wrong", unknown, 401, "bad-signature", false},
		"bad signature, nonsense":               {"", "wrong", "{{{", 401, "bad-signature", false},
		"bad signature, no body":                {"", "wrong", "", 401, "bad-signature", false},
		"unknown repository":                    {"", "secret-one", unknown, 404, "not-found", true},
		"ping of an unknown repository":         {"", "secret-one", `{"kind":"ping","source":"a/b"}`, 404, "not-found", true},
		"another project's secret":              {"", "secret-two", known, 401, "bad-signature", true},
		"nonsense, signed":                      {"", "secret-one", "{{{", 400, "malformed", true},
		"own address, bad signature":            {"/hello-go", "wrong", known, 401, "bad-signature", false},
		"own address, another project's secret": {"/hello-go", "secret-two", known, 401, "bad-signature", false},
		"own address, another's repository":     {"/hello-go", "secret-one", push("acme/leaky", "refs/heads/main"), 404, "not-found", true},
		"own address, unknown repository":       {"/hello-go", "secret-one", unknown, 404, "not-found", true},
		"address of no project":                 {"/nothing", "secret-one", known, 401, "bad-signature", false},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t)
			s.t = t
			s.want(s.deliver("/webhooks/github"+tc.path, tc.secret, "id", tc.body), tc.status, tc.problem)
			if n := len(s.store.Accepted()); n != 0 {
				t.Errorf("%d deliveries were accepted", n)
			}
			project := ""
			if tc.path == "/hello-go" {
				project = "hello-go"
			}
			if r := s.store.Refused(); len(r) != 1 || r[0].Forge != "github" || r[0].Project != project || !r[0].From.IsValid() || !strings.Contains(r[0].Reason, tc.problem) {
				t.Errorf("noted as refused: %+v", r)
			}
			if parsed := s.forge.parsed.Load() > 0; parsed != tc.parsed {
				t.Errorf("parsed: %v, want %v", parsed, tc.parsed)
			}
		})
	}
}

// An unsigned caller learns nothing: whatever it says, the answers differ in
// the request's id only.
func TestWebhookTellsStrangersNothing(t *testing.T) {
	s := newServer(t)
	seen := map[string]bool{}
	for _, path := range []string{"", "/hello-go", "/nothing"} {
		for _, body := range []string{push("acme/hello-go", "refs/heads/main"), push("acme/nothing", "refs/heads/main"), "{{{"} {
			p := s.want(s.deliver("/webhooks/github"+path, "wrong", "id", body), 401, "bad-signature")
			seen[p.Detail+p.Title] = true
		}
	}
	if len(seen) != 1 {
		t.Errorf("different answers: %v", seen)
	}
}

func TestWebhookStoreFails(t *testing.T) {
	s := newServer(t)
	body := push("acme/hello-go", "refs/heads/main")
	s.store.Fail("Accept", apitest.ErrInjected, 1, false)
	s.want(s.deliver("/webhooks/github", "secret-one", "id", body), 500, "internal")
	// The commit went through and the answer did not: the redelivery finds it.
	s.store.Fail("Accept", apitest.ErrInjected, 1, true)
	s.want(s.deliver("/webhooks/github", "secret-one", "id", body), 500, "internal")
	var a pipeline.Accepted
	s.ok(s.deliver("/webhooks/github", "secret-one", "id", body), 202, &a)
	if !a.Duplicate || a.Run == "" || len(s.store.Accepted()) != 1 {
		t.Errorf("%+v", a)
	}
}

func TestWebhookSize(t *testing.T) {
	const limit = 25 << 20
	s := newServer(t)
	chunked := func(r io.Reader) answer {
		t.Helper()
		req, err := http.NewRequest("POST", s.url+"/webhooks/github", io.NopCloser(r))
		if err != nil {
			t.Fatal(err)
		}
		req.ContentLength = -1
		return s.do(req)
	}
	zeros := func(n int64) io.Reader { return io.LimitReader(zero{}, n) }
	// One byte over: with a length, and without.
	s.want(s.send("POST", "/webhooks/github", strings.Repeat("0", limit+1), "X-Sig: 00"), 413, "too-large")
	s.want(chunked(zeros(limit+1)), 413, "too-large")
	// Exactly the cap is read and judged by its signature.
	s.want(chunked(zeros(limit)), 401, "bad-signature")
	s.want(chunked(zeros(2<<20)), 401, "bad-signature")
	if s.forge.parsed.Load() != 0 {
		t.Error("something was parsed")
	}
}

// A body that never ends is cut off at the cap; the sender sees the answer or
// the connection close.
func TestWebhookEndlessBody(t *testing.T) {
	s := newServer(t)
	sent := &counter{r: zero{}}
	req, err := http.NewRequest("POST", s.url+"/webhooks/github", io.NopCloser(sent))
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = -1
	resp, err := http.DefaultClient.Do(req)
	if err == nil {
		resp.Body.Close()
		if resp.StatusCode != 413 {
			t.Errorf("status %d", resp.StatusCode)
		}
	}
	if n := sent.count(); n > 64<<20 {
		t.Errorf("%d bytes were taken", n)
	}
	if !strings.Contains(s.logs.String(), `"status":413`) {
		t.Errorf("no 413 in the log: %s", s.logs.String())
	}
}

type zero struct{}

func (zero) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = '0'
	}
	return len(p), nil
}

type counter struct {
	r  io.Reader
	mu sync.Mutex
	n  int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n += int64(n)
	return n, err
}

func (c *counter) count() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

// Large deliveries share slots; every one of many at once is taken, if need be
// when it is delivered again as the answer says.
func TestWebhookManyLarge(t *testing.T) {
	s := newServer(t)
	body := `{"kind":"issues","pad":"` + strings.Repeat("x", 2<<20) + `"}`
	deliver := func() (status int, err error) {
		req, err := http.NewRequest("POST", s.url+"/webhooks/github", strings.NewReader(body))
		if err != nil {
			return 0, err
		}
		name, value, _ := strings.Cut(signature("secret-one", body), ": ")
		req.Header.Set(name, value)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return 0, err
		}
		defer resp.Body.Close()
		if resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get("Retry-After") == "" {
			return 0, errors.New("503 without Retry-After")
		}
		return resp.StatusCode, nil
	}
	var wg sync.WaitGroup
	for range 12 {
		wg.Go(func() {
			for {
				status, err := deliver()
				switch {
				case err != nil:
					t.Error(err)
				case status == http.StatusServiceUnavailable:
					continue
				case status != http.StatusAccepted:
					t.Errorf("status %d", status)
				}
				return
			}
		})
	}
	wg.Wait()
}
