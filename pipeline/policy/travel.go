package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dray-project/dray/pipeline"
)

// at returns what is known of the image in an environment; ok is false when it
// never got there or was rolled back from there.
func at(f facts, environment string) (r pipeline.ReachedFact, ok bool) {
	for _, r := range f.Reached {
		if r.Environment == environment && !r.Withdrawn {
			return r, true
		}
	}
	return pipeline.ReachedFact{}, false
}

// reached: the image was promoted to every environment that comes before.
func reached(g pipeline.Gate, f facts) result {
	if len(g.After) == 0 {
		return result{}
	}
	l := looked{"reached": travels(f)}
	var missing, remedies []string
	for _, name := range g.After {
		if _, ok := at(f, name); ok {
			continue
		}
		if slices.ContainsFunc(f.Reached, func(r pipeline.ReachedFact) bool { return r.Environment == name }) {
			missing = append(missing, name+" was rolled back from this image")
			remedies = append(remedies, "promote it to "+name+" again first")
		} else {
			missing = append(missing, "it has not been in "+name)
			remedies = append(remedies, "promote it to "+name+" first")
		}
	}
	if len(missing) > 0 {
		return refuse(l, strings.Join(remedies, "; "), "%s", strings.Join(missing, "; "))
	}
	return pass(l, "it has been in %s", strings.Join(g.After, ", "))
}

// soak: it has been there for long enough, counted for this digest from the
// moment it got there, whatever else has passed through since.
func soak(g pipeline.Gate, f facts) result {
	if g.Soak <= 0 {
		return result{}
	}
	l := looked{"reached": travels(f), "now": f.Now}
	var until time.Time
	var where string
	for _, name := range g.After {
		r, ok := at(f, name)
		if !ok {
			return refuse(l, "promote it to "+name+" first", "its %s in %s have not begun: it is not there", g.Soak, name)
		}
		if end := r.Since.Add(g.Soak.Std()).UTC(); where == "" || end.After(until) {
			until, where = end, name
		}
	}
	if f.Now.Before(until) {
		res := refuse(l, "nothing: it goes on by itself at "+second(until),
			"it has to be in %s for %s, which is at %s; %s are left", where, g.Soak, second(until), roughly(until.Sub(f.Now)))
		res.Pending, res.Until = true, &until
		return res
	}
	return pass(l, "it has been in %s for %s or more", strings.Join(g.After, ", "), g.Soak)
}

func travels(f facts) []string {
	out := []string{}
	for _, r := range f.Reached {
		note := ""
		if r.Withdrawn {
			note = ", rolled back"
		}
		out = append(out, fmt.Sprintf("%s since %s%s", r.Environment, second(r.Since), note))
	}
	return few(out)
}

func second(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 MST") }
