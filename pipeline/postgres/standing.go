package postgres

import (
	"context"
	"encoding/json"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

const (
	// maxPushes bounds how far back pushes are listed.
	maxPushes = 500
	// expiredFor is how long it is said of an exception that it has expired.
	expiredFor = 30 * 24 * time.Hour
)

// Standing implements pipeline.Store. With an empty environment it is what the
// gate of a project's builds looks at.
func (s *Store) Standing(ctx context.Context, name, environment string, d pipeline.Digest) (st pipeline.Standing, err error) {
	err = s.read(ctx, func(tx pgx.Tx) error {
		if err := tx.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&st.Now); err != nil {
			return err
		}
		st.Now = st.Now.UTC()
		settings, err := project(ctx, tx, name)
		if err != nil {
			return err
		}
		if st.Reached, err = reached(ctx, tx, settings, d); err != nil {
			return wrap(err, "environments reached")
		}
		withdrawn, err := withdrawnImages(ctx, tx, name, environment)
		if err != nil {
			return wrap(err, "what was withdrawn")
		}
		if st.Current, err = currentImage(ctx, tx, name, environment); err != nil {
			return wrap(err, "what it holds")
		}
		digests := append([]string{string(d)}, withdrawn...)
		if st.Current != nil {
			digests = append(digests, string(st.Current.Image.Digest))
		}
		versions, err := imageVersions(ctx, tx, name, digests...)
		if err != nil {
			return err
		}
		st.Versions = versions[d]
		if st.Current != nil {
			st.Current.Versions = notNil(versions[st.Current.Image.Digest])
		}
		for _, w := range withdrawn {
			st.Withdrawn = append(st.Withdrawn, versions[pipeline.Digest(w)]...)
		}
		if st.Exceptions, err = exceptions(ctx, tx, forGates(name), 0); err != nil {
			return wrap(err, "exceptions")
		}
		w := where{}
		w.add("project = %s AND revoked_at IS NULL", name)
		if st.VEX, err = vexDocuments(ctx, tx, w, 0); err != nil {
			return wrap(err, "VEX documents")
		}
		st.Pushes, err = pushes(ctx, tx, name)
		return wrap(err, "pushes")
	})
	return st, wrap(err, "standing of %s in %s of %s", d, environment, name)
}

// reached lists the project's environments that the digest was promoted to, in
// the settings' order.
func reached(ctx context.Context, q querier, p pipeline.Project, d pipeline.Digest) ([]pipeline.ReachedFact, error) {
	rows, err := q.Query(ctx, `
		WITH image AS (SELECT id FROM images WHERE project = $1 AND digest = $2)
		SELECT p.environment, p.image = image.id, j.finished_at, l.current = p.id
		FROM image JOIN promotions p ON p.placed IS NOT NULL AND (p.image = image.id OR (p.replaced = image.id AND p.action = 'rollback'))
		JOIN jobs j ON j.id = p.id JOIN lanes l ON l.project = p.project AND l.environment = p.environment
		ORDER BY p.environment, p.placed`, p.Name, string(d))
	if err != nil {
		return nil, err
	}
	found := map[string]*pipeline.ReachedFact{}
	var environment string
	var arrived, current bool
	var at time.Time
	_, err = pgx.ForEachRow(rows, []any{&environment, &arrived, &at, &current}, func() error {
		f := found[environment]
		switch {
		case !arrived && f != nil: // it was rolled back from
			f.Withdrawn = true
		case !arrived:
		case f == nil:
			f = &pipeline.ReachedFact{Environment: environment, Since: at.UTC()}
			found[environment] = f
		case f.Withdrawn:
			f.Since, f.Withdrawn = at.UTC(), false
		}
		if f != nil {
			f.Current = arrived && current
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var out []pipeline.ReachedFact
	for _, e := range p.Environments {
		if f := found[e.Name]; f != nil {
			out = append(out, *f)
		}
	}
	return out, nil
}

// withdrawnImages are the digests that the environment was rolled back from and
// that were not promoted to it again.
func withdrawnImages(ctx context.Context, q querier, project, environment string) ([]string, error) {
	rows, err := q.Query(ctx, `
		SELECT DISTINCT i.digest FROM promotions r JOIN images i ON i.id = r.replaced
		WHERE r.project = $1 AND r.environment = $2 AND r.placed IS NOT NULL AND r.action = 'rollback'
		AND NOT EXISTS (SELECT FROM promotions p WHERE p.image = r.replaced AND p.project = r.project AND p.environment = r.environment AND p.placed > r.placed)
		ORDER BY i.digest`, project, environment)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// selectPlaced is what an environment holds, without the versions.
const selectPlaced = `
	SELECT l.environment, p.id, pl.repository, i.digest, r.commit_sha, j.finished_at, p.requested_by, p.action
	FROM lanes l JOIN promotions p ON p.id = l.current JOIN jobs j ON j.id = p.id
	JOIN placements pl ON pl.promotion = p.id JOIN images i ON i.id = p.image JOIN image_records r ON r.run = i.newest `

func scanPlaced(row pgx.CollectableRow) (environment string, p pipeline.PlacedImage, err error) {
	err = row.Scan(&environment, (*string)(&p.Promotion), &p.Image.Repository, (*string)(&p.Image.Digest), &p.Commit, &p.Since, &p.By, &p.Action)
	p.Since, p.Versions = p.Since.UTC(), []string{}
	return environment, p, err
}

// currentImage is nil when the environment is empty.
func currentImage(ctx context.Context, q querier, project, environment string) (*pipeline.PlacedImage, error) {
	rows, err := q.Query(ctx, selectPlaced+`WHERE l.project = $1 AND l.environment = $2`, project, environment)
	if err != nil {
		return nil, err
	}
	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*pipeline.PlacedImage, error) {
		_, p, err := scanPlaced(row)
		return &p, err
	})
	if err != nil || len(found) == 0 {
		return nil, err
	}
	return found[0], nil
}

// pushes are the events of the project that started a run, newest first: each
// of them once, whatever was delivered again or retried.
func pushes(ctx context.Context, q querier, project string) ([]pipeline.Event, error) {
	rows, err := q.Query(ctx, `
		SELECT r.event FROM jobs j JOIN runs r ON r.id = j.id AND r.event_key IS NOT NULL
		WHERE j.kind = 'run' AND j.project = $1 ORDER BY j.id DESC LIMIT $2`, project, maxPushes)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (e pipeline.Event, err error) {
		var doc json.RawMessage
		if err := row.Scan(&doc); err != nil {
			return e, err
		}
		return e, json.Unmarshal(doc, &e)
	})
}
