//go:build linux

// Command dray-auditbench measures how quickly Dray's record answers auditors: it
// makes a record of many images with realistic sharing, asks the questions, and
// asks the database the plain way in the same run. It judges nothing: the marks
// stand beside what was measured.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/dray-project/dray/deploy/stack"
	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/postgres"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("dray-auditbench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	dir := flags.String("dir", "", "directory for the database, which a later run asks again as it is; empty: a temporary one, which goes at the end")
	bin := flags.String("bin", "bin", "directory of dray-dev")
	images := flags.Int("images", 10_000, "how many images; 111112 of 450 packages are 50 million rows, take 14 GB of disk and ten minutes")
	packages := flags.Int("packages", 450, "packages in each")
	buffers := flags.String("shared-buffers", "2GB", "what PostgreSQL keeps in memory; its own default is 128MB")
	n := flags.Int("n", 500, "questions of each kind in a round")
	rounds := flags.Int("rounds", 5, "rounds of one asking at a time, each with the same questions; the table tells of all of them, and of each question's quickest")
	only := flags.String("only", "", "regular expression: ask these questions only, and the floor")
	clients := flags.Int("clients", 4, "how many ask at the same time, in the second round")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	asked, err := regexp.Compile(*only)
	if err != nil {
		fmt.Fprintln(stderr, "dray-auditbench: --only:", err)
		return 2
	}
	b := &bench{world: newWorld(*images, *packages), n: *n, rounds: *rounds, buffers: *buffers, clients: *clients, only: asked, out: stdout, log: stderr}
	if err := b.all(ctx, *dir, *bin); err != nil {
		fmt.Fprintln(stderr, "dray-auditbench:", err)
		return 1
	}
	return 0
}

// bench is one run of everything.
type bench struct {
	world
	n, rounds, clients int
	buffers            string
	only               *regexp.Regexp
	out, log           io.Writer

	pool  *pgxpool.Pool
	store *postgres.Store
}

func (b *bench) all(ctx context.Context, dir, bin string) (err error) {
	if dir == "" {
		if dir, err = os.MkdirTemp("", "dray-auditbench-"); err != nil {
			return err
		}
		defer os.RemoveAll(dir) //nolint:errcheck // scratch
	}
	s, err := stack.Start(ctx, stack.Config{Dir: dir, Bin: bin, Postgres: true, SharedBuffers: b.buffers, Log: b.log})
	if err != nil {
		return err
	}
	defer func() {
		if serr := stack.Stop(context.WithoutCancel(ctx), dir); err == nil {
			err = serr
		}
	}()
	name := fmt.Sprintf("audit_%d_%d", b.images, b.each)
	dsn, err := s.Postgres.Database(ctx, name)
	if err != nil {
		return err
	}
	if b.pool, err = postgres.Connect(ctx, dsn, int32(2*b.clients+2)); err != nil {
		return err
	}
	defer b.pool.Close()
	seal, err := pipeline.ParseSeal(pipeline.NewSealKey())
	if err != nil {
		return err
	}
	if b.store, err = postgres.New(ctx, postgres.Config{Pool: b.pool, Seal: seal}); err != nil {
		return err
	}
	defer b.store.Close()
	// What an earlier run left in the directory is asked as it is: the evidence log,
	// which is not asked, would first take all of it over.
	var there bool
	if err := b.pool.QueryRow(ctx, `SELECT to_regclass('images') IS NOT NULL`).Scan(&there); err != nil {
		return err
	}
	if !there {
		if err := postgres.Migrate(ctx, b.pool, seal); err != nil {
			return err
		}
	}
	if err := b.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM images)`).Scan(&there); err != nil {
		return err
	}
	if !there {
		began := time.Now()
		if err := b.fill(ctx); err != nil {
			return fmt.Errorf("make the record: %w", err)
		}
		fmt.Fprintf(b.log, "made in %.0f s\n", time.Since(began).Seconds())
	}
	return b.measure(ctx)
}
