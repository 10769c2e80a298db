package notify

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dray-project/dray/pipeline"
)

// queue is one in memory, whose waits pass at once.
type queue struct {
	mu      sync.Mutex
	fresh   []pipeline.Notice
	way     map[string][]*item
	waits   []time.Duration
	changed chan struct{}
}

type item struct {
	pipeline.NoticeDelivery
	delivered, over bool
	why             string
}

func newQueue(notices ...pipeline.Notice) *queue {
	return &queue{fresh: notices, way: map[string][]*item{}, changed: make(chan struct{}, 1000)}
}

func (q *queue) GiveNotices(_ context.Context, to func(pipeline.Notice) []string) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := len(q.fresh)
	for i, notice := range q.fresh {
		body, err := json.Marshal(notice)
		if err != nil {
			return 0, err
		}
		for _, r := range to(notice) {
			q.way[r] = append(q.way[r], &item{NoticeDelivery: pipeline.NoticeDelivery{ID: int64(i + 1), Body: body, At: notice.At}})
		}
	}
	q.fresh = nil
	return n, nil
}

func (q *queue) DueNotices(_ context.Context, receiver string, _ time.Duration, limit int) (out []pipeline.NoticeDelivery, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, i := range q.way[receiver] {
		if !i.over && len(out) < limit {
			out = append(out, i.NoticeDelivery)
		}
	}
	return out, nil
}

func (q *queue) end(receiver string, id int64, change func(*item)) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, i := range q.way[receiver] {
		if i.ID == id {
			i.Attempts++
			change(i)
		}
	}
	q.changed <- struct{}{}
	return nil
}

func (q *queue) NoticeDelivered(_ context.Context, receiver string, id int64) error {
	return q.end(receiver, id, func(i *item) { i.delivered, i.over = true, true })
}

func (q *queue) NoticeFailed(_ context.Context, receiver string, id int64, why string, wait time.Duration) error {
	return q.end(receiver, id, func(i *item) { i.why = why; q.waits = append(q.waits, wait) })
}

func (q *queue) NoticeGivenUp(_ context.Context, receiver string, id int64, why string) error {
	return q.end(receiver, id, func(i *item) { i.why, i.over = why, true })
}

func (q *queue) PruneNotices(context.Context) error { return nil }

// Lock lets everybody in.
func (q *queue) Lock(context.Context, string) (func(), error) { return func() {}, nil }

// until waits for the queue to become so.
func (q *queue) until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	late := time.After(time.Minute)
	for {
		q.mu.Lock()
		done := ok()
		q.mu.Unlock()
		if done {
			return
		}
		select {
		case <-q.changed:
		case <-late:
			t.Fatalf("waited a minute for: %s", what)
		}
	}
}

func (q *queue) over(receiver string) func() bool {
	return func() bool {
		return len(q.way[receiver]) > 0 && !slices.ContainsFunc(q.way[receiver], func(i *item) bool { return !i.over })
	}
}

// receiver is a real server, and what it was sent.
type receiver struct {
	*httptest.Server
	mu     sync.Mutex
	got    []Message
	secret string
}

const secret = "0123456789abcdef-secret"

// newReceiver answers 204, unless answer has answered.
func newReceiver(t *testing.T, answer func(n int, w http.ResponseWriter, r *http.Request) bool) *receiver {
	r := &receiver{secret: secret}
	n := 0
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		if got := req.Header.Get(HeaderSignature); got != Sign(r.secret, body) {
			t.Errorf("the signature %q is not that of the body", got)
		}
		var m Message
		if err := json.Unmarshal(body, &m); err != nil || req.Method != http.MethodPost || req.Header.Get("Content-Type") != "application/json" ||
			req.Header.Get(HeaderDelivery) != m.ID || req.Header.Get(HeaderEvent) != m.Event || m.SentAt.IsZero() {
			t.Errorf("request: %v %s %v: %s", err, req.Method, req.Header, body)
		}
		r.mu.Lock()
		r.got = append(r.got, m)
		n++
		now := n
		r.mu.Unlock()
		if answer == nil || !answer(now, w, req) {
			w.WriteHeader(http.StatusNoContent)
		}
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) summaries() (out []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range r.got {
		out = append(out, fmt.Sprint(m.Summary, "/", m.Attempt))
	}
	return out
}

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}

func notice(summary, event, project string) pipeline.Notice {
	return pipeline.Notice{Event: event, Project: project, Summary: summary, At: time.Now()}
}

