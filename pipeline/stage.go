package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"
)

// recordTimeout bounds the writes that happen after a job was cancelled.
const recordTimeout = 30 * time.Second

// stage runs one stage of a job, once: if the store has an outcome already, that
// is the answer; else do is called and record keeps what it returned. The
// effects in do must be idempotent, because a crash between an effect and its
// record means that do runs again.
//
// The outcome is recorded even if ctx is cancelled meanwhile: the effect has
// happened, and forgetting it would only make it happen twice.
func stage[T any](ctx context.Context, p *Pipeline, job JobID, name Stage,
	do func(context.Context, Claim) (T, error),
	record func(context.Context, Claim, T) error,
) (out T, err error) {
	claim, err := p.Store.StartStage(ctx, job, name)
	if errors.Is(err, ErrConflict) {
		return out, fmt.Errorf("%s: start: the job ended meanwhile: %w", name, ErrStale)
	}
	if err != nil {
		return out, fmt.Errorf("%s: start: %w", name, err)
	}
	if claim.Done {
		if err := json.Unmarshal(claim.Outcome, &out); err != nil {
			return out, fmt.Errorf("%s: read the recorded outcome: %w", name, err)
		}
		return out, nil
	}
	log := p.Log.With("job", job, "stage", name, "attempt", claim.Attempt)
	log.InfoContext(ctx, "stage started")
	began := p.Now()

	out, err = do(ctx, claim)
	after, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancel()
	if err == nil {
		if err = record(after, claim, out); err == nil {
			log.InfoContext(ctx, "stage finished", "took", p.Now().Sub(began))
			return out, nil
		}
		if errors.Is(err, errWaiting) {
			log.InfoContext(ctx, "stage waits", "took", p.Now().Sub(began))
			return out, err
		}
		err = fmt.Errorf("record the outcome: %w", err)
	}
	reason := p.Mask.Mask(err.Error())
	log.WarnContext(ctx, "stage failed", "took", p.Now().Sub(began), "permanent", IsPermanent(err), "error", reason)
	if !errors.Is(err, ErrStale) && ctx.Err() == nil {
		if ferr := p.Store.FailStage(after, claim, reason); ferr != nil {
			log.WarnContext(ctx, "failure not recorded", "error", ferr)
		}
	}
	return out, &stageError{stage: name, text: reason, err: err}
}

// stageError names the stage and shows the masked text; the error underneath
// stays reachable for errors.Is.
type stageError struct {
	stage Stage
	text  string
	err   error
}

func (e *stageError) Error() string { return string(e.stage) + ": " + e.text }
func (e *stageError) Unwrap() error { return e.err }

// finish is the record function of a stage that has nothing to keep but its outcome.
func finish[T any](p *Pipeline) func(context.Context, Claim, T) error {
	return func(ctx context.Context, c Claim, out T) error {
		b, err := json.Marshal(out)
		if err != nil {
			return err
		}
		return p.Store.FinishStage(ctx, c, b)
	}
}

// each calls do for every item at the same time and returns the results in
// order. The first error cancels the others.
func each[I, O any](ctx context.Context, items []I, do func(context.Context, I) (O, error)) ([]O, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	out := make([]O, len(items))
	var wg sync.WaitGroup
	for i, item := range items {
		wg.Go(func() {
			o, err := do(ctx, item)
			if err != nil {
				cancel(err)
				return
			}
			out[i] = o
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	return out, nil
}
