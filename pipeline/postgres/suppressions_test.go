package postgres_test

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/pipelinetest"
	"github.com/dray-project/dray/pipeline/postgres/postgrestest"
)

func TestExceptions(t *testing.T) {
	pool := postgrestest.New(t)
	s := newStore(t, pool)
	syncSample(t, s)
	good := pipeline.Exception{Project: "app", Environment: "prod", Image: pipelinetest.DigestOf("image"), Finding: "CVE-2024-45337", Package: "golang.org/x/crypto",
		Reason: "we do not serve SSH", Author: "ada", ExpiresAt: time.Now().Add(24 * time.Hour).Truncate(time.Microsecond).UTC()}
	add := func(change func(*pipeline.Exception)) (pipeline.Exception, error) {
		e := good
		change(&e)
		return s.AddException(t.Context(), e)
	}
	first, err := add(func(*pipeline.Exception) {})
	check(t, err)
	want := good
	want.ID, want.CreatedAt = first.ID, first.CreatedAt
	if !reflect.DeepEqual(first, want) || !strings.HasPrefix(first.ID, "exc_") || first.CreatedAt.IsZero() {
		t.Fatalf("kept %+v", first)
	}
	for name, change := range map[string]func(*pipeline.Exception){
		"another project's environment": func(e *pipeline.Exception) { e.Environment = "dev" },
		"no such project":               func(e *pipeline.Exception) { e.Project = "none" },
		"no reason":                     func(e *pipeline.Exception) { e.Reason = " " },
		"over already":                  func(e *pipeline.Exception) { e.ExpiresAt = time.Now() },
		"for ever":                      func(e *pipeline.Exception) { e.ExpiresAt = time.Now().Add(400 * 24 * time.Hour) },
		"no digest":                     func(e *pipeline.Exception) { e.Image = "latest" },
	} {
		if _, err := add(change); !errors.Is(err, pipeline.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	time.Sleep(2 * time.Millisecond)
	second, err := add(func(e *pipeline.Exception) { e.Environment, e.Image, e.Package = "", "", "" })
	check(t, err)
	revoked, err := add(func(*pipeline.Exception) {})
	check(t, err)
	gone, err := s.RevokeException(t.Context(), "app", revoked.ID, "bob")
	check(t, err)
	again, err := s.RevokeException(t.Context(), "app", revoked.ID, "carol")
	check(t, err)
	if gone.RevokedBy != "bob" || gone.RevokedAt == nil || !reflect.DeepEqual(gone, again) {
		t.Fatalf("revoked %+v, and again %+v", gone, again)
	}
	if _, err := s.RevokeException(t.Context(), "web", first.ID, "bob"); !errors.Is(err, pipeline.ErrNotFound) {
		t.Errorf("from another project: %v", err)
	}

	// One that expired yesterday, and one that did so long ago.
	expired, err := add(func(e *pipeline.Exception) { e.Finding = "CVE-1" })
	check(t, err)
	old, err := add(func(e *pipeline.Exception) { e.Finding = "CVE-2" })
	check(t, err)
	meddle(t, pool, `UPDATE exceptions SET expires_at = now() - CASE id WHEN $1 THEN interval '1 day' ELSE interval '31 days' END WHERE id IN ($1, $2)`, expired.ID, old.ID)
	ids := func(list []pipeline.Exception) (ids []string) {
		for _, e := range list {
			ids = append(ids, e.ID)
		}
		return ids
	}
	st, err := s.Standing(t.Context(), "app", "prod", pipelinetest.DigestOf("image"))
	check(t, err)
	inForce, err := s.Exceptions(t.Context(), "app", false, pipeline.Page{})
	check(t, err)
	all, err := s.Exceptions(t.Context(), "", true, pipeline.Page{})
	check(t, err)
	page, err := s.Exceptions(t.Context(), "app", false, pipeline.Page{Limit: 1, After: second.ID})
	check(t, err)
	elsewhere, err := s.Exceptions(t.Context(), "web", true, pipeline.Page{})
	check(t, err)
	if got := len(st.Exceptions); got != 3 {
		t.Errorf("gates see %v", ids(st.Exceptions))
	}
	if !reflect.DeepEqual(ids(inForce), []string{second.ID, first.ID}) || len(all) != 5 || len(elsewhere) != 0 || !reflect.DeepEqual(ids(page), []string{first.ID}) {
		t.Errorf("in force %v, all %v, page %v, elsewhere %v", ids(inForce), ids(all), ids(page), ids(elsewhere))
	}
}

func TestVEXDocuments(t *testing.T) {
	s := newSample(t)
	doc := pipeline.VEXDocument{Project: "app", Document: []byte("{\"@context\":\x00\xff}"), Signature: []byte("MEUC\n"), UploadedBy: "ada"}
	kept, err := s.AddVEX(t.Context(), doc)
	check(t, err)
	if !strings.HasPrefix(kept.ID, "vex_") || string(kept.Document) != string(doc.Document) || string(kept.Signature) != string(doc.Signature) || kept.UploadedAt.IsZero() {
		t.Fatalf("kept %+v", kept)
	}
	for name, bad := range map[string]pipeline.VEXDocument{
		"no signature": {Project: "app", Document: doc.Document, UploadedBy: "ada"},
		"no project":   {Project: "none", Document: doc.Document, Signature: doc.Signature, UploadedBy: "ada"},
		"nobody":       {Project: "app", Document: doc.Document, Signature: doc.Signature},
	} {
		if _, err := s.AddVEX(t.Context(), bad); !errors.Is(err, pipeline.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	st, err := s.Standing(t.Context(), "app", "", pipelinetest.DigestOf("image"))
	check(t, err)
	if len(st.VEX) != 1 || !reflect.DeepEqual(st.VEX[0], kept) {
		t.Fatalf("gates see %+v", st.VEX)
	}
	gone, err := s.RevokeVEX(t.Context(), "app", kept.ID, "bob")
	check(t, err)
	if gone.RevokedAt == nil || gone.RevokedBy != "bob" {
		t.Fatalf("revoked %+v", gone)
	}
	if _, err := s.RevokeVEX(t.Context(), "web", kept.ID, "bob"); !errors.Is(err, pipeline.ErrNotFound) {
		t.Errorf("from another project: %v", err)
	}
	st, err = s.Standing(t.Context(), "app", "", pipelinetest.DigestOf("image"))
	check(t, err)
	inForce, err := s.VEXDocuments(t.Context(), "app", false, pipeline.Page{})
	check(t, err)
	all, err := s.VEXDocuments(t.Context(), "app", true, pipeline.Page{})
	check(t, err)
	if len(st.VEX) != 0 || len(inForce) != 0 || len(all) != 1 {
		t.Errorf("after it was revoked gates see %v, in force are %v, all are %v", st.VEX, inForce, all)
	}
}

func TestTokenGrants(t *testing.T) {
	s := newSample(t)
	grants := []pipeline.Grant{{Role: "release-manager", Project: "app"}, {Role: "viewer"}}
	secret, made, err := s.CreateToken(t.Context(), "rita", grants, nil)
	check(t, err)
	got, err := s.TokenBySecret(t.Context(), secret)
	check(t, err)
	if !reflect.DeepEqual(made, got) || !reflect.DeepEqual(got.Grants, grants) {
		t.Errorf("made %+v, found %+v", made, got)
	}
	for _, bad := range [][]pipeline.Grant{nil, {{Role: ""}}, {{Role: "Viewer"}}} {
		if _, _, err := s.CreateToken(t.Context(), "rita", bad, nil); !errors.Is(err, pipeline.ErrInvalid) {
			t.Errorf("a token with %v: %v", bad, err)
		}
	}
	// Roles at the time of asking stay with the promotion.
	rec := release(t, s, "app", "one", nil, nil)
	p, _, err := s.Promote(t.Context(), pipeline.PromotionRequest{Image: rec.Built.Image.String(), Environment: "prod", RequestedBy: "rita", Grants: grants, Note: "a note", BreakGlass: "a fire"})
	check(t, err)
	if !reflect.DeepEqual(p.Roles, []string{"release-manager", "viewer"}) || p.Note != "a note" || p.BreakGlass != "a fire" || p.Action != pipeline.ActionPromote {
		t.Errorf("the promotion is %+v", p)
	}
}
