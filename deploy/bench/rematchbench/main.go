//go:build linux && goexperiment.jsonv2

// Command dray-rematchbench measures how long it takes to match every recorded
// image with a new vulnerability database, against the loop over "trivy sbom" that
// people would write instead. It judges nothing: the mark stands beside what was
// measured.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/dray-project/dray/deploy/stack"
	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/postgres"
	"github.com/dray-project/dray/scanner"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("dray-rematchbench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	bin := flags.String("bin", "bin", "directory of the programs")
	images := flags.Int("images", 10_000, "recorded images")
	variants := flags.Int("variants", 200, "images that are really built and scanned; the others are copies of their records")
	advisories := flags.Int("advisories", 40_000, "advisories in the vulnerability database")
	rival := flags.Int("rival", 50, "how many images the loop over trivy sbom is measured with; 0: it is not")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	b := &bench{bin: *bin, images: *images, variants: *variants, advisories: *advisories, rival: *rival, out: stdout, log: stderr}
	if err := b.run(ctx); err != nil {
		fmt.Fprintln(stderr, "dray-rematchbench:", err)
		return 1
	}
	return 0
}

type bench struct {
	dir, bin                            string
	images, variants, advisories, rival int
	out, log                            io.Writer

	host     string // of the registry
	pool     *pgxpool.Pool
	store    *postgres.Store
	scanner  *scanner.Scanner
	pipeline *pipeline.Pipeline
	clock    time.Time
	// first is the database that the images were recorded with.
	first   pipeline.VulnerabilityDatabase
	samples []pipeline.PlatformReport
	// used is the processor time of the first pass, in seconds.
	used float64
}

func (b *bench) run(ctx context.Context) (err error) {
	if b.dir, err = os.MkdirTemp("", "dray-rematchbench-"); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, stack.Stop(context.WithoutCancel(ctx), b.dir), os.RemoveAll(b.dir))
	}()
	if b.bin, err = filepath.Abs(b.bin); err != nil {
		return err
	}
	s, err := stack.Start(ctx, stack.Config{Dir: b.dir, Bin: b.bin, Log: b.log, Postgres: true})
	if err != nil {
		return err
	}
	dsn, err := s.Postgres.Database(ctx, "rematch")
	if err != nil {
		return err
	}
	if b.pool, err = postgres.Connect(ctx, dsn, 16); err != nil {
		return err
	}
	defer b.pool.Close()
	seal, err := pipeline.ParseSeal(pipeline.NewSealKey())
	if err != nil {
		return err
	}
	if err := postgres.Migrate(ctx, b.pool, seal); err != nil {
		return err
	}
	if b.store, err = postgres.New(ctx, postgres.Config{Pool: b.pool, Seal: seal}); err != nil {
		return err
	}
	defer b.store.Close()
	stop, err := b.serveRegistry()
	if err != nil {
		return err
	}
	defer stop()
	return b.measure(ctx)
}

func (b *bench) measure(ctx context.Context) (err error) {
	quiet := slog.New(slog.DiscardHandler)
	slog.SetDefault(quiet) // Trivy's
	b.clock = time.Now()
	known := b.knowledge()
	fmt.Fprintf(b.log, "%d advisories, %d images built and scanned, %d recorded...\n", len(known), b.variants, b.images)
	if _, err := b.pushDatabase(ctx, known); err != nil {
		return err
	}
	b.scanner, err = scanner.New(ctx, scanner.Config{Database: b.databaseRef(), MaxAge: 72 * time.Hour, CacheDir: filepath.Join(b.dir, "scanner"),
		RefreshEvery: time.Hour, Now: func() time.Time { return b.clock }, Log: quiet})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.scanner.Close()) }()
	if b.first, err = b.scanner.Database(ctx); err != nil {
		return err
	}
	if err := b.scanAll(ctx); err != nil {
		return err
	}
	if err := b.record(ctx); err != nil {
		return fmt.Errorf("record the images: %w", err)
	}
	if err := b.openPipeline(ctx); err != nil {
		return err
	}

	fmt.Fprintf(b.out, "%-60s %9s %9s %10s %9s %6s\n", "", "seconds", "CPU s", "images/s", "peak MB", "mark")
	// Something in every image: the worst that a database can do.
	for _, p := range []string{"glibc", "openssl", "perl"} {
		known = append(known, newAdvisory(len(known), "debian 12", p))
	}
	all, err := b.pass(ctx, known, fmt.Sprintf("re-match of %d images, each of which has new findings", b.images), "60 s")
	if err != nil {
		return err
	}
	if all.Changed != b.images || all.Failed+all.Scanned+all.Unaffected != 0 {
		return fmt.Errorf("the pass is not what it was meant to be: %+v", all)
	}
	known = append(known, newAdvisory(len(known), "npm", rare), newAdvisory(len(known)+1, "pip", "nobody-has-this"))
	few, err := b.pass(ctx, known, "the same, when the database changed what few of them hold", "")
	if err != nil {
		return err
	}
	if few.Images != b.images || few.Changed == 0 || few.Unaffected < b.images/2 {
		return fmt.Errorf("the pass is not what it was meant to be: %+v", few)
	}
	if b.rival > 0 {
		if err := b.compare(ctx, all); err != nil {
			return err
		}
	}
	fmt.Fprintf(b.out, "\nPackages an image: %d. Findings an image before: %d. Known advisories: %d. The passes include PostgreSQL, which keeps\n"+
		"what changed and writes it into the evidence log; the peak and the CPU time are this process's and leave PostgreSQL out. The loop writes\n"+
		"its reports to files and keeps nothing.\n", len(b.samples[0].Packages), len(b.samples[0].Findings), len(known))
	return nil
}

