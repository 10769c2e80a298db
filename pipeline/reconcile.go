package pipeline

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// Reconciled counts what a pass over the places found.
type Reconciled struct {
	Places int
	// Drifts that are open after the pass, Repaired those that it put right.
	Drifts, Repaired int
}

// reconcilePage is how many places are read at once.
const reconcilePage = 100

// Reconcile compares what the record says of every place with what the
// registries hold, puts back what is missing, and reports what it may not
// change. One place that cannot be looked at does not keep it from the others:
// their errors come joined. Only one pass runs at a time, across processes.
func (p *Pipeline) Reconcile(ctx context.Context) (sum Reconciled, err error) {
	unlock, err := p.Locker.Lock(ctx, "reconcile")
	if err != nil {
		return sum, fmt.Errorf("reconcile: %w", err)
	}
	defer unlock()
	var failed []error
	for after := PromotionID(""); ; {
		places, err := p.Store.Placed(ctx, after, reconcilePage)
		if err != nil {
			return sum, errors.Join(append(failed, err)...)
		}
		for _, at := range places {
			after = at.Promotion
			found, err := p.reconcile(ctx, at)
			if err != nil {
				failed = append(failed, fmt.Errorf("reconcile %s: %w", at.Image, err))
			}
			if ctx.Err() != nil {
				return sum, errors.Join(append(failed, context.Cause(ctx))...)
			}
			sum.Places++
			for _, d := range found {
				if d.RepairedAt != nil {
					sum.Repaired++
				} else {
					sum.Drifts++
				}
			}
		}
		if len(places) < reconcilePage {
			return sum, errors.Join(failed...)
		}
	}
}

// reconcile looks at one place. What it could not look at, it does not judge:
// a registry that does not answer is an error and no drift.
func (p *Pipeline) reconcile(ctx context.Context, at Placed) ([]Drift, error) {
	project, err := p.Store.Project(ctx, at.Project)
	if err != nil {
		return nil, err
	}
	env, ok := project.Environment(at.Environment)
	if !ok || env.Repository != at.Image.Repository {
		return nil, nil // the settings do not speak of this place any more
	}
	found, err := p.contentDrift(ctx, at)
	if err != nil {
		return nil, err
	}
	broken := slices.ContainsFunc(found, func(d Drift) bool { return d.RepairedAt == nil })
	tags, err := p.tagDrift(ctx, at, env, broken)
	if err != nil {
		return nil, err
	}
	known, err := p.Store.RecordDrift(ctx, at, append(found, tags...))
	if err != nil {
		return nil, err
	}
	for _, d := range known {
		log := p.Log.With("project", d.Project, "environment", d.Environment, "image", d.Image, "kind", d.Kind, "subject", d.Subject, "detail", d.Detail)
		if d.RepairedAt != nil {
			log.WarnContext(ctx, "drift repaired", "repair", d.Repair)
		} else {
			log.WarnContext(ctx, "drift", "blocked", d.Blocked)
		}
	}
	return known, nil
}

// contentDrift looks for what is gone, and puts it back from where the image
// came from.
func (p *Pipeline) contentDrift(ctx context.Context, at Placed) ([]Drift, error) {
	audit, err := p.Registry.Audit(ctx, at.Image, at.Contents)
	if err != nil {
		return nil, err
	}
	found := p.drifts(at, audit)
	if len(found) == 0 {
		// All of it is there; whether it still verifies is another question.
		return p.verifyDrift(ctx, at)
	}
	how, blocked := p.putBack(ctx, at)
	now := p.Now().UTC()
	for i := range found {
		if blocked == "" {
			found[i].RepairedAt, found[i].Repair = &now, how
		} else {
			found[i].Blocked = blocked
		}
	}
	return found, nil
}

func (p *Pipeline) drifts(at Placed, audit Audit) []Drift {
	var found []Drift
	add := func(kind string, c Content, detail string) {
		found = append(found, Drift{Project: at.Project, Environment: at.Environment, Image: at.Image,
			Kind: kind, Subject: string(c.Digest), Detail: detail, DetectedAt: p.Now().UTC()})
	}
	for _, c := range audit.Missing {
		what := "blob"
		switch {
		case c.Subject != "":
			what = "what is attached to " + string(c.Subject)
		case c.Manifest:
			what = "manifest"
		}
		add(DriftMissing, c, what+" cannot be read, or is not what its digest says")
	}
	for _, c := range audit.Unlisted {
		add(DriftUnlisted, c, "it is there, but nothing at "+string(c.Subject)+" leads to it")
	}
	return found
}

