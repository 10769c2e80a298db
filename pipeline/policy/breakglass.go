package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/dray-project/dray/pipeline"
)

// emergency is what a gate allows in an emergency; without a rule of its own,
// admins may override its freezes.
func emergency(g pipeline.Gate) pipeline.BreakGlassRule {
	if g.BreakGlass != nil {
		return *g.BreakGlass
	}
	return pipeline.BreakGlassRule{Roles: []string{pipeline.RoleAdmin}, Overrides: []string{ruleFreeze}}
}

// checkBreakGlass refuses overrides of rules that there are not: in an emergency
// is no time to find a misspelt name. No roles and no overrides at all mean that
// nobody may override anything.
func checkBreakGlass(g pipeline.Gate, ready map[string]maker) error {
	b := emergency(g)
	if (len(b.Roles) == 0) != (len(b.Overrides) == 0) {
		return fmt.Errorf("breakGlass: want both roles and overrides, or neither, which allows nothing: %w", pipeline.ErrInvalid)
	}
	for _, r := range b.Roles {
		if !validName(r) {
			return fmt.Errorf("breakGlass.roles: %.60q is not the name of a role: %w", r, pipeline.ErrInvalid)
		}
	}
	for _, o := range b.Overrides {
		_, known := ready[o]
		known = known || o != ruleBreakGlass && slices.Contains(reserved[:5], o) ||
			o != "" && slices.ContainsFunc(g.Rules, func(r pipeline.Rule) bool { return r.Name == o })
		if !known {
			return fmt.Errorf("breakGlass.overrides: there is no rule %.60q in the gate: %w", o, pipeline.ErrInvalid)
		}
	}
	return nil
}

// breakGlass overrides in an emergency what may be overridden and does not pass,
// and says which rules these were; nil when none was.
func breakGlass(g pipeline.Gate, f facts, d *pipeline.Decision) *pipeline.BreakGlass {
	if strings.TrimSpace(f.Request.BreakGlass) == "" {
		return nil
	}
	b := emergency(g)
	if !slices.ContainsFunc(f.Request.Roles, func(r string) bool { return slices.Contains(b.Roles, r) }) {
		l := looked{"request.by": f.Request.By, "request.roles": few(f.Request.Roles), "request.breakGlass": f.Request.BreakGlass}
		res := refuse(l, "ask without break-glass, or have somebody with the role "+strings.Join(b.Roles, " or ")+" ask",
			"%s may not break the glass here: it takes the role %s", f.Request.By, strings.Join(b.Roles, " or "))
		if len(b.Roles) == 0 {
			res.Reason, res.Remedy = "nobody may break the glass here", "ask without break-glass"
		}
		res.Rule = ruleBreakGlass
		d.Rules = append(d.Rules, res)
		return nil
	}
	var used *pipeline.BreakGlass
	for i, r := range d.Rules {
		if r.Passed || !slices.Contains(b.Overrides, r.Rule) {
			continue
		}
		r.Reason = fmt.Sprintf("BREAK GLASS by %s: %s; overridden: %s", f.Request.By, f.Request.BreakGlass, r.Reason)
		r.Passed, r.Overridden, r.Pending, r.Until, r.Remedy = true, true, false, nil, ""
		d.Rules[i] = r
		if used == nil {
			used = &pipeline.BreakGlass{By: f.Request.By, Reason: f.Request.BreakGlass}
		}
		if !slices.Contains(used.Rules, r.Rule) {
			used.Rules = append(used.Rules, r.Rule)
		}
	}
	return used
}
