package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

// A removal and a build must not pass each other: both take this lock of the
// repository for the moment in which each looks for the other and writes that it
// is there, the removal alone, builds together.
const (
	lockPruning = `SELECT pg_advisory_xact_lock($1)`
	lockBuilt   = `SELECT pg_advisory_xact_lock_shared($1)`
)

func pruningKey(repository string) int64 { return lockKey("pruning", repository) }

// BeginPruning implements pipeline.RetentionStore.
func (s *Store) BeginPruning(ctx context.Context, p pipeline.Pruning) (pipeline.Pruning, error) {
	doc, err := document(p.Removal)
	if err != nil {
		return p, wrap(err, "begin to remove %s", p.Removal.Image)
	}
	x := p.Removal
	err = s.tx(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, lockPruning, pruningKey(x.Image.Repository)); err != nil {
			return err
		}
		if err := noneEntering(ctx, tx, x.Image.Repository); err != nil {
			return err
		}
		// Promotions of it wait until this is decided.
		if _, err := tx.Exec(ctx, `SELECT FROM images WHERE digest = $1 ORDER BY id FOR UPDATE`, string(x.Image.Digest)); err != nil {
			return err
		}
		if err := free(ctx, tx, p); err != nil {
			return err
		}
		return tx.QueryRow(ctx, `
			INSERT INTO prunings (retention, project, repository, digest, digests, removal) VALUES ($1, $2, $3, $4, $5, $6) RETURNING id`,
			p.Run, p.Project, x.Image.Repository, string(x.Image.Digest), digestTexts(x.Manifests), doc).Scan(&p.ID)
	})
	return p, wrap(err, "begin to remove %s", x.Image)
}

func digestTexts(list []pipeline.Digest) []string {
	out := make([]string, len(list))
	for i, d := range list {
		out[i] = string(d)
	}
	return out
}

// noneEntering locks the lanes into the repository; a promotion that is inside
// one is a conflict.
func noneEntering(ctx context.Context, tx pgx.Tx, repository string) error {
	rows, err := tx.Query(ctx, `
		SELECT coalesce(l.inside, '') FROM lanes l
		WHERE (l.project, l.environment) IN (
			SELECT p.name, e ->> 'name' FROM projects p JOIN project_versions v ON v.project = p.name AND v.version = p.version,
			       jsonb_array_elements(CASE WHEN jsonb_typeof(v.settings -> 'environments') = 'array' THEN v.settings -> 'environments' ELSE '[]' END) e
			WHERE e ->> 'repository' = $1)
		ORDER BY l.project, l.environment FOR NO KEY UPDATE`, repository)
	if err != nil {
		return err
	}
	inside, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, id := range inside {
		if id != "" {
			return fmt.Errorf("promotion %s is entering %s: %w", id, repository, pipeline.ErrConflict)
		}
	}
	return nil
}

