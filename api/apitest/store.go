// Package apitest is an API store in memory for tests, which fails on demand,
// and a sample world to fill it with.
package apitest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"sort"
	"strings"
	"sync"

	"github.com/dray-project/dray/pipeline"
)

// ErrInjected is the failure that a test asked for.
var ErrInjected = errors.New("injected fault: dial tcp 10.1.2.3:5432: password=hunter2")

// Store keeps what an API needs in memory. Its fields may be set before it is
// used; afterwards go through its methods.
type Store struct {
	// Tokens by their secret.
	Tokens map[string]pipeline.Token
	// Promotable are the environments that can be promoted to.
	Promotable []string
	// Promoted is called with every new promotion, outside the store's lock. May
	// be nil.
	Promoted func(pipeline.Promotion)
	// Retried is called with every new retry, outside the store's lock. May be nil.
	Retried func(pipeline.Run)

	mu         sync.Mutex
	runs       []pipeline.RunDetail // oldest first
	promotions []pipeline.PromotionDetail
	images     []pipeline.ImageDetail
	sboms      map[string]json.RawMessage
	packages   []pipeline.PackageUse
	projects   map[string][]pipeline.ProjectVersion // oldest first
	states     map[string][]pipeline.EnvironmentState
	exceptions []pipeline.Exception
	vex        []pipeline.VEXDocument
	drifts     []pipeline.Drift
	registries []pipeline.RegistryProbe
	events     map[pipeline.JobID][]pipeline.JobEvent
	ended      map[pipeline.JobID]bool
	deliveries map[string]pipeline.Accepted
	keys       map[string]request
	accepted   []pipeline.Delivery
	refused    []pipeline.Refusal
	faults     map[string]fault
}

type request struct {
	pipeline.PromotionRequest
	id pipeline.PromotionID
}

type fault struct {
	err   error
	times int // negative: for ever
	after bool
}

// New returns a store with a token for each role, such as "dray_viewer" and
// "dray_release-manager", and with "dray_test", which is admin and release
// manager.
func New() *Store {
	tokens := map[string]pipeline.Token{"dray_test": {Name: "grace", CreatedAt: Clock,
		Grants: []pipeline.Grant{{Role: pipeline.RoleReleaseManager}, {Role: pipeline.RoleAdmin}}}}
	for _, role := range []string{pipeline.RoleViewer, pipeline.RoleDeveloper, pipeline.RoleReleaseManager, pipeline.RoleAuditor, pipeline.RoleAdmin} {
		tokens["dray_"+role] = pipeline.Token{Name: "the " + role, Grants: []pipeline.Grant{{Role: role}}, CreatedAt: Clock}
	}
	return &Store{
		Tokens:     tokens,
		Promotable: []string{"staging", "prod"},
		sboms:      map[string]json.RawMessage{},
		projects:   map[string][]pipeline.ProjectVersion{},
		states:     map[string][]pipeline.EnvironmentState{},
		events:     map[pipeline.JobID][]pipeline.JobEvent{},
		ended:      map[pipeline.JobID]bool{},
		deliveries: map[string]pipeline.Accepted{},
		keys:       map[string]request{},
		faults:     map[string]fault{},
	}
}

// Fail makes the next calls of a method fail: before they have an effect, or
// after it. Negative times means from now on.
func (s *Store) Fail(method string, err error, times int, after bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults[method] = fault{err, times, after}
}

// do runs a method, or fails it.
func (s *Store) do(ctx context.Context, method string, effect func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.faults[method]
	if f.times == 0 {
		return effect()
	}
	f.times--
	s.faults[method] = f
	if f.after {
		if err := effect(); err != nil {
			return err
		}
	}
	return fmt.Errorf("%s: %w", method, f.err)
}

// AddRun adds a run; AddPromotion, AddImage and AddPackage do the same for theirs.
func (s *Store) AddRun(r pipeline.RunDetail) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.runs = append(s.runs, r)
	s.ended[r.ID.Job()] = r.State.Final()
}

// AddPromotion adds a promotion.
func (s *Store) AddPromotion(p pipeline.PromotionDetail) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.promotions = append(s.promotions, p)
	s.ended[p.ID.Job()] = p.State.Final()
}

