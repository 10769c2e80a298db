package main

import (
	"context"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"
)

// restAfter is how long nothing must be worked on before memory is given back.
const restAfter = 5 * time.Second

// rest gives memory back to the system when work has paused. Opening the key
// and scanning an image take much memory for a moment (the key's derivation
// alone 64 MiB, by design), and Go would keep it for minutes in case it is
// wanted again.
type rest struct {
	mu     sync.Mutex
	active int
	timer  *time.Timer
	free   func()
}

func newRest(log *slog.Logger) *rest {
	r := &rest{free: func() {
		debug.FreeOSMemory()
		if err := unmapProgram(); err != nil {
			log.Warn("the program's pages stay mapped", "error", err)
		}
	}}
	r.timer = time.AfterFunc(restAfter, r.idle)
	return r
}

func (r *rest) idle() {
	r.mu.Lock()
	quiet := r.active == 0
	r.mu.Unlock()
	if quiet {
		r.free()
	}
}

// during wraps a job so that a rest begins some time after the last one.
func during[ID any](r *rest, job func(context.Context, ID) error) func(context.Context, ID) error {
	return func(ctx context.Context, id ID) error {
		r.mu.Lock()
		r.active++
		r.mu.Unlock()
		defer func() {
			r.mu.Lock()
			defer r.mu.Unlock()
			if r.active--; r.active == 0 {
				r.timer.Reset(restAfter)
			}
		}()
		return job(ctx, id)
	}
}

// stop ends the waiting.
func (r *rest) stop() { r.timer.Stop() }
