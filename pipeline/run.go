package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
)

// Run takes a run from where it stands to its end. It returns nil when the run
// is over, also when a gate refused the image; an error that is not Permanent
// is worth another try, which resumes at the stage that failed.
func (p *Pipeline) Run(ctx context.Context, id RunID) error {
	run, err := p.Store.Run(ctx, id)
	if err != nil {
		return fmt.Errorf("run %s: %w", id, err)
	}
	if run.State.Final() {
		return nil
	}
	if err := p.run(ctx, run); err != nil {
		return fmt.Errorf("run %s: %w", id, err)
	}
	return nil
}

func (p *Pipeline) run(ctx context.Context, run Run) error {
	project, err := p.Store.Project(ctx, run.Project)
	if err != nil {
		return err
	}
	job := run.ID.Job()

	source, err := stage(ctx, p, job, StageResolve, func(ctx context.Context, c Claim) (Source, error) {
		ctx, out := p.progress(ctx, c)
		defer out.close()
		return p.Builder.Resolve(ctx, project, run.Event, out)
	}, p.Store.RecordSource)
	if err != nil {
		return err
	}

	built, err := stage(ctx, p, job, StageBuild, func(ctx context.Context, c Claim) (Built, error) {
		return p.build(ctx, c, run, project, source)
	}, p.Store.RecordBuilt)
	if err != nil {
		return err
	}

	report, err := stage(ctx, p, job, StageScan, func(ctx context.Context, _ Claim) (Report, error) {
		return p.Scanner.Scan(ctx, built.Image, built.Platforms)
	}, finish[Report](p))
	if err != nil {
		return err
	}

	judged, err := stage(ctx, p, job, StageGate, func(ctx context.Context, _ Claim) (Judged, error) {
		return p.judgeBuild(ctx, project, built, report)
	}, finish[Judged](p))
	if err != nil {
		return err
	}
	decision := judged.Decision
	record := ImageRecord{Project: project.Name, Run: run.ID, Built: built, Report: report, Decision: decision, Summary: judged.Summary}
	if !decision.Passed {
		// The image is recorded all the same: whoever asks why must be able to
		// see what was in it. It gets no signature and no tag.
		if err := p.recordImage(ctx, job, record); err != nil {
			return err
		}
		return p.Store.End(context.WithoutCancel(ctx), job, Ending{State: StateRefused, Reason: decision.Reason()})
	}

	signed, err := stage(ctx, p, job, StageSign, func(ctx context.Context, c Claim) (signed, error) {
		return p.sign(ctx, c, built, report, decision)
	}, finish[signed](p))
	if err != nil {
		return err
	}

	record.Provenance = signed.Provenance
	record.Verified, err = stage(ctx, p, job, StageVerify, func(ctx context.Context, _ Claim) ([]Verified, error) {
		return p.verify(ctx, built.PlatformImages(), signed.Attestations)
	}, finish[[]Verified](p))
	if err != nil {
		return err
	}

	if err := p.recordImage(ctx, job, record); err != nil {
		return err
	}

	_, err = stage(ctx, p, job, StageTag, func(ctx context.Context, c Claim) ([]TagMove, error) {
		var versions []string
		if v, ok := VersionOfRef(source.Ref); ok {
			versions = []string{v}
		}
		return p.tag(ctx, c, built.Image, tagging{commit: source.Commit, versions: versions, latest: project.Latest})
	}, func(ctx context.Context, c Claim, moves []TagMove) error {
		next, err := p.following(ctx, project, record, "", job)
		if err != nil {
			return err
		}
		return p.Store.RecordTags(ctx, c, moves, next)
	})
	return err
}

// judgeBuild asks the project's own gate, before anything is signed.
func (p *Pipeline) judgeBuild(ctx context.Context, project Project, built Built, report Report) (Judged, error) {
	st, err := p.Store.Standing(ctx, project.Name, "", built.Image.Digest)
	if err != nil {
		return Judged{}, err
	}
	f := Facts{Now: st.Now, Action: ActionBuild, Project: project.Name, Version: project.Version,
		Signatures: []SignerFact{}, Reached: notNil(st.Reached), Approvals: []Approval{}, Ignored: []string{},
		Request: RequestFacts{Roles: []string{}}}
	reportFacts(&f, built, report)
	p.suppress(&f, project, built, st)
	j := Judged{Decision: p.decide(project.BuildGate(), f, report.Database)}
	statement, err := p.summarise(j.Decision, nil)
	if err != nil {
		return j, err
	}
	if j.Summary, err = p.Signer.Seal(ctx, built.Image, statement); err != nil {
		return j, fmt.Errorf("sign the summary of the decision on %s: %w", built.Image, err)
	}
	return j, nil
}

