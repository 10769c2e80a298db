package apitest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dray-project/dray/pipeline"
)

// AddProject adds a version of a project's settings.
func (s *Store) AddProject(p pipeline.Project, by string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addProject(p, by)
}

func (s *Store) addProject(p pipeline.Project, by string) pipeline.ProjectVersion {
	v := pipeline.ProjectVersion{Project: p, Version: len(s.projects[p.Name]) + 1, AppliedBy: by, AppliedAt: Clock}
	v.Project.Version = 0 // it does not travel
	v.Digest = Digest(fmt.Sprintf("%x", v.Version%16))
	s.projects[p.Name] = append(s.projects[p.Name], v)
	return v
}

// SetEnvironments says what a project's environments have.
func (s *Store) SetEnvironments(project string, states []pipeline.EnvironmentState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.states[project] = states
}

// Projects lists the newest version of each.
func (s *Store) Projects(ctx context.Context) (out []pipeline.ProjectVersion, err error) {
	err = s.do(ctx, "Projects", func() error {
		for _, versions := range s.projects {
			out = append(out, versions[len(versions)-1])
		}
		slices.SortFunc(out, func(a, b pipeline.ProjectVersion) int { return strings.Compare(a.Project.Name, b.Project.Name) })
		return nil
	})
	return out, err
}

// ProjectVersion returns one version.
func (s *Store) ProjectVersion(ctx context.Context, name string, version int) (v pipeline.ProjectVersion, err error) {
	err = s.do(ctx, "ProjectVersion", func() error {
		versions := s.projects[name]
		if version == 0 {
			version = len(versions)
		}
		if version < 1 || version > len(versions) {
			return fmt.Errorf("project %s, version %d: %w", name, version, pipeline.ErrNotFound)
		}
		v = versions[version-1]
		return nil
	})
	return v, err
}

// ProjectVersions lists them, newest first.
func (s *Store) ProjectVersions(ctx context.Context, name string, before, limit int) (out []pipeline.ProjectVersion, err error) {
	err = s.do(ctx, "ProjectVersions", func() error {
		for _, v := range slices.Backward(s.projects[name]) {
			if (before == 0 || v.Version < before) && len(out) < limit {
				out = append(out, v)
			}
		}
		return nil
	})
	return out, err
}

// ApplyProject makes a new version.
func (s *Store) ApplyProject(ctx context.Context, c pipeline.ProjectChange) (v pipeline.ProjectVersion, changed bool, err error) {
	err = s.do(ctx, "ApplyProject", func() error {
		versions := s.projects[c.Project.Name]
		if len(versions) == 0 {
			return fmt.Errorf("project %s: %w", c.Project.Name, pipeline.ErrNotFound)
		}
		v = versions[len(versions)-1]
		if c.Base != 0 && c.Base != v.Version {
			return fmt.Errorf("project %s is at version %d: %w", c.Project.Name, v.Version, pipeline.ErrConflict)
		}
		have, err := json.Marshal(v.Project)
		if err != nil {
			return err
		}
		want, err := json.Marshal(c.Project)
		if err != nil {
			return err
		}
		if bytes.Equal(have, want) {
			return nil
		}
		v, changed = s.addProject(c.Project, c.AppliedBy), true
		return nil
	})
	return v, changed, err
}

// Environments returns what SetEnvironments said.
func (s *Store) Environments(ctx context.Context, project string) (out []pipeline.EnvironmentState, err error) {
	err = s.do(ctx, "Environments", func() error {
		out = slices.Clone(s.states[project])
		return nil
	})
	return out, err
}

// AddException keeps an exception of a project and an environment that exist.
func (s *Store) AddException(ctx context.Context, e pipeline.Exception) (pipeline.Exception, error) {
	err := s.do(ctx, "AddException", func() error {
		if err := e.Check(Clock); err != nil {
			return err
		}
		versions := s.projects[e.Project]
		if len(versions) == 0 {
			return fmt.Errorf("no project %s: %w", e.Project, pipeline.ErrInvalid)
		}
		if _, ok := versions[len(versions)-1].Project.Environment(e.Environment); e.Environment != "" && !ok {
			return fmt.Errorf("project %s has no environment %s: %w", e.Project, e.Environment, pipeline.ErrInvalid)
		}
		if e.ID == "" {
			e.ID, e.CreatedAt = pipeline.NewExceptionID(Clock), Clock
		}
		s.exceptions = append(s.exceptions, e)
		return nil
	})
	return e, err
}

