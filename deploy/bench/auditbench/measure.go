//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/dray-project/dray/pipeline"
)

// question is one kind of question, asked many times with different values.
type question struct {
	name string
	mark string
	ask  func(ctx context.Context, r *rand.Rand) (items int, err error)
	// n asks it this many times instead; 0: as often as the others.
	n int
}

var everything = pipeline.Reach{All: true}

func (b *bench) questions() []question {
	hottest, _ := name(0)
	audit := func(make func(*rand.Rand) pipeline.PackageAuditQuery) func(context.Context, *rand.Rand) (int, error) {
		return func(ctx context.Context, r *rand.Rand) (int, error) {
			q := make(r)
			if !q.Reach.All && q.Reach.Projects == nil {
				q.Reach = everything
			}
			q.Page.Limit = 50
			items, err := b.store.AuditPackages(ctx, q)
			return len(items), err
		}
	}
	any := func(r *rand.Rand) string { n, _ := name(100 + r.IntN(b.names-100)); return n }
	common := func(r *rand.Rand) string { n, _ := name(1 + r.IntN(99)); return n }
	all := []question{
		{"the floor: a transaction that asks nothing", "", func(ctx context.Context, _ *rand.Rand) (int, error) {
			tx, err := b.pool.Begin(ctx)
			if err != nil {
				return 0, err
			}
			_, err = tx.Exec(ctx, "SELECT 1")
			return 0, errors.Join(err, tx.Rollback(ctx))
		}, 0},
		{"by name", "5 ms", audit(func(r *rand.Rand) pipeline.PackageAuditQuery { return pipeline.PackageAuditQuery{Name: any(r)} }), 0},
		{"by name, one of the hundred hottest", "", audit(func(r *rand.Rand) pipeline.PackageAuditQuery { return pipeline.PackageAuditQuery{Name: common(r)} }), 0},
		{"hottest package", "25 ms", audit(func(*rand.Rand) pipeline.PackageAuditQuery { return pipeline.PackageAuditQuery{Name: hottest} }), 0},
		{"hottest package, some page", "", audit(func(r *rand.Rand) pipeline.PackageAuditQuery {
			q := pipeline.PackageAuditQuery{Name: hottest}
			q.Page.After = fmt.Sprintf("%d-1", 1+r.IntN(b.images))
			return q
		}), 0},
		{"hottest package, a range", "", audit(func(r *rand.Rand) pipeline.PackageAuditQuery {
			return pipeline.PackageAuditQuery{Name: hottest, Range: "<" + version(0, 1+r.IntN(b.releases-1))}
		}), 0},
		{"hottest package, promoted now to prod", "", audit(func(*rand.Rand) pipeline.PackageAuditQuery {
			return pipeline.PackageAuditQuery{Name: hottest, AuditScope: pipeline.AuditScope{Environment: "prod"}}
		}), 0},
		{"hottest package, promoted ever", "", audit(func(*rand.Rand) pipeline.PackageAuditQuery {
			return pipeline.PackageAuditQuery{Name: hottest, AuditScope: pipeline.AuditScope{Promoted: pipeline.PromotedEver}}
		}), 0},
		{"hottest package, of one project", "", audit(func(r *rand.Rand) pipeline.PackageAuditQuery {
			return pipeline.PackageAuditQuery{Name: hottest, AuditScope: pipeline.AuditScope{Reach: pipeline.Reach{Projects: []string{b.project(r.IntN(b.projects))}}}}
		}), 0},
		{"by purl", "", audit(func(r *rand.Rand) pipeline.PackageAuditQuery {
			return pipeline.PackageAuditQuery{PURL: purl(r.IntN(b.names), r.IntN(b.releases))}
		}), 0},
		{"by licence, promoted now to prod", "", audit(func(*rand.Rand) pipeline.PackageAuditQuery {
			return pipeline.PackageAuditQuery{License: "GPL-3.0", AuditScope: pipeline.AuditScope{Environment: "prod"}}
		}), 20},
		{"finding, hottest", "", func(ctx context.Context, _ *rand.Rand) (int, error) {
			items, err := b.store.AuditFindings(ctx, pipeline.FindingAuditQuery{Finding: cve(0), AuditScope: pipeline.AuditScope{Reach: everything, Page: pipeline.Page{Limit: 50}}})
			return len(items), err
		}, 0},
		{"finding, promoted now to prod", "", func(ctx context.Context, r *rand.Rand) (int, error) {
			items, err := b.store.AuditFindings(ctx, pipeline.FindingAuditQuery{Finding: cve(r.IntN(b.names / 10)),
				AuditScope: pipeline.AuditScope{Reach: everything, Environment: "prod", Page: pipeline.Page{Limit: 50}}})
			return len(items), err
		}, 0},
		{"GET /api/v1/packages, hottest", "", func(ctx context.Context, _ *rand.Rand) (int, error) {
			items, err := b.store.Packages(ctx, pipeline.PackageQuery{Name: hottest, Page: pipeline.Page{Limit: 50}})
			return len(items), err
		}, 50},
	}
	kept := all[:1]
	for _, q := range all[1:] {
		if b.only.MatchString(q.name) {
			kept = append(kept, q)
		}
	}
	return kept
}

