package postgres

import (
	"context"
	"time"
)

const (
	// keepCheckpoints is how long every checkpoint of the log is kept. Of older
	// ones, the newest of each day is.
	keepCheckpoints = 30 * 24 * time.Hour
	// checkpointsAtOnce is how many are looked at in one transaction.
	checkpointsAtOnce = 10_000
)

// thinCheckpoints looks at some checkpoints from a size on, and removes those that
// are old and whose next was signed on the same day, in UTC. The last of those that
// it looks at has no next here and stays; so the newest of all always does. A clock
// that was set back over midnight leaves more than one for a day, never none.
const thinCheckpoints = `
	WITH part AS MATERIALIZED (
		SELECT size, signed_at < clock_timestamp() - $3::interval AS old,
		       (signed_at AT TIME ZONE 'UTC')::date = lead((signed_at AT TIME ZONE 'UTC')::date) OVER (ORDER BY size) AS followed
		FROM (SELECT size, signed_at FROM log_checkpoints WHERE size >= $1 ORDER BY size LIMIT $2) p),
	thinned AS (
		DELETE FROM log_checkpoints c USING part p WHERE c.size = p.size AND p.old AND p.followed RETURNING 1)
	SELECT coalesce(max(size), 0), count(*) = $2 AND bool_and(old), (SELECT count(*) FROM thinned) FROM part`

// ThinCheckpoints removes old checkpoints of the evidence log of which nothing is
// made any more: all are kept for 30 days, then the newest of each day, in UTC, and
// the newest of all. It returns how many it removed, a bounded number in a
// transaction; what was removed before an error stays so.
//
// Proofs are made of hashes, which all stay: whoever holds a checkpoint that is
// not kept here can still compare the log with it.
func (s *Store) ThinCheckpoints(ctx context.Context) (removed int64, err error) {
	more := true
	for from := int64(0); more; {
		var n int64
		// One more than may go, because the last stays.
		if err := s.pool.QueryRow(ctx, thinCheckpoints, from, checkpointsAtOnce+1, keepCheckpoints).Scan(&from, &more, &n); err != nil {
			return removed, wrap(err, "remove old checkpoints of the log")
		}
		removed += n
	}
	return removed, nil
}
