// Package policy judges images: it evaluates the rules of a gate over facts and
// says of each rule whether it passed, why, and what would change the answer.
package policy

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/dray-project/dray/pipeline"
)

// Config of a Policy.
type Config struct {
	// Log receives what a rule did that nobody foresaw. Required.
	Log *slog.Logger
}

// Policy implements pipeline.Judge. It is safe for concurrent use.
type Policy struct {
	log   *slog.Logger
	cel   *language
	ready map[string]maker
	gates *cache
}

var _ pipeline.Judge = (*Policy)(nil)

// New prepares the language of rules and the ready-made ones.
func New(ctx context.Context, cfg Config) (*Policy, error) {
	if cfg.Log == nil {
		return nil, fmt.Errorf("policy: Log is required: %w", pipeline.ErrInvalid)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	lang, err := newLanguage()
	if err != nil {
		return nil, fmt.Errorf("prepare the language of rules: %w", err)
	}
	return &Policy{log: cfg.Log, cel: lang, ready: readyMade(), gates: newCache(cachedGates)}, nil
}

// Check implements pipeline.Judge.
func (p *Policy) Check(g pipeline.Gate) error { return p.compile(g).err }

// Judge implements pipeline.Judge. The results come in the order of the gate's
// rules, then reached, soak, approvals, freeze and break-glass.
func (p *Policy) Judge(g pipeline.Gate, f pipeline.Facts) pipeline.Decision {
	f.Now = f.Now.UTC()
	d := pipeline.Decision{Rules: []pipeline.RuleResult{}}
	for _, r := range p.compile(g).rules {
		if res := p.ask(r, f); res.Rule != "" {
			d.Rules = append(d.Rules, res)
		}
	}
	d.BreakGlass = breakGlass(g, f, &d)
	d.Policy = pipeline.PolicyVersion{Project: f.Project, Environment: f.Environment, Version: f.Version, Digest: g.Digest(), Gate: g}
	d.Suppressed, d.Ignored = f.Suppressed(), f.Ignored
	d.Database = pipeline.VulnerabilityDatabase{Digest: f.Scan.Database, UpdatedAt: f.Scan.DatabaseUpdatedAt}
	d.Plan, d.EvaluatedAt = f.Request.Plan, f.Now
	d.Conclude()
	return d
}

// ask evaluates one rule. One that breaks down refuses: a gate that cannot be
// evaluated is closed.
func (p *Policy) ask(r rule, f pipeline.Facts) (res pipeline.RuleResult) {
	defer func() {
		if v := recover(); v != nil {
			p.log.Error("a rule broke down; it refuses", "rule", r.name, "project", f.Project, "environment", f.Environment, "panic", v)
			res = unusable(r.name, fmt.Errorf("the rule broke down: %v", v))
		}
	}()
	res = r.eval(f)
	switch {
	case res.Reason != "":
		res.Rule = r.name
	case !r.optional:
		return unusable(r.name, fmt.Errorf("the rule gave no answer"))
	}
	sortFindings(res.Findings)
	return res
}

func unusable(name string, err error) pipeline.RuleResult {
	return pipeline.RuleResult{Rule: name, Reason: "cannot be evaluated, and so refuses: " + err.Error(),
		Remedy: "correct the rule in the settings of the project"}
}
