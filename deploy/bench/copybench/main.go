//go:build linux

// Command dray-copybench measures Dray's copies of images against crane, regctl
// and skopeo: requests, seconds and memory, on registries of both kinds behind a
// proxy that counts and waits. It judges nothing: the floor and the mark stand
// beside what was measured.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	if len(args) > 0 && args[0] == "child" {
		if err := child(ctx, args[1:], stdin, stdout, stderr); err != nil {
			fmt.Fprintln(stderr, "dray-copybench child:", err)
			return 1
		}
		return 0
	}
	if len(args) == 3 && args[0] == "push" {
		mib, err := strconv.Atoi(args[2])
		digest := ""
		if err == nil {
			digest, err = pushBulk(args[1], mib)
		}
		if err != nil {
			fmt.Fprintln(stderr, "dray-copybench push:", err)
			return 1
		}
		fmt.Fprintln(stdout, digest)
		return 0
	}
	flags := flag.NewFlagSet("dray-copybench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	bin := flags.String("bin", "bin", "directory of the programs")
	n := flags.Int("n", 5, "repetitions, of which the median counts")
	bulk := flags.Int("bulk", 384, "size of the large image in MiB")
	rows := flags.String("rows", "all", "what to measure: requests, bulk or all")
	only := flags.String("only", "", "one kind of registry: distribution or olareg")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	dir, err := os.MkdirTemp("", "dray-copybench-")
	if err == nil {
		defer os.RemoveAll(dir) //nolint:errcheck // scratch
		*bin, err = filepath.Abs(*bin)
	}
	if err == nil {
		b := &bench{dir: dir, bin: *bin, n: *n, bulk: *bulk, rows: *rows, out: stdout, log: stderr}
		err = b.run(ctx, *only)
	}
	if err != nil {
		fmt.Fprintln(stderr, "dray-copybench:", err)
		return 1
	}
	return 0
}

// bench is one run of everything.
type bench struct {
	dir, bin string
	n, bulk  int
	rows     string
	out, log io.Writer
}

func (b *bench) run(ctx context.Context, only string) error {
	for _, kind := range []string{"distribution", "olareg"} {
		if only != "" && only != kind {
			continue
		}
		if err := b.kind(ctx, kind); err != nil {
			return fmt.Errorf("%s: %w", kind, err)
		}
	}
	return nil
}

// kind measures from a registry of that kind to another.
func (b *bench) kind(ctx context.Context, kind string) error {
	fmt.Fprintf(b.log, "copies between registries of the kind %s...\n", kind)
	s, err := b.site(ctx, kind)
	if err != nil {
		return err
	}
	defer s.close()
	if b.rows != "bulk" {
		if err := s.requestRows(ctx); err != nil {
			return err
		}
	}
	if b.rows == "requests" {
		return nil
	}
	return s.bulkRows(ctx)
}

// requestRows measures what is small, where the requests are what takes time.
func (s *site) requestRows(ctx context.Context) error {
	api := "no referrers API: attached by fallback tags"
	if s.api {
		api = "with the referrers API"
	}
	fmt.Fprintf(s.out, "\nCopies, %s (%s); requests, and seconds at 0 and at 20 ms a request\n", s.kindName, api)
	fmt.Fprintf(s.out, "%-36s %-26s %9s %9s %9s %7s %7s %7s\n", "", "", "requests", "s at 0", "s at 20ms", "floor", "ratio", "mark")
	for _, w := range s.works() {
		if err := s.work(ctx, w); err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
	}
	return nil
}

const latency = 20 * time.Millisecond