// AddImage adds an image with the SBOM of each of its platforms.
func (s *Store) AddImage(d pipeline.ImageDetail, sbom json.RawMessage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.images = append(s.images, d)
	for _, p := range d.Platforms {
		s.sboms[fmt.Sprint(d.Project, d.Image.Digest, p.Platform)] = sbom
	}
}

// AddPackage adds a use of a package.
func (s *Store) AddPackage(u pipeline.PackageUse) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.packages = append(s.packages, u)
}

// Append adds events to a job, and gives them their sequence numbers.
func (s *Store) Append(job pipeline.JobID, events ...pipeline.JobEvent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range events {
		e.Seq = int64(len(s.events[job]) + 1)
		if e.Time.IsZero() {
			e.Time = Clock
		}
		s.events[job] = append(s.events[job], e)
	}
}

// End makes a job final.
func (s *Store) End(job pipeline.JobID, state pipeline.State, reason string) {
	s.Append(job, pipeline.JobEvent{Kind: pipeline.KindState, State: string(state), Message: reason})
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.runs {
		if s.runs[i].ID.Job() == job {
			s.runs[i].State, s.runs[i].Reason = state, reason
		}
	}
	for i := range s.promotions {
		if s.promotions[i].ID.Job() == job {
			s.promotions[i].State, s.promotions[i].Reason = state, reason
		}
	}
	s.ended[job] = true
}

// Accepted returns the deliveries that started something, in order.
func (s *Store) Accepted() []pipeline.Delivery {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]pipeline.Delivery(nil), s.accepted...)
}

// Accept starts a run for a new event.
func (s *Store) Accept(ctx context.Context, d pipeline.Delivery) (a pipeline.Accepted, err error) {
	err = s.do(ctx, "Accept", func() error {
		event := strings.Join([]string{d.Forge, d.Project, d.Event.Ref, d.Event.After, string(d.Event.Kind)}, " ")
		id := d.Forge + " id " + d.ID
		for _, key := range []string{id, event} {
			if first, ok := s.deliveries[key]; ok {
				a = first
				a.Duplicate, a.Note = true, "accepted before"
				return nil
			}
		}
		if d.Event.Deleted {
			a.Note = "the ref was deleted: there is nothing to build"
		} else {
			a.Run = pipeline.NewRunID(d.ReceivedAt)
			a.Note = "queued"
			s.runs = append(s.runs, pipeline.RunDetail{Run: pipeline.Run{
				ID: a.Run, Project: d.Project, Event: d.Event, State: pipeline.StateQueued, CreatedAt: d.ReceivedAt}})
		}
		s.deliveries[id], s.deliveries[event] = a, a
		s.accepted = append(s.accepted, d)
		return nil
	})
	return a, err
}

// Refused returns the deliveries that were noted as refused, in order.
func (s *Store) Refused() []pipeline.Refusal {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]pipeline.Refusal(nil), s.refused...)
}

// RefuseDelivery keeps all of them.
func (s *Store) RefuseDelivery(ctx context.Context, r pipeline.Refusal) error {
	return s.do(ctx, "RefuseDelivery", func() error {
		s.refused = append(s.refused, r)
		return nil
	})
}

