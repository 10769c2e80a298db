package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/pipelinetest"
	"github.com/dray-project/dray/pipeline/postgres"
	"github.com/dray-project/dray/pipeline/postgres/postgrestest"
)

func TestVerifiedContents(t *testing.T) {
	pool := postgrestest.New(t)
	s := newStore(t, pool)
	const here, there = "registry.example:5000/team/app", "registry.example:5000/team/web"
	blob := pipeline.Content{Digest: pipelinetest.DigestOf("blob"), Size: 1 << 40}
	referrer := pipeline.Content{Digest: pipelinetest.DigestOf("referrer"), Size: 5, Manifest: true, Subject: pipelinetest.DigestOf("index")}
	asked := []pipeline.Digest{blob.Digest, referrer.Digest, pipelinetest.DigestOf("unknown")}
	known := func(repository string, within time.Duration, want ...pipeline.Content) {
		t.Helper()
		got, err := s.Known(t.Context(), repository, asked, within)
		check(t, err)
		m := map[pipeline.Digest]pipeline.Content{}
		for _, c := range want {
			m[c.Digest] = c
		}
		if !reflect.DeepEqual(got, m) {
			t.Fatalf("of %s is known %v, want %v", repository, got, m)
		}
	}
	known(here, time.Hour)
	check(t, s.Remember(t.Context(), here, []pipeline.Content{referrer, blob}))
	known(here, time.Hour, blob, referrer)
	known(there, time.Hour)
	check(t, s.Remember(t.Context(), there, []pipeline.Content{blob}))
	known(there, time.Hour, blob)
	check(t, s.Forget(t.Context(), here, []pipeline.Digest{blob.Digest, pipelinetest.DigestOf("unknown")}))
	known(here, time.Hour, referrer)
	known(there, time.Hour, blob)
	check(t, s.Forget(t.Context(), "nowhere", asked))

	_, err := pool.Exec(t.Context(), `UPDATE verified_contents SET verified_at = verified_at - interval '2 hours'`)
	check(t, err)
	known(here, time.Hour)
	known(here, 3*time.Hour, referrer)
	referrer.Size = 6
	check(t, s.Remember(t.Context(), here, []pipeline.Content{referrer}))
	known(here, time.Hour, referrer)
	if err := s.Remember(t.Context(), here, []pipeline.Content{{Digest: "sha512:x"}}); !errors.Is(err, pipeline.ErrInvalid) {
		t.Errorf("another kind of digest: %v", err)
	}

	// Many at once, in whatever order.
	var wg sync.WaitGroup
	for i := range 8 {
		var contents []pipeline.Content
		for k := range 200 {
			contents = append(contents, pipeline.Content{Digest: pipelinetest.DigestOf((k*(i*2+1))%256, "many"), Size: 1})
		}
		wg.Go(func() {
			if err := s.Remember(t.Context(), "new.example/app", contents); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestContentsAreBounded(t *testing.T) {
	pool := postgrestest.New(t)
	s := newStore(t, pool)
	var contents []pipeline.Content
	for i := range 100 {
		contents = append(contents, pipeline.Content{Digest: pipelinetest.DigestOf(i), Size: 1})
	}
	check(t, s.Remember(t.Context(), "r.example/app", contents))
	left := func(kept time.Duration, most, atOnce int) (n int) {
		t.Helper()
		check(t, postgres.PruneContents(t.Context(), pool, kept, most, atOnce))
		check(t, pool.QueryRow(t.Context(), `SELECT count(*) FROM verified_contents`).Scan(&n))
		return n
	}
	if n := left(time.Hour, 1000, 1000); n != 100 {
		t.Fatalf("%d are left of what is young", n)
	}
	_, err := pool.Exec(t.Context(), `UPDATE verified_contents SET verified_at = verified_at - interval '2 hours' WHERE digest IN (SELECT digest FROM verified_contents LIMIT 40)`)
	check(t, err)
	if n := left(time.Hour, 1000, 10); n != 90 {
		t.Fatalf("%d are left of 40 old ones after 10 were removed", n)
	}
	if n := left(time.Hour, 1000, 1000); n != 60 {
		t.Fatalf("%d are left after the old ones were removed", n)
	}
	_, err = pool.Exec(t.Context(), `ANALYZE verified_contents`)
	check(t, err)
	if n := left(time.Hour, 50, 20); n != 40 {
		t.Fatalf("%d are left where 50 are the most", n)
	}
}

func TestProbes(t *testing.T) {
	s := newSample(t)
	p := pipeline.RegistryProbe{Host: "r.example:5000", Repository: "r.example:5000/dray/probe", ProbedAt: time.Now().Truncate(time.Microsecond).UTC(),
		Referrers: pipeline.CapabilityYes, Mount: pipeline.CapabilityNo, Notes: []string{"a note"}}
	check(t, s.RecordProbe(t.Context(), p))
	older := p
	older.ProbedAt, older.Error = p.ProbedAt.Add(-time.Hour), "an old one that comes late"
	check(t, s.RecordProbe(t.Context(), older))
	check(t, s.RecordProbe(t.Context(), pipeline.RegistryProbe{Host: "a.example", ProbedAt: p.ProbedAt, Error: "refused"}))
	got, err := s.Registries(t.Context())
	check(t, err)
	if len(got) != 2 || got[0].Host != "a.example" || !reflect.DeepEqual(got[1], p) {
		t.Errorf("the registries are %+v", got)
	}
	if err := s.RecordProbe(t.Context(), pipeline.RegistryProbe{}); !errors.Is(err, pipeline.ErrInvalid) {
		t.Errorf("of no host: %v", err)
	}
}

// TestReconcileTurns: of all queues one at a time does the periodic work, and
// when one dies over it, another takes the next turn.
func TestReconcileTurns(t *testing.T) {
	b := newBundle(t)
	var inside, turns atomic.Int32
	work := func(c *postgres.QueueConfig) {
		c.ReconcileEvery = 20 * time.Millisecond
		c.Reconcile = func(context.Context) error {
			if n := inside.Add(1); n != 1 {
				t.Errorf("%d are at it", n)
			}
			time.Sleep(30 * time.Millisecond) // longer than a turn
			inside.Add(-1)
			turns.Add(1)
			return fmt.Errorf("an error does not end it")
		}
	}
	for range 3 {
		b.queue(leaveAlone, work)
	}
	await(t, "ten turns", func() bool { return turns.Load() >= 10 })
}

func TestReconcileOfADeadWorker(t *testing.T) {
	b := newBundle(t)
	_, err := b.pool.Exec(t.Context(), `INSERT INTO periodic (name, started_at, worker) VALUES ('reconcile', now() - interval '1 second', 'a-dead-one')`)
	check(t, err)
	var turns atomic.Int32
	q := b.queue(leaveAlone, func(c *postgres.QueueConfig) {
		c.ReconcileEvery = 50 * time.Millisecond
		c.Reconcile = func(ctx context.Context) error {
			if turns.Add(1) == 2 {
				panic("a bug")
			}
			return nil
		}
	})
	await(t, "it takes the turn", func() bool { return turns.Load() >= 3 })
	check(t, q.Stop(time.Minute))
	if _, err := postgres.NewQueue(t.Context(), postgres.QueueConfig{Pool: b.pool, Store: b.store, Run: leaveAlone, Log: q.Log,
		Promote: q.Promote, ReconcileEvery: -1}); err == nil {
		t.Error("a time below zero is accepted")
	}
}