// rival is what one writes without thinking of an index: the images with
// something of that name, the newest of them.
func (b *bench) rival() question {
	return question{"the rival: a wildcard scan", "", func(ctx context.Context, r *rand.Rand) (int, error) {
		var n int
		name, _ := name(100 + r.IntN(b.names-100))
		err := b.pool.QueryRow(ctx, `SELECT count(*) FROM (SELECT DISTINCT x.image FROM packages p JOIN image_packages x ON x.package = p.id
			WHERE p.name LIKE '%' || $1 || '%' ORDER BY 1 DESC LIMIT 50) found`, name).Scan(&n)
		return n, err
	}, 10}
}

func (b *bench) measure(ctx context.Context) error {
	if err := b.sizes(ctx); err != nil {
		return err
	}
	rival := b.rival()
	took, items, err := b.ask(ctx, rival, 1)
	if err != nil {
		return fmt.Errorf("%s: %w", rival.name, err)
	}
	slices.Sort(took)
	scan := ms(took, 50)
	fmt.Fprintf(b.out, "\n%-44s %6.0f ms %6.0f ms %6.0f ms %7.1f\n", rival.name, scan, ms(took, 99), ms(took, 100), items)
	if err := b.table(ctx, b.rounds, 1, scan); err != nil {
		return err
	}
	if err := b.table(ctx, 1, b.clients, scan); err != nil {
		return err
	}
	return b.export(ctx)
}

// table asks all questions in each round, the same ones each time, and prints how long
// the answers took. What else the machine and its host did makes some of them take
// longer, each time others: of a question's rounds, the quickest tells what it takes by
// itself. Marks are for all answers, and not for those.
func (b *bench) table(ctx context.Context, rounds, clients int, scan float64) error {
	questions := b.questions()
	all, quickest, items := make([][]time.Duration, len(questions)), make([][]time.Duration, len(questions)), make([]float64, len(questions))
	used := make([]times, len(questions))
	for range rounds {
		for i, q := range questions {
			before, err := processors()
			if err != nil {
				return err
			}
			took, found, err := b.ask(ctx, q, clients)
			if err != nil {
				return fmt.Errorf("%s: %w", q.name, err)
			}
			after, err := processors()
			if err != nil {
				return err
			}
			used[i].add(before, after)
			all[i] = append(all[i], took...)
			if quickest[i] == nil {
				quickest[i] = slices.Clone(took)
			}
			for k, d := range took {
				quickest[i][k] = min(quickest[i][k], d)
			}
			items[i] = found
		}
	}
	fmt.Fprintf(b.out, "\n%-44s %9s %9s %9s %9s %9s %7s %7s %9s %7s\n", fmt.Sprintf("%d asking at a time, %d times %d", clients, rounds, b.n),
		"p50", "p99", "maximum", "quick p50", "quick p99", "items", "mark", "scan/p99", "stolen")
	for i, q := range questions {
		slices.Sort(all[i])
		slices.Sort(quickest[i])
		fmt.Fprintf(b.out, "%-44s %6.2f ms %6.2f ms %6.2f ms %6.2f ms %6.2f ms %7.1f %7s %9.0f %5.1f %%\n", q.name,
			ms(all[i], 50), ms(all[i], 99), ms(all[i], 100), ms(quickest[i], 50), ms(quickest[i], 99), items[i], q.mark, scan/ms(all[i], 99), used[i].toOthers())
	}
	return nil
}

