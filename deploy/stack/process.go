//go:build linux

package stack

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	pollEvery = 50 * time.Millisecond
	// killIn is how long a killed process may take to be gone; it can be held up
	// by the kernel writing out its files.
	killIn = 10 * time.Second
)

// Process is what is recorded of a process that was started, in
// Dir/run/NAME.json.
type Process struct {
	Name string `json:"name"`
	PID  int    `json:"pid"`
	// Start is when the process started, in clock ticks since the boot Boot. With
	// both, a process that got the same id later is never mistaken for this one.
	Start uint64   `json:"start"`
	Boot  string   `json:"boot"`
	Argv  []string `json:"argv"`
	// Address is where it can be reached, as far as it has one.
	Address string `json:"address,omitempty"`
	// Fingerprint changes with anything that the process was started with.
	Fingerprint string    `json:"fingerprint"`
	StartedAt   time.Time `json:"startedAt"`
	// Signals to ask it to stop with, each given StopIn before the next; then it
	// is killed.
	Signals []syscall.Signal `json:"signals"`
	StopIn  time.Duration    `json:"stopIn"`
}

// Running reports whether that very process still runs.
func (p Process) Running() bool {
	if p.PID <= 1 || p.Boot != bootID() {
		return false
	}
	st, err := readStat(p.PID)
	return err == nil && st.start == p.Start && !st.dead()
}

// Signal sends the process a signal; os.ErrProcessDone when it no longer runs.
func (p Process) Signal(sig syscall.Signal) error {
	// The descriptor holds on to the process that it was opened for: between the
	// check and the signal the id cannot come to mean another.
	proc, err := os.FindProcess(p.PID)
	if err != nil {
		return err
	}
	defer proc.Release()
	if !p.Running() {
		return os.ErrProcessDone
	}
	return proc.Signal(sig)
}

// stop asks the process to end, insists, and kills it in the end.
func (p Process) stop(ctx context.Context) error {
	for _, sig := range p.Signals {
		if err := p.Signal(sig); errors.Is(err, os.ErrProcessDone) {
			return nil
		} else if err != nil {
			return fmt.Errorf("stack: stop %s (process %d): %w", p.Name, p.PID, err)
		}
		// One that was suspended cannot act on it otherwise.
		p.Signal(syscall.SIGCONT)
		if p.gone(ctx, p.StopIn) {
			return nil
		}
	}
	if err := p.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stack: kill %s (process %d): %w", p.Name, p.PID, err)
	}
	if !p.gone(context.WithoutCancel(ctx), killIn) {
		return fmt.Errorf("stack: %s (process %d) was killed and is still there after %v", p.Name, p.PID, killIn)
	}
	return nil
}

// gone waits for the process to end; false when it still runs after that time,
// or when the context ended.
func (p Process) gone(ctx context.Context, within time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for p.Running() {
		if pause(ctx, pollEvery) != nil {
			return !p.Running()
		}
	}
	return true
}

func recordPath(dir, name string) string { return filepath.Join(dir, "run", name+".json") }

func readRecord(dir, name string) (Process, error) {
	b, err := os.ReadFile(recordPath(dir, name))
	if err != nil {
		return Process{}, err
	}
	var p Process
	if err := json.Unmarshal(b, &p); err != nil {
		return Process{}, fmt.Errorf("stack: read %s: %w", recordPath(dir, name), err)
	}
	return p, nil
}

func (p Process) write(dir string) error {
	b, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return err
	}
	if err := writeFile(recordPath(dir, p.Name), append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("stack: record %s: %w", p.Name, err)
	}
	return nil
}

// Processes returns what was started in that directory and not stopped since,
// in the order of their start. A process that died is among them.
func Processes(dir string) ([]Process, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "run", "*.json"))
	if err != nil {
		return nil, err
	}
	var all []Process
	for _, path := range paths {
		name := strings.TrimSuffix(filepath.Base(path), ".json")
		if name == portsFile {
			continue
		}
		p, err := readRecord(dir, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b Process) int { return a.StartedAt.Compare(b.StartedAt) })
	return all, nil
}

// stat is what /proc/PID/stat says, as far as it is of interest here.
type stat struct {
	state   byte
	tty     int
	threads int
	start   uint64
}

// dead: it ended and only waits for its parent to hear of it. A process whose
// first thread ended shows as a zombie too, while its others still hold its
// files and ports.
func (s stat) dead() bool { return (s.state == 'Z' || s.state == 'X') && s.threads <= 1 }

func readStat(pid int) (stat, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return stat{}, err
	}
	// The second field is the command's name in parentheses, which may itself
	// contain spaces and parentheses: proc(5).
	_, rest, ok := bytes.Cut(b, []byte(") "))
	for ok && bytes.Contains(rest, []byte(") ")) {
		_, rest, _ = bytes.Cut(rest, []byte(") "))
	}
	f := strings.Fields(string(rest))
	if !ok || len(f) < 20 {
		return stat{}, fmt.Errorf("stack: /proc/%d/stat is not understood", pid)
	}
	start, err := strconv.ParseUint(f[19], 10, 64)
	if err != nil {
		return stat{}, fmt.Errorf("stack: /proc/%d/stat: %w", pid, err)
	}
	tty, _ := strconv.Atoi(f[4])
	threads, _ := strconv.Atoi(f[17])
	return stat{state: f[0][0], tty: tty, threads: threads, start: start}, nil
}

func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// writeFile replaces the file in one step, so that nobody reads half of it.
func writeFile(path string, b []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if _, err := f.Write(b); err != nil {
		f.Close()
		return err
	}
	if err := errors.Join(f.Chmod(mode), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// pause waits, or returns the context's error when that ends first.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
