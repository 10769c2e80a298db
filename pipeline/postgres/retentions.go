package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

var _ pipeline.RetentionStore = (*Store)(nil)

const (
	// autoRetention is how often the plan of a project that applies itself is made.
	autoRetention = time.Hour
	// pruneEvents is how many events go in one transaction.
	pruneEvents = 5000
	// pruneRuns is how many runs one entry of the log is about.
	pruneRuns = 50
)

const selectRetentions = `
	SELECT r.id, r.project, r.plan, r.requested_by, r.requested_at, r.finished_at, r.log_runs, r.log_events, r.problem,
	       coalesce(json_array_length(r.document -> 'remove'), 0), r.document,
	       (SELECT json_agg(json_build_object('removal', p.removal, 'outcome', p.outcome, 'detail', p.detail) ORDER BY p.id)
	        FROM prunings p WHERE p.retention = r.id AND p.finished_at IS NOT NULL)
	FROM retentions r `

func retentions(ctx context.Context, q querier, more string, args ...any) (runs []pipeline.RetentionRun, plans []pipeline.RetentionPlan, err error) {
	rows, err := q.Query(ctx, selectRetentions+more, args...)
	if err != nil {
		return nil, nil, err
	}
	runs, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (r pipeline.RetentionRun, err error) {
		var document, outcomes json.RawMessage
		err = row.Scan(&r.ID, &r.Project, (*string)(&r.Plan), &r.RequestedBy, &r.RequestedAt, &r.FinishedAt, &r.LogRuns, &r.LogEvents, &r.Error,
			&r.Planned, &document, &outcomes)
		if err != nil {
			return r, err
		}
		r.RequestedAt, r.FinishedAt = r.RequestedAt.UTC(), utc(r.FinishedAt)
		var plan pipeline.RetentionPlan
		if err := json.Unmarshal(document, &plan); err != nil {
			return r, err
		}
		plans = append(plans, plan)
		r.Outcomes = []pipeline.RemovalOutcome{}
		if outcomes == nil {
			return r, nil
		}
		var list []struct {
			Removal         pipeline.Removal
			Outcome, Detail string
		}
		if err := json.Unmarshal(outcomes, &list); err != nil {
			return r, err
		}
		for _, o := range list {
			r.Outcomes = append(r.Outcomes, pipeline.RemovalOutcome{Removal: o.Removal, Outcome: o.Outcome, Detail: o.Detail})
		}
		r.Done = len(r.Outcomes)
		return r, nil
	})
	return runs, plans, err
}

// Retention returns what became of the plan that was applied last in a project;
// ErrNotFound if none ever was.
func (s *Store) Retention(ctx context.Context, project string) (pipeline.RetentionRun, error) {
	runs, _, err := retentions(ctx, s.pool, `WHERE r.project = $1 ORDER BY r.id DESC LIMIT 1`, project)
	if err == nil && len(runs) == 0 {
		err = pipeline.ErrNotFound
	}
	if err != nil {
		return pipeline.RetentionRun{}, wrap(err, "retention of %.40q", project)
	}
	return runs[0], nil
}

// BeginRetention implements pipeline.RetentionStore.
func (s *Store) BeginRetention(ctx context.Context, plan pipeline.RetentionPlan, by string) (r pipeline.RetentionRun, err error) {
	doc, err := document(plan)
	if err != nil {
		return r, wrap(err, "begin the retention of %s", plan.Project)
	}
	err = s.tx(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `
			INSERT INTO retentions (id, project, plan, document, requested_by) VALUES ($1, $2, $3, $4, $5)
			ON CONFLICT (project) WHERE finished_at IS NULL DO NOTHING`,
			pipeline.NewRetentionID(time.Now()), plan.Project, string(plan.Digest), doc, clean(by))
		if err != nil {
			return err
		}
		runs, _, err := retentions(ctx, tx, `WHERE r.project = $1 AND r.finished_at IS NULL`, plan.Project)
		if err != nil {
			return err
		}
		if len(runs) != 1 {
			return fmt.Errorf("the one before has ended just now: %w", pipeline.ErrConflict)
		}
		r = runs[0]
		if r.Plan != plan.Digest {
			return fmt.Errorf("%s is being carried out, wait for its end: %w", r.ID, pipeline.ErrConflict)
		}
		return nil
	})
	return r, wrap(err, "begin the retention of %s", plan.Project)
}

// OpenRetentions implements pipeline.RetentionStore.
func (s *Store) OpenRetentions(ctx context.Context) ([]pipeline.RetentionRun, []pipeline.RetentionPlan, error) {
	runs, plans, err := retentions(ctx, s.pool, `WHERE r.finished_at IS NULL ORDER BY r.id`)
	return runs, plans, wrap(err, "list open retentions")
}

