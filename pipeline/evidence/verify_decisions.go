package evidence

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dray-project/dray/pipeline"
)

// summary is the predicate of a verification summary, as far as it is compared.
type summary struct {
	ResourceURI  string    `json:"resourceUri"`
	TimeVerified time.Time `json:"timeVerified"`
	Policy       struct {
		Digest map[string]string `json:"digest"`
	} `json:"policy"`
	InputAttestations []struct {
		Digest map[string]string `json:"digest"`
	} `json:"inputAttestations"`
	VerificationResult string            `json:"verificationResult"`
	VerifiedLevels     []string          `json:"verifiedLevels"`
	Dray               map[string]string `json:"https://github.com/dray-project/dray/decision"`
}

func (d Decision) String() string {
	if d.Environment == "" {
		return "build (" + string(d.Job) + ")"
	}
	return d.Environment + " (" + string(d.Job) + ")"
}

// decided: every decision is signed, by the rules that it says, and follows from
// what it says of each rule.
func (v *verification) decided() {
	const claim = "decision"
	if len(v.decisions) == 0 {
		v.fail(claim, "", "no decision is in the bundle")
	}
	built := false
	for _, d := range v.decisions {
		built = built || d.Environment == "" && d.Decision.Passed
		if d.Decision.Waiting {
			v.absent(claim, d.String(), "it waits (%s): a decision is signed when it is the last", d.Decision.Reason())
			continue
		}
		keyID, err := v.sealed(d)
		if err == nil {
			err = v.byPolicy(d)
		}
		if err != nil {
			v.fail(claim, d.String(), "%v", err)
			continue
		}
		word := "passed"
		if !d.Decision.Passed {
			word = "refused (" + d.Decision.Reason() + ")"
		}
		if b := d.Decision.BreakGlass; b != nil {
			word += fmt.Sprintf(", in an emergency that %s declared (%s), overriding %s", b.By, b.Reason, strings.Join(b.Rules, ", "))
		}
		v.pass(claim, d.String(), "%s at %s under policy version %d with digest %s, sealed by key %s",
			word, at(d.Decision.EvaluatedAt), d.Decision.Policy.Version, d.Decision.Policy.Digest.Short(), short(keyID))
	}
	if len(v.decisions) > 0 && !built {
		v.fail(claim, "build", "no run's decision on the image passed")
	}
	for environment, want := range v.trust.Policies {
		v.underPolicy(environment, want)
	}
}

// underPolicy: the newest decision that passed was made under the gate that the
// verifier names.
func (v *verification) underPolicy(environment string, want pipeline.Digest) {
	about := environment
	if about == "" {
		about = "build"
	}
	var newest *Decision
	for i, d := range v.decisions {
		if d.Environment == environment && d.Decision.Passed && (newest == nil || d.Decision.EvaluatedAt.After(newest.Decision.EvaluatedAt)) {
			newest = &v.decisions[i]
		}
	}
	switch {
	case newest == nil:
		v.fail("policy", about, "no decision that passed is in the bundle")
	case newest.Decision.Policy.Digest != want:
		v.fail("policy", about, "decided under %s, want %s", newest.Decision.Policy.Digest, want)
	default:
		v.pass("policy", about, "the newest decision that passed was made under %s", want)
	}
}

// sealed: the decision's summary is signed by a trusted key and says the same.
func (v *verification) sealed(d Decision) (keyID string, err error) {
	if d.Summary == nil {
		return "", errors.New("its signed summary is not in the bundle")
	}
	st, err := v.trust.Envelope(d.Summary.Envelope, v.image, pipeline.PredicateSummary)
	if err != nil {
		return "", err
	}
	var s summary
	if err := json.Unmarshal(st.Predicate, &s); err != nil {
		return "", fmt.Errorf("its signed summary: %w", err)
	}
	path := "/projects/" + v.Manifest.Project
	if d.Environment != "" {
		path += "/environments/" + d.Environment
	}
	result := "FAILED"
	if d.Decision.Passed {
		result = "PASSED"
	}
	said := d.Decision
	differs := func(what, signed, stated string) error {
		return fmt.Errorf("its %s is %q, the signed summary says %q", what, stated, signed)
	}
	switch {
	case st.Digest != d.Summary.Statement:
		return "", differs("statement", string(st.Digest), string(d.Summary.Statement))
	case !strings.HasSuffix(s.ResourceURI, path):
		return "", differs("place", s.ResourceURI, path)
	case s.VerificationResult != result:
		return "", differs("result", s.VerificationResult, result)
	case s.Policy.Digest["sha256"] != said.Policy.Digest.Hex():
		return "", differs("policy", s.Policy.Digest["sha256"], said.Policy.Digest.Hex())
	case !s.TimeVerified.Equal(said.EvaluatedAt):
		return "", differs("time", at(s.TimeVerified), at(said.EvaluatedAt))
	case s.Dray["plan"] != string(said.Plan):
		return "", differs("plan", s.Dray["plan"], string(said.Plan))
	case s.Dray["database"] != string(said.Database.Digest):
		return "", differs("vulnerability database", s.Dray["database"], string(said.Database.Digest))
	case (s.Dray["breakGlassBy"] != "") != (said.BreakGlass != nil):
		return "", fmt.Errorf("it was overridden in an emergency by %q in the signed summary alone, or in the decision alone", s.Dray["breakGlassBy"])
	case said.BreakGlass != nil && (s.Dray["breakGlassBy"] != said.BreakGlass.By || s.Dray["breakGlassReason"] != said.BreakGlass.Reason):
		return "", differs("emergency", s.Dray["breakGlassBy"]+": "+s.Dray["breakGlassReason"], said.BreakGlass.By+": "+said.BreakGlass.Reason)
	}
	return st.KeyID, nil
}

