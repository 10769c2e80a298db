package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"
	_ "time/tzdata" // windows are meant in time zones, and a container may have none

	"github.com/dray-project/dray/pipeline"
)

// A window that is longer is no freeze but an environment to be removed; and
// it bounds how far back one has to look for a window that is still open.
const maxWindow = 366 * 24 * time.Hour

// horizon is how far windows that follow one another are followed to their end,
// and maxChain how many of them.
const (
	horizon  = 5 * 366 * 24 * time.Hour
	maxChain = 2000
)

// window is a compiled pipeline.Freeze.
type window struct {
	name string
	recurrence
	length time.Duration
}

type windows []window

func compileFreezes(freezes []pipeline.Freeze) (windows, error) {
	var out windows
	names := map[string]bool{}
	for i, f := range freezes {
		if strings.TrimSpace(f.Name) == "" || len(f.Name) > 100 || strings.ContainsFunc(f.Name, func(r rune) bool { return r < ' ' }) {
			return nil, fmt.Errorf("freezes[%d].name is %.40q: want 1 to 100 characters: %w", i, f.Name, pipeline.ErrInvalid)
		}
		if names[f.Name] {
			return nil, fmt.Errorf("freezes[%d]: there are two freezes %s: %w", i, f.Name, pipeline.ErrInvalid)
		}
		names[f.Name] = true
		w, err := compileFreeze(f)
		if err != nil {
			return nil, fmt.Errorf("freeze %s: %w", f.Name, err)
		}
		out = append(out, w)
	}
	return out, nil
}

func compileFreeze(f pipeline.Freeze) (window, error) {
	w := window{name: f.Name, length: f.For.Std()}
	if w.length < time.Minute || w.length > maxWindow {
		return w, fmt.Errorf("for is %s: want one minute to 366 days: %w", f.For, pipeline.ErrInvalid)
	}
	if f.TimeZone == "Local" {
		return w, fmt.Errorf("timeZone: Local is another zone on every machine; name it, such as Europe/Zurich: %w", pipeline.ErrInvalid)
	}
	zone, err := time.LoadLocation(f.TimeZone) // UTC when empty
	if err != nil {
		return w, fmt.Errorf("timeZone is %.60q: want a name of the IANA database, such as Europe/Zurich: %w", f.TimeZone, pipeline.ErrInvalid)
	}
	start, err := parseWall(f.Start)
	if err != nil {
		return w, fmt.Errorf("start: %w", err)
	}
	if w.recurrence, err = parseRecurrence(f.Recur, start, zone); err != nil {
		return w, fmt.Errorf("recur: %w", err)
	}
	first := w.instant(start)
	if span, ended := (windows{w}).span(first); !ended {
		return w, fmt.Errorf("its windows leave no gap until %s: nothing could ever enter: %w", minute(span.until), pipeline.ErrInvalid)
	}
	return w, nil
}

// frozen is a time in which windows follow one another without a gap.
type frozen struct {
	by    []window // that cover the moment that was asked about
	until time.Time
}

// span looks for the windows that cover a moment, and for the first moment
// after it that no window covers. ended is false when that is too far away:
// until is then how far was looked.
func (ws windows) span(t time.Time) (s frozen, ended bool) {
	seen := make([]memo, len(ws))
	s.until = t
	for range maxChain {
		end := s.until
		for i, w := range ws {
			began, ok := w.latest(s.until, w.length, &seen[i])
			if !ok || !began.Add(w.length).After(s.until) {
				continue
			}
			if s.until.Equal(t) {
				s.by = append(s.by, w)
			}
			if e := began.Add(w.length); e.After(end) {
				end = e
			}
		}
		if end.Equal(s.until) {
			return s, true
		}
		s.until = end
		if end.Sub(t) > horizon {
			break
		}
	}
	return s, false
}

// judge: no window is open now.
func (ws windows) judge(f facts) result {
	s, ended := ws.span(f.Now)
	l := looked{"now": f.Now}
	if len(s.by) == 0 {
		names := make([]string, len(ws))
		for i, w := range ws {
			names[i] = w.name
		}
		return pass(l, "no freeze now (%s)", some(names, 5, ", "))
	}
	var names []string
	for _, w := range s.by {
		names = append(names, w.name)
	}
	slices.Sort(names)
	first := s.by[slices.IndexFunc(s.by, func(w window) bool { return w.name == names[0] })]
	word := "until"
	if !ended {
		word = "at least until"
	}
	zone := first.zone
	when := s.until.In(zone).Format("2006-01-02 15:04 MST")
	if zone != time.UTC {
		when += " (" + zone.String() + ")"
	}
	res := refuse(l, "nothing: it goes on by itself then; in an emergency, ask with break-glass and a reason",
		"frozen by %s %s %s", some(names, 5, " and "), word, when)
	until := s.until.UTC()
	res.Pending, res.Until = true, &until
	return res
}
