//go:build linux

package stack

import (
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestPortsAreRememberedUntilTaken(t *testing.T) {
	dir := t.TempDir()
	first, err := Reserve(dir, "a")
	if err != nil {
		t.Fatal(err)
	}
	if other, err := Reserve(dir, "b"); err != nil || other == first {
		t.Fatalf("two names have %s and %s, %v", first, other, err)
	}
	if again, err := Reserve(dir, "a"); err != nil || again != first {
		t.Fatalf("%s, then %s, %v", first, again, err)
	}
	l, err := net.Listen("tcp", first)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	moved, err := Reserve(dir, "a")
	if err != nil || moved == first {
		t.Fatalf("somebody has %s and it was given out again, %v", moved, err)
	}
}

func TestTakenPortIsStartedAround(t *testing.T) {
	s := gitStack(t, "")
	before := s.Git.URL
	ctx := t.Context()
	if err := Stop(ctx, s.Dir); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", strings.TrimPrefix(before, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	again, err := Start(ctx, Config{Dir: s.Dir, Bin: s.bin, Git: true})
	if err != nil {
		t.Fatal(err)
	}
	if again.Git.URL == before {
		t.Error("the port that is somebody else's was used")
	}
}

// A process that got the id of one that is recorded is left alone.
func TestReusedProcessIDIsNotKilled(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	st, err := readStat(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	real := Process{
		Name: "sleep", PID: cmd.Process.Pid, Start: st.start, Boot: bootID(),
		Signals: []syscall.Signal{syscall.SIGTERM}, StopIn: 5 * time.Second,
	}
	earlier, otherBoot := real, real
	earlier.Start--
	otherBoot.Boot = "another"
	for name, p := range map[string]Process{"earlier start": earlier, "another boot": otherBoot} {
		dir := t.TempDir()
		if _, err := makeDir(dir); err != nil {
			t.Fatal(err)
		}
		if err := p.write(dir); err != nil {
			t.Fatal(err)
		}
		if err := Stop(t.Context(), dir); err != nil {
			t.Fatal(err)
		}
		if !real.Running() {
			t.Fatalf("%s: a process that is not ours was stopped", name)
		}
	}
	dir := t.TempDir()
	if _, err := makeDir(dir); err != nil {
		t.Fatal(err)
	}
	if err := real.write(dir); err != nil {
		t.Fatal(err)
	}
	if err := Stop(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if real.Running() {
		t.Error("the process that is ours still runs")
	}
}

func TestStatOfAnOddlyNamedProcess(t *testing.T) {
	self, err := readStat(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if self.start == 0 || self.dead() {
		t.Errorf("this process: %+v", self)
	}
	// A name with spaces and parentheses, which proc(5) does not quote.
	dir := t.TempDir()
	odd := dir + "/a) S 1 (b"
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(sleep)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(odd, b, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(odd, "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	st, err := readStat(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if st.start < self.start || st.start > self.start+1_000_000 {
		t.Errorf("started at %d, this process at %d", st.start, self.start)
	}
}
