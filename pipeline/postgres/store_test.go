package postgres_test

import (
	"log/slog"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/dray-project/dray/pipeline/pipelinetest"
	"github.com/dray-project/dray/pipeline/postgres"
	"github.com/dray-project/dray/pipeline/postgres/postgrestest"
)

func newStore(t testing.TB, pool *pgxpool.Pool) *postgres.Store {
	t.Helper()
	s, err := postgres.New(t.Context(), postgres.Config{Seal: postgrestest.Seal(), Pool: pool, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	t.Cleanup(func() { intact(t, s, pool) })
	return s
}

func TestStore(t *testing.T) {
	pipelinetest.TestStore(t, func(t *testing.T) pipelinetest.Fixture {
		dsn := postgrestest.DSN(t)
		return pipelinetest.Fixture{
			Store: newStore(t, postgrestest.Pool(t, dsn)),
			Other: newStore(t, postgrestest.Pool(t, dsn)),
		}
	})
}