// free makes sure, behind the locks, that nobody needs what is to go.
func free(ctx context.Context, tx pgx.Tx, p pipeline.Pruning) error {
	x := p.Removal
	var run, promotion, holder, tag, other string
	var again bool
	err := tx.QueryRow(ctx, `
		SELECT
			coalesce((SELECT min(j.id) FROM runs r JOIN jobs j ON j.id = r.id AND `+openJobs+`
				LEFT JOIN stages s ON s.job = j.id AND s.stage = 'build' AND s.state = 'succeeded'
				WHERE r.image_repository = $2 AND (r.image_digest = $3 OR r.image_digest = ANY($4)
					OR EXISTS (SELECT FROM json_array_elements(CASE WHEN json_typeof(s.outcome -> 'platforms') = 'array' THEN s.outcome -> 'platforms' ELSE '[]' END) m
						WHERE m ->> 'digest' = ANY($4)))), ''),
			coalesce((SELECT min(j.id) FROM promotions p JOIN images i ON i.id = p.image JOIN jobs j ON j.id = p.id
				WHERE i.digest = $3 AND `+openJobs+`), ''),
			coalesce((SELECT min(l.project || '/' || l.environment) FROM lanes l JOIN promotions p ON p.id = l.current
				JOIN images i ON i.id = p.image WHERE i.digest = $3), ''),
			coalesce((SELECT min(t.tag) FROM tags t WHERE t.repository = $2 AND t.digest = $3 AND NOT t.tag = ANY($5) AND t.tag NOT LIKE 'sha-%'), ''),
			coalesce((SELECT min(i.project) FROM images i JOIN image_records x ON x.image = i.id
				WHERE i.digest = $3 AND i.project <> $1 AND x.repository = $2 AND i.pruned_at IS NULL), ''),
			EXISTS (SELECT FROM images i JOIN image_records x ON x.image = i.id, retentions r
				WHERE i.digest = $3 AND i.project = $1 AND r.id = $6 AND x.recorded_at > r.requested_at)
			OR EXISTS (SELECT FROM images i JOIN promotions p ON p.image = i.id JOIN jobs j ON j.id = p.id, retentions r
				WHERE i.digest = $3 AND i.project = $1 AND r.id = $6 AND j.finished_at > r.requested_at)`,
		p.Project, x.Image.Repository, string(x.Image.Digest), digestTexts(x.Manifests), x.Tags, p.Run).
		Scan(&run, &promotion, &holder, &tag, &other, &again)
	conflict := func(format string, args ...any) error {
		return fmt.Errorf(format+": %w", append(args, pipeline.ErrConflict)...)
	}
	switch {
	case err != nil:
		return err
	case run != "":
		return conflict("%s works with it", run)
	case promotion != "":
		return conflict("%s works with it", promotion)
	case x.Kind == pipeline.RemoveTag:
		return nil
	case holder != "":
		return conflict("%s holds it", holder)
	case tag != "":
		return conflict("the tag %s was put on it", tag)
	case other != "":
		return conflict("project %s has it as well", other)
	case again:
		return conflict("it was recorded or promoted again since the plan was made")
	}
	return nil
}

// notGoing refuses what a build has made if any of it is being removed, or was
// removed while the build went on. It is then built again.
func notGoing(ctx context.Context, tx pgx.Tx, c pipeline.Claim, b pipeline.Built) error {
	if _, err := tx.Exec(ctx, lockBuilt, pruningKey(b.Image.Repository)); err != nil {
		return err
	}
	digests := []string{string(b.Image.Digest)}
	for _, p := range b.Platforms {
		digests = append(digests, string(p.Digest))
	}
	var going bool
	err := tx.QueryRow(ctx, `
		SELECT EXISTS (SELECT FROM prunings p WHERE p.repository = $1 AND p.digests && $2 AND (p.finished_at IS NULL OR p.finished_at > (
			SELECT s.started_at FROM stages s WHERE s.job = $3 AND s.stage = $4 AND s.attempt = $5)))`,
		b.Image.Repository, digests, string(c.Job), string(c.Stage), c.Attempt).Scan(&going)
	if err == nil && going {
		err = fmt.Errorf("%s: %w", b.Image, errGoing)
	}
	return err
}

