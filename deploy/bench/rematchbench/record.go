//go:build linux && goexperiment.jsonv2

package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/policy"
	"github.com/dray-project/dray/pipeline/vex"
)

func digestOf(parts ...any) string {
	return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(fmt.Sprint(parts...))))
}

// record writes the images as runs would have, without the runs: what
// re-matching reads is there, what it does not read is not.
func (b *bench) record(ctx context.Context) error {
	conn, err := b.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	// Without the rows of runs and jobs that these would refer to.
	if _, err := conn.Exec(ctx, `SET session_replication_role = replica`); err != nil {
		return err
	}
	defer func() { _, _ = conn.Exec(context.WithoutCancel(ctx), `SET session_replication_role = DEFAULT`) }()
	if _, err := conn.Exec(ctx, `INSERT INTO projects (name, version) VALUES ('app', 1)`); err != nil {
		return err
	}
	run := func(n int) string { return fmt.Sprintf("run_%020d", n) }
	platform := func(n int) string { return digestOf("platform", n) }
	sample := func(n int) pipeline.PlatformReport { return b.samples[n%len(b.samples)] }
	copyTo := func(table string, columns []string, row func(n int) []any) error {
		_, err := conn.CopyFrom(ctx, pgx.Identifier{table}, columns, pgx.CopyFromSlice(b.images, func(n int) ([]any, error) { return row(n), nil }))
		return err
	}
	now := time.Now()
	if err := copyTo("images", []string{"project", "digest", "newest"}, func(n int) []any {
		return []any{"app", digestOf("image", n), run(n)}
	}); err != nil {
		return err
	}
	if err := copyTo("image_records", []string{"run", "image", "digest", "project", "repository", "commit_sha", "plan_digest", "built", "scanned_at", "scanner",
		"db_reference", "db_digest", "db_updated_at"}, func(n int) []any {
		return []any{run(n), int64(n + 1), digestOf("image", n), "app", b.host + "/team/app", "c", "p", []byte(`{}`), now, "trivy", b.first.Reference, string(b.first.Digest), b.first.UpdatedAt}
	}); err != nil {
		return err
	}
	if err := copyTo("reports", []string{"run", "position", "platform", "digest", "os", "run_user"}, func(n int) []any {
		return []any{run(n), int32(0), "linux/amd64", platform(n), sample(n).OS, ""}
	}); err != nil {
		return err
	}
	if err := copyTo("analyses", []string{"digest", "data", "keys"}, func(n int) []any {
		return []any{platform(n), sample(n).Analysis.Data, sample(n).Analysis.Keys}
	}); err != nil {
		return err
	}
	fmt.Fprintln(b.log, "findings...")
	n, i := 0, -1
	_, err = conn.CopyFrom(ctx, pgx.Identifier{"findings"},
		[]string{"run", "report", "position", "id", "severity", "package", "version", "fixed_in", "title", "url", "purl", "path"},
		pgx.CopyFromFunc(func() ([]any, error) {
			i++
			for n < b.images && i >= len(sample(n).Findings) {
				n, i = n+1, 0
			}
			if n == b.images {
				return nil, nil
			}
			f := sample(n).Findings[i]
			return []any{run(n), int32(0), int32(i), f.ID, int16(f.Severity), f.Package, f.Version, f.FixedIn, f.Title, f.URL, f.PURL, f.Path}, nil
		}))
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, `ANALYZE`)
	return err
}

// Nothing is built, signed or copied.
type (
	noBuilder  struct{ pipeline.Builder }
	noSigner   struct{ pipeline.Signer }
	noRegistry struct{ pipeline.Registry }
)

func (b *bench) openPipeline(ctx context.Context) error {
	quiet := slog.New(slog.DiscardHandler)
	judge, err := policy.New(ctx, policy.Config{Log: quiet})
	if err != nil {
		return err
	}
	b.pipeline, err = pipeline.New(pipeline.Config{Store: b.store, Locker: b.store, Builder: noBuilder{}, Scanner: b.scanner, Signer: noSigner{},
		Registry: noRegistry{}, Judge: judge, VEX: vex.Reader{}, BaseURL: "https://dray.example", BuilderID: "https://dray.example/builder", Log: quiet})
	return err
}

func (b *bench) rivalCache() string { return filepath.Join(b.dir, "trivy") }

// loop is what people would write: trivy sbom for each image, one after the
// other, with the same database. It returns seconds.
func (b *bench) loop(ctx context.Context) (float64, error) {
	dir := filepath.Join(b.dir, "sboms")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return 0, err
	}
	for n := range b.rival {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%d.json", n)), b.samples[n%len(b.samples)].SBOM, 0o644); err != nil {
			return 0, err
		}
	}
	began := time.Now()
	for n := range b.rival {
		at := filepath.Join(dir, fmt.Sprint(n))
		cmd := exec.CommandContext(ctx, filepath.Join(b.bin, "trivy"), "--quiet", "--cache-dir", b.rivalCache(), "sbom", "--skip-db-update", "--skip-java-db-update",
			"--offline-scan", "--skip-version-check", "--disable-telemetry", "--format", "json", "--output", at+".out", at+".json")
		if out, err := cmd.CombinedOutput(); err != nil {
			return 0, fmt.Errorf("trivy sbom: %w\n%s", err, out)
		}
	}
	return time.Since(began).Seconds(), nil
}
