package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dray-project/dray/api"
	"github.com/dray-project/dray/api/apitest"
	"github.com/dray-project/dray/api/client"
	"github.com/dray-project/dray/pipeline"
)

// serve runs the real API over a sample store, behind an optional handler that
// gets in the way.
func serve(t *testing.T, between func(api http.Handler) http.Handler) (*apitest.Store, *client.Client) {
	t.Helper()
	store := apitest.Sample()
	a, err := api.New(api.Config{
		Store:          store,
		PublicKeyPEM:   []byte(apitest.PublicKey),
		TrustedRoot:    []byte(`{}`),
		VerifyCommands: func(img pipeline.Image) []string { return []string{"verify " + img.String()} },
		Log:            slog.New(slog.DiscardHandler),
		Version:        "v9",
		Poll:           time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	var handler http.Handler = a
	if between != nil {
		handler = between(a)
	}
	srv := httptest.NewServer(handler)
	t.Cleanup(srv.Close)
	t.Cleanup(a.Drain)
	return store, newClient(t, srv.URL)
}

func newClient(t *testing.T, url string) *client.Client {
	t.Helper()
	c, err := client.New(client.Config{URL: url, Token: "dray_test", Backoff: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestNew(t *testing.T) {
	for _, url := range []string{"", "dray.example", "ftp://dray.example", "http://", "http://user:secret@dray.example", "http://dray.example?x=y"} {
		if _, err := client.New(client.Config{URL: url}); !errors.Is(err, pipeline.ErrInvalid) {
			t.Errorf("%q: %v", url, err)
		}
	}
	if _, err := client.New(client.Config{URL: "http://dray.example", Token: "a\r\nX-Evil: b"}); err == nil || strings.Contains(err.Error(), "Evil") {
		t.Errorf("%v", err)
	}
}

// What the server has is what the client gives: nothing is lost on the wire.
func TestReads(t *testing.T) {
	store, c := serve(t, nil)
	ctx := context.Background()
	for name, tc := range map[string]struct{ got, want func() (any, error) }{
		"run": {
			func() (any, error) { return c.Run(ctx, apitest.RunGood) },
			func() (any, error) { return store.RunDetail(ctx, apitest.RunGood) },
		},
		"promotion": {
			func() (any, error) { p, err := c.Promotion(ctx, apitest.PromotionOne); return p.PromotionDetail, err },
			func() (any, error) { return store.PromotionDetail(ctx, apitest.PromotionOne) },
		},
		"image": {
			func() (any, error) { i, err := c.Image(ctx, apitest.Good.Digest, ""); return i.ImageDetail, err },
			func() (any, error) {
				d, err := store.ImageDetails(ctx, apitest.Good.Digest, "")
				return d[0], err
			},
		},
		"runs": {
			func() (any, error) {
				l, err := c.Runs(ctx, client.RunsQuery{Project: "hello-go", State: pipeline.StateSucceeded})
				return l.Items, err
			},
			func() (any, error) {
				return store.Runs(ctx, "hello-go", pipeline.StateSucceeded, pipeline.Page{Limit: 9})
			},
		},
		"promotions": {
			func() (any, error) {
				l, err := c.Promotions(ctx, client.PromotionsQuery{Project: "hello-go"})
				return l.Items, err
			},
			func() (any, error) {
				return store.Promotions(ctx, pipeline.PromotionQuery{Project: "hello-go", Page: pipeline.Page{Limit: 9}})
			},
		},
		"packages": {
			func() (any, error) {
				l, err := c.Packages(ctx, pipeline.PackageQuery{Name: "rsc.io/quote", Environment: "prod", Promoted: true, Version: "v1.5.2", Project: "hello-go"})
				return l.Items, err
			},
			func() (any, error) {
				return store.Packages(ctx, pipeline.PackageQuery{Name: "rsc.io/quote", Version: "v1.5.2", Page: pipeline.Page{Limit: 9}})
			},
		},
		"sbom": {
			func() (any, error) {
				b, err := c.SBOM(ctx, apitest.Good.Digest, "hello-go", "linux/arm64")
				return json.RawMessage(b), err
			},
			func() (any, error) { return store.SBOM(ctx, "hello-go", apitest.Good.Digest, "linux/arm64") },
		},
		"public key": {
			func() (any, error) { b, err := c.PublicKey(ctx); return string(b), err },
			func() (any, error) { return apitest.PublicKey, nil },
		},
		"trusted root": {
			func() (any, error) { b, err := c.TrustedRoot(ctx); return string(b), err },
			func() (any, error) { return `{}`, nil },
		},
		"version": {
			func() (any, error) { return c.Version(ctx) },
			func() (any, error) { return "v9", nil },
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := tc.got()
			if err != nil {
				t.Fatal(err)
			}
			want, err := tc.want()
			if err != nil {
				t.Fatal(err)
			}
			if g, w := plain(t, got), plain(t, want); !reflect.DeepEqual(g, w) {
				t.Errorf("got  %v\nwant %v", g, w)
			}
		})
	}
	img, err := c.Image(ctx, apitest.Good.Digest, "")
	if err != nil || len(img.VerifyCommands) != 1 {
		t.Errorf("%v, %v", img.VerifyCommands, err)
	}
	doc, err := c.Provenance(ctx, apitest.Good.Digest, "")
	if err != nil || !strings.Contains(string(doc), "buildDefinition") {
		t.Errorf("%s, %v", doc, err)
	}
}

// plain is v without the difference between absent and empty lists.
func plain(t *testing.T, v any) any {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var out any
	if err := json.Unmarshal([]byte(strings.ReplaceAll(string(raw), "null", "[]")), &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestPages(t *testing.T) {
	store, c := serve(t, nil)
	for i := range 120 {
		store.AddRun(pipeline.RunDetail{Run: pipeline.Run{ID: pipeline.RunID(fmt.Sprintf("run_a%04d", i)), Project: "many"}})
	}
	q, n := client.RunsQuery{Project: "many"}, 0
	for {
		list, err := c.Runs(context.Background(), q)
		if err != nil {
			t.Fatal(err)
		}
		n += len(list.Items)
		if list.Next == "" {
			break
		}
		q.Cursor = list.Next
	}
	if n != 120 {
		t.Errorf("%d runs, want 120", n)
	}
}

func TestProblems(t *testing.T) {
	store, c := serve(t, nil)
	ctx := context.Background()
	for _, sentinel := range []error{pipeline.ErrNotFound, pipeline.ErrInvalid, pipeline.ErrConflict, pipeline.ErrAmbiguous, pipeline.ErrRefused, pipeline.ErrUnverified} {
		store.Fail("RunDetail", sentinel, 1, false)
		_, err := c.Run(ctx, "x")
		var p *client.Problem
		if !errors.Is(err, sentinel) || !errors.As(err, &p) || p.Status == 0 || p.Detail == "" || p.Instance == "" {
			t.Errorf("%v came as %#v", sentinel, err)
		}
	}
	_, err := c.Image(ctx, apitest.Shared.Digest, "")
	var p *client.Problem
	if !errors.As(err, &p) || !reflect.DeepEqual(p.Projects, []string{"base", "web"}) {
		t.Errorf("%#v", err)
	}
	_, err = c.Runs(ctx, client.RunsQuery{State: "done"})
	if !errors.As(err, &p) || len(p.Errors) != 1 || p.Errors[0].Location != "query.state" {
		t.Errorf("%#v", err)
	}
}

func TestNotDray(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "<h1>It works!</h1>", http.StatusNotFound)
	}))
	defer srv.Close()
	_, err := newClient(t, srv.URL).Run(context.Background(), "x")
	var p *client.Problem
	if !errors.As(err, &p) || p.Status != 404 || !strings.Contains(p.Error(), "not as Dray does") {
		t.Errorf("%v", err)
	}
	if errors.Is(err, pipeline.ErrNotFound) {
		t.Error("a proxy's 404 says nothing about a run")
	}
}

// The server did it and the answer was lost: one promotion, and the caller has it.
func TestPromoteOnce(t *testing.T) {
	var calls atomic.Int32
	var keys sync.Map
	store, c := serve(t, func(api http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodPost {
				api.ServeHTTP(w, r)
				return
			}
			keys.Store(r.Header.Get("Idempotency-Key"), true)
			switch calls.Add(1) {
			case 1:
				api.ServeHTTP(httptest.NewRecorder(), r)
				panic(http.ErrAbortHandler)
			case 2:
				http.Error(w, "upstream is away", http.StatusBadGateway)
			default:
				api.ServeHTTP(w, r)
			}
		})
	})
	before, err := store.Promotions(context.Background(), pipeline.PromotionQuery{Page: pipeline.Page{Limit: 100}})
	if err != nil {
		t.Fatal(err)
	}
	p, err := c.Promote(context.Background(), pipeline.PromotionRequest{Image: string(apitest.Good.Digest), Environment: "prod"})
	if err != nil {
		t.Fatal(err)
	}
	after, err := store.Promotions(context.Background(), pipeline.PromotionQuery{Page: pipeline.Page{Limit: 100}})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	keys.Range(func(any, any) bool { n++; return true })
	if len(after) != len(before)+1 || after[0].ID != p.ID || calls.Load() != 3 || n != 1 {
		t.Errorf("%d promotions more, %d calls, %d keys", len(after)-len(before), calls.Load(), n)
	}
	// A refusal is not tried again.
	calls.Store(10)
	if _, err := c.Promote(context.Background(), pipeline.PromotionRequest{Image: string(apitest.Bad.Digest), Environment: "prod"}); !errors.Is(err, pipeline.ErrRefused) {
		t.Errorf("%v", err)
	}
	if calls.Load() != 11 {
		t.Errorf("%d calls for a refusal", calls.Load()-10)
	}
}

