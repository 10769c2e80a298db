//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// site is two registries of one kind, each behind a proxy.
type site struct {
	*bench
	kindName string
	api      bool
	from, to *proxy
	// direct addresses, past the proxies
	direct [2]string
	child  []*exec.Cmd
	next   int // of fresh repositories

	plain, signed string // digests at the source, in repositories of that name
}

func (b *bench) site(ctx context.Context, kind string) (s *site, err error) {
	s = &site{bench: b, kindName: kind, api: kind == "olareg"}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	for i, p := range []**proxy{&s.from, &s.to} {
		host, err := s.startRegistry(ctx, i)
		if err != nil {
			return s, err
		}
		s.direct[i] = host
		if *p, err = newProxy(host); err != nil {
			return s, err
		}
	}
	if s.plain, err = push(s.direct[0]+"/bench/plain", "v1", false); err != nil {
		return s, fmt.Errorf("push the image: %w", err)
	}
	if s.signed, err = push(s.direct[0]+"/bench/signed", "v1", true); err != nil {
		return s, fmt.Errorf("push the signed image: %w", err)
	}
	return s, nil
}

func (s *site) startRegistry(ctx context.Context, i int) (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	host := listener.Addr().String()
	_ = listener.Close()
	dir := filepath.Join(s.dir, fmt.Sprintf("%s-%d", s.kindName, i))
	cmd := exec.CommandContext(ctx, filepath.Join(s.bin, "dray-dev"), "registry", "--kind", s.kindName, "--addr", host, "--dir", dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", fmt.Errorf("start a registry: %w", err)
	}
	s.child = append(s.child, cmd)
	for range 100 {
		if res, err := http.Get("http://" + host + "/v2/"); err == nil {
			_ = res.Body.Close()
			return host, nil
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	return "", errors.New("the registry did not start within 5 seconds")
}

func (s *site) close() {
	for _, p := range []*proxy{s.from, s.to} {
		if p != nil {
			_ = p.server.Close()
		}
	}
	for _, cmd := range s.child {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	}
	_ = os.RemoveAll(filepath.Join(s.dir, s.kindName+"-0"))
	_ = os.RemoveAll(filepath.Join(s.dir, s.kindName+"-1"))
}

func (s *site) wait(d time.Duration) {
	s.from.wait.Store(int64(d))
	s.to.wait.Store(int64(d))
}

// counted returns how many requests both registries got since it was last asked.
func (s *site) counted() int64 { return s.from.count.Swap(0) + s.to.count.Swap(0) }

// fresh names a repository that does not exist.
func (s *site) fresh(host string) string {
	s.next++
	return fmt.Sprintf("%s/fresh/r%d", host, s.next)
}