// build makes the image, or finds the one that an earlier run made of the same
// commit: one commit is one image, however many tags name it.
func (p *Pipeline) build(ctx context.Context, c Claim, run Run, project Project, source Source) (Built, error) {
	ctx, out := p.progress(ctx, c)
	defer out.close()

	switch earlier, err := p.Store.FindBuilt(ctx, project.Name, source); {
	case errors.Is(err, ErrNotFound):
	case err != nil:
		return Built{}, err
	default:
		there, err := p.Registry.Exists(ctx, earlier.Image)
		if err != nil {
			return Built{}, err
		}
		if there {
			out.say("commit %s was built by %s: using %s", source.Commit, earlier.Run, earlier.Image)
			return earlier, nil
		}
		out.say("%s was built by %s but is gone from the registry: building again", earlier.Image, earlier.Run)
	}

	b := Built{Run: run.ID, Source: source, StartedAt: p.Now().UTC()}
	result, err := p.Builder.Build(ctx, project, source, out)
	if err != nil {
		return Built{}, err
	}
	annotations := map[string]string{
		"org.opencontainers.image.revision": source.Commit,
		"org.opencontainers.image.source":   source.CloneURL,
		"org.opencontainers.image.created":  source.CommitTime.UTC().Format("2006-01-02T15:04:05Z"),
	}
	b.Image, err = p.Registry.Assemble(ctx, project.Repository, result.Platforms, annotations)
	if err != nil {
		return Built{}, err
	}
	b.Platforms, b.Builder, b.FinishedAt = result.Platforms, result.Builder, p.Now().UTC()
	out.say("pushed %s (%d platforms)", b.Image, len(b.Platforms))
	return b, nil
}

// signed is the outcome of sign.
type signed struct {
	Signatures   []Signature     `json:"signatures"`
	Attestations []Attestation   `json:"attestations"`
	Provenance   json.RawMessage `json:"provenance"`
}

// sign signs the index and every platform, and attests the provenance and the
// contents of each.
func (p *Pipeline) sign(ctx context.Context, c Claim, built Built, report Report, decision Decision) (signed, error) {
	verdict, err := p.summarise(decision, nil)
	if err != nil {
		return signed{}, err
	}
	predicate, err := provenance(p.BuilderID, built)
	if err != nil {
		return signed{}, err
	}
	whole, err := indexSBOM(built.Image, report)
	if err != nil {
		return signed{}, err
	}
	sboms := map[Digest]json.RawMessage{built.Image.Digest: whole}
	for _, r := range report.Platforms {
		sboms[r.Digest] = r.SBOM
	}
	for _, pl := range built.Platforms {
		if len(sboms[pl.Digest]) == 0 {
			return signed{}, fmt.Errorf("the scan left no SBOM for %s (%s)", pl.Digest, pl.Platform)
		}
	}
	if err := p.Store.Holds(ctx, c); err != nil {
		return signed{}, err
	}
	parts, err := each(ctx, built.PlatformImages(), func(ctx context.Context, img Image) (s signed, err error) {
		if s.Signatures, err = p.Signer.Sign(ctx, img); err != nil {
			return s, fmt.Errorf("sign %s: %w", img, err)
		}
		statements := []Statement{
			{PredicateType: PredicateProvenance, Predicate: predicate},
			{PredicateType: PredicateCycloneDX, Predicate: sboms[img.Digest]},
		}
		if img == built.Image { // it is the index that was decided on
			statements = append(statements, verdict)
		}
		for _, st := range statements {
			made, err := p.Signer.Attest(ctx, img, st)
			if err != nil {
				return s, fmt.Errorf("attest %s of %s: %w", st.PredicateType, img, err)
			}
			s.Attestations = append(s.Attestations, made...)
		}
		return s, nil
	})
	if err != nil {
		return signed{}, err
	}
	all := signed{Provenance: predicate}
	for _, s := range parts {
		all.Signatures = append(all.Signatures, s.Signatures...)
		all.Attestations = append(all.Attestations, s.Attestations...)
	}
	return all, nil
}

// verify reads back what the registry serves for the images, and checks that
// each is signed and that every attestation in want is among what verified.
func (p *Pipeline) verify(ctx context.Context, images []Image, want []Attestation) ([]Verified, error) {
	return each(ctx, images, func(ctx context.Context, img Image) (Verified, error) {
		v, err := p.Signer.Verify(ctx, img)
		if err != nil {
			return v, fmt.Errorf("verify %s: %w", img, err)
		}
		if len(v.Signatures) == 0 {
			return v, fmt.Errorf("verify %s: no signature: %w", img, ErrUnverified)
		}
		type key struct {
			statement Digest
			layout    string
		}
		have := map[key]bool{}
		for _, a := range v.Attestations {
			have[key{a.Statement, a.Layout}] = true
		}
		for _, a := range want {
			if a.Image.Digest == img.Digest && !have[key{a.Statement, a.Layout}] {
				return v, fmt.Errorf("verify %s: the registry does not serve the attestation %s (%s, %s layout): %w",
					img, a.Statement, a.PredicateType, a.Layout, ErrUnverified)
			}
		}
		return v, nil
	})
}

func (p *Pipeline) recordImage(ctx context.Context, job JobID, rec ImageRecord) error {
	type recorded struct {
		Image Image `json:"image"`
	}
	_, err := stage(ctx, p, job, StageRecord,
		func(context.Context, Claim) (recorded, error) { return recorded{rec.Built.Image}, nil },
		func(ctx context.Context, c Claim, _ recorded) error { return p.Store.RecordImage(ctx, c, rec) })
	return err
}
