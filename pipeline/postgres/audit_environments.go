package postgres

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

// AuditEnvironment says what an environment held: at a time, or always (newest
// first); or, between two times, which images it held (oldest first), and by which
// packages and findings what it held at the end differs from what it held at the
// beginning. An environment that never was is pipeline.ErrNotFound.
func (s *Store) AuditEnvironment(ctx context.Context, q pipeline.EnvironmentAuditQuery) (out []pipeline.EnvironmentAudit, err error) {
	defer func() { err = wrap(err, "history of environment %.80q of %.80q", q.Environment, q.Project) }()
	if err := q.Check(); err != nil {
		return nil, err
	}
	after := int64(-1)
	if q.Page.After != "" {
		if after, err = strconv.ParseInt(q.Page.After, 10, 64); err != nil || after < 0 {
			return nil, fmt.Errorf("%.80q is not the id of an item: %w", q.Page.After, pipeline.ErrInvalid)
		}
	}
	limit := q.Page.Limit
	if limit <= 0 {
		limit = 50
	}
	limit = min(limit, pipeline.MaxAuditPage)
	err = s.read(ctx, func(tx pgx.Tx) error {
		if err := everWas(ctx, tx, q.Project, q.Environment); err != nil {
			return err
		}
		if q.From != nil {
			out, err = environmentBetween(ctx, tx, q.Project, q.Environment, *q.From, *q.To)
			// The list is of two images at most, and made anew for each page.
			start := min(int(after+1), len(out))
			out = out[start:min(start+limit, len(out))]
			return err
		}
		w := ofEnvironment(q.Project, q.Environment)
		if q.At != nil {
			w.add("s.since <= %s AND (s.until IS NULL OR s.until > %s)", *q.At, *q.At)
		}
		w.addIf(after >= 0, "s.placed < %s", after)
		rows, err := listStays(ctx, tx, w, ` ORDER BY s.placed DESC LIMIT `+w.arg(limit))
		if err != nil {
			return err
		}
		for _, r := range rows {
			out = append(out, held(r, "held", r.placed))
		}
		return nil
	})
	return notNil(out), err
}

// everWas refuses an environment that neither a project has nor anything was promoted to.
func everWas(ctx context.Context, q querier, project, environment string) error {
	var lane bool
	if err := q.QueryRow(ctx, `SELECT EXISTS (SELECT FROM lanes WHERE project = $1 AND environment = $2)`, project, environment).Scan(&lane); err != nil || lane {
		return err
	}
	if existsFor(ctx, q, project, environment) != nil {
		return pipeline.ErrNotFound
	}
	return nil
}

func ofEnvironment(project, environment string) where {
	w := where{}
	w.add("s.project = %s AND s.environment = %s", project, environment)
	return w
}

func held(r stayRow, change string, id int64) pipeline.EnvironmentAudit {
	return pipeline.EnvironmentAudit{ID: strconv.FormatInt(id, 10), Kind: pipeline.AuditedImage, Change: change, Stay: &r.Stay}
}

func environmentBetween(ctx context.Context, tx pgx.Tx, project, environment string, from, to time.Time) (out []pipeline.EnvironmentAudit, err error) {
	w := ofEnvironment(project, environment)
	w.add("s.since <= %s AND (s.until IS NULL OR s.until > %s)", to, from)
	rows, err := listStays(ctx, tx, w, ` ORDER BY s.placed`)
	if err != nil {
		return nil, err
	}
	var before, then int64
	for _, r := range rows {
		change := "entered"
		if !r.Since.After(from) {
			change, before = "held", r.image
		}
		out = append(out, held(r, change, int64(len(out))))
		then = r.image
	}
	if before == then {
		return out, nil
	}
	packages, err := tx.Query(ctx, `
		WITH side AS (
			SELECT x.image, p.name, p.type, string_agg(DISTINCT p.version, ', ' ORDER BY p.version) AS versions
			FROM image_packages x JOIN packages p ON p.id = x.package WHERE x.image = ANY(ARRAY[$1, $2]::bigint[]) GROUP BY x.image, p.name, p.type)
		SELECT coalesce(a.name, b.name), coalesce(a.type, b.type), coalesce(a.versions, ''), coalesce(b.versions, '')
		FROM (SELECT * FROM side WHERE image = $1) a FULL JOIN (SELECT * FROM side WHERE image = $2) b ON a.name = b.name AND a.type = b.type
		WHERE a.versions IS DISTINCT FROM b.versions ORDER BY 1, 2`, before, then)
	if err != nil {
		return nil, err
	}
	changed, err := pgx.CollectRows(packages, func(row pgx.CollectableRow) (c pipeline.EnvironmentAudit, err error) {
		c.Kind = pipeline.AuditedPackage
		return c, row.Scan(&c.Name, &c.Type, &c.From, &c.To)
	})
	if err != nil {
		return nil, wrap(err, "packages")
	}
	findings, err := tx.Query(ctx, `
		WITH side AS (
			SELECT i.id AS image, f.id, f.package, max(f.severity) AS severity, string_agg(DISTINCT f.version, ', ' ORDER BY f.version) AS versions
			FROM images i JOIN findings f ON f.run = i.newest AND f.gone_at IS NULL WHERE i.id = ANY(ARRAY[$1, $2]::bigint[]) GROUP BY i.id, f.id, f.package)
		SELECT coalesce(a.id, b.id), coalesce(a.package, b.package), coalesce(b.severity, a.severity), coalesce(a.versions, ''), coalesce(b.versions, '')
		FROM (SELECT * FROM side WHERE image = $1) a FULL JOIN (SELECT * FROM side WHERE image = $2) b ON a.id = b.id AND a.package = b.package
		WHERE a.id IS NULL OR b.id IS NULL ORDER BY 3 DESC, 1, 2`, before, then)
	if err != nil {
		return nil, err
	}
	found, err := pgx.CollectRows(findings, func(row pgx.CollectableRow) (c pipeline.EnvironmentAudit, err error) {
		c.Kind = pipeline.AuditedFinding
		return c, row.Scan(&c.Name, &c.Package, (*int)(&c.Severity), &c.From, &c.To)
	})
	if err != nil {
		return nil, wrap(err, "findings")
	}
	for _, c := range slices.Concat(changed, found) {
		c.ID = strconv.Itoa(len(out))
		switch {
		case strings.TrimSpace(c.From) == "":
			c.Change = "added"
		case c.To == "":
			c.Change = "removed"
		default:
			c.Change = "changed"
		}
		out = append(out, c)
	}
	return out, nil
}
