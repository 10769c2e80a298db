package postgres

import (
	"context"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

// Environments says what each of a project's environments holds, in the order
// of its settings, and who is on the way in.
func (s *Store) Environments(ctx context.Context, name string) (out []pipeline.EnvironmentState, err error) {
	err = s.read(ctx, func(tx pgx.Tx) error {
		settings, err := project(ctx, tx, name)
		if err != nil {
			return err
		}
		out = []pipeline.EnvironmentState{}
		for _, e := range settings.Environments {
			out = append(out, pipeline.EnvironmentState{Project: name, Environment: e.Name, Repository: e.Repository, Waiting: []pipeline.PromotionID{}})
		}
		if err := fillCurrent(ctx, tx, name, out); err != nil {
			return err
		}
		return fillOpen(ctx, tx, name, out)
	})
	return out, wrap(err, "environments of %s", name)
}

func environmentOf(states []pipeline.EnvironmentState, name string) *pipeline.EnvironmentState {
	i := slices.IndexFunc(states, func(s pipeline.EnvironmentState) bool { return s.Environment == name })
	if i < 0 {
		return &pipeline.EnvironmentState{} // the settings do not have it any more
	}
	return &states[i]
}

func fillCurrent(ctx context.Context, q querier, project string, states []pipeline.EnvironmentState) error {
	rows, err := q.Query(ctx, selectPlaced+`WHERE l.project = $1`, project)
	if err != nil {
		return err
	}
	var digests []string
	_, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (struct{}, error) {
		environment, p, err := scanPlaced(row)
		environmentOf(states, environment).Current = &p
		digests = append(digests, string(p.Image.Digest))
		return struct{}{}, err
	})
	if err != nil || len(digests) == 0 {
		return err
	}
	versions, err := imageVersions(ctx, q, project, digests...)
	for i := range states {
		if c := states[i].Current; c != nil {
			c.Versions = notNil(versions[c.Image.Digest])
		}
	}
	return err
}

func fillOpen(ctx context.Context, q querier, project string, states []pipeline.EnvironmentState) error {
	rows, err := q.Query(ctx, `
		SELECT p.environment, p.id, coalesce(l.inside = p.id, false)
		FROM jobs j JOIN promotions p ON p.id = j.id JOIN lanes l ON l.project = p.project AND l.environment = p.environment
		WHERE j.kind = 'promotion' AND j.project = $1 AND j.state IN ('queued', 'running', 'waiting')
		ORDER BY j.created_at, j.id`, project)
	if err != nil {
		return err
	}
	var environment string
	var id pipeline.PromotionID
	var inside bool
	_, err = pgx.ForEachRow(rows, []any{&environment, (*string)(&id), &inside}, func() error {
		if e := environmentOf(states, environment); inside {
			e.Entering = id
		} else {
			e.Waiting = append(e.Waiting, id)
		}
		return nil
	})
	return err
}
