package postgres_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/postgres"
	"github.com/dray-project/dray/pipeline/postgres/postgrestest"
)

// BenchmarkAccept is a webhook from its verified event to the committed run. The
// private cluster does not sync to disk; against one that does, set DRAY_TEST_POSTGRES.
func BenchmarkAccept(b *testing.B) {
	s := newStore(b, postgrestest.New(b))
	syncSample(b, s)
	n := 0
	for b.Loop() {
		push(b, s, "app", "refs/heads/main", fmt.Sprint(n))
		n++
	}
}

// BenchmarkPickUp is from the commit of a run to the start of its work, at a
// hundred runs a second.
func BenchmarkPickUp(b *testing.B) {
	pool := postgrestest.New(b)
	s := newStore(b, pool)
	syncSample(b, s)
	var mu sync.Mutex
	accepted, started := map[pipeline.RunID]time.Time{}, map[pipeline.RunID]time.Time{}
	q, err := postgres.NewQueue(b.Context(), postgres.QueueConfig{
		Pool: pool, Store: s, Concurrency: 20, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Run: func(ctx context.Context, id pipeline.RunID) error {
			mu.Lock()
			started[id] = time.Now()
			mu.Unlock()
			return s.End(ctx, id.Job(), pipeline.Ending{State: pipeline.StateFailed})
		},
		Promote: func(context.Context, pipeline.PromotionID) error { return nil },
	})
	check(b, err)
	check(b, q.Start(b.Context()))
	defer func() { check(b, q.Stop(time.Minute)) }()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	n := 0
	for b.Loop() {
		<-tick.C
		id := push(b, s, "app", "refs/heads/main", fmt.Sprint(n))
		mu.Lock()
		accepted[id] = time.Now()
		mu.Unlock()
		n++
	}
	await(b, "all are picked up", func() bool { mu.Lock(); defer mu.Unlock(); return len(started) == n })
	var waits []time.Duration
	for id, at := range started {
		waits = append(waits, at.Sub(accepted[id]))
	}
	slices.Sort(waits)
	b.ReportMetric(float64(waits[n/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(waits[n*99/100].Microseconds())/1000, "p99-ms")
	b.ReportMetric(0, "ns/op")
}
