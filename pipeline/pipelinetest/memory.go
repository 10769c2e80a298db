package pipelinetest

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dray-project/dray/pipeline"
)

// Memory is a store in memory. It passes the same suite as Postgres, and fails
// on demand.
type Memory struct {
	faults *Faults

	mu         sync.Mutex
	projects   map[string]pipeline.Project
	runs       map[pipeline.RunID]*pipeline.Run
	sources    map[pipeline.RunID]pipeline.Source
	promotions map[pipeline.PromotionID]*pipeline.Promotion
	byKey      map[[2]string]pipeline.PromotionID
	deliveries map[[2]string]pipeline.RunID
	events     map[string]pipeline.RunID // the newest run of each event
	stages     map[pipeline.JobID]map[pipeline.Stage]*memoryStage
	log        map[pipeline.JobID][]pipeline.JobEvent
	images     []pipeline.ImageRecord
	placements map[pipeline.PromotionID]pipeline.Placement
	tags       []memoryTag
	locks      map[string]chan struct{}
	// Clock is the database's; nil means the machine's.
	Clock   func() time.Time
	waiting memoryWaiting
	drifts  []pipeline.Drift
	// Exceptions and VEX are handed out as they are.
	Exceptions []pipeline.Exception
	VEX        []pipeline.VEXDocument
}

type memoryStage struct {
	attempt int
	failed  bool // the attempt gave up
	done    bool
	outcome json.RawMessage
}

type memoryTag struct {
	project string
	move    pipeline.TagMove
	byRun   bool
}

// NewMemory makes an empty store. The faults may be nil.
func NewMemory(f *Faults) *Memory {
	if f == nil {
		f = &Faults{}
	}
	return &Memory{
		faults: f, projects: map[string]pipeline.Project{}, runs: map[pipeline.RunID]*pipeline.Run{},
		sources: map[pipeline.RunID]pipeline.Source{}, promotions: map[pipeline.PromotionID]*pipeline.Promotion{},
		byKey: map[[2]string]pipeline.PromotionID{}, deliveries: map[[2]string]pipeline.RunID{}, events: map[string]pipeline.RunID{},
		stages: map[pipeline.JobID]map[pipeline.Stage]*memoryStage{}, log: map[pipeline.JobID][]pipeline.JobEvent{},
		placements: map[pipeline.PromotionID]pipeline.Placement{}, locks: map[string]chan struct{}{},
		waiting: newMemoryWaiting(),
	}
}

// SyncProjects makes the projects known.
func (m *Memory) SyncProjects(_ context.Context, projects []pipeline.Project) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range projects {
		m.projects[p.Name] = p
	}
	return nil
}

// write runs one transaction.
func (m *Memory) write(name string, tx func() error) error {
	return m.faults.do("store."+name, func() error {
		m.mu.Lock()
		defer m.mu.Unlock()
		return tx()
	})
}

// Accept is the intake of a delivery.
func (m *Memory) Accept(_ context.Context, d pipeline.Delivery) (a pipeline.Accepted, err error) {
	err = m.write("Accept", func() error {
		if _, ok := m.projects[d.Project]; !ok {
			return fmt.Errorf("project %s: %w", d.Project, pipeline.ErrNotFound)
		}
		id := [2]string{d.Forge, d.ID}
		e := eventKey(d.Project, d.Event)
		if run, ok := m.deliveries[id]; ok {
			if first, ok := m.runs[run]; ok {
				run = m.events[eventKey(first.Project, first.Event)]
			}
			a = pipeline.Accepted{Run: run, Duplicate: true, Note: "this delivery was accepted before"}
			return nil
		}
		if d.Event.Kind != pipeline.EventPush || d.Event.Deleted {
			m.deliveries[id] = ""
			a = pipeline.Accepted{Note: "there is nothing to build"}
			return nil
		}
		if run, ok := m.events[e]; ok {
			m.deliveries[id] = run
			a = pipeline.Accepted{Run: run, Duplicate: true, Note: "this event was accepted before under another delivery id"}
			return nil
		}
		run := pipeline.Run{ID: pipeline.NewRunID(d.ReceivedAt), Project: d.Project, Event: d.Event, State: pipeline.StateQueued, CreatedAt: d.ReceivedAt}
		m.runs[run.ID] = &run
		m.deliveries[id], m.events[e] = run.ID, run.ID
		a = pipeline.Accepted{Run: run.ID, Note: "a run was started"}
		return nil
	})
	return a, err
}

// eventKey is what makes two events the same one.
func eventKey(project string, e pipeline.Event) string {
	return strings.Join([]string{project, string(e.Kind), e.Ref, e.After}, "\x00")
}

