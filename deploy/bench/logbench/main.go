//go:build linux

// Command dray-logbench measures the evidence log: how fast waiting entries get
// their places, against the least that a Merkle log on the same PostgreSQL must do,
// and how long entries wait for a signed checkpoint under a steady load. It judges
// nothing: the marks stand beside what was measured.
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
	"slices"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sync/errgroup"

	"github.com/dray-project/dray/deploy/stack"
	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/ledger"
	"github.com/dray-project/dray/pipeline/postgres"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("dray-logbench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	bin := flags.String("bin", "bin", "directory of the programs")
	n := flags.Int("n", 5, "repetitions, of which the median counts")
	entries := flags.Int("entries", 10_000, "entries that wait in each repetition")
	rate := flags.Int("rate", 500, "entries a second of the steady load")
	seconds := flags.Int("seconds", 20, "how long the steady load lasts")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	b := &bench{n: *n, entries: *entries, rate: *rate, seconds: *seconds, out: stdout, log: stderr}
	if err := b.run(ctx, *bin); err != nil {
		fmt.Fprintln(stderr, "dray-logbench:", err)
		return 1
	}
	return 0
}

type bench struct {
	n, entries, rate, seconds int
	out, log                  io.Writer

	pool   *pgxpool.Pool
	store  *postgres.Store
	signer *ledger.Signer
	seal   *pipeline.Seal
}

func (b *bench) run(ctx context.Context, bin string) (err error) {
	dir, err := os.MkdirTemp("", "dray-logbench-")
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, stack.Stop(context.WithoutCancel(ctx), dir), os.RemoveAll(dir))
	}()
	if bin, err = filepath.Abs(bin); err != nil {
		return err
	}
	s, err := stack.Start(ctx, stack.Config{Dir: dir, Bin: bin, Log: b.log, Postgres: true})
	if err != nil {
		return err
	}
	dsn, err := s.Postgres.Database(ctx, "log")
	if err != nil {
		return err
	}
	if b.pool, err = postgres.Connect(ctx, dsn, 16); err != nil {
		return err
	}
	defer b.pool.Close()
	if b.seal, err = pipeline.ParseSeal(pipeline.NewSealKey()); err != nil {
		return err
	}
	if err := postgres.Migrate(ctx, b.pool, b.seal); err != nil {
		return err
	}
	if b.store, err = postgres.New(ctx, postgres.Config{Pool: b.pool, Seal: b.seal}); err != nil {
		return err
	}
	defer b.store.Close()
	private, _, err := ledger.GenerateKey("bench.example/log")
	if err != nil {
		return err
	}
	if b.signer, err = ledger.ParseSigner(private); err != nil {
		return err
	}
	_, err = b.pool.Exec(ctx, `
		CREATE TABLE bare_leaves (index bigint PRIMARY KEY, leaf bytea NOT NULL);
		CREATE TABLE bare_hashes (index bigint PRIMARY KEY, hash bytea NOT NULL);
		CREATE TABLE bare_checkpoints (size bigint PRIMARY KEY, note text NOT NULL)`)
	if err != nil {
		return err
	}
	fmt.Fprintf(b.out, "%-52s %9s %9s %9s %7s %10s\n", "", "minimum", "median", "maximum", "ratio", "mark")
	if err := b.backlog(ctx); err != nil {
		return err
	}
	return b.steady(ctx)
}

// leaf is about as long as those of promotions are.
func leaf(n int) ([]byte, error) {
	e := pipeline.Entry{Version: pipeline.EntryVersion, Kind: pipeline.EntryPromotionDecided, At: time.Unix(int64(n), 0), Project: "hello-go", Actor: "dray",
		Subject: fmt.Sprintf("prm_%020d", n), Image: pipeline.Digest(fmt.Sprintf("sha256:%064x", n)),
		Data: []byte(`{"passed":true,"environment":"prod","rules":["severity","non-root","signed","provenance"],"plan":"sha256:0000000000000000000000000000000000000000000000000000000000000000"}`),
		Rows: []pipeline.EntryRow{{Table: "decisions", Key: fmt.Sprint(n), Form: 1, Digest: pipeline.Digest(fmt.Sprintf("sha256:%064x", n))}}}
	return e.Leaf()
}

