package pipeline

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// PromotionID names a promotion: "prm_" and 20 characters.
type PromotionID string

// Job is the promotion as a JobID.
func (id PromotionID) Job() JobID { return JobID(id) }

// The stages of a promotion, in order. StageGate, StageRecord and StageTag are
// shared with runs.
const (
	// StageAdmit verifies the image where it comes from.
	StageAdmit Stage = "admit"
	// StageAttest attaches the summary of the decision to the image.
	StageAttest Stage = "attest"
	StageCopy   Stage = "copy"
	// StageConfirm verifies the image where it went.
	StageConfirm Stage = "confirm"
)

// PromotionStages lists the stages of a promotion in their order.
func PromotionStages() []Stage {
	return []Stage{StageAdmit, StageGate, StageAttest, StageCopy, StageConfirm, StageRecord, StageTag}
}

// Promotion is the request to bring one digest into one environment, and what
// became of it.
type Promotion struct {
	ID          PromotionID `json:"id"`
	Project     string      `json:"project"`
	Image       Image       `json:"image"` // where it comes from
	Environment string      `json:"environment"`
	RequestedBy string      `json:"requestedBy"`
	// Roles that the requester had within the project.
	Roles []string `json:"roles,omitempty"`
	// Action is "promote" or "rollback".
	Action string `json:"action"`
	Note   string `json:"note,omitempty"`
	// BreakGlass is the reason that was given for an emergency.
	BreakGlass string `json:"breakGlass,omitempty"`
	State      State  `json:"state"`
	Reason     string `json:"reason,omitempty"`
	// Decision is the newest; of a promotion that waits, not the last.
	Decision *Decision `json:"decision,omitempty"`
	// Approvals and rejections, in the order in which they came, whatever plan
	// they are for.
	Approvals []Approval `json:"approvals"`
	// Destination is where the image went, once it is recorded there.
	Destination *Image     `json:"destination,omitempty"`
	Tags        []TagMove  `json:"tags,omitempty"`
	CreatedAt   time.Time  `json:"createdAt"`
	FinishedAt  *time.Time `json:"finishedAt,omitempty"`
}

// Placement is the record of an image at a destination: written after it was
// verified there and before any tag moves.
type Placement struct {
	Copied   Copied     `json:"copied"`
	Decision Decision   `json:"decision"`
	Verified []Verified `json:"verified"`
}

// admitted is the outcome of admit: what verified where the image comes from.
type admitted struct {
	Images   []Image    `json:"images"`
	Verified []Verified `json:"verified"`
}

// Promote takes a promotion from where it stands to its end, as Run does a run.
func (p *Pipeline) Promote(ctx context.Context, id PromotionID) error {
	promo, err := p.Store.Promotion(ctx, id)
	if err != nil {
		return fmt.Errorf("promotion %s: %w", id, err)
	}
	if promo.State.Final() {
		return nil
	}
	if err := p.promote(ctx, promo); err != nil {
		return fmt.Errorf("promotion %s: %w", id, err)
	}
	return nil
}

func (p *Pipeline) promote(ctx context.Context, promo Promotion) error {
	project, err := p.Store.Project(ctx, promo.Project)
	if err != nil {
		return err
	}
	env, ok := project.Environment(promo.Environment)
	if !ok {
		return Permanent(fmt.Errorf("project %s has no environment %q any more: %w", project.Name, promo.Environment, ErrInvalid))
	}
	rec, err := p.Store.ImageRecord(ctx, project.Name, promo.Image.Digest)
	if errors.Is(err, ErrNotFound) {
		return Permanent(fmt.Errorf("image %s: %w", promo.Image, err))
	} else if err != nil {
		return err
	}
	job := promo.ID.Job()

	from, err := stage(ctx, p, job, StageAdmit, func(ctx context.Context, _ Claim) (admitted, error) {
		return p.admit(ctx, project, rec)
	}, finish[admitted](p))
	if err != nil {
		return err
	}

	// The gate is asked until it says yes or no. While it says not yet, the
	// promotion is a row: an approval or a timer brings it back to here, and
	// everything is looked at anew.
	judged, err := stage(ctx, p, job, StageGate, func(ctx context.Context, _ Claim) (Judged, error) {
		return p.judge(ctx, project, env, rec, promo, from)
	}, p.recordJudged)
	if errors.Is(err, errWaiting) {
		return nil
	}
	if err != nil {
		return err
	}
	if !judged.Decision.Passed {
		return p.Store.End(context.WithoutCancel(ctx), job, Ending{State: StateRefused, Reason: judged.Decision.Reason()})
	}

	// The summary goes where the image comes from, so that it is part of what
	// is copied now, and of what can be put back later.
	attested, err := stage(ctx, p, job, StageAttest, func(ctx context.Context, c Claim) ([]Attestation, error) {
		statement, err := p.summarise(judged.Decision, from.Verified)
		if err != nil {
			return nil, err
		}
		if err := p.Store.Holds(ctx, c); err != nil {
			return nil, err
		}
		return p.Signer.Attest(ctx, rec.Built.Image, statement)
	}, finish[[]Attestation](p))
	if err != nil {
		return err
	}

	copied, err := stage(ctx, p, job, StageCopy, func(ctx context.Context, c Claim) (Copied, error) {
		if err := p.Store.Holds(ctx, c); err != nil {
			return Copied{}, err
		}
		return p.Registry.Copy(ctx, rec.Built.Image, env.Repository)
	}, finish[Copied](p))
	if err != nil {
		return err
	}

	confirmed, err := stage(ctx, p, job, StageConfirm, func(ctx context.Context, _ Claim) ([]Verified, error) {
		return p.confirm(ctx, from, copied, env.Repository, attested)
	}, finish[[]Verified](p))
	if err != nil {
		return err
	}

	placement := Placement{Copied: copied, Decision: judged.Decision, Verified: confirmed}
	if _, err := stage(ctx, p, job, StageRecord,
		func(context.Context, Claim) (Copied, error) { return copied, nil },
		func(ctx context.Context, c Claim, _ Copied) error { return p.Store.RecordPlacement(ctx, c, placement) },
	); err != nil {
		return err
	}

	_, err = stage(ctx, p, job, StageTag, func(ctx context.Context, c Claim) ([]TagMove, error) {
		st, err := p.Store.Standing(ctx, project.Name, env.Name, promo.Image.Digest)
		if err != nil {
			return nil, err
		}
		return p.tag(ctx, c, copied.Image, tagging{
			commit: rec.Built.Source.Commit, versions: st.Versions, latest: project.Latest,
			back: promo.Action == ActionRollback, withdrawn: st.Withdrawn,
		})
	}, func(ctx context.Context, c Claim, moves []TagMove) error {
		next, err := p.following(ctx, project, rec, env.Name, job)
		if err != nil {
			return err
		}
		return p.Store.RecordTags(ctx, c, moves, next)
	})
	return err
}

