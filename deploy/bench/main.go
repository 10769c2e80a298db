//go:build linux

// Command dray-bench measures Dray against what people would use instead, both
// in one run on one machine, and prints ratios. It judges nothing: the marks to
// reach stand beside what was measured.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/dray-project/dray/deploy/site"
	"github.com/dray-project/dray/deploy/stack"
	"github.com/dray-project/dray/pipeline"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("dray-bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	dir := flags.String("dir", ".bench/state", "directory for all state; it is stopped at the end and kept")
	bin := flags.String("bin", "bin", "directory of the programs")
	n := flags.Int("n", 5, "pairs of runs that are counted")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if err := bench(ctx, *dir, *bin, *n, stdout, stderr); err != nil {
		fmt.Fprintln(stderr, "dray-bench:", err)
		return 1
	}
	return 0
}

func bench(ctx context.Context, dir, bin string, n int, stdout, stderr io.Writer) (err error) {
	defer func() {
		if serr := stack.Stop(context.WithoutCancel(ctx), dir); err == nil {
			err = serr
		}
	}()
	s, err := site.Start(ctx, site.Config{Dir: dir, Bin: bin, Log: stderr})
	if err != nil {
		return err
	}
	w := &whole{Site: s, scratch: filepath.Join(s.Dir, "rival"), out: stderr}
	if err := w.prepare(ctx); err != nil {
		return err
	}
	if err := w.pairs(ctx, n); err != nil {
		return err
	}
	promotions, writing, err := w.promotions(ctx, 4*n)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%-44s %9s %9s %9s %7s %7s\n", "", "minimum", "median", "maximum", "ratio", "mark")
	row(stdout, "whole run, nothing changed: script", w.script, "s", 0, "")
	row(stdout, "whole run, nothing changed: drayd", w.dray, "s", ratio(w.dray, w.script), "0.50")

	row(stdout, "promotion of an image that is there already", promotions, "ms", 0, "")
	row(stdout, "  of it writing the evidence log", writing, "ms", ratio(writing, promotions), "0.05")

	// At rest: nothing was asked of it for a while.
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(15 * time.Second):
	}
	own, file, err := resident(s)
	if err != nil {
		return err
	}
	row(stdout, "drayd's memory at rest", []float64{own + file}, "MB", 0, "150 MB")
	row(stdout, "  of it its own, without its program file", []float64{own}, "MB", 0, "")
	fmt.Fprintf(stdout, "\n%d pairs, in turn; ratio is the median of the pairs' ratios. Where the script's time goes, last pair:\n%s", n, w.where())
	return nil
}

// whole is the row of whole runs.
type whole struct {
	*site.Site
	scratch string
	out     io.Writer
	work    *stack.Worktree
	commit  string
	next    int

	dray, script []float64 // seconds, in pairs
}

// prepare makes the first run, so that nothing has changed afterwards, and the
// script's first run, so that its caches are as warm.
func (w *whole) prepare(ctx context.Context) (err error) {
	if err := os.MkdirAll(w.scratch, 0o755); err != nil {
		return err
	}
	if w.work, err = w.Sample(ctx, "hello-go"); err != nil {
		return err
	}
	fmt.Fprintln(w.out, "the first run of each, which is not counted...")
	for tag := range w.tags() {
		w.next = max(w.next, tag)
	}
	if _, err := w.runDray(ctx); err != nil {
		return err
	}
	_, err = w.runScript(ctx)
	return err
}

// tags yields the patch versions that an earlier bench has used.
func (w *whole) tags() func(func(int) bool) {
	return func(yield func(int) bool) {
		out, err := exec.Command("git", "-C", w.work.Dir, "tag", "--list", "v1.0.*").Output()
		if err != nil {
			return
		}
		for _, t := range strings.Fields(string(out)) {
			if n, err := strconv.Atoi(strings.TrimPrefix(t, "v1.0.")); err == nil && !yield(n) {
				return
			}
		}
	}
}

func (w *whole) pairs(ctx context.Context, n int) error {
	for i := range n {
		d, err := w.runDray(ctx)
		if err != nil {
			return err
		}
		s, err := w.runScript(ctx)
		if err != nil {
			return err
		}
		fmt.Fprintf(w.out, "pair %d: drayd %.2f s, script %.2f s\n", i+1, d, s)
		w.dray, w.script = append(w.dray, d), append(w.script, s)
	}
	return nil
}

