//go:build linux

package stack

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// RegistryKind is the software of a registry.
type RegistryKind string

// The kinds differ in what matters to signatures: distribution has no referrers
// API, so that clients fall back to tags; olareg has it.
const (
	Distribution RegistryKind = "distribution"
	Olareg       RegistryKind = "olareg"
)

// Registry is an OCI registry with plain http and no sign-in, which keeps its
// content in the state directory.
type Registry struct {
	Kind RegistryKind
	Host string // "127.0.0.1:PORT"
}

func (s *Stack) startRegistry(ctx context.Context, name string, kind RegistryKind) (*Registry, error) {
	self, err := s.program("dray-dev")
	if err != nil {
		return nil, err
	}
	daemon := "registry-" + name
	dir := filepath.Join(s.Dir, daemon)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("stack: make %s: %w", dir, err)
	}
	return started(3, func() (*Registry, error) {
		host, err := reserve(s.Dir, daemon)
		if err != nil {
			return nil, err
		}
		_, err = s.StartDaemon(ctx, Daemon{
			Name: daemon, Address: host, StopIn: 10 * time.Second,
			Argv:  []string{self, "registry", "--kind", string(kind), "--addr", host, "--dir", dir},
			Ready: answers("http://" + host + "/v2/"),
		})
		return &Registry{Kind: kind, Host: host}, err
	}, func() bool { return s.portTaken(daemon) })
}

// answers asks for a page and wants to see 200.
func answers(url string) func(context.Context) error {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	return func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		res, err := client.Do(req)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		io.Copy(io.Discard, io.LimitReader(res.Body, 1<<16))
		if res.StatusCode != http.StatusOK {
			return fmt.Errorf("GET %s: %s", url, res.Status)
		}
		return nil
	}
}
