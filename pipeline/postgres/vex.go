package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

// maxVEX bounds a document and its signature, in bytes.
const maxVEX = 4 << 20

const vexColumns = `id, project, document, signature, uploaded_by, uploaded_at, revoked_at, coalesce(revoked_by, '')`

func scanVEX(row pgx.CollectableRow) (d pipeline.VEXDocument, err error) {
	err = row.Scan(&d.ID, &d.Project, &d.Document, &d.Signature, &d.UploadedBy, &d.UploadedAt, &d.RevokedAt, &d.RevokedBy)
	d.UploadedAt, d.RevokedAt = d.UploadedAt.UTC(), utc(d.RevokedAt)
	return d, err
}

// vexDocuments lists them newest first; a limit of 0 is none.
func vexDocuments(ctx context.Context, q querier, w where, limit int) ([]pipeline.VEXDocument, error) {
	sql := `SELECT ` + vexColumns + ` FROM vex_documents` + w.sql() + ` ORDER BY id DESC`
	if limit > 0 {
		sql += ` LIMIT ` + w.arg(limit)
	}
	rows, err := q.Query(ctx, sql, w.args...)
	if err != nil {
		return nil, err
	}
	out, err := pgx.CollectRows(rows, scanVEX)
	return notNil(out), err
}

// AddVEX keeps a document, with an id and a time of its own. Whether its
// signature is by a key that the project trusts is asked whenever it is used:
// keys come and go.
func (s *Store) AddVEX(ctx context.Context, d pipeline.VEXDocument) (out pipeline.VEXDocument, err error) {
	defer func() { err = wrap(err, "add a VEX document to %.80q", d.Project) }()
	switch {
	case len(d.Document) == 0 || len(d.Signature) == 0:
		return out, fmt.Errorf("a document and its signature are required: %w", pipeline.ErrInvalid)
	case len(d.Document) > maxVEX || len(d.Signature) > maxVEX:
		return out, fmt.Errorf("a document and its signature have at most %d bytes each: %w", maxVEX, pipeline.ErrInvalid)
	case d.UploadedBy == "":
		return out, fmt.Errorf("who hands it in is required: %w", pipeline.ErrInvalid)
	}
	err = s.tx(ctx, func(tx pgx.Tx) error {
		if err := existsFor(ctx, tx, d.Project, ""); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, `
			INSERT INTO vex_documents (id, project, document, signature, uploaded_by) VALUES ($1, $2, $3, $4, $5) RETURNING `+vexColumns,
			pipeline.NewVEXID(time.Now()), d.Project, d.Document, d.Signature, clean(d.UploadedBy))
		if err != nil {
			return err
		}
		if out, err = pgx.CollectExactlyOneRow(rows, scanVEX); err != nil {
			return err
		}
		return s.entry(ctx, tx, pipeline.Entry{Kind: pipeline.EntryVEXAdded, Project: out.Project, Actor: out.UploadedBy, Subject: out.ID,
			Data: data{"document": "sha256:" + hexSum(out.Document), "bytes": len(out.Document)}.json()}, row("vex_documents", out.ID))
	})
	return out, err
}

// VEXDocuments lists them, newest first; an empty project means all. all
// includes those that were revoked.
func (s *Store) VEXDocuments(ctx context.Context, project string, all bool, p pipeline.Page) ([]pipeline.VEXDocument, error) {
	limit, after := page(p)
	w := where{}
	w.addIf(project != "", "project = %s", project)
	if !all {
		w.conds = append(w.conds, "revoked_at IS NULL")
	}
	w.addIf(after != "", "id < %s", after)
	out, err := vexDocuments(ctx, s.pool, w, limit)
	return out, wrap(err, "list VEX documents")
}

// RevokeVEX takes one back; once more is no error and changes nothing.
func (s *Store) RevokeVEX(ctx context.Context, project, id, by string) (out pipeline.VEXDocument, err error) {
	if by == "" {
		return out, fmt.Errorf("revoke VEX document %.40q: who takes it back is required: %w", id, pipeline.ErrInvalid)
	}
	err = s.tx(ctx, func(tx pgx.Tx) error {
		fresh, err := revoke(ctx, tx, "vex_documents", project, id, by)
		if err != nil {
			return err
		}
		rows, err := tx.Query(ctx, `SELECT `+vexColumns+` FROM vex_documents WHERE project = $1 AND id = $2`, project, id)
		if err != nil {
			return err
		}
		if out, err = pgx.CollectExactlyOneRow(rows, scanVEX); err != nil || !fresh {
			return err
		}
		return s.entry(ctx, tx, pipeline.Entry{Kind: pipeline.EntryVEXRevoked, Project: project, Actor: by, Subject: id,
			Data: data{"document": "sha256:" + hexSum(out.Document)}.json()}, row("vex_documents", id))
	})
	if errors.Is(err, pgx.ErrNoRows) {
		err = pipeline.ErrNotFound
	}
	return out, wrap(err, "revoke VEX document %.40q of %.80q", id, project)
}
