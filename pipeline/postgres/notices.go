package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

// insertNotices writes what owners are to be told, in the transaction of what
// happened. What has the key of an earlier notice is that one.
func insertNotices(ctx context.Context, tx pgx.Tx, notices []pipeline.Notice) error {
	for _, n := range notices {
		body, err := document(n)
		if err != nil {
			return wrap(err, "notice %s", n.Key)
		}
		if _, err := tx.Exec(ctx, `
			INSERT INTO notices (key, event, project, environment, body) VALUES ($1, $2, $3, $4, $5) ON CONFLICT (key) DO NOTHING`,
			clean(n.Key), n.Event, n.Project, n.Environment, body); err != nil {
			return wrap(err, "notice %s", n.Key)
		}
	}
	return nil
}

// givenAtOnce is how many notices one transaction gives to receivers.
const givenAtOnce = 500

// GiveNotices puts the notices that are new on their way to the receivers that
// to names, and returns how many there were. It is safe to call from several
// processes; each notice is given once.
func (s *Store) GiveNotices(ctx context.Context, to func(pipeline.Notice) []string) (n int, err error) {
	err = s.tx(ctx, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `SELECT id, event, project, environment FROM notices WHERE NOT given ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED`, givenAtOnce)
		if err != nil {
			return err
		}
		var ids, all []int64
		var receivers []string
		var id int64
		var notice pipeline.Notice
		_, err = pgx.ForEachRow(rows, []any{&id, &notice.Event, &notice.Project, &notice.Environment}, func() error {
			all = append(all, id)
			for _, r := range to(notice) {
				ids, receivers = append(ids, id), append(receivers, r)
			}
			return nil
		})
		if n = len(all); err != nil || n == 0 {
			return err
		}
		_, err = tx.Exec(ctx, `
			INSERT INTO notice_deliveries (notice, receiver) SELECT * FROM unnest($1::bigint[], $2::text[]) ON CONFLICT DO NOTHING`, ids, receivers)
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `UPDATE notices SET given = true WHERE id = ANY($1)`, all)
		return err
	})
	return n, wrap(err, "give notices to their receivers")
}

// DueNotices returns the notices on their way to a receiver, oldest first. One
// that could not be delivered holds back those behind it for as long as patience,
// counted from when it was made; after that, they pass it.
func (s *Store) DueNotices(ctx context.Context, receiver string, patience time.Duration, limit int) ([]pipeline.NoticeDelivery, error) {
	rows, err := s.pool.Query(ctx, `
		WITH open AS (
			SELECT n.id, n.body, n.at, d.attempts, d.next_at > clock_timestamp() AS later,
			       bool_or(d.next_at > clock_timestamp() AND n.at > clock_timestamp() - $2::interval) OVER (ORDER BY n.id) AS held
			FROM notice_deliveries d JOIN notices n ON n.id = d.notice
			WHERE d.receiver = $1 AND d.delivered_at IS NULL AND d.gave_up_at IS NULL
			ORDER BY n.id LIMIT 1000
		)
		SELECT id, body, at, attempts FROM open WHERE NOT later AND NOT held ORDER BY id LIMIT $3`, receiver, patience, limit)
	if err != nil {
		return nil, wrap(err, "what is on its way to %s", receiver)
	}
	out, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (d pipeline.NoticeDelivery, err error) {
		err = row.Scan(&d.ID, &d.Body, &d.At, &d.Attempts)
		d.At = d.At.UTC()
		return d, err
	})
	return out, wrap(err, "what is on its way to %s", receiver)
}

// NoticeDelivered notes that the receiver has taken the notice.
func (s *Store) NoticeDelivered(ctx context.Context, receiver string, id int64) error {
	_, err := s.pool.Exec(ctx, `
		UPDATE notice_deliveries SET delivered_at = clock_timestamp(), attempts = attempts + 1, error = ''
		WHERE receiver = $1 AND notice = $2 AND delivered_at IS NULL`, receiver, id)
	return wrap(err, "note that %s has notice %d", receiver, id)
}

// NoticeFailed notes why the receiver does not have the notice; it is due again
// after the wait.
func (s *Store) NoticeFailed(ctx context.Context, receiver string, id int64, why string, wait time.Duration) error {
	_, err := s.pool.Exec(ctx, `
		UPDATE notice_deliveries SET attempts = attempts + 1, error = $3, next_at = clock_timestamp() + $4::interval
		WHERE receiver = $1 AND notice = $2 AND delivered_at IS NULL`, receiver, id, clean(why), wait)
	return wrap(err, "note that %s does not have notice %d", receiver, id)
}

// NoticeGivenUp notes that the receiver will never have the notice, and why.
func (s *Store) NoticeGivenUp(ctx context.Context, receiver string, id int64, why string) error {
	_, err := s.pool.Exec(ctx, `
		UPDATE notice_deliveries SET attempts = attempts + 1, error = $3, gave_up_at = clock_timestamp()
		WHERE receiver = $1 AND notice = $2 AND delivered_at IS NULL`, receiver, id, clean(why))
	return wrap(err, "note that %s will not have notice %d", receiver, id)
}

// pruneNotices removes what everybody has had for a month.
const pruneNotices = `
	WITH old AS (
		SELECT n.id FROM notices n WHERE n.given AND n.at < clock_timestamp() - interval '30 days'
		AND NOT EXISTS (SELECT FROM notice_deliveries d WHERE d.notice = n.id AND d.delivered_at IS NULL AND d.gave_up_at IS NULL)
		ORDER BY n.id LIMIT 1000
	), ways AS (DELETE FROM notice_deliveries d USING old WHERE d.notice = old.id RETURNING d.notice)
	DELETE FROM notices n USING old WHERE n.id = old.id AND (SELECT count(*) FROM ways) >= 0`

// PruneNotices removes notices of more than a month ago that are no longer on
// their way to anybody.
func (s *Store) PruneNotices(ctx context.Context) error {
	_, err := s.pool.Exec(ctx, pruneNotices)
	return wrap(err, "remove old notices")
}
