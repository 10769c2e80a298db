package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

const selectPromotions = `
	SELECT p.id, j.project, p.repository, i.digest, p.environment, p.requested_by, j.state, j.reason, d.decision,
	       l.repository, (SELECT json_agg(` + moveJSON + ` ORDER BY m.position) FROM tag_moves m WHERE m.job = p.id),
	       j.created_at, j.finished_at
	FROM promotions p JOIN jobs j ON j.id = p.id JOIN images i ON i.id = p.image
	LEFT JOIN decisions d ON d.job = p.id LEFT JOIN placements l ON l.promotion = p.id `

func scanPromotion(row pgx.CollectableRow) (p pipeline.Promotion, err error) {
	var decision, tags json.RawMessage
	var dest *string
	err = row.Scan((*string)(&p.ID), &p.Project, &p.Image.Repository, (*string)(&p.Image.Digest), &p.Environment, &p.RequestedBy,
		(*string)(&p.State), &p.Reason, &decision, &dest, &tags, &p.CreatedAt, &p.FinishedAt)
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

// Promotions lists promotions, newest first; an empty project means all.
func (s *Store) Promotions(ctx context.Context, project string, p pipeline.Page) ([]pipeline.Promotion, error) {
	limit, after := page(p)
	w := where{}
	w.addIf(project != "", "j.project = %s", project)
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

// errKeyTaken: another request with the same idempotency key committed first.
var errKeyTaken = errors.New("idempotency key taken")

// Promote writes a promotion of a recorded image, and its job, in one
// transaction.
func (s *Store) Promote(ctx context.Context, r pipeline.PromotionRequest) (p pipeline.Promotion, created bool, err error) {
	defer func() { err = wrap(err, "promote %.120q to %.40q", r.Image, r.Environment) }()
	image, err := requestedImage(r.Image)
	if err != nil {
		return p, false, err
	}
	if r.RequestedBy == "" {
		return p, false, fmt.Errorf("who asks is required: %w", pipeline.ErrInvalid)
	}
	if len(r.IdempotencyKey) > maxKey {
		return p, false, fmt.Errorf("an idempotency key has at most %d bytes: %w", maxKey, pipeline.ErrInvalid)
	}
	for {
		err = s.tx(ctx, func(tx pgx.Tx) (err error) {
			p, created, err = s.promote(ctx, tx, r, image)
			return err
		})
		if errors.Is(err, errKeyTaken) {
			continue // it is committed, so the next time it is found
		}
		if err != nil {
			return pipeline.Promotion{}, false, err
		}
		return p, created, nil
	}
}

// requestedImage parses "sha256:…" or "repository@sha256:…".
func requestedImage(s string) (pipeline.Image, error) {
	if strings.Contains(s, "@") {
		return pipeline.ParseImage(s)
	}
	d, err := pipeline.ParseDigest(s)
	return pipeline.Image{Digest: d}, err
}

func (s *Store) promote(ctx context.Context, tx pgx.Tx, r pipeline.PromotionRequest, image pipeline.Image) (p pipeline.Promotion, created bool, err error) {
	if r.IdempotencyKey != "" {
		w := where{}
		w.add("p.requested_by = %s AND p.idempotency_key = %s", clean(r.RequestedBy), clean(r.IdempotencyKey))
		earlier, err := promotions(ctx, tx, w, 1)
		if err != nil {
			return p, false, err
		}
		if len(earlier) > 0 {
			return earlier[0], false, sameRequest(r, image, earlier[0])
		}
	}
	c, err := findCandidate(ctx, tx, r.Project, image)
	if err != nil {
		return p, false, err
	}
	settings, err := project(ctx, tx, c.project)
	if err != nil {
		return p, false, err
	}
	if _, ok := settings.Environment(r.Environment); !ok {
		var names []string
		for _, e := range settings.Environments {
			names = append(names, e.Name)
		}
		return p, false, fmt.Errorf("project %s has no environment %.40q, it has %s: %w", c.project, r.Environment, strings.Join(names, ", "), pipeline.ErrInvalid)
	}
	if !c.passed {
		var d pipeline.Decision
		if err := json.Unmarshal(c.decision, &d); err != nil {
			return p, false, err
		}
		return p, false, fmt.Errorf("run %s of project %s: %s: %w", c.run, c.project, d.Reason(), pipeline.ErrRefused)
	}
	id := pipeline.NewPromotionID(time.Now())
	tag, err := tx.Exec(ctx, `
		INSERT INTO promotions (id, image, repository, environment, requested_by, idempotency_key)
		VALUES ($1, $2, $3, $4, $5, nullif($6, '')) ON CONFLICT (requested_by, idempotency_key) DO NOTHING`,
		string(id), c.image, c.repository, r.Environment, clean(r.RequestedBy), clean(r.IdempotencyKey))
	if err != nil {
		return p, false, err
	}
	if tag.RowsAffected() == 0 {
		return p, false, errKeyTaken
	}
	if err := s.insertJob(ctx, tx, id.Job(), kindPromotion, c.project); err != nil {
		return p, false, err
	}
	p, err = getPromotion(ctx, tx, id)
	return p, true, err
}

// sameRequest compares a request with the one that used its key first. What the
// request leaves open (repository, project) agrees with anything.
func sameRequest(r pipeline.PromotionRequest, image pipeline.Image, first pipeline.Promotion) error {
	if image.Digest == first.Image.Digest && r.Environment == first.Environment &&
		(image.Repository == "" || image.Repository == first.Image.Repository) &&
		(r.Project == "" || r.Project == first.Project) {
		return nil
	}
	return fmt.Errorf("idempotency key %.40q was used for promoting %s of %s to %s: %w",
		r.IdempotencyKey, first.Image, first.Project, first.Environment, pipeline.ErrConflict)
}

// candidate is a recorded image that a request may mean.
type candidate struct {
	image      int64
	project    string
	repository string
	run        string
	passed     bool
	decision   json.RawMessage
}

func findCandidate(ctx context.Context, tx pgx.Tx, project string, image pipeline.Image) (c candidate, err error) {
	w := where{}
	w.add("i.digest = %s", string(image.Digest))
	w.addIf(project != "", "i.project = %s", project)
	rows, err := tx.Query(ctx, `
		SELECT i.id, i.project, r.repository, r.run, d.passed, d.decision
		FROM images i JOIN projects p ON p.name = i.project AND p.active
		JOIN image_records r ON r.run = i.newest JOIN decisions d ON d.job = r.run`+w.sql()+` ORDER BY i.project`, w.args...)
	if err != nil {
		return c, err
	}
	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (c candidate, err error) {
		return c, row.Scan(&c.image, &c.project, &c.repository, &c.run, &c.passed, &c.decision)
	})
	if err != nil {
		return c, err
	}
	if len(found) == 0 {
		return c, fmt.Errorf("no run has recorded this digest: %w", pipeline.ErrNotFound)
	}
	if image.Repository != "" {
		var there []candidate
		var places []string
		for _, f := range found {
			places = append(places, f.repository)
			if f.repository == image.Repository {
				there = append(there, f)
			}
		}
		if len(there) == 0 {
			return c, fmt.Errorf("the digest is recorded in %s: %w", strings.Join(places, ", "), pipeline.ErrInvalid)
		}
		found = there
	}
	if len(found) > 1 {
		var names []string
		for _, f := range found {
			names = append(names, f.project)
		}
		return c, fmt.Errorf("the projects %s hold this digest, say which is meant: %w", strings.Join(names, ", "), pipeline.ErrAmbiguous)
	}
	return found[0], nil
}

// RecordDecision implements pipeline.Store.
func (s *Store) RecordDecision(ctx context.Context, c pipeline.Claim, d pipeline.Decision) error {
	return s.finished(ctx, c, "record the decision", d, func(tx pgx.Tx, _ job) error {
		return insertDecision(ctx, tx, c.Job, d)
	})
}

// RecordPlacement implements pipeline.Store.
func (s *Store) RecordPlacement(ctx context.Context, c pipeline.Claim, pl pipeline.Placement) error {
	copied, err := document(pl.Copied)
	if err != nil {
		return wrap(err, "record the placement of %s", c.Job)
	}
	return s.finished(ctx, c, "record the placement", pl.Copied, func(tx pgx.Tx, _ job) error {
		tag, err := tx.Exec(ctx, `
			INSERT INTO placements (promotion, image, environment, repository, copied, recorded_at)
			SELECT p.id, p.image, p.environment, $2, $3, clock_timestamp() FROM promotions p JOIN images i ON i.id = p.image
			WHERE p.id = $1 AND i.digest = $4`,
			string(c.Job), pl.Copied.Image.Repository, copied, string(pl.Copied.Image.Digest))
		if err != nil {
			return err
		}
		if tag.RowsAffected() == 0 {
			return fmt.Errorf("%s is not what %s promotes: %w", pl.Copied.Image, c.Job, pipeline.ErrInvalid)
		}
		if err := insertVerified(ctx, tx, c.Job, pl.Verified); err != nil {
			return err
		}
		return insertDecision(ctx, tx, c.Job, pl.Decision)
	})
}