// start runs a notifier until the test ends.
func start(t *testing.T, q *queue, change func(*Config), receivers ...Receiver) {
	t.Helper()
	c := Config{Queue: q, Locker: q, Receivers: receivers, Every: time.Millisecond, Log: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&c)
	}
	n, err := New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-done })
}

func TestDelivery(t *testing.T) {
	all := newReceiver(t, nil)
	some := newReceiver(t, nil)
	q := newQueue(notice("a", pipeline.NoticeFindings, "app"), notice("b", pipeline.NoticeDrift, "app"), notice("c", pipeline.NoticeFindings, "web"))
	start(t, q, nil, Receiver{Name: "all", URL: all.URL, Secret: secret, Allow: loopback},
		Receiver{Name: "some", URL: some.URL, Secret: secret, Allow: loopback, Projects: []string{"app"}, Events: []string{pipeline.NoticeFindings}})
	q.until(t, "everything", func() bool { return q.over("all")() && q.over("some")() })
	if got := all.summaries(); !slices.Equal(got, []string{"a/1", "b/1", "c/1"}) {
		t.Errorf("all: %v", got)
	}
	if got := some.summaries(); !slices.Equal(got, []string{"a/1"}) {
		t.Errorf("some: %v", got)
	}
}

// One that is refused is tried again, those behind it wait, and every attempt has
// the same id.
func TestRetry(t *testing.T) {
	r := newReceiver(t, func(n int, w http.ResponseWriter, _ *http.Request) bool {
		switch n {
		case 1, 2:
			w.WriteHeader(http.StatusInternalServerError)
		case 3:
			w.Header().Set("Retry-After", "1200")
			w.WriteHeader(http.StatusTooManyRequests)
		}
		return n <= 3
	})
	q := newQueue(notice("a", pipeline.NoticeDrift, "app"), notice("b", pipeline.NoticeDrift, "app"))
	start(t, q, nil, Receiver{Name: "r", URL: r.URL, Secret: secret, Allow: loopback})
	q.until(t, "both", q.over("r"))
	if got := r.summaries(); !slices.Equal(got, []string{"a/1", "a/2", "a/3", "a/4", "b/1"}) {
		t.Errorf("attempts: %v", got)
	}
	if r.got[0].ID != r.got[3].ID || r.got[0].ID == r.got[4].ID {
		t.Errorf("ids: %+v", r.got)
	}
	if want := []time.Duration{10 * time.Second, 20 * time.Second, 20 * time.Minute}; !slices.Equal(q.waits, want) {
		t.Errorf("waits %v, want %v", q.waits, want)
	}
}

func TestGiveUp(t *testing.T) {
	for what, c := range map[string]struct {
		age    time.Duration
		status int
		tries  int
	}{
		"after a day":   {23*time.Hour + 59*time.Minute + 45*time.Second, 500, 2},
		"when gone":     {0, 410, 1},
		"never earlier": {22 * time.Hour, 404, 5},
	} {
		t.Run(what, func(t *testing.T) {
			var q *queue
			r := newReceiver(t, func(n int, w http.ResponseWriter, _ *http.Request) bool {
				if n >= 5 {
					return false
				}
				w.WriteHeader(c.status)
				return true
			})
			first := notice("a", pipeline.NoticeDrift, "app")
			first.At = time.Now().Add(-c.age)
			q = newQueue(first)
			start(t, q, nil, Receiver{Name: "r", URL: r.URL, Secret: secret, Allow: loopback})
			q.until(t, "the end", q.over("r"))
			if got := len(r.summaries()); got != c.tries {
				t.Errorf("%d attempts, want %d; %s", got, c.tries, q.way["r"][0].why)
			}
		})
	}
}

