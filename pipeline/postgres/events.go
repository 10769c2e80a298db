package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

// AppendEvents implements pipeline.Store. An event without a time, stage or
// attempt gets that of the write and of the claim.
func (s *Store) AppendEvents(ctx context.Context, c pipeline.Claim, events []pipeline.JobEvent) error {
	return s.claimed(ctx, c, "append events", func(tx pgx.Tx, _ job) error {
		filled := make([]pipeline.JobEvent, len(events))
		for i, e := range events {
			if e.Stage == "" && e.Attempt == 0 {
				e.Stage, e.Attempt = c.Stage, c.Attempt
			}
			filled[i] = e
		}
		return appendEvents(ctx, tx, c.Job, filled...)
	})
}

// appendEvents numbers the events by updating the job's row, which stays locked
// until the commit: readers see numbers without gaps, in order.
func appendEvents(ctx context.Context, tx pgx.Tx, id pipeline.JobID, events ...pipeline.JobEvent) error {
	if len(events) == 0 {
		return nil
	}
	n := len(events)
	times, kinds, stages := make([]*time.Time, n), make([]string, n), make([]string, n)
	attempts, states, messages := make([]int32, n), make([]string, n), make([]string, n)
	steps, logs := make([]*string, n), make([]*string, n)
	for i, e := range events {
		if !e.Time.IsZero() {
			times[i] = &e.Time
		}
		kinds[i], stages[i], attempts[i], states[i], messages[i] = e.Kind, string(e.Stage), int32(e.Attempt), clean(e.State), clean(e.Message)
		var err error
		if e.Step != nil {
			if steps[i], err = jsonText(e.Step); err != nil {
				return err
			}
		}
		if e.Log != nil {
			if logs[i], err = jsonText(e.Log); err != nil {
				return err
			}
		}
	}
	_, err := tx.Exec(ctx, `
		WITH numbered AS (UPDATE jobs SET last_seq = last_seq + $2 WHERE id = $1 RETURNING last_seq - $2 AS before)
		INSERT INTO events (job, seq, time, kind, stage, attempt, state, message, step, log)
		SELECT $1, n.before + e.i, coalesce(e.time, clock_timestamp()), e.kind, e.stage, e.attempt, e.state, e.message, e.step::json, e.log::json
		FROM numbered n, unnest($3::timestamptz[], $4::text[], $5::text[], $6::integer[], $7::text[], $8::text[], $9::text[], $10::text[])
			WITH ORDINALITY AS e (time, kind, stage, attempt, state, message, step, log, i)`,
		string(id), int64(n), times, kinds, stages, attempts, states, messages, steps, logs)
	return wrap(err, "write %d events", n)
}

func jsonText(v any) (*string, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	s := string(b)
	return &s, nil
}

// Events returns at most limit events of a job after seq, and whether the job
// has ended and has no later ones.
func (s *Store) Events(ctx context.Context, id pipeline.JobID, after int64, limit int) (events []pipeline.JobEvent, end bool, err error) {
	// The job is read before its events: what is final then stays complete.
	var state pipeline.State
	var last int64
	err = s.pool.QueryRow(ctx, `SELECT state, last_seq FROM jobs WHERE id = $1`, string(id)).Scan((*string)(&state), &last)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, false, fmt.Errorf("events of %s: no such job: %w", id, pipeline.ErrNotFound)
	}
	if err != nil {
		return nil, false, wrap(err, "events of %s", id)
	}
	rows, err := s.pool.Query(ctx, `
		SELECT seq, time, kind, stage, attempt, state, message, step, log
		FROM events WHERE job = $1 AND seq > $2 ORDER BY seq LIMIT $3`, string(id), after, max(limit, 0))
	if err != nil {
		return nil, false, wrap(err, "events of %s", id)
	}
	events, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (pipeline.JobEvent, error) {
		var e pipeline.JobEvent
		var step, log json.RawMessage
		if err := row.Scan(&e.Seq, &e.Time, &e.Kind, (*string)(&e.Stage), &e.Attempt, &e.State, &e.Message, &step, &log); err != nil {
			return e, err
		}
		e.Time = e.Time.UTC()
		if step != nil {
			if err := json.Unmarshal(step, &e.Step); err != nil {
				return e, err
			}
		}
		if log != nil {
			if err := json.Unmarshal(log, &e.Log); err != nil {
				return e, err
			}
		}
		return e, nil
	})
	if err != nil {
		return nil, false, wrap(err, "events of %s", id)
	}
	seen := after
	if len(events) > 0 {
		seen = events[len(events)-1].Seq
	}
	return events, state.Final() && seen >= last, nil
}