// The server did it and the answer was lost: one retry, and the caller has it.
func TestRetryOnce(t *testing.T) {
	var calls atomic.Int32
	store, c := serve(t, func(api http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost && calls.Add(1) == 1 {
				api.ServeHTTP(httptest.NewRecorder(), r)
				panic(http.ErrAbortHandler)
			}
			api.ServeHTTP(w, r)
		})
	})
	r, err := c.Retry(context.Background(), apitest.RunRefused)
	if err != nil {
		t.Fatal(err)
	}
	runs, err := store.Runs(context.Background(), "leaky", "", pipeline.Page{Limit: 100})
	if err != nil {
		t.Fatal(err)
	}
	if len(runs) != 2 || runs[0].ID != r.ID || r.RetryOf != apitest.RunRefused || r.RequestedBy != "grace" || calls.Load() != 2 {
		t.Errorf("%d runs, %d calls, got %+v", len(runs), calls.Load(), r)
	}
	// A conflict is not tried again.
	if _, err := c.Retry(context.Background(), apitest.RunGood); !errors.Is(err, pipeline.ErrConflict) || calls.Load() != 3 {
		t.Errorf("%v, %d calls", err, calls.Load())
	}
	if _, err := c.Retry(context.Background(), "run/../x"); !errors.Is(err, pipeline.ErrNotFound) {
		t.Errorf("%v", err)
	}
}

