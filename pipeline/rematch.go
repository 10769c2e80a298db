package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
)

// rematchPage is how many images are matched and recorded at once: a few
// megabytes of analyses.
const rematchPage = 100

// errDatabaseMoved ends a pass: the next one begins with the newer database.
var errDatabaseMoved = errors.New("another vulnerability database came into force meanwhile")

// Rematch matches every recorded image with today's vulnerability database,
// those that environments hold first, and asks the environments' gates about
// them again where findings changed. Nothing is blocked and nothing is removed:
// owners are told. What a pass has recorded stays; one that was interrupted goes
// on there. With a database that all images were matched with, it does nothing.
// Only one pass runs at a time, across processes.
func (p *Pipeline) Rematch(ctx context.Context, m Rematcher, s RematchStore) (RematchPass, error) {
	unlock, err := p.Locker.Lock(ctx, "rematch")
	if err != nil {
		return RematchPass{}, fmt.Errorf("re-match: %w", err)
	}
	defer unlock()
	db, err := m.Database(ctx)
	if err != nil {
		return RematchPass{}, fmt.Errorf("re-match: %w", err)
	}
	pass, err := s.StartRematch(ctx, db)
	if err != nil || pass.FinishedAt != nil {
		return pass, err
	}
	r := rematch{Pipeline: p, matcher: m, store: s, db: db, id: pass.ID, changes: map[Digest]Changes{}}
	for _, held := range []bool{true, false} {
		if err := r.all(ctx, held); err != nil {
			return pass, fmt.Errorf("re-match %s with %s: %w", pass.ID, db.Digest, err)
		}
	}
	return s.FinishRematch(ctx, pass.ID)
}

// rematch is a pass at work.
type rematch struct {
	*Pipeline
	matcher Rematcher
	store   RematchStore
	db      VulnerabilityDatabase
	id      RematchID
	// changes since each database that images were matched with.
	changes map[Digest]Changes
}

// all matches a page while the one before is recorded: the first keeps the
// processors busy, the second the database.
func (r *rematch) all(ctx context.Context, held bool) (err error) {
	recorded := func() error { return nil }
	defer func() {
		if last := recorded(); err == nil {
			err = last
		}
	}()
	for after := ""; ; {
		page, err := r.store.Unmatched(ctx, r.db.Digest, held, after, rematchPage)
		if err != nil {
			return err
		}
		if len(page) == 0 {
			return nil
		}
		after = page[len(page)-1].Cursor
		matches, err := r.match(ctx, page)
		if err != nil {
			return err
		}
		if err := recorded(); err != nil {
			return err
		}
		done := make(chan error, 1)
		go func() { done <- r.store.RecordMatches(ctx, r.id, matches) }()
		recorded = sync.OnceValue(func() error { return <-done })
		if len(page) < rematchPage {
			return nil
		}
	}
}

// match finds out what a page of images holds today. It writes nothing.
func (r *rematch) match(ctx context.Context, page []Matchable) ([]Match, error) {
	out := make([]Match, len(page))
	var wanted []Digest
	for i, img := range page {
		out[i].Matchable = img
		changes, err := r.since(ctx, img.From)
		if err != nil {
			return nil, err
		}
		out[i].Unaffected = len(img.Keys) > 0 && !slices.ContainsFunc(img.Keys, changes.Touch)
		if !out[i].Unaffected {
			for _, p := range img.Platforms {
				wanted = append(wanted, p.Digest)
			}
		}
	}
	if len(wanted) == 0 {
		return out, nil
	}
	if err := r.fromAnalyses(ctx, out, wanted); err != nil {
		return nil, err
	}
	for i := range out {
		m := &out[i]
		if !m.Unaffected && m.Findings == nil {
			if err := r.scan(ctx, m); err != nil {
				return nil, err
			}
		}
		if m.Findings != nil && len(m.Environments) > 0 {
			if err := r.rejudge(ctx, m); err != nil {
				return nil, fmt.Errorf("judge %s again: %w", m.Image, err)
			}
		}
	}
	return out, nil
}

