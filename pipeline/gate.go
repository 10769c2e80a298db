package pipeline

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/Masterminds/semver/v3"
)

// errWaiting ends an attempt at a promotion that has to wait.
var errWaiting = errors.New("waiting")

// judge asks the gate of an environment whether an image may enter now, with
// today's vulnerability database, and says what would change there. A decision
// that is final is sealed.
func (p *Pipeline) judge(ctx context.Context, project Project, env Environment, rec ImageRecord, promo Promotion, from admitted) (Judged, error) {
	j, err := p.consider(ctx, project, env, rec, promo, from.Verified)
	if err != nil || j.Decision.Waiting {
		return j, err
	}
	statement, err := p.summarise(j.Decision, from.Verified)
	if err != nil {
		return j, err
	}
	j.Summary, err = p.Signer.Seal(ctx, rec.Built.Image, statement)
	if err != nil {
		return j, fmt.Errorf("sign the summary of the decision on %s: %w", rec.Built.Image, err)
	}
	if b := j.Decision.BreakGlass; b != nil {
		p.Log.WarnContext(ctx, "BREAK GLASS: rules of an environment were overridden", "promotion", promo.ID, "project", project.Name,
			"environment", env.Name, "image", rec.Built.Image, "by", b.By, "reason", b.Reason, "rules", b.Rules)
	}
	return j, nil
}

// consider collects the facts and lets the judge look at them. It has no effect.
func (p *Pipeline) consider(ctx context.Context, project Project, env Environment, rec ImageRecord, promo Promotion, verified []Verified) (Judged, error) {
	st, err := p.Store.Standing(ctx, project.Name, env.Name, rec.Built.Image.Digest)
	if err != nil {
		return Judged{}, err
	}
	report, err := p.Scanner.Scan(ctx, rec.Built.Image, rec.Built.Platforms)
	if err != nil {
		return Judged{}, err
	}
	to := diffInput{record: rec, report: report, versions: st.Versions}
	from, err := p.holding(ctx, project.Name, st.Current)
	if err != nil {
		return Judged{}, err
	}
	change := diff(project.Name, env.Name, from, to, st.Pushes)

	action := promo.Action
	if action == "" {
		action = ActionPromote
	}
	f := Facts{Now: st.Now, Action: action, Project: project.Name, Version: project.Version, Environment: env.Name,
		Image:      ImageFacts{Versions: st.Versions},
		Signatures: signerFacts(verified), Provenance: provenanceFact(rec.Provenance, len(verified) > 0),
		Reached: notNil(st.Reached), Approvals: notNil(promo.Approvals), Ignored: []string{},
		Request: RequestFacts{By: promo.RequestedBy, Roles: notNil(promo.Roles), BreakGlass: promo.BreakGlass, Plan: change.Plan()},
	}
	reportFacts(&f, rec.Built, report)
	p.suppress(&f, project, rec.Built, st)
	d := p.decide(env.EntryGate(action), f, report.Database)
	d.Plan = f.Request.Plan
	return Judged{Decision: d, Diff: change}, nil
}

// decide asks the judge and notes what was asked.
func (p *Pipeline) decide(g Gate, f Facts, db VulnerabilityDatabase) Decision {
	d := p.Judge.Judge(g, f)
	d.Policy = PolicyVersion{Project: f.Project, Environment: f.Environment, Version: f.Version, Digest: g.Digest(), Gate: g}
	d.Suppressed, d.Ignored, d.Database, d.EvaluatedAt = f.Suppressed(), f.Ignored, db, f.Now.UTC()
	return d
}

// holding is what the environment has now, scanned with the same database as
// what is to replace it: or what a database has learnt would count as a change.
func (p *Pipeline) holding(ctx context.Context, project string, current *PlacedImage) (*diffInput, error) {
	if current == nil {
		return nil, nil
	}
	rec, err := p.Store.ImageRecord(ctx, project, current.Image.Digest)
	if err != nil {
		return nil, err
	}
	report, err := p.Scanner.Scan(ctx, current.Image, rec.Built.Platforms)
	if errors.Is(err, ErrNotFound) {
		// It is gone from there; what was found when it was built has to do.
		report, err = rec.Report, nil
	}
	if err != nil {
		return nil, fmt.Errorf("scan what the environment has now: %w", err)
	}
	return &diffInput{record: rec, report: report, versions: current.Versions}, nil
}

