package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

// ImageRecord implements pipeline.Store.
func (s *Store) ImageRecord(ctx context.Context, project string, d pipeline.Digest) (rec pipeline.ImageRecord, err error) {
	err = s.read(ctx, func(tx pgx.Tx) error {
		h, err := newestRecord(ctx, tx, project, d)
		if err != nil {
			return err
		}
		rec = h.ImageRecord
		if rec.Report.Platforms, err = reports(ctx, tx, h); err != nil {
			return wrap(err, "report")
		}
		rec.Verified, err = getVerified(ctx, tx, rec.Run.Job())
		return wrap(err, "what verified")
	})
	return rec, wrap(err, "record of image %s in %s", d, project)
}

// head is a record without its reports and verifications.
type head struct {
	pipeline.ImageRecord
	image int64
}

// newestRecord reads the newest record's head.
func newestRecord(ctx context.Context, q querier, project string, d pipeline.Digest) (h head, err error) {
	var built, provenance, decision, summary json.RawMessage
	r := &h.Report
	err = q.QueryRow(ctx, `
		SELECT i.id, r.run, i.project, r.built, r.provenance, d.decision, d.summary,
		       r.scanned_at, r.scanner, r.db_reference, r.db_digest, r.db_updated_at
		FROM images i JOIN image_records r ON r.run = i.newest JOIN decisions d ON d.job = r.run
		WHERE i.project = $1 AND i.digest = $2`, project, string(d)).
		Scan(&h.image, (*string)(&h.Run), &h.Project, &built, &provenance, &decision, &summary,
			&r.ScannedAt, &r.Scanner, &r.Database.Reference, (*string)(&r.Database.Digest), &r.Database.UpdatedAt)
	if errors.Is(err, pgx.ErrNoRows) {
		return h, fmt.Errorf("no run recorded it: %w", pipeline.ErrNotFound)
	}
	if err != nil {
		return h, err
	}
	r.ScannedAt, r.Database.UpdatedAt = r.ScannedAt.UTC(), r.Database.UpdatedAt.UTC()
	h.Provenance = provenance
	if summary != nil {
		if err := json.Unmarshal(summary, &h.Summary); err != nil {
			return h, wrap(err, "summary of the decision")
		}
	}
	return h, errors.Join(json.Unmarshal(built, &h.Built), json.Unmarshal(decision, &h.Decision))
}

// reports reads what a record says of each platform.
func reports(ctx context.Context, q querier, h head) ([]pipeline.PlatformReport, error) {
	rows, err := q.Query(ctx, `
		SELECT r.platform, r.digest, r.os, r.run_user, r.hygiene, b.document
		FROM reports r LEFT JOIN sboms b ON b.run = r.run AND b.position = r.position
		WHERE r.run = $1 ORDER BY r.position`, string(h.Run))
	if err != nil {
		return nil, err
	}
	out, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (r pipeline.PlatformReport, err error) {
		var hygiene json.RawMessage
		if err := row.Scan((*string)(&r.Platform), (*string)(&r.Digest), &r.OS, &r.User, &hygiene, &r.SBOM); err != nil || hygiene == nil {
			return r, err
		}
		return r, wrap(json.Unmarshal(hygiene, &r.Hygiene), "hygiene of %s", r.Platform)
	})
	if err != nil {
		return nil, err
	}
	rows, err = q.Query(ctx, `
		SELECT x.report, p.name, p.version, p.type, p.purl, a.path, l.layer, s.licenses
		FROM image_packages x JOIN packages p ON p.id = x.package`+joinPlaces+`
		WHERE x.image = $1 ORDER BY x.report, x.position`, h.image)
	if err != nil {
		return nil, err
	}
	var n int
	var p pipeline.Package
	_, err = pgx.ForEachRow(rows, []any{&n, &p.Name, &p.Version, &p.Type, &p.PURL, &p.Path, &p.Layer, &p.Licenses}, func() error {
		if n < len(out) {
			out[n].Packages = append(out[n].Packages, p)
		}
		p.Licenses = nil
		return nil
	})
	if err != nil {
		return nil, err
	}
	rows, err = q.Query(ctx, `
		SELECT report, id, severity, package, version, fixed_in, title, url, purl, path
		FROM findings WHERE run = $1 AND appeared_at IS NULL ORDER BY report, position`, string(h.Run))
	if err != nil {
		return nil, err
	}
	var f pipeline.Finding
	_, err = pgx.ForEachRow(rows, []any{&n, &f.ID, (*int)(&f.Severity), &f.Package, &f.Version, &f.FixedIn, &f.Title, &f.URL, &f.PURL, &f.Path}, func() error {
		if n < len(out) {
			out[n].Findings = append(out[n].Findings, f)
		}
		return nil
	})
	return out, err
}

// getVerified reads what a run or a promotion verified.
func getVerified(ctx context.Context, q querier, id pipeline.JobID) ([]pipeline.Verified, error) {
	rows, err := q.Query(ctx, `SELECT repository, digest, verified_at FROM verifications WHERE job = $1 ORDER BY position`, string(id))
	if err != nil {
		return nil, err
	}
	out, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (v pipeline.Verified, err error) {
		err = row.Scan(&v.Image.Repository, (*string)(&v.Image.Digest), &v.VerifiedAt)
		v.VerifiedAt = v.VerifiedAt.UTC()
		return v, err
	})
	if err != nil {
		return nil, err
	}
	rows, err = q.Query(ctx, `
		SELECT verification, key_id, layout, manifest FROM signatures WHERE job = $1 ORDER BY verification, position`, string(id))
	if err != nil {
		return nil, err
	}
	var n int
	var sig pipeline.Signature
	_, err = pgx.ForEachRow(rows, []any{&n, &sig.KeyID, &sig.Layout, (*string)(&sig.Manifest)}, func() error {
		sig.Image = out[n].Image
		out[n].Signatures = append(out[n].Signatures, sig)
		return nil
	})
	if err != nil {
		return nil, err
	}
	rows, err = q.Query(ctx, `
		SELECT verification, predicate_type, key_id, layout, manifest, statement
		FROM attestations WHERE job = $1 ORDER BY verification, position`, string(id))
	if err != nil {
		return nil, err
	}
	var a pipeline.Attestation
	_, err = pgx.ForEachRow(rows, []any{&n, &a.PredicateType, &a.KeyID, &a.Layout, (*string)(&a.Manifest), (*string)(&a.Statement)}, func() error {
		a.Image = out[n].Image
		out[n].Attestations = append(out[n].Attestations, a)
		return nil
	})
	return out, err
}

// SBOM returns the CycloneDX document of one platform of an image, from its
// newest record.
func (s *Store) SBOM(ctx context.Context, project string, d pipeline.Digest, platform pipeline.Platform) (doc json.RawMessage, err error) {
	err = s.pool.QueryRow(ctx, `
		SELECT b.document FROM images i
		JOIN reports r ON r.run = i.newest AND r.platform = $3
		JOIN sboms b ON b.run = r.run AND b.position = r.position
		WHERE i.project = $1 AND i.digest = $2 ORDER BY r.position LIMIT 1`, project, string(d), string(platform)).Scan(&doc)
	if errors.Is(err, pgx.ErrNoRows) {
		err = pipeline.ErrNotFound
	}
	return doc, wrap(err, "SBOM of %s for %s in %s", d, platform, project)
}
