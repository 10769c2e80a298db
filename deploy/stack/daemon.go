//go:build linux

package stack

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Daemon is a process to keep running in the background, after the one that
// started it has ended too.
type Daemon struct {
	// Name of its record, Dir/run/NAME.json, and its log, Dir/log/NAME.log. The
	// log of the process before it is kept as NAME.log.1.
	Name string
	// Argv[0] is the path of the program.
	Argv []string
	// Env is added to a small environment: PATH, HOME (the state directory), and
	// what says how to reach the network. Nothing else is inherited.
	Env []string
	// WorkDir is where it runs; empty means the state directory.
	WorkDir string
	// Address to record, for people and for Processes.
	Address string
	// Files whose content, when it changes, makes a running process outdated.
	Files []string
	// Ready is asked until it returns nil; from then on the daemon is started.
	// Nil means as soon as it runs.
	Ready func(context.Context) error
	// ReadyIn bounds the wait; 0 means a minute.
	ReadyIn time.Duration
	// Signals that ask it to stop, one after the other; nil means SIGTERM.
	Signals []syscall.Signal
	// StopIn is what each of them is given before the next one, and SIGKILL at
	// last; 0 means 20 seconds.
	StopIn time.Duration

	// user to run as; nil means as this process.
	user *user
	// prepare is called when no such process runs, before one is started.
	prepare func(context.Context) error
}

// StartDaemon starts the process, or keeps the one that runs already when it
// was started the same way, from the same program, and is ready. It returns
// when the process is ready.
func (s *Stack) StartDaemon(ctx context.Context, d Daemon) (Process, error) {
	if d.ReadyIn == 0 {
		d.ReadyIn = time.Minute
	}
	if d.StopIn == 0 {
		d.StopIn = 20 * time.Second
	}
	if d.Signals == nil {
		d.Signals = []syscall.Signal{syscall.SIGTERM}
	}
	if d.WorkDir == "" {
		d.WorkDir = s.Dir
	}
	if d.Ready == nil {
		d.Ready = func(context.Context) error { return nil }
	}
	env := append(baseEnv(s.Dir), d.Env...)
	print, err := fingerprint(d, env)
	if err != nil {
		return Process{}, fmt.Errorf("stack: start %s: %w", d.Name, err)
	}

	old, err := readRecord(s.Dir, d.Name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return Process{}, err
	case old.Running():
		why := "it was started differently"
		if old.Fingerprint == print {
			if err = waitReady(ctx, d, old.Running, 5*time.Second); err == nil {
				s.log.printf("%s: runs already (process %d)%s", d.Name, old.PID, at(old.Address))
				return old, nil
			}
			why = "it does not answer: " + err.Error()
		}
		s.log.printf("%s: replacing process %d: %s", d.Name, old.PID, why)
		if err := old.stop(ctx); err != nil {
			return Process{}, err
		}
	}
	if err := killLeftovers(s.Dir, d.Name); err != nil {
		return Process{}, err
	}

	if d.prepare != nil {
		if err := d.prepare(ctx); err != nil {
			return Process{}, fmt.Errorf("stack: prepare to start %s: %w", d.Name, err)
		}
	}
	p, exited, err := s.spawn(d, env, print)
	if err != nil {
		return Process{}, fmt.Errorf("stack: start %s: %w", d.Name, err)
	}
	alive := func() bool {
		select {
		case <-exited:
			return false
		default:
			return true
		}
	}
	if err := waitReady(ctx, d, alive, d.ReadyIn); err != nil {
		stopErr := p.stop(context.WithoutCancel(ctx))
		return Process{}, errors.Join(fmt.Errorf("stack: start %s: %w%s", d.Name, err, s.lastLines(d.Name)), stopErr)
	}
	s.log.printf("%s: ready (process %d)%s", d.Name, p.PID, at(p.Address))
	return p, nil
}

// Kill sends a signal to the process of that name: os.ErrProcessDone when it
// does not run. It stays recorded, as a process that crashed would.
func (s *Stack) Kill(name string, sig syscall.Signal) error {
	p, err := readRecord(s.Dir, name)
	if errors.Is(err, fs.ErrNotExist) {
		return os.ErrProcessDone
	}
	if err != nil {
		return err
	}
	return p.Signal(sig)
}

// StopDaemon stops the process of that name and what it left behind, and
// forgets it. That it does not run is no error.
func (s *Stack) StopDaemon(ctx context.Context, name string) error {
	return stopRecorded(ctx, s.Dir, name)
}

// Process returns what is recorded of the process of that name.
func (s *Stack) Process(name string) (Process, error) { return readRecord(s.Dir, name) }

