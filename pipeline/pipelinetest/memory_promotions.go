package pipelinetest

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/Masterminds/semver/v3"

	"github.com/dray-project/dray/pipeline"
)

// memoryWaiting is what makes promotions wait, and wakes them.
type memoryWaiting struct {
	inside map[[2]string]pipeline.PromotionID // by project and environment
	until  map[pipeline.PromotionID]*time.Time
	behind map[pipeline.PromotionID]pipeline.PromotionID
	ready  map[pipeline.PromotionID]bool
	// seen is how many approvals there were when the newest attempt started.
	seen   map[pipeline.PromotionID]int
	judged map[pipeline.PromotionID]pipeline.Judged
	// replaced is what the environment held when a promotion was placed.
	replaced map[pipeline.PromotionID]pipeline.Digest
	order    []pipeline.PromotionID // in which they succeeded
}

func newMemoryWaiting() memoryWaiting {
	return memoryWaiting{inside: map[[2]string]pipeline.PromotionID{}, until: map[pipeline.PromotionID]*time.Time{},
		behind: map[pipeline.PromotionID]pipeline.PromotionID{}, ready: map[pipeline.PromotionID]bool{},
		seen: map[pipeline.PromotionID]int{}, judged: map[pipeline.PromotionID]pipeline.Judged{}, replaced: map[pipeline.PromotionID]pipeline.Digest{}}
}

func (m *Memory) now() time.Time {
	if m.Clock != nil {
		return m.Clock().UTC()
	}
	return time.Now().UTC()
}

// Promote is the intake of a promotion.
func (m *Memory) Promote(_ context.Context, r pipeline.PromotionRequest) (p pipeline.Promotion, created bool, err error) {
	err = m.write("Promote", func() (err error) {
		p, created, err = m.promote(r)
		return err
	})
	return p, created, err
}

func (m *Memory) promote(r pipeline.PromotionRequest) (p pipeline.Promotion, created bool, err error) {
	if r.Action == pipeline.ActionRollback && r.Image == "" {
		d, err := m.rollbackTarget(r)
		if err != nil {
			return p, false, err
		}
		r.Image = string(d)
	}
	repository, digest, err := splitImage(r.Image)
	if err != nil {
		return p, false, err
	}
	key := [2]string{r.RequestedBy, r.IdempotencyKey}
	if id, ok := m.byKey[key]; ok && r.IdempotencyKey != "" {
		p = *m.promotions[id]
		if p.Environment != r.Environment || p.Image.Digest != digest ||
			(repository != "" && repository != p.Image.Repository) || (r.Project != "" && r.Project != p.Project) {
			return p, false, fmt.Errorf("idempotency key %q was used for another request: %w", r.IdempotencyKey, pipeline.ErrConflict)
		}
		return p, false, nil
	}
	rec, err := m.promotable(r, repository, digest)
	if err != nil {
		return p, false, err
	}
	project := m.projects[rec.Project]
	if _, ok := project.Environment(r.Environment); !ok {
		var names []string
		for _, e := range project.Environments {
			names = append(names, e.Name)
		}
		return p, false, fmt.Errorf("environment %q: project %s has %s: %w", r.Environment, project.Name, strings.Join(names, ", "), pipeline.ErrInvalid)
	}
	if r.Action == pipeline.ActionRollback {
		if err := m.canRollBack(project.Name, r.Environment, digest); err != nil {
			return p, false, err
		}
	}
	now := m.now()
	p = pipeline.Promotion{ID: pipeline.NewPromotionID(now), Project: rec.Project, Image: rec.Built.Image,
		Environment: r.Environment, RequestedBy: r.RequestedBy, Roles: pipeline.RolesIn(r.Grants, rec.Project), Action: cmp.Or(r.Action, pipeline.ActionPromote),
		Note: r.Note, BreakGlass: r.BreakGlass, State: pipeline.StateQueued, CreatedAt: now}
	stored := p
	m.promotions[p.ID] = &stored
	m.waiting.ready[p.ID] = true
	if r.IdempotencyKey != "" {
		m.byKey[key] = p.ID
	}
	return p, true, nil
}

// succeeded lists the promotions into an environment that succeeded, in the
// order in which they did.
func (m *Memory) succeeded(project, environment string) (list []*pipeline.Promotion) {
	for _, id := range m.waiting.order {
		if p := m.promotions[id]; p.Project == project && p.Environment == environment {
			list = append(list, p)
		}
	}
	return list
}

// standingOf is since when a digest counts as having reached an environment.
func (m *Memory) standingOf(project, environment string, d pipeline.Digest) (f pipeline.ReachedFact, ok bool) {
	f.Environment = environment
	for _, p := range m.succeeded(project, environment) {
		switch {
		case p.Image.Digest == d:
			if !ok || f.Withdrawn {
				f.Since = *p.FinishedAt
			}
			f.Current, f.Withdrawn, ok = true, false, true
		case f.Current && p.Action == pipeline.ActionRollback && m.waiting.replaced[p.ID] == d:
			f.Current, f.Withdrawn = false, true
		default:
			f.Current = false
		}
	}
	return f, ok
}

