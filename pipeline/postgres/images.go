package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

// RecordImage implements pipeline.Store. The record is rows throughout, so its
// stage keeps only which image it was.
func (s *Store) RecordImage(ctx context.Context, c pipeline.Claim, rec pipeline.ImageRecord) error {
	outcome := struct {
		Image pipeline.Image `json:"image"`
	}{rec.Built.Image}
	return s.finished(ctx, c, "record the image", outcome, func(tx pgx.Tx, j job) error {
		if rec.Project != j.project || rec.Run.Job() != c.Job {
			return fmt.Errorf("the record is of run %s in %s, the claim of %s in %s: %w", rec.Run, rec.Project, c.Job, j.project, pipeline.ErrInvalid)
		}
		image, err := insertImage(ctx, tx, rec)
		if err != nil {
			return wrap(err, "image %s", rec.Built.Image)
		}
		record, err := insertRecord(ctx, tx, image, rec)
		if err != nil {
			return wrap(err, "image %s", rec.Built.Image)
		}
		if err := insertReports(ctx, tx, image, record, rec); err != nil {
			return wrap(err, "report on %s", rec.Built.Image)
		}
		if err := insertVerified(ctx, tx, c.Job, rec.Verified); err != nil {
			return err
		}
		if _, err := insertDecision(ctx, tx, c.Job, rec.Decision, rec.Summary); err != nil {
			return err
		}
		return s.recordedEntries(ctx, tx, image, rec)
	})
}

// insertImage makes the run's record the image's newest and returns the image,
// locked against other records of it.
func insertImage(ctx context.Context, tx pgx.Tx, rec pipeline.ImageRecord) (id int64, err error) {
	err = tx.QueryRow(ctx, `
		INSERT INTO images (project, digest, newest) VALUES ($1, $2, $3)
		ON CONFLICT (digest, project) DO UPDATE SET newest = excluded.newest, pruned_at = NULL RETURNING id`,
		rec.Project, string(rec.Built.Image.Digest), string(rec.Run)).Scan(&id)
	if err != nil {
		return 0, err
	}
	for i, p := range rec.Built.Platforms {
		_, err := tx.Exec(ctx, `
			INSERT INTO image_platforms (image, position, platform, digest, size, media_type) VALUES ($1, $2, $3, $4, $5, $6)
			ON CONFLICT (image, position) DO NOTHING`, id, i, string(p.Platform), string(p.Digest), p.Size, clean(p.MediaType))
		if err != nil {
			return 0, wrap(err, "platform %s", p.Platform)
		}
	}
	return id, nil
}

// changedRecords are the rows of image_records that do not repeat their image's digest,
// or whose number does not tell that they are its newest. Questions go by both.
const changedRecords = `
	SELECT r.run, CASE WHEN r.digest IS DISTINCT FROM i.digest THEN 'the digest is not that of the image' ELSE 'it is the image''s newest record, and its number is not the highest' END
	FROM image_records r JOIN images i ON i.id = r.image
	WHERE r.digest IS DISTINCT FROM i.digest
		OR r.run = i.newest AND EXISTS (SELECT FROM image_records o WHERE o.image = r.image AND o.number >= r.number AND o.run <> r.run)
	ORDER BY 1`

// insertRecord returns the number of the record, which is higher than those of the
// image's other ones: the image is locked.
func insertRecord(ctx context.Context, tx pgx.Tx, image int64, rec pipeline.ImageRecord) (number int64, err error) {
	built, err := document(rec.Built)
	if err != nil {
		return 0, err
	}
	var provenance []byte
	if len(rec.Provenance) > 0 {
		if provenance, err = document(rec.Provenance); err != nil {
			return 0, wrap(err, "provenance")
		}
	}
	plan, err := planDigest(rec.Built.Source)
	if err != nil {
		return 0, err
	}
	db := rec.Report.Database
	err = tx.QueryRow(ctx, `
		INSERT INTO image_records (run, image, digest, project, repository, commit_sha, plan_digest, built, provenance,
			scanned_at, scanner, db_reference, db_digest, db_updated_at, recorded_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, clock_timestamp()) RETURNING number`,
		string(rec.Run), image, string(rec.Built.Image.Digest), rec.Project, rec.Built.Image.Repository, rec.Built.Source.Commit, plan, built, provenance,
		rec.Report.ScannedAt, clean(rec.Report.Scanner), clean(db.Reference), string(db.Digest), db.UpdatedAt).Scan(&number)
	return number, err
}