// LogPath returns the path of the log of the process of that name.
func (s *Stack) LogPath(name string) string {
	return filepath.Join(s.Dir, "log", name+".log")
}

func stopRecorded(ctx context.Context, dir, name string) error {
	p, err := readRecord(dir, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := p.stop(ctx); err != nil {
		return err
	}
	if err := killLeftovers(dir, name); err != nil {
		return err
	}
	if err := os.Remove(recordPath(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("stack: forget %s: %w", name, err)
	}
	return nil
}

// spawn starts the process in a session of its own and records it. The channel
// is closed when it ends while this process still lives.
func (s *Stack) spawn(d Daemon, env []string, print string) (Process, <-chan struct{}, error) {
	log := s.LogPath(d.Name)
	if err := os.Rename(log, log+".1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Process{}, nil, err
	}
	out, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return Process{}, nil, err
	}
	defer out.Close()

	cmd := exec.Command(d.Argv[0], d.Argv[1:]...)
	cmd.Env = append(env, ownerVariable+"="+owner(s.Dir, d.Name))
	cmd.Dir = d.WorkDir
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if d.user != nil {
		d.user.become(cmd, s.Dir)
	}
	if err := cmd.Start(); err != nil {
		return Process{}, nil, err
	}
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		cmd.Wait() // its log says how it went; this is for the kernel
	}()
	st, err := readStat(cmd.Process.Pid)
	if err != nil {
		<-exited
		return Process{}, nil, fmt.Errorf("it ended at once%s", s.lastLines(d.Name))
	}
	p := Process{
		Name: d.Name, PID: cmd.Process.Pid, Start: st.start, Boot: bootID(),
		Argv: d.Argv, Address: d.Address, Fingerprint: print, StartedAt: time.Now().UTC(),
		Signals: d.Signals, StopIn: d.StopIn,
	}
	if err := p.write(s.Dir); err != nil {
		cmd.Process.Kill()
		<-exited
		return Process{}, nil, err
	}
	return p, exited, nil
}

// waitReady asks until the daemon is ready, has ended or has used up its time.
func waitReady(ctx context.Context, d Daemon, alive func() bool, within time.Duration) error {
	limit, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for {
		err := d.Ready(limit)
		// Somebody else might answer at the address: what counts is that it does.
		if !alive() {
			return errors.New("it ended before it was ready")
		}
		if err == nil {
			return nil
		}
		if pause(limit, pollEvery) != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("it was not ready after %v: %w", within, err)
		}
	}
}

// lastLines returns the end of a log, to be appended to an error.
func (s *Stack) lastLines(name string) string {
	path := s.LogPath(name)
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > 4096 {
		f.Seek(-4096, io.SeekEnd)
	}
	b, _ := io.ReadAll(f)
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	lines = lines[max(0, len(lines)-10):]
	return fmt.Sprintf("\n  the end of %s:\n    %s", path, strings.Join(lines, "\n    "))
}

// fingerprint is over everything that the process is started with, so that a
// program that was built again or a setting that changed replaces it.
func fingerprint(d Daemon, env []string) (string, error) {
	info, err := os.Stat(d.Argv[0])
	if err != nil {
		return "", err
	}
	h := sha256.New()
	fmt.Fprintf(h, "%q %q %q %d %d\n", d.Argv, env, d.WorkDir, info.Size(), info.ModTime().UnixNano())
	for _, path := range d.Files {
		b, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%q %x\n", path, sha256.Sum256(b))
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// baseEnv is the environment that daemons start from. It does not have the
// user's own: no credentials, no settings of Dray that happen to be set.
func baseEnv(dir string) []string {
	path := os.Getenv("PATH")
	// Where runc lives; a user's PATH may lack it.
	for _, sbin := range []string{"/usr/sbin", "/sbin"} {
		if !slices.Contains(filepath.SplitList(path), sbin) {
			path += ":" + sbin
		}
	}
	env := []string{"PATH=" + path, "HOME=" + dir, "LANG=C.UTF-8"}
	for _, name := range []string{
		"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR",
	} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	// No proxy can reach what listens on this machine only.
	direct := "127.0.0.1,localhost"
	if v := cmp.Or(os.Getenv("NO_PROXY"), os.Getenv("no_proxy")); v != "" {
		direct += "," + v
	}
	return append(env, "NO_PROXY="+direct, "no_proxy="+direct)
}

func at(address string) string {
	if address == "" {
		return ""
	}
	return " at " + address
}

// run runs a command to its end; what it printed is in the error.
func run(ctx context.Context, cmd *exec.Cmd) error {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), err, strings.TrimSpace(out.String()))
	}
	return nil
}
