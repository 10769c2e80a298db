//go:build linux

package stack

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

const testSecret = "a secret of the test's"

// hook is a receiver of webhooks that keeps what it got.
type hook struct {
	t        *testing.T
	payloads chan payload
	answer   http.HandlerFunc
}

type payload struct {
	Ref, Before, After        string
	Created, Deleted, Forced  bool
	delivery, event, mimeType string
	HeadCommit                *struct{ ID, Timestamp, Message string } `json:"head_commit"`
	Commits                   []struct{ ID string }
	Repository                struct {
		FullName string `json:"full_name"`
		CloneURL string `json:"clone_url"`
	}
	Pusher struct{ Name, Email string }
}

func (h *hook) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		h.t.Error(err)
	}
	mac := hmac.New(sha256.New, []byte(testSecret))
	mac.Write(body)
	if want := "sha256=" + hex.EncodeToString(mac.Sum(nil)); r.Header.Get("X-Hub-Signature-256") != want {
		h.t.Errorf("signature %q, want %q", r.Header.Get("X-Hub-Signature-256"), want)
	}
	p := payload{
		delivery: r.Header.Get("X-GitHub-Delivery"), event: r.Header.Get("X-GitHub-Event"),
		mimeType: r.Header.Get("Content-Type"),
	}
	if err := json.Unmarshal(body, &p); err != nil {
		h.t.Errorf("%v: %s", err, body)
	}
	h.payloads <- p
	h.answer(w, r)
}

func accepted(w http.ResponseWriter, _ *http.Request) {
	w.WriteHeader(http.StatusAccepted)
	io.WriteString(w, `{"run":"run_00000000000000000001","duplicate":false,"note":"queued"}`)
}