// admit verifies the image and its platforms where they were built: signed by a
// trusted key, with provenance that says it was this builder and this source.
func (p *Pipeline) admit(ctx context.Context, project Project, rec ImageRecord) (admitted, error) {
	if !rec.Decision.Passed {
		return admitted{}, Permanent(fmt.Errorf("image %s: %w by its own run: %s", rec.Built.Image, ErrRefused, rec.Decision.Reason()))
	}
	images := rec.Built.PlatformImages()
	verified, err := p.verify(ctx, images, nil)
	if err != nil {
		return admitted{}, unverifiedIsFinal(err)
	}
	for _, v := range verified {
		if err := p.hasProvenance(v, project); err != nil {
			return admitted{}, Permanent(err)
		}
	}
	return admitted{Images: images, Verified: verified}, nil
}

func (p *Pipeline) hasProvenance(v Verified, project Project) error {
	why := errors.New("no provenance attestation")
	for _, a := range v.Attestations {
		if a.PredicateType != PredicateProvenance {
			continue
		}
		if why = checkProvenance(v.Statements[a.Statement], p.BuilderID, project.CloneURL); why == nil {
			return nil
		}
	}
	return fmt.Errorf("image %s: %w: %w", v.Image, why, ErrUnverified)
}

// confirm verifies the copy, and that nothing which verified at the source is
// missing at the destination.
func (p *Pipeline) confirm(ctx context.Context, from admitted, copied Copied, repository string, attested []Attestation) ([]Verified, error) {
	if copied.Image != (Image{Repository: repository, Digest: from.Images[0].Digest}) {
		return nil, Permanent(fmt.Errorf("copied %s to %s: the digest changed on the way", from.Images[0], copied.Image))
	}
	var there []Image
	want := slices.Clone(attested)
	for _, img := range from.Images {
		there = append(there, Image{Repository: repository, Digest: img.Digest})
	}
	for _, v := range from.Verified {
		want = append(want, v.Attestations...)
	}
	verified, err := p.verify(ctx, there, want)
	if errors.Is(err, ErrUnverified) {
		// A copy trusts for a while what it saw there before. If somebody took
		// something away meanwhile, looking finds it, and copying brings it.
		audit, lost := p.Registry.Audit(ctx, copied.Image, copied.Contents)
		if lost == nil && !audit.Intact() {
			if _, lost = p.Registry.Copy(ctx, from.Images[0], repository); lost == nil {
				verified, err = p.verify(ctx, there, want)
			}
		}
	}
	if err != nil {
		return nil, err
	}
	for i, v := range verified {
		type key struct{ keyID, layout string }
		have := map[key]bool{}
		for _, s := range v.Signatures {
			have[key{s.KeyID, s.Layout}] = true
		}
		for _, s := range from.Verified[i].Signatures {
			if !have[key{s.KeyID, s.Layout}] {
				return nil, fmt.Errorf("verify %s: the signature by key %s (%s layout) did not arrive: %w", v.Image, s.KeyID, s.Layout, ErrUnverified)
			}
		}
	}
	return verified, nil
}

// unverifiedIsFinal: asking again does not make a signature appear at the source.
func unverifiedIsFinal(err error) error {
	if errors.Is(err, ErrUnverified) {
		return Permanent(err)
	}
	return err
}
