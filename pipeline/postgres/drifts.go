package postgres

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

const driftColumns = `id, project, environment, repository, digest, kind, subject, detail, detected_at, repaired_at, repair, resolved_at, blocked`

func scanDrift(row pgx.CollectableRow) (d pipeline.Drift, err error) {
	err = row.Scan(&d.ID, &d.Project, &d.Environment, &d.Image.Repository, (*string)(&d.Image.Digest), &d.Kind, &d.Subject, &d.Detail,
		&d.DetectedAt, &d.RepairedAt, &d.Repair, &d.ResolvedAt, &d.Blocked)
	d.DetectedAt, d.RepairedAt, d.ResolvedAt = d.DetectedAt.UTC(), utc(d.RepairedAt), utc(d.ResolvedAt)
	return d, err
}

// RecordDrift implements pipeline.Store. Drifts of images that have no place in
// the environment any more are resolved by the way: nobody looks there again.
func (s *Store) RecordDrift(ctx context.Context, at pipeline.Placed, found []pipeline.Drift) (known []pipeline.Drift, err error) {
	err = s.tx(ctx, func(tx pgx.Tx) error {
		known = nil
		keys := make([]string, len(found))
		for i, d := range found {
			keys[i] = clean(d.Kind + "\n" + d.Subject)
		}
		rows, err := tx.Query(ctx, `
			UPDATE drifts d SET resolved_at = clock_timestamp()
			WHERE d.project = $1 AND d.environment = $2 AND d.repaired_at IS NULL AND d.resolved_at IS NULL
			  AND CASE WHEN d.repository = $3 AND d.digest = $4 THEN d.kind || E'\n' || d.subject <> ALL($5)
			      ELSE NOT EXISTS (
				SELECT FROM promotions p JOIN lanes l ON l.project = p.project AND l.environment = p.environment
				JOIN placements pl ON pl.promotion = p.id JOIN images i ON i.id = p.image
				WHERE p.project = d.project AND p.environment = d.environment AND i.digest = d.digest AND pl.repository = d.repository AND `+inPlace+`) END
			RETURNING `+driftColumns,
			at.Project, at.Environment, at.Image.Repository, string(at.Image.Digest), keys)
		if err != nil {
			return wrap(err, "resolve")
		}
		resolved, err := pgx.CollectRows(rows, scanDrift)
		if err != nil {
			return wrap(err, "resolve")
		}
		for _, d := range resolved {
			if err := s.driftEntry(ctx, tx, pipeline.EntryDriftResolved, d); err != nil {
				return err
			}
		}
		for _, d := range found {
			kept, err := s.recordDrift(ctx, tx, at, d)
			if err != nil {
				return wrap(err, "%s of %s", d.Kind, d.Subject)
			}
			known = append(known, kept)
		}
		return nil
	})
	return known, wrap(err, "record the drift of %s in %s of %s", at.Image, at.Environment, at.Project)
}

// recordDrift brings what is on record as open up to date. What is repaired
// already is written down as such, and never was open for others to see.
func (s *Store) recordDrift(ctx context.Context, tx pgx.Tx, at pipeline.Placed, d pipeline.Drift) (pipeline.Drift, error) {
	now := time.Now()
	detected := d.DetectedAt
	if detected.IsZero() {
		detected = now
	}
	place := []any{at.Project, at.Environment, at.Image.Repository, string(at.Image.Digest), d.Kind, clean(d.Subject)}
	known, err := oneDrift(ctx, tx, `
		SELECT `+driftColumns+` FROM drifts
		WHERE project = $1 AND environment = $2 AND repository = $3 AND digest = $4 AND kind = $5 AND subject = $6
		  AND repaired_at IS NULL AND resolved_at IS NULL FOR UPDATE`, place...)
	switch {
	case err == nil && d.RepairedAt == nil && known.Detail == clean(d.Detail) && known.Repair == clean(d.Repair) && known.Blocked == clean(d.Blocked):
		return known, nil // nothing that the log does not say
	case err == nil:
		known, err = oneDrift(ctx, tx, `UPDATE drifts SET detail = $2, repaired_at = $3, repair = $4, blocked = $5 WHERE id = $1 RETURNING `+driftColumns,
			known.ID, clean(d.Detail), d.RepairedAt, clean(d.Repair), clean(d.Blocked))
	case errors.Is(err, pgx.ErrNoRows):
		known, err = oneDrift(ctx, tx, `
			INSERT INTO drifts (project, environment, repository, digest, kind, subject, id, detail, detected_at, repaired_at, repair, blocked)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
			ON CONFLICT (project, environment, repository, digest, kind, subject) WHERE repaired_at IS NULL AND resolved_at IS NULL
			DO UPDATE SET detail = excluded.detail, blocked = excluded.blocked
			RETURNING `+driftColumns,
			append(place, pipeline.NewDriftID(now), clean(d.Detail), detected, d.RepairedAt, clean(d.Repair), clean(d.Blocked))...)
	}
	if err != nil {
		return pipeline.Drift{}, err
	}
	kind := pipeline.EntryDriftFound
	if known.RepairedAt != nil {
		kind = pipeline.EntryDriftRepaired
	}
	return known, s.driftEntry(ctx, tx, kind, known)
}

func oneDrift(ctx context.Context, tx pgx.Tx, sql string, args ...any) (pipeline.Drift, error) {
	rows, err := tx.Query(ctx, sql, args...)
	if err != nil {
		return pipeline.Drift{}, err
	}
	return pgx.CollectExactlyOneRow(rows, scanDrift)
}

func (s *Store) driftEntry(ctx context.Context, tx pgx.Tx, kind string, d pipeline.Drift) error {
	return s.entry(ctx, tx, pipeline.Entry{Kind: kind, Project: d.Project, Actor: actorDray, Subject: d.ID, Image: d.Image.Digest,
		Data: data{"environment": d.Environment, "repository": d.Image.Repository, "drift": d.Kind, "about": short(d.Subject),
			"detail": short(d.Detail), "repair": short(d.Repair), "blocked": short(d.Blocked)}.json()}, row("drifts", d.ID))
}

// Drifts lists drifts, newest first; an empty project means all. all includes
// those that were repaired or resolved.
func (s *Store) Drifts(ctx context.Context, project string, all bool, p pipeline.Page) ([]pipeline.Drift, error) {
	limit, after := page(p)
	w := where{}
	w.addIf(project != "", "project = %s", project)
	if !all {
		w.conds = append(w.conds, "repaired_at IS NULL AND resolved_at IS NULL")
	}
	w.addIf(after != "", "id < %s", after)
	rows, err := s.pool.Query(ctx, `SELECT `+driftColumns+` FROM drifts`+w.sql()+` ORDER BY id DESC LIMIT `+w.arg(limit), w.args...)
	if err != nil {
		return nil, wrap(err, "list drifts")
	}
	out, err := pgx.CollectRows(rows, scanDrift)
	return notNil(out), wrap(err, "list drifts")
}
