//go:build linux

// Package e2e tests Dray as its users meet it: the real programs, on real parts.
package e2e

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dray-project/dray/deploy/site"
	"github.com/dray-project/dray/deploy/stack"
	"github.com/dray-project/dray/pipeline"
)

// at is the site that the tests share; nil where it cannot be had.
var at *site.Site

// receiver is the address that notices are posted to, in case a test listens.
var receiver string

const receiverSecret = "0123456789abcdef0123456789abcdef"

// why says what is missing when at is nil.
var why string

// projects that tests push to; each test has its own.
var projects = []string{"slow", "big", "broken", "failing", "moved", "drained", "shared", "together", "delivered", "documented", "again",
	"way-distribution", "way-olareg", "configured", "excepted", "repaired-distribution", "repaired-olareg", "patient", "frozen", "logged", "proven", "rematched"}

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(main(m))
}

func main(m *testing.M) int {
	bin := os.Getenv("DRAY_TEST_BIN")
	switch {
	case bin == "":
		why = "DRAY_TEST_BIN does not name the directory of drayd, dray, dray-dev and buildkitd"
	case os.Geteuid() != 0:
		why = "buildkitd needs root"
	}
	if why != "" {
		return m.Run()
	}
	if err := os.Chdir("../.."); err != nil { // the samples are found from the top
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	dir, err := os.MkdirTemp("", "dray-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	defer func() {
		if err := stack.Stop(context.Background(), dir); err != nil {
			fmt.Fprintln(os.Stderr, "stop:", err)
		}
	}()
	if receiver, err = stack.Reserve(dir, "receiver"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	at, err = site.Start(ctx, site.Config{Dir: dir, Bin: bin, Log: os.Stderr, Volatile: true, Projects: projects,
		Env:      []string{"DRAY_WORKER_MAX_ATTEMPTS=2", "DRAY_WORKER_DRAIN=2s", "DRAY_REMATCH_EVERY=1s"},
		Settings: fmt.Sprintf("notify:\n  - {name: owners, url: 'http://%s/hook', secret: %s, projects: [rematched], allow: [127.0.0.1]}\n", receiver, receiverSecret)})
	if err != nil {
		fmt.Fprintln(os.Stderr, "start:", err)
		return 1
	}
	code := m.Run()
	if code != 0 {
		log, _ := os.ReadFile(filepath.Join(dir, "log", "drayd.log"))
		fmt.Fprintf(os.Stderr, "the end of drayd's log:\n%s\n", log[max(0, len(log)-8000):])
	}
	return code
}

// need skips the test where the site cannot be had, and fails it in CI.
func need(t *testing.T) *site.Site {
	t.Helper()
	if at == nil {
		if os.Getenv("DRAY_TEST_REQUIRE") == "1" {
			t.Fatal(why)
		}
		t.Skip(why)
	}
	return at
}

// repository makes a repository with those files; {{base/…}} in the
// Dockerfile stands for a base image.
func repository(t *testing.T, project string, files map[string]string) *stack.Worktree {
	t.Helper()
	src := t.TempDir()
	files = maps.Clone(files)
	files["README.md"] = "# " + project + "\n"
	for name, text := range files {
		if name == "Dockerfile" {
			name = "Dockerfile.in"
		}
		path := filepath.Join(src, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	w, err := at.Stack.Repository(t.Context(), stack.Sample{Name: site.Organisation + "/" + project, Source: src, Bases: at.Bases})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// push pushes a ref ("main" or a version) and returns its run and what the
// pusher was told.
func push(t *testing.T, w *stack.Worktree, ref string) (pipeline.Run, string) {
	t.Helper()
	full := "refs/heads/" + ref
	if ref != "main" {
		full = "refs/tags/" + ref
		if err := w.Tag(t.Context(), ref, "release "+ref); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	if err := w.Push(t.Context(), &out, ref); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	run, err := at.RunOf(ctx, strings.TrimPrefix(w.Name, site.Organisation+"/"), full, "")
	if err != nil {
		t.Fatalf("%v\nthe pusher was told:\n%s", err, out.String())
	}
	return run, out.String()
}

// finished follows a job to its end.
func finished(t *testing.T, job pipeline.JobID) []pipeline.JobEvent {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	var events []pipeline.JobEvent
	for e, err := range at.Client.Follow(ctx, job, 0) {
		if err != nil {
			t.Fatalf("follow %s: %v", job, err)
		}
		events = append(events, e)
	}
	return events
}

// reached waits until an event is there for which ok returns true.
func reached(t *testing.T, job pipeline.JobID, what string, ok func(pipeline.JobEvent) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for e, err := range at.Client.Follow(ctx, job, 0) {
		if err != nil {
			t.Fatalf("follow %s: %v", job, err)
		}
		if ok(e) {
			return
		}
	}
	t.Fatalf("%s ended before %s", job, what)
}

func stageStarted(s pipeline.Stage) func(pipeline.JobEvent) bool {
	return func(e pipeline.JobEvent) bool {
		return e.Kind == pipeline.KindStage && e.Stage == s && e.State == "started"
	}
}

// released runs a version to its success.
func released(t *testing.T, w *stack.Worktree, version string) pipeline.RunDetail {
	t.Helper()
	run, _ := push(t, w, version)
	finished(t, run.ID.Job())
	return succeeded(t, run.ID)
}

func succeeded(t *testing.T, id pipeline.RunID) pipeline.RunDetail {
	t.Helper()
	d, err := at.Client.Run(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if d.State != pipeline.StateSucceeded {
		t.Fatalf("run %s %s: %s", id, d.State, d.Reason)
	}
	return d
}

// kill ends drayd as a power cut would, and starts it again.
func kill(t *testing.T) {
	t.Helper()
	if err := at.Stack.Kill("drayd", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := at.StartDrayd(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// verified verifies with dray, the public key and nothing else.
func verified(t *testing.T, img pipeline.Image) {
	t.Helper()
	out, err := dray(t, nil, "verify", img.String(), "--key", at.PublicKey)
	if err != nil {
		t.Errorf("dray verify %s: %v\n%s", img, err, out)
	}
}

// dray runs the command line.
func dray(t *testing.T, env []string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(at.Bin, "dray"), args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "NO_COLOR=1"}, env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// online is the environment in which dray knows the server.
func online() []string { return []string{"DRAY_URL=" + at.URL, "DRAY_TOKEN=" + at.Token} }

func exitCode(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		return -1
	}
	return 0
}

func attempts(events []pipeline.JobEvent, s pipeline.Stage) int {
	return len(slices.DeleteFunc(slices.Clone(events), func(e pipeline.JobEvent) bool { return !stageStarted(s)(e) }))
}