// Exceptions lists exceptions, newest first.
func (s *Store) Exceptions(ctx context.Context, project string, all bool, page pipeline.Page) (out []pipeline.Exception, err error) {
	err = s.do(ctx, "Exceptions", func() error {
		var some []pipeline.Exception
		for _, e := range s.exceptions {
			if e.Project == project && (all || e.RevokedAt == nil && e.ExpiresAt.After(Clock)) {
				some = append(some, e)
			}
		}
		out = cut(some, page, func(e pipeline.Exception) string { return e.ID })
		return nil
	})
	return out, err
}

// RevokeException takes one back.
func (s *Store) RevokeException(ctx context.Context, project, id, by string) (e pipeline.Exception, err error) {
	err = s.do(ctx, "RevokeException", func() error {
		for i := range s.exceptions {
			if e = s.exceptions[i]; e.ID == id && e.Project == project {
				if e.RevokedAt == nil {
					e.RevokedAt, e.RevokedBy = at(500), by
					s.exceptions[i] = e
				}
				return nil
			}
		}
		return fmt.Errorf("exception %s of project %s: %w", id, project, pipeline.ErrNotFound)
	})
	return e, err
}

// AddVEX keeps a document.
func (s *Store) AddVEX(ctx context.Context, d pipeline.VEXDocument) (pipeline.VEXDocument, error) {
	err := s.do(ctx, "AddVEX", func() error {
		if d.ID == "" {
			d.ID = pipeline.NewVEXID(Clock)
		}
		s.vex = append(s.vex, d)
		return nil
	})
	return d, err
}

// VEXDocuments lists documents, newest first.
func (s *Store) VEXDocuments(ctx context.Context, project string, all bool, page pipeline.Page) (out []pipeline.VEXDocument, err error) {
	err = s.do(ctx, "VEXDocuments", func() error {
		var some []pipeline.VEXDocument
		for _, d := range s.vex {
			if d.Project == project && (all || d.RevokedAt == nil) {
				some = append(some, d)
			}
		}
		out = cut(some, page, func(d pipeline.VEXDocument) string { return d.ID })
		return nil
	})
	return out, err
}

// RevokeVEX takes one back.
func (s *Store) RevokeVEX(ctx context.Context, project, id, by string) (d pipeline.VEXDocument, err error) {
	err = s.do(ctx, "RevokeVEX", func() error {
		for i := range s.vex {
			if d = s.vex[i]; d.ID == id && d.Project == project {
				if d.RevokedAt == nil {
					d.RevokedAt, d.RevokedBy = at(500), by
					s.vex[i] = d
				}
				return nil
			}
		}
		return fmt.Errorf("VEX document %s of project %s: %w", id, project, pipeline.ErrNotFound)
	})
	return d, err
}

// AddDrift and AddRegistry add what they say.
func (s *Store) AddDrift(d pipeline.Drift) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drifts = append(s.drifts, d)
}

// AddRegistry adds what a probe learnt.
func (s *Store) AddRegistry(r pipeline.RegistryProbe) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.registries = append(s.registries, r)
}

// Drifts lists drifts, newest first.
func (s *Store) Drifts(ctx context.Context, project string, all bool, page pipeline.Page) (out []pipeline.Drift, err error) {
	err = s.do(ctx, "Drifts", func() error {
		var some []pipeline.Drift
		for _, d := range s.drifts {
			if (project == "" || d.Project == project) && (all || d.RepairedAt == nil && d.ResolvedAt == nil) {
				some = append(some, d)
			}
		}
		out = cut(some, page, func(d pipeline.Drift) string { return d.ID })
		return nil
	})
	return out, err
}

// Rematches lists one pass.
func (s *Store) Rematches(ctx context.Context, page pipeline.Page) (out []pipeline.RematchPass, err error) {
	err = s.do(ctx, "Rematches", func() error {
		end := Clock.Add(1500 * time.Millisecond)
		out = cut([]pipeline.RematchPass{{ID: "rmt_00000000000000000002", StartedAt: Clock, FinishedAt: &end, Images: 12, Unaffected: 9, Changed: 2, Appeared: 3, Gone: 1, Refused: 1,
			Database: pipeline.VulnerabilityDatabase{Reference: "mirror.example/trivy-db:2", Digest: Digest("d"), UpdatedAt: Clock}}},
			page, func(p pipeline.RematchPass) string { return string(p.ID) })
		return nil
	})
	return out, err
}

// Registries lists what was learnt.
func (s *Store) Registries(ctx context.Context) (out []pipeline.RegistryProbe, err error) {
	err = s.do(ctx, "Registries", func() error {
		out = slices.Clone(s.registries)
		return nil
	})
	return out, err
}
