package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

// AuditFindings says which images have a known vulnerability, by their newest
// record: newest records first.
func (s *Store) AuditFindings(ctx context.Context, q pipeline.FindingAuditQuery) (out []pipeline.FindingAudit, err error) {
	defer func() { err = wrap(err, "images with finding %.80q", q.Finding) }()
	if err := q.Check(); err != nil {
		return nil, err
	}
	if q.Finding == "" {
		return nil, fmt.Errorf("the id of a finding is required: %w", pipeline.ErrInvalid)
	}
	err = s.read(ctx, func(tx pgx.Tx) error {
		found, err := findingPage(ctx, tx, q)
		if err != nil {
			return err
		}
		out, err = tellFindings(ctx, tx, found)
		return err
	})
	return notNil(out), err
}

// foundIn is a finding with the number of its image.
type foundIn struct {
	pipeline.FindingAudit
	image int64
}

// sameFinding says that two ids are of one finding, in upper or lower case. An index has
// the beginning of them, and how many there are of each. That the rest is the same as well
// is said with coalesce: of a plain comparison the planner would think that it leaves one
// in so many of those, and would read them all and sort them before the first.
func sameFinding(a, b string) string {
	return fmt.Sprintf("lower(left(%[1]s, 100)) = lower(left(%[2]s, 100)) AND coalesce(lower(%[1]s) = lower(%[2]s), false)", a, b)
}

// placeOfFinding orders the findings of a run.
const placeOfFinding = "(f.report::bigint << 32 | f.position)"

// findingPageSQL finds the page, and adds what is in the tables of records.
func findingPageSQL(q pipeline.FindingAuditQuery) (sql string, args []any, err error) {
	w := where{}
	w.conds = append(w.conds, sameFinding("f.id", w.arg(clean(q.Finding))), "f.gone_at IS NULL")
	w.addIf(q.Package != "", "f.package = %s", clean(q.Package))
	inScope(&w, q.AuditScope)
	having := ""
	if q.Page.After != "" {
		var run string
		var place int64
		if err := fromCursor(q.Page.After, &run, &place); err != nil {
			return "", nil, err
		}
		r := w.arg(run)
		w.conds = append(w.conds, "f.run <= "+r)
		having = " HAVING f.run < " + r + " OR min(" + placeOfFinding + ") > " + w.arg(place)
	}
	return `
		WITH page AS (
			SELECT f.run, f.id, f.package, f.version, f.fixed_in, max(f.severity) AS severity, max(f.title) AS title, max(f.url) AS url, max(f.purl) AS purl,
			       max(f.path) AS path, min(` + placeOfFinding + `) AS place, array_agg(DISTINCT f.report ORDER BY f.report) AS reports, min(i.id) AS image
			FROM findings f JOIN images i ON i.newest = f.run` + w.sql() + `
			GROUP BY f.run, f.id, f.package, f.version, f.fixed_in` + having + `
			ORDER BY f.run DESC, place
			LIMIT ` + w.arg(q.Page.Limit) + `
		)
		SELECT p.image, p.place, i.project, r.repository, i.digest, r.run, r.commit_sha, r.recorded_at, greatest(r.scanned_at, m.matched_at),
		       p.id, p.severity, p.package, p.version, p.fixed_in, p.title, p.url, p.purl, p.path,
		       (SELECT array_agg(DISTINCT t.platform ORDER BY t.platform) FROM reports t WHERE t.run = p.run AND t.position = ANY(p.reports)),
		       o.run, o.commit_sha, o.digest, o.at
		FROM page p JOIN images i ON i.id = p.image JOIN image_records r ON r.run = p.run LEFT JOIN image_matches m ON m.run = p.run
		LEFT JOIN LATERAL (
			SELECT o.run, o.commit_sha, o.digest, o.recorded_at AS at FROM packages k
			JOIN package_firsts f ON f.package = k.id AND f.project = i.project JOIN image_records o ON o.number = f.record
			WHERE left(k.name, 200) = left(p.package, 200) AND left(k.version, 200) = left(p.version, 200) AND k.name = p.package AND k.version = p.version
			ORDER BY o.recorded_at, o.run LIMIT 1) o ON true
		ORDER BY p.run DESC, p.place`, w.args, nil
}

