package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
)

// RetentionConfig is what a Retainer works with. All fields but Mask are required.
type RetentionConfig struct {
	Store  RetentionStore
	Pruner Pruner
	Locker Locker
	// Mask removes secrets from what is stored of errors.
	Mask *Masker
	Log  *slog.Logger
}

// Retainer plans what a project's retention lets go, and removes it. It keeps no
// state of its own: any number of them may share a store.
type Retainer struct {
	RetentionConfig
}

// NewRetainer checks the configuration.
func NewRetainer(c RetentionConfig) (*Retainer, error) {
	if c.Store == nil || c.Pruner == nil || c.Locker == nil || c.Log == nil {
		return nil, errors.New("retention: a store, pruner, locker and logger are required")
	}
	if c.Mask == nil {
		c.Mask = NewMasker()
	}
	return &Retainer{c}, nil
}

// Plan says what would go, and what stays and why. It changes nothing.
func (r *Retainer) Plan(ctx context.Context, project string) (RetentionPlan, error) {
	p, err := r.plan(ctx, project)
	if err != nil {
		return RetentionPlan{}, fmt.Errorf("plan the retention of %s: %w", project, err)
	}
	return p.plan, nil
}

// Apply makes the plan again, and has it carried out if it is still the one that
// was shown: Work does it. Another plan is ErrConflict.
func (r *Retainer) Apply(ctx context.Context, project string, shown Digest, by string) (RetentionRun, error) {
	fail := func(err error) (RetentionRun, error) {
		return RetentionRun{}, fmt.Errorf("apply the retention of %s: %w", project, err)
	}
	p, err := r.plan(ctx, project)
	switch {
	case err != nil:
		return fail(err)
	case p.plan.Digest != shown:
		return fail(fmt.Errorf("the plan is %s by now, and not %s: look at it again: %w", p.plan.Digest, shown, ErrConflict))
	case p.plan.Empty():
		return fail(fmt.Errorf("there is nothing to remove: %w", ErrConflict))
	}
	run, err := r.Store.BeginRetention(ctx, p.plan, by)
	if err != nil {
		return fail(err)
	}
	return run, nil
}

// Work finishes what was begun, carries out the plans that were applied, and
// makes those that apply themselves. What fails is tried again the next time;
// one project does not keep it from the others. Only one pass runs at a time,
// across processes.
func (r *Retainer) Work(ctx context.Context) error {
	unlock, err := r.Locker.Lock(ctx, "retention")
	if err != nil {
		return fmt.Errorf("retention: %w", err)
	}
	defer unlock()
	var failed []error
	names, err := r.Store.AutoRetention(ctx)
	failed = append(failed, err)
	for _, name := range names {
		failed = append(failed, r.auto(ctx, name))
	}
	failed = append(failed, r.resume(ctx))
	runs, plans, err := r.Store.OpenRetentions(ctx)
	failed = append(failed, err)
	for i, run := range runs {
		if ctx.Err() != nil {
			break
		}
		problem := ""
		if err := r.carryOut(ctx, run, plans[i]); err != nil {
			problem = r.Mask.Mask(err.Error())
			failed = append(failed, fmt.Errorf("retention of %s: %w", run.Project, err))
		}
		after, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
		failed = append(failed, r.Store.EndRetention(after, run.ID, problem))
		cancel()
	}
	return errors.Join(failed...)
}

func (r *Retainer) auto(ctx context.Context, project string) error {
	p, err := r.plan(ctx, project)
	if err == nil && !p.plan.Empty() {
		_, err = r.Store.BeginRetention(ctx, p.plan, Automatic)
		if errors.Is(err, ErrConflict) {
			return nil // another one is under way
		}
	}
	if err != nil {
		return fmt.Errorf("retention of %s: %w", project, err)
	}
	return nil
}

// carryOut does what of a plan is not done yet.
func (r *Retainer) carryOut(ctx context.Context, run RetentionRun, plan RetentionPlan) error {
	left := slices.DeleteFunc(slices.Clone(plan.Remove), func(x Removal) bool {
		return slices.ContainsFunc(run.Outcomes, func(o RemovalOutcome) bool {
			return o.Kind == x.Kind && o.Image == x.Image && slices.Equal(o.Tags, x.Tags)
		})
	})
	if len(left) > 0 {
		if slices.ContainsFunc(left, func(x Removal) bool { return x.Environment != "" }) {
			// What reconciliation has just read of an environment must not come back.
			unlock, err := r.Locker.Lock(ctx, "reconcile")
			if err != nil {
				return err
			}
			defer unlock()
		}
		if err := r.remove(ctx, run, left); err != nil {
			return err
		}
	}
	for more := len(plan.Logs) > 0; more; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		var err error
		if more, err = r.Store.PruneLogs(ctx, run.ID, plan.Logs); err != nil {
			return err
		}
	}
	return nil
}

// remove goes through the removals, one repository after the other.
func (r *Retainer) remove(ctx context.Context, run RetentionRun, left []Removal) error {
	st, err := r.Store.Retained(ctx, run.Project)
	if err != nil {
		return err
	}
	p := newPlanning(st)
	seen := map[string]*Holdings{}
	for _, x := range left {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		h := seen[x.Image.Repository]
		if h == nil {
			var attached []Digest
			for _, o := range left {
				if o.Image.Repository == x.Image.Repository && o.Kind != RemoveTag {
					attached = append(attached, o.Image.Digest)
				}
			}
			if h, err = r.look(ctx, p, x.Image.Repository, attached); err != nil {
				return err
			}
			seen[x.Image.Repository] = h
		}
		if err := r.removeOne(ctx, run, p, h, x); err != nil {
			return fmt.Errorf("remove the %s %s: %w", x.Kind, x.Image, err)
		}
	}
	return nil
}

