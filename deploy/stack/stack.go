//go:build linux

package stack

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
)

// Config says what to start and where its state goes.
type Config struct {
	// Dir holds all state, and nothing else. It is made where it is missing.
	Dir string
	// Bin is the directory of buildkitd, buildctl and dray-dev.
	Bin string
	// Cache keeps what was fetched from elsewhere; several stacks may share it.
	// Empty means a directory in Dir.
	Cache string
	// Log receives a line for each thing that happens, for a person to read.
	// Nil keeps silent.
	Log io.Writer

	Postgres   bool
	Buildkit   bool
	Registries bool // Dev and Prod
	Git        bool

	// Volatile gives up what only a power cut would cost, for speed: for tests.
	Volatile bool
	// SharedBuffers is how much of its tables PostgreSQL keeps in memory, as its
	// setting has it. Empty: 128MB, which is little.
	SharedBuffers string

	// Webhook receives the push events of the git server, signed with
	// WebhookSecret. Reserve gives an address that the receiver can use later.
	Webhook       string
	WebhookSecret string
}

// Stack is what runs. Its parts are nil where they were not asked for.
type Stack struct {
	Dir string

	Postgres *Postgres
	Buildkit *Buildkit
	// Dev is distribution, which has no referrers API; Prod is olareg, which has.
	Dev, Prod *Registry
	Git       *Git

	bin   string
	cache string
	log   *logger
}

// Start starts what the configuration asks for, in parallel. A process left
// from before is kept when it is healthy and was started the same way, else
// replaced. On an error, what was started stays: call Stop.
func Start(ctx context.Context, c Config) (*Stack, error) {
	s, err := open(c)
	if err != nil {
		return nil, err
	}
	unlock, err := lock(ctx, s.Dir)
	if err != nil {
		return nil, err
	}
	defer unlock()

	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	start := func(wanted bool, f func() error) {
		if !wanted {
			return
		}
		wg.Go(func() {
			if err := f(); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			}
		})
	}
	start(c.Postgres, func() (err error) {
		s.Postgres, err = s.startPostgres(ctx, c.Volatile, cmp.Or(c.SharedBuffers, "128MB"))
		return
	})
	start(c.Buildkit, func() (err error) { s.Buildkit, err = s.startBuildkit(ctx); return })
	start(c.Registries, func() (err error) { s.Dev, err = s.startRegistry(ctx, "dev", Distribution); return })
	start(c.Registries, func() (err error) { s.Prod, err = s.startRegistry(ctx, "prod", Olareg); return })
	start(c.Git, func() (err error) { s.Git, err = s.startGit(ctx, c.Webhook, c.WebhookSecret); return })
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return s, nil
}

func open(c Config) (*Stack, error) {
	if c.Dir == "" {
		return nil, errors.New("stack: Dir is not set: want a directory for the state")
	}
	if c.Bin == "" {
		return nil, errors.New("stack: Bin is not set: want the directory of buildkitd, buildctl and dray-dev")
	}
	dir, err := makeDir(c.Dir)
	if err != nil {
		return nil, err
	}
	bin, err := filepath.Abs(c.Bin)
	if err != nil {
		return nil, fmt.Errorf("stack: Bin: %w", err)
	}
	cache, err := filepath.Abs(cmp.Or(c.Cache, filepath.Join(dir, "cache")))
	if err != nil {
		return nil, fmt.Errorf("stack: Cache: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(cache, "run"), 0o755); err != nil {
		return nil, fmt.Errorf("stack: make the cache: %w", err)
	}
	if c.Buildkit && os.Geteuid() != 0 {
		return nil, errors.New("stack: buildkitd needs root: run this as root or through sudo")
	}
	return &Stack{Dir: dir, bin: bin, cache: cache, log: &logger{w: c.Log}}, nil
}

// makeDir makes the state directory and returns its one true name, in which
// mount points and working directories of processes will be seen.
func makeDir(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("stack: Dir: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("stack: make the state directory: %w", err)
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return "", fmt.Errorf("stack: Dir: %w", err)
	}
	if dir == "/" {
		return "", errors.New("stack: Dir is the root directory: want one of its own")
	}
	for _, sub := range []string{"run", "log"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return "", fmt.Errorf("stack: make the state directory: %w", err)
		}
	}
	return dir, nil
}

// program returns the path of one of the programs in Bin.
func (s *Stack) program(name string) (string, error) {
	path := filepath.Join(s.bin, name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("stack: %s is not in %s: build it with \"make bin/%s\"", name, s.bin, name)
	}
	return path, nil
}

// Env returns the lines that point Dray's tests at what runs.
func (s *Stack) Env() []string {
	var env []string
	if s.Postgres != nil {
		env = append(env, "DRAY_TEST_POSTGRES="+s.Postgres.DSN)
	}
	if s.Buildkit != nil {
		env = append(env, "DRAY_TEST_BUILDKIT="+s.Buildkit.Address)
	}
	if s.Dev != nil {
		env = append(env, "DRAY_TEST_DEV_REGISTRY="+s.Dev.Host, "DRAY_TEST_PROD_REGISTRY="+s.Prod.Host)
	}
	if s.Git != nil {
		env = append(env, "DRAY_TEST_GIT="+s.Git.URL)
	}
	return env
}

// invoker returns who ran this through sudo, or who runs it: who should be able
// to read what is not secret.
func invoker() (uid, gid int) {
	uid, gid = os.Geteuid(), os.Getegid()
	if uid != 0 {
		return uid, gid
	}
	if u, err := strconv.Atoi(os.Getenv("SUDO_UID")); err == nil {
		uid = u
	}
	if g, err := strconv.Atoi(os.Getenv("SUDO_GID")); err == nil {
		gid = g
	}
	return uid, gid
}

// lock keeps two starts, or a start and a stop, of one directory apart.
func lock(ctx context.Context, dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "run", "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("stack: lock %s: %w", dir, err)
	}
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			f.Close()
			return nil, fmt.Errorf("stack: lock %s: %w", dir, err)
		}
		if err := pause(ctx, pollEvery); err != nil {
			f.Close()
			return nil, fmt.Errorf("stack: %s is being started or stopped by another process: %w", dir, err)
		}
	}
}

// logger writes whole lines, from several goroutines.
type logger struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *logger) printf(format string, args ...any) {
	if l.w == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(l.w, format+"\n", args...)
}