func (r *rematch) since(ctx context.Context, from Digest) (Changes, error) {
	if c, ok := r.changes[from]; ok {
		return c, nil
	}
	db, c, err := r.matcher.Changes(ctx, from)
	if err == nil && db.Digest != r.db.Digest {
		err = errDatabaseMoved
	}
	if err == nil {
		r.changes[from] = c
	}
	return c, err
}

// fromAnalyses matches the images of which everything is kept; the others keep
// nil findings.
func (r *rematch) fromAnalyses(ctx context.Context, matches []Match, wanted []Digest) error {
	kept, err := r.store.Analyses(ctx, wanted)
	if err != nil {
		return err
	}
	// A manifest that several images share is matched once.
	at := map[Digest]int{}
	var analyses []Analysis
	for d, a := range kept {
		if len(a.Data) > 0 {
			at[d] = len(analyses)
			analyses = append(analyses, a)
		}
	}
	if len(analyses) == 0 {
		return nil
	}
	db, found, err := r.matcher.Rematch(ctx, analyses)
	if err != nil {
		return err
	}
	if db.Digest != r.db.Digest {
		return errDatabaseMoved
	}
	for i := range matches {
		m := &matches[i]
		if m.Unaffected || len(m.Platforms) == 0 {
			continue
		}
		findings := make([][]Finding, 0, len(m.Platforms))
		for _, p := range m.Platforms {
			if n, ok := at[p.Digest]; ok && found[n].Unreadable == "" {
				findings = append(findings, notNil(found[n].Findings))
			}
		}
		if len(findings) == len(m.Platforms) {
			m.Findings = findings
		}
	}
	return nil
}

// scan reads an image of which too little is kept, as if it were new. One that
// cannot be read does not keep the pass from the others.
func (r *rematch) scan(ctx context.Context, m *Match) error {
	report, err := r.Scanner.Scan(ctx, m.Image, m.Platforms)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		r.Log.WarnContext(ctx, "an image could not be scanned with the new vulnerability database", "image", m.Image, "project", m.Project, "error", err)
		m.Failed = r.Mask.Mask(err.Error())
		return nil
	case report.Database.Digest != r.db.Digest:
		return errDatabaseMoved
	}
	m.Scanned = true
	for _, p := range report.Platforms {
		m.Findings, m.Analyses = append(m.Findings, notNil(p.Findings)), append(m.Analyses, p.Analysis)
	}
	return nil
}

// rejudge asks the gates of the environments that hold the image what they say
// of it now, and what they would say without that the database has changed.
func (r *rematch) rejudge(ctx context.Context, m *Match) error {
	before, err := r.store.CurrentFindings(ctx, m.Run)
	if err != nil || sameFindings(before, m.Findings) {
		return err
	}
	project, err := r.Store.Project(ctx, m.Project)
	if err != nil {
		return err
	}
	rec, err := r.Store.ImageRecord(ctx, m.Project, m.Image.Digest)
	if err != nil || rec.Run != m.Run || len(rec.Report.Platforms) != len(m.Findings) || len(before) != len(m.Findings) {
		return err // it was recorded anew just now, with what is known today
	}
	for _, name := range m.Environments {
		env, ok := project.Environment(name)
		if !ok {
			continue
		}
		st, err := r.Store.Standing(ctx, project.Name, env.Name, m.Image.Digest)
		if err != nil {
			return err
		}
		was := r.stands(project, env, rec, st, r.db, before)
		is := r.stands(project, env, rec, st, r.db, m.Findings)
		v := Verdict{Environment: name, Decision: is, Passed: was.Passed, Appeared: newly(objections(was), objections(is))}
		m.Verdicts = append(m.Verdicts, v)
		if v.Worse() {
			n, err := r.notice(*m, v)
			if err != nil {
				return err
			}
			m.Notices = append(m.Notices, n)
		}
	}
	return nil
}