// notPruning refuses to let a promotion in while something is being removed from
// where it goes. The lane must be locked.
func notPruning(ctx context.Context, tx pgx.Tx, l *lane) error {
	settings, err := project(ctx, tx, l.project)
	if err != nil {
		return err
	}
	env, ok := settings.Environment(l.environment)
	if !ok {
		return nil
	}
	var going bool
	err = tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM prunings WHERE repository = $1 AND finished_at IS NULL)`, env.Repository).Scan(&going)
	if err == nil && going {
		err = fmt.Errorf("enter %s: something else is being removed from %s by retention at this moment", l.environment, env.Repository)
	}
	return err
}

// EndPruning implements pipeline.RetentionStore.
func (s *Store) EndPruning(ctx context.Context, p pipeline.Pruning, o pipeline.RemovalOutcome) error {
	err := s.tx(ctx, func(tx pgx.Tx) error {
		var doc json.RawMessage
		var x pipeline.Removal
		var by, plan, run, project string
		err := tx.QueryRow(ctx, `
			UPDATE prunings p SET finished_at = clock_timestamp(), outcome = $2, detail = $3 FROM retentions r
			WHERE p.id = $1 AND p.finished_at IS NULL AND r.id = p.retention
			RETURNING p.removal, p.project, r.requested_by, r.plan, r.id`, p.ID, o.Outcome, clean(o.Detail)).Scan(&doc, &project, &by, &plan, &run)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil // it has ended
		}
		if err != nil {
			return err
		}
		if err := json.Unmarshal(doc, &x); err != nil || o.Outcome != pipeline.PruneRemoved {
			return err
		}
		rows, err := s.unrecord(ctx, tx, project, x)
		if err != nil {
			return err
		}
		d := data{"removed": x.Kind, "plan": plan, "repository": x.Image.Repository, "environment": x.Environment,
			"tags": x.Tags, "reason": x.Reason}
		listed(d, "manifests", x.Manifests)
		// One entry is about so many rows; an image that was promoted more often has
		// several.
		for first := true; first || len(rows) > 0; first = false {
			n := min(len(rows), maxRows)
			err := s.entry(ctx, tx, pipeline.Entry{Kind: pipeline.EntryRetentionApplied, Project: project, Actor: by, Subject: run,
				Image: x.Image.Digest, Data: d.json()}, rows[:n]...)
			if err != nil {
				return err
			}
			rows = rows[n:]
		}
		return nil
	})
	return wrap(err, "record the removal of %s", p.Removal.Image)
}

// unrecord makes the record agree with what was removed, and names the rows.
func (s *Store) unrecord(ctx context.Context, tx pgx.Tx, project string, x pipeline.Removal) (rows []rowRef, err error) {
	// With an image, whatever tag it had is gone.
	found, err := tx.Query(ctx, `DELETE FROM tags WHERE repository = $1 AND digest = $2 AND (tag = ANY($3) OR $4) RETURNING tag`,
		x.Image.Repository, string(x.Image.Digest), x.Tags, x.Kind == pipeline.RemoveImage)
	if err != nil {
		return nil, err
	}
	tags, err := pgx.CollectRows(found, pgx.RowTo[string])
	if err != nil {
		return nil, err
	}
	for _, tag := range tags {
		r := row("tags", x.Image.Repository, tag)
		r.gone = true
		rows = append(rows, r)
	}
	if x.Kind != pipeline.RemoveImage {
		return rows, nil
	}
	if x.Environment != "" {
		found, err := tx.Query(ctx, `
			UPDATE placements SET pruned_at = clock_timestamp()
			WHERE repository = $1 AND environment = $2 AND pruned_at IS NULL AND image IN (SELECT id FROM images WHERE project = $3 AND digest = $4)
			RETURNING promotion`, x.Image.Repository, x.Environment, project, string(x.Image.Digest))
		if err != nil {
			return nil, err
		}
		placements, err := pgx.CollectRows(found, pgx.RowTo[string])
		for _, id := range placements {
			rows = append(rows, row("placements", id))
		}
		return rows, err
	}
	var id int64
	err = tx.QueryRow(ctx, `UPDATE images SET pruned_at = clock_timestamp() WHERE project = $1 AND digest = $2 RETURNING id`,
		project, string(x.Image.Digest)).Scan(&id)
	if err != nil {
		return nil, wrap(err, "mark the image")
	}
	return append(rows, row("images", id)), nil
}

// NotePruning implements pipeline.RetentionStore.
func (s *Store) NotePruning(ctx context.Context, run string, o pipeline.RemovalOutcome) error {
	doc, err := document(o.Removal)
	if err == nil {
		_, err = s.pool.Exec(ctx, `
			INSERT INTO prunings (retention, project, repository, digest, digests, removal, finished_at, outcome, detail)
			SELECT id, project, $2, $3, '{}', $4, clock_timestamp(), $5, $6 FROM retentions WHERE id = $1`,
			run, o.Image.Repository, string(o.Image.Digest), doc, o.Outcome, clean(o.Detail))
	}
	return wrap(err, "note that %s was not removed", o.Image)
}

// OpenPrunings implements pipeline.RetentionStore.
func (s *Store) OpenPrunings(ctx context.Context) ([]pipeline.Pruning, error) {
	rows, err := s.pool.Query(ctx, `
		SELECT p.id, p.project, p.retention, r.requested_by, p.removal FROM prunings p JOIN retentions r ON r.id = p.retention
		WHERE p.finished_at IS NULL ORDER BY p.id`)
	if err != nil {
		return nil, wrap(err, "list removals that were begun")
	}
	out, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (p pipeline.Pruning, err error) {
		var doc json.RawMessage
		if err := row.Scan(&p.ID, &p.Project, &p.Run, &p.By, &doc); err != nil {
			return p, err
		}
		return p, json.Unmarshal(doc, &p.Removal)
	})
	return out, wrap(err, "list removals that were begun")
}
