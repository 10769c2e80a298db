package postgres

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

func getDecision(ctx context.Context, q querier, id pipeline.JobID) (*pipeline.Decision, error) {
	var doc json.RawMessage
	err := q.QueryRow(ctx, `SELECT decision FROM decisions WHERE job = $1`, string(id)).Scan(&doc)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	d := new(pipeline.Decision)
	return d, json.Unmarshal(doc, d)
}

// getJudged adds to a promotion's details what its newest decision was about.
func getJudged(ctx context.Context, q querier, d *pipeline.PromotionDetail) error {
	var diff, summary json.RawMessage
	err := q.QueryRow(ctx, `SELECT diff, summary FROM decisions WHERE job = $1`, string(d.ID)).Scan(&diff, &summary)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err == nil && diff != nil {
		err = json.Unmarshal(diff, &d.Diff)
	}
	if err == nil && summary != nil {
		err = json.Unmarshal(summary, &d.Summary)
	}
	return err
}

// insertDecision keeps a decision unless there is one.
func insertDecision(ctx context.Context, tx pgx.Tx, id pipeline.JobID, d pipeline.Decision, s pipeline.Sealed) (fresh bool, err error) {
	return writeDecision(ctx, tx, id, pipeline.Judged{Decision: d, Summary: s}, `DO NOTHING`)
}

// upsertJudged makes a decision the newest.
func upsertJudged(ctx context.Context, tx pgx.Tx, id pipeline.JobID, j pipeline.Judged) error {
	_, err := writeDecision(ctx, tx, id, j, `
		DO UPDATE SET passed = excluded.passed, decision = excluded.decision, evaluated_at = excluded.evaluated_at,
			diff = excluded.diff, summary = excluded.summary`)
	return err
}

func writeDecision(ctx context.Context, tx pgx.Tx, id pipeline.JobID, j pipeline.Judged, conflict string) (written bool, err error) {
	doc, err := document(j.Decision)
	if err != nil {
		return false, wrap(err, "decision")
	}
	var diff, summary []byte
	if j.Diff.To.Digest != "" {
		if diff, err = document(j.Diff); err != nil {
			return false, wrap(err, "difference")
		}
	}
	if len(j.Summary.Envelope) > 0 {
		if summary, err = document(j.Summary); err != nil {
			return false, wrap(err, "summary of the decision")
		}
	}
	tag, err := tx.Exec(ctx, `
		INSERT INTO decisions (job, passed, decision, evaluated_at, diff, summary) VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT (job) `+conflict, string(id), j.Decision.Passed, doc, j.Decision.EvaluatedAt, diff, summary)
	return tag.RowsAffected() > 0, wrap(err, "write the decision")
}

// RecordDecision implements pipeline.Store.
func (s *Store) RecordDecision(ctx context.Context, c pipeline.Claim, j pipeline.Judged) error {
	outcome, err := document(j)
	if err != nil {
		return wrap(err, "record the decision on %s", c.Job)
	}
	return s.claimedInLane(ctx, c, "record the decision", func(tx pgx.Tx, l *lane, job job) error {
		if err := onlyPromotions(l, c.Job); err != nil {
			return err
		}
		if j.Decision.Passed {
			if err := notPruning(ctx, tx, l); err != nil {
				return err
			}
			if err := s.enter(ctx, tx, l, c.Job, j); err != nil {
				return err
			}
		}
		if err := upsertJudged(ctx, tx, c.Job, j); err != nil {
			return err
		}
		if err := s.decidedEntries(ctx, tx, job, j, row("decisions", c.Job), row("stages", c.Job, c.Stage, c.Attempt)); err != nil {
			return err
		}
		return succeed(ctx, tx, c, outcome)
	})
}
