package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

var _ pipeline.RematchStore = (*Store)(nil)

const rematchColumns = `id, db_reference, db_digest, db_updated_at, started_at, finished_at,
	images, unaffected, scanned, failed, changed, appeared, gone, refused`

func scanRematch(row pgx.CollectableRow) (p pipeline.RematchPass, err error) {
	err = row.Scan((*string)(&p.ID), &p.Database.Reference, (*string)(&p.Database.Digest), &p.Database.UpdatedAt, &p.StartedAt, &p.FinishedAt,
		&p.Images, &p.Unaffected, &p.Scanned, &p.Failed, &p.Changed, &p.Appeared, &p.Gone, &p.Refused)
	p.Database.UpdatedAt, p.StartedAt, p.FinishedAt = p.Database.UpdatedAt.UTC(), p.StartedAt.UTC(), utc(p.FinishedAt)
	return p, err
}

func onePass(ctx context.Context, q querier, sql string, args ...any) (p pipeline.RematchPass, err error) {
	rows, err := q.Query(ctx, sql, args...)
	if err != nil {
		return p, err
	}
	p, err = pgx.CollectExactlyOneRow(rows, scanRematch)
	if errors.Is(err, pgx.ErrNoRows) {
		err = pipeline.ErrNotFound
	}
	return p, err
}

// StartRematch implements pipeline.RematchStore. An earlier pass that was not
// finished is closed as it stands: its database is no longer the newest.
func (s *Store) StartRematch(ctx context.Context, db pipeline.VulnerabilityDatabase) (p pipeline.RematchPass, err error) {
	err = s.tx(ctx, func(tx pgx.Tx) error {
		p, err = onePass(ctx, tx, `SELECT `+rematchColumns+` FROM rematches WHERE db_digest = $1`, string(db.Digest))
		if !errors.Is(err, pipeline.ErrNotFound) {
			return err
		}
		if _, err := tx.Exec(ctx, `UPDATE rematches SET finished_at = clock_timestamp() WHERE finished_at IS NULL`); err != nil {
			return err
		}
		p, err = onePass(ctx, tx, `
			INSERT INTO rematches (id, db_reference, db_digest, db_updated_at) VALUES ($1, $2, $3, $4)
			ON CONFLICT (db_digest) DO UPDATE SET db_digest = excluded.db_digest RETURNING `+rematchColumns,
			string(pipeline.NewRematchID(time.Now())), clean(db.Reference), string(db.Digest), db.UpdatedAt)
		if err != nil {
			return err
		}
		return s.databaseEntry(ctx, tx, p)
	})
	return p, wrap(err, "begin to re-match with %s", db.Digest)
}

// heldNow is true of an image i that an environment holds.
const heldNow = `EXISTS (SELECT FROM promotions p JOIN lanes l ON l.current = p.id WHERE p.image = i.id)`

// matchedWith joins a record r with the database that it was matched with last: md.
const matchedWith = `
	LEFT JOIN image_matches mx ON mx.run = r.run LEFT JOIN rematches md ON md.id = mx.matched`

// Unmatched implements pipeline.RematchStore.
func (s *Store) Unmatched(ctx context.Context, database pipeline.Digest, held bool, after string, limit int) (out []pipeline.Matchable, err error) {
	w := where{}
	w.add("coalesce(md.db_digest, r.db_digest) <> %s", string(database))
	w.addIf(held, heldNow)
	w.addIf(!held, "NOT "+heldNow)
	if after != "" {
		var id int64
		if _, err := fmt.Sscanf(after, "%d", &id); err != nil {
			return nil, fmt.Errorf("images to match: %q is not a cursor: %w", after, pipeline.ErrInvalid)
		}
		w.add("i.id > %s", id)
	}
	rows, err := s.pool.Query(ctx, `
		WITH page AS (
			SELECT i.id, i.project, r.repository, i.digest, r.run, coalesce(md.db_digest, r.db_digest) AS db
			FROM images i JOIN image_records r ON r.run = i.newest JOIN projects pr ON pr.name = i.project AND pr.active`+matchedWith+w.sql()+`
			ORDER BY i.id LIMIT `+w.arg(max(limit, 0))+`
		)
		SELECT g.id::text, g.project, g.repository, g.digest, g.run, g.db,
		       array(SELECT p.environment FROM promotions p JOIN lanes l ON l.current = p.id WHERE p.image = g.id ORDER BY p.environment),
		       array_agg(t.platform ORDER BY t.position), array_agg(t.digest ORDER BY t.position),
		       array_agg(coalesce(a.keys, '') ORDER BY t.position)
		FROM page g JOIN reports t ON t.run = g.run LEFT JOIN analyses a ON a.digest = t.digest
		GROUP BY g.id, g.project, g.repository, g.digest, g.run, g.db ORDER BY g.id`, w.args...)
	if err != nil {
		return nil, wrap(err, "images to match with %s", database)
	}
	out, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (m pipeline.Matchable, err error) {
		var platforms, digests []string
		err = row.Scan(&m.Cursor, &m.Project, &m.Image.Repository, (*string)(&m.Image.Digest), (*string)(&m.Run), (*string)(&m.From),
			&m.Environments, &platforms, &digests, &m.Keys)
		for i := range digests {
			m.Platforms = append(m.Platforms, pipeline.PlatformImage{Platform: pipeline.Platform(platforms[i]), Digest: pipeline.Digest(digests[i])})
		}
		return m, err
	})
	return out, wrap(err, "images to match with %s", database)
}

