package postgres

import (
	"cmp"
	"context"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

// A stay is an image in an environment, from when until when. Its row repeats, for
// questions, what is spread over five tables.
const (
	// staysTable are the columns of the table stays, in the order of recordedStays.
	staysTable = `promotion, project, environment, placed, image, repository, action, requested_by, break_glass, approved_by, since, until`
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

// changedStays are the rows of stays that are not what they repeat. What that is
// stands here, and not in the database where somebody could change it.
const changedStays = `
	SELECT coalesce(s.promotion, r.promotion),
	       CASE WHEN s.promotion IS NULL THEN 'the row is gone' WHEN r.promotion IS NULL THEN 'nothing was placed by this promotion'
	            ELSE 'the row is not what the promotion, its job, its placement, its approvals and the promotion after it say' END
	FROM (SELECT ` + staysTable + ` FROM stays) s FULL JOIN (` + recordedStays + `) r ON r.promotion = s.promotion
	WHERE s.promotion IS NULL OR r.promotion IS NULL OR ROW(s.*) IS DISTINCT FROM ROW(r.*)
	ORDER BY 1`

// beginStay keeps that the lane holds since the promotion's end what it placed, and
// not any more what it held before.
func beginStay(ctx context.Context, tx pgx.Tx, l *lane, id pipeline.JobID) error {
	_, err := tx.Exec(ctx, `
		WITH began AS (
			INSERT INTO stays (`+staysTable+`) `+recordedStays+` AND p.id = $1 RETURNING since)
		UPDATE stays SET until = began.since FROM began WHERE project = $2 AND environment = $3 AND placed = $4`,
		string(id), l.project, l.environment, l.placed-1)
	return wrap(err, "what %s holds", l.environment)
}

// stayColumns are those that forEachStay reads first.
const stayColumns = `s.image, s.placed, s.project, s.environment, s.repository, s.promotion, s.action, s.requested_by, s.break_glass,
	s.since, s.until, s.approved_by`

// queueStays asks where images were, by the image's number; placesOf orders and
// completes what it finds. The images are SQL for a list of numbers.
func queueStays(b *pgx.Batch, images string, args ...any) map[int64][]pipeline.Stay {
	out := map[int64][]pipeline.Stay{}
	b.Queue(`SELECT `+stayColumns+`, '', '' FROM stays s WHERE s.image = ANY(`+images+`)`, args...).Query(func(rows pgx.Rows) error {
		err := forEachStay(rows, func(s *stayRow) { out[s.image] = append(out[s.image], s.Stay) })
		return wrap(err, "where they were promoted")
	})
	return out
}

// placesOf adds to an image's stays what is known of the image. They come in order.
func placesOf(stays []pipeline.Stay, digest pipeline.Digest, commit string) []pipeline.Stay {
	slices.SortFunc(stays, func(a, b pipeline.Stay) int {
		return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.Promotion, b.Promotion))
	})
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

// forEachStay reads all rows, each into the same place.
func forEachStay(rows pgx.Rows, do func(*stayRow)) error {
	var s stayRow
	_, err := pgx.ForEachRow(rows, []any{&s.image, &s.placed, &s.Project, &s.Environment, &s.Image.Repository, (*string)(&s.Promotion),
		&s.Action, &s.RequestedBy, &s.BreakGlass, &s.Since, &s.Until, &s.ApprovedBy, (*string)(&s.Image.Digest), &s.Commit}, func() error {
		s.Since, s.Until = s.Since.UTC(), utc(s.Until)
		do(&s)
		return nil
	})
	return err
}

func listStays(ctx context.Context, q querier, w where, order string) (out []stayRow, err error) {
	rows, err := q.Query(ctx, `SELECT `+stayColumns+`, i.digest, r.commit_sha
		FROM stays s JOIN images i ON i.id = s.image JOIN image_records r ON r.run = i.newest`+w.sql()+order, w.args...)
	if err != nil {
		return nil, err
	}
	err = forEachStay(rows, func(s *stayRow) { out = append(out, *s) })
	return out, err
}