// EndRetention implements pipeline.RetentionStore.
func (s *Store) EndRetention(ctx context.Context, run string, problem string) error {
	_, err := s.pool.Exec(ctx, `
		UPDATE retentions SET problem = $2, finished_at = CASE WHEN $2 = '' THEN clock_timestamp() END
		WHERE id = $1 AND finished_at IS NULL`, run, clean(problem))
	return wrap(err, "end retention %s", run)
}

// AutoRetention implements pipeline.RetentionStore.
func (s *Store) AutoRetention(ctx context.Context) ([]string, error) {
	rows, err := s.pool.Query(ctx, `
		INSERT INTO retention_turns (project, at)
		SELECT p.name, clock_timestamp() FROM projects p JOIN project_versions v ON v.project = p.name AND v.version = p.version
		WHERE p.active AND v.settings -> 'retention' ->> 'auto' = 'true'
		ON CONFLICT (project) DO UPDATE SET at = excluded.at WHERE retention_turns.at <= excluded.at - $1::interval
		RETURNING project`, autoRetention)
	if err != nil {
		return nil, wrap(err, "take turns at retention")
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	return names, wrap(err, "take turns at retention")
}

// PruneLogs implements pipeline.RetentionStore. Events go some thousands at a
// time, each in a transaction of its own that locks nothing but them.
func (s *Store) PruneLogs(ctx context.Context, run string, of []pipeline.LogRemoval) (more bool, err error) {
	ids := make([]string, len(of))
	for i, l := range of {
		ids[i] = string(l.Run)
	}
	defer func() { err = wrap(err, "remove what %d runs printed", len(of)) }()
	rows, err := s.pool.Query(ctx, `SELECT id FROM runs WHERE id = ANY($1) AND logs_pruned_at IS NULL ORDER BY id LIMIT $2`, ids, pruneRuns)
	if err != nil {
		return false, err
	}
	part, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(part) == 0 {
		return false, err
	}
	for {
		tag, err := s.pool.Exec(ctx, `
			WITH gone AS (
				DELETE FROM events WHERE (job, seq) IN (
					SELECT e.job, e.seq FROM events e JOIN jobs j ON j.id = e.job AND j.finished_at IS NOT NULL
					WHERE e.job = ANY($1) AND e.kind IN ('log', 'step') LIMIT $2)
				RETURNING 1)
			UPDATE retentions SET log_events = log_events + (SELECT count(*) FROM gone) WHERE id = $3 AND EXISTS (SELECT FROM gone)`,
			part, pruneEvents, run)
		if err != nil {
			return false, err
		}
		if tag.RowsAffected() == 0 {
			break
		}
	}
	err = s.tx(ctx, func(tx pgx.Tx) error {
		var project, by, plan string
		err := tx.QueryRow(ctx, `UPDATE retentions SET log_runs = log_runs + $2 WHERE id = $1 RETURNING project, requested_by, plan`, run, len(part)).
			Scan(&project, &by, &plan)
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `UPDATE runs SET logs_pruned_at = clock_timestamp() WHERE id = ANY($1)`, part); err != nil {
			return err
		}
		var rows []rowRef
		for _, id := range part {
			rows = append(rows, row("runs", id))
		}
		return s.entry(ctx, tx, pipeline.Entry{Kind: pipeline.EntryRetentionApplied, Project: project, Actor: by, Subject: run,
			Data: data{"removed": "logs", "plan": plan, "runs": part}.json()}, rows...)
	})
	return len(part) == pruneRuns, err
}

// Pruned returns when the image was removed from where it was built; the row is
// locked against its removal until the transaction ends.
func pruned(ctx context.Context, tx pgx.Tx, image int64) (at *time.Time, going bool, err error) {
	err = tx.QueryRow(ctx, `SELECT pruned_at FROM images WHERE id = $1 FOR SHARE`, image).Scan(&at)
	if err != nil {
		return nil, false, err
	}
	err = tx.QueryRow(ctx, `
		SELECT EXISTS (SELECT FROM prunings p JOIN images i ON i.digest = p.digest AND i.project = p.project
		WHERE i.id = $1 AND p.finished_at IS NULL AND cardinality(p.digests) > 0)`, image).Scan(&going)
	return at, going, err
}

// stillThere refuses an image that retention has removed, or is removing.
func stillThere(ctx context.Context, tx pgx.Tx, c candidate) error {
	at, going, err := pruned(ctx, tx, c.image)
	switch {
	case err != nil:
		return err
	case at != nil:
		return fmt.Errorf("it was removed from the registry on %s, as the retention of %s says: retry %s, or push its commit again, and promote what that builds: %w",
			at.UTC().Format(time.DateOnly), c.project, c.run, pipeline.ErrConflict)
	case going:
		return fmt.Errorf("it is being removed from the registry, as the retention of %s says: %w", c.project, pipeline.ErrConflict)
	}
	return nil
}

// errGoing: what is being worked with is being removed. Trying again helps.
var errGoing = errors.New("retention is removing it from the registry at this moment")
