package postgres

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"

	"github.com/dray-project/dray/migrations"
	"github.com/dray-project/dray/pipeline"
)

// riverSchema is where River's tables are.
const riverSchema = "river"

// Migrate brings the database's schema up to what this program expects. Any
// number of processes may call it at the same time: one does the work while the
// others wait. A schema that is newer than the program is left alone and is an
// error that wraps pipeline.ErrConflict. Rows from before there was an evidence
// log are taken over into it, under the seal.
func Migrate(ctx context.Context, pool *pgxpool.Pool, seal *pipeline.Seal) error {
	if pool == nil || seal == nil {
		return fmt.Errorf("migrate: a pool and a seal are required: %w", pipeline.ErrInvalid)
	}
	// On a connection of its own: waiting for others must not use up a pool that
	// the one who is at work needs.
	locks := newLocker(pool.Config().ConnConfig)
	defer locks.close()
	unlock, err := locks.lock(ctx, "migrate")
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	defer unlock()

	db := stdlib.OpenDBFromPool(pool)
	defer func() { _ = db.Close() }()
	provider, err := goose.NewProvider(goose.DialectPostgres, db, migrations.Files)
	if err != nil {
		return fmt.Errorf("migrate: read the migrations: %w", err)
	}
	current, target, err := provider.GetVersions(ctx)
	if err != nil {
		return fmt.Errorf("migrate: read the schema's version: %w", err)
	}
	if current > target {
		return newerSchema(current, target)
	}
	if _, err := provider.Up(ctx); err != nil {
		return fmt.Errorf("migrate from version %d: %w", current, err)
	}
	r, err := riverMigrator(pool)
	if err != nil {
		return err
	}
	if _, err := r.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		return fmt.Errorf("migrate the queue's tables: %w", err)
	}
	if err := adoptAll(ctx, pool, seal); err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	return nil
}

func newerSchema(current, target int64) error {
	return fmt.Errorf("the database has schema version %d and this program knows versions up to %d: run a newer drayd: %w",
		current, target, pipeline.ErrConflict)
}

func riverMigrator(pool *pgxpool.Pool) (*rivermigrate.Migrator[pgx.Tx], error) {
	r, err := rivermigrate.New(riverpgxv5.New(pool), &rivermigrate.Config{Schema: riverSchema, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, fmt.Errorf("migrate the queue's tables: %w", err)
	}
	return r, nil
}

// Ready returns nil when the database answers and has exactly the schema that
// this program was built with.
func (s *Store) Ready(ctx context.Context) error {
	if err := s.pool.Ping(ctx); err != nil {
		return fmt.Errorf("the database does not answer: %w", err)
	}
	var ok bool
	if err := s.pool.QueryRow(ctx, `SELECT to_regclass('goose_db_version') IS NOT NULL AND to_regclass('river.river_migration') IS NOT NULL`).Scan(&ok); err != nil {
		return fmt.Errorf("look for the schema's version: %w", err)
	}
	if !ok {
		return fmt.Errorf("the database has no schema yet: run drayd migrate: %w", pipeline.ErrConflict)
	}
	var current int64
	var queue int
	err := s.pool.QueryRow(ctx, `
		SELECT (SELECT coalesce(max(version_id), 0) FROM goose_db_version WHERE is_applied),
		       (SELECT coalesce(max(version), 0) FROM river.river_migration WHERE line = 'main')`).Scan(&current, &queue)
	if err != nil {
		return fmt.Errorf("read the schema's version: %w", err)
	}
	target, queueTarget, err := s.schemaVersions()
	if err != nil {
		return err
	}
	switch {
	case current > target:
		return newerSchema(current, target)
	case current < target, queue < queueTarget:
		return fmt.Errorf("the database has schema version %d (queue %d) and this program needs %d (queue %d): run drayd migrate: %w",
			current, queue, target, queueTarget, pipeline.ErrConflict)
	}
	return nil
}

// schemaVersions are the versions that this program was built with.
func (s *Store) schemaVersions() (schema int64, queue int, err error) {
	db := stdlib.OpenDBFromPool(s.pool)
	defer func() { _ = db.Close() }()
	provider, err := goose.NewProvider(goose.DialectPostgres, db, migrations.Files)
	if err != nil {
		return 0, 0, fmt.Errorf("read the migrations: %w", err)
	}
	for _, m := range provider.ListSources() {
		schema = max(schema, m.Version)
	}
	r, err := riverMigrator(s.pool)
	if err != nil {
		return 0, 0, err
	}
	for _, v := range r.AllVersions() {
		queue = max(queue, v.Version)
	}
	return schema, queue, nil
}