func (m *Memory) rollbackTarget(r pipeline.PromotionRequest) (pipeline.Digest, error) {
	list := m.succeeded(r.Project, r.Environment)
	if len(list) > 0 {
		current := list[len(list)-1].Image.Digest
		for _, p := range slices.Backward(list) {
			if f, _ := m.standingOf(r.Project, r.Environment, p.Image.Digest); p.Image.Digest != current && !f.Withdrawn {
				return p.Image.Digest, nil
			}
		}
	}
	return "", fmt.Errorf("roll back %s of %s: it held nothing else before: %w", r.Environment, r.Project, pipeline.ErrConflict)
}

func (m *Memory) canRollBack(project, environment string, d pipeline.Digest) error {
	f, ok := m.standingOf(project, environment, d)
	switch {
	case !ok:
		return fmt.Errorf("roll back %s of %s to %s: it was never there: %w", environment, project, d, pipeline.ErrInvalid)
	case f.Current:
		return fmt.Errorf("roll back %s of %s to %s: it is there now: %w", environment, project, d, pipeline.ErrConflict)
	}
	return nil
}

// Standing implements pipeline.Store.
func (m *Memory) Standing(_ context.Context, project, environment string, d pipeline.Digest) (st pipeline.Standing, err error) {
	err = m.write("Standing", func() error {
		st.Now = m.now()
		p := m.projects[project]
		for _, e := range p.Environments {
			if f, ok := m.standingOf(project, e.Name, d); ok {
				st.Reached = append(st.Reached, f)
			}
		}
		if list := m.succeeded(project, environment); len(list) > 0 {
			last := list[len(list)-1]
			st.Current = &pipeline.PlacedImage{Promotion: last.ID, Image: *last.Destination, Versions: m.versions(project, last.Image.Digest),
				Since: *last.FinishedAt, By: last.RequestedBy, Action: last.Action}
			for _, rec := range m.images {
				if rec.Built.Image.Digest == last.Image.Digest {
					st.Current.Commit = rec.Built.Source.Commit
				}
			}
			for _, gone := range list {
				if f, _ := m.standingOf(project, environment, gone.Image.Digest); f.Withdrawn {
					st.Withdrawn = append(st.Withdrawn, m.versions(project, gone.Image.Digest)...)
				}
			}
			slices.Sort(st.Withdrawn)
			st.Withdrawn = slices.Compact(st.Withdrawn)
		}
		st.Versions = m.versions(project, d)
		for _, e := range m.Exceptions {
			if e.Project == project && e.RevokedAt == nil {
				st.Exceptions = append(st.Exceptions, e)
			}
		}
		for _, v := range m.VEX {
			if v.Project == project && v.RevokedAt == nil {
				st.VEX = append(st.VEX, v)
			}
		}
		for _, id := range slices.Backward(slices.Sorted(maps.Keys(m.runs))) {
			if r := m.runs[id]; r.Project == project && r.RetryOf == "" {
				st.Pushes = append(st.Pushes, r.Event)
			}
		}
		return nil
	})
	return st, err
}

func (m *Memory) versions(project string, d pipeline.Digest) (versions []string) {
	var parsed []*semver.Version
	for _, t := range m.tags {
		v, err := semver.StrictNewVersion(t.move.Tag)
		if err == nil && t.byRun && t.project == project && t.move.To == d {
			parsed = append(parsed, v)
		}
	}
	slices.SortFunc(parsed, func(a, b *semver.Version) int { return b.Compare(a) })
	for _, v := range parsed {
		versions = append(versions, v.Original())
	}
	return slices.Compact(versions)
}

// RecordDecision implements pipeline.Store.
func (m *Memory) RecordDecision(_ context.Context, c pipeline.Claim, j pipeline.Judged) error {
	return m.finishIf(c, j, func() error {
		p := m.promotions[pipeline.PromotionID(c.Job)]
		if by, busy := m.waiting.inside[[2]string{p.Project, p.Environment}]; busy && by != p.ID && j.Decision.Passed {
			return &pipeline.BusyError{Environment: p.Environment, By: by}
		}
		return nil
	}, func() {
		p := m.promotions[pipeline.PromotionID(c.Job)]
		d := j.Decision
		p.Decision = &d
		m.waiting.judged[p.ID] = j
		if !d.Passed {
			return
		}
		m.waiting.inside[[2]string{p.Project, p.Environment}] = p.ID
		for id, o := range m.promotions {
			if id < p.ID && o.State == pipeline.StateWaiting && o.Project == p.Project && o.Environment == p.Environment {
				m.end(id.Job(), pipeline.Ending{State: pipeline.StateSuperseded, Reason: fmt.Sprintf("%s is newer and entered %s first", p.ID, p.Environment)})
			}
		}
	})
}