// putBack copies the image again and verifies it. It says what it did, or what
// kept it from doing it.
func (p *Pipeline) putBack(ctx context.Context, at Placed) (how, blocked string) {
	copied, err := p.Registry.Copy(ctx, at.Source, at.Image.Repository)
	if err != nil {
		return "", "could not be copied again: " + p.Mask.Mask(err.Error())
	}
	audit, err := p.Registry.Audit(ctx, at.Image, at.Contents)
	if err != nil {
		return "", "copied again, but could not be looked at: " + p.Mask.Mask(err.Error())
	}
	if !audit.Intact() {
		lost := append(slices.Clone(audit.Missing), audit.Unlisted...)
		return "", fmt.Sprintf("copied again from %s, and %s is still missing: the source lacks it as well", at.Source, lost[0].Digest)
	}
	if err := p.verifies(ctx, at); err != nil {
		return "", "copied again, but: " + p.Mask.Mask(err.Error())
	}
	return fmt.Sprintf("copied again from %s: %d manifests in all, %d bytes sent", at.Source, copied.Manifests, copied.Sent), ""
}

func (p *Pipeline) verifyDrift(ctx context.Context, at Placed) ([]Drift, error) {
	err := p.verifies(ctx, at)
	if err == nil || !errors.Is(err, ErrUnverified) {
		return nil, err
	}
	return []Drift{{Project: at.Project, Environment: at.Environment, Image: at.Image, Kind: DriftUnverified, Subject: string(at.Image.Digest),
		Detail: p.Mask.Mask(err.Error()), DetectedAt: p.Now().UTC(), Blocked: "nothing is missing, so there is nothing to put back: look at the trusted keys"}}, nil
}

// verifies checks what was verified when the image was recorded.
func (p *Pipeline) verifies(ctx context.Context, at Placed) error {
	var images []Image
	var want []Attestation
	for _, v := range at.Verified {
		images = append(images, v.Image)
		want = append(want, v.Attestations...)
	}
	_, err := p.verify(ctx, images, want)
	return err
}

// tagDrift looks at the tags that Dray put there. It asks again under the lock
// that promotions move tags under, so that it does not take a move for a drift.
func (p *Pipeline) tagDrift(ctx context.Context, at Placed, env Environment, broken bool) ([]Drift, error) {
	var suspects []string
	for _, tag := range at.Tags {
		holds, ok, err := p.Registry.TagHolds(ctx, at.Image.Repository, tag)
		if err != nil {
			return nil, err
		}
		if !ok || holds != at.Image.Digest {
			suspects = append(suspects, tag)
		}
	}
	if len(suspects) == 0 {
		return nil, nil
	}
	unlock, err := p.Locker.Lock(ctx, "tags:"+at.Image.Repository)
	if err != nil {
		return nil, err
	}
	defer unlock()
	now, err := p.Store.PlacedAt(ctx, at.Promotion)
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var found []Drift
	for _, tag := range suspects {
		if !slices.Contains(now.Tags, tag) {
			continue // it was moved on since, by Dray
		}
		holds, ok, err := p.Registry.TagHolds(ctx, at.Image.Repository, tag)
		if err != nil {
			return nil, err
		}
		if ok && holds == at.Image.Digest {
			continue
		}
		d := Drift{Project: at.Project, Environment: at.Environment, Image: at.Image, Kind: DriftTag, Subject: tag,
			Detail: "the tag is gone", DetectedAt: p.Now().UTC()}
		if ok {
			d.Detail = "the tag names " + string(holds)
		}
		switch {
		case broken:
			d.Blocked = "the image itself is not intact; no tag is put on it"
		case ok && !env.RepairTags:
			d.Blocked = "somebody moved it; repairTags is not set for this environment, so it stays until somebody decides"
		default:
			if err := p.Registry.Tag(ctx, at.Image, tag); err != nil {
				d.Blocked = "could not be put back: " + p.Mask.Mask(err.Error())
			} else {
				t := p.Now().UTC()
				d.RepairedAt, d.Repair = &t, "the tag was put back"
			}
		}
		found = append(found, d)
	}
	return found, nil
}
