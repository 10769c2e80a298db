package postgrestest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// keeper runs the server for as long as its standard input is open. The test
// binary holds the other end and never writes: when it exits, by itself or by
// SIGKILL, the pipe closes and the server goes with its files. So no package
// needs a TestMain to clean up.
const keeper = `
"$1"/postgres -D "$2/data" -k "$2" -c listen_addresses= -c fsync=off -c full_page_writes=off -c synchronous_commit=off \
	-c max_connections=200 -c shared_buffers=64MB -c autovacuum=off -c log_min_messages=warning >"$2/log" 2>&1 </dev/null &
pid=$!
read -r _
kill -QUIT $pid
wait $pid
rm -rf "$2"
`

// startCluster makes a cluster that only this process can find, on a socket in
// its own directory, and returns its address.
func startCluster() (string, error) {
	bin, err := binaries()
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "dray-pg-")
	if err != nil {
		return "", err
	}
	// The server and its tools refuse to run as root.
	attr := &syscall.SysProcAttr{Setpgid: true}
	if os.Geteuid() == 0 {
		uid, gid, err := unprivileged()
		if err != nil {
			return "", errors.Join(err, os.RemoveAll(dir))
		}
		if err := os.Chown(dir, uid, gid); err != nil {
			return "", errors.Join(err, os.RemoveAll(dir))
		}
		attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	initdb := exec.Command(filepath.Join(bin, "initdb"), "-D", dir+"/data", "-U", "postgres", "-A", "trust", "-E", "UTF8",
		"--locale=C.UTF-8", "--no-sync", "--no-instructions")
	initdb.SysProcAttr, initdb.Dir = attr, dir
	if out, err := initdb.CombinedOutput(); err != nil {
		return "", errors.Join(fmt.Errorf("initdb: %w: %s", err, out), os.RemoveAll(dir))
	}
	// Nothing of ours may stay open in the keeper: go test waits for whoever holds
	// its output.
	stdin, hold, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer func() { _ = stdin.Close() }()
	cmd := exec.Command("/bin/sh", "-c", keeper, "keeper", bin, dir)
	cmd.SysProcAttr, cmd.Dir, cmd.Stdin = attr, dir, stdin
	if err := cmd.Start(); err != nil {
		return "", errors.Join(err, hold.Close(), os.RemoveAll(dir))
	}
	go func() { _ = cmd.Wait(); _ = hold.Close() }() // hold stays open for as long as this process lives
	address := fmt.Sprintf("host=%s port=5432 user=postgres dbname=postgres sslmode=disable", dir)
	if err := await(address); err != nil {
		log, _ := os.ReadFile(dir + "/log")
		return "", errors.Join(fmt.Errorf("the test cluster did not start: %w: %s", err, log), hold.Close())
	}
	return address, nil
}

func await(address string) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for ctx.Err() == nil {
		var conn *pgx.Conn
		if conn, err = pgx.Connect(ctx, address); err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
	return err
}

// binaries finds the newest server that is installed.
func binaries() (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil {
		return "", err
	}
	best, bestVersion := "", 0
	for _, path := range found {
		dir := filepath.Dir(path)
		version, err := strconv.Atoi(filepath.Base(filepath.Dir(dir)))
		if err == nil && version > bestVersion {
			best, bestVersion = dir, version
		}
	}
	if best != "" {
		return best, nil
	}
	if path, err := exec.LookPath("initdb"); err == nil {
		return filepath.Dir(path), nil
	}
	return "", errNone
}

func unprivileged() (uid, gid int, err error) {
	u, err := user.Lookup("postgres")
	if err != nil {
		if u, err = user.Lookup("nobody"); err != nil {
			return 0, 0, fmt.Errorf("running as root, and there is no other user to run the test cluster as: %w", err)
		}
	}
	if uid, err = strconv.Atoi(u.Uid); err != nil {
		return 0, 0, err
	}
	gid, err = strconv.Atoi(u.Gid)
	return uid, gid, err
}