// Wait implements pipeline.Store.
func (m *Memory) Wait(_ context.Context, c pipeline.Claim, w pipeline.Waiting) error {
	return m.write("Wait", func() error {
		s, err := m.holds(c)
		if err != nil {
			return err
		}
		s.failed = true
		p := m.promotions[pipeline.PromotionID(c.Job)]
		if w.Behind > p.ID {
			// What is inside is newer: to follow it would be to go back.
			m.end(c.Job, pipeline.Ending{State: pipeline.StateSuperseded, Reason: fmt.Sprintf("%s is newer and entered %s first", w.Behind, p.Environment)})
			return nil
		}
		d := w.Decision
		p.State, p.Decision, p.Reason = pipeline.StateWaiting, &d, d.Reason()
		m.waiting.judged[p.ID] = pipeline.Judged{Decision: d, Diff: w.Diff}
		m.waiting.until[p.ID], m.waiting.behind[p.ID] = d.Until, w.Behind
		if behind, ok := m.promotions[w.Behind]; (ok && behind.State.Final()) || len(p.Approvals) != m.waiting.seen[p.ID] {
			m.waiting.ready[p.ID] = true
		}
		m.append(c.Job, pipeline.JobEvent{Kind: pipeline.KindStage, Stage: c.Stage, Attempt: c.Attempt, State: "waiting", Message: d.Reason()})
		m.append(c.Job, pipeline.JobEvent{Kind: pipeline.KindState, State: string(pipeline.StateWaiting), Message: d.Reason()})
		return nil
	})
}

// leave lets those in that wait behind a promotion which has ended.
func (m *Memory) leave(id pipeline.PromotionID) {
	p := m.promotions[id]
	lane := [2]string{p.Project, p.Environment}
	if m.waiting.inside[lane] == id {
		delete(m.waiting.inside, lane)
	}
	delete(m.waiting.ready, id)
	for other, behind := range m.waiting.behind {
		if behind == id && !m.promotions[other].State.Final() {
			m.waiting.ready[other] = true
		}
	}
}

// Approve keeps an approval.
func (m *Memory) Approve(_ context.Context, a pipeline.Approval) (p pipeline.Promotion, err error) {
	err = m.write("Approve", func() error {
		promo, ok := m.promotions[a.Promotion]
		switch {
		case !ok:
			return fmt.Errorf("promotion %s: %w", a.Promotion, pipeline.ErrNotFound)
		case promo.State != pipeline.StateWaiting:
			return fmt.Errorf("promotion %s is %s: %w", a.Promotion, promo.State, pipeline.ErrConflict)
		case promo.Decision.Plan != a.Plan:
			return fmt.Errorf("promotion %s has another plan now, %s: %w", a.Promotion, promo.Decision.Plan, pipeline.ErrConflict)
		case slices.ContainsFunc(promo.Approvals, func(o pipeline.Approval) bool { return o.By == a.By && o.Plan == a.Plan }):
			return fmt.Errorf("promotion %s: %s has spoken already: %w", a.Promotion, a.By, pipeline.ErrConflict)
		}
		a.At = m.now()
		promo.Approvals = append(slices.Clone(promo.Approvals), a)
		if a.Rejected {
			m.end(promo.ID.Job(), pipeline.Ending{State: pipeline.StateRefused, Reason: "rejected by " + a.By + ": " + a.Comment})
		} else {
			m.waiting.ready[promo.ID] = true
		}
		p = *promo
		return nil
	})
	return p, err
}

// Ready takes the promotions that somebody should work on now, in the order of
// their ids.
func (m *Memory) Ready() []pipeline.PromotionID {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, until := range m.waiting.until {
		if p := m.promotions[id]; p.State == pipeline.StateWaiting && until != nil && !until.After(m.now()) {
			m.waiting.ready[id] = true
		}
	}
	list := slices.Sorted(maps.Keys(m.waiting.ready))
	clear(m.waiting.ready)
	for _, id := range list {
		m.waiting.seen[id] = len(m.promotions[id].Approvals)
	}
	return list
}

// RecordPlacement implements pipeline.Store.
func (m *Memory) RecordPlacement(_ context.Context, c pipeline.Claim, p pipeline.Placement) error {
	return m.finish(c, p.Copied, func() {
		id := pipeline.PromotionID(c.Job)
		m.placements[id] = p
		img := p.Copied.Image
		promo := m.promotions[id]
		promo.Destination = &img
		if list := m.succeeded(promo.Project, promo.Environment); len(list) > 0 {
			m.waiting.replaced[id] = list[len(list)-1].Image.Digest
		}
	})
}

