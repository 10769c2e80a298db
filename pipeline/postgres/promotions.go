package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

const selectPromotions = `
	SELECT p.id, p.project, p.repository, i.digest, p.environment, p.requested_by, p.roles, p.action, p.note, p.break_glass,
	       j.state, j.reason, d.decision, l.repository,
	       (SELECT json_agg(json_build_object('promotion', a.promotion, 'by', a.author, 'roles', a.roles, 'plan', a.plan,
	               'comment', a.comment, 'rejected', a.rejected, 'at', a.at) ORDER BY a.seq) FROM approvals a WHERE a.promotion = p.id),
	       (SELECT json_agg(` + moveJSON + ` ORDER BY m.position) FROM tag_moves m WHERE m.job = p.id),
	       j.created_at, j.finished_at
	FROM promotions p JOIN jobs j ON j.id = p.id JOIN images i ON i.id = p.image
	LEFT JOIN decisions d ON d.job = p.id LEFT JOIN placements l ON l.promotion = p.id `

func scanPromotion(row pgx.CollectableRow) (p pipeline.Promotion, err error) {
	var decision, approvals, tags json.RawMessage
	var dest *string
	err = row.Scan((*string)(&p.ID), &p.Project, &p.Image.Repository, (*string)(&p.Image.Digest), &p.Environment, &p.RequestedBy,
		&p.Roles, &p.Action, &p.Note, &p.BreakGlass,
		(*string)(&p.State), &p.Reason, &decision, &dest, &approvals, &tags, &p.CreatedAt, &p.FinishedAt)
	if err != nil {
		return p, err
	}
	p.CreatedAt, p.FinishedAt = p.CreatedAt.UTC(), utc(p.FinishedAt)
	if dest != nil {
		p.Destination = &pipeline.Image{Repository: *dest, Digest: p.Image.Digest}
	}
	if decision != nil {
		if err := json.Unmarshal(decision, &p.Decision); err != nil {
			return p, err
		}
	}
	p.Approvals = []pipeline.Approval{}
	if approvals != nil {
		if err := json.Unmarshal(approvals, &p.Approvals); err != nil {
			return p, err
		}
	}
	for i := range p.Approvals {
		p.Approvals[i].At = p.Approvals[i].At.UTC()
	}
	if tags != nil {
		err = json.Unmarshal(tags, &p.Tags)
	}
	return p, err
}

func promotions(ctx context.Context, q querier, w where, limit int) ([]pipeline.Promotion, error) {
	rows, err := q.Query(ctx, selectPromotions+w.sql()+` ORDER BY p.id DESC LIMIT `+w.arg(limit), w.args...)
	if err != nil {
		return nil, err
	}
	out, err := pgx.CollectRows(rows, scanPromotion)
	return notNil(out), err
}

func getPromotion(ctx context.Context, q querier, id pipeline.PromotionID) (pipeline.Promotion, error) {
	w := where{}
	w.add("p.id = %s", string(id))
	found, err := promotions(ctx, q, w, 1)
	if err != nil {
		return pipeline.Promotion{}, wrap(err, "promotion %s", id)
	}
	if len(found) == 0 {
		return pipeline.Promotion{}, fmt.Errorf("promotion %.40q: %w", id, pipeline.ErrNotFound)
	}
	return found[0], nil
}

// Promotion implements pipeline.Store.
func (s *Store) Promotion(ctx context.Context, id pipeline.PromotionID) (pipeline.Promotion, error) {
	return getPromotion(ctx, s.pool, id)
}

// Promotions lists promotions, newest first.
func (s *Store) Promotions(ctx context.Context, query pipeline.PromotionQuery) ([]pipeline.Promotion, error) {
	limit, after := page(query.Page)
	w := where{}
	w.addIf(query.Project != "", "p.project = %s", query.Project)
	w.addIf(query.Environment != "", "p.environment = %s", query.Environment)
	w.addIf(query.State != "", "j.kind = %s AND j.state = %s", kindPromotion, string(query.State))
	w.addIf(after != "", "p.id < %s", after)
	out, err := promotions(ctx, s.pool, w, limit)
	return out, wrap(err, "list promotions")
}

// PromotionDetail returns a promotion with its stages and what verified at the
// destination.
func (s *Store) PromotionDetail(ctx context.Context, id pipeline.PromotionID) (d pipeline.PromotionDetail, err error) {
	err = s.read(ctx, func(tx pgx.Tx) (err error) {
		if d.Promotion, err = getPromotion(ctx, tx, id); err != nil {
			return err
		}
		if d.Stages, err = stageStatuses(ctx, tx, id.Job(), pipeline.PromotionStages()); err != nil {
			return err
		}
		if err := getJudged(ctx, tx, &d); err != nil {
			return err
		}
		var copied json.RawMessage
		err = tx.QueryRow(ctx, `SELECT copied FROM placements WHERE promotion = $1`, string(id)).Scan(&copied)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := json.Unmarshal(copied, &d.Copied); err != nil {
			return err
		}
		d.Verified, err = getVerified(ctx, tx, id.Job())
		return err
	})
	return d, wrap(err, "details of promotion %s", id)
}

// RecordPlacement implements pipeline.Store.
func (s *Store) RecordPlacement(ctx context.Context, c pipeline.Claim, pl pipeline.Placement) error {
	copied, err := document(pl.Copied)
	if err != nil {
		return wrap(err, "record the placement of %s", c.Job)
	}
	return s.finished(ctx, c, "record the placement", pl.Copied, func(tx pgx.Tx, j job) error {
		var environment string
		err := tx.QueryRow(ctx, `
			INSERT INTO placements (promotion, image, environment, repository, copied, recorded_at)
			SELECT p.id, p.image, p.environment, $2, $3, clock_timestamp() FROM promotions p JOIN images i ON i.id = p.image
			WHERE p.id = $1 AND i.digest = $4 RETURNING environment`,
			string(c.Job), pl.Copied.Image.Repository, copied, string(pl.Copied.Image.Digest)).Scan(&environment)
		if errors.Is(err, pgx.ErrNoRows) {
			return fmt.Errorf("%s is not what %s promotes: %w", pl.Copied.Image, c.Job, pipeline.ErrInvalid)
		}
		if err != nil {
			return err
		}
		if err := insertVerified(ctx, tx, c.Job, pl.Verified); err != nil {
			return err
		}
		fresh, err := insertDecision(ctx, tx, c.Job, pl.Decision, pipeline.Sealed{})
		if err != nil {
			return err
		}
		rows := []rowRef{row("placements", c.Job)}
		if fresh {
			rows = append(rows, row("decisions", c.Job))
		}
		return s.copiedEntries(ctx, tx, j, environment, pl, rows...)
	})
}