// byPolicy: the rules are those of the project's version that it names, and the
// answer follows from theirs.
func (v *verification) byPolicy(d Decision) error {
	p := d.Decision.Policy
	if p.Project != v.Manifest.Project || p.Environment != d.Environment {
		return fmt.Errorf("its policy is of project %s, environment %q", p.Project, p.Environment)
	}
	if got := p.Gate.Digest(); got != p.Digest {
		return fmt.Errorf("the gate in it has the digest %s, and it says %s", got, p.Digest)
	}
	again := d.Decision
	again.Conclude()
	if again.Passed != d.Decision.Passed {
		return fmt.Errorf("it says passed=%t, and its rules say passed=%t", d.Decision.Passed, again.Passed)
	}
	if d.Diff != nil && d.Diff.Plan() != d.Decision.Plan {
		return fmt.Errorf("the change in it has the digest %s, and it is about the plan %s", d.Diff.Plan(), d.Decision.Plan)
	}
	version, ok := v.policies[p.Version]
	if !ok {
		return fmt.Errorf("version %d of the project's settings, which it names, is not in the bundle", p.Version)
	}
	gate := version.Project.BuildGate()
	if d.Environment != "" {
		env, ok := version.Project.Environment(d.Environment)
		if !ok {
			return fmt.Errorf("version %d of the project's settings has no environment %s", p.Version, d.Environment)
		}
		gate = env.EntryGate(d.Action)
	}
	if got := gate.Digest(); got != p.Digest {
		return fmt.Errorf("the gate in version %d of the project's settings has the digest %s, and it was decided by %s", p.Version, got, p.Digest)
	}
	return nil
}

// suppressed: what let a finding pass is in the bundle and did cover it.
func (v *verification) suppressed() {
	for _, d := range v.decisions {
		for _, f := range d.Decision.Suppressed {
			s := f.Suppression
			if s == nil {
				v.fail("exception", f.ID, "%s does not say why it let it pass", d)
				continue
			}
			about := fmt.Sprintf("%s in %s", f.ID, d)
			switch s.By {
			case "exception":
				if err := v.excepted(d, f.Finding, *s); err != nil {
					v.fail("exception", about, "%v", err)
				} else {
					v.pass("exception", about, "%s by %s until %s: %s", s.ID, s.Author, at(v.exceptions[s.ID].ExpiresAt), s.Reason)
				}
			case "vex":
				v.vexed(about, d, f, *s)
			default:
				v.fail("exception", about, "it was let pass by %q, which is not known", s.By)
			}
		}
	}
}

func (v *verification) excepted(d Decision, f pipeline.Finding, s pipeline.Suppression) error {
	e, ok := v.exceptions[s.ID]
	when := d.Decision.EvaluatedAt
	switch {
	case !ok:
		return fmt.Errorf("the exception %s, which the decision names, is not in the bundle", s.ID)
	case e.Project != v.Manifest.Project || !e.Covers(f, d.Environment, v.image):
		return fmt.Errorf("the exception %s does not cover it", s.ID)
	case e.Author != s.Author || e.Reason != s.Reason:
		return fmt.Errorf("the exception %s is by %s (%s), the decision says %s (%s)", s.ID, e.Author, e.Reason, s.Author, s.Reason)
	case !e.ExpiresAt.After(when) || e.CreatedAt.After(when) || e.RevokedAt != nil && e.RevokedAt.Before(when):
		return fmt.Errorf("the exception %s was not in force at %s", s.ID, at(when))
	}
	return nil
}

func (v *verification) vexed(about string, d Decision, f pipeline.FindingFact, s pipeline.Suppression) {
	doc, ok := v.vex[s.ID]
	if !ok {
		v.fail("vex", about, "the VEX document %s, which the decision names, is not in the bundle", s.ID)
		return
	}
	version, ok := v.policies[d.Decision.Policy.Version]
	if !ok || v.trust.VEX == nil || v.record == nil {
		v.absent("vex", about, "%s by %s: its signature was not looked at", s.ID, s.Author)
		return
	}
	statements, err := v.trust.VEX.Read(doc, version.Project.TrustedVEXKeys)
	if err != nil {
		v.fail("vex", about, "%s: %v", s.ID, err)
		return
	}
	for _, st := range statements {
		if !st.Suppresses() || st.Author != s.Author {
			continue
		}
		if slices.ContainsFunc(v.record.Built.Platforms, func(p pipeline.PlatformImage) bool {
			return v.trust.VEX.Matches(st, f.Finding, v.record.Built.Image, []pipeline.PlatformImage{p})
		}) {
			v.pass("vex", about, "%s by %s: %s; signed by a key that version %d of the project's settings trusts", s.ID, s.Author, s.Reason, version.Version)
			return
		}
	}
	v.fail("vex", about, "%s says nothing that would let it pass", s.ID)
}