// cutter breaks a connection after it passed on so many bytes.
type cutter struct {
	http.ResponseWriter
	left int
}

func (c *cutter) Unwrap() http.ResponseWriter { return c.ResponseWriter }

func (c *cutter) Write(p []byte) (int, error) {
	if c.left < len(p) {
		_, _ = c.ResponseWriter.Write(p[:c.left])
		_ = http.NewResponseController(c.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	c.left -= len(p)
	return c.ResponseWriter.Write(p)
}

// A stream that breaks at any byte is taken up where it was: every event comes
// once and in order.
func TestFollowResumes(t *testing.T) {
	var connections atomic.Int32
	var lastIDs sync.Map
	store, c := serve(t, func(api http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			n := connections.Add(1)
			lastIDs.Store(r.Header.Get("Last-Event-ID"), true)
			if n%4 == 0 {
				http.Error(w, "", http.StatusServiceUnavailable)
				return
			}
			api.ServeHTTP(&cutter{w, 150 + 37*int(n)}, r)
		})
	})
	const total = 60
	for i := range total - 4 {
		store.Append(apitest.RunOpen.Job(), pipeline.JobEvent{Kind: pipeline.KindLog, Log: &pipeline.Line{Text: fmt.Sprint("line ", i)}})
	}
	store.End(apitest.RunOpen.Job(), pipeline.StateSucceeded, "")
	var seq int64
	for e, err := range c.Follow(context.Background(), apitest.RunOpen.Job(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		if seq++; e.Seq != seq {
			t.Fatalf("event %d came as number %d", e.Seq, seq)
		}
	}
	if seq != total+1 || connections.Load() < 5 {
		t.Errorf("%d events over %d connections", seq, connections.Load())
	}
}

func TestFollowWaitsForEvents(t *testing.T) {
	store, c := serve(t, nil)
	var got []string
	for e, err := range c.Follow(context.Background(), apitest.RunOpen.Job(), 3) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e.Kind)
		switch len(got) {
		case 1:
			store.Append(apitest.RunOpen.Job(), pipeline.JobEvent{Kind: pipeline.KindStep, Step: &pipeline.Step{ID: "1"}})
		case 2:
			store.End(apitest.RunOpen.Job(), pipeline.StateFailed, "no")
		}
	}
	if strings.Join(got, " ") != "log step state" {
		t.Errorf("%v", got)
	}
}