// backlog measures how fast entries that wait get their places, in turn with the
// bare log.
func (b *bench) backlog(ctx context.Context) error {
	seq, err := ledger.NewSequencer(ledger.SequencerConfig{Storage: b.store, Signer: b.signer, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	var ours, bare, ratios []float64
	stored := &bareHashes{}
	for rep := range b.n {
		leaves := make([][]byte, b.entries)
		for i := range leaves {
			if leaves[i], err = leaf(rep*b.entries + i); err != nil {
				return err
			}
		}
		if err := b.wait(ctx, leaves); err != nil {
			return err
		}
		began := time.Now()
		if err := seq.Once(ctx); err != nil {
			return err
		}
		us := float64(b.entries) / time.Since(began).Seconds()
		began = time.Now()
		if err := b.bare(ctx, leaves, stored); err != nil {
			return err
		}
		them := float64(b.entries) / time.Since(began).Seconds()
		ours, bare, ratios = append(ours, us), append(bare, them), append(ratios, us/them)
	}
	b.row("places for waiting entries: bare tlog", bare, "/s", 0, "")
	b.row("places for waiting entries: drayd", ours, "/s", median(ratios), "500 /s")
	return nil
}

// wait writes leaves as entries that wait for their place.
func (b *bench) wait(ctx context.Context, leaves [][]byte) error {
	rows, err := b.pool.Query(ctx, `SELECT nextval(pg_get_serial_sequence('log_entries', 'id')) FROM generate_series(1, $1::int)`, len(leaves))
	if err != nil {
		return err
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return err
	}
	_, err = b.pool.CopyFrom(ctx, pgx.Identifier{"log_entries"}, []string{"id", "leaf", "seal", "kind"}, pgx.CopyFromSlice(len(leaves), func(i int) ([]any, error) {
		return []any{ids[i], leaves[i], b.seal.Of(ids[i], leaves[i]), pipeline.EntryPromotionDecided}, nil
	}))
	return err
}

// bareHashes are the hashes of the bare log, in memory.
type bareHashes struct {
	size   int64
	hashes []tlog.Hash
}

// ReadHashes implements tlog.HashReader.
func (h *bareHashes) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, at := range indexes {
		out[i] = h.hashes[at]
	}
	return out, nil
}

// bare writes leaves with their hashes and a checkpoint, a thousand in a
// transaction: tlog and COPY, one writer, nothing read back and nothing checked.
func (b *bench) bare(ctx context.Context, leaves [][]byte, h *bareHashes) error {
	for batch := range slices.Chunk(leaves, 1000) {
		err := pgx.BeginFunc(ctx, b.pool, func(tx pgx.Tx) error {
			var rows, hashes [][]any
			for _, leaf := range batch {
				more, err := tlog.StoredHashes(h.size, leaf, h)
				if err != nil {
					return err
				}
				rows = append(rows, []any{h.size, leaf})
				for _, hash := range more {
					hashes = append(hashes, []any{int64(len(h.hashes)), hash[:]})
					h.hashes = append(h.hashes, hash)
				}
				h.size++
			}
			if _, err := tx.CopyFrom(ctx, pgx.Identifier{"bare_leaves"}, []string{"index", "leaf"}, pgx.CopyFromRows(rows)); err != nil {
				return err
			}
			if _, err := tx.CopyFrom(ctx, pgx.Identifier{"bare_hashes"}, []string{"index", "hash"}, pgx.CopyFromRows(hashes)); err != nil {
				return err
			}
			root, err := tlog.TreeHash(h.size, h)
			if err != nil {
				return err
			}
			signed, err := b.signer.Sign(tlog.Tree{N: h.size, Hash: root})
			if err != nil {
				return err
			}
			_, err = tx.Exec(ctx, `INSERT INTO bare_checkpoints VALUES ($1, $2)`, h.size, string(signed))
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// steady measures how long entries wait for a signed checkpoint while eight
// writers commit them one by one, and what sequencing takes of the processor.
func (b *bench) steady(ctx context.Context) error {
	var from int64
	if err := b.pool.QueryRow(ctx, `SELECT count(*) FROM log_entries`).Scan(&from); err != nil {
		return err
	}
	work, stop := context.WithCancel(ctx)
	defer stop()
	var sequencers errgroup.Group
	for range 2 { // as two drayd do
		seq, err := ledger.NewSequencer(ledger.SequencerConfig{Storage: b.store, Signer: b.signer, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			return err
		}
		sequencers.Go(func() error { seq.Run(work); return nil })
	}
	began := time.Now()
	total := b.rate * b.seconds
	next := make(chan int)
	writers, wctx := errgroup.WithContext(ctx)
	writers.Go(func() error {
		defer close(next)
		for i := range total {
			select {
			case <-wctx.Done():
				return wctx.Err()
			case <-time.After(time.Until(began.Add(time.Duration(i) * time.Second / time.Duration(b.rate)))):
			}
			select {
			case <-wctx.Done():
				return wctx.Err()
			case next <- i:
			}
		}
		return nil
	})
	for range 8 {
		writers.Go(func() error {
			for i := range next {
				raw, err := leaf(i)
				if err != nil {
					return err
				}
				err = pgx.BeginFunc(wctx, b.pool, func(tx pgx.Tx) error {
					var id int64
					if err := tx.QueryRow(wctx, `SELECT nextval(pg_get_serial_sequence('log_entries', 'id'))`).Scan(&id); err != nil {
						return err
					}
					_, err := tx.Exec(wctx, `INSERT INTO log_entries (id, leaf, seal, kind) OVERRIDING SYSTEM VALUE VALUES ($1, $2, $3, 'promotion.decided')`, id, raw, b.seal.Of(id, raw))
					if err != nil {
						return err
					}
					_, err = tx.Exec(wctx, `INSERT INTO log_rows (table_name, row_key, entry) VALUES ('decisions', $1, $2)`, fmt.Sprint(i), id)
					return err
				})
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := writers.Wait(); err != nil {
		return err
	}
	wrote := float64(total) / time.Since(began).Seconds()
	for pending := true; pending; {
		var err error
		if pending, err = b.store.LogPending(ctx); err != nil {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	stop()
	if err := sequencers.Wait(); err != nil {
		return err
	}
	var half, most, longest float64
	var checkpoints int
	err := b.pool.QueryRow(ctx, `
		WITH waited AS (
			SELECT 1000 * extract(epoch FROM c.signed_at - e.written_at) AS ms, c.size
			FROM log_entries e CROSS JOIN LATERAL (SELECT signed_at, size FROM log_checkpoints WHERE size > e.index ORDER BY size LIMIT 1) c
			WHERE e.index >= $1)
		SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY ms), percentile_cont(0.99) WITHIN GROUP (ORDER BY ms), max(ms), count(DISTINCT size) FROM waited`,
		from).Scan(&half, &most, &longest, &checkpoints)
	if err != nil {
		return err
	}
	b.row(fmt.Sprintf("steady load of %d a second: written", b.rate), []float64{wrote}, "/s", 0, "500 /s")
	fmt.Fprintf(b.out, "%-52s p50 %4.0f ms  p99 %4.0f ms  max %4.0f ms %17s\n", "  entry written until its checkpoint is signed", half, most, longest, "max 1000 ms")
	fmt.Fprintf(b.out, "  %d entries, %d checkpoints\n", total, checkpoints)
	return nil
}

func (b *bench) row(name string, v []float64, unit string, ratio float64, mark string) {
	r := ""
	if ratio > 0 {
		r = fmt.Sprintf("%.2f", ratio)
	}
	fmt.Fprintf(b.out, "%-52s %6.0f %-2s %6.0f %-2s %6.0f %-2s %7s %10s\n", name, slices.Min(v), unit, median(v), unit, slices.Max(v), unit, r, mark)
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}
