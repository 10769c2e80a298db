package postgres

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

// fresh has a query planned for its very arguments: a plan that fits the hottest
// package as well as one that nobody has fits neither.
const fresh = pgx.QueryExecModeCacheDescribe

const (
	// fewImages is how many images of a scope are looked up beforehand. Of more,
	// those that it leaves are found on the way.
	fewImages = 50_000
	// fewProbes is how many pairs of an image and a package are looked for one by
	// one.
	fewProbes = 5000
)

// inScope adds what a scope asks of an image i, and reports whether it asks anything.
func inScope(w *where, s pipeline.AuditScope) bool {
	before := len(w.conds)
	if !s.Reach.All {
		w.add("i.project = ANY(%s::text[])", notNil(s.Reach.Projects))
	}
	w.addIf(s.Project != "", "i.project = %s", s.Project)
	switch s.Promoted {
	case pipeline.PromotedNow:
		// From the lanes, of which there are few.
		cond := `i.id IN (SELECT s.image FROM lanes l JOIN stays s ON s.promotion = l.current WHERE true`
		if s.Environment != "" {
			cond += " AND l.environment = " + w.arg(s.Environment)
		}
		if !s.Reach.All {
			cond += " AND l.project = ANY(" + w.arg(notNil(s.Reach.Projects)) + "::text[])"
		}
		if s.Project != "" {
			cond += " AND l.project = " + w.arg(s.Project)
		}
		if s.Since != nil {
			cond += " AND s.since >= " + w.arg(*s.Since)
		}
		if s.Until != nil {
			cond += " AND s.since < " + w.arg(*s.Until)
		}
		w.conds = append(w.conds, cond+")")
	case pipeline.PromotedEver:
		cond := `EXISTS (SELECT FROM stays s WHERE s.image = i.id`
		if s.Environment != "" {
			cond += " AND s.environment = " + w.arg(s.Environment)
		}
		if s.Since != nil {
			cond += " AND (s.until IS NULL OR s.until > " + w.arg(*s.Since) + ")"
		}
		if s.Until != nil {
			cond += " AND s.since < " + w.arg(*s.Until)
		}
		w.conds = append(w.conds, cond+")")
	default:
		first := "(SELECT min(r.recorded_at) FROM image_records r WHERE r.image = i.id)"
		if s.Since != nil {
			w.add(first+" >= %s", *s.Since)
		}
		if s.Until != nil {
			w.add(first+" < %s", *s.Until)
		}
	}
	return len(w.conds) > before
}

// queueStays asks where images were, in order, by the image's number; placesOf
// completes what it finds.
func queueStays(b *pgx.Batch, images []int64) map[int64][]pipeline.Stay {
	out := map[int64][]pipeline.Stay{}
	b.Queue(`SELECT `+stayColumns+`, '', '' FROM stays s WHERE s.image = ANY($1) ORDER BY s.since, s.promotion`, images).Query(func(rows pgx.Rows) error {
		found, err := pgx.CollectRows(rows, scanStay)
		for _, s := range found {
			out[s.image] = append(out[s.image], s.Stay)
		}
		return wrap(err, "where they were promoted")
	})
	return out
}

// placesOf adds to an image's stays what is known of the image.
func placesOf(stays []pipeline.Stay, digest pipeline.Digest, commit string) []pipeline.Stay {
	for i := range stays {
		stays[i].Image.Digest, stays[i].Commit = digest, commit
	}
	return notNil(stays)
}

// stayRow is a stay with the numbers that Stay has not.
type stayRow struct {
	pipeline.Stay
	image, placed int64
}

const (
	stayColumns = `s.image, s.placed, s.project, s.environment, s.repository, s.promotion, s.action, s.requested_by, s.break_glass,
		s.since, s.until, s.approved_by`
	stayTable = `promotion, project, environment, placed, image, repository, action, requested_by, break_glass, approved_by, since, until`
	// recordedStays are what the rows of stays must be, column by column: what
	// promotions, with all that belongs to them, say. Approvals count that are of the plan
	// which was carried out.
	recordedStays = `
		SELECT p.id AS promotion, p.project, p.environment, p.placed, p.image, l.repository, p.action, p.requested_by, p.break_glass,
		       coalesce((SELECT array_agg(a.author ORDER BY a.seq) FROM approvals a WHERE a.promotion = p.id AND NOT a.rejected
		                 AND a.plan = coalesce((SELECT d.decision ->> 'plan' FROM decisions d WHERE d.job = p.id), a.plan)), '{}') AS approved_by,
		       j.finished_at AS since, nj.finished_at AS until
		FROM promotions p
		JOIN jobs j ON j.id = p.id
		JOIN placements l ON l.promotion = p.id
		LEFT JOIN promotions n ON n.project = p.project AND n.environment = p.environment AND n.placed = p.placed + 1
		LEFT JOIN jobs nj ON nj.id = n.id
		WHERE p.placed IS NOT NULL`
)

func scanStay(row pgx.CollectableRow) (s stayRow, err error) {
	err = row.Scan(&s.image, &s.placed, &s.Project, &s.Environment, &s.Image.Repository, (*string)(&s.Promotion),
		&s.Action, &s.RequestedBy, &s.BreakGlass, &s.Since, &s.Until, &s.ApprovedBy, (*string)(&s.Image.Digest), &s.Commit)
	s.Since, s.Until = s.Since.UTC(), utc(s.Until)
	return s, err
}

func listStays(ctx context.Context, q querier, w where, order string) ([]stayRow, error) {
	rows, err := q.Query(ctx, `SELECT `+stayColumns+`, i.digest, r.commit_sha
		FROM stays s JOIN images i ON i.id = s.image JOIN image_records r ON r.run = i.newest`+w.sql()+order, w.args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scanStay)
}

// cursor is the id of an item that is known by several values. Whoever sends one
// back that was made up gets pipeline.ErrInvalid.
func cursor(values ...any) string {
	b, err := json.Marshal(values)
	if err != nil {
		panic(err) // texts and numbers always marshal
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

func fromCursor(s string, into ...any) error {
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err == nil {
		var parts []json.RawMessage
		if err = json.Unmarshal(b, &parts); err == nil && len(parts) != len(into) {
			err = fmt.Errorf("%d values", len(parts))
		}
		for i := 0; err == nil && i < len(into); i++ {
			err = json.Unmarshal(parts[i], into[i])
		}
	}
	if err != nil {
		return fmt.Errorf("%.80q is not the id of an item: %w", s, pipeline.ErrInvalid)
	}
	return nil
}
