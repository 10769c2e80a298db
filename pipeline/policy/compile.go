package policy

import (
	"container/list"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/dray-project/dray/pipeline"
)

// The names of what a gate asks for by its fields, as decisions show them.
const (
	ruleReached    = "reached"
	ruleSoak       = "soak"
	ruleApprovals  = "approvals"
	ruleFreeze     = "freeze"
	ruleBreakGlass = "break-glass"
)

// reserved are names that no rule in CEL may have. "turn" and "built" are said
// of a promotion by whoever carries it out.
var reserved = [...]string{ruleReached, ruleSoak, ruleApprovals, ruleFreeze, ruleBreakGlass, "turn", "built"}

// Limits of one gate. They are far above what people write, and keep hostile
// settings from taking memory and time.
const (
	maxRules     = 200
	maxFreezes   = 50
	maxApprovals = 50
	maxAfter     = 50
	cachedGates  = 256
)

// rule is one compiled rule.
type rule struct {
	name string
	eval func(pipeline.Facts) pipeline.RuleResult
	// optional: an answer without a reason means that there is nothing to say.
	optional bool
}

// compiled is a gate that is ready to be asked. Where err is set, the rules that
// could not be used refuse.
type compiled struct {
	rules []rule
	err   error
}

func (p *Policy) compile(g pipeline.Gate) *compiled {
	digest := g.Digest()
	if c := p.gates.get(digest); c != nil {
		return c
	}
	c := p.compileAll(g)
	if digest != "" { // no digest: an argument is no JSON
		p.gates.put(digest, c)
	}
	return c
}

func (p *Policy) compileAll(g pipeline.Gate) *compiled {
	c := &compiled{}
	fail := func(err error) {
		if c.err == nil {
			c.err = err
		}
	}
	broken := func(name string, err error) {
		fail(err)
		c.rules = append(c.rules, rule{name: name, eval: func(pipeline.Facts) pipeline.RuleResult { return unusable(name, err) }})
	}
	if err := limits(g); err != nil {
		broken("gate", err)
		return c
	}
	if len(g.Rules) == 0 {
		fail(fmt.Errorf("rules: a gate without rules lets nothing pass: %w", pipeline.ErrInvalid))
	}
	names := map[string]bool{}
	for i, r := range g.Rules {
		compiled, err := p.compileRule(r, names)
		if err != nil {
			name := r.Use + r.Name
			if !validName(name) {
				name = fmt.Sprintf("rules[%d]", i)
			}
			broken(name, fmt.Errorf("rules[%d]: %w", i, err))
			continue
		}
		c.rules = append(c.rules, compiled)
	}
	if err := checkGate(g); err != nil {
		broken(ruleReached, err)
	}
	if err := checkBreakGlass(g, p.ready); err != nil {
		broken(ruleBreakGlass, err)
	}
	c.rules = append(c.rules,
		rule{ruleReached, func(f pipeline.Facts) pipeline.RuleResult { return reached(g, f) }, true},
		rule{ruleSoak, func(f pipeline.Facts) pipeline.RuleResult { return soak(g, f) }, true})
	if err := checkApprovals(g.Approvals); err != nil {
		broken(ruleApprovals, err)
	} else {
		c.rules = append(c.rules, rule{ruleApprovals, func(f pipeline.Facts) pipeline.RuleResult { return approvals(g.Approvals, f) }, true})
	}
	if windows, err := compileFreezes(g.Freezes); err != nil {
		broken(ruleFreeze, err)
	} else if len(windows) > 0 {
		c.rules = append(c.rules, rule{ruleFreeze, windows.judge, false})
	}
	return c
}

