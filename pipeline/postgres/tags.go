package postgres

import (
	"context"
	"encoding/json"
	"slices"

	"github.com/Masterminds/semver/v3"
	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

// RecordTags implements pipeline.Store.
func (s *Store) RecordTags(ctx context.Context, c pipeline.Claim, moves []pipeline.TagMove) error {
	return s.finishedAndEnded(ctx, c, "record the tags", moves, pipeline.Ending{State: pipeline.StateSucceeded}, func(tx pgx.Tx, _ job) error {
		for i, m := range moves {
			_, err := tx.Exec(ctx, `
				INSERT INTO tag_moves (job, position, repository, tag, from_digest, to_digest, moved, held, note)
				VALUES ($1, $2, $3, $4, nullif($5, ''), $6, $7, $8, $9)`,
				string(c.Job), i, m.Repository, m.Tag, string(m.From), string(m.To), m.Moved, m.Held, clean(m.Note))
			if err != nil {
				return wrap(err, "tag %s:%s", m.Repository, m.Tag)
			}
		}
		// In one order, so that two jobs that tag one repository do not wait for
		// each other in a circle.
		held := slices.DeleteFunc(slices.Clone(moves), func(m pipeline.TagMove) bool { return !m.Held })
		slices.SortFunc(held, func(a, b pipeline.TagMove) int {
			return slices.Compare([]string{a.Repository, a.Tag}, []string{b.Repository, b.Tag})
		})
		for _, m := range held {
			_, err := tx.Exec(ctx, `
				INSERT INTO tags (repository, tag, digest, job) VALUES ($1, $2, $3, $4)
				ON CONFLICT (repository, tag) DO UPDATE SET digest = excluded.digest, job = excluded.job, since = excluded.since
				WHERE tags.digest <> excluded.digest`, m.Repository, m.Tag, string(m.To), string(c.Job))
			if err != nil {
				return wrap(err, "tag %s:%s", m.Repository, m.Tag)
			}
		}
		return nil
	})
}

// finishedAndEnded is finished, and ends the job in the same transaction.
func (s *Store) finishedAndEnded(ctx context.Context, c pipeline.Claim, what string, outcome any, e pipeline.Ending, write func(pgx.Tx, job) error) error {
	doc, err := document(outcome)
	if err != nil {
		return wrap(err, "%s of %s", what, c.Job)
	}
	return s.claimed(ctx, c, what, func(tx pgx.Tx, j job) error {
		if err := write(tx, j); err != nil {
			return err
		}
		if err := succeed(ctx, tx, c, doc); err != nil {
			return err
		}
		return endJob(ctx, tx, c.Job, e)
	})
}

const moveJSON = `json_build_object('repository', m.repository, 'tag', m.tag, 'from', coalesce(m.from_digest, ''),
	'to', m.to_digest, 'moved', m.moved, 'held', m.held, 'note', m.note)`

// tagMoves returns what became of the tags that a job asked for.
func tagMoves(ctx context.Context, q querier, id pipeline.JobID) ([]pipeline.TagMove, error) {
	return moves(ctx, q, `SELECT json_agg(`+moveJSON+` ORDER BY m.position) FROM tag_moves m WHERE m.job = $1`, string(id))
}

// imageTags returns the newest move of each tag onto the digest by jobs of the
// project. Held says what is so now, as far as Dray moved the tag since.
func imageTags(ctx context.Context, q querier, project string, d pipeline.Digest) ([]pipeline.TagMove, error) {
	return moves(ctx, q, `
		SELECT json_agg(`+moveJSON+` ORDER BY m.repository, m.id)
		FROM (
			SELECT DISTINCT ON (m.repository, m.tag) m.id, m.repository, m.tag, m.from_digest, m.to_digest, m.moved, m.note,
			       t.digest IS NOT DISTINCT FROM m.to_digest AS held
			FROM tag_moves m JOIN jobs j ON j.id = m.job LEFT JOIN tags t ON t.repository = m.repository AND t.tag = m.tag
			WHERE m.to_digest = $2 AND j.project = $1 AND m.held
			ORDER BY m.repository, m.tag, m.id DESC) m`, project, string(d))
}

func moves(ctx context.Context, q querier, sql string, args ...any) ([]pipeline.TagMove, error) {
	var doc json.RawMessage
	if err := q.QueryRow(ctx, sql, args...).Scan(&doc); err != nil {
		return nil, err
	}
	out := []pipeline.TagMove{}
	if doc == nil {
		return out, nil
	}
	return out, json.Unmarshal(doc, &out)
}

// ImageVersions implements pipeline.Store.
func (s *Store) ImageVersions(ctx context.Context, project string, d pipeline.Digest) ([]string, error) {
	rows, err := s.pool.Query(ctx, `
		SELECT DISTINCT m.tag FROM tag_moves m JOIN jobs j ON j.id = m.job
		WHERE m.to_digest = $2 AND m.held AND j.project = $1 AND j.kind = 'run'`, project, string(d))
	if err != nil {
		return nil, wrap(err, "versions of %s in %s", d, project)
	}
	tags, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, wrap(err, "versions of %s in %s", d, project)
	}
	var versions []*semver.Version
	for _, tag := range tags {
		if v, err := semver.StrictNewVersion(tag); err == nil {
			versions = append(versions, v)
		}
	}
	slices.SortFunc(versions, func(a, b *semver.Version) int { return b.Compare(a) })
	out := make([]string, len(versions))
	for i, v := range versions {
		out[i] = v.Original()
	}
	return out, nil
}
