package postgres

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

// maxPromotions bounds how many promotions an image's details list.
const maxPromotions = 200

// ImageDetails returns the image in every project that holds it, or in one.
func (s *Store) ImageDetails(ctx context.Context, d pipeline.Digest, project string) (out []pipeline.ImageDetail, err error) {
	err = s.read(ctx, func(tx pgx.Tx) error {
		w := where{}
		w.add("digest = %s", string(d))
		w.addIf(project != "", "project = %s", project)
		rows, err := tx.Query(ctx, `SELECT project FROM images`+w.sql()+` ORDER BY project`, w.args...)
		if err != nil {
			return err
		}
		projects, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return err
		}
		if len(projects) == 0 {
			return fmt.Errorf("no run recorded it: %w", pipeline.ErrNotFound)
		}
		for _, p := range projects {
			detail, err := imageDetail(ctx, tx, p, d)
			if err != nil {
				return wrap(err, "project %s", p)
			}
			out = append(out, detail)
		}
		return nil
	})
	if err != nil {
		return nil, wrap(err, "details of image %s", d)
	}
	return out, nil
}

func imageDetail(ctx context.Context, tx pgx.Tx, project string, d pipeline.Digest) (out pipeline.ImageDetail, err error) {
	h, err := newestRecord(ctx, tx, project, d)
	if err != nil {
		return out, err
	}
	out = pipeline.ImageDetail{
		Project: project, Image: h.Built.Image, Run: h.Run, Source: h.Built.Source, Builder: h.Built.Builder, Platforms: notNil(h.Built.Platforms),
		ScannedAt: h.Report.ScannedAt, Scanner: h.Report.Scanner, Database: h.Report.Database, Decision: h.Decision, Provenance: h.Provenance,
		Signatures: []pipeline.Signature{}, Attestations: []pipeline.Attestation{},
	}
	err = tx.QueryRow(ctx, `
		SELECT r.recorded_at, (SELECT count(DISTINCT package) FROM image_packages WHERE image = $2)
		FROM image_records r WHERE r.run = $1`, string(h.Run), h.image).Scan(&out.RecordedAt, &out.Packages)
	if err != nil {
		return out, err
	}
	out.RecordedAt = out.RecordedAt.UTC()
	if db, at, ok, err := matchedDatabase(ctx, tx, h.Run); err != nil {
		return out, wrap(err, "what it was matched with")
	} else if ok {
		out.Database, out.MatchedAt = db, &at
	}
	if out.Findings, err = imageFindings(ctx, tx, h.Run); err != nil {
		return out, wrap(err, "findings")
	}
	if out.Hygiene, err = imageHygiene(ctx, tx, h.Run); err != nil {
		return out, wrap(err, "hygiene")
	}
	verified, err := getVerified(ctx, tx, h.Run.Job())
	if err != nil {
		return out, wrap(err, "what verified")
	}
	for _, v := range verified {
		out.Signatures = append(out.Signatures, v.Signatures...)
		out.Attestations = append(out.Attestations, v.Attestations...)
	}
	if out.Tags, err = imageTags(ctx, tx, project, d); err != nil {
		return out, wrap(err, "tags")
	}
	w := where{}
	w.add("p.image = %s", h.image)
	out.Promotions, err = promotions(ctx, tx, w, maxPromotions)
	return out, wrap(err, "promotions")
}

// imageFindings puts the same finding on several platforms into one, most severe first.
func imageFindings(ctx context.Context, q querier, run pipeline.RunID) ([]pipeline.ImageFinding, error) {
	rows, err := q.Query(ctx, `
		SELECT r.platform, f.id, f.severity, f.package, f.version, f.fixed_in, f.title, f.url, f.purl, f.path
		FROM findings f JOIN reports r ON r.run = f.run AND r.position = f.report
		WHERE f.run = $1 AND f.gone_at IS NULL ORDER BY f.report, f.position`, string(run))
	if err != nil {
		return nil, err
	}
	out := []pipeline.ImageFinding{}
	at := map[pipeline.Finding]int{}
	var platform pipeline.Platform
	var f pipeline.Finding
	_, err = pgx.ForEachRow(rows, []any{(*string)(&platform), &f.ID, (*int)(&f.Severity), &f.Package, &f.Version, &f.FixedIn, &f.Title, &f.URL, &f.PURL, &f.Path}, func() error {
		// A package URL names the architecture, which does not make it another finding.
		key := pipeline.Finding{ID: f.ID, Severity: f.Severity, Package: f.Package, Version: f.Version, FixedIn: f.FixedIn, Path: f.Path}
		i, ok := at[key]
		if !ok {
			i = len(out)
			at[key] = i
			out = append(out, pipeline.ImageFinding{Finding: f})
		}
		if !slices.Contains(out[i].Platforms, platform) {
			out[i].Platforms = append(out[i].Platforms, platform)
		}
		return nil
	})
	slices.SortStableFunc(out, func(a, b pipeline.ImageFinding) int {
		return cmp.Or(cmp.Compare(b.Severity, a.Severity), cmp.Compare(a.ID, b.ID), cmp.Compare(a.Package, b.Package))
	})
	return out, err
}

// imageHygiene lists the platforms whose hygiene was looked at.
func imageHygiene(ctx context.Context, q querier, run pipeline.RunID) ([]pipeline.PlatformHygiene, error) {
	rows, err := q.Query(ctx, `SELECT platform, run_user, hygiene FROM reports WHERE run = $1 AND hygiene IS NOT NULL ORDER BY position`, string(run))
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (h pipeline.PlatformHygiene, err error) {
		var doc json.RawMessage
		if err := row.Scan((*string)(&h.Platform), &h.User, &doc); err != nil {
			return h, err
		}
		return h, json.Unmarshal(doc, &h.Hygiene)
	})
}
