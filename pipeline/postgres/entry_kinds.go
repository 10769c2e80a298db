package postgres

import (
	"context"
	"encoding/json"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

// What the entries of each kind say is described in docs/reference/log.md.

// acceptedEntry is about a delivery and the run of its event, if there is one.
func (s *Store) acceptedEntry(ctx context.Context, tx pgx.Tx, d pipeline.Delivery, seq int64, a pipeline.Accepted, run pipeline.RunID) error {
	said := eventData(d.Event)
	said["forge"], said["delivery"], said["body"], said["note"] = d.Forge, clean(d.ID), d.BodyDigest, short(a.Note)
	if a.Duplicate {
		said["duplicate"] = true
	}
	return s.entry(ctx, tx, pipeline.Entry{Kind: pipeline.EntryDeliveryAccepted, Project: d.Project, Actor: actorDray,
		Subject: string(run), Data: said.json()}, row("deliveries", seq))
}

func (s *Store) startedEntry(ctx context.Context, tx pgx.Tx, r pipeline.Run, by string) error {
	said := eventData(r.Event)
	said["retryOf"] = string(r.RetryOf)
	return s.entry(ctx, tx, pipeline.Entry{Kind: pipeline.EntryRunStarted, Project: r.Project, Actor: by, Subject: string(r.ID), Data: said.json()},
		row("runs", r.ID), row("jobs", r.ID))
}

func eventData(e pipeline.Event) data {
	d := data{"event": string(e.Kind), "ref": short(e.Ref), "after": short(e.After), "pusher": short(e.Pusher)}
	if e.Deleted {
		d["deleted"] = true
	}
	return d
}

// endedEntry is about the end of a run or a promotion, and of one that succeeded
// about what its environment holds from then on.
func (s *Store) endedEntry(ctx context.Context, tx pgx.Tx, l *lane, j job, by string, e pipeline.Ending) error {
	said := data{"state": string(e.State), "reason": short(e.Reason)}
	kind, rows := pipeline.EntryRunEnded, []rowRef{row("jobs", j.id)}
	if l == nil {
		rows = append(rows, row("runs", j.id))
	} else {
		kind = pipeline.EntryPromotionEnded
		said["environment"] = l.environment
		rows = append(rows, row("promotions", j.id))
		if e.State == pipeline.StateSucceeded {
			rows = append(rows, row("lanes", l.project, l.environment))
		}
	}
	return s.entry(ctx, tx, pipeline.Entry{Kind: kind, Project: j.project, Actor: by, Subject: string(j.id), Data: said.json()}, rows...)
}

// judgedEntries are about a gate whose outcome is its stage's, and nothing else.
// What it records is the caller's; of what is no decision the row is named.
func (s *Store) judgedEntries(ctx context.Context, tx pgx.Tx, j job, c pipeline.Claim, outcome json.RawMessage) error {
	var judged pipeline.Judged
	if err := json.Unmarshal(outcome, &judged); err != nil {
		judged = pipeline.Judged{}
	}
	return s.decidedEntries(ctx, tx, j, judged, row("stages", c.Job, c.Stage, c.Attempt))
}

// decidedEntries are about a decision, and, where an emergency made it pass,
// about that.
func (s *Store) decidedEntries(ctx context.Context, tx pgx.Tx, j job, judged pipeline.Judged, rows ...rowRef) error {
	d := judged.Decision
	e := pipeline.Entry{Kind: pipeline.EntryRunDecided, Project: j.project, Actor: actorDray, Subject: string(j.id), Image: judged.Diff.To.Digest}
	if j.kind == kindPromotion {
		e.Kind = pipeline.EntryPromotionDecided
	}
	said := data{"passed": d.Passed, "plan": d.Plan, "database": d.Database.Digest, "summary": judged.Summary.Statement,
		"environment": d.Policy.Environment,
		"policy":      data{"version": d.Policy.Version, "digest": d.Policy.Digest}.present()}
	if d.Waiting {
		said["waiting"] = true
	}
	if d.Until != nil {
		said["until"] = d.Until.UTC()
	}
	if from := judged.Diff.From; from != nil {
		said["from"] = from.Digest
	}
	if n := len(d.Suppressed); n > 0 {
		said["suppressed"] = n
	}
	rules := make([]data, len(d.Rules))
	for i, r := range d.Rules {
		rules[i] = data{"rule": r.Rule, "passed": r.Passed, "reason": cut(r.Reason, shortReason)}
		if r.Pending {
			rules[i]["pending"] = true
		}
		if r.Overridden {
			rules[i]["overridden"] = true
		}
	}
	listed(said, "rules", rules)
	e.Data = said.json()
	if err := s.entry(ctx, tx, e, rows...); err != nil {
		return err
	}
	b := d.BreakGlass
	if b == nil || !d.Passed {
		return nil
	}
	e.Kind, e.Actor = pipeline.EntryBreakGlass, b.By
	said = data{"environment": d.Policy.Environment, "reason": short(b.Reason)}
	listed(said, "rules", b.Rules)
	e.Data = said.json()
	return s.entry(ctx, tx, e, rows...)
}

// recordedEntries are about an image, what is in it, and who signed it.
func (s *Store) recordedEntries(ctx context.Context, tx pgx.Tx, image int64, rec pipeline.ImageRecord) error {
	packages := 0
	for _, p := range rec.Report.Platforms {
		packages += len(p.Packages)
	}
	findings := data{}
	for severity, n := range rec.Report.Count() {
		findings[severity.String()] = n
	}
	said := data{"repository": rec.Built.Image.Repository, "commit": rec.Built.Source.Commit, "builtBy": string(rec.Built.Run),
		"builder": short(rec.Built.Builder), "scanner": short(rec.Report.Scanner), "database": rec.Report.Database.Digest,
		"scannedAt": rec.Report.ScannedAt.UTC(), "packages": packages, "findings": findings, "passed": rec.Decision.Passed}
	if len(rec.Provenance) > 0 {
		said["provenance"] = "sha256:" + hexSum(rec.Provenance)
	}
	platforms := make([]data, len(rec.Built.Platforms))
	for i, p := range rec.Built.Platforms {
		platforms[i] = data{"platform": p.Platform, "digest": p.Digest}
	}
	listed(said, "platforms", platforms)
	e := pipeline.Entry{Kind: pipeline.EntryImageRecorded, Project: rec.Project, Actor: actorDray, Subject: string(rec.Run),
		Image: rec.Built.Image.Digest, Data: said.json()}
	if err := s.entry(ctx, tx, e, row("image_records", rec.Run), row("images", image), row("decisions", rec.Run)); err != nil {
		return err
	}
	return s.evidenceEntry(ctx, tx, e, rec.Verified)
}

// copiedEntries are about an image at its destination, and what verified there.
func (s *Store) copiedEntries(ctx context.Context, tx pgx.Tx, j job, environment string, pl pipeline.Placement, rows ...rowRef) error {
	c := pl.Copied
	e := pipeline.Entry{Kind: pipeline.EntryCopied, Project: j.project, Actor: actorDray, Subject: string(j.id), Image: c.Image.Digest,
		Data: data{"environment": environment, "repository": c.Image.Repository, "manifests": c.Manifests, "blobs": c.Blobs,
			"bytesSent": c.Sent, "referrers": len(c.Referrers)}.json()}
	if err := s.entry(ctx, tx, e, rows...); err != nil {
		return err
	}
	return s.evidenceEntry(ctx, tx, e, pl.Verified)
}

// evidenceEntry lists what was read back from a registry and verified. The rows
// are part of the record's or the placement's.
func (s *Store) evidenceEntry(ctx context.Context, tx pgx.Tx, e pipeline.Entry, verified []pipeline.Verified) error {
	var signatures, attestations []data
	for _, v := range verified {
		for _, x := range v.Signatures {
			signatures = append(signatures, data{"image": v.Image.Digest, "keyID": x.KeyID, "layout": x.Layout, "manifest": x.Manifest})
		}
		for _, x := range v.Attestations {
			attestations = append(attestations, data{"image": v.Image.Digest, "predicateType": short(x.PredicateType), "keyID": x.KeyID,
				"layout": x.Layout, "manifest": x.Manifest, "statement": x.Statement})
		}
	}
	if len(signatures)+len(attestations) == 0 {
		return nil
	}
	said := data{"repository": verified[0].Image.Repository}
	listed(said, "signatures", signatures)
	listed(said, "attestations", attestations)
	e.Kind, e.Data = pipeline.EntryEvidenceMade, said.json()
	return s.entry(ctx, tx, e)
}

// tagsAtOnce is how many tags one entry is about.
const tagsAtOnce = 32

// tagEntries are about the tags that a job asked for, and those that name
// another image from now on.
func (s *Store) tagEntries(ctx context.Context, tx pgx.Tx, j job, moves []pipeline.TagMove, ids []int64, changed map[[2]string]bool) error {
	for len(moves) > 0 {
		n := min(len(moves), tagsAtOnce)
		var rows []rowRef
		tags := make([]data, n)
		for i, m := range moves[:n] {
			tags[i] = data{"repository": m.Repository, "tag": m.Tag, "from": m.From, "to": m.To, "moved": m.Moved, "held": m.Held,
				"note": cut(m.Note, shortReason)}.present()
			rows = append(rows, row("tag_moves", ids[i]))
			if changed[[2]string{m.Repository, m.Tag}] {
				rows = append(rows, row("tags", m.Repository, m.Tag))
			}
		}
		err := s.entry(ctx, tx, pipeline.Entry{Kind: pipeline.EntryTagMoved, Project: j.project, Actor: actorDray, Subject: string(j.id),
			Image: moves[0].To, Data: data{"tags": tags}.json()}, rows...)
		if err != nil {
			return err
		}
		moves, ids = moves[n:], ids[n:]
	}
	return nil
}
