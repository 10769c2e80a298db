package postgres

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/dray-project/dray/pipeline"
)

// noticeable are what owners are told of what the evidence log says. Both are
// written with the change itself.
type noticeable struct {
	State       string   `json:"state"`
	Reason      string   `json:"reason"`
	Environment string   `json:"environment"`
	Repository  string   `json:"repository"`
	Waiting     bool     `json:"waiting"`
	Drift       string   `json:"drift"`
	About       string   `json:"about"`
	Detail      string   `json:"detail"`
	Rules       anyRules `json:"rules"`
}

// anyRules are a decision's rules, or the names of those that were overridden.
type anyRules []struct {
	Name, Reason    string
	Passed, Pending bool
}

// UnmarshalJSON implements json.Unmarshaler.
func (r *anyRules) UnmarshalJSON(raw []byte) error {
	var names []string
	if json.Unmarshal(raw, &names) == nil {
		for _, n := range names {
			*r = append(*r, struct {
				Name, Reason    string
				Passed, Pending bool
			}{Name: n})
		}
		return nil
	}
	var rules []struct {
		Rule, Reason    string
		Passed, Pending bool
	}
	if err := json.Unmarshal(raw, &rules); err != nil {
		return err
	}
	for _, x := range rules {
		*r = append(*r, struct {
			Name, Reason    string
			Passed, Pending bool
		}{x.Rule, x.Reason, x.Passed, x.Pending})
	}
	return nil
}

// noticeOf is what owners are told of an entry; ok is false for most.
func noticeOf(e pipeline.Entry) (n pipeline.Notice, ok bool) {
	var d noticeable
	switch e.Kind {
	case pipeline.EntryPromotionEnded, pipeline.EntryPromotionDecided, pipeline.EntryBreakGlass, pipeline.EntryDriftFound:
		// What is too long for an entry leaves what it says of itself, and no more.
		if len(e.Data) > 0 && json.Unmarshal(e.Data, &d) != nil {
			d = noticeable{}
		}
	default:
		return n, false
	}
	n = pipeline.Notice{Project: e.Project, Environment: d.Environment, Subject: e.Subject, At: e.At, Data: e.Data}
	if e.Image != "" && d.Repository != "" {
		n.Image = &pipeline.Image{Repository: d.Repository, Digest: e.Image}
	}
	where := cmp.Or(d.Environment, "an environment")
	switch e.Kind {
	case pipeline.EntryPromotionEnded:
		event, known := map[pipeline.State]string{
			pipeline.StateSucceeded: pipeline.NoticePromotionSucceeded, pipeline.StateRefused: pipeline.NoticePromotionRefused,
			pipeline.StateFailed: pipeline.NoticePromotionFailed,
		}[pipeline.State(d.State)]
		if !known {
			return n, false
		}
		n.Event, n.Key = event, event+"/"+e.Subject
		n.Summary = fmt.Sprintf("promotion %s to %s %s", e.Subject, where, d.State)
		if d.Reason != "" {
			n.Summary += ": " + cut(d.Reason, shortReason)
		}
	case pipeline.EntryPromotionDecided:
		if !d.Waiting {
			return n, false
		}
		// Whatever wakes it up, that it waits for the same things is no news.
		var pending []string
		for _, r := range d.Rules {
			if !r.Passed {
				pending = append(pending, r.Name)
			}
		}
		n.Event = pipeline.NoticePromotionWaiting
		n.Key = strings.Join([]string{n.Event, e.Subject, strings.Join(pending, ",")}, "/")
		n.Summary = fmt.Sprintf("promotion %s to %s waits: %s", e.Subject, where, strings.Join(pending, ", "))
	case pipeline.EntryBreakGlass:
		n.Event, n.Key = pipeline.NoticeBreakGlass, pipeline.NoticeBreakGlass+"/"+e.Subject
		n.Summary = fmt.Sprintf("%s used the emergency override for promotion %s to %s: %s", e.Actor, e.Subject, where, cut(d.Reason, shortReason))
	case pipeline.EntryDriftFound:
		n.Event, n.Key = pipeline.NoticeDrift, pipeline.NoticeDrift+"/"+e.Subject
		n.Summary = fmt.Sprintf("%s is not as the record says: %s of %s: %s", where, d.Drift, d.About, cut(d.Detail, shortReason))
	}
	return n, true
}
