//go:build linux

package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/registry"
)

// child is Dray's copy in a process of its own, so that its memory can be
// compared. Like drayd, it stays: it does one line after the other, "copy
// repository@digest repository" or "tag repository@digest tag", and answers each
// with the seconds that it took.
func child(ctx context.Context, hosts []string, in io.Reader, out, stderr io.Writer) error {
	c := registry.Config{Locker: &locks{}, Memory: &memory{}, Log: slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))}
	for _, h := range hosts {
		c.Hosts = append(c.Hosts, pipeline.RegistryHost{Host: h, PlainHTTP: true})
	}
	r, err := registry.New(ctx, c)
	if err != nil {
		return err
	}
	defer r.Close()
	for lines := bufio.NewScanner(in); lines.Scan(); {
		f := strings.Fields(lines.Text())
		if len(f) != 3 {
			return fmt.Errorf("line %q", lines.Text())
		}
		img, err := pipeline.ParseImage(f[1])
		if err != nil {
			return err
		}
		began := time.Now()
		switch f[0] {
		case "copy":
			_, err = r.Copy(ctx, img, f[2])
		case "tag":
			err = r.Tag(ctx, img, f[2])
		}
		if err != nil {
			return err
		}
		fmt.Fprintln(out, time.Since(began).Seconds())
	}
	return nil
}

// dray is a child that runs.
type dray struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func startDray(ctx context.Context, hosts ...string) (*dray, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	d := &dray{cmd: exec.CommandContext(ctx, self, append([]string{"child"}, hosts...)...)}
	d.cmd.Stderr = os.Stderr
	if d.in, err = d.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	d.out = bufio.NewReader(out)
	return d, d.cmd.Start()
}

// do returns the seconds that the lines took together.
func (d *dray) do(lines ...string) (seconds float64, err error) {
	for _, line := range lines {
		if _, err := fmt.Fprintln(d.in, line); err != nil {
			return 0, err
		}
		answer, err := d.out.ReadString('\n')
		if err != nil {
			return 0, fmt.Errorf("%s: %w", line, err)
		}
		s, err := strconv.ParseFloat(strings.TrimSpace(answer), 64)
		if err != nil {
			return 0, err
		}
		seconds += s
	}
	return seconds, nil
}

func (d *dray) stop() {
	_ = d.in.Close()
	_ = d.cmd.Wait()
}

// memory stands for the store's: what a running drayd knows of its destinations.
type memory struct {
	mu    sync.Mutex
	known map[string]map[pipeline.Digest]pipeline.Content
}

func (m *memory) Known(_ context.Context, repository string, digests []pipeline.Digest, _ time.Duration) (map[pipeline.Digest]pipeline.Content, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[pipeline.Digest]pipeline.Content{}
	for _, d := range digests {
		if c, ok := m.known[repository][d]; ok {
			out[d] = c
		}
	}
	return out, nil
}

func (m *memory) Remember(_ context.Context, repository string, contents []pipeline.Content) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.known == nil {
		m.known = map[string]map[pipeline.Digest]pipeline.Content{}
	}
	if m.known[repository] == nil {
		m.known[repository] = map[pipeline.Digest]pipeline.Content{}
	}
	for _, c := range contents {
		m.known[repository][c.Digest] = c
	}
	return nil
}

func (m *memory) Forget(_ context.Context, repository string, digests []pipeline.Digest) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, d := range digests {
		delete(m.known[repository], d)
	}
	return nil
}

type locks struct {
	mu   sync.Mutex
	held map[string]*sync.Mutex
}

func (l *locks) Lock(_ context.Context, key string) (func(), error) {
	l.mu.Lock()
	if l.held == nil {
		l.held = map[string]*sync.Mutex{}
	}
	if l.held[key] == nil {
		l.held[key] = &sync.Mutex{}
	}
	one := l.held[key]
	l.mu.Unlock()
	one.Lock()
	return one.Unlock, nil
}
