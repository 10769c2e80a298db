package postgres

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

// SyncProjects makes these projects, with these settings, the ones in force.
// Settings that changed become a new version; the earlier ones are kept. Once
// settings were applied through the API, the file speaks only of where a project
// comes from and where its builds go; the rest stays as it was applied. A
// project that is not among them any more keeps its history and starts nothing
// new.
func (s *Store) SyncProjects(ctx context.Context, projects []pipeline.Project) error {
	seen := map[string]bool{}
	for _, p := range projects {
		if p.Name == "" || seen[p.Name] {
			return fmt.Errorf("sync projects: name %q is empty or there twice: %w", p.Name, pipeline.ErrInvalid)
		}
		seen[p.Name] = true
	}
	err := s.tx(ctx, func(tx pgx.Tx) error {
		// Several processes start at the same time, in any order of projects.
		if err := lockProjects(ctx, tx); err != nil {
			return err
		}
		names := make([]string, 0, len(projects))
		for _, p := range projects {
			names = append(names, p.Name)
			if err := s.syncProject(ctx, tx, p); err != nil {
				return wrap(err, "project %s", p.Name)
			}
		}
		return s.activate(ctx, tx, names)
	})
	return wrap(err, "sync projects")
}

// activate makes these the projects that are in force.
func (s *Store) activate(ctx context.Context, tx pgx.Tx, names []string) error {
	rows, err := tx.Query(ctx, `
		UPDATE projects SET active = name = ANY($1) WHERE active <> (name = ANY($1)) RETURNING name, version, active`, names)
	if err != nil {
		return err
	}
	type change struct {
		Name    string
		Version int
		Active  bool
	}
	changes, err := pgx.CollectRows(rows, pgx.RowToStructByPos[change])
	if err != nil {
		return err
	}
	for _, c := range changes {
		err := s.entry(ctx, tx, pipeline.Entry{Kind: pipeline.EntryProjectApplied, Project: c.Name, Actor: settingsFile,
			Data: data{"version": c.Version, "active": c.Active, "origin": originSettings}.json()}, row("projects", c.Name))
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) syncProject(ctx context.Context, tx pgx.Tx, p pipeline.Project) error {
	var applied bool
	err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM project_versions WHERE project = $1 AND origin = 'api')`, p.Name).Scan(&applied)
	if err != nil {
		return err
	}
	if applied {
		now, err := newestVersion(ctx, tx, p.Name)
		if err != nil {
			return err
		}
		p = owned(now.Project, p)
	}
	_, _, err = s.applyVersion(ctx, tx, p, settingsFile, originSettings)
	return err
}

// owned is a project with what the settings file says of it, which nobody can
// change through the API.
func owned(p, file pipeline.Project) pipeline.Project {
	p.Name, p.Forge, p.Source, p.CloneURL = file.Name, file.Forge, file.Source, file.CloneURL
	p.Repository, p.CacheRepository = file.Repository, file.CacheRepository
	return p
}

// Where a version comes from.
const (
	settingsFile   = "settings" // in place of who applied it
	originSettings = "settings"
	originAPI      = "api"
)

// applyVersion makes the settings a new version and the one in force, unless
// they are already. The caller holds what excludes others.
func (s *Store) applyVersion(ctx context.Context, tx pgx.Tx, p pipeline.Project, by, origin string) (version int, changed bool, err error) {
	settings, err := document(p)
	if err != nil {
		return 0, false, err
	}
	if bytes.Contains(settings, []byte(`\u0000`)) {
		return 0, false, fmt.Errorf("settings with a NUL in them: %w", pipeline.ErrInvalid)
	}
	sum := sha256.Sum256(settings)
	digest := "sha256:" + hex.EncodeToString(sum[:])
	var newest int
	var have string
	err = tx.QueryRow(ctx, `
		SELECT p.version, v.digest FROM projects p JOIN project_versions v ON v.project = p.name AND v.version = p.version
		WHERE p.name = $1`, p.Name).Scan(&newest, &have)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return 0, false, err
	}
	if have == digest {
		return newest, false, nil
	}
	version = newest + 1
	_, err = tx.Exec(ctx, `
		INSERT INTO projects (name, version) VALUES ($1, $2)
		ON CONFLICT (name) DO UPDATE SET version = excluded.version`, p.Name, version)
	if err != nil {
		return 0, false, err
	}
	_, err = tx.Exec(ctx, `
		INSERT INTO project_versions (project, version, digest, settings, applied_by, origin, created_at)
		VALUES ($1, $2, $3, $4, $5, $6, clock_timestamp())`, p.Name, version, digest, settings, clean(by), origin)
	if err != nil {
		return 0, false, err
	}
	return version, true, s.entry(ctx, tx, pipeline.Entry{Kind: pipeline.EntryProjectApplied, Project: p.Name, Actor: by,
		Data: data{"version": version, "digest": digest, "origin": origin}.json()}, row("projects", p.Name), row("project_versions", p.Name, version))
}

// Project implements pipeline.Store.
func (s *Store) Project(ctx context.Context, name string) (pipeline.Project, error) {
	return project(ctx, s.pool, name)
}

func project(ctx context.Context, q querier, name string) (p pipeline.Project, err error) {
	var settings json.RawMessage
	var version int
	err = q.QueryRow(ctx, `
		SELECT v.settings, v.version FROM projects p JOIN project_versions v ON v.project = p.name AND v.version = p.version
		WHERE p.name = $1 AND p.active`, name).Scan(&settings, &version)
	if errors.Is(err, pgx.ErrNoRows) {
		return p, fmt.Errorf("project %q is not in the settings: %w", name, pipeline.ErrNotFound)
	}
	if err != nil {
		return p, wrap(err, "project %s", name)
	}
	if err := json.Unmarshal(settings, &p); err != nil {
		return p, wrap(err, "project %s: read its settings", name)
	}
	p.Version = version
	return p, nil
}
