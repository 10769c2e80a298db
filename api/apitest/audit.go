package apitest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dray-project/dray/pipeline"
)

// stay is a promotion that succeeded, as history has it.
func stay(p pipeline.PromotionDetail) pipeline.Stay {
	s := pipeline.Stay{Project: p.Project, Environment: p.Environment, Image: *p.Destination, Promotion: p.ID, Action: p.Action, RequestedBy: p.RequestedBy,
		ApprovedBy: []string{"ada"}, Commit: Commit, Since: *p.FinishedAt}
	return s
}

func (s *Store) stays(project string, d pipeline.Digest) (out []pipeline.Stay) {
	out = []pipeline.Stay{}
	for _, p := range s.promotions {
		if p.Project == project && p.Image.Digest == d && p.State == pipeline.StateSucceeded && p.Destination != nil && p.FinishedAt != nil {
			out = append(out, stay(p))
		}
	}
	return out
}

func inScope(q pipeline.AuditScope, project string, stays []pipeline.Stay) bool {
	if !q.Reach.Has(project) || q.Project != "" && q.Project != project {
		return false
	}
	there := q.Promoted == ""
	for _, s := range stays {
		there = there || q.Environment == "" || q.Environment == s.Environment
	}
	return there
}

// AuditPackages looks through the packages that were added. Of a range it knows
// none: every version is in it.
func (s *Store) AuditPackages(ctx context.Context, q pipeline.PackageAuditQuery) (out []pipeline.PackageAudit, err error) {
	err = s.do(ctx, "AuditPackages", func() error {
		if err := q.Check(); err != nil {
			return err
		}
		if q.Name == "" && q.PURL == "" && q.License == "" {
			return fmt.Errorf("a name, a purl or a licence is required: %w", pipeline.ErrInvalid)
		}
		for _, u := range s.packages {
			places := s.stays(u.Project, u.Image.Digest)
			if !inScope(q.AuditScope, u.Project, places) || q.Name != "" && u.Package.Name != q.Name || q.Version != "" && u.Package.Version != q.Version ||
				!strings.HasPrefix(u.Package.PURL, q.PURL) {
				continue
			}
			out = append(out, pipeline.PackageAudit{ID: u.ID, Project: u.Project, Image: u.Image, Platforms: u.Platforms, Package: u.Package, Run: u.Run, Commit: u.Commit,
				RecordedAt: Clock, First: &pipeline.Origin{Run: u.Run, Commit: u.Commit, Digest: u.Image.Digest, At: Clock}, Places: places, Exceptions: []pipeline.Exception{}})
		}
		out = auditPage(out, q.Page, false, func(a pipeline.PackageAudit) string { return a.ID })
		return nil
	})
	return out, err
}

// AuditFindings looks through the images that were added.
func (s *Store) AuditFindings(ctx context.Context, q pipeline.FindingAuditQuery) (out []pipeline.FindingAudit, err error) {
	err = s.do(ctx, "AuditFindings", func() error {
		if err := q.Check(); err != nil {
			return err
		}
		for i, d := range s.images {
			places := s.stays(d.Project, d.Image.Digest)
			for _, f := range d.Findings {
				if f.ID != q.Finding || q.Package != "" && f.Package != q.Package || !inScope(q.AuditScope, d.Project, places) {
					continue
				}
				out = append(out, pipeline.FindingAudit{ID: fmt.Sprintf("%04d", i), Project: d.Project, Image: d.Image, Platforms: f.Platforms, Finding: f.Finding, Run: d.Run,
					Commit: Commit, RecordedAt: d.RecordedAt, ScannedAt: d.ScannedAt, Places: places, Suppressed: []pipeline.FindingSuppression{}})
			}
		}
		out = auditPage(out, q.Page, false, func(a pipeline.FindingAudit) string { return a.ID })
		return nil
	})
	return out, err
}