func (p *Policy) compileRule(r pipeline.Rule, names map[string]bool) (rule, error) {
	if r.Use != "" {
		make, ok := p.ready[r.Use]
		switch {
		case !ok:
			return rule{}, fmt.Errorf("use: there is no ready-made rule %.60q; there are %s: %w", r.Use, strings.Join(sortedKeys(p.ready), ", "), pipeline.ErrInvalid)
		case r.Name != "" || r.Expr != "" || r.Reason != "" || r.Remedy != "":
			return rule{}, fmt.Errorf("rule %s: name, expr, reason and remedy are for rules in CEL, not for a ready-made one: %w", r.Use, pipeline.ErrInvalid)
		}
		eval, err := make(arguments(r.With))
		if err != nil {
			return rule{}, fmt.Errorf("rule %s: %w", r.Use, err)
		}
		return rule{name: r.Use, eval: eval}, nil
	}
	_, ready := p.ready[r.Name]
	switch {
	case r.Name == "" && r.Expr == "":
		return rule{}, fmt.Errorf("want use, the name of a ready-made rule, or name and expr: %w", pipeline.ErrInvalid)
	case r.Name == "":
		return rule{}, fmt.Errorf("name: a rule in CEL needs one: %w", pipeline.ErrInvalid)
	case !validName(r.Name):
		return rule{}, fmt.Errorf("name is %.60q: want lower-case letters, digits and hyphens, 63 at most: %w", r.Name, pipeline.ErrInvalid)
	case ready || slices.Contains(reserved[:], r.Name):
		return rule{}, fmt.Errorf("name: %s is the name of a rule of Dray's own: %w", r.Name, pipeline.ErrInvalid)
	case names[r.Name]:
		return rule{}, fmt.Errorf("name: there are two rules %s: %w", r.Name, pipeline.ErrInvalid)
	case len(r.With) > 0:
		return rule{}, fmt.Errorf("rule %s: with is for ready-made rules: %w", r.Name, pipeline.ErrInvalid)
	}
	names[r.Name] = true
	eval, err := p.cel.compile(r)
	if err != nil {
		return rule{}, fmt.Errorf("rule %s: %w", r.Name, err)
	}
	return rule{name: r.Name, eval: eval}, nil
}

func limits(g pipeline.Gate) error {
	for _, l := range []struct {
		name      string
		have, max int
	}{{"rules", len(g.Rules), maxRules}, {"freezes", len(g.Freezes), maxFreezes}, {"approvals", len(g.Approvals), maxApprovals}, {"after", len(g.After), maxAfter}} {
		if l.have > l.max {
			return fmt.Errorf("%s: there are %d; at most %d are allowed: %w", l.name, l.have, l.max, pipeline.ErrInvalid)
		}
	}
	return nil
}

func checkGate(g pipeline.Gate) error {
	for _, name := range g.After {
		if !validName(name) {
			return fmt.Errorf("after: %.60q is not the name of an environment: %w", name, pipeline.ErrInvalid)
		}
	}
	switch {
	case g.Soak < 0:
		return fmt.Errorf("soak: a negative time: %w", pipeline.ErrInvalid)
	case g.Soak > 0 && len(g.After) == 0:
		return fmt.Errorf("soak is time in another environment, and after names none: %w", pipeline.ErrInvalid)
	}
	return nil
}

func validName(s string) bool {
	return s != "" && len(s) <= 63 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == "" && s[0] != '-'
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// invalid makes err one that wraps pipeline.ErrInvalid, once.
func invalid(err error) error {
	if errors.Is(err, pipeline.ErrInvalid) {
		return err
	}
	return fmt.Errorf("%w: %w", err, pipeline.ErrInvalid)
}

// cache keeps the gates that were used last.
type cache struct {
	mu    sync.Mutex
	max   int
	by    map[pipeline.Digest]*list.Element
	order *list.List // most recently used first
}

type cached struct {
	digest pipeline.Digest
	gate   *compiled
}

func newCache(max int) *cache {
	return &cache{max: max, by: map[pipeline.Digest]*list.Element{}, order: list.New()}
}

func (c *cache) get(d pipeline.Digest) *compiled {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.by[d]
	if !ok {
		return nil
	}
	c.order.MoveToFront(e)
	return e.Value.(cached).gate
}

func (c *cache) put(d pipeline.Digest, g *compiled) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.by[d]; ok {
		return
	}
	c.by[d] = c.order.PushFront(cached{d, g})
	for c.order.Len() > c.max {
		last := c.order.Remove(c.order.Back()).(cached)
		delete(c.by, last.digest)
	}
}