// recordJudged keeps a decision that is final, or puts the promotion to sleep.
func (p *Pipeline) recordJudged(ctx context.Context, c Claim, j Judged) error {
	if j.Decision.Waiting {
		return p.sleep(ctx, c, Waiting{Decision: j.Decision, Diff: j.Diff})
	}
	err := p.Store.RecordDecision(ctx, c, j)
	var busy *BusyError
	if !errors.As(err, &busy) {
		return err
	}
	d := j.Decision
	d.Rules = append(slices.Clone(d.Rules), RuleResult{
		Rule: "turn", Pending: true, Reason: busy.Error(), Remedy: "nothing: this one goes on when that one has ended",
	})
	d.BreakGlass = nil // not used yet
	d.Conclude()
	return p.sleep(ctx, c, Waiting{Decision: d, Diff: j.Diff, Behind: busy.By})
}

func (p *Pipeline) sleep(ctx context.Context, c Claim, w Waiting) error {
	if err := p.Store.Wait(ctx, c, w); err != nil {
		return err
	}
	return errWaiting
}

// Eligibility says whether an image could enter an environment now, as somebody
// with those roles would ask, and what would change. Signatures are those that
// verified when the image was recorded.
func (p *Pipeline) Eligibility(ctx context.Context, r PromotionRequest) (Eligibility, error) {
	project, err := p.Store.Project(ctx, r.Project)
	if err != nil {
		return Eligibility{}, err
	}
	env, ok := project.Environment(r.Environment)
	if !ok {
		return Eligibility{}, fmt.Errorf("project %s has no environment %q: %w", project.Name, r.Environment, ErrInvalid)
	}
	digest := Digest(r.Image)
	rec, err := p.Store.ImageRecord(ctx, project.Name, digest)
	if err != nil {
		return Eligibility{}, err
	}
	promo := Promotion{Project: project.Name, Image: rec.Built.Image, Environment: env.Name, Action: r.Action,
		RequestedBy: r.RequestedBy, Roles: RolesIn(r.Grants, project.Name), BreakGlass: r.BreakGlass}
	j, err := p.consider(ctx, project, env, rec, promo, rec.Verified)
	if err != nil {
		return Eligibility{}, err
	}
	if !rec.Decision.Passed {
		j.Decision.Rules = append([]RuleResult{{Rule: "built", Reason: "its own run refused it: " + rec.Decision.Reason(),
			Remedy: "build an image that passes the project's gate"}}, j.Decision.Rules...)
		j.Decision.Conclude()
	}
	return Eligibility{Project: project.Name, Environment: env.Name, Image: rec.Built.Image, Decision: j.Decision, Diff: j.Diff, Plan: j.Diff.Plan()}, nil
}

// following are the promotions that start by themselves once an image has
// reached a place: reached is the environment, or empty when it was built.
func (p *Pipeline) following(ctx context.Context, project Project, rec ImageRecord, reached string, job JobID) ([]PromotionRequest, error) {
	var next []PromotionRequest
	for _, e := range project.Environments {
		if !e.Auto || (reached == "" && len(e.After) > 0) || (reached != "" && !slices.Contains(e.After, reached)) {
			continue
		}
		st, err := p.Store.Standing(ctx, project.Name, e.Name, rec.Built.Image.Digest)
		if err != nil {
			return nil, err
		}
		there := func(name string) bool {
			return name == reached || slices.ContainsFunc(st.Reached, func(r ReachedFact) bool { return r.Environment == name && !r.Withdrawn })
		}
		if slices.ContainsFunc(e.After, func(name string) bool { return !there(name) }) || goesBack(st, rec.Built.Image.Digest) {
			continue
		}
		next = append(next, PromotionRequest{
			Image: string(rec.Built.Image.Digest), Project: project.Name, Environment: e.Name, Action: ActionPromote,
			Note: "automatic", RequestedBy: Automatic, IdempotencyKey: "auto/" + string(job) + "/" + e.Name,
		})
	}
	return next, nil
}

// Automatic is the requester of promotions that start by themselves.
const Automatic = "dray"

// goesBack: nothing moves an environment to an older release by itself, nor to
// what it has already.
func goesBack(st Standing, image Digest) bool {
	if st.Current == nil {
		return false
	}
	if st.Current.Image.Digest == image {
		return true
	}
	highest := func(list []string) *semver.Version {
		if len(list) == 0 {
			return nil
		}
		v, err := semver.StrictNewVersion(list[0])
		if err != nil {
			return nil
		}
		return v
	}
	have, want := highest(st.Current.Versions), highest(st.Versions)
	return have != nil && want != nil && have.GreaterThan(want)
}
