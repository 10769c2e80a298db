//go:build linux

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// maxPush bounds what one push may send.
const maxPush = 1 << 30

func serveGit(ctx context.Context, flags *flag.FlagSet, args []string, stderr io.Writer) error {
	addr := flags.String("addr", "", "the address to listen on")
	dir := flags.String("dir", "", "the directory: repos/OWNER/NAME.git are served, the hook is written to hooks/")
	webhook := flags.String("webhook", "", "the URL that push events go to; empty sends none")
	secretFile := flags.String("secret-file", "", "the file with the secret that push events are signed with")
	if err := parse(flags, args, "addr", "dir"); err != nil {
		return err
	}
	if *webhook != "" {
		if _, err := readSecret(*secretFile); err != nil {
			return err
		}
	}
	root, err := filepath.Abs(*dir)
	if err != nil {
		return err
	}
	if err := writeHook(root, *addr, *webhook, *secretFile); err != nil {
		return fmt.Errorf("write the hook: %w", err)
	}
	backend, err := httpBackend(ctx)
	if err != nil {
		return err
	}
	log := newLog(stderr)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /-/ready", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ready") })
	mux.Handle("/", spooled(&cgi.Handler{
		Path: backend,
		Root: "/",
		Dir:  root,
		Env: []string{
			"GIT_PROJECT_ROOT=" + filepath.Join(root, "repos"),
			"GIT_HTTP_EXPORT_ALL=1",
			"REMOTE_USER=dev",
			"HOME=" + root,
			"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null",
			"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*",
		},
		InheritEnv: []string{"PATH", "NO_PROXY", "no_proxy", "STACK_OWNER"},
		Stderr:     stderr,
	}))
	return serve(ctx, *addr, accessLog(mux, log), log)
}

// writeHook writes the one hook that all repositories share. It calls this very
// program, so that a push to the files works as one over HTTP does.
func writeHook(root, addr, webhook, secretFile string) error {
	hooks := filepath.Join(root, "hooks")
	if err := os.MkdirAll(hooks, 0o755); err != nil {
		return err
	}
	script := "#!/bin/sh\n# Written at each start of the git server.\n"
	if webhook == "" {
		script += "exit 0\n"
	} else {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		secretFile, err = filepath.Abs(secretFile)
		if err != nil {
			return err
		}
		call := []string{
			self, "push-event", "--repos", filepath.Join(root, "repos"), "--url", "http://" + addr,
			"--webhook", webhook, "--secret-file", secretFile,
		}
		for i := range call {
			call[i] = "'" + strings.ReplaceAll(call[i], "'", `'\''`) + "'"
		}
		script += "exec " + strings.Join(call, " ") + "\n"
	}
	// In one step: a push may be running the old one.
	fresh := filepath.Join(hooks, ".post-receive.new")
	if err := os.WriteFile(fresh, []byte(script), 0o755); err != nil {
		return err
	}
	return os.Rename(fresh, filepath.Join(hooks, "post-receive"))
}

func httpBackend(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "git", "--exec-path").Output()
	if err != nil {
		return "", fmt.Errorf("find git: %w", err)
	}
	path := filepath.Join(strings.TrimSpace(string(out)), "git-http-backend")
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("git lacks its HTTP server: %w", err)
	}
	return path, nil
}

// spooled gives a body of unknown length one, by way of a file: git sends large
// pushes in chunks, and CGI has to know the length before.
func spooled(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !slices.Contains(r.TransferEncoding, "chunked") {
			next.ServeHTTP(w, r)
			return
		}
		f, err := os.CreateTemp("", "dray-push-*")
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		defer os.Remove(f.Name())
		defer f.Close()
		n, err := io.Copy(f, http.MaxBytesReader(w, r.Body, maxPush))
		if err == nil {
			_, err = f.Seek(0, io.SeekStart)
		}
		if err != nil {
			status := http.StatusBadRequest
			if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
				status = http.StatusRequestEntityTooLarge
			}
			http.Error(w, err.Error(), status)
			return
		}
		r = r.Clone(r.Context())
		r.Body, r.ContentLength, r.TransferEncoding = io.NopCloser(f), n, nil
		r.Header.Del("Transfer-Encoding")
		next.ServeHTTP(w, r)
	})
}
