package postgres_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/pipelinetest"
	"github.com/dray-project/dray/pipeline/postgres"
	"github.com/dray-project/dray/pipeline/postgres/postgrestest"
)

// readyStore takes rows from the queue by hand.
type readyStore struct {
	*postgres.Store
	t    *testing.T
	pool *pgxpool.Pool
}

func (s readyStore) Ready() []pipeline.PromotionID {
	s.t.Helper()
	rows, err := s.pool.Query(context.Background(), `
		WITH taken AS (
			UPDATE river.river_job r SET state = 'completed', finalized_at = now() FROM jobs j
			WHERE j.queue_job = r.id AND j.kind = 'promotion' AND r.state IN ('available', 'scheduled') AND r.scheduled_at <= now()
			RETURNING j.id
		) SELECT id FROM taken ORDER BY id`)
	check(s.t, err)
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	check(s.t, err)
	var out []pipeline.PromotionID
	for _, id := range ids {
		out = append(out, pipeline.PromotionID(id))
	}
	return out
}

func TestPromotions(t *testing.T) {
	pipelinetest.TestPromotions(t, func(t *testing.T) pipelinetest.PromotionStore {
		pool := postgrestest.New(t)
		return readyStore{newStore(t, pool), t, pool}
	})
}
