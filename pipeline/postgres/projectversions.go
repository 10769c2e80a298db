package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

// lockProjects excludes others who make versions, until the transaction ends.
func lockProjects(ctx context.Context, tx pgx.Tx) error {
	_, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, lockKey("sync", "projects"))
	return wrap(err, "lock the projects")
}

const selectVersions = `SELECT v.version, v.digest, v.settings, v.applied_by, v.created_at FROM project_versions v `

func scanVersion(row pgx.CollectableRow) (v pipeline.ProjectVersion, err error) {
	var settings json.RawMessage
	if err := row.Scan(&v.Version, (*string)(&v.Digest), &settings, &v.AppliedBy, &v.AppliedAt); err != nil {
		return v, err
	}
	v.AppliedAt = v.AppliedAt.UTC()
	if err := json.Unmarshal(settings, &v.Project); err != nil {
		return v, err
	}
	v.Project.Version = v.Version
	return v, nil
}

func oneVersion(ctx context.Context, q querier, sql string, args ...any) (pipeline.ProjectVersion, error) {
	rows, err := q.Query(ctx, selectVersions+sql, args...)
	if err != nil {
		return pipeline.ProjectVersion{}, err
	}
	v, err := pgx.CollectExactlyOneRow(rows, scanVersion)
	if errors.Is(err, pgx.ErrNoRows) {
		err = pipeline.ErrNotFound
	}
	return v, err
}

// newestVersion is the one in force, or was until the project left the settings.
func newestVersion(ctx context.Context, q querier, name string) (pipeline.ProjectVersion, error) {
	return oneVersion(ctx, q, `JOIN projects p ON p.name = v.project AND p.version = v.version WHERE p.name = $1`, name)
}

// Projects lists the versions that are in force, by name.
func (s *Store) Projects(ctx context.Context) ([]pipeline.ProjectVersion, error) {
	rows, err := s.pool.Query(ctx, selectVersions+`JOIN projects p ON p.name = v.project AND p.version = v.version WHERE p.active ORDER BY p.name`)
	if err != nil {
		return nil, wrap(err, "list projects")
	}
	out, err := pgx.CollectRows(rows, scanVersion)
	return notNil(out), wrap(err, "list projects")
}

// ProjectVersion returns one version of a project, or with 0 the one in force.
func (s *Store) ProjectVersion(ctx context.Context, name string, version int) (v pipeline.ProjectVersion, err error) {
	if version == 0 {
		v, err = oneVersion(ctx, s.pool, `JOIN projects p ON p.name = v.project AND p.version = v.version WHERE p.name = $1 AND p.active`, name)
		return v, wrap(err, "project %.80q", name)
	}
	v, err = oneVersion(ctx, s.pool, `WHERE v.project = $1 AND v.version = $2`, name, version)
	return v, wrap(err, "version %d of project %.80q", version, name)
}

// ProjectVersions lists a project's versions, newest first, at most limit that
// are older than before (0: from the newest).
func (s *Store) ProjectVersions(ctx context.Context, name string, before, limit int) ([]pipeline.ProjectVersion, error) {
	limit, _ = page(pipeline.Page{Limit: limit})
	w := where{}
	w.add("v.project = %s", name)
	w.addIf(before > 0, "v.version < %s", before)
	rows, err := s.pool.Query(ctx, selectVersions+w.sql()+` ORDER BY v.version DESC LIMIT `+w.arg(limit), w.args...)
	if err != nil {
		return nil, wrap(err, "versions of project %.80q", name)
	}
	out, err := pgx.CollectRows(rows, scanVersion)
	if err == nil && len(out) == 0 && before == 0 {
		err = pipeline.ErrNotFound
	}
	return notNil(out), wrap(err, "versions of project %.80q", name)
}

// ApplyProject makes the settings the ones in force, but for what the settings
// file says of the project. What is in force already makes no new version, also
// if c.Base is older: whoever tries again after a broken connection is told
// that it is done.
func (s *Store) ApplyProject(ctx context.Context, c pipeline.ProjectChange) (v pipeline.ProjectVersion, changed bool, err error) {
	name := c.Project.Name
	defer func() { err = wrap(err, "apply project %.80q", name) }()
	if c.AppliedBy == "" || c.Base < 0 {
		return v, false, fmt.Errorf("who applies it is required, and a base that is not below 0: %w", pipeline.ErrInvalid)
	}
	err = s.tx(ctx, func(tx pgx.Tx) error {
		if err := lockProjects(ctx, tx); err != nil {
			return err
		}
		now, err := project(ctx, tx, name)
		if err != nil {
			return err
		}
		next := owned(c.Project, now)
		next.Expand()
		if err := next.Check(); err != nil {
			return err
		}
		var version int
		if version, changed, err = s.applyVersion(ctx, tx, next, c.AppliedBy, originAPI); err != nil {
			return err
		}
		if changed && c.Base != 0 && c.Base != now.Version {
			return fmt.Errorf("it was made on version %d, and version %d is in force by now: look at what changed and apply it again: %w",
				c.Base, now.Version, pipeline.ErrConflict)
		}
		v, err = oneVersion(ctx, tx, `WHERE v.project = $1 AND v.version = $2`, name, version)
		return err
	})
	if err != nil {
		return pipeline.ProjectVersion{}, false, err
	}
	return v, changed, nil
}
