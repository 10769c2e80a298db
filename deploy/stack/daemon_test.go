//go:build linux

package stack

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func daemonStack(t *testing.T) *Stack {
	t.Helper()
	s, err := Start(t.Context(), Config{Dir: testDir(t), Bin: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestDaemonThatEndsAtOnceSaysWhy(t *testing.T) {
	s := daemonStack(t)
	_, err := s.StartDaemon(t.Context(), Daemon{
		Name: "bad", Argv: []string{"/bin/sh", "-c", "echo the setting x is missing >&2; exit 1"},
		Ready: func(context.Context) error { return errors.New("not yet") },
	})
	if err == nil || !strings.Contains(err.Error(), "start bad") || !strings.Contains(err.Error(), "the setting x is missing") {
		t.Errorf("the error is %v", err)
	}
}

func TestDaemonThatIsNeverReadyIsStopped(t *testing.T) {
	s := daemonStack(t)
	_, err := s.StartDaemon(t.Context(), Daemon{
		Name: "slow", Argv: []string{"/bin/sleep", "98763"}, ReadyIn: 300 * time.Millisecond,
		Ready: func(context.Context) error { return errors.New("nobody answers") },
	})
	if err == nil || !strings.Contains(err.Error(), "nobody answers") {
		t.Errorf("the error is %v", err)
	}
	if commandRuns(t, "/bin/sleep", "98763") {
		t.Error("it still runs")
	}
}

func TestDaemonInheritsNothingOfTheUsers(t *testing.T) {
	t.Setenv("DRAY_TOKEN", "the user's own")
	s := daemonStack(t)
	out := filepath.Join(s.Dir, "env")
	_, err := s.StartDaemon(t.Context(), Daemon{
		Name: "env", Argv: []string{"/bin/sh", "-c", "env > " + out + ".new; mv " + out + ".new " + out + "; exec sleep 98764"},
		Env: []string{"DRAY_URL=given"},
		Ready: func(context.Context) error {
			_, err := os.Stat(out)
			return err
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"DRAY_URL=given", "HOME=" + s.Dir, "PATH="} {
		if !strings.Contains(string(b), want) {
			t.Errorf("the environment lacks %s:\n%s", want, b)
		}
	}
	if strings.Contains(string(b), "DRAY_TOKEN") {
		t.Errorf("the environment has the user's token:\n%s", b)
	}
}

// Children that outlive their daemon, sessions of their own included, go with it.
func TestStopTakesTheChildrenAlong(t *testing.T) {
	s := daemonStack(t)
	start := func() Process {
		t.Helper()
		p, err := s.StartDaemon(t.Context(), Daemon{
			Name: "parent", Argv: []string{"/bin/sh", "-c", "setsid sleep 98765 & exec sleep 98766"},
			Ready: func(context.Context) error {
				if !commandRuns(t, "sleep", "98765") || !commandRuns(t, "sleep", "98766") {
					return errors.New("the child does not run")
				}
				return nil
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	first := start()
	if again := start(); again.PID != first.PID {
		t.Errorf("it was replaced by itself: %d, %d", first.PID, again.PID)
	}
	if err := s.Kill("parent", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if !first.gone(t.Context(), 10*time.Second) {
		t.Fatal("it was killed and runs")
	}
	if err := s.Kill("parent", syscall.SIGKILL); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("killed twice: %v", err)
	}
	if !commandRuns(t, "sleep", "98765") {
		t.Fatal("the child died with its parent: nothing is tested here")
	}
	if second := start(); second.PID == first.PID {
		t.Error("a dead process was kept")
	}
	for range 2 {
		if err := s.StopDaemon(t.Context(), "parent"); err != nil {
			t.Fatal(err)
		}
	}
	if commandRuns(t, "sleep", "98765") || commandRuns(t, "sleep", "98766") {
		t.Error("something still runs")
	}
}

// A path that no socket can have is no obstacle.
func TestLongStateDirectory(t *testing.T) {
	bin := testBin(t)
	dir := filepath.Join(testDir(t), strings.Repeat("long", 20), strings.Repeat("name", 20))
	t.Cleanup(func() {
		if err := Stop(context.Background(), dir); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(shortDir(dir)); err == nil {
			t.Errorf("%s is left", shortDir(dir))
		}
	})
	if _, err := Start(t.Context(), Config{Dir: dir, Bin: bin, Postgres: true, Buildkit: true, Volatile: true}); err != nil {
		t.Fatal(err)
	}
}