// Retry starts a run over again.
func (m *Memory) Retry(_ context.Context, id pipeline.RunID, requestedBy string) (r pipeline.Run, created bool, err error) {
	err = m.write("Retry", func() error {
		asked, ok := m.runs[id]
		switch {
		case requestedBy == "":
			return fmt.Errorf("retry run %s: who asks is required: %w", id, pipeline.ErrInvalid)
		case !ok:
			return fmt.Errorf("run %s: %w", id, pipeline.ErrNotFound)
		}
		if err := asked.Retryable(); err != nil {
			return err
		}
		key := eventKey(asked.Project, asked.Event)
		// Only the newest can be open or have succeeded: the others were retried.
		if newest := m.runs[m.events[key]]; !newest.State.Final() {
			r = *newest
			return nil
		} else if err := newest.Retryable(); err != nil {
			return err
		}
		if _, ok := m.projects[asked.Project]; !ok {
			return fmt.Errorf("project %s is gone from the settings: %w", asked.Project, pipeline.ErrConflict)
		}
		now := time.Now().UTC()
		r = pipeline.Run{ID: pipeline.NewRunID(now), Project: asked.Project, Event: asked.Event, State: pipeline.StateQueued, CreatedAt: now,
			RetryOf: id, RequestedBy: requestedBy}
		stored := r
		m.runs[r.ID], m.events[key], created = &stored, r.ID, true
		return nil
	})
	return r, created, err
}

func splitImage(s string) (repository string, d pipeline.Digest, err error) {
	if strings.Contains(s, "@") {
		img, err := pipeline.ParseImage(s)
		return img.Repository, img.Digest, err
	}
	d, err = pipeline.ParseDigest(s)
	return "", d, err
}

// promotable finds the newest record of the one image that the request means.
func (m *Memory) promotable(r pipeline.PromotionRequest, repository string, d pipeline.Digest) (rec pipeline.ImageRecord, err error) {
	newest := map[string]pipeline.ImageRecord{}
	for _, i := range m.images {
		if i.Built.Image.Digest == d && (r.Project == "" || r.Project == i.Project) {
			newest[i.Project] = i
		}
	}
	var places, projects []string
	for name, i := range newest {
		places = append(places, i.Built.Image.Repository)
		if repository == "" || i.Built.Image.Repository == repository {
			projects, rec = append(projects, name), i
		}
	}
	switch {
	case len(newest) == 0:
		return rec, fmt.Errorf("image %s: %w", r.Image, pipeline.ErrNotFound)
	case len(projects) == 0:
		return rec, fmt.Errorf("image %s: it is recorded in %s: %w", r.Image, strings.Join(places, ", "), pipeline.ErrInvalid)
	case len(projects) > 1:
		slices.Sort(projects)
		return rec, fmt.Errorf("image %s is in projects %s: %w", r.Image, strings.Join(projects, ", "), pipeline.ErrAmbiguous)
	case !rec.Decision.Passed:
		return rec, fmt.Errorf("image %s: %w: %s", r.Image, pipeline.ErrRefused, rec.Decision.Reason())
	}
	return rec, nil
}

// Run implements pipeline.Store.
func (m *Memory) Run(_ context.Context, id pipeline.RunID) (r pipeline.Run, err error) {
	err = m.write("Run", func() error {
		run, ok := m.runs[id]
		if !ok {
			return fmt.Errorf("run %s: %w", id, pipeline.ErrNotFound)
		}
		r = *run
		return nil
	})
	return r, err
}

// Promotion implements pipeline.Store.
func (m *Memory) Promotion(_ context.Context, id pipeline.PromotionID) (p pipeline.Promotion, err error) {
	err = m.write("Promotion", func() error {
		promo, ok := m.promotions[id]
		if !ok {
			return fmt.Errorf("promotion %s: %w", id, pipeline.ErrNotFound)
		}
		p = *promo
		return nil
	})
	return p, err
}

// Project implements pipeline.Store.
func (m *Memory) Project(_ context.Context, name string) (p pipeline.Project, err error) {
	err = m.write("Project", func() error {
		var ok bool
		if p, ok = m.projects[name]; !ok {
			return fmt.Errorf("project %s: %w", name, pipeline.ErrNotFound)
		}
		return nil
	})
	return p, err
}

// state returns where the job's state and reason are kept.
func (m *Memory) state(job pipeline.JobID) (*pipeline.State, *string, error) {
	if r, ok := m.runs[pipeline.RunID(job)]; ok {
		return &r.State, &r.Reason, nil
	}
	if p, ok := m.promotions[pipeline.PromotionID(job)]; ok {
		return &p.State, &p.Reason, nil
	}
	return nil, nil, fmt.Errorf("job %s: %w", job, pipeline.ErrNotFound)
}