// promoted: what a promotion says of itself follows from its decision and its
// approvals.
func (v *verification) promoted() {
	reached := map[string]bool{}
	for _, p := range v.promotions {
		about := p.Environment + " (" + string(p.ID) + ")"
		if p.State != pipeline.StateSucceeded {
			v.pass("promotion", about, "asked for by %s at %s, %s%s", p.RequestedBy, at(p.CreatedAt), p.State, because(p.Reason))
			continue
		}
		i := slices.IndexFunc(v.decisions, func(d Decision) bool { return d.Job == p.ID.Job() })
		if i < 0 {
			v.fail("promotion", about, "it succeeded, and its decision is not in the bundle")
			continue
		}
		d := v.decisions[i]
		if err := v.arrived(p, d); err != nil {
			v.fail("promotion", about, "%v", err)
			continue
		}
		if done := v.approved(p, d, about); !done {
			continue
		}
		reached[p.Environment] = true
		var tags []string
		for _, t := range p.Tags {
			if t.Held {
				tags = append(tags, t.Tag)
			}
		}
		where := p.Destination.Repository
		if len(tags) > 0 {
			where += " as " + strings.Join(tags, ", ")
		}
		v.pass("promotion", about, "%s by %s to %s at %s", p.Action, p.RequestedBy, where, at(*p.FinishedAt))
	}
	for _, e := range v.trust.Environments {
		if !reached[e] {
			v.fail("promotion", e, "no promotion into it that succeeded is in the bundle")
		}
	}
}

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + reason
}

func (v *verification) arrived(p Promotion, d Decision) error {
	switch {
	case !d.Decision.Passed || d.Decision.Waiting:
		return errors.New("it succeeded, and its decision did not pass")
	case d.Environment != p.Environment || d.Action != p.Action:
		return fmt.Errorf("its decision is about %s into %s", d.Action, d.Environment)
	case p.Destination == nil || p.FinishedAt == nil:
		return errors.New("it succeeded, and does not say where the image went, and when")
	case p.Destination.Digest != v.image:
		return fmt.Errorf("another image arrived, %s", p.Destination.Digest)
	}
	version, ok := v.policies[d.Decision.Policy.Version]
	if env, known := version.Project.Environment(p.Environment); ok && known && env.Repository != p.Destination.Repository {
		return fmt.Errorf("it went to %s, and the environment is %s", p.Destination.Repository, env.Repository)
	}
	for _, t := range p.Tags {
		if t.To != v.image {
			return fmt.Errorf("its tag %s was to name another image, %s", t.Tag, t.To)
		}
	}
	return nil
}

// approved counts the approvals of the change that was decided on.
func (v *verification) approved(p Promotion, d Decision, about string) bool {
	rules := d.Decision.Policy.Gate.Approvals
	overridden := slices.ContainsFunc(d.Decision.Rules, func(r pipeline.RuleResult) bool { return r.Rule == "approvals" && r.Overridden })
	for _, a := range p.Approvals {
		if a.Rejected && a.Plan == d.Decision.Plan && !a.At.After(d.Decision.EvaluatedAt) && !overridden {
			v.fail("approvals", about, "%s rejected exactly this plan, and it passed all the same", a.By)
			return false
		}
	}
	if len(rules) == 0 {
		v.pass("approvals", about, "none asked for")
		return true
	}
	ok := true
	for _, r := range rules {
		by := []string{}
		for _, a := range p.Approvals {
			counts := a.Promotion == p.ID && a.Plan == d.Decision.Plan && a.Plan != "" && !a.Rejected && slices.Contains(a.Roles, r.Role) &&
				!a.At.After(d.Decision.EvaluatedAt) && (!r.NotRequester || a.By != p.RequestedBy)
			if counts && !slices.Contains(by, a.By) {
				by = append(by, a.By)
			}
		}
		said := fmt.Sprintf("%d of %d with the role %s, bound to the plan %s", len(by), max(r.Count, 1), r.Role, d.Decision.Plan.Short())
		if len(by) > 0 {
			said += ": " + strings.Join(by, ", ")
		}
		switch {
		case len(by) >= max(r.Count, 1):
			v.pass("approvals", about, "%s", said)
		case overridden:
			v.pass("approvals", about, "%s; overridden in an emergency", said)
		default:
			ok = false
			v.fail("approvals", about, "%s", said)
		}
	}
	return ok
}
