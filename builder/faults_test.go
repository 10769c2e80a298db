package builder

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	solvererrors "github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/dray-project/dray/pipeline"
)

func TestExplain(t *testing.T) {
	located := func(err error) error {
		return solvererrors.WithSource(err, &solvererrors.Source{
			Info:   &pb.SourceInfo{Filename: "app/Dockerfile", Data: []byte("FROM a\nRUN x \x1b[31m\n")},
			Ranges: []*pb.Range{{Start: &pb.Position{Line: 2}, End: &pb.Position{Line: 2}}},
		})
	}
	for name, c := range map[string]struct {
		err       error
		permanent bool
		says      []string
	}{
		"unavailable":     {status.Error(codes.Unavailable, "connection error"), false, []string{"tcp://b:1", "connection error"}},
		"gone away":       {status.Error(codes.Unavailable, "error reading from server: EOF"), false, nil},
		"cancelled there": {status.Error(codes.Canceled, "context canceled"), false, nil},
		"exhausted":       {status.Error(codes.ResourceExhausted, "too much"), false, nil},
		"disk":            {errors.New("failed to solve: write /x: no space left on device"), false, []string{"no space left"}},
		"disk, located":   {located(errors.New("write /x: no space left on device")), false, nil},
		"push refused":    {errors.New("failed to solve: failed to push r.example/a: unexpected status from PUT request to https://r.example/v2: 403 Forbidden"), false, []string{"r.example"}},
		"push 500":        {errors.New("failed to push r.example/a: unexpected status from PUT request to https://r.example/v2/: 500 Internal Server Error"), false, nil},
		"dial":            {errors.New(`failed to do request: Head "http://127.0.0.1:9/v2/": dial tcp 127.0.0.1:9: connect: connection refused`), false, []string{"127.0.0.1:9"}},
		"dns":             {located(errors.New("failed to do request: lookup r.example: no such host")), false, nil},
		"pull 503":        {located(errors.New("unexpected status from HEAD request to https://r/v2/a/manifests/1: 503 Service Unavailable")), false, nil},
		"throttled":       {located(errors.New("toomanyrequests: slow down")), false, nil},
		"unknown":         {errors.New("failed to solve: something odd"), false, []string{"tcp://b:1: something odd"}},
		"located":         {located(errors.New("failed to solve: failed to compute cache key: \"/x\": not found")), true, []string{"app/Dockerfile:2: \"/x\": not found"}},
		"parse":           {errors.New("failed to solve: dockerfile parse error on line 3: unknown instruction: X"), true, []string{"line 3"}},
		"policy":          {errors.New("source \"docker-image://x:1\" denied by policy"), true, []string{"x:1", "ONBUILD"}},
		"git denied":      {errors.New("failed to fetch remote https://g/x.git: fatal: could not read Username"), true, []string{"git credentials"}},
		"exit":            {located(&gatewaypb.ExitError{ExitCode: 3}), true, []string{"app/Dockerfile:2: RUN x", "exit code 3"}},
		"killed":          {located(&gatewaypb.ExitError{ExitCode: 137}), true, []string{"exit code 137 (killed, most likely for want of memory)"}},
		"exit, says 503":  {located(&gatewaypb.ExitError{ExitCode: 1, Err: errors.New("connection refused 503 Service Unavailable")}), true, nil},
		"stopped":         {located(&gatewaypb.ExitError{ExitCode: 4294967295, Err: errors.New("context deadline exceeded")}), false, nil},
		"judged":          {pipeline.Permanent(errors.New("as it is: connection refused")), true, []string{"as it is"}},
		"multi-line":      {errors.New("one\n\x1b[31mtwo"), false, []string{"one\ntwo"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := &Builder{cfg: Config{Timeout: time.Minute}}
			got := b.explain(t.Context(), c.err, newRecorder(&progress{}).stream("linux/amd64"), &member{address: "tcp://b:1"})
			if pipeline.IsPermanent(got) != c.permanent {
				t.Errorf("permanent is %t: %v", !c.permanent, got)
			}
			wantParts(t, got, c.says...)
			if strings.ContainsRune(got.Error(), 0x1b) {
				t.Errorf("an escape sequence is in %q", got)
			}
		})
	}
}

func TestExplainCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	b := &Builder{}
	err := b.explain(ctx, status.Error(codes.Canceled, "x"), newRecorder(&progress{}).stream(""), &member{address: "a"})
	if !errors.Is(err, context.Canceled) || pipeline.IsPermanent(err) {
		t.Errorf("got %v", err)
	}
}

func TestCancelledBuild(t *testing.T) {
	s := newStack(t)
	pushBase(t, s.registry+"/base:1", nil, nil)
	src := s.mustResolve(s.push(map[string]string{"Dockerfile": "FROM " + s.registry + "/base:1\nRUN echo started; sleep 100\n"}))
	ctx, cancel := context.WithCancel(testContext(t))
	out := &signal{on: "started", f: cancel}
	begin := time.Now()
	_, err := s.b.Build(ctx, s.project, src, out)
	if !errors.Is(err, context.Canceled) || pipeline.IsPermanent(err) {
		t.Errorf("got %v", err)
	}
	if took := time.Since(begin); took > time.Minute {
		t.Errorf("it took %s to stop", took)
	}
}

// signal calls f when a line is printed.
type signal struct {
	progress
	on string
	f  func()
}

func (s *signal) Line(l pipeline.Line) {
	s.progress.Line(l)
	if l.Text == s.on {
		s.f()
	}
}

// A cache that cannot be written does not cost the image.
func TestCacheExportFails(t *testing.T) {
	s := newStack(t)
	pushBase(t, s.registry+"/base:1", nil, nil)
	s.project.CacheRepository = newRegistry(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodGet && r.Method != http.MethodHead {
				http.Error(w, "the cache is full", http.StatusForbidden)
				return
			}
			next.ServeHTTP(w, r)
		})
	}) + "/cache"
	src := s.mustResolve(s.push(map[string]string{"Dockerfile": "FROM " + s.registry + "/base:1\nRUN touch /x\n"}))
	res, out := s.mustBuild(src)
	if len(res.Platforms) != 1 {
		t.Errorf("platforms are %v", res.Platforms)
	}
	steps := out.final("exporting cache")
	if len(steps) == 0 || !strings.Contains(steps[0].Error, "403") {
		t.Errorf("the cache's failure is not reported: %s", asJSON(t, steps))
	}
}

// A registry that fails for a moment costs one platform one more attempt.
func TestPushFailsOnce(t *testing.T) {
	var failed atomic.Int32
	s := newStack(t)
	s.project.Platforms = []pipeline.Platform{"linux/amd64", "linux/arm64"}
	host := newRegistry(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			// A refusal is not repeated by buildkitd itself, unlike a 5xx.
			if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/manifests/sha256:") && failed.Add(1) == 1 {
				http.Error(w, "not now", http.StatusForbidden)
				return
			}
			next.ServeHTTP(w, r)
		})
	})
	s.b.cfg.Hosts = []pipeline.RegistryHost{{Host: host, PlainHTTP: true}}
	s.project.Repository = host + "/team/app"
	src := s.mustResolve(s.push(scratchImage("")))
	res, out := s.mustBuild(src)
	if len(res.Platforms) != 2 || failed.Load() < 2 {
		t.Errorf("platforms are %v after %d pushes", res.Platforms, failed.Load())
	}
	if got := strings.Count(out.text(), "failed and is repeated"); got != 1 {
		t.Errorf("%d attempts were repeated, want the one that failed:\n%s", got, out.text())
	}
}
