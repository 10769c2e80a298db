package api_test

import (
	"bufio"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/dray-project/dray/api"
	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/postgres"
	"github.com/dray-project/dray/pipeline/postgres/postgrestest"
)

const (
	// versionsEach is how many versions of a package each image has: parts of an
	// export end within an image.
	versionsEach = 8
	fewItems     = 20_000
	manyItems    = 200_000
)

// TestExportFromTheDatabase exports a great many items of a real database over
// HTTP: each comes once, in order, and ten times as many take no more memory.
func TestExportFromTheDatabase(t *testing.T) {
	pool := postgrestest.New(t)
	fillRecord(t, pool)
	store, err := postgres.New(t.Context(), postgres.Config{Seal: postgrestest.Seal(), Pool: pool, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	secret, _, err := store.CreateToken(t.Context(), "auditor", []pipeline.Grant{{Role: pipeline.RoleAuditor}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	watched := &watchedStore{Store: store}
	s := newServer(t, func(c *api.Config) { c.Store = watched })

	formats := map[string]func(io.Reader, func(auditedItem) error) error{"csv": readSheet, "jsonl": readLines}
	exported := func(name, format string, n int) error {
		req, err := http.NewRequestWithContext(t.Context(), "GET", s.url+"/api/v1/audit/packages?name="+name+"&format="+format, nil)
		if err != nil {
			return err
		}
		req.Header.Set("Authorization", "Bearer "+secret)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("status %d", resp.StatusCode)
		}
		got := 0
		err = formats[format](resp.Body, func(item auditedItem) error {
			if want := itemAt(name, n, got); item != want {
				return fmt.Errorf("item %d is %+v, want %+v", got, item, want)
			}
			got++
			return nil
		})
		if err == nil && got != n {
			err = fmt.Errorf("%d items, want %d", got, n)
		}
		return err
	}
	// Both formats at once, and the most that was alive meanwhile.
	peak := func(name string, n int) uint64 {
		watched.begin(2 * n)
		var wg sync.WaitGroup
		for format := range formats {
			wg.Go(func() {
				if err := exported(name, format, n); err != nil {
					t.Errorf("%s as %s: %v", name, format, err)
				}
			})
		}
		wg.Wait()
		return watched.peak
	}
	peak("few", fewItems) // connections, caches of statements, pools of buffers
	few, many := peak("few", fewItems), peak("many", manyItems)
	t.Logf("at most %d KiB alive during twice %d items, %d KiB during twice %d", few>>10, fewItems, many>>10, manyItems)
	if grown := int64(many) - int64(few); grown > 4<<20 {
		t.Errorf("the heap holds %d KiB more during %d items than during %d", grown>>10, manyItems, fewItems)
	}
}

// auditedItem is what an export says of an item that tells it from all others.
type auditedItem struct{ image, pkg, version, run, promoted string }

// itemAt is what the i-th item of an export must be: the newest image and the
// newest of its versions first.
func itemAt(name string, n, i int) auditedItem {
	image := n/versionsEach - i/versionsEach
	item := auditedItem{image: fmt.Sprintf("dev.example/app@sha256:%064x", image), pkg: name, version: fmt.Sprintf("1.%d.0", versionsEach-i%versionsEach),
		run: fmt.Sprintf("run_%020d", image)}
	if image%promotedEach == 0 {
		item.promoted = fmt.Sprintf("prm_%020d", image)
	}
	return item
}

// promotedEach: of so many images, one was promoted.
const promotedEach = 10

func readLines(r io.Reader, each func(auditedItem) error) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var a struct {
			Image   pipeline.Image
			Package struct{ Name, Version string }
			Run     string
			Places  []struct{ Promotion string }
		}
		if err := json.Unmarshal(lines.Bytes(), &a); err != nil {
			return err
		}
		item := auditedItem{image: a.Image.String(), pkg: a.Package.Name, version: a.Package.Version, run: a.Run}
		for _, p := range a.Places {
			item.promoted += p.Promotion
		}
		if err := each(item); err != nil {
			return err
		}
	}
	return lines.Err()
}

func readSheet(r io.Reader, each func(auditedItem) error) error {
	sheet := csv.NewReader(r)
	sheet.ReuseRecord = true
	at := map[string]int{}
	head, err := sheet.Read()
	if err != nil {
		return err
	}
	for i, name := range head {
		at[name] = i
	}
	for {
		row, err := sheet.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		item := auditedItem{image: row[at["image"]], pkg: row[at["package"]], version: row[at["version"]], run: row[at["run"]]}
		if row[at["promoted_ever"]] != "" {
			// The sheet names people and times; the promotion is the run's.
			item.promoted = "prm_" + item.run[len("run_"):]
		}
		if err := each(item); err != nil {
			return err
		}
	}
}

// watchedStore looks at the heap while exports go on.
type watchedStore struct {
	*postgres.Store
	mu           sync.Mutex
	every, calls int
	peak         uint64
}

// begin has a look at the heap forty times while n items are exported.
func (w *watchedStore) begin(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.every, w.calls, w.peak = n/500/40, 0, 0
}

func (w *watchedStore) AuditPackages(ctx context.Context, q pipeline.PackageAuditQuery) ([]pipeline.PackageAudit, error) {
	out, err := w.Store.AuditPackages(ctx, q)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.calls++; w.calls%w.every == 0 {
		var now runtime.MemStats
		runtime.GC() // what is alive, not what is waiting to be collected
		runtime.ReadMemStats(&now)
		w.peak = max(w.peak, now.HeapAlloc)
	}
	return out, err
}

// fillRecord writes images with versions of the package "many", and of the package
// "few" in the oldest of them, as runs and promotions would have recorded them. What
// an audit does not read is left out, so that foreign keys cannot be checked.
func fillRecord(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	exec := func(sql string, args ...any) {
		t.Helper()
		if _, err := tx.Exec(t.Context(), sql, args...); err != nil {
			t.Fatal(err)
		}
	}
	images := manyItems / versionsEach
	exec(`SET LOCAL session_replication_role = replica`)
	exec(`INSERT INTO projects (name, version) VALUES ('app', 1)`)
	exec(`INSERT INTO images (id, project, digest, newest) OVERRIDING SYSTEM VALUE
		SELECT i, 'app', 'sha256:' || lpad(to_hex(i), 64, '0'), 'run_' || lpad(i::text, 20, '0') FROM generate_series(1, $1) i`, images)
	exec(`INSERT INTO image_records (run, image, digest, project, repository, commit_sha, plan_digest, built, scanned_at, scanner, db_reference, db_digest, db_updated_at, recorded_at)
		SELECT newest, id, digest, project, 'dev.example/app', substr(digest, 32), 'p', '{}', t, 'trivy', 'db', digest, t, t
		FROM images, LATERAL (SELECT timestamptz '2026-01-01' + id * interval '1 minute' AS t) x`)
	exec(`INSERT INTO packages (id, key, type, name, version, purl) OVERRIDING SYSTEM VALUE
		SELECT i, sha256(convert_to(i::text, 'UTF8')), 'node-pkg', name, version, 'pkg:npm/' || name || '@' || version FROM (
			SELECT i, CASE WHEN i <= $1 THEN 'many' ELSE 'few' END AS name, '1.' || (i - 1) % $1 + 1 || '.0' AS version FROM generate_series(1, 2 * $1) i) p`, versionsEach)
	exec(`INSERT INTO paths (id, key, path) OVERRIDING SYSTEM VALUE VALUES (1, sha256('1'), 'app/package.json')`)
	exec(`INSERT INTO layers (id, key, layer) OVERRIDING SYSTEM VALUE SELECT id, sha256(convert_to(digest, 'UTF8')), digest FROM images`)
	exec(`INSERT INTO license_lists (id, key, licenses) OVERRIDING SYSTEM VALUE VALUES (1, sha256('1'), '{MIT}')`)
	exec(`INSERT INTO image_packages (image, report, position, platform, package, path, layer, licenses)
		SELECT i.id, r, p.id, 'linux/' || ('{amd64,arm64}'::text[])[r + 1], p.id, 1, i.id, 1
		FROM images i, packages p, generate_series(0, 1) r WHERE p.id <= $1 AND (r = 0 OR i.id % 7 = 0) OR p.id > $1 AND i.id <= $2 AND r = 0`, versionsEach, fewItems/versionsEach)
	exec(`INSERT INTO package_firsts (package, project, record) SELECT p.id, 'app', r.number FROM packages p, image_records r WHERE r.image = 1`)
	exec(`INSERT INTO promotions (id, project, image, repository, environment, requested_by, placed)
		SELECT 'prm_' || lpad(id::text, 20, '0'), 'app', id, 'dev.example/app', 'prod', 'grace', id / $1 FROM images WHERE id % $1 = 0`, promotedEach)
	exec(`INSERT INTO jobs (id, kind, project, state, created_at, started_at, finished_at)
		SELECT p.id, 'promotion', 'app', 'succeeded', r.recorded_at, r.recorded_at, r.recorded_at FROM promotions p JOIN image_records r USING (image)`)
	exec(`INSERT INTO placements (promotion, image, environment, repository, copied) SELECT id, image, environment, 'prod.example/app', '{}' FROM promotions`)
	exec(`INSERT INTO stays (promotion, project, environment, placed, image, repository, action, requested_by, break_glass, approved_by, since, until)
		SELECT p.id, p.project, p.environment, p.placed, p.image, 'prod.example/app', p.action, p.requested_by, '', '{}', j.finished_at, lead(j.finished_at) OVER (ORDER BY p.placed)
		FROM promotions p JOIN jobs j USING (id)`)
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(t.Context(), `VACUUM ANALYZE`); err != nil {
		t.Fatal(err)
	}
}
