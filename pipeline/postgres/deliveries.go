package postgres

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

// maxKey bounds what a caller chooses as a key: delivery ids, idempotency keys.
const maxKey = 255

// Accept writes the delivery, its run and the run's job in one transaction. The
// same delivery id gives what it gave the first time; the same event (project,
// kind, ref and what the ref names afterwards) under another id gives the run
// that the first one started. If that run was retried, both give the newest
// retry: it is the one that tells what became of the event.
func (s *Store) Accept(ctx context.Context, d pipeline.Delivery) (a pipeline.Accepted, err error) {
	defer func() { err = wrap(err, "accept %s delivery %.40q for %s", d.Forge, d.ID, d.Project) }()
	if d.ID == "" || len(d.ID) > maxKey {
		return a, fmt.Errorf("a delivery id has 1 to %d bytes, not %d: %w", maxKey, len(d.ID), pipeline.ErrInvalid)
	}
	event, err := document(d.Event)
	if err != nil {
		return a, err
	}
	err = s.tx(ctx, func(tx pgx.Tx) error {
		a = pipeline.Accepted{Run: pipeline.NewRunID(time.Now())}
		a.Note = "started run " + string(a.Run)
		if d.Event.Kind != pipeline.EventPush || d.Event.Deleted {
			a = pipeline.Accepted{Note: nothingToBuild(d.Event)}
		}
		seq, err := insertDelivery(ctx, tx, d, event, a)
		if errors.Is(err, pgx.ErrNoRows) {
			a, err = firstDelivery(ctx, tx, d)
			return err
		}
		if err != nil {
			return err
		}
		if a.Run == "" {
			return s.acceptedEntry(ctx, tx, d, seq, a, "")
		}
		known, err := s.insertRun(ctx, tx, d, event, a.Run)
		if err != nil {
			return err
		}
		if known == "" {
			return s.acceptedEntry(ctx, tx, d, seq, a, a.Run)
		}
		a = pipeline.Accepted{Duplicate: true, Note: "the same event arrived before and started run " + string(known)}
		_, err = tx.Exec(ctx, `UPDATE deliveries SET run = $2, note = $3 WHERE seq = $1`, seq, string(known), a.Note)
		if err != nil {
			return err
		}
		if err := s.acceptedEntry(ctx, tx, d, seq, a, known); err != nil {
			return err
		}
		return answerWith(ctx, tx, &a, known)
	})
	if err != nil {
		return pipeline.Accepted{}, err
	}
	return a, nil
}

func nothingToBuild(e pipeline.Event) string {
	if e.Deleted {
		return fmt.Sprintf("%s was deleted: nothing to build", e.Ref)
	}
	return fmt.Sprintf("%s: nothing to build", e.Kind)
}

// insertDelivery returns pgx.ErrNoRows if the delivery is not a new one. If
// another transaction is inserting the same, it waits to see how that ends.
func insertDelivery(ctx context.Context, tx pgx.Tx, d pipeline.Delivery, event []byte, a pipeline.Accepted) (seq int64, err error) {
	received := d.ReceivedAt
	if received.IsZero() {
		received = time.Now()
	}
	err = tx.QueryRow(ctx, `
		INSERT INTO deliveries (forge, delivery_id, project, event, body_digest, run, note, received_at)
		SELECT $1, $2, name, $4, $5, nullif($6, ''), $7, $8 FROM projects WHERE name = $3 AND active
		ON CONFLICT (forge, delivery_id) DO NOTHING RETURNING seq`,
		d.Forge, clean(d.ID), d.Project, event, string(d.BodyDigest), string(a.Run), clean(a.Note), received).Scan(&seq)
	return seq, err
}

// firstDelivery answers for a delivery that was not inserted.
func firstDelivery(ctx context.Context, tx pgx.Tx, d pipeline.Delivery) (a pipeline.Accepted, err error) {
	var owner, run string
	err = tx.QueryRow(ctx, `SELECT project, coalesce(run, ''), note FROM deliveries WHERE forge = $1 AND delivery_id = $2`,
		d.Forge, clean(d.ID)).Scan(&owner, &run, &a.Note)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return a, fmt.Errorf("no such project in the settings: %w", pipeline.ErrNotFound)
	case err != nil:
		return a, err
	case owner != d.Project:
		// The other project is nobody's business here.
		return pipeline.Accepted{}, fmt.Errorf("the delivery id was used for another project: %w", pipeline.ErrConflict)
	}
	a.Duplicate = true
	if run == "" {
		return a, nil
	}
	err = answerWith(ctx, tx, &a, pipeline.RunID(run))
	return a, err
}

// answerWith answers for an event that started the run first before.
func answerWith(ctx context.Context, tx pgx.Tx, a *pipeline.Accepted, first pipeline.RunID) (err error) {
	if a.Run, err = newestRun(ctx, tx, first); err == nil && a.Run != first {
		a.Note += ", which was retried as run " + string(a.Run)
	}
	return err
}

// insertRun writes the run and its job, or returns the run that the event
// started before.
func (s *Store) insertRun(ctx context.Context, tx pgx.Tx, d pipeline.Delivery, event []byte, id pipeline.RunID) (known pipeline.RunID, err error) {
	key := sha256.Sum256([]byte(strings.Join([]string{d.Project, string(d.Event.Kind), d.Event.Ref, d.Event.After}, "\x00")))
	tag, err := tx.Exec(ctx, `
		INSERT INTO runs (id, event_key, ref, event) VALUES ($1, $2, $3, $4)
		ON CONFLICT (event_key) DO NOTHING`, string(id), key[:], clean(d.Event.Ref), event)
	if err != nil {
		return "", err
	}
	if tag.RowsAffected() == 0 {
		err = tx.QueryRow(ctx, `SELECT id FROM runs WHERE event_key = $1`, key[:]).Scan((*string)(&known))
		return known, err
	}
	if err := s.insertJob(ctx, tx, id.Job(), kindRun, d.Project); err != nil {
		return "", err
	}
	return "", s.startedEntry(ctx, tx, pipeline.Run{ID: id, Project: d.Project, Event: d.Event}, actorDray)
}