// StartStage implements pipeline.Store.
func (m *Memory) StartStage(_ context.Context, job pipeline.JobID, stage pipeline.Stage) (c pipeline.Claim, err error) {
	err = m.write("StartStage("+string(stage)+")", func() error {
		state, _, err := m.state(job)
		if err != nil {
			return err
		}
		if state.Final() {
			return fmt.Errorf("job %s is %s: %w", job, *state, pipeline.ErrConflict)
		}
		if m.stages[job] == nil {
			m.stages[job] = map[pipeline.Stage]*memoryStage{}
		}
		s := m.stages[job][stage]
		if s == nil {
			s = &memoryStage{}
			m.stages[job][stage] = s
		}
		if s.done {
			c = pipeline.Claim{Job: job, Stage: stage, Attempt: s.attempt, Done: true, Outcome: s.outcome}
			return nil
		}
		s.attempt++
		s.failed = false
		if *state == pipeline.StateQueued || *state == pipeline.StateWaiting {
			*state = pipeline.StateRunning
			m.append(job, pipeline.JobEvent{Kind: pipeline.KindState, State: string(*state)})
			if r, ok := m.runs[pipeline.RunID(job)]; ok {
				now := time.Now().UTC()
				r.StartedAt = &now
			}
		}
		m.append(job, pipeline.JobEvent{Kind: pipeline.KindStage, Stage: stage, Attempt: s.attempt, State: "started"})
		c = pipeline.Claim{Job: job, Stage: stage, Attempt: s.attempt}
		return nil
	})
	return c, err
}

func (m *Memory) append(job pipeline.JobID, e pipeline.JobEvent) {
	e.Seq = int64(len(m.log[job]) + 1)
	if e.Time.IsZero() {
		e.Time = time.Now().UTC()
	}
	m.log[job] = append(m.log[job], e)
}

// Events returns a job's events after seq.
func (m *Memory) Events(_ context.Context, job pipeline.JobID, after int64, limit int) (out []pipeline.JobEvent, end bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	state, _, err := m.state(job)
	if err != nil {
		return nil, false, err
	}
	all := m.log[job]
	from := min(int(after), len(all))
	to := min(from+limit, len(all))
	return slices.Clone(all[from:to]), to == len(all) && state.Final(), nil
}

func (m *Memory) holds(c pipeline.Claim) (*memoryStage, error) {
	state, _, err := m.state(c.Job)
	if err != nil {
		return nil, err
	}
	s := m.stages[c.Job][c.Stage]
	if s == nil || s.done || s.failed || s.attempt != c.Attempt || state.Final() {
		return nil, fmt.Errorf("%s of %s, attempt %d: %w", c.Stage, c.Job, c.Attempt, pipeline.ErrStale)
	}
	return s, nil
}

// Holds implements pipeline.Store.
func (m *Memory) Holds(_ context.Context, c pipeline.Claim) error {
	return m.write("Holds", func() error {
		_, err := m.holds(c)
		return err
	})
}

// finish records outcome if the claim holds; more, if not nil, runs in the same transaction.
func (m *Memory) finish(c pipeline.Claim, outcome any, more func()) error {
	return m.finishIf(c, outcome, nil, more)
}

// finishIf is finish, unless refuse has an error.
func (m *Memory) finishIf(c pipeline.Claim, outcome any, refuse func() error, more func()) error {
	return m.write("Finish("+string(c.Stage)+")", func() error {
		s, err := m.holds(c)
		if err == nil && refuse != nil {
			err = refuse()
		}
		if err != nil {
			return err
		}
		raw, ok := outcome.(json.RawMessage)
		if !ok {
			if raw, err = json.Marshal(outcome); err != nil {
				return err
			}
		}
		s.done, s.outcome = true, raw
		m.append(c.Job, pipeline.JobEvent{Kind: pipeline.KindStage, Stage: c.Stage, Attempt: c.Attempt, State: "succeeded"})
		if more != nil {
			more()
		}
		return nil
	})
}

// FinishStage implements pipeline.Store.
func (m *Memory) FinishStage(_ context.Context, c pipeline.Claim, outcome json.RawMessage) error {
	return m.finish(c, outcome, nil)
}

// FailStage implements pipeline.Store.
func (m *Memory) FailStage(_ context.Context, c pipeline.Claim, reason string) error {
	return m.write("FailStage", func() error {
		s, err := m.holds(c)
		if err != nil {
			return err
		}
		s.failed = true
		m.append(c.Job, pipeline.JobEvent{Kind: pipeline.KindStage, Stage: c.Stage, Attempt: c.Attempt, State: "failed", Message: reason})
		return nil
	})
}

