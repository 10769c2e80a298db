package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

var exceptionColumns = exceptionColumnsOf("exceptions")

// exceptionColumnsOf are those of a table that goes by another name.
func exceptionColumnsOf(alias string) string {
	return fmt.Sprintf(`%[1]s.id, %[1]s.project, %[1]s.environment, %[1]s.image, %[1]s.finding, %[1]s.package, %[1]s.reason, %[1]s.author,
		%[1]s.created_at, %[1]s.expires_at, %[1]s.revoked_at, coalesce(%[1]s.revoked_by, '')`, alias)
}

func scanException(row pgx.CollectableRow) (pipeline.Exception, error) {
	return scanExceptionAfter(row)
}

// scanExceptionAfter reads a row of other columns and then an exception's.
func scanExceptionAfter(row pgx.CollectableRow, before ...any) (e pipeline.Exception, err error) {
	err = row.Scan(append(before, &e.ID, &e.Project, &e.Environment, (*string)(&e.Image), &e.Finding, &e.Package, &e.Reason, &e.Author,
		&e.CreatedAt, &e.ExpiresAt, &e.RevokedAt, &e.RevokedBy)...)
	e.CreatedAt, e.ExpiresAt, e.RevokedAt = e.CreatedAt.UTC(), e.ExpiresAt.UTC(), utc(e.RevokedAt)
	return e, err
}

// exceptions lists them newest first; a limit of 0 is none.
func exceptions(ctx context.Context, q querier, w where, limit int) ([]pipeline.Exception, error) {
	sql := `SELECT ` + exceptionColumns + ` FROM exceptions` + w.sql() + ` ORDER BY id DESC`
	if limit > 0 {
		sql += ` LIMIT ` + w.arg(limit)
	}
	rows, err := q.Query(ctx, sql, w.args...)
	if err != nil {
		return nil, err
	}
	out, err := pgx.CollectRows(rows, scanException)
	return notNil(out), err
}

// forGates selects what gates look at: what is in force, and what has expired
// not long ago.
func forGates(project string) where {
	w := where{}
	w.add("project = %s AND revoked_at IS NULL AND expires_at > clock_timestamp() - %s::interval", project, expiredFor)
	return w
}

// AddException checks and keeps an exception, with an id and a time of its own.
// A project or an environment that does not exist is pipeline.ErrInvalid.
func (s *Store) AddException(ctx context.Context, e pipeline.Exception) (out pipeline.Exception, err error) {
	defer func() { err = wrap(err, "add an exception for %.80q in %.80q", e.Finding, e.Project) }()
	err = s.tx(ctx, func(tx pgx.Tx) error {
		var now time.Time
		if err := tx.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&now); err != nil {
			return err
		}
		if err := e.Check(now); err != nil {
			return err
		}
		if len(e.Reason) > maxText || len(e.Package) > maxText {
			return fmt.Errorf("a reason or a package has at most %d bytes: %w", maxText, pipeline.ErrInvalid)
		}
		if err := existsFor(ctx, tx, e.Project, e.Environment); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, `
			INSERT INTO exceptions (id, project, environment, image, finding, package, reason, author, created_at, expires_at)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) RETURNING `+exceptionColumns,
			pipeline.NewExceptionID(now), e.Project, e.Environment, string(e.Image), clean(e.Finding), clean(e.Package), clean(e.Reason), clean(e.Author), now, e.ExpiresAt)
		if err != nil {
			return err
		}
		if out, err = pgx.CollectExactlyOneRow(rows, scanException); err != nil {
			return err
		}
		return s.entry(ctx, tx, pipeline.Entry{Kind: pipeline.EntryExceptionAdded, Project: out.Project, Actor: out.Author, Subject: out.ID,
			Image: out.Image, Data: data{"environment": out.Environment, "finding": out.Finding, "package": short(out.Package),
				"reason": short(out.Reason), "expiresAt": out.ExpiresAt}.json()}, row("exceptions", out.ID))
	})
	return out, err
}

// existsFor refuses a project that does not exist, or an environment, if one is
// named, that it does not have.
func existsFor(ctx context.Context, q querier, name, environment string) error {
	_, err := project(ctx, q, name)
	if errors.Is(err, pipeline.ErrNotFound) {
		return fmt.Errorf("there is no project %.80q: %w", name, pipeline.ErrInvalid)
	}
	if err != nil || environment == "" {
		return err
	}
	return hasEnvironment(ctx, q, name, environment)
}

// Exceptions lists them, newest first; an empty project means all. all includes
// those that expired or were revoked.
func (s *Store) Exceptions(ctx context.Context, project string, all bool, p pipeline.Page) ([]pipeline.Exception, error) {
	limit, after := page(p)
	w := where{}
	w.addIf(project != "", "project = %s", project)
	if !all {
		w.conds = append(w.conds, "revoked_at IS NULL AND expires_at > clock_timestamp()")
	}
	w.addIf(after != "", "id < %s", after)
	out, err := exceptions(ctx, s.pool, w, limit)
	return out, wrap(err, "list exceptions")
}

// RevokeException takes one back; once more is no error and changes nothing.
func (s *Store) RevokeException(ctx context.Context, project, id, by string) (out pipeline.Exception, err error) {
	if by == "" {
		return out, fmt.Errorf("revoke exception %.40q: who takes it back is required: %w", id, pipeline.ErrInvalid)
	}
	err = s.tx(ctx, func(tx pgx.Tx) error {
		fresh, err := revoke(ctx, tx, "exceptions", project, id, by)
		if err != nil {
			return err
		}
		rows, err := tx.Query(ctx, `SELECT `+exceptionColumns+` FROM exceptions WHERE project = $1 AND id = $2`, project, id)
		if err != nil {
			return err
		}
		if out, err = pgx.CollectExactlyOneRow(rows, scanException); err != nil || !fresh {
			return err
		}
		return s.entry(ctx, tx, pipeline.Entry{Kind: pipeline.EntryExceptionRevoked, Project: project, Actor: by, Subject: id, Image: out.Image,
			Data: data{"environment": out.Environment, "finding": out.Finding, "package": short(out.Package)}.json()}, row("exceptions", id))
	})
	if errors.Is(err, pgx.ErrNoRows) {
		err = pipeline.ErrNotFound
	}
	return out, wrap(err, "revoke exception %.40q of %.80q", id, project)
}

// revoke takes something back; fresh is false if there is no such thing, or if
// it was taken back before.
func revoke(ctx context.Context, tx pgx.Tx, table, project, id, by string) (fresh bool, err error) {
	tag, err := tx.Exec(ctx, `
		UPDATE `+table+` SET revoked_at = clock_timestamp(), revoked_by = $3
		WHERE project = $1 AND id = $2 AND revoked_at IS NULL`, project, id, clean(by))
	return tag.RowsAffected() > 0, err
}
