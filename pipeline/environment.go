package pipeline

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Environment is a place that images are promoted to, and what stands before it.
type Environment struct {
	Name string `json:"name"`
	// Repository that receives the image: "prod.example/team/app". In a file
	// that is applied, "{project}" and "{environment}" stand for the names.
	Repository string `json:"repository"`
	// Gate is the short form of rules that come before Rules.
	Gate  GateRules `json:"gate"`
	Rules []Rule    `json:"rules,omitempty"`
	// After, Soak, Approvals, Freezes and BreakGlass: see Gate.
	After      []string        `json:"after,omitempty"`
	Soak       Duration        `json:"soak,omitempty"`
	Approvals  []ApprovalRule  `json:"approvals,omitempty"`
	Freezes    []Freeze        `json:"freezes,omitempty"`
	BreakGlass *BreakGlassRule `json:"breakGlass,omitempty"`
	// Auto promotes what becomes eligible: what a run built, or what reached
	// the environments in After.
	Auto bool `json:"auto,omitempty"`
	// Rollback is the gate of a rollback to an image that was here before. Nil:
	// its rules are the environment's, and nothing else stands before it.
	Rollback *RollbackGate `json:"rollback,omitempty"`
	// RepairTags lets Dray move a tag back that somebody else moved; without
	// it, such a tag is reported. What is missing is always put back.
	RepairTags bool `json:"repairTags,omitempty"`
}

// RollbackGate stands before a rollback.
type RollbackGate struct {
	Rules     []Rule         `json:"rules,omitempty"`
	Approvals []ApprovalRule `json:"approvals,omitempty"`
}

// EntryGate is what stands before the environment for an action.
func (e Environment) EntryGate(action string) Gate {
	rules := append(e.Gate.Rules(), e.Rules...)
	if action == ActionRollback {
		if e.Rollback == nil {
			return Gate{Rules: rules}
		}
		if len(e.Rollback.Rules) > 0 {
			rules = slices.Clone(e.Rollback.Rules)
		}
		return Gate{Rules: rules, Approvals: e.Rollback.Approvals, BreakGlass: e.BreakGlass.within(rules)}
	}
	return Gate{Rules: rules, After: e.After, Soak: e.Soak, Approvals: e.Approvals, Freezes: e.Freezes, BreakGlass: e.BreakGlass}
}

// within leaves out what the rules do not have: there is nothing to override.
func (b *BreakGlassRule) within(rules []Rule) *BreakGlassRule {
	if b == nil {
		return nil
	}
	known := []string{"freeze", "soak", "approvals"}
	for _, r := range rules {
		known = append(known, r.Use, r.Name)
	}
	out := &BreakGlassRule{Roles: b.Roles}
	for _, o := range b.Overrides {
		if slices.Contains(known, o) {
			out.Overrides = append(out.Overrides, o)
		}
	}
	return out
}

// BuildGate is what stands before an image's signature.
func (p Project) BuildGate() Gate { return Gate{Rules: append(p.Gate.Rules(), p.Rules...)} }

// Expand puts the names into the environments' repositories.
func (p *Project) Expand() {
	for i := range p.Environments {
		e := &p.Environments[i]
		e.Repository = strings.NewReplacer("{project}", p.Name, "{environment}", e.Name).Replace(e.Repository)
	}
}

// Check refuses a project whose parts do not fit together: names that are
// missing or doubled, a way between environments that leads in a circle. The
// gates themselves are the Judge's to check. The error wraps ErrInvalid.
func (p Project) Check() error {
	names := map[string]bool{}
	places := map[string]string{p.Repository: "the builds"}
	for i, e := range p.Environments {
		switch {
		case !validName(e.Name):
			return fmt.Errorf("environments[%d].name is %.40q: want lower-case letters, digits and hyphens: %w", i, e.Name, ErrInvalid)
		case names[e.Name]:
			return fmt.Errorf("environments[%d]: %s is there twice: %w", i, e.Name, ErrInvalid)
		case !strings.Contains(e.Repository, "/") || strings.ContainsAny(e.Repository, "{}@ \t\n"):
			return fmt.Errorf("environment %s: repository is %.80q: want registry/path: %w", e.Name, e.Repository, ErrInvalid)
		case places[e.Repository] != "":
			return fmt.Errorf("environment %s: repository %s is that of %s as well: %w", e.Name, e.Repository, places[e.Repository], ErrInvalid)
		}
		// Only what stands before it may be named, so that there is no circle.
		for _, a := range e.After {
			if !names[a] {
				return fmt.Errorf("environment %s comes after %.40q, which is not an environment before it in the list: %w", e.Name, a, ErrInvalid)
			}
		}
		if e.Soak > 0 && len(e.After) == 0 {
			return fmt.Errorf("environment %s: soak is time in another environment, and after names none: %w", e.Name, ErrInvalid)
		}
		names[e.Name], places[e.Repository] = true, "environment "+e.Name
	}
	return nil
}

func validName(s string) bool {
	return s != "" && len(s) <= 63 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == "" && s[0] != '-'
}

// ProjectVersion is one version of a project's settings.
type ProjectVersion struct {
	Project   Project   `json:"project"`
	Version   int       `json:"version"`
	Digest    Digest    `json:"digest"`
	AppliedBy string    `json:"appliedBy"` // "settings" for the settings file's
	AppliedAt time.Time `json:"appliedAt"`
}

// ProjectChange is a version to be.
type ProjectChange struct {
	Project   Project
	AppliedBy string
	// Base is the version that the change was made on; 0 overwrites whatever is there.
	Base int
}

// EnvironmentState is what an environment holds now.
type EnvironmentState struct {
	Project     string `json:"project"`
	Environment string `json:"environment"`
	Repository  string `json:"repository"`
	// Current is what it was last promoted or rolled back to; nil when it is empty.
	Current *PlacedImage `json:"current,omitempty"`
	// Entering is the promotion that is on its way in; empty when there is none.
	Entering PromotionID `json:"entering,omitempty"`
	// Waiting are the promotions that want to enter, oldest first.
	Waiting []PromotionID `json:"waiting"`
}

// PlacedImage is an image in an environment.
type PlacedImage struct {
	Promotion PromotionID `json:"promotion"`
	Image     Image       `json:"image"` // at the environment
	Commit    string      `json:"commit"`
	Versions  []string    `json:"versions"`
	Since     time.Time   `json:"since"`
	By        string      `json:"by"`
	Action    string      `json:"action"` // "promote" or "rollback"
}
