package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/dray-project/dray/pipeline"
)

// The evidence log, from an entry that was written to what proofs are made of.
// Writers insert entries without an index, and touch nothing that the sequencer
// locks; the sequencer updates rows that are committed, which no writer locks.

// LogPending reports whether entries wait for their place, or no checkpoint was
// ever signed.
func (s *Store) LogPending(ctx context.Context) (pending bool, err error) {
	err = s.pool.QueryRow(ctx, `
		SELECT EXISTS (SELECT FROM log_entries WHERE index IS NULL AND NOT refused) OR NOT EXISTS (SELECT FROM log_checkpoints)`).Scan(&pending)
	return pending, wrap(err, "look for entries of the log without a place")
}

// LogLag returns how many entries wait for their place and for how long the oldest
// has, and how many never get one because they are not Dray's.
func (s *Store) LogLag(ctx context.Context) (waiting int64, oldest time.Duration, refused int64, err error) {
	err = s.pool.QueryRow(ctx, `
		SELECT count(*), coalesce(clock_timestamp() - min(written_at), '0'::interval), (SELECT count(*) FROM log_entries WHERE refused)
		FROM log_entries WHERE index IS NULL AND NOT refused`).Scan(&waiting, &oldest, &refused)
	return waiting, oldest, refused, wrap(err, "count the log's entries without a place")
}

// SequenceLog gives waiting entries their places, in one transaction and under a
// lock that one transaction of all processes has at a time. Where another has it,
// nothing is done and mine is false.
func (s *Store) SequenceLog(ctx context.Context, limit int, extend func(size int64, checkpoint []byte, leaves [][]byte, stored tlog.HashReader) (hashes []tlog.Hash, signed []byte, err error)) (sequenced int, mine bool, err error) {
	err = s.tx(ctx, func(tx pgx.Tx) error {
		sequenced, mine = 0, false
		// The snapshot of this statement is older than the lock; those of the next
		// ones see all that the one before had committed.
		if err := tx.QueryRow(ctx, `SELECT pg_try_advisory_xact_lock($1)`, lockKey("log", "sequence")).Scan(&mine); err != nil || !mine {
			return err
		}
		size, checkpoint, err := logHead(ctx, tx)
		if err != nil {
			return err
		}
		ids, leaves, err := s.waiting(ctx, tx, limit)
		if err != nil || len(ids) == 0 && checkpoint != nil {
			return err
		}
		hashes, signed, err := extend(size, checkpoint, leaves, tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
			return logHashes(ctx, tx, indexes)
		}))
		if err != nil {
			return err
		}
		sequenced = len(ids)
		return grow(ctx, tx, size, ids, hashes, signed)
	})
	if err != nil {
		return 0, mine, wrap(err, "sequence entries of the log")
	}
	return sequenced, mine, nil
}

// logHead returns the log's size and newest checkpoint. Places, hashes and
// checkpoints were written together: if they are not of one size now, then not by
// Dray.
func logHead(ctx context.Context, tx pgx.Tx) (size int64, checkpoint []byte, err error) {
	var places, stored int64
	err = tx.QueryRow(ctx, `
		SELECT coalesce((SELECT max(index) + 1 FROM log_entries), 0), coalesce((SELECT max(index) + 1 FROM log_hashes), 0)`).Scan(&places, &stored)
	if err != nil {
		return 0, nil, err
	}
	var signed string
	err = tx.QueryRow(ctx, `SELECT size, note FROM log_checkpoints ORDER BY size DESC LIMIT 1`).Scan(&size, &signed)
	switch {
	case err == nil:
		checkpoint = []byte(signed)
	case !errors.Is(err, pgx.ErrNoRows):
		return 0, nil, err
	}
	if places != size {
		return 0, nil, fmt.Errorf("the newest checkpoint is of %d entries, and the last entry that has a place is at %d: %w", size, places-1, pipeline.ErrUnverified)
	}
	if want := tlog.StoredHashCount(size); stored != want {
		return 0, nil, fmt.Errorf("a log of %d entries has %d hashes, and %d are stored: %w", size, want, stored, pipeline.ErrUnverified)
	}
	return size, checkpoint, nil
}

