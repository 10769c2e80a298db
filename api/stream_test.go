package api_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/dray-project/dray/api"
	"github.com/dray-project/dray/api/apitest"
	"github.com/dray-project/dray/pipeline"
)

// sse is one event of a stream, or a comment.
type sse struct{ id, event, data, comment string }

// follow opens a stream and hands over what comes.
func (s *server) follow(path string, headers ...string) (<-chan sse, func()) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s.t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, "GET", s.url+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, h := range append([]string{auth}, headers...) {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" || resp.Header.Get("Cache-Control") != "no-cache" {
		s.t.Fatalf("%d %v", resp.StatusCode, resp.Header)
	}
	out := make(chan sse)
	go func() {
		defer close(out)
		defer resp.Body.Close()
		var e sse
		scanner := bufio.NewScanner(resp.Body)
		for scanner.Scan() {
			name, value, _ := strings.Cut(scanner.Text(), ":")
			value = strings.TrimPrefix(value, " ")
			switch {
			case scanner.Text() == "":
				if e != (sse{}) {
					select {
					case out <- e:
					case <-ctx.Done():
						return
					}
				}
				e = sse{}
			case name == "":
				e.comment = value
			case name == "id":
				e.id = value
			case name == "event":
				e.event = value
			case name == "data":
				e.data = value
			}
		}
	}()
	return out, cancel
}

func next(t *testing.T, events <-chan sse) (e sse, ok bool) {
	t.Helper()
	select {
	case e, ok = <-events:
		return e, ok
	case <-time.After(20 * time.Second):
		t.Fatal("nothing came")
		return e, false
	}
}

func TestStreamOfAFinishedRun(t *testing.T) {
	s := newServer(t)
	events, _ := s.follow("/api/v1/runs/" + string(apitest.RunGood) + "/events")
	for seq := int64(1); seq <= 10; seq++ {
		e, ok := next(t, events)
		var je pipeline.JobEvent
		if err := json.Unmarshal([]byte(e.data), &je); err != nil || !ok {
			t.Fatalf("%+v: %v", e, err)
		}
		if je.Seq != seq || e.event != je.Kind || e.id == "" {
			t.Errorf("event %d: %+v", seq, e)
		}
	}
	e, _ := next(t, events)
	if e.event != "end" || e.id != "" || e.data != `{"state":"succeeded"}` {
		t.Errorf("end: %+v", e)
	}
	if e, ok := next(t, events); ok {
		t.Errorf("after the end came %+v", e)
	}
}

func TestStreamResumes(t *testing.T) {
	s := newServer(t)
	path := "/api/v1/runs/" + string(apitest.RunGood) + "/events"
	for name, tc := range map[string]struct {
		query, header, first string
	}{
		"after":                {"?after=8", "", "9"},
		"last event id":        {"", "Last-Event-ID: 9", "10"},
		"the header wins":      {"?after=2", "Last-Event-ID: 9", "10"},
		"an empty header":      {"?after=8", "Last-Event-ID: ", "9"},
		"from the very end":    {"?after=10", "", ""},
		"from beyond the end":  {"?after=99", "", ""},
		"from the beginning":   {"?after=0", "", "1"},
		"follow=true is usual": {"?after=8&follow=true", "", "9"},
	} {
		t.Run(name, func(t *testing.T) {
			s.t = t
			var headers []string
			if tc.header != "" {
				headers = append(headers, tc.header)
			}
			events, cancel := s.follow(path+tc.query, headers...)
			defer cancel()
			e, _ := next(t, events)
			if tc.first == "" && e.event != "end" || e.id != tc.first {
				t.Errorf("first is %+v, want id %q", e, tc.first)
			}
		})
	}
	s.t = t
	s.want(s.get(path, "Last-Event-ID: x"), 422, "invalid")
	s.want(s.get(path+"?after=-1"), 422, "invalid")
	s.want(s.get("/api/v1/runs/run_other/events"), 404, "not-found")
	s.want(s.get("/api/v1/promotions/prm_other/events"), 404, "not-found")
}

func TestStreamFollows(t *testing.T) {
	s := newServer(t)
	events, _ := s.follow("/api/v1/runs/" + string(apitest.RunOpen) + "/events?after=4")
	for i := range 5 {
		s.store.Append(apitest.RunOpen.Job(), pipeline.JobEvent{Kind: pipeline.KindLog, Log: &pipeline.Line{Text: "one\ntwo \u2028"}})
		e, _ := next(t, events)
		if e.id != string(rune('5'+i)) || e.event != "log" || !strings.Contains(e.data, `one\ntwo`) {
			t.Fatalf("%+v", e)
		}
	}
	s.store.End(apitest.RunOpen.Job(), pipeline.StateFailed, "step 3 failed")
	if e, _ := next(t, events); e.event != "state" {
		t.Errorf("%+v", e)
	}
	if e, _ := next(t, events); e.event != "end" || e.data != `{"state":"failed","reason":"step 3 failed"}` {
		t.Errorf("%+v", e)
	}
}