// stands is what an environment's rules say of an image with those findings.
// What stands before the way in only (soak, approvals, freezes) is not asked: the
// image is in.
func (p *Pipeline) stands(project Project, env Environment, rec ImageRecord, st Standing, db VulnerabilityDatabase, findings [][]Finding) Decision {
	report := rec.Report
	report.ScannedAt, report.Database, report.Platforms = st.Now, db, slices.Clone(report.Platforms)
	for i := range report.Platforms {
		report.Platforms[i].Findings = findings[i]
	}
	f := Facts{Now: st.Now, Action: ActionPromote, Project: project.Name, Version: project.Version, Environment: env.Name,
		Image:      ImageFacts{Versions: st.Versions},
		Signatures: signerFacts(rec.Verified), Provenance: provenanceFact(rec.Provenance, len(rec.Verified) > 0),
		Reached: notNil(st.Reached), Approvals: []Approval{}, Ignored: []string{},
		Request: RequestFacts{By: Automatic, Roles: []string{}},
	}
	reportFacts(&f, rec.Built, report)
	p.suppress(&f, project, rec.Built, st)
	return p.decide(Gate{Rules: env.EntryGate(ActionPromote).Rules}, f, db)
}

// objections are the findings that rules which do not pass object to.
func objections(d Decision) []Finding {
	var out []Finding
	for _, r := range d.Rules {
		if !r.Passed {
			out = append(out, r.Findings...)
		}
	}
	return out
}

// newly are those of after that are not among before, each once.
func newly(before, after []Finding) []Finding {
	type key struct{ id, pkg, version string }
	seen := map[key]bool{}
	for _, f := range before {
		seen[key{f.ID, f.Package, f.Version}] = true
	}
	var out []Finding
	for _, f := range after {
		if k := (key{f.ID, f.Package, f.Version}); !seen[k] {
			seen[k] = true
			out = append(out, f)
		}
	}
	return out
}

// sameFindings compares what matches found, which has one order.
func sameFindings(a, b [][]Finding) bool {
	return slices.EqualFunc(a, b, func(x, y []Finding) bool { return slices.Equal(x, y) })
}

// maxNamed is how many findings the line of a notice names.
const maxNamed = 3

func (r *rematch) notice(m Match, v Verdict) (Notice, error) {
	var named []string
	for _, f := range v.Appeared[:min(len(v.Appeared), maxNamed)] {
		named = append(named, fmt.Sprintf("%s in %s %s", f.ID, f.Package, f.Version))
	}
	if more := len(v.Appeared) - maxNamed; more > 0 {
		named = append(named, fmt.Sprintf("%d more", more))
	}
	summary := fmt.Sprintf("%s holds %s, which its gate would not let in any more", v.Environment, m.Image)
	if v.Decision.Passed {
		summary = fmt.Sprintf("%s holds %s, about which more is known", v.Environment, m.Image)
	}
	if len(named) > 0 {
		summary += ": " + strings.Join(named, ", ")
	}
	data, err := json.Marshal(struct {
		Database VulnerabilityDatabase `json:"database"`
		Passed   bool                  `json:"passed"`
		Before   bool                  `json:"passedBefore"`
		Reason   string                `json:"reason,omitempty"`
		Findings []Finding             `json:"findings"`
	}{r.db, v.Decision.Passed, v.Passed, v.Decision.Reason(), notNil(v.Appeared)})
	if err != nil {
		return Notice{}, fmt.Errorf("notice about %s: %w", m.Image, err)
	}
	image := m.Image
	return Notice{
		Key:   strings.Join([]string{NoticeFindings, m.Project, v.Environment, string(m.Run), string(r.db.Digest)}, "/"),
		Event: NoticeFindings, Project: m.Project, Environment: v.Environment, Image: &image, Summary: summary, At: v.Decision.EvaluatedAt, Data: data,
	}, nil
}