// Retry queues another run of the event of a run that failed or was refused.
func (s *Store) Retry(ctx context.Context, id pipeline.RunID, requestedBy string) (r pipeline.Run, created bool, err error) {
	err = s.do(ctx, "Retry", func() error {
		of := map[pipeline.RunID]pipeline.RunID{}
		for _, have := range s.runs {
			of[have.ID] = have.RetryOf
		}
		first := func(id pipeline.RunID) pipeline.RunID {
			for of[id] != "" {
				id = of[id]
			}
			return id
		}
		var asked *pipeline.Run
		for _, have := range s.runs {
			if have.ID == id {
				asked = &have.Run
			}
		}
		if asked == nil {
			return fmt.Errorf("run %s: %w", id, pipeline.ErrNotFound)
		}
		if err := asked.Retryable(); err != nil {
			return err
		}
		for _, have := range s.runs {
			if first(have.ID) != first(id) {
				continue
			}
			if !have.State.Final() {
				r = have.Run
				return nil
			}
			if err := have.Retryable(); err != nil {
				return err
			}
		}
		r = pipeline.Run{ID: pipeline.NewRunID(Clock), Project: asked.Project, Event: asked.Event, State: pipeline.StateQueued,
			CreatedAt: Clock, RetryOf: id, RequestedBy: requestedBy}
		s.runs = append(s.runs, pipeline.RunDetail{Run: r})
		for key, a := range s.deliveries {
			if a.Run != "" && first(a.Run) == first(id) {
				a.Run = r.ID
				s.deliveries[key] = a
			}
		}
		created = true
		return nil
	})
	if created && s.Retried != nil {
		s.Retried(r)
	}
	return r, created, err
}

// Promote queues a promotion.
func (s *Store) Promote(ctx context.Context, r pipeline.PromotionRequest) (p pipeline.Promotion, created bool, err error) {
	err = s.do(ctx, "Promote", func() error {
		key, asked := r.RequestedBy+" "+r.IdempotencyKey, r
		if first, ok := s.keys[key]; ok && r.IdempotencyKey != "" {
			if !reflect.DeepEqual(first.PromotionRequest, asked) {
				return fmt.Errorf("idempotency key %q was used for another request: %w", r.IdempotencyKey, pipeline.ErrConflict)
			}
			for _, have := range s.promotions {
				if have.ID == first.id {
					p = have.Promotion
				}
			}
			return nil
		}
		if r.Action == "" {
			r.Action = pipeline.ActionPromote
		}
		if r.Image == "" {
			before, err := s.before(r.Project, r.Environment)
			if err != nil {
				return err
			}
			r.Image = string(before)
		}
		image := pipeline.Image{}
		digest, err := pipeline.ParseDigest(r.Image)
		if err != nil {
			if image, err = pipeline.ParseImage(r.Image); err != nil {
				return err
			}
			digest = image.Digest
		}
		found := s.find(digest, r.Project)
		switch {
		case len(found) == 0:
			return fmt.Errorf("image %s: %w", digest, pipeline.ErrNotFound)
		case len(found) > 1:
			return fmt.Errorf("image %s is in several projects: %w", digest, pipeline.ErrAmbiguous)
		case !found[0].Decision.Passed:
			return fmt.Errorf("image %s: %s: %w", digest, found[0].Decision.Reason(), pipeline.ErrRefused)
		}
		if !contains(s.Promotable, r.Environment) {
			return fmt.Errorf("environment %q: want one of %s: %w", r.Environment, strings.Join(s.Promotable, ", "), pipeline.ErrInvalid)
		}
		p = pipeline.Promotion{ID: pipeline.NewPromotionID(Clock), Project: found[0].Project, Image: found[0].Image,
			Environment: r.Environment, RequestedBy: r.RequestedBy, Roles: pipeline.RolesIn(r.Grants, found[0].Project),
			Action: r.Action, Note: r.Note, BreakGlass: r.BreakGlass, State: pipeline.StateQueued, Approvals: []pipeline.Approval{}, CreatedAt: Clock}
		s.promotions = append(s.promotions, pipeline.PromotionDetail{Promotion: p})
		s.keys[key] = request{asked, p.ID}
		created = true
		return nil
	})
	if created && s.Promoted != nil {
		s.Promoted(p)
	}
	return p, created, err
}

// TokenBySecret finds a token.
func (s *Store) TokenBySecret(ctx context.Context, secret string) (t pipeline.Token, err error) {
	err = s.do(ctx, "TokenBySecret", func() error {
		var ok bool
		if t, ok = s.Tokens[secret]; !ok {
			return fmt.Errorf("token: %w", pipeline.ErrNotFound)
		}
		return nil
	})
	return t, err
}

