package pipelinetest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/dray-project/dray/pipeline"
)

// Retentions is a pipeline.RetentionStore in memory, for one project.
type Retentions struct {
	mu sync.Mutex
	// State is what Retained answers. Prunings change it.
	State pipeline.Retained
	// Faults of writes; may be nil.
	Faults *Faults
	// Busy makes BeginPruning refuse a digest.
	Busy map[pipeline.Digest]bool

	runs  []pipeline.RetentionRun
	plans []pipeline.RetentionPlan
	open  []pipeline.Pruning
	next  int64
}

func (s *Retentions) write(op string, do func() error) error {
	return s.Faults.try(op, func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		return do()
	})
}

// Retained implements pipeline.RetentionStore.
func (s *Retentions) Retained(context.Context, string) (pipeline.Retained, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.State
	r.Images = slices.Clone(r.Images)
	for i := range r.Images {
		r.Images[i].Places, r.Images[i].Tags = slices.Clone(r.Images[i].Places), slices.Clone(r.Images[i].Tags)
	}
	return r, nil
}

// BeginRetention implements pipeline.RetentionStore.
func (s *Retentions) BeginRetention(_ context.Context, plan pipeline.RetentionPlan, by string) (run pipeline.RetentionRun, err error) {
	err = s.write("begin retention", func() error {
		for i, r := range s.runs {
			if r.FinishedAt == nil && r.Plan != plan.Digest {
				return pipeline.ErrConflict
			} else if r.FinishedAt == nil {
				run = s.runs[i]
				return nil
			}
		}
		run = pipeline.RetentionRun{ID: fmt.Sprintf("ret_%d", len(s.runs)), Project: plan.Project, Plan: plan.Digest, RequestedBy: by, Planned: len(plan.Remove)}
		s.runs, s.plans = append(s.runs, run), append(s.plans, plan)
		return nil
	})
	return run, err
}

// OpenRetentions implements pipeline.RetentionStore.
func (s *Retentions) OpenRetentions(context.Context) (runs []pipeline.RetentionRun, plans []pipeline.RetentionPlan, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, r := range s.runs {
		if r.FinishedAt == nil {
			runs, plans = append(runs, r), append(plans, s.plans[i])
		}
	}
	return runs, plans, nil
}

// Last returns the newest run.
func (s *Retentions) Last() pipeline.RetentionRun {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.runs[len(s.runs)-1]
}

// BeginPruning implements pipeline.RetentionStore.
func (s *Retentions) BeginPruning(_ context.Context, p pipeline.Pruning) (pipeline.Pruning, error) {
	err := s.write("begin pruning", func() error {
		if s.Busy[p.Removal.Image.Digest] {
			return fmt.Errorf("a run works with it: %w", pipeline.ErrConflict)
		}
		s.next++
		p.ID = s.next
		s.open = append(s.open, p)
		return nil
	})
	return p, err
}

// EndPruning implements pipeline.RetentionStore.
func (s *Retentions) EndPruning(_ context.Context, p pipeline.Pruning, o pipeline.RemovalOutcome) error {
	return s.write("end pruning", func() error {
		i := slices.IndexFunc(s.open, func(x pipeline.Pruning) bool { return x.ID == p.ID })
		if i < 0 {
			return nil
		}
		o.Removal = s.open[i].Removal
		s.open = slices.Delete(s.open, i, i+1)
		s.outcome(p.Run, o)
		if o.Outcome != pipeline.PruneRemoved {
			return nil
		}
		for i := range s.State.Images {
			img := &s.State.Images[i]
			if img.Image.Digest != o.Image.Digest {
				continue
			}
			img.Tags = slices.DeleteFunc(img.Tags, func(t pipeline.RetainedTag) bool {
				return t.Repository == o.Image.Repository && (o.Kind == pipeline.RemoveImage || slices.Contains(o.Tags, t.Tag))
			})
			if o.Kind != pipeline.RemoveImage {
				continue
			}
			if o.Environment == "" {
				img.Gone = true
			}
			for k := range img.Places {
				if img.Places[k].Image == o.Image {
					img.Places[k].Gone = true
				}
			}
		}
		return nil
	})
}

func (s *Retentions) outcome(run string, o pipeline.RemovalOutcome) {
	for i := range s.runs {
		if s.runs[i].ID == run {
			s.runs[i].Outcomes = append(slices.Clone(s.runs[i].Outcomes), o)
			s.runs[i].Done++
		}
	}
}

// NotePruning implements pipeline.RetentionStore.
func (s *Retentions) NotePruning(_ context.Context, run string, o pipeline.RemovalOutcome) error {
	return s.write("note pruning", func() error { s.outcome(run, o); return nil })
}

// OpenPrunings implements pipeline.RetentionStore.
func (s *Retentions) OpenPrunings(context.Context) ([]pipeline.Pruning, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.open), nil
}

// PruneLogs implements pipeline.RetentionStore.
func (s *Retentions) PruneLogs(_ context.Context, run string, of []pipeline.LogRemoval) (bool, error) {
	return false, s.write("prune logs", func() error {
		s.State.Logs = slices.DeleteFunc(slices.Clone(s.State.Logs), func(l pipeline.LogRemoval) bool { return slices.Contains(of, l) })
		return nil
	})
}

// EndRetention implements pipeline.RetentionStore.
func (s *Retentions) EndRetention(_ context.Context, run, problem string) error {
	return s.write("end retention", func() error {
		for i := range s.runs {
			if s.runs[i].ID == run && s.runs[i].FinishedAt == nil {
				if s.runs[i].Error = problem; problem == "" {
					now := time.Now()
					s.runs[i].FinishedAt = &now
				}
			}
		}
		return nil
	})
}

// AutoRetention implements pipeline.RetentionStore.
func (s *Retentions) AutoRetention(context.Context) ([]string, error) {
	if r := s.State.Project.Retention; r != nil && r.Auto {
		return []string{s.State.Project.Name}, nil
	}
	return nil, nil
}
