//go:build linux

package stack

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// testBin returns the directory of the programs, or skips the test.
func testBin(t *testing.T) string {
	t.Helper()
	bin := os.Getenv("DRAY_TEST_BIN")
	missing := ""
	switch {
	case bin == "":
		missing = "DRAY_TEST_BIN is not set: want the directory of buildkitd, buildctl and dray-dev"
	case os.Geteuid() != 0:
		missing = "buildkitd needs root"
	}
	if missing == "" {
		return bin
	}
	if os.Getenv("DRAY_TEST_REQUIRE") == "1" {
		t.Fatal(missing)
	}
	t.Skip(missing)
	return ""
}

// testCache returns a directory for Debian packages that outlives the test,
// where there is one.
func testCache(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("DRAY_TEST_CACHE"); dir != "" {
		return dir
	}
	return t.TempDir()
}

// testDir returns a state directory; whatever was started there is stopped, and
// nothing may be left of it.
func testDir(t *testing.T) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	// PostgreSQL runs as another user, who may enter only this one: the
	// directory above it is closed, as a home is.
	dir = filepath.Join(dir, "state")
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := Stop(ctx, dir); err != nil {
			t.Errorf("stop: %v", err)
		}
		noneLeft(t, dir)
	})
	return dir
}

// noneLeft fails the test if a mount, a process or a container is left.
func noneLeft(t *testing.T, dir string) {
	t.Helper()
	mounts, err := readMounts("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts {
		if below(m.point, dir) {
			t.Errorf("still mounted: %s", m.point)
		}
	}
	for _, pid := range processesOf(t, dir) {
		cmd, _ := os.ReadFile("/proc/" + pid + "/cmdline")
		t.Errorf("still running: %s %q", pid, cmd)
	}
	states, _ := filepath.Glob("/run/runc/*/state.json")
	for _, path := range states {
		if b, _ := os.ReadFile(path); bytes.Contains(b, []byte(dir)) {
			t.Errorf("still a container: %s", path)
		}
	}
}

// processesOf finds processes that have to do with the directory, whichever way.
func processesOf(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var pids []string
	for _, e := range entries {
		pid := e.Name()
		if strings.Trim(pid, "0123456789") != "" || pid == "self" {
			continue
		}
		cmd, _ := os.ReadFile("/proc/" + pid + "/cmdline")
		env, _ := os.ReadFile("/proc/" + pid + "/environ")
		cwd, _ := os.Readlink("/proc/" + pid + "/cwd")
		if bytes.Contains(cmd, []byte(dir)) || bytes.Contains(env, []byte(dir)) || below(cwd, dir) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func TestStartsTwiceStopsTwice(t *testing.T) {
	bin, dir := testBin(t), testDir(t)
	ctx := t.Context()
	c := Config{Dir: dir, Bin: bin, Postgres: true, Registries: true, Git: true, Buildkit: true, Volatile: true}
	first, err := Start(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	before, err := Processes(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(before) != 5 {
		t.Fatalf("%d processes, want 5: %v", len(before), before)
	}

	second, err := Start(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	after, err := Processes(dir)
	if err != nil {
		t.Fatal(err)
	}
	for i := range before {
		if before[i].PID != after[i].PID {
			t.Errorf("%s was replaced: process %d, then %d", before[i].Name, before[i].PID, after[i].PID)
		}
	}
	if *first.Postgres != *second.Postgres || *first.Dev != *second.Dev || first.Git.URL != second.Git.URL {
		t.Error("the second start has other addresses")
	}

	// A setting that changed replaces what it is of, and nothing else.
	c.Volatile = false
	if _, err := Start(ctx, c); err != nil {
		t.Fatal(err)
	}
	changed, err := Processes(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range changed {
		for _, old := range before {
			if p.Name == old.Name && (p.PID != old.PID) != (p.Name == "postgres") {
				t.Errorf("%s: process %d before, %d after a setting of postgres changed", p.Name, old.PID, p.PID)
			}
		}
	}

	dsn, err := second.Postgres.Database(ctx, "dray test")
	if err != nil {
		t.Fatal(err)
	}
	if err := (&Postgres{DSN: dsn}).ready(ctx); err != nil {
		t.Errorf("the database that was made: %v", err)
	}
	if _, err := second.Postgres.Database(ctx, "dray test"); err != nil {
		t.Errorf("the database that is there: %v", err)
	}

	for range 2 {
		if err := Stop(ctx, dir); err != nil {
			t.Fatal(err)
		}
		noneLeft(t, dir)
	}
	if left, _ := Processes(dir); len(left) != 0 {
		t.Errorf("still recorded: %v", left)
	}

	third, err := Start(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	if *first.Postgres != *third.Postgres || *first.Dev != *third.Dev || first.Git.URL != third.Git.URL {
		t.Error("after a stop, the same directory has other addresses")
	}
	if err := (&Postgres{DSN: dsn}).ready(ctx); err != nil {
		t.Errorf("the database after a stop: %v", err)
	}
}

func TestKilledProcessesAreReplaced(t *testing.T) {
	bin, dir := testBin(t), testDir(t)
	ctx := t.Context()
	c := Config{Dir: dir, Bin: bin, Postgres: true, Registries: true, Volatile: true}
	s, err := Start(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"postgres", "registry-dev"} {
		if err := s.Kill(name, 9); err != nil {
			t.Fatal(err)
		}
	}
	// At once: PostgreSQL's other processes may still be there.
	again, err := Start(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	if *s.Postgres != *again.Postgres || *s.Dev != *again.Dev {
		t.Error("the addresses changed")
	}
	// One that hangs is not healthy, and is replaced.
	stuck, err := s.Process("registry-prod")
	if err != nil {
		t.Fatal(err)
	}
	suspend(t, stuck)
	if _, err := Start(ctx, c); err != nil {
		t.Fatal(err)
	}
	if stuck.Running() {
		t.Error("a registry that hangs was kept")
	}
}

// suspend stops every thread of the process.
func suspend(t *testing.T, p Process) {
	t.Helper()
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for stopped := false; !stopped; {
		stopped = true
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.PID))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range threads {
			if b, err := os.ReadFile(path); err == nil && !bytes.Contains(b, []byte(") T ")) {
				stopped = false
			}
		}
		time.Sleep(time.Millisecond)
	}
}