func gitStack(t *testing.T, webhook string) *Stack {
	t.Helper()
	bin := os.Getenv("DRAY_TEST_BIN")
	if bin == "" {
		if os.Getenv("DRAY_TEST_REQUIRE") == "1" {
			t.Fatal("DRAY_TEST_BIN is not set: want the directory of dray-dev")
		}
		t.Skip("DRAY_TEST_BIN is not set: want the directory of dray-dev")
	}
	s, err := Start(t.Context(), Config{
		Dir: testDir(t), Bin: bin, Git: true, Webhook: webhook, WebhookSecret: testSecret,
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestPushEvents(t *testing.T) {
	h := &hook{t: t, payloads: make(chan payload, 10), answer: accepted}
	server := httptest.NewServer(h)
	defer server.Close()
	s := gitStack(t, server.URL+"/webhooks/github")
	ctx := t.Context()

	source := t.TempDir()
	write := func(name, content string) {
		if err := os.WriteFile(filepath.Join(source, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("hello.txt", "hello\n")
	write("Dockerfile.in", "FROM {{base/static}}\n")
	sample := Sample{Name: "acme/sample", Source: source, Bases: map[string]string{"base/static": "example/static@sha256:0"}}
	w, err := s.Repository(ctx, sample)
	if err != nil {
		t.Fatal(err)
	}
	first, err := w.Commit(ctx, "nothing")
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(filepath.Join(w.Dir, "Dockerfile")); string(b) != "FROM example/static@sha256:0\n" {
		t.Errorf("the Dockerfile is %q", b)
	}
	push := func(refs ...string) string {
		t.Helper()
		var out bytes.Buffer
		if err := w.Push(ctx, &out, refs...); err != nil {
			t.Fatalf("%v: %s", err, &out)
		}
		return out.String()
	}
	next := func() payload {
		t.Helper()
		select {
		case p := <-h.payloads:
			return p
		case <-time.After(30 * time.Second):
			t.Fatal("no event came")
			return payload{}
		}
	}

	out := push("main")
	if want := "dray: main: accepted, run run_00000000000000000001"; !strings.Contains(out, "remote: "+want) {
		t.Errorf("whoever pushes does not see %q: %s", want, out)
	}
	p := next()
	if p.Ref != "refs/heads/main" || p.After != first || p.Before != strings.Repeat("0", 40) || !p.Created {
		t.Errorf("a new branch: %+v", p)
	}
	if p.HeadCommit == nil || p.HeadCommit.ID != first {
		t.Fatalf("the head commit of a new branch: %+v", p.HeadCommit)
	}
	if at, err := time.Parse(time.RFC3339, p.HeadCommit.Timestamp); err != nil || !at.Equal(firstCommit.Add(time.Hour)) {
		t.Errorf("the time of the head commit: %q", p.HeadCommit.Timestamp)
	}
	if p.Repository.FullName != "acme/sample" || p.Repository.CloneURL != w.URL || p.Pusher.Name == "" {
		t.Errorf("the repository and the pusher: %+v %+v", p.Repository, p.Pusher)
	}
	uuid := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	if !uuid.MatchString(p.delivery) || p.event != "push" || p.mimeType != "application/json" {
		t.Errorf("the headers: delivery %q, event %q, type %q", p.delivery, p.event, p.mimeType)
	}

	// An annotated tag: after is the tag, the head commit is the commit.
	if err := w.Tag(ctx, "v1.0.0", "The first"); err != nil {
		t.Fatal(err)
	}
	push("v1.0.0")
	p = next()
	if p.Ref != "refs/tags/v1.0.0" || p.After == first || len(p.After) != 40 || p.HeadCommit == nil || p.HeadCommit.ID != first {
		t.Errorf("an annotated tag: %+v", p)
	}

	// A push too large for one request body, of known length at least.
	big := make([]byte, 3<<20)
	for i := range big { // incompressible, and the same each time
		big[i] = byte((i*i*2654435761 + i*40503) >> 13)
	}
	write("big.bin", string(big))
	if _, err := s.Repository(ctx, sample); err != nil {
		t.Fatal(err)
	}
	second, err := w.Commit(ctx, "nothing")
	if err != nil {
		t.Fatal(err)
	}
	push("main", "HEAD:refs/heads/other")
	for range 2 {
		p = next()
		switch p.Ref {
		case "refs/heads/main":
			if p.Before != first || p.After != second || p.Created || p.Forced || len(p.Commits) != 1 || p.Commits[0].ID != second {
				t.Errorf("a branch that moved: %+v", p)
			}
		case "refs/heads/other":
			if !p.Created {
				t.Errorf("one more branch: %+v", p)
			}
		default:
			t.Errorf("an event for %s", p.Ref)
		}
	}
	push(":refs/heads/other")
	if p = next(); !p.Deleted || p.HeadCommit != nil || p.After != strings.Repeat("0", 40) {
		t.Errorf("a branch that is gone: %+v", p)
	}

	// The same push again is no push; the event can be had again.
	if out := push("v1.0.0"); !strings.Contains(out, "up-to-date") {
		t.Errorf("a push of nothing: %s", out)
	}
	if out, err := s.Git.Redeliver(ctx, "acme/sample", "refs/tags/v1.0.0"); err != nil || !strings.Contains(out, "accepted, run run_") {
		t.Errorf("redelivered: %q, %v", out, err)
	}
	if p = next(); p.Ref != "refs/tags/v1.0.0" || p.HeadCommit.ID != first {
		t.Errorf("redelivered: %+v", p)
	}
}

func TestPushSaysWhatBecameOfIt(t *testing.T) {
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		want   string
	}{
		"accepted before": {func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, `{"run":"run_1","duplicate":true}`)
		}, "accepted before, run run_1"},
		"nothing to build": {func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, `{"duplicate":false,"note":"the branch is gone"}`)
		}, "the branch is gone"},
		"refused": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusNotFound)
			io.WriteString(w, `{"title":"Not Found","detail":"no project watches acme/sample"}`)
		}, "not delivered: refused with 404 Not Found: no project watches acme/sample"},
	} {
		t.Run(name, func(t *testing.T) {
			h := &hook{t: t, payloads: make(chan payload, 10), answer: c.answer}
			server := httptest.NewServer(h)
			defer server.Close()
			if out := pushOnce(t, gitStack(t, server.URL)); !strings.Contains(out, "remote: dray: main: "+c.want) {
				t.Errorf("whoever pushes does not see %q: %s", c.want, out)
			}
		})
	}
}

// A receiver that is about to start, as after a restart, gets the event, once
// accepted under one delivery id.
func TestPushWaitsForTheReceiver(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	s := gitStack(t, "http://"+address)

	h := &hook{t: t, payloads: make(chan payload, 10)}
	answers := 0
	h.answer = func(w http.ResponseWriter, r *http.Request) {
		if answers++; answers == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		accepted(w, r)
	}
	server := httptest.NewUnstartedServer(h)
	go func() {
		time.Sleep(time.Second)
		if server.Listener, err = net.Listen("tcp", address); err == nil {
			server.Start()
		}
	}()
	out := pushOnce(t, s)
	defer server.Close()
	if !strings.Contains(out, "accepted, run run_") {
		t.Errorf("not accepted: %s", out)
	}
	if first, second := <-h.payloads, <-h.payloads; first.delivery != second.delivery {
		t.Errorf("tried again under another id: %s, then %s", first.delivery, second.delivery)
	}
}

func pushOnce(t *testing.T, s *Stack) string {
	t.Helper()
	source := t.TempDir()
	if err := os.WriteFile(filepath.Join(source, "hello.txt"), []byte("hello\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	w, err := s.Repository(t.Context(), Sample{Name: "acme/sample", Source: source})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := w.Push(t.Context(), &out, "main"); err != nil {
		t.Fatalf("%v: %s", err, &out)
	}
	return out.String()
}
