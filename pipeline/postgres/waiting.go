package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

// Wait implements pipeline.Store. One that waits behind a newer promotion, which
// therefore entered first, has been superseded and ends.
func (s *Store) Wait(ctx context.Context, c pipeline.Claim, w pipeline.Waiting) error {
	return s.claimedInLane(ctx, c, "wait", func(tx pgx.Tx, l *lane, j job) error {
		if err := onlyPromotions(l, c.Job); err != nil {
			return err
		}
		judged := pipeline.Judged{Decision: w.Decision, Diff: w.Diff}
		if err := upsertJudged(ctx, tx, c.Job, judged); err != nil {
			return err
		}
		if err := s.decidedEntries(ctx, tx, j, judged, row("decisions", c.Job)); err != nil {
			return err
		}
		reason := clean(w.Decision.Reason())
		_, err := tx.Exec(ctx, `
			UPDATE stages SET state = 'waiting', reason = $4, finished_at = clock_timestamp()
			WHERE job = $1 AND stage = $2 AND attempt = $3`, string(c.Job), string(c.Stage), c.Attempt, reason)
		if err != nil {
			return err
		}
		if err := appendEvents(ctx, tx, c.Job, stageEvent(c, stageWaiting, reason)); err != nil {
			return err
		}
		past, err := overtakenBy(ctx, tx, c.Job, w.Behind)
		if err != nil {
			return err
		}
		if past {
			return s.endJob(ctx, tx, l, j, actorDray, overtaken(l.environment, w.Behind))
		}
		return s.putToSleep(ctx, tx, l, j, w, reason)
	})
}

// overtakenBy reports whether the other was asked for later.
func overtakenBy(ctx context.Context, tx pgx.Tx, id pipeline.JobID, other pipeline.PromotionID) (past bool, err error) {
	if other == "" {
		return false, nil
	}
	err = tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM jobs a, jobs b WHERE a.id = $1 AND b.id = $2 AND `+older+`)`,
		string(id), string(other)).Scan(&past)
	return past, err
}

// putToSleep writes the state, and the row that ends it where that is known.
//
// No wake-up is lost: this transaction holds the lane, so the promotion in front
// ends either before, and is seen not to be inside, or after, and finds this
// one waiting; and it holds the job, so whoever does something to it did so
// before, and has left a nudge, or does so after, and finds it waiting.
func (s *Store) putToSleep(ctx context.Context, tx pgx.Tx, l *lane, j job, w pipeline.Waiting, reason string) error {
	behind := w.Behind
	if !l.holds(behind.Job()) {
		behind = ""
	}
	var nudged bool
	err := tx.QueryRow(ctx, `
		UPDATE promotions p SET nudged = false, behind = nullif($2, '') FROM promotions before
		WHERE p.id = $1 AND before.id = p.id RETURNING before.nudged`, string(j.id), string(behind)).Scan(&nudged)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `UPDATE jobs SET state = 'waiting', reason = $2, queue_job = NULL, wake_at = $3 WHERE id = $1`,
		string(j.id), reason, w.Decision.Until)
	if err != nil {
		return err
	}
	j.state, j.row = pipeline.StateWaiting, nil
	switch {
	case nudged, w.Behind != behind:
		err = s.enqueueNow(ctx, tx, j)
	case w.Decision.Until != nil:
		err = enqueueAt(ctx, tx, j.id, *w.Decision.Until)
	}
	if err != nil {
		return err
	}
	return appendEvents(ctx, tx, j.id, pipeline.JobEvent{Kind: pipeline.KindState, State: string(pipeline.StateWaiting), Message: reason})
}

// lookAhead is how long before its time a row may be marked as available:
// whoever fetches compares the time as well. It is more than leaseEvery, so that
// a row is ready when its time comes.
const lookAhead = 3 * time.Second

// enqueueAt makes a row whose time comes later. River's own insertion would
// leave one that is due in a moment to wait for the next round of those that
// make rows available.
func enqueueAt(ctx context.Context, tx pgx.Tx, id pipeline.JobID, at time.Time) error {
	_, err := tx.Exec(ctx, `
		WITH fresh AS (
			INSERT INTO river.river_job (args, kind, max_attempts, queue, scheduled_at, state)
			VALUES (jsonb_build_object('job', $1::text), $2, $3, $4, $5,
				(CASE WHEN $5 <= now() + $6::interval THEN 'available' ELSE 'scheduled' END)::river.river_job_state)
			RETURNING id
		)
		UPDATE jobs SET queue_job = fresh.id FROM fresh WHERE jobs.id = $1`,
		string(id), kindPromotion, riverMaxAttempts, queuePromotions, at, lookAhead)
	return wrap(err, "schedule %s for %s", id, at.UTC().Format(time.RFC3339))
}