// Analyses implements pipeline.RematchStore.
func (s *Store) Analyses(ctx context.Context, digests []pipeline.Digest) (map[pipeline.Digest]pipeline.Analysis, error) {
	rows, err := s.pool.Query(ctx, `SELECT digest, data, keys FROM analyses WHERE digest = ANY($1)`, digests)
	if err != nil {
		return nil, wrap(err, "analyses of %d images", len(digests))
	}
	out := map[pipeline.Digest]pipeline.Analysis{}
	var digest string
	var a pipeline.Analysis
	_, err = pgx.ForEachRow(rows, []any{&digest, &a.Data, &a.Keys}, func() error {
		out[pipeline.Digest(digest)] = a
		a = pipeline.Analysis{}
		return nil
	})
	return out, wrap(err, "analyses of %d images", len(digests))
}

// keepAnalyses keeps what a scan learnt of platforms. What is there stays when
// the new scan has nothing.
func keepAnalyses(ctx context.Context, tx pgx.Tx, digests []pipeline.Digest, analyses []pipeline.Analysis) error {
	b := &pgx.Batch{}
	for i, a := range analyses {
		if len(a.Data) == 0 {
			continue
		}
		b.Queue(`
			INSERT INTO analyses (digest, data, keys) VALUES ($1, $2, $3)
			ON CONFLICT (digest) DO UPDATE SET data = excluded.data, keys = excluded.keys, kept_at = clock_timestamp()
			WHERE (analyses.data, analyses.keys) IS DISTINCT FROM (excluded.data, excluded.keys)`, string(digests[i]), a.Data, notNil(a.Keys))
	}
	return wrap(tx.SendBatch(ctx, b).Close(), "keep what was analysed")
}

// CurrentFindings implements pipeline.RematchStore.
func (s *Store) CurrentFindings(ctx context.Context, run pipeline.RunID) (out [][]pipeline.Finding, err error) {
	err = s.read(ctx, func(tx pgx.Tx) error {
		var n int
		if err := tx.QueryRow(ctx, `SELECT count(*) FROM reports WHERE run = $1`, string(run)).Scan(&n); err != nil {
			return err
		}
		if n == 0 {
			return fmt.Errorf("no such record: %w", pipeline.ErrNotFound)
		}
		out = make([][]pipeline.Finding, n)
		known, err := knownFindings(ctx, tx, []string{string(run)}, asMatched)
		if err != nil {
			return err
		}
		for _, k := range known {
			if k.gone == nil && k.report < n {
				out[k.report] = append(out[k.report], k.finding)
			}
		}
		return nil
	})
	return out, wrap(err, "what is known of the image that %s recorded", run)
}

// FinishRematch implements pipeline.RematchStore.
func (s *Store) FinishRematch(ctx context.Context, id pipeline.RematchID) (p pipeline.RematchPass, err error) {
	p, err = onePass(ctx, s.pool, `UPDATE rematches SET finished_at = coalesce(finished_at, clock_timestamp()) WHERE id = $1 RETURNING `+rematchColumns, string(id))
	return p, wrap(err, "finish %s", id)
}

// Rematches lists passes, newest first.
func (s *Store) Rematches(ctx context.Context, p pipeline.Page) ([]pipeline.RematchPass, error) {
	limit, after := page(p)
	w := where{}
	w.addIf(after != "", "id < %s", after)
	rows, err := s.pool.Query(ctx, `SELECT `+rematchColumns+` FROM rematches`+w.sql()+` ORDER BY id DESC LIMIT `+w.arg(limit), w.args...)
	if err != nil {
		return nil, wrap(err, "list passes of re-matching")
	}
	out, err := pgx.CollectRows(rows, scanRematch)
	return notNil(out), wrap(err, "list passes of re-matching")
}

// matchedDatabase is what the newest match of a record was made with, and when;
// nil when it is what its scan was.
func matchedDatabase(ctx context.Context, q querier, run pipeline.RunID) (db pipeline.VulnerabilityDatabase, at time.Time, ok bool, err error) {
	err = q.QueryRow(ctx, `
		SELECT m.db_reference, m.db_digest, m.db_updated_at, x.matched_at FROM image_matches x JOIN rematches m ON m.id = x.matched WHERE x.run = $1`,
		string(run)).Scan(&db.Reference, (*string)(&db.Digest), &db.UpdatedAt, &at)
	if errors.Is(err, pgx.ErrNoRows) {
		return db, at, false, nil
	}
	db.UpdatedAt = db.UpdatedAt.UTC()
	return db, at.UTC(), err == nil, err
}
