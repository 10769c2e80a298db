//go:build linux

package stack

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// solve builds the Dockerfile with buildctl, without output.
func solve(ctx context.Context, s *Stack, dockerfile string, args ...string) (string, error) {
	dir, err := os.MkdirTemp("", "dray-solve-*")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o644); err != nil {
		return "", err
	}
	return buildctl(ctx, s, append([]string{"--local", "context=" + dir, "--local", "dockerfile=" + dir}, args...)...)
}

func buildctl(ctx context.Context, s *Stack, args ...string) (string, error) {
	args = append([]string{
		"--addr", s.Buildkit.Address, "build", "--progress", "plain", "--frontend", "dockerfile.v0",
	}, args...)
	out, err := exec.CommandContext(ctx, filepath.Join(s.bin, "buildctl"), args...).CombinedOutput()
	return string(out), err
}

func TestBuildkitKilledInTheMiddle(t *testing.T) {
	bin := testBin(t)
	t.Run("overlayfs", func(t *testing.T) { killInTheMiddle(t, bin, testDir(t), "overlayfs") })
	// A colon is what overlayfs's options cannot have in a path.
	t.Run("native", func(t *testing.T) { killInTheMiddle(t, bin, filepath.Join(testDir(t), "a:b"), "native") })
}

func killInTheMiddle(t *testing.T, bin, dir, snapshots string) {
	t.Cleanup(func() {
		if err := Stop(context.Background(), dir); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	c := Config{Dir: dir, Bin: bin, Cache: testCache(t), Buildkit: true, Registries: true}
	s, err := Start(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	if found := snapshotter(ctx, filepath.Join(dir, "buildkit")); found != snapshots {
		t.Skipf("this machine's snapshotter here is %s, not %s", found, snapshots)
	}
	refs, err := s.Bases(ctx, s.Dev.Host, BaseBusybox)
	if err != nil {
		t.Fatal(err)
	}
	base := refs[BaseBusybox]

	// Whichever way a step was left in the middle, it is found: a number of
	// seconds that nobody else sleeps tells it apart.
	sleep := func(seconds string) (running func() bool, done <-chan error) {
		finished := make(chan error, 1)
		go func() {
			out, err := solve(ctx, s, fmt.Sprintf("FROM %s\nRUN sleep %s\n", base, seconds))
			finished <- fmt.Errorf("%v: %s", err, out)
		}()
		return func() bool { return commandRuns(t, "sleep", seconds) }, finished
	}
	for _, how := range []string{"started again", "stopped"} {
		t.Run(how, func(t *testing.T) {
			seconds := map[string]string{"started again": "98761", "stopped": "98762"}[how]
			running, done := sleep(seconds)
			for !running() {
				select {
				case err := <-done:
					t.Fatalf("the build ended: %v", err)
				case <-time.After(pollEvery):
				}
			}
			if err := s.Kill("buildkitd", 9); err != nil {
				t.Fatal(err)
			}
			if err := <-done; err == nil {
				t.Fatal("the build did not notice")
			}
			if !running() {
				t.Log("the step died with buildkitd: nothing to clean up here")
			}
			if how == "stopped" {
				if err := Stop(ctx, dir); err != nil {
					t.Fatal(err)
				}
				noneLeft(t, dir)
			} else if s, err = Start(ctx, c); err != nil {
				t.Fatal(err)
			}
			if running() {
				t.Error("the step still runs")
			}
			if how == "stopped" {
				return
			}
			if m := mountsBelow(t, filepath.Join(dir, "buildkit")); len(m) != 0 {
				t.Errorf("still mounted after the start: %v", m)
			}
			if out, err := solve(ctx, s, fmt.Sprintf("FROM %s\nRUN echo it works\n", base)); err != nil {
				t.Errorf("a build after the start: %v: %s", err, out)
			}
		})
	}
}

func mountsBelow(t *testing.T, dir string) (points []string) {
	t.Helper()
	mounts, err := readMounts("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts {
		if below(m.point, dir) {
			points = append(points, m.point)
		}
	}
	return points
}

func commandRuns(t *testing.T, args ...string) bool {
	t.Helper()
	want := []byte(strings.Join(args, "\x00") + "\x00")
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		if b, err := os.ReadFile(path); err == nil && bytes.HasSuffix(b, want) {
			return true
		}
	}
	return false
}
