package postgres_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/pipelinetest"
	"github.com/dray-project/dray/pipeline/postgres"
	"github.com/dray-project/dray/pipeline/postgres/postgrestest"
)

// logTime adds up what the batches take that write the evidence log.
type logTime struct {
	mu    sync.Mutex
	spent time.Duration
}

type batchStart struct{}

func (l *logTime) TraceBatchStart(ctx context.Context, _ *pgx.Conn, d pgx.TraceBatchStartData) context.Context {
	if !slices.ContainsFunc(d.Batch.QueuedQueries, func(q *pgx.QueuedQuery) bool { return strings.Contains(q.SQL, "log_entries") }) {
		return ctx
	}
	return context.WithValue(ctx, batchStart{}, time.Now())
}

func (l *logTime) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}

func (l *logTime) TraceBatchEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchEndData) {
	if at, ok := ctx.Value(batchStart{}).(time.Time); ok {
		l.mu.Lock()
		l.spent += time.Since(at)
		l.mu.Unlock()
	}
}

func (l *logTime) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}

func (l *logTime) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// benchStore is a store whose writing of the log is timed.
func benchStore(b *testing.B) (*postgres.Store, *pgxpool.Pool, *logTime) {
	c, err := pgxpool.ParseConfig(postgrestest.DSN(b))
	check(b, err)
	spent := &logTime{}
	c.ConnConfig.Tracer = spent
	pool, err := pgxpool.NewWithConfig(b.Context(), c)
	check(b, err)
	b.Cleanup(pool.Close)
	return newStore(b, pool), pool, spent
}

func (l *logTime) report(b *testing.B) {
	b.ReportMetric(float64(l.spent.Microseconds())/float64(b.N)/1000, "log-ms/op")
	b.ReportMetric(100*float64(l.spent)/float64(b.Elapsed()), "log-%")
}

// BenchmarkPromotionWrites is all that a promotion asks of the database, from
// the request to its end, with a diff and a decision of ordinary size.
func BenchmarkPromotionWrites(b *testing.B) {
	s, _, spent := benchStore(b)
	syncSample(b, s)
	rec := release(b, s, "app", "one", []pipeline.Package{pkg("crypto", "v1")}, nil)
	j := passed()
	for i := range 8 {
		j.Decision.Rules = append(j.Decision.Rules, pipeline.RuleResult{Rule: fmt.Sprint("rule-", i), Passed: true, Reason: strings.Repeat("because ", 10)})
	}
	j.Diff.To.Digest = rec.Built.Image.Digest
	for i := range 100 {
		j.Diff.PackagesAdded = append(j.Diff.PackagesAdded, pipeline.PackageChange{Name: fmt.Sprint("package-", i), To: "1.2.3"})
	}
	dest := pipeline.Image{Repository: "prod.example/acme/app", Digest: rec.Built.Image.Digest}
	var verified []pipeline.Verified
	for _, img := range rec.Built.PlatformImages() {
		v := pipeline.Verified{Image: img, VerifiedAt: time.Now()}
		for range 4 {
			d := pipelinetest.DigestOf("x")
			v.Signatures = append(v.Signatures, pipeline.Signature{Image: img, KeyID: "k", Layout: "bundle", Manifest: d})
			v.Attestations = append(v.Attestations, pipeline.Attestation{Image: img, KeyID: "k", Layout: "bundle", Manifest: d, Statement: d, PredicateType: pipeline.PredicateProvenance})
		}
		verified = append(verified, v)
	}
	spent.spent = 0
	n := 0
	for b.Loop() {
		n++
		p := promote(b, s, rec, "prod", "grace")
		job := p.ID.Job()
		finish := func(stage pipeline.Stage) {
			check(b, s.FinishStage(b.Context(), start(b, s, job, stage), json.RawMessage(`{}`)))
		}
		if n > 1 {
			j.Diff.From = &pipeline.DiffSide{Digest: rec.Built.Image.Digest}
		}
		finish(pipeline.StageAdmit)
		check(b, s.RecordDecision(b.Context(), start(b, s, job, pipeline.StageGate), j))
		finish(pipeline.StageAttest)
		finish(pipeline.StageCopy)
		finish(pipeline.StageConfirm)
		check(b, s.RecordPlacement(b.Context(), start(b, s, job, pipeline.StageRecord), pipeline.Placement{Copied: pipeline.Copied{Image: dest, Manifests: 3}, Verified: verified}))
		var moves []pipeline.TagMove
		for _, tag := range []string{"sha-1", "1.0.0", "1.0", "1", "latest"} {
			moves = append(moves, pipeline.TagMove{Repository: dest.Repository, Tag: tag, To: dest.Digest, Moved: true, Held: true})
		}
		check(b, s.RecordTags(b.Context(), start(b, s, job, pipeline.StageTag), moves, nil))
	}
	spent.report(b)
}

// BenchmarkEntries is one small change with its entry, as fast as two writers
// make them.
func BenchmarkEntries(b *testing.B) {
	s, _, spent := benchStore(b)
	syncSample(b, s)
	b.SetParallelism(2)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			_, err := s.AddException(b.Context(), pipeline.Exception{Project: "app", Finding: "CVE-1", Reason: "r", Author: "rita", ExpiresAt: time.Now().Add(time.Hour)})
			if err != nil {
				b.Error(err)
			}
		}
	})
	spent.report(b)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "entries/s")
}
