// Package postgres keeps runs, promotions, images and their evidence in
// PostgreSQL, and hands out the work that is due.
package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"

	"github.com/dray-project/dray/pipeline"
)

// Config is what a Store needs.
type Config struct {
	// Pool to a database that Migrate has prepared. It stays the caller's to
	// close, after the Store.
	Pool *pgxpool.Pool
	// Seal marks the entries of the evidence log that this Store writes, and tells
	// those of others in this database from forged ones.
	Seal *pipeline.Seal
	// Log receives warnings. Nil discards them.
	Log *slog.Logger
}

// Store implements pipeline.Store and pipeline.Locker, and answers the API's
// queries. Any number of Stores, in any number of processes, may share a
// database.
type Store struct {
	pool  *pgxpool.Pool
	river *river.Client[pgx.Tx] // inserts only
	locks *locker
	seal  *pipeline.Seal
	log   *slog.Logger
	// renditions of the rows that the evidence log describes.
	renditions renditions
	// written is what writing the evidence log took.
	written logWritten
	// refusals that are counted and not written yet.
	refusals refusals
}

// New checks the configuration. It does not touch the database: see Ready.
func New(_ context.Context, c Config) (*Store, error) {
	if c.Pool == nil {
		return nil, errors.New("postgres: Pool is required")
	}
	if c.Seal == nil {
		return nil, errors.New("postgres: Seal is required")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	client, err := river.NewClient(riverpgxv5.New(c.Pool), &river.Config{
		Schema: riverSchema, Logger: quiet(c.Log), FetchCooldown: fetchCooldown, MaxAttempts: riverMaxAttempts,
	})
	if err != nil {
		return nil, fmt.Errorf("postgres: make a queue client: %w", err)
	}
	return &Store{pool: c.Pool, river: client, locks: newLocker(c.Pool.Config().ConnConfig), seal: c.Seal, log: c.Log, renditions: newRenditions()}, nil
}

// Close frees the locks that are still held and their connections. The pool
// stays open.
func (s *Store) Close() { s.locks.close() }

// Connect opens a pool of at most maxConns connections (0: the driver's
// default) and checks that the database answers. dsn is a postgres:// URL or a
// keyword string.
func Connect(ctx context.Context, dsn string, maxConns int32) (*pgxpool.Pool, error) {
	c, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		return nil, fmt.Errorf("database address: %w: %w", err, pipeline.ErrInvalid)
	}
	if maxConns > 0 {
		c.MaxConns = maxConns
	}
	if c.ConnConfig.RuntimeParams["application_name"] == "" {
		c.ConnConfig.RuntimeParams["application_name"] = "drayd"
	}
	if c.ConnConfig.ConnectTimeout == 0 {
		c.ConnConfig.ConnectTimeout = 10 * time.Second
	}
	pool, err := pgxpool.NewWithConfig(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("database pool: %w", err)
	}
	if err := pool.Ping(ctx); err != nil {
		pool.Close()
		return nil, fmt.Errorf("connect to the database at %s:%d: %w", c.ConnConfig.Host, c.ConnConfig.Port, err)
	}
	return pool, nil
}

// tx runs fn in one transaction, and writes the entries of the log that it asks
// for. A deadlock rolls everything back, so fn is then run again.
func (s *Store) tx(ctx context.Context, fn func(pgx.Tx) error) error {
	for try := 1; ; try++ {
		err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
			j := &journal{Tx: tx, store: s}
			if err := fn(j); err != nil {
				return err
			}
			return j.flush(ctx)
		})
		var pg *pgconn.PgError
		if try < 4 && errors.As(err, &pg) && (pg.Code == "40P01" || pg.Code == "40001") {
			continue
		}
		return err
	}
}

// read runs fn on one snapshot of the database.
func (s *Store) read(ctx context.Context, fn func(pgx.Tx) error) error {
	return pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, fn)
}

// querier is a transaction or a pool.
type querier interface {
	Query(context.Context, string, ...any) (pgx.Rows, error)
	QueryRow(context.Context, string, ...any) pgx.Row
}

// wrap says on what the attempt was made; pipeline's sentinels stay reachable.
func wrap(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), err)
}

// clean makes any text fit for a text column: PostgreSQL takes neither NUL nor
// what is not UTF-8, and both occur in what builds print and packages claim.
func clean(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}

// document is v as a json column takes it.
func document(v any) (json.RawMessage, error) {
	if raw, ok := v.(json.RawMessage); ok {
		if len(raw) == 0 {
			return json.RawMessage("null"), nil
		}
		if !json.Valid(raw) {
			return nil, fmt.Errorf("not JSON: %.40q: %w", raw, pipeline.ErrInvalid)
		}
		return raw, nil
	}
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("as JSON: %w", err)
	}
	return b, nil
}

func utc(t *time.Time) *time.Time {
	if t == nil {
		return nil
	}
	u := t.UTC()
	return &u
}

// notNil makes an empty list of a nil one, so that it shows as [] in JSON.
func notNil[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}