// Runs lists runs, newest first.
func (s *Store) Runs(ctx context.Context, project string, state pipeline.State, page pipeline.Page) (out []pipeline.Run, err error) {
	err = s.do(ctx, "Runs", func() error {
		var all []pipeline.Run
		for _, r := range s.runs {
			if (project == "" || r.Project == project) && (state == "" || r.State == state) {
				all = append(all, r.Run)
			}
		}
		out = cut(all, page, func(r pipeline.Run) string { return string(r.ID) })
		return nil
	})
	return out, err
}

// RunDetail returns a run.
func (s *Store) RunDetail(ctx context.Context, id pipeline.RunID) (out pipeline.RunDetail, err error) {
	err = s.do(ctx, "RunDetail", func() error {
		for _, r := range s.runs {
			if r.ID == id {
				out = r
				return nil
			}
		}
		return fmt.Errorf("run %s: %w", id, pipeline.ErrNotFound)
	})
	return out, err
}

// Events returns a job's events.
func (s *Store) Events(ctx context.Context, job pipeline.JobID, after int64, limit int) (out []pipeline.JobEvent, end bool, err error) {
	err = s.do(ctx, "Events", func() error {
		all := s.events[job]
		if after < int64(len(all)) {
			out = append(out, all[after:min(int64(len(all)), after+int64(limit))]...)
		}
		end = s.ended[job] && after+int64(len(out)) >= int64(len(all))
		return nil
	})
	return out, end, err
}

func (s *Store) find(d pipeline.Digest, project string) (out []pipeline.ImageDetail) {
	for _, i := range s.images {
		if i.Image.Digest == d && (project == "" || i.Project == project) {
			out = append(out, i)
		}
	}
	return out
}

// ImageDetails returns an image in every project that holds it.
func (s *Store) ImageDetails(ctx context.Context, d pipeline.Digest, project string) (out []pipeline.ImageDetail, err error) {
	err = s.do(ctx, "ImageDetails", func() error {
		if out = s.find(d, project); len(out) == 0 {
			return fmt.Errorf("image %s: %w", d, pipeline.ErrNotFound)
		}
		return nil
	})
	return out, err
}

// SBOM returns the SBOM of a platform.
func (s *Store) SBOM(ctx context.Context, project string, d pipeline.Digest, platform pipeline.Platform) (doc json.RawMessage, err error) {
	err = s.do(ctx, "SBOM", func() error {
		var ok bool
		if doc, ok = s.sboms[fmt.Sprint(project, d, platform)]; !ok {
			return fmt.Errorf("SBOM of %s for %s: %w", d, platform, pipeline.ErrNotFound)
		}
		return nil
	})
	return doc, err
}

// Packages finds a package.
func (s *Store) Packages(ctx context.Context, q pipeline.PackageQuery) (out []pipeline.PackageUse, err error) {
	err = s.do(ctx, "Packages", func() error {
		var all []pipeline.PackageUse
		for _, u := range s.packages {
			placed := q.Environment == "" && !q.Promoted
			for _, p := range u.Promotions {
				placed = placed || q.Environment == "" || p.Environment == q.Environment
			}
			if u.Package.Name == q.Name && (q.Version == "" || u.Package.Version == q.Version) && (q.Project == "" || u.Project == q.Project) && placed {
				all = append(all, u)
			}
		}
		out = cut(all, q.Page, func(u pipeline.PackageUse) string { return u.ID })
		return nil
	})
	return out, err
}

// Ready always is, unless it was told to fail.
func (s *Store) Ready(ctx context.Context) error {
	return s.do(ctx, "Ready", func() error { return nil })
}

// cut sorts newest first and takes the page. It panics on a limit that the
// contract does not allow.
func cut[T any](all []T, page pipeline.Page, id func(T) string) []T {
	if page.Limit < 1 || page.Limit > 200 {
		panic(fmt.Sprintf("page limit %d: want 1 to 200", page.Limit))
	}
	sort.SliceStable(all, func(i, j int) bool { return id(all[i]) > id(all[j]) })
	var out []T
	for _, item := range all {
		if (page.After == "" || id(item) < page.After) && len(out) < page.Limit {
			out = append(out, item)
		}
	}
	return out
}

func contains(list []string, s string) bool {
	for _, have := range list {
		if have == s {
			return true
		}
	}
	return false
}