// removeOne removes one thing: the intent, the effect, the record. It holds the
// lock that tags are moved under.
func (r *Retainer) removeOne(ctx context.Context, run RetentionRun, p *planning, h *Holdings, x Removal) error {
	unlock, err := r.Locker.Lock(ctx, "tags:"+x.Image.Repository)
	if err != nil {
		return err
	}
	defer unlock()
	skip := func(why string) error {
		return r.Store.NotePruning(ctx, run.ID, RemovalOutcome{Removal: x, Outcome: PruneSkipped, Detail: why})
	}
	if why := p.changed(h, x); why != "" {
		return skip(why)
	}
	pruning, err := r.Store.BeginPruning(ctx, Pruning{Project: run.Project, Run: run.ID, By: run.RequestedBy, Removal: x})
	if errors.Is(err, ErrConflict) {
		return skip(r.Mask.Mask(err.Error()))
	}
	if err != nil {
		return err
	}
	outcome, err := r.prune(ctx, h, pruning)
	if err == nil && outcome.Outcome == PruneRemoved {
		h.take(x.Tags, x.Manifests)
		if x.Kind != RemoveTag {
			delete(p.known[h.Repository], x.Image.Digest)
		}
	}
	return err
}

// changed says what is not as it was when the removal was planned.
func (p *planning) changed(h *Holdings, x Removal) string {
	for _, tag := range x.Tags {
		if h.Tags[tag] != x.Image.Digest {
			return fmt.Sprintf("the tag %s does not name it any more", tag)
		}
	}
	if x.Kind == RemoveTag {
		return ""
	}
	pinned, why := p.pinned(x.Image)
	if why != "" {
		return why
	}
	manifests, _, why, ok := h.remove(x.Image.Digest, x.Tags, pinned)
	switch {
	case !ok:
		return why
	case !slices.Equal(manifests, x.Manifests):
		return "something was attached to it, or shares parts with it, since the plan was made"
	}
	return ""
}

// prune has the effect and keeps its outcome. What was begun is ended, or is
// left for the next pass to go on with.
func (r *Retainer) prune(ctx context.Context, h *Holdings, p Pruning) (RemovalOutcome, error) {
	outcome := RemovalOutcome{Removal: p.Removal, Outcome: PruneRemoved}
	blocked, err := r.Pruner.Prune(ctx, h, p.Removal)
	switch {
	case errors.Is(err, ErrConflict):
		outcome.Outcome, outcome.Detail = PruneSkipped, r.Mask.Mask(err.Error())
	case err != nil:
		return outcome, err
	case blocked != "":
		outcome.Outcome, outcome.Detail = PruneBlocked, blocked
	}
	after, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancel()
	if err := r.Store.EndPruning(after, p, outcome); err != nil {
		return outcome, err
	}
	r.Log.InfoContext(ctx, "retention", "project", p.Project, "kind", p.Removal.Kind, "image", p.Removal.Image, "outcome", outcome.Outcome,
		"manifests", len(p.Removal.Manifests), "tags", p.Removal.Tags, "detail", outcome.Detail)
	return outcome, nil
}

// resume goes on with what a crash or an error has interrupted.
func (r *Retainer) resume(ctx context.Context) error {
	open, err := r.Store.OpenPrunings(ctx)
	if err != nil {
		return err
	}
	var failed []error
	for _, p := range open {
		if ctx.Err() != nil {
			break
		}
		if err := r.resumeOne(ctx, p); err != nil {
			failed = append(failed, fmt.Errorf("go on removing the %s %s: %w", p.Removal.Kind, p.Removal.Image, err))
		}
	}
	return errors.Join(failed...)
}

// resumeOne removes what is left of it, if nothing else has come to need that.
func (r *Retainer) resumeOne(ctx context.Context, open Pruning) error {
	x := open.Removal
	unlock, err := r.Locker.Lock(ctx, "tags:"+x.Image.Repository)
	if err != nil {
		return err
	}
	defer unlock()
	st, err := r.Store.Retained(ctx, open.Project)
	if err != nil {
		return err
	}
	p := newPlanning(st)
	pinned, why := p.pinned(x.Image)
	manifests := append(slices.Collect(maps.Keys(pinned)), x.Manifests...)
	slices.Sort(manifests)
	h, err := r.Pruner.Survey(ctx, x.Image.Repository, slices.Compact(manifests), x.Manifests)
	if err != nil {
		return err
	}
	stay := func(why string) error {
		return r.Store.EndPruning(ctx, open, RemovalOutcome{Removal: x, Outcome: PruneSkipped, Detail: "it was interrupted, and meanwhile " + why})
	}
	if why != "" && x.Kind != RemoveTag {
		return stay(why)
	}
	// What is gone already is no reason; what names something else by now is.
	x.Tags = slices.DeleteFunc(slices.Clone(x.Tags), func(tag string) bool { _, there := h.Tags[tag]; return !there })
	for _, tag := range x.Tags {
		if h.Tags[tag] != x.Image.Digest {
			return stay(fmt.Sprintf("the tag %s names %s", tag, h.Tags[tag]))
		}
	}
	if x.Kind != RemoveTag {
		going := h.closure(x.Manifests)
		stays := h.removable(going, x.Tags, pinned)
		if why, ok := stays[x.Image.Digest]; ok {
			return stay(why)
		}
		for d := range stays {
			delete(going, d)
		}
		x.Manifests = h.order(x.Image.Digest, going)
	}
	open.Removal = x
	_, err = r.prune(ctx, h, open)
	return err
}
