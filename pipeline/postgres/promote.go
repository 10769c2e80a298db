package postgres

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

// errKeyTaken: another request with the same idempotency key committed first.
var errKeyTaken = errors.New("idempotency key taken")

// maxText bounds what people write as a note, a reason or a comment.
const maxText = 10_000

// Promote writes a promotion of a recorded image, and its job, in one
// transaction. A rollback to an image that was never in the environment is
// pipeline.ErrInvalid; one to what it holds, or without anything to go back to,
// is pipeline.ErrConflict.
func (s *Store) Promote(ctx context.Context, r pipeline.PromotionRequest) (p pipeline.Promotion, created bool, err error) {
	defer func() {
		err = wrap(err, "%s %.120q to %.40q", cmp.Or(r.Action, pipeline.ActionPromote), r.Image, r.Environment)
	}()
	for {
		err = s.tx(ctx, func(tx pgx.Tx) (err error) {
			p, created, err = s.promote(ctx, tx, r)
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

// checkRequest returns the image that is asked for; of a rollback without one,
// it has no digest.
func checkRequest(r pipeline.PromotionRequest) (image pipeline.Image, err error) {
	rollback := r.Action == pipeline.ActionRollback
	switch {
	case !rollback && r.Action != "" && r.Action != pipeline.ActionPromote:
		return image, fmt.Errorf("action %.40q: want promote or rollback: %w", r.Action, pipeline.ErrInvalid)
	case r.RequestedBy == "":
		return image, fmt.Errorf("who asks is required: %w", pipeline.ErrInvalid)
	case len(r.IdempotencyKey) > maxKey:
		return image, fmt.Errorf("an idempotency key has at most %d bytes: %w", maxKey, pipeline.ErrInvalid)
	case len(r.Note) > maxText, len(r.BreakGlass) > maxText:
		return image, fmt.Errorf("a note or a reason has at most %d bytes: %w", maxText, pipeline.ErrInvalid)
	case rollback && r.Image == "" && r.Project == "":
		return image, fmt.Errorf("a rollback without an image needs the project: %w", pipeline.ErrInvalid)
	case rollback && r.Image == "":
		return image, nil
	}
	return requestedImage(r.Image)
}

// requestedImage parses "sha256:…" or "repository@sha256:…".
func requestedImage(s string) (pipeline.Image, error) {
	if strings.Contains(s, "@") {
		return pipeline.ParseImage(s)
	}
	d, err := pipeline.ParseDigest(s)
	return pipeline.Image{Digest: d}, err
}

func (s *Store) promote(ctx context.Context, tx pgx.Tx, r pipeline.PromotionRequest) (p pipeline.Promotion, created bool, err error) {
	image, err := checkRequest(r)
	if err != nil {
		return p, false, err
	}
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
	if image.Digest == "" {
		if image.Digest, err = rollbackTarget(ctx, tx, r.Project, r.Environment); err != nil {
			return p, false, err
		}
	}
	c, err := findCandidate(ctx, tx, r.Project, image)
	if err != nil {
		return p, false, err
	}
	if err := hasEnvironment(ctx, tx, c.project, r.Environment); err != nil {
		return p, false, err
	}
	if r.Action == pipeline.ActionRollback {
		if err := canRollBack(ctx, tx, c, r.Environment); err != nil {
			return p, false, err
		}
	}
	if err := stillThere(ctx, tx, c); err != nil {
		return p, false, err
	}
	if !c.passed {
		var d pipeline.Decision
		if err := json.Unmarshal(c.decision, &d); err != nil {
			return p, false, err
		}
		return p, false, fmt.Errorf("run %s of project %s: %s: %w", c.run, c.project, d.Reason(), pipeline.ErrRefused)
	}
	id := pipeline.NewPromotionID(time.Now())
	if err := s.insertPromotion(ctx, tx, id, r, c); err != nil {
		return p, false, err
	}
	p, err = getPromotion(ctx, tx, id)
	return p, true, err
}

func hasEnvironment(ctx context.Context, q querier, name, environment string) error {
	settings, err := project(ctx, q, name)
	if err != nil {
		return err
	}
	if _, ok := settings.Environment(environment); ok {
		return nil
	}
	var names []string
	for _, e := range settings.Environments {
		names = append(names, e.Name)
	}
	return fmt.Errorf("project %s has no environment %.40q, it has %s: %w", name, environment, strings.Join(names, ", "), pipeline.ErrInvalid)
}

func (s *Store) insertPromotion(ctx context.Context, tx pgx.Tx, id pipeline.PromotionID, r pipeline.PromotionRequest, c candidate) error {
	rows := []rowRef{row("promotions", id), row("jobs", id)}
	made, err := tx.Exec(ctx, `INSERT INTO lanes (project, environment) VALUES ($1, $2) ON CONFLICT DO NOTHING`, c.project, r.Environment)
	if err != nil {
		return err
	}
	if made.RowsAffected() > 0 {
		rows = append(rows, row("lanes", c.project, r.Environment))
	}
	roles := []string{}
	for _, role := range pipeline.RolesIn(r.Grants, c.project) {
		roles = append(roles, clean(role))
	}
	tag, err := tx.Exec(ctx, `
		INSERT INTO promotions (id, project, image, repository, environment, requested_by, roles, action, note, break_glass, idempotency_key)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, nullif($11, '')) ON CONFLICT (requested_by, idempotency_key) DO NOTHING`,
		string(id), c.project, c.image, c.repository, r.Environment, clean(r.RequestedBy), roles,
		cmp.Or(r.Action, pipeline.ActionPromote), clean(r.Note), clean(r.BreakGlass), clean(r.IdempotencyKey))
	if err != nil {
		return err
	}
	if tag.RowsAffected() == 0 {
		return errKeyTaken
	}
	if err := s.insertJob(ctx, tx, id.Job(), kindPromotion, c.project); err != nil {
		return err
	}
	asked := data{"environment": r.Environment, "repository": c.repository, "action": cmp.Or(r.Action, pipeline.ActionPromote),
		"note": short(r.Note), "breakGlass": short(r.BreakGlass)}
	listed(asked, "roles", roles)
	return s.entry(ctx, tx, pipeline.Entry{Kind: pipeline.EntryPromotionRequested, Project: c.project, Actor: r.RequestedBy,
		Subject: string(id), Image: c.digest, Data: asked.json()}, rows...)
}

// sameRequest compares a request with the one that used its key first. What the
// request leaves open (repository, project, the image of a rollback) agrees
// with anything.
func sameRequest(r pipeline.PromotionRequest, image pipeline.Image, first pipeline.Promotion) error {
	if (image.Digest == "" || image.Digest == first.Image.Digest) && r.Environment == first.Environment &&
		(image.Repository == "" || image.Repository == first.Image.Repository) &&
		(r.Project == "" || r.Project == first.Project) &&
		cmp.Or(r.Action, pipeline.ActionPromote) == first.Action && clean(r.BreakGlass) == first.BreakGlass {
		return nil
	}
	return fmt.Errorf("idempotency key %.40q was used for another request, to %s %s of %s to %s: %w",
		r.IdempotencyKey, first.Action, first.Image, first.Project, first.Environment, pipeline.ErrConflict)
}