// waiting returns entries that have no place. One whose transaction was long has
// a smaller id than others that have theirs, and simply comes later. One that has
// not Dray's seal was written by somebody else: it is refused once and for all, so
// that it holds nothing up.
func (s *Store) waiting(ctx context.Context, tx pgx.Tx, limit int) (ids []int64, leaves [][]byte, err error) {
	rows, err := tx.Query(ctx, `SELECT id, leaf, seal FROM log_entries WHERE index IS NULL AND NOT refused ORDER BY id LIMIT $1`, limit)
	if err != nil {
		return nil, nil, err
	}
	var id int64
	var leaf, seal []byte
	var forged []int64
	_, err = pgx.ForEachRow(rows, []any{&id, &leaf, &seal}, func() error {
		if !s.seal.Good(id, leaf, seal) {
			forged = append(forged, id)
			return nil
		}
		ids, leaves = append(ids, id), append(leaves, leaf)
		return nil
	})
	if err != nil || len(forged) == 0 {
		return ids, leaves, err
	}
	s.log.ErrorContext(ctx, "entries in the database are not Dray's and get no place in the evidence log: somebody wrote them, or the key of the seal was changed", "entries", forged[:min(len(forged), 20)], "count", len(forged))
	_, err = tx.Exec(ctx, `UPDATE log_entries SET refused = true WHERE id = ANY ($1)`, forged)
	return ids, leaves, err
}

// grow writes what extend worked out, in one round trip.
func grow(ctx context.Context, tx pgx.Tx, size int64, ids []int64, hashes []tlog.Hash, signed []byte) error {
	raw := make([][]byte, len(hashes))
	for i := range hashes {
		raw[i] = hashes[i][:]
	}
	var b pgx.Batch
	b.Queue(`
		UPDATE log_entries e SET index = $1::bigint + p.n - 1
		FROM unnest($2::bigint[]) WITH ORDINALITY AS p (id, n) WHERE e.id = p.id AND e.index IS NULL`, size, ids)
	b.Queue(`
		INSERT INTO log_hashes (index, hash)
		SELECT $1::bigint + h.n - 1, h.hash FROM unnest($2::bytea[]) WITH ORDINALITY AS h (hash, n)`, tlog.StoredHashCount(size), raw)
	b.Queue(`INSERT INTO log_checkpoints (size, note) VALUES ($1, $2)`, size+int64(len(ids)), string(signed))
	results := tx.SendBatch(ctx, &b)
	placed, err := results.Exec()
	if err := errors.Join(err, results.Close()); err != nil {
		return err
	}
	if placed.RowsAffected() != int64(len(ids)) {
		return fmt.Errorf("%d of %d entries could be given their places", placed.RowsAffected(), len(ids))
	}
	return nil
}

// LogCheckpoint returns the signed checkpoint of that size, or with a negative
// size the newest.
func (s *Store) LogCheckpoint(ctx context.Context, size int64) ([]byte, error) {
	var signed string
	err := s.pool.QueryRow(ctx, `
		SELECT note FROM log_checkpoints WHERE $1 < 0 OR size = $1 ORDER BY size DESC LIMIT 1`, size).Scan(&signed)
	if errors.Is(err, pgx.ErrNoRows) {
		what := "a checkpoint of the evidence log"
		if size >= 0 {
			what += fmt.Sprintf(" of size %d", size)
		}
		return nil, fmt.Errorf("%s: %w", what, pipeline.ErrNotFound)
	}
	return []byte(signed), wrap(err, "read a checkpoint of the log")
}