// AuditImage tells of the run and the promotions of an image that was added.
func (s *Store) AuditImage(ctx context.Context, d pipeline.Digest, reach pipeline.Reach, p pipeline.Page) (out []pipeline.AuditEvent, err error) {
	err = s.do(ctx, "AuditImage", func() error {
		known := false
		for _, i := range s.images {
			if i.Image.Digest != d || !reach.Has(i.Project) {
				continue
			}
			known = true
			out = append(out, event(i.RecordedAt, "image.recorded", i.Project, "dray", string(i.Run), "", d, i.Image.Repository))
		}
		for _, x := range s.promotions {
			if x.Image.Digest == d && reach.Has(x.Project) {
				out = append(out, event(x.CreatedAt, "promotion.requested", x.Project, x.RequestedBy, string(x.ID), x.Environment, d, x.Action))
			}
		}
		if !known {
			return fmt.Errorf("image %s: %w", d, pipeline.ErrNotFound)
		}
		out = auditPage(out, p, true, func(e pipeline.AuditEvent) string { return e.ID })
		return nil
	})
	return out, err
}

// AuditPerson tells of the promotions and exceptions that were added.
func (s *Store) AuditPerson(ctx context.Context, name string, reach pipeline.Reach, p pipeline.Page) (out []pipeline.AuditEvent, err error) {
	err = s.do(ctx, "AuditPerson", func() error {
		for _, x := range s.promotions {
			if x.RequestedBy == name && reach.Has(x.Project) {
				out = append(out, event(x.CreatedAt, "promotion.requested", x.Project, name, string(x.ID), x.Environment, x.Image.Digest, x.Action))
			}
		}
		for _, e := range s.exceptions {
			if e.Author == name && reach.Has(e.Project) {
				out = append(out, event(e.CreatedAt, "exception.added", e.Project, name, e.ID, e.Environment, e.Image, e.Finding+": "+e.Reason))
			}
		}
		out = auditPage(out, p, false, func(e pipeline.AuditEvent) string { return e.ID })
		return nil
	})
	return out, err
}

// AuditEnvironment lists the promotions that succeeded there.
func (s *Store) AuditEnvironment(ctx context.Context, q pipeline.EnvironmentAuditQuery) (out []pipeline.EnvironmentAudit, err error) {
	err = s.do(ctx, "AuditEnvironment", func() error {
		if err := q.Check(); err != nil {
			return err
		}
		known := false
		for _, v := range s.projects[q.Project] {
			_, has := v.Project.Environment(q.Environment)
			known = known || has
		}
		if !known {
			return fmt.Errorf("environment %s: %w", q.Environment, pipeline.ErrNotFound)
		}
		for i, p := range s.promotions {
			if p.Project != q.Project || p.Environment != q.Environment || p.State != pipeline.StateSucceeded || p.Destination == nil || p.FinishedAt == nil {
				continue
			}
			if q.At != nil && q.At.Before(*p.FinishedAt) || q.To != nil && q.To.Before(*p.FinishedAt) {
				continue
			}
			at := stay(p)
			out = append(out, pipeline.EnvironmentAudit{ID: fmt.Sprintf("%04d", i), Kind: pipeline.AuditedImage, Change: "held", Stay: &at})
		}
		if q.From != nil && len(out) > 0 {
			out = append(out, pipeline.EnvironmentAudit{ID: "9998", Kind: pipeline.AuditedPackage, Change: "changed", Name: "rsc.io/quote", Type: "gobinary", From: "v1.5.1", To: "v1.5.2"},
				pipeline.EnvironmentAudit{ID: "9999", Kind: pipeline.AuditedFinding, Change: "added", Name: "CVE-2025-1111", Package: "rsc.io/quote", Severity: pipeline.SeverityMedium, To: "v1.5.2"})
		}
		out = auditPage(out, q.Page, true, func(e pipeline.EnvironmentAudit) string { return e.ID })
		return nil
	})
	return out, err
}

func event(at time.Time, kind, project, actor, subject, environment string, d pipeline.Digest, note string) pipeline.AuditEvent {
	return pipeline.AuditEvent{ID: at.UTC().Format("20060102150405.000000") + "-" + subject, At: at, Kind: kind, Project: project, Actor: actor, Subject: subject, Environment: environment, Image: d, Note: note}
}

// auditPage sorts by id and takes the page.
func auditPage[T any](all []T, p pipeline.Page, rising bool, id func(T) string) (out []T) {
	slices.SortStableFunc(all, func(a, b T) int {
		if rising {
			a, b = b, a
		}
		return strings.Compare(id(b), id(a))
	})
	for _, item := range all {
		beyond := p.After == "" || id(item) < p.After
		if rising {
			beyond = id(item) > p.After
		}
		if beyond && (p.Limit == 0 || len(out) < p.Limit) {
			out = append(out, item)
		}
	}
	return out
}
