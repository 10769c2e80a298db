//go:build linux

package stack

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// Postgres is a cluster of its own, which only this machine reaches, and only
// with the password.
type Postgres struct {
	// DSN is the superuser's, to the database "postgres", over TCP.
	DSN string
	// SocketDir has its unix socket, for the same user and password.
	SocketDir string
}

// Database makes the database unless it is there, and returns the superuser's
// DSN for it.
func (p *Postgres) Database(ctx context.Context, name string) (string, error) {
	u, err := url.Parse(p.DSN)
	if err != nil {
		return "", fmt.Errorf("stack: the address of PostgreSQL: %w", err)
	}
	conn, err := pgx.Connect(ctx, p.DSN)
	if err != nil {
		return "", fmt.Errorf("stack: connect to PostgreSQL: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var there bool
	err = conn.QueryRow(ctx, "select exists (select from pg_database where datname = $1)", name).Scan(&there)
	if err == nil && !there {
		_, err = conn.Exec(ctx, "create database "+pgx.Identifier{name}.Sanitize())
	}
	if err != nil {
		return "", fmt.Errorf("stack: make the database %s: %w", name, err)
	}
	u.Path = "/" + name
	return u.String(), nil
}

func (s *Stack) startPostgres(ctx context.Context, volatile bool, buffers string) (*Postgres, error) {
	base := filepath.Join(s.Dir, "postgres")
	data := filepath.Join(base, "data")
	version := ""
	if b, err := os.ReadFile(filepath.Join(data, "PG_VERSION")); err == nil {
		version = strings.TrimSpace(string(b))
	}
	bin, err := postgresBin(version)
	if err != nil {
		return nil, err
	}
	// PostgreSQL refuses to run as root; Debian's package made this user for it.
	var as *user
	if os.Geteuid() == 0 {
		if as, err = lookupUser("postgres"); err != nil {
			return nil, err
		}
	}
	password, err := s.initPostgres(ctx, bin, base, as)
	if err != nil {
		return nil, err
	}
	sockets, err := socketDir(s.Dir)
	if err != nil {
		return nil, err
	}
	sockets = filepath.Join(sockets, "pg")
	if err := ownDir(sockets, 0o755, as); err != nil {
		return nil, err
	}

	return started(3, func() (*Postgres, error) {
		address, err := reserve(s.Dir, "postgres")
		if err != nil {
			return nil, err
		}
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		argv := []string{
			filepath.Join(bin, "postgres"), "-D", data,
			"-c", "listen_addresses=" + host, "-c", "port=" + port,
			"-c", "unix_socket_directories=" + sockets,
			"-c", "max_connections=300",
			"-c", "shared_buffers=" + buffers,
			"-c", "logging_collector=off",
			"-c", "cluster_name=dray",
		}
		if volatile {
			argv = append(argv, "-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off")
		}
		dsn := url.URL{
			Scheme: "postgres", User: url.UserPassword("postgres", password), Host: address,
			Path: "/postgres", RawQuery: "sslmode=disable",
		}
		p := &Postgres{DSN: dsn.String(), SocketDir: sockets}
		_, err = s.StartDaemon(ctx, Daemon{
			Name: "postgres", Argv: argv, WorkDir: data, Address: address, user: as,
			Ready: p.ready,
			// Fast: it ends its sessions. Then at once: it recovers at the next start.
			Signals: []syscall.Signal{syscall.SIGINT, syscall.SIGQUIT},
		})
		return p, err
	}, func() bool { return s.portTaken("postgres") })
}

// initPostgres makes the cluster unless it is there, and returns its password.
func (s *Stack) initPostgres(ctx context.Context, bin, base string, as *user) (string, error) {
	if err := ownDir(base, 0o700, as); err != nil {
		return "", err
	}
	data, passwordFile := filepath.Join(base, "data"), filepath.Join(base, "password")
	if b, err := os.ReadFile(passwordFile); err == nil {
		if _, err := os.Stat(data); err == nil {
			return strings.TrimSpace(string(b)), nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("stack: read the password of PostgreSQL: %w", err)
	}

	s.log.printf("postgres: making a cluster in %s", data)
	password := rand.Text()
	if err := writeFile(passwordFile, []byte(password+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("stack: write the password of PostgreSQL: %w", err)
	}
	if as != nil {
		if err := os.Chown(passwordFile, int(as.uid), int(as.gid)); err != nil {
			return "", fmt.Errorf("stack: write the password of PostgreSQL: %w", err)
		}
	}
	// Under another name until it is whole.
	fresh := data + ".new"
	if err := os.RemoveAll(fresh); err != nil {
		return "", fmt.Errorf("stack: make a PostgreSQL cluster: %w", err)
	}
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "initdb"), "-D", fresh, "-U", "postgres",
		"--auth=scram-sha-256", "--pwfile="+passwordFile, "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync")
	cmd.Env, cmd.Dir = baseEnv(s.Dir), base
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if as != nil {
		as.become(cmd, s.Dir)
	}
	if err := run(ctx, cmd); err != nil {
		return "", fmt.Errorf("stack: make a PostgreSQL cluster: %w", err)
	}
	if err := os.Rename(fresh, data); err != nil {
		return "", fmt.Errorf("stack: make a PostgreSQL cluster: %w", err)
	}
	return password, nil
}

func (p *Postgres) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, p.DSN)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return conn.Ping(ctx)
}

// postgresBin returns the directory of PostgreSQL's programs: of that major
// version, or of the newest when version is empty.
func postgresBin(version string) (string, error) {
	if found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb"); len(found) > 0 {
		major := func(path string) int {
			n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
			return n
		}
		slices.SortFunc(found, func(a, b string) int { return major(b) - major(a) })
		for _, path := range found {
			if version == "" || strconv.Itoa(major(path)) == version {
				return filepath.Dir(path), nil
			}
		}
		return "", fmt.Errorf("stack: the cluster is of PostgreSQL %s, which is not installed: install postgresql-%s, or remove the state directory", version, version)
	}
	if path, err := exec.LookPath("initdb"); err == nil {
		return filepath.Dir(path), nil
	}
	return "", errors.New("stack: PostgreSQL is not installed: apt-get install postgresql")
}

// ownDir makes a directory that belongs to that user.
func ownDir(dir string, mode os.FileMode, as *user) error {
	if err := os.MkdirAll(dir, mode); err != nil {
		return fmt.Errorf("stack: make %s: %w", dir, err)
	}
	if as != nil {
		if err := os.Chown(dir, int(as.uid), int(as.gid)); err != nil {
			return fmt.Errorf("stack: make %s: %w", dir, err)
		}
	}
	return nil
}

// started tries again when the failure was that somebody took the port between
// its choice and its use.
func started[T any](tries int, start func() (T, error), portTaken func() bool) (T, error) {
	for {
		t, err := start()
		if err == nil || tries <= 1 || !portTaken() {
			return t, err
		}
		tries--
	}
}

// portTaken reports whether the port of a daemon that does not run is somebody
// else's by now.
func (s *Stack) portTaken(name string) bool {
	p, err := readRecord(s.Dir, name)
	if err != nil || p.Running() {
		return false
	}
	_, port, err := net.SplitHostPort(p.Address)
	if err != nil {
		return false
	}
	n, err := strconv.Atoi(port)
	return err == nil && !portFree(n)
}