// AppendEvents implements pipeline.Store. Progress is not an effect that a job
// depends on, so it is written outside the faults.
func (m *Memory) AppendEvents(_ context.Context, c pipeline.Claim, events []pipeline.JobEvent) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, err := m.holds(c); err != nil {
		return err
	}
	for _, e := range events {
		m.append(c.Job, e)
	}
	return nil
}

// RecordSource implements pipeline.Store.
func (m *Memory) RecordSource(_ context.Context, c pipeline.Claim, s pipeline.Source) error {
	return m.finish(c, s, func() {
		m.runs[pipeline.RunID(c.Job)].Commit = s.Commit
		m.sources[pipeline.RunID(c.Job)] = s
	})
}

// RecordBuilt implements pipeline.Store.
func (m *Memory) RecordBuilt(_ context.Context, c pipeline.Claim, b pipeline.Built) error {
	return m.finish(c, b, func() {
		img := b.Image
		m.runs[pipeline.RunID(c.Job)].Image = &img
	})
}

// FindBuilt implements pipeline.Store.
func (m *Memory) FindBuilt(_ context.Context, project string, s pipeline.Source) (b pipeline.Built, err error) {
	err = m.write("FindBuilt", func() error {
		want, err := json.Marshal(s.Plan)
		if err != nil {
			return err
		}
		for _, rec := range m.images {
			src := rec.Built.Source
			have, err := json.Marshal(src.Plan)
			if err != nil {
				return err
			}
			if rec.Project == project && rec.Decision.Passed && src.Commit == s.Commit && src.CloneURL == s.CloneURL && string(have) == string(want) {
				b = rec.Built
				return nil
			}
		}
		return fmt.Errorf("image of commit %s: %w", s.Commit, pipeline.ErrNotFound)
	})
	return b, err
}

// RecordImage implements pipeline.Store.
func (m *Memory) RecordImage(_ context.Context, c pipeline.Claim, rec pipeline.ImageRecord) error {
	return m.finish(c, rec.Built.Image, func() { m.images = append(m.images, rec) })
}

// ImageRecord implements pipeline.Store.
func (m *Memory) ImageRecord(_ context.Context, project string, d pipeline.Digest) (rec pipeline.ImageRecord, err error) {
	err = m.write("ImageRecord", func() error {
		for _, r := range slices.Backward(m.images) {
			if r.Project == project && r.Built.Image.Digest == d {
				rec = r
				return nil
			}
		}
		return fmt.Errorf("image %s in project %s: %w", d, project, pipeline.ErrNotFound)
	})
	return rec, err
}

func (m *Memory) end(job pipeline.JobID, e pipeline.Ending) {
	now := m.now()
	if r, ok := m.runs[pipeline.RunID(job)]; ok {
		r.State, r.Reason, r.FinishedAt = e.State, e.Reason, &now
	} else if p, ok := m.promotions[pipeline.PromotionID(job)]; ok {
		p.State, p.Reason, p.FinishedAt = e.State, e.Reason, &now
		m.leave(p.ID)
	}
	m.append(job, pipeline.JobEvent{Kind: pipeline.KindState, State: string(e.State), Message: e.Reason})
}

// End implements pipeline.Store.
func (m *Memory) End(_ context.Context, job pipeline.JobID, e pipeline.Ending) error {
	return m.write("End", func() error {
		state, _, err := m.state(job)
		if err != nil || state.Final() {
			return err
		}
		m.end(job, e)
		return nil
	})
}

// Lock implements pipeline.Locker.
func (m *Memory) Lock(ctx context.Context, key string) (func(), error) {
	m.mu.Lock()
	l, ok := m.locks[key]
	if !ok {
		l = make(chan struct{}, 1)
		m.locks[key] = l
	}
	m.mu.Unlock()
	select {
	case l <- struct{}{}:
		var once sync.Once
		return func() { once.Do(func() { <-l }) }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("lock %s: %w", key, ctx.Err())
	}
}

// recorded reports whether the store holds a passed record of the image at
// exactly that place.
func (m *Memory) recorded(img pipeline.Image) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.images {
		if r.Built.Image == img && r.Decision.Passed && len(r.Verified) > 0 {
			return true
		}
	}
	for _, p := range m.placements {
		if p.Copied.Image == img && p.Decision.Passed && len(p.Verified) > 0 {
			return true
		}
	}
	return false
}

// Images returns every record of an image, oldest first.
func (m *Memory) Images() []pipeline.ImageRecord {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.images)
}