// compare measures the loop over trivy sbom, and puts it beside the pass.
func (b *bench) compare(ctx context.Context, pass pipeline.RematchPass) error {
	idle := cpu(syscall.RUSAGE_CHILDREN)
	took, err := b.loop(ctx)
	if err != nil {
		return err
	}
	used := cpu(syscall.RUSAGE_CHILDREN) - idle
	times := float64(b.images) / float64(b.rival)
	row := "%-60s %9.1f %9.1f %10.1f\n"
	fmt.Fprintf(b.out, row, fmt.Sprintf("loop over trivy sbom, %d images", b.rival), took, used, float64(b.rival)/took)
	fmt.Fprintf(b.out, row, fmt.Sprintf("  extrapolated from %d to %d images", b.rival, b.images), took*times, used*times, float64(b.rival)/took)
	seconds := pass.FinishedAt.Sub(pass.StartedAt).Seconds()
	fmt.Fprintf(b.out, "%-60s %8.0fx %8.0fx %10s %9s %6s\n", "  ratio to the first row", took*times/seconds, used*times/b.used, "", "", "100x")
	return nil
}

// pass brings a newer database and matches everything with it.
func (b *bench) pass(ctx context.Context, known []advisory, what, mark string) (pipeline.RematchPass, error) {
	b.clock = b.clock.Add(2 * time.Hour) // the scanner asks again
	if _, err := b.pushDatabase(ctx, known); err != nil {
		return pipeline.RematchPass{}, err
	}
	debug.FreeOSMemory()
	_ = os.WriteFile("/proc/self/clear_refs", []byte("5"), 0) // resets the peak
	before := b.requests()
	idle, began := cpu(syscall.RUSAGE_SELF), time.Now()
	pass, err := b.pipeline.Rematch(ctx, b.scanner, b.store)
	took, used := time.Since(began).Seconds(), cpu(syscall.RUSAGE_SELF)-idle
	if err != nil {
		return pass, err
	}
	if n := b.requests() - before; n > 8 {
		return pass, fmt.Errorf("%d requests were sent to the registry, which is more than a database takes", n)
	}
	if b.used == 0 {
		b.used = used // of the first pass
	}
	fmt.Fprintf(b.out, "%-60s %9.1f %9.1f %10.0f %9.0f %6s\n", what, took, used, float64(pass.Images)/took, peak(), mark)
	fmt.Fprintf(b.log, "%+v on %d processors\n", pass, runtime.GOMAXPROCS(0))
	return pass, nil
}

// cpu is the processor time used so far, in seconds.
func cpu(who int) float64 {
	var r syscall.Rusage
	if syscall.Getrusage(who, &r) != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano()).Seconds()
}

// peak is the most memory that this process held, in megabytes.
func peak() float64 {
	raw, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(raw)) {
		if f := strings.Fields(line); f[0] == "VmHWM:" {
			kib, _ := strconv.ParseFloat(f[1], 64)
			return kib * 1024 / 1e6
		}
	}
	return 0
}