// times are what the processors did since the machine started, in ticks.
type times struct{ busy, stolen float64 }

func (t *times) add(from, to times) {
	t.busy += to.busy - from.busy
	t.stolen += to.stolen - from.stolen
}

// toOthers is how much of the time that there was work for the processors the host gave
// to others, in percent: while that is more than one or two, answers tell more of the
// host than of the database.
func (t times) toOthers() float64 {
	if t.busy+t.stolen == 0 {
		return 0
	}
	return 100 * t.stolen / (t.busy + t.stolen)
}

// processors reads /proc/stat, of which proc(5) tells.
func processors() (t times, err error) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return t, err
	}
	var user, nice, system, idle, iowait, irq, softirq float64
	_, err = fmt.Sscanf(string(stat), "cpu %g %g %g %g %g %g %g %g", &user, &nice, &system, &idle, &iowait, &irq, &softirq, &t.stolen)
	t.busy = user + nice + system + irq + softirq
	return t, err
}

// ask asks until there are enough answers, and returns how long each took, in the
// order of the questions.
func (b *bench) ask(ctx context.Context, q question, clients int) (took []time.Duration, items float64, err error) {
	n := b.n
	if q.n > 0 {
		n = q.n
	}
	if _, err := q.ask(ctx, rand.New(rand.NewPCG(0, 0))); err != nil { // connections, caches
		return nil, 0, err
	}
	each := (n + clients - 1) / clients
	took = make([]time.Duration, each*clients)
	found, failed := make([]int, len(took)), make([]error, clients)
	var wg sync.WaitGroup
	for c := range clients {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(c), 7))
			for i := c * each; i < (c+1)*each && failed[c] == nil; i++ {
				began := time.Now()
				found[i], failed[c] = q.ask(ctx, r)
				took[i] = time.Since(began)
			}
		})
	}
	wg.Wait()
	total := 0
	for _, n := range found {
		total += n
	}
	return took, float64(total) / float64(len(took)), errors.Join(failed...)
}

func ms(sorted []time.Duration, percent int) float64 {
	return float64(sorted[min(len(sorted)-1, len(sorted)*percent/100)].Microseconds()) / 1000
}

func (b *bench) sizes(ctx context.Context) error {
	fmt.Fprintf(b.out, "%d images of %d packages in %d projects, shared_buffers %s\n\n%-24s %12s %10s %10s\n", b.images, b.each, b.projects, b.buffers, "on disk", "rows", "table", "indexes")
	for _, table := range []string{"image_packages", "packages", "package_firsts", "package_licenses", "findings"} {
		var n int64
		var heap, indexes float64
		err := b.pool.QueryRow(ctx, `SELECT reltuples::bigint, pg_table_size(oid) / 1e6, pg_indexes_size(oid) / 1e6 FROM pg_class WHERE oid = $1::text::regclass`, table).Scan(&n, &heap, &indexes)
		if err != nil {
			return err
		}
		fmt.Fprintf(b.out, "%-24s %12d %7.0f MB %7.0f MB\n", table, n, heap, indexes)
	}
	var all float64
	if err := b.pool.QueryRow(ctx, `SELECT pg_database_size(current_database()) / 1e6`).Scan(&all); err != nil {
		return err
	}
	fmt.Fprintf(b.out, "%-24s %12s %7.0f MB\n", "everything", "", all)
	return nil
}

// export reads the hottest package's whole list as an export does.
func (b *bench) export(ctx context.Context) error {
	hottest, _ := name(0)
	q := pipeline.PackageAuditQuery{Name: hottest, AuditScope: pipeline.AuditScope{Reach: everything}}
	var before, m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	n, peak := 0, uint64(0)
	began := time.Now()
	for {
		q.Page.Limit = 500
		items, err := b.store.AuditPackages(ctx, q)
		if err != nil {
			return err
		}
		runtime.ReadMemStats(&m)
		n, peak = n+len(items), max(peak, m.HeapAlloc)
		if len(items) < q.Page.Limit {
			break
		}
		q.Page.After = items[len(items)-1].ID
	}
	s := time.Since(began).Seconds()
	fmt.Fprintf(b.out, "\nexport of the hottest package: %d items in %.1f s, %.0f a second; the heap grew by at most %.0f MB\n",
		n, s, float64(n)/s, float64(peak-min(peak, before.HeapAlloc))/1e6)
	return nil
}