// A connection that went silent is left for a new one.
func TestFollowLeavesSilence(t *testing.T) {
	store := apitest.Sample()
	a, err := api.New(api.Config{Store: store, PublicKeyPEM: []byte(apitest.PublicKey), TrustedRoot: []byte(`{}`), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	var connections atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if connections.Add(1) > 1 {
			a.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "id: 1\nevent: log\ndata: {\"seq\":1}\n\n")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	defer srv.Close()
	c, err := client.New(client.Config{URL: srv.URL, Token: "dray_test", Idle: 50 * time.Millisecond, Backoff: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, err := range c.Follow(context.Background(), apitest.RunGood.Job(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	if n != 10 || connections.Load() < 2 {
		t.Errorf("%d events over %d connections", n, connections.Load())
	}
}

func TestFollowEnds(t *testing.T) {
	_, c := serve(t, nil)
	last := func(ctx context.Context, job pipeline.JobID) (err error) {
		for _, err = range c.Follow(ctx, job, 0) {
		}
		return err
	}
	if err := last(context.Background(), "run_other"); !errors.Is(err, pipeline.ErrNotFound) {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	n := 0
	for _, err := range c.Follow(ctx, apitest.RunOpen.Job(), 0) {
		if n++; n == 4 {
			cancel()
		}
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}
	if n != 5 {
		t.Errorf("%d events and errors, want 4 and one", n)
	}
	// A server that stays broken is given up.
	quick, err := client.New(client.Config{URL: "http://127.0.0.1:1", Backoff: time.Nanosecond})
	if err != nil {
		t.Fatal(err)
	}
	for _, err = range quick.Follow(context.Background(), apitest.RunOpen.Job(), 0) {
	}
	if err == nil {
		t.Error("followed a server that is not there")
	}
	// The caller may stop.
	for range c.Follow(context.Background(), apitest.PromotionOne.Job(), 0) {
		break
	}
}

func TestEvents(t *testing.T) {
	_, c := serve(t, nil)
	n := 0
	for e, err := range c.Events(context.Background(), apitest.RunOpen.Job(), 1) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; e.Seq != int64(n+1) {
			t.Errorf("%+v", e)
		}
	}
	if n != 3 {
		t.Errorf("%d events", n)
	}
	for _, err := range c.Events(context.Background(), "prm_other", 0) {
		if !errors.Is(err, pipeline.ErrNotFound) {
			t.Errorf("%v", err)
		}
	}
}