// LogLeaves returns the leaves from one index up to, not including, another.
func (s *Store) LogLeaves(ctx context.Context, from, to int64) ([][]byte, error) {
	rows, err := s.pool.Query(ctx, `SELECT index, leaf FROM log_entries WHERE index >= $1 AND index < $2 ORDER BY index`, from, to)
	if err != nil {
		return nil, wrap(err, "read entries %d to %d of the log", from, to-1)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[pipeline.LogEntry])
	if err != nil {
		return nil, wrap(err, "read entries %d to %d of the log", from, to-1)
	}
	leaves := make([][]byte, 0, len(list))
	for i, e := range list {
		if want := from + int64(i); e.Index != want {
			return nil, missing("entry", want)
		}
		leaves = append(leaves, e.Leaf)
	}
	if got := int64(len(leaves)); got < to-from {
		return nil, missing("entry", from+got)
	}
	return leaves, nil
}

func missing(what string, index int64) error {
	return fmt.Errorf("%s %d of the evidence log is missing from the database: somebody removed it: %w", what, index, pipeline.ErrUnverified)
}

// LogHashes returns stored hashes, in the order of the indexes.
func (s *Store) LogHashes(ctx context.Context, indexes []int64) ([]tlog.Hash, error) {
	hashes, err := logHashes(ctx, s.pool, indexes)
	return hashes, wrap(err, "read hashes of the log")
}

func logHashes(ctx context.Context, q querier, indexes []int64) ([]tlog.Hash, error) {
	rows, err := q.Query(ctx, `SELECT index, hash FROM log_hashes WHERE index = ANY ($1)`, indexes)
	if err != nil {
		return nil, err
	}
	found := make(map[int64]tlog.Hash, len(indexes))
	var index int64
	var hash []byte
	_, err = pgx.ForEachRow(rows, []any{&index, &hash}, func() error {
		if len(hash) != tlog.HashSize {
			return fmt.Errorf("hash %d of the evidence log has %d bytes: somebody changed it: %w", index, len(hash), pipeline.ErrUnverified)
		}
		found[index] = tlog.Hash(hash)
		return nil
	})
	if err != nil {
		return nil, err
	}
	out := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		h, ok := found[index]
		if !ok {
			return nil, missing("hash", index)
		}
		out[i] = h
	}
	return out, nil
}

// LogEntries returns entries that have their place.
func (s *Store) LogEntries(ctx context.Context, q pipeline.EntryQuery) ([]pipeline.LogEntry, error) {
	var w where
	w.add("index IS NOT NULL")
	w.addIf(q.Projects != nil, "project = ANY (%s)", q.Projects)
	w.addIf(q.InProject, "project <> ''")
	w.addIf(q.Kind != "", "kind = %s", q.Kind)
	w.addIf(q.Subject != "", "subject = %s", q.Subject)
	w.addIf(q.Image != "", "image = %s", string(q.Image))
	w.addIf(q.Ascending, "index >= %s", q.From)
	w.addIf(!q.Ascending && q.Before > 0, "index < %s", q.Before)
	order := "index DESC"
	if q.Ascending {
		order = "index"
	}
	sql := "SELECT index, leaf FROM log_entries" + w.sql() + " ORDER BY " + order + " LIMIT " + w.arg(q.Limit)
	rows, err := s.pool.Query(ctx, sql, w.args...)
	if err != nil {
		return nil, wrap(err, "list entries of the log")
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[pipeline.LogEntry])
	return list, wrap(err, "list entries of the log")
}

// LogTurn takes a turn at work that is named: at most one of all processes has it
// within that time.
func (s *Store) LogTurn(ctx context.Context, name string, every time.Duration) (bool, error) {
	tag, err := s.pool.Exec(ctx, `
		INSERT INTO periodic (name, started_at) VALUES ($1, clock_timestamp())
		ON CONFLICT (name) DO UPDATE SET started_at = excluded.started_at
		WHERE periodic.started_at <= clock_timestamp() - $2::interval`, "log "+name, every)
	return tag.RowsAffected() > 0, wrap(err, "take a turn at %s", name)
}