func TestStreamOfAPromotion(t *testing.T) {
	s := newServer(t)
	s.store.Append(apitest.PromotionOne.Job(), pipeline.JobEvent{Kind: pipeline.KindStage, Stage: pipeline.StageAdmit, State: "started"})
	events, _ := s.follow("/api/v1/promotions/" + string(apitest.PromotionOne) + "/events")
	if e, _ := next(t, events); e.event != "stage" || e.id != "1" {
		t.Errorf("%+v", e)
	}
	if e, _ := next(t, events); e.event != "end" || e.data != `{"state":"succeeded"}` {
		t.Errorf("%+v", e)
	}
}

// More events than are read at once come whole and in order.
func TestStreamOfManyEvents(t *testing.T) {
	const n = 1700
	s := newServer(t)
	var lines []pipeline.JobEvent
	for range n {
		lines = append(lines, pipeline.JobEvent{Kind: pipeline.KindLog, Log: &pipeline.Line{Text: strings.Repeat("x", 200)}})
	}
	s.store.Append(apitest.RunOpen.Job(), lines...)
	s.store.End(apitest.RunOpen.Job(), pipeline.StateSucceeded, "")
	a := s.get("/api/v1/runs/" + string(apitest.RunOpen) + "/events?follow=false")
	if a.StatusCode != 200 || a.Header.Get("Content-Type") != "application/x-ndjson" {
		t.Fatalf("%d %v", a.StatusCode, a.Header)
	}
	var seq int64
	for line := range strings.Lines(a.body) {
		var e pipeline.JobEvent
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		if seq++; e.Seq != seq {
			t.Fatalf("event %d came as number %d", e.Seq, seq)
		}
	}
	if seq != n+5 {
		t.Errorf("%d events, want %d", seq, n+5)
	}
	events, _ := s.follow("/api/v1/runs/" + string(apitest.RunOpen) + "/events")
	count := 0
	for {
		e, ok := next(t, events)
		if !ok || e.event == "end" {
			break
		}
		count++
	}
	if count != n+5 {
		t.Errorf("%d events followed, want %d", count, n+5)
	}
}

func TestStreamOfWhatIsThere(t *testing.T) {
	s := newServer(t)
	a := s.get("/api/v1/runs/" + string(apitest.RunOpen) + "/events?follow=false&after=2")
	if strings.Count(a.body, "\n") != 2 || !strings.HasPrefix(a.body, `{"seq":3,`) {
		t.Errorf("%s", a.body)
	}
}

func TestStreamHeartbeat(t *testing.T) {
	s := newServer(t, func(c *api.Config) { c.Heartbeat = time.Millisecond; c.Poll = time.Hour })
	events, _ := s.follow("/api/v1/runs/" + string(apitest.RunOpen) + "/events?after=4")
	for range 3 {
		if e, ok := next(t, events); !ok || e.comment != "alive" || e.event != "" {
			t.Errorf("%+v", e)
		}
	}
}

// A process that shuts down ends its streams without the end event, so that
// their readers know that there is more.
func TestStreamDrains(t *testing.T) {
	s := newServer(t)
	events, _ := s.follow("/api/v1/runs/" + string(apitest.RunOpen) + "/events?after=3")
	if e, _ := next(t, events); e.id != "4" {
		t.Fatalf("%+v", e)
	}
	s.api.Drain()
	if e, ok := next(t, events); ok {
		t.Errorf("after the drain came %+v", e)
	}
}

// A store that fails breaks the connection: what was sent is not all there is.
func TestStreamBreaks(t *testing.T) {
	s := newServer(t)
	s.store.Fail("Events", apitest.ErrInjected, 1, false)
	req, err := http.NewRequest("GET", s.url+"/api/v1/runs/"+string(apitest.RunGood)+"/events?follow=false", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer dray_test")
	resp, err := http.DefaultClient.Do(req)
	if err == nil {
		_, err = bufio.NewReader(resp.Body).ReadString(0)
		resp.Body.Close()
		if err == nil || err.Error() == "EOF" {
			t.Errorf("the answer ended as if it were whole: %v", err)
		}
	}
	if !strings.Contains(s.logs.String(), "hunter2") {
		t.Error("the cause is not in the log")
	}
}

// The read timeout bounds a request and not the stream that answers it; a
// shutdown does not wait for readers.
func TestServerStreams(t *testing.T) {
	s := newServer(t, func(c *api.Config) { c.Heartbeat = 10 * time.Millisecond; c.Poll = time.Hour })
	srv := s.api.Server("")
	srv.ReadTimeout = 50 * time.Millisecond
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	s.url = "http://" + l.Addr().String()
	events, _ := s.follow("/api/v1/runs/" + string(apitest.RunOpen) + "/events?after=4")
	for range 20 { // four times the read timeout
		if e, ok := next(t, events); !ok || e.comment != "alive" {
			t.Fatalf("the stream ended: %+v", e)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	go func() {
		for range events {
			continue // until the drain ends it
		}
	}()
	if err := srv.Shutdown(ctx); err != nil {
		t.Errorf("shutdown waits for readers: %v", err)
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
}
