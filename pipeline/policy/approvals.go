package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/dray-project/dray/pipeline"
)

func checkApprovals(rules []pipeline.ApprovalRule) error {
	for i, r := range rules {
		switch {
		case !validName(r.Role):
			return fmt.Errorf("approvals[%d].role is %.60q: want the name of a role: %w", i, r.Role, pipeline.ErrInvalid)
		case r.Count < 0 || r.Count > 100:
			return fmt.Errorf("approvals[%d].count is %d: want 1 to 100: %w", i, r.Count, pipeline.ErrInvalid)
		}
	}
	return nil
}

// approvals: enough different people with the right roles have approved exactly
// this change. Somebody who has several roles counts for each rule that asks for
// one of them. A rejection of this change refuses, also where no rule asks for
// approvals.
func approvals(rules []pipeline.ApprovalRule, f facts) result {
	var said, stale, rejected []string
	var valid []pipeline.Approval
	for _, a := range f.Approvals {
		current := a.Plan == f.Request.Plan && a.Plan != ""
		switch {
		case !current:
			stale = appendNew(stale, a.By)
		case a.Rejected:
			why := ""
			if a.Comment != "" {
				why = fmt.Sprintf(": %.200q", a.Comment)
			}
			rejected = append(rejected, a.By+why)
		default:
			valid = append(valid, a)
		}
		word := "approved"
		if a.Rejected {
			word = "rejected"
		}
		if !current {
			word += " another change"
		}
		said = append(said, fmt.Sprintf("%s (%s) %s", a.By, strings.Join(a.Roles, ", "), word))
	}
	l := looked{"approvals": few(said), "request.by": f.Request.By, "request.plan": f.Request.Plan}
	if len(rejected) > 0 {
		return refuse(l, "settle it with whoever rejected it, and ask for a new promotion", "rejected by %s", some(rejected, 5, "; "))
	}
	if len(rules) == 0 {
		return result{}
	}
	var have, lack, remedies []string
	for _, r := range rules {
		need := max(r.Count, 1)
		var by []string
		self := false
		for _, a := range valid {
			if !slices.Contains(a.Roles, r.Role) {
				continue
			}
			if r.NotRequester && a.By == f.Request.By {
				self = true
				continue
			}
			by = appendNew(by, a.By)
		}
		names := ""
		if len(by) > 0 {
			names = " (" + some(by, 5, ", ") + ")"
		}
		line := fmt.Sprintf("%d of %d by %s%s", len(by), need, r.Role, names)
		if len(by) >= need {
			have = append(have, line)
			continue
		}
		if self {
			line += fmt.Sprintf(", and %s, who asked for it, does not count", f.Request.By)
		}
		lack = append(lack, line)
		other := ""
		if r.NotRequester {
			other = " other than " + f.Request.By
		}
		remedies = append(remedies, fmt.Sprintf("%d more with the role %s%s", need-len(by), r.Role, other))
	}
	aside := ""
	stale = slices.DeleteFunc(stale, func(by string) bool {
		return slices.ContainsFunc(valid, func(a pipeline.Approval) bool { return a.By == by })
	})
	if len(stale) > 0 {
		aside = "; what " + some(stale, 5, ", ") + " said was of another change and does not count"
	}
	if len(lack) > 0 {
		res := refuse(l, "it has to be approved by "+strings.Join(remedies, " and "), "approved %s%s", strings.Join(append(lack, have...), "; "), aside)
		res.Pending = true
		return res
	}
	return pass(l, "approved %s%s", strings.Join(have, "; "), aside)
}

func appendNew(list []string, s string) []string {
	if slices.Contains(list, s) {
		return list
	}
	return append(list, s)
}
