package main

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var freed atomic.Int64
		r := newRest(slog.New(slog.DiscardHandler))
		r.free = func() { freed.Add(1) }
		defer r.stop()
		job := during(r, func(_ context.Context, d time.Duration) error { time.Sleep(d); return nil })

		// A job that outlasts the pause after the start holds the rest off.
		go func() { _ = job(t.Context(), 3*restAfter) }()
		time.Sleep(2 * restAfter)
		if freed.Load() != 0 {
			t.Error("memory was given back in the middle of a job")
		}
		time.Sleep(3 * restAfter)
		if n := freed.Load(); n != 1 {
			t.Errorf("memory was given back %d times after the job, want once", n)
		}

		// Jobs that follow each other closely have one rest at their end.
		for range 4 {
			if err := job(t.Context(), time.Second); err != nil {
				t.Error(err)
			}
			time.Sleep(restAfter / 2)
		}
		time.Sleep(2 * restAfter)
		if n := freed.Load(); n != 2 {
			t.Errorf("memory was given back %d times in all, want twice", n)
		}
	})
}