func findingPage(ctx context.Context, tx pgx.Tx, q pipeline.FindingAuditQuery) ([]foundIn, error) {
	sql, args, err := findingPageSQL(q)
	if err != nil {
		return nil, err
	}
	rows, err := tx.Query(ctx, sql, append([]any{fresh}, args...)...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (a foundIn, err error) {
		var platforms []string
		var run, commit, digest *string
		var at *time.Time
		var place int64
		f := &a.Finding
		err = row.Scan(&a.image, &place, &a.Project, &a.Image.Repository, (*string)(&a.Image.Digest), (*string)(&a.Run), &a.Commit, &a.RecordedAt, &a.ScannedAt,
			&f.ID, (*int)(&f.Severity), &f.Package, &f.Version, &f.FixedIn, &f.Title, &f.URL, &f.PURL, &f.Path, &platforms, &run, &commit, &digest, &at)
		for _, p := range platforms {
			a.Platforms = append(a.Platforms, pipeline.Platform(p))
		}
		a.RecordedAt, a.ScannedAt, a.First = a.RecordedAt.UTC(), a.ScannedAt.UTC(), origin(run, commit, digest, at)
		a.FindingAudit.ID = cursor(a.Run, place)
		return a, err
	})
}

// origin is where something comes from, if there is a run that says so.
func origin(run, commit, digest *string, at *time.Time) *pipeline.Origin {
	if run == nil {
		return nil
	}
	return &pipeline.Origin{Run: pipeline.RunID(*run), Commit: *commit, Digest: pipeline.Digest(*digest), At: at.UTC()}
}

// tellFindings adds where the images were promoted, and what speaks for the finding.
func tellFindings(ctx context.Context, tx pgx.Tx, found []foundIn) ([]pipeline.FindingAudit, error) {
	if len(found) == 0 {
		return nil, nil
	}
	var images []int64
	var projects []string
	for _, f := range found {
		if !slices.Contains(projects, f.Project) {
			projects = append(projects, f.Project)
		}
		if len(images) == 0 || images[len(images)-1] != f.image {
			images = append(images, f.image)
		}
	}
	b := &pgx.Batch{}
	b.Queue(planBy(planOnce))
	places := queueStays(b, "$1", images)
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return nil, err
	}
	w := where{}
	w.add("project = ANY(%s) AND lower(finding) = lower(%s) AND revoked_at IS NULL AND expires_at > clock_timestamp()", projects, found[0].Finding.ID)
	accepted, err := exceptions(ctx, tx, w, 0)
	if err != nil {
		return nil, wrap(err, "exceptions")
	}
	judged, err := vexOf(ctx, tx, images)
	if err != nil {
		return nil, wrap(err, "VEX statements")
	}
	out := make([]pipeline.FindingAudit, len(found))
	for i, f := range found {
		a := f.FindingAudit
		a.Places, a.Suppressed = placesOf(places[f.image], a.Image.Digest, a.Commit), []pipeline.FindingSuppression{}
		for _, v := range judged[f.image] {
			if v.ID == a.Finding.ID && v.Package == a.Finding.Package && v.Version == a.Finding.Version {
				a.Suppressed = append(a.Suppressed, pipeline.FindingSuppression{Suppression: *v.Suppression})
			}
		}
		for _, e := range accepted {
			if e.Project == a.Project && e.Covers(a.Finding, e.Environment, a.Image.Digest) {
				a.Suppressed = append(a.Suppressed, pipeline.FindingSuppression{Environment: e.Environment, Suppression: pipeline.Suppression{
					By: "exception", ID: e.ID, Author: e.Author, Reason: e.Reason, ExpiresAt: &e.ExpiresAt}})
			}
		}
		out[i] = a
	}
	return out, nil
}

// vexOf collects what VEX documents, which nobody took back since, were found to
// say of an image's findings whenever a gate looked at it.
func vexOf(ctx context.Context, q querier, images []int64) (map[int64][]pipeline.FindingFact, error) {
	rows, err := q.Query(ctx, `
		SELECT DISTINCT ON (j.image, s.fact #>> '{suppression,id}', s.fact ->> 'id', s.fact ->> 'package', s.fact ->> 'version') j.image, s.fact
		FROM (SELECT i.id AS image, i.newest AS job FROM images i WHERE i.id = ANY($1)
		      UNION ALL SELECT p.image, p.id FROM promotions p WHERE p.image = ANY($1)) j
		JOIN decisions d ON d.job = j.job
		CROSS JOIN LATERAL jsonb_array_elements(
			CASE WHEN json_typeof(d.decision -> 'suppressed') = 'array' THEN (d.decision -> 'suppressed')::jsonb ELSE '[]' END) AS s (fact)
		JOIN vex_documents v ON v.id = s.fact #>> '{suppression,id}' AND v.revoked_at IS NULL
		WHERE s.fact #>> '{suppression,by}' = 'vex'`, images)
	if err != nil {
		return nil, err
	}
	out := map[int64][]pipeline.FindingFact{}
	var image int64
	var raw json.RawMessage
	_, err = pgx.ForEachRow(rows, []any{&image, &raw}, func() error {
		var f pipeline.FindingFact
		if err := json.Unmarshal(raw, &f); err != nil || f.Suppression == nil {
			return err
		}
		out[image] = append(out[image], f)
		return nil
	})
	return out, err
}
