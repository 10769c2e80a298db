package postgres

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

// inPlace is true of a promotion p of an image i, in the lane l and at the
// placement pl, that is the newest of that image there, if the environment holds
// the image or a tag of Dray's names it there.
const inPlace = `
	p.placed IS NOT NULL
	AND NOT EXISTS (SELECT FROM promotions n WHERE n.image = p.image AND n.environment = p.environment AND n.placed > p.placed)
	AND (l.current = p.id OR EXISTS (SELECT FROM tags t WHERE t.digest = i.digest AND t.repository = pl.repository))`

const selectInPlace = `
	SELECT p.project, p.environment, p.id, p.repository, pl.repository, i.digest, pl.copied -> 'contents', l.current = p.id,
	       coalesce((SELECT array_agg(t.tag ORDER BY t.tag) FROM tags t WHERE t.digest = i.digest AND t.repository = pl.repository), '{}')
	FROM promotions p JOIN lanes l ON l.project = p.project AND l.environment = p.environment
	JOIN placements pl ON pl.promotion = p.id JOIN images i ON i.id = p.image
	JOIN projects pr ON pr.name = p.project AND pr.active
	WHERE ` + inPlace

// Placed implements pipeline.Store.
func (s *Store) Placed(ctx context.Context, after pipeline.PromotionID, limit int) (out []pipeline.Placed, err error) {
	err = s.read(ctx, func(tx pgx.Tx) (err error) {
		out, err = placed(ctx, tx, ` AND p.id > $1 ORDER BY p.id LIMIT $2`, string(after), max(limit, 0))
		return err
	})
	return out, wrap(err, "list what is where, after %q", after)
}

// PlacedAt implements pipeline.Store.
func (s *Store) PlacedAt(ctx context.Context, id pipeline.PromotionID) (at pipeline.Placed, err error) {
	err = s.read(ctx, func(tx pgx.Tx) error {
		found, err := placed(ctx, tx, ` AND p.id = $1`, string(id))
		if err != nil {
			return err
		}
		if len(found) == 0 {
			return fmt.Errorf("nothing names what it placed any more: %w", pipeline.ErrNotFound)
		}
		at = found[0]
		return nil
	})
	return at, wrap(err, "what promotion %s has placed", id)
}

func placed(ctx context.Context, q querier, more string, args ...any) ([]pipeline.Placed, error) {
	rows, err := q.Query(ctx, selectInPlace+more, args...)
	if err != nil {
		return nil, err
	}
	out, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (p pipeline.Placed, err error) {
		var contents json.RawMessage
		err = row.Scan(&p.Project, &p.Environment, (*string)(&p.Promotion), &p.Source.Repository, &p.Image.Repository, (*string)(&p.Image.Digest),
			&contents, &p.Current, &p.Tags)
		if err != nil || contents == nil {
			return p, err
		}
		return p, json.Unmarshal(contents, &p.Contents)
	})
	if err != nil {
		return nil, err
	}
	for i := range out {
		p := &out[i]
		p.Source.Digest = p.Image.Digest
		if p.Verified, err = getVerified(ctx, q, p.Promotion.Job()); err != nil {
			return nil, wrap(err, "what verified for %s", p.Promotion)
		}
	}
	return out, nil
}
