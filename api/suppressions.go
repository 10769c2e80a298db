package api

import (
	"context"
	"slices"

	"github.com/dray-project/dray/pipeline"
)

// suppress says beside each of an image's findings what speaks for it today.
func (a *API) suppress(ctx context.Context, d *pipeline.ImageDetail) error {
	if len(d.Findings) == 0 {
		return nil
	}
	exceptions, err := everything(func(page pipeline.Page) ([]pipeline.Exception, error) {
		return a.Store.Exceptions(ctx, d.Project, false, page)
	}, func(e pipeline.Exception) string { return e.ID })
	if err != nil {
		return err
	}
	documents, err := everything(func(page pipeline.Page) ([]pipeline.VEXDocument, error) {
		return a.Store.VEXDocuments(ctx, d.Project, false, page)
	}, func(v pipeline.VEXDocument) string { return v.ID })
	if err != nil {
		return err
	}
	now := a.Now()
	d.Findings = slices.Clone(d.Findings)
	for i := range d.Findings {
		f := &d.Findings[i]
		f.Suppressed = vexed(f.Finding, d, documents)
		for _, e := range exceptions {
			// Whichever environment it is for: the reader is told.
			if e.RevokedAt == nil && e.ExpiresAt.After(now) && e.Covers(f.Finding, e.Environment, d.Image.Digest) {
				f.Suppressed = append(f.Suppressed, pipeline.FindingSuppression{Environment: e.Environment, Suppression: pipeline.Suppression{
					By: "exception", ID: e.ID, Author: e.Author, Reason: e.Reason, ExpiresAt: &e.ExpiresAt}})
			}
		}
	}
	return nil
}

// vexed collects what VEX documents were found to say of a finding whenever a
// gate looked at the image, as far as nobody took them back since.
func vexed(f pipeline.Finding, d *pipeline.ImageDetail, documents []pipeline.VEXDocument) (out []pipeline.FindingSuppression) {
	decisions := []pipeline.Decision{d.Decision}
	for _, p := range d.Promotions {
		if p.Decision != nil {
			decisions = append(decisions, *p.Decision)
		}
	}
	for _, decision := range decisions {
		for _, s := range decision.Suppressed {
			if s.Suppression == nil || s.Suppression.By != "vex" || s.ID != f.ID || s.Package != f.Package || s.Version != f.Version {
				continue
			}
			stands := slices.ContainsFunc(documents, func(v pipeline.VEXDocument) bool { return v.ID == s.Suppression.ID && v.RevokedAt == nil })
			known := slices.ContainsFunc(out, func(o pipeline.FindingSuppression) bool { return o.ID == s.Suppression.ID })
			if stands && !known {
				out = append(out, pipeline.FindingSuppression{Suppression: *s.Suppression})
			}
		}
	}
	return out
}

// everything reads a list to its end.
func everything[T any](fetch func(pipeline.Page) ([]T, error), id func(T) string) ([]T, error) {
	const limit = 200
	var all []T
	for after := ""; ; after = id(all[len(all)-1]) {
		items, err := fetch(pipeline.Page{Limit: limit, After: after})
		if err != nil {
			return nil, err
		}
		all = append(all, items...)
		if len(items) < limit {
			return all, nil
		}
	}
}
