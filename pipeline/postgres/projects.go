package postgres

import (
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
// Settings that changed become a new version; the earlier ones are kept. A
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
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, lockKey("sync", "projects")); err != nil {
			return err
		}
		names := make([]string, 0, len(projects))
		for _, p := range projects {
			names = append(names, p.Name)
			if err := syncProject(ctx, tx, p); err != nil {
				return wrap(err, "project %s", p.Name)
			}
		}
		_, err := tx.Exec(ctx, `UPDATE projects SET active = name = ANY($1) WHERE active <> (name = ANY($1))`, names)
		return err
	})
	return wrap(err, "sync projects")
}

func syncProject(ctx context.Context, tx pgx.Tx, p pipeline.Project) error {
	settings, err := document(p)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(settings)
	digest := "sha256:" + hex.EncodeToString(sum[:])
	var version int
	var have string
	err = tx.QueryRow(ctx, `
		SELECT p.version, v.digest FROM projects p JOIN project_versions v ON v.project = p.name AND v.version = p.version
		WHERE p.name = $1`, p.Name).Scan(&version, &have)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return err
	}
	if have == digest {
		return nil
	}
	version++
	_, err = tx.Exec(ctx, `
		INSERT INTO projects (name, version) VALUES ($1, $2)
		ON CONFLICT (name) DO UPDATE SET version = excluded.version`, p.Name, version)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `INSERT INTO project_versions (project, version, digest, settings) VALUES ($1, $2, $3, $4)`,
		p.Name, version, digest, settings)
	return err
}

// Project implements pipeline.Store.
func (s *Store) Project(ctx context.Context, name string) (pipeline.Project, error) {
	return project(ctx, s.pool, name)
}

func project(ctx context.Context, q querier, name string) (p pipeline.Project, err error) {
	var settings json.RawMessage
	err = q.QueryRow(ctx, `
		SELECT v.settings FROM projects p JOIN project_versions v ON v.project = p.name AND v.version = p.version
		WHERE p.name = $1 AND p.active`, name).Scan(&settings)
	if errors.Is(err, pgx.ErrNoRows) {
		return p, fmt.Errorf("project %q is not in the settings: %w", name, pipeline.ErrNotFound)
	}
	if err != nil {
		return p, wrap(err, "project %s", name)
	}
	if err := json.Unmarshal(settings, &p); err != nil {
		return p, wrap(err, "project %s: read its settings", name)
	}
	return p, nil
}