func insertReports(ctx context.Context, tx pgx.Tx, image, record int64, rec pipeline.ImageRecord) error {
	known, err := insertNumbered(ctx, tx, rec.Report)
	if err != nil {
		return err
	}
	if err := insertOrigins(ctx, tx, record, rec, known.packages); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `DELETE FROM image_packages WHERE image = $1`, image); err != nil {
		return err
	}
	for n, r := range rec.Report.Platforms {
		if err := keepAnalyses(ctx, tx, []pipeline.Digest{r.Digest}, []pipeline.Analysis{r.Analysis}); err != nil {
			return err
		}
		var hygiene []byte
		if r.Hygiene != nil {
			if hygiene, err = document(r.Hygiene); err != nil {
				return wrap(err, "hygiene of %s", r.Platform)
			}
		}
		if _, err := tx.Exec(ctx, `INSERT INTO reports (run, position, platform, digest, os, run_user, hygiene) VALUES ($1, $2, $3, $4, $5, $6, $7)`,
			string(rec.Run), n, string(r.Platform), string(r.Digest), clean(r.OS), clean(r.User), hygiene); err != nil {
			return err
		}
		if len(r.SBOM) > 0 {
			sbom, err := document(r.SBOM)
			if err != nil {
				return wrap(err, "SBOM of %s", r.Platform)
			}
			if _, err := tx.Exec(ctx, `INSERT INTO sboms (run, position, document) VALUES ($1, $2, $3)`, string(rec.Run), n, sbom); err != nil {
				return wrap(err, "SBOM of %s", r.Platform)
			}
		}
		_, err := tx.CopyFrom(ctx, pgx.Identifier{"image_packages"},
			[]string{"image", "package", "path", "layer", "licenses", "report", "position", "platform"},
			pgx.CopyFromSlice(len(r.Packages), func(i int) ([]any, error) {
				p := r.Packages[i]
				return []any{image, known.packages[packageKey(p)], known.paths[textKey(p.Path)], known.layers[textKey(p.Layer)],
					known.licenses[licensesKey(p.Licenses)], int32(n), int32(i), string(r.Platform)}, nil
			}))
		if err != nil {
			return wrap(err, "packages of %s", r.Platform)
		}
		_, err = tx.CopyFrom(ctx, pgx.Identifier{"findings"},
			[]string{"run", "report", "position", "id", "severity", "package", "version", "fixed_in", "title", "url", "purl", "path"},
			pgx.CopyFromSlice(len(r.Findings), func(i int) ([]any, error) {
				f := r.Findings[i]
				return []any{string(rec.Run), int32(n), int32(i), clean(f.ID), int16(f.Severity), clean(f.Package), clean(f.Version),
					clean(f.FixedIn), clean(f.Title), clean(f.URL), clean(f.PURL), clean(f.Path)}, nil
			}))
		if err != nil {
			return wrap(err, "findings in %s", r.Platform)
		}
	}
	return nil
}

func insertVerified(ctx context.Context, tx pgx.Tx, id pipeline.JobID, verified []pipeline.Verified) error {
	b := &pgx.Batch{}
	for n, v := range verified {
		b.Queue(`INSERT INTO verifications (job, position, repository, digest, verified_at) VALUES ($1, $2, $3, $4, $5)`,
			string(id), n, v.Image.Repository, string(v.Image.Digest), v.VerifiedAt)
		for i, sig := range v.Signatures {
			b.Queue(`INSERT INTO signatures (job, verification, position, key_id, layout, manifest) VALUES ($1, $2, $3, $4, $5, $6)`,
				string(id), n, i, sig.KeyID, sig.Layout, string(sig.Manifest))
		}
		for i, a := range v.Attestations {
			b.Queue(`
				INSERT INTO attestations (job, verification, position, predicate_type, key_id, layout, manifest, statement)
				VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`,
				string(id), n, i, clean(a.PredicateType), a.KeyID, a.Layout, string(a.Manifest), string(a.Statement))
		}
	}
	return wrap(tx.SendBatch(ctx, b).Close(), "what verified")
}
