package pipeline

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

const (
	// recordEvery is how long a line may wait before its followers can see it.
	recordEvery = 150 * time.Millisecond
	// recordBatch is how many events are written at once.
	recordBatch = 500
	// recordBacklog bounds the memory while the store does not answer.
	recordBacklog = 20_000
)

// recorder stores the progress of a build as it happens, in batches, masked.
// It belongs to one claim; when that is superseded, it cancels the work.
type recorder struct {
	p      *Pipeline
	claim  Claim
	cancel context.CancelCauseFunc

	mu      sync.Mutex
	pending []JobEvent
	lost    int

	stop chan struct{}
	done chan struct{}
}

// progress starts a recorder. The context that it returns is cancelled when the
// claim is superseded; close must be called.
func (p *Pipeline) progress(ctx context.Context, c Claim) (context.Context, *recorder) {
	ctx, cancel := context.WithCancelCause(ctx)
	r := &recorder{p: p, claim: c, cancel: cancel, stop: make(chan struct{}), done: make(chan struct{})}
	go r.loop(context.WithoutCancel(ctx))
	return ctx, r
}

func (r *recorder) Step(s Step) {
	s.Name, s.Error = r.p.Mask.Mask(s.Name), r.p.Mask.Mask(s.Error)
	r.add(JobEvent{Kind: KindStep, Step: &s})
}

func (r *recorder) Line(l Line) {
	l.Text = r.p.Mask.Mask(l.Text)
	r.add(JobEvent{Kind: KindLog, Log: &l})
}

func (r *recorder) say(format string, args ...any) {
	r.Line(Line{Text: fmt.Sprintf(format, args...)})
}

func (r *recorder) add(e JobEvent) {
	e.Time, e.Stage, e.Attempt = r.p.Now().UTC(), r.claim.Stage, r.claim.Attempt
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.pending) >= recordBacklog {
		r.lost++
		return
	}
	r.pending = append(r.pending, e)
}

func (r *recorder) loop(ctx context.Context) {
	defer close(r.done)
	tick := time.NewTicker(recordEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			r.flush(ctx)
		case <-r.stop:
			r.flush(ctx)
			return
		}
	}
}

// flush writes what is pending. What cannot be written stays for the next time.
func (r *recorder) flush(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, recordTimeout)
	defer cancel()
	for {
		r.mu.Lock()
		batch := r.pending[:min(len(r.pending), recordBatch)]
		lost := r.lost
		r.mu.Unlock()
		if len(batch) == 0 {
			return
		}
		write := batch
		if lost > 0 {
			note := JobEvent{Kind: KindLog, Time: r.p.Now().UTC(), Stage: r.claim.Stage, Attempt: r.claim.Attempt,
				Log: &Line{Text: fmt.Sprintf("%d lines were not kept: the database did not answer in time", lost)}}
			write = append(write[:len(write):len(write)], note)
		}
		if err := r.p.Store.AppendEvents(ctx, r.claim, write); err != nil {
			if errors.Is(err, ErrStale) {
				r.cancel(err)
			}
			r.p.Log.WarnContext(ctx, "progress not stored", "job", r.claim.Job, "stage", r.claim.Stage, "error", err)
			return
		}
		r.mu.Lock()
		r.pending = r.pending[len(batch):]
		r.lost -= lost
		r.mu.Unlock()
	}
}

// close writes the rest and waits for it.
func (r *recorder) close() {
	close(r.stop)
	<-r.done
	r.cancel(nil)
}
