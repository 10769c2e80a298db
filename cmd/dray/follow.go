package main

import (
	"context"
	"fmt"
	"io"
	"iter"
	"strings"
	"time"

	"github.com/dray-project/dray/pipeline"
)

// follow prints what happens to a job to standard error until it is final.
// waiting is called, if it is not nil, whenever the job has to wait.
func (a *app) follow(ctx context.Context, events iter.Seq2[pipeline.JobEvent, error], waiting func(pipeline.JobEvent)) error {
	p := &progress{w: a.writer(a.stderr), out: a.stderr, started: map[pipeline.Stage]time.Time{}}
	for e, err := range events {
		if err != nil {
			return cause(ctx, err)
		}
		p.event(e)
		if waiting != nil && e.Kind == pipeline.KindState && e.State == string(pipeline.StateWaiting) {
			waiting(e)
		}
	}
	return nil
}

// cause tells a timeout from what it looks like.
func cause(ctx context.Context, err error) error {
	if c := context.Cause(ctx); c != nil && ctx.Err() != nil {
		return c
	}
	return err
}

// progress shows stages and build steps, one line each when something happens.
type progress struct {
	w       *writer
	out     io.Writer
	started map[pipeline.Stage]time.Time
}

func (p *progress) event(e pipeline.JobEvent) {
	var line string
	switch {
	case e.Kind == pipeline.KindStage && e.State == "started":
		p.started[e.Stage] = e.Time
		line = fmt.Sprintf("%-8s %s", clean(string(e.Stage)), p.w.paint(stateCell("running")))
		if e.Attempt > 1 {
			line += fmt.Sprintf(" (attempt %d)", e.Attempt)
		}
	case e.Kind == pipeline.KindStage:
		line = fmt.Sprintf("%-8s %s", clean(string(e.Stage)), p.w.paint(stateCell(e.State)))
		if start, ok := p.started[e.Stage]; ok {
			line += " in " + duration(e.Time.Sub(start))
		}
		if e.Message != "" {
			line += ": " + clean(e.Message)
		}
	case e.Kind == pipeline.KindStep && e.Step != nil:
		line = stepLine(e.Step)
	}
	if line != "" {
		fmt.Fprintln(p.out, line)
	}
}

// stepLine says that a build step ended; its start is not worth a line.
func stepLine(s *pipeline.Step) string {
	what := clean(strings.TrimSpace(string(s.Platform) + " " + s.Name))
	switch {
	case s.Error != "":
		return "  failed " + what + ": " + clean(s.Error)
	case s.Cached:
		return "  cached " + what
	case s.Completed != nil && s.Started != nil:
		return fmt.Sprintf("  %s %s", what, duration(s.Completed.Sub(*s.Started)))
	}
	return ""
}

// logs prints a build's output with its steps, each under a small number.
type logs struct {
	out      io.Writer
	platform pipeline.Platform
	numbers  map[string]int
	named    map[string]bool
	ended    map[string]bool
}

func (l *logs) number(step string) int {
	n, ok := l.numbers[step]
	if !ok {
		n = len(l.numbers) + 1
		l.numbers[step] = n
	}
	return n
}

func (l *logs) wants(p pipeline.Platform) bool { return l.platform == "" || p == "" || p == l.platform }

func (l *logs) event(e pipeline.JobEvent) error {
	switch {
	case e.Log != nil && l.wants(e.Log.Platform):
		_, err := fmt.Fprintf(l.out, "#%d %s\n", l.number(e.Log.Step), clean(e.Log.Text))
		return err
	case e.Step != nil && l.wants(e.Step.Platform):
		return l.step(e.Step)
	case e.Kind == pipeline.KindStage && e.State == "failed":
		_, err := fmt.Fprintf(l.out, "%s failed: %s\n", clean(string(e.Stage)), clean(e.Message))
		return err
	}
	return nil
}

func (l *logs) step(s *pipeline.Step) error {
	n := l.number(s.ID)
	if !l.named[s.ID] {
		l.named[s.ID] = true
		name := clean(s.Name)
		if s.Platform != "" {
			name = "[" + clean(string(s.Platform)) + "] " + name
		}
		if _, err := fmt.Fprintf(l.out, "#%d %s\n", n, name); err != nil {
			return err
		}
	}
	if l.ended[s.ID] {
		return nil
	}
	end := ""
	switch {
	case s.Error != "":
		end = "ERROR: " + clean(s.Error)
	case s.Cached:
		end = "CACHED"
	case s.Completed != nil:
		end = "DONE"
		if s.Started != nil {
			end += " " + duration(s.Completed.Sub(*s.Started))
		}
	default:
		return nil
	}
	l.ended[s.ID] = true
	_, err := fmt.Fprintf(l.out, "#%d %s\n", n, end)
	return err
}