func TestRedirects(t *testing.T) {
	end := newReceiver(t, nil)
	elsewhere := strings.Replace(end.URL, "127.0.0.1", "127.0.0.2", 1)
	for what, c := range map[string]struct {
		to     string
		status int
		why    string // empty: it arrives
	}{
		"that keep the notice":    {end.URL, 307, ""},
		"that lose it":            {end.URL, 302, "307"},
		"to loopback":             {elsewhere, 308, "not public"},
		"to link-local":           {"http://169.254.169.254/latest/meta-data", 307, "not public"},
		"to IPv4 written as IPv6": {"http://[::ffff:169.254.169.254]/", 307, "not public"},
		"to a name of loopback":   {strings.Replace(elsewhere, "127.0.0.2", "localhost", 1), 307, ""},
		"to files":                {"file:///etc/passwd", 307, "file"},
	} {
		t.Run(what, func(t *testing.T) {
			r := newReceiver(t, func(_ int, w http.ResponseWriter, req *http.Request) bool {
				http.Redirect(w, req, c.to, c.status)
				return true
			})
			q := newQueue(notice("a", pipeline.NoticeDrift, "app"))
			start(t, q, nil, Receiver{Name: "r", URL: r.URL, Secret: secret, Allow: loopback})
			q.until(t, "an attempt", func() bool { return len(q.way["r"]) > 0 && q.way["r"][0].Attempts > 0 })
			if i := q.way["r"][0]; i.delivered != (c.why == "") || !strings.Contains(i.why, c.why) {
				t.Errorf("delivered: %t, %s; want %q", i.delivered, i.why, c.why)
			}
		})
	}
}

// A receiver that does not answer keeps nobody else waiting.
func TestSlowReceiver(t *testing.T) {
	hang := make(chan struct{})
	slow := newReceiver(t, func(int, http.ResponseWriter, *http.Request) bool { <-hang; return false })
	t.Cleanup(func() { close(hang) })
	quick := newReceiver(t, nil)
	q := newQueue(notice("a", pipeline.NoticeDrift, "app"))
	start(t, q, func(c *Config) { c.Timeout = 300 * time.Millisecond },
		Receiver{Name: "slow", URL: slow.URL, Secret: secret, Allow: loopback}, Receiver{Name: "quick", URL: quick.URL, Secret: secret, Allow: loopback})
	q.until(t, "the quick one", q.over("quick"))
	q.until(t, "the slow one's attempt", func() bool { return q.way["slow"][0].Attempts > 0 })
	if why := q.way["slow"][0].why; !strings.Contains(why, "no answer within") {
		t.Errorf("why: %s", why)
	}
}

func TestAdmit(t *testing.T) {
	for addr, want := range map[string]bool{
		"93.184.215.14": true, "2606:2800:21f:cb07:6820:80da:af6b:8b2c": true,
		"127.0.0.1": false, "127.9.9.9": false, "::1": false, "0.0.0.0": false, "::": false, "10.0.0.1": false, "172.16.0.1": false, "192.168.1.1": false,
		"169.254.169.254": false, "fe80::1": false, "fe80::1%eth0": false, "fd00:ec2::254": false, "100.64.0.1": false, "224.0.0.1": false, "255.255.255.255": false,
		"::ffff:127.0.0.1": false, "::ffff:10.0.0.1": false, "::127.0.0.1": false, "64:ff9b::7f00:1": false, "2002:7f00:1::": false, "ff02::1": false,
		"198.18.0.1": false, "::ffff:93.184.215.14": true,
	} {
		if err := admit(netip.MustParseAddr(addr), nil); (err == nil) != want {
			t.Errorf("%s: %v", addr, err)
		}
	}
	if err := admit(netip.MustParseAddr("::ffff:10.1.2.3"), []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}); err != nil {
		t.Errorf("allowed, in another form: %v", err)
	}
}

func TestNewNamesTheSetting(t *testing.T) {
	good := Receiver{Name: "r", URL: "https://hooks.example/x", Secret: secret}
	for want, r := range map[string]Receiver{
		"notify[0].name":       {URL: good.URL, Secret: secret},
		"notify[r].url":        {Name: "r", URL: "hooks.example", Secret: secret},
		"url is http":          {Name: "r", URL: "http://hooks.example", Secret: secret},
		"credentials":          {Name: "r", URL: "https://u:p@hooks.example", Secret: secret},
		"secret_file":          {Name: "r", URL: good.URL, Secret: "short"},
		`events has "finding"`: {Name: "r", URL: good.URL, Secret: secret, Events: []string{"finding"}},
	} {
		q := newQueue()
		if _, err := New(t.Context(), Config{Queue: q, Locker: q, Receivers: []Receiver{r}, Log: slog.Default()}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error that says %s, got %v", want, err)
		}
	}
	q := newQueue()
	if _, err := New(t.Context(), Config{Queue: q, Locker: q, Receivers: []Receiver{good, good}, Log: slog.Default()}); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Errorf("twice: %v", err)
	}
}
