package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

// RecordTags implements pipeline.Store. A promotion that cannot be asked for any
// more, because the settings or the image's record are others by now, is left out.
func (s *Store) RecordTags(ctx context.Context, c pipeline.Claim, moves []pipeline.TagMove, next []pipeline.PromotionRequest) error {
	outcome, err := document(moves)
	if err != nil {
		return wrap(err, "record the tags of %s", c.Job)
	}
	return s.claimedInLane(ctx, c, "record the tags", func(tx pgx.Tx, l *lane, j job) error {
		if err := s.insertTags(ctx, tx, j, moves); err != nil {
			return err
		}
		if err := succeed(ctx, tx, c, outcome); err != nil {
			return err
		}
		placed, err := place(ctx, tx, l, c.Job)
		if err != nil {
			return err
		}
		if err := s.endJob(ctx, tx, l, j, actorDray, pipeline.Ending{State: pipeline.StateSucceeded}); err != nil {
			return err
		}
		if placed {
			if err := beginStay(ctx, tx, l, c.Job); err != nil {
				return err
			}
		}
		for _, r := range next {
			_, _, err := s.promote(ctx, tx, r)
			if hopeless(err) {
				s.log.WarnContext(ctx, "an image does not go on by itself", "job", c.Job, "project", r.Project, "environment", r.Environment, "error", err)
			} else if err != nil {
				return wrap(err, "promote to %s", r.Environment)
			}
		}
		return nil
	})
}

// hopeless: the request is refused for what it is, and nothing was written.
func hopeless(err error) bool {
	for _, e := range []error{pipeline.ErrInvalid, pipeline.ErrNotFound, pipeline.ErrConflict, pipeline.ErrRefused, pipeline.ErrAmbiguous} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// place makes what a promotion has placed the current content of its lane, if it
// has placed anything.
func place(ctx context.Context, tx pgx.Tx, l *lane, id pipeline.JobID) (bool, error) {
	if l == nil {
		return false, nil
	}
	tag, err := tx.Exec(ctx, `
		UPDATE promotions SET placed = $2, replaced = (SELECT image FROM promotions WHERE id = $3)
		WHERE id = $1 AND EXISTS (SELECT FROM placements WHERE promotion = $1)`, string(id), l.placed+1, l.current)
	if err != nil || tag.RowsAffected() == 0 {
		return false, wrap(err, "place %s", id)
	}
	me := string(id)
	l.placed, l.current = l.placed+1, &me
	return true, l.set(ctx, tx)
}

func (s *Store) insertTags(ctx context.Context, tx pgx.Tx, j job, moves []pipeline.TagMove) error {
	ids := make([]int64, len(moves))
	for i, m := range moves {
		err := tx.QueryRow(ctx, `
			INSERT INTO tag_moves (job, position, repository, tag, from_digest, to_digest, moved, held, note)
			VALUES ($1, $2, $3, $4, nullif($5, ''), $6, $7, $8, $9) RETURNING id`,
			string(j.id), i, m.Repository, m.Tag, string(m.From), string(m.To), m.Moved, m.Held, clean(m.Note)).Scan(&ids[i])
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
	changed := map[[2]string]bool{}
	for _, m := range held {
		tag, err := tx.Exec(ctx, `
			INSERT INTO tags (repository, tag, digest, job) VALUES ($1, $2, $3, $4)
			ON CONFLICT (repository, tag) DO UPDATE SET digest = excluded.digest, job = excluded.job, since = excluded.since
			WHERE tags.digest <> excluded.digest`, m.Repository, m.Tag, string(m.To), string(j.id))
		if err != nil {
			return wrap(err, "tag %s:%s", m.Repository, m.Tag)
		}
		if tag.RowsAffected() > 0 {
			changed[[2]string{m.Repository, m.Tag}] = true
		}
	}
	return s.tagEntries(ctx, tx, j, moves, ids, changed)
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