// runDray releases the same commit under another version, and measures from the
// delivery until a follower knows that the run is over.
func (w *whole) runDray(ctx context.Context) (seconds float64, err error) {
	w.next++
	tag := fmt.Sprintf("v1.0.%d", w.next)
	if err := w.work.Tag(ctx, tag, tag); err != nil {
		return 0, err
	}
	var out bytes.Buffer
	if err := w.work.Push(ctx, &out, tag); err != nil {
		return 0, fmt.Errorf("%w\n%s", err, out.String())
	}
	run, err := w.RunOf(ctx, "hello-go", "refs/tags/"+tag, "")
	if err != nil {
		return 0, err
	}
	for _, err := range w.Client.Follow(ctx, run.ID.Job(), 0) {
		if err != nil {
			return 0, err
		}
	}
	known := time.Now()
	d, err := w.Client.Run(ctx, run.ID)
	if err != nil {
		return 0, err
	}
	if d.State != pipeline.StateSucceeded {
		return 0, fmt.Errorf("run %s %s: %s", run.ID, d.State, d.Reason)
	}
	w.commit = d.Commit
	return known.Sub(run.CreatedAt).Seconds(), nil
}

func (w *whole) runScript(ctx context.Context) (seconds float64, err error) {
	steps := filepath.Join(w.scratch, "steps")
	if err := os.WriteFile(steps, nil, 0o644); err != nil {
		return 0, err
	}
	password, err := os.ReadFile(filepath.Join(w.Dir, "secrets", "cosign.password"))
	if err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(ctx, "deploy/bench/rival.sh", w.Stack.Dev.Host+"/rival", w.work.URL, w.commit, fmt.Sprintf("1.0.%d", w.next))
	cmd.Env = append(os.Environ(), "BIN="+w.Bin, "BUILDKIT="+w.Stack.Buildkit.Address, "KEY="+filepath.Join(w.Dir, "secrets", "cosign.key"),
		"COSIGN_PASSWORD="+strings.TrimSpace(string(password)), "PUBLIC_KEY="+w.PublicKey,
		"DATABASE="+w.Stack.Dev.Host+"/mirror/trivy-db:2", "SCRATCH="+w.scratch, "STEPS="+steps)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	began := time.Now()
	if err := cmd.Run(); err != nil {
		log, _ := os.ReadFile(filepath.Join(w.scratch, "cosign.log"))
		return 0, fmt.Errorf("the script: %w\n%s%s", err, out.String(), log[max(0, len(log)-1000):])
	}
	return time.Since(began).Seconds(), nil
}

// where says what the last script run spent its time on.
func (w *whole) where() string {
	b, err := os.ReadFile(filepath.Join(w.scratch, "steps"))
	if err != nil {
		return ""
	}
	var out strings.Builder
	var last float64
	var name string
	for line := range strings.Lines(string(b)) {
		at, step, _ := strings.Cut(strings.TrimSpace(line), " ")
		t, err := strconv.ParseFloat(at, 64)
		if err != nil {
			return ""
		}
		if name != "" {
			fmt.Fprintf(&out, "  %-8s %6.2f s\n", name, t-last)
		}
		last, name = t, step
	}
	return out.String()
}

// resident returns what drayd holds of memory, in megabytes: its own, which
// nobody else can use, and pages of its program file, which the kernel keeps as
// long as it has no better use for them.
func resident(s *site.Site) (own, file float64, err error) {
	p, err := s.Stack.Process("drayd")
	if err != nil {
		return 0, 0, err
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID))
	if err != nil {
		return 0, 0, err
	}
	found := 0
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		into := map[string]*float64{"RssAnon:": &own, "RssFile:": &file}[f[0]]
		if into == nil {
			continue
		}
		kib, err := strconv.ParseFloat(f[1], 64)
		if err != nil {
			return 0, 0, err
		}
		*into = kib * 1024 / 1e6
		found++
	}
	if found != 2 {
		return 0, 0, fmt.Errorf("/proc/%d/status does not say RssAnon and RssFile", p.PID)
	}
	return own, file, nil
}

func ratio(a, b []float64) float64 {
	var r []float64
	for i := range a {
		r = append(r, a[i]/b[i])
	}
	return median(r)
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

func row(w io.Writer, name string, v []float64, unit string, ratio float64, mark string) {
	r := ""
	if ratio > 0 {
		r = fmt.Sprintf("%.2f", ratio)
	}
	fmt.Fprintf(w, "%-44s %7.2f %-3s %5.2f %-3s %5.2f %-3s %5s %7s\n", name, slices.Min(v), unit, median(v), unit, slices.Max(v), unit, r, mark)
}