// RecordTags implements pipeline.Store.
func (m *Memory) RecordTags(_ context.Context, c pipeline.Claim, moves []pipeline.TagMove, next []pipeline.PromotionRequest) error {
	return m.finish(c, moves, func() {
		run, isRun := m.runs[pipeline.RunID(c.Job)]
		project := ""
		if isRun {
			project = run.Project
		} else {
			p := m.promotions[pipeline.PromotionID(c.Job)]
			project, p.Tags = p.Project, moves
			m.waiting.order = append(m.waiting.order, p.ID)
		}
		for _, mv := range moves {
			if mv.Held {
				m.tags = append(m.tags, memoryTag{project, mv, isRun})
			}
		}
		m.end(c.Job, pipeline.Ending{State: pipeline.StateSucceeded})
		for _, r := range next {
			if _, _, err := m.promote(r); err != nil {
				panic(err) // the requests come from the pipeline itself
			}
		}
	})
}

// Placed implements pipeline.Store.
func (m *Memory) Placed(_ context.Context, after pipeline.PromotionID, limit int) (out []pipeline.Placed, err error) {
	err = m.write("Placed", func() error {
		for _, id := range slices.Sorted(maps.Keys(m.placements)) {
			if at, ok := m.placedAt(id); ok && id > after && len(out) < limit {
				out = append(out, at)
			}
		}
		return nil
	})
	return out, err
}

// PlacedAt implements pipeline.Store.
func (m *Memory) PlacedAt(_ context.Context, id pipeline.PromotionID) (at pipeline.Placed, err error) {
	err = m.write("PlacedAt", func() error {
		var ok bool
		if at, ok = m.placedAt(id); !ok {
			return fmt.Errorf("promotion %s holds no place: %w", id, pipeline.ErrNotFound)
		}
		return nil
	})
	return at, err
}

// placedAt is about the newest promotion of an image into an environment only.
func (m *Memory) placedAt(id pipeline.PromotionID) (at pipeline.Placed, ok bool) {
	p, place := m.promotions[id], m.placements[id]
	if p == nil || p.State != pipeline.StateSucceeded {
		return at, false
	}
	list := m.succeeded(p.Project, p.Environment)
	for _, o := range list {
		if o.Image.Digest == p.Image.Digest && o.ID > id {
			return at, false
		}
	}
	holds := map[string]pipeline.Digest{}
	for _, t := range m.tags {
		if t.move.Repository == place.Copied.Image.Repository {
			holds[t.move.Tag] = t.move.To
		}
	}
	at = pipeline.Placed{Project: p.Project, Environment: p.Environment, Promotion: id, Source: p.Image, Image: place.Copied.Image,
		Contents: place.Copied.Contents, Verified: place.Verified, Current: list[len(list)-1].Image.Digest == p.Image.Digest}
	for _, tag := range slices.Sorted(maps.Keys(holds)) {
		if holds[tag] == at.Image.Digest {
			at.Tags = append(at.Tags, tag)
		}
	}
	return at, at.Current || len(at.Tags) > 0
}

// RecordDrift implements pipeline.Store.
func (m *Memory) RecordDrift(_ context.Context, at pipeline.Placed, found []pipeline.Drift) (known []pipeline.Drift, err error) {
	err = m.write("RecordDrift", func() error {
		now := m.now()
		here := func(d pipeline.Drift) bool {
			return d.Project == at.Project && d.Environment == at.Environment && d.Image == at.Image && d.RepairedAt == nil && d.ResolvedAt == nil
		}
		for i := range m.drifts {
			d := &m.drifts[i]
			if here(*d) && !slices.ContainsFunc(found, func(f pipeline.Drift) bool { return f.Kind == d.Kind && f.Subject == d.Subject }) {
				d.ResolvedAt = &now
			}
		}
		for _, f := range found {
			i := slices.IndexFunc(m.drifts, func(d pipeline.Drift) bool { return here(d) && d.Kind == f.Kind && d.Subject == f.Subject })
			if i < 0 {
				f.ID = pipeline.NewDriftID(now)
				m.drifts = append(m.drifts, f)
				i = len(m.drifts) - 1
			} else {
				d := &m.drifts[i]
				d.Detail, d.RepairedAt, d.Repair, d.Blocked = f.Detail, f.RepairedAt, f.Repair, f.Blocked
			}
			known = append(known, m.drifts[i])
		}
		return nil
	})
	return known, err
}

// Drifts returns all of them, oldest first.
func (m *Memory) Drifts() []pipeline.Drift {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.drifts)
}

// Judged returns a promotion's newest decision.
func (m *Memory) Judged(id pipeline.PromotionID) pipeline.Judged {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.waiting.judged[id]
}
