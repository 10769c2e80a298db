package client_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dray-project/dray/api"
	"github.com/dray-project/dray/api/apitest"
	"github.com/dray-project/dray/api/client"
	"github.com/dray-project/dray/pipeline"
)

// wire is serve with everything that drayd would wire.
func wire(t *testing.T, between func(http.Handler) http.Handler) (*apitest.Store, *client.Client) {
	t.Helper()
	store := apitest.Sample()
	a, err := api.New(api.Config{
		Store: store, PublicKeyPEM: []byte(apitest.PublicKey), TrustedRoot: []byte(`{}`), Log: slog.New(slog.DiscardHandler),
		Now: func() time.Time { return apitest.Now }, Poll: time.Millisecond,
		CheckProject: func(pipeline.Project) error { return nil },
		CheckVEX:     func(pipeline.VEXDocument, []string) error { return nil },
		Probe: func(_ context.Context, host string) (pipeline.RegistryProbe, error) {
			return pipeline.RegistryProbe{Host: host, Mount: pipeline.CapabilityNo}, nil
		},
		Eligibility: func(_ context.Context, r pipeline.PromotionRequest) (pipeline.Eligibility, error) {
			return pipeline.Eligibility{Project: r.Project, Environment: r.Environment, Decision: apitest.WaitingDecision, Diff: apitest.Diff, Plan: apitest.Diff.Plan()}, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	var handler http.Handler = a
	if between != nil {
		handler = between(a)
	}
	srv := httptest.NewServer(handler)
	t.Cleanup(srv.Close)
	t.Cleanup(a.Drain)
	return store, newClient(t, srv.URL)
}

func TestProjects(t *testing.T) {
	_, c := wire(t, nil)
	ctx := context.Background()
	all, err := c.Projects(ctx, client.PageQuery{Limit: 2})
	if err != nil || len(all.Items) != 2 || all.Next != "hello-go" {
		t.Fatalf("%+v, %v", all, err)
	}
	v, err := c.Project(ctx, "hello-go", 0)
	if err != nil || v.Version != 2 || v.Project.Environments[1].Soak.String() != "1d" {
		t.Fatalf("%+v, %v", v, err)
	}
	if v, err = c.Project(ctx, "hello-go", 1); err != nil || v.Version != 1 {
		t.Errorf("%+v, %v", v, err)
	}
	versions, err := c.ProjectVersions(ctx, "hello-go", client.PageQuery{})
	if err != nil || len(versions.Items) != 2 || versions.Items[0].Version != 2 {
		t.Errorf("%+v, %v", versions, err)
	}
	file := []byte(`{"apiVersion":"dray/v1","kind":"Project","name":"hello-go","environments":[]}`)
	a, err := c.ApplyProject(ctx, "hello-go", file, 2, true)
	if err != nil || !a.DryRun || !a.Changed || len(a.Changes) == 0 || a.Version != 2 {
		t.Errorf("%+v, %v", a, err)
	}
	if a, err = c.ApplyProject(ctx, "hello-go", file, 2, false); err != nil || !a.Changed || a.Version != 3 || a.AppliedBy != "grace" {
		t.Errorf("%+v, %v", a, err)
	}
	if _, err = c.ApplyProject(ctx, "hello-go", file, 2, false); !errors.Is(err, pipeline.ErrConflict) {
		t.Errorf("applied on an old version: %v", err)
	}
	var p *client.Problem
	if _, err = c.ApplyProject(ctx, "hello-go", []byte(`{"kind":"x","soak":1}`), 0, false); !errors.As(err, &p) || p.Errors[0].Location != "body.soak" {
		t.Errorf("%#v", err)
	}
	states, err := c.Environments(ctx, "hello-go")
	if err != nil || len(states) != 2 || states[1].Current == nil || states[1].Waiting[0] != apitest.PromotionWaiting {
		t.Errorf("%+v, %v", states, err)
	}
}

func TestWords(t *testing.T) {
	_, c := wire(t, nil)
	ctx := context.Background()
	p, err := c.Promotion(ctx, apitest.PromotionWaiting)
	if err != nil || p.Plan != apitest.Diff.Plan() || !p.Approvals[0].OtherPlan || len(p.PromotionDetail.Approvals) != 1 || p.Diff == nil || p.Summary == nil {
		t.Fatalf("%+v, %v", p, err)
	}
	_, err = c.Approve(ctx, p.ID, client.Word{Plan: apitest.Digest("0")})
	var problem *client.Problem
	if !errors.As(err, &problem) || !problem.PlanChanged() || problem.Plan != p.Plan || !errors.Is(err, pipeline.ErrConflict) {
		t.Errorf("%#v", err)
	}
	if p, err = c.Approve(ctx, p.ID, client.Word{Plan: p.Plan, Comment: "go"}); err != nil || p.State != pipeline.StateQueued || len(p.Approvals) != 2 || p.Approvals[1].By != "grace" {
		t.Errorf("%+v, %v", p, err)
	}
	if p, err = c.CancelPromotion(ctx, p.ID, "not today"); err != nil || p.State != pipeline.StateCancelled {
		t.Errorf("%+v, %v", p, err)
	}
	e, err := c.DryRun(ctx, pipeline.PromotionRequest{Image: string(apitest.Good.Digest), Environment: "prod"})
	if err != nil || e.Plan != apitest.Diff.Plan() || e.Project != "hello-go" {
		t.Errorf("%+v, %v", e, err)
	}
	q := client.EligibilityQuery{Image: apitest.Good.Digest, Environment: "prod", Action: "rollback"}
	if e, err = c.Eligibility(ctx, q); err != nil || len(e.Decision.Rules) != 3 {
		t.Errorf("%+v, %v", e, err)
	}
	if d, err := c.Diff(ctx, q); err != nil || d.Plan() != apitest.Diff.Plan() {
		t.Errorf("%+v, %v", d, err)
	}
	back, err := c.Rollback(ctx, pipeline.PromotionRequest{Project: "hello-go", Environment: "prod", Image: string(apitest.Good.Digest), Note: "n"})
	if err != nil || back.Action != pipeline.ActionRollback || back.Note != "n" {
		t.Errorf("%+v, %v", back, err)
	}
	if _, err = c.Rollback(ctx, pipeline.PromotionRequest{Project: "hello-go", Environment: "prod"}); !errors.Is(err, pipeline.ErrInvalid) {
		t.Errorf("to nothing: %v", err)
	}
}

// An approval whose answer was lost is one approval.
func TestApproveOnce(t *testing.T) {
	var calls atomic.Int32
	store, c := wire(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost && calls.Add(1) == 1 {
				next.ServeHTTP(httptest.NewRecorder(), r)
				panic(http.ErrAbortHandler)
			}
			next.ServeHTTP(w, r)
		})
	})
	p, err := c.Approve(context.Background(), apitest.PromotionWaiting, client.Word{Plan: apitest.Diff.Plan()})
	if err != nil || len(p.Approvals) != 2 || calls.Load() != 2 {
		t.Errorf("%d calls, %+v, %v", calls.Load(), p.Approvals, err)
	}
	if d, err := store.PromotionDetail(context.Background(), apitest.PromotionWaiting); err != nil || len(d.Approvals) != 2 {
		t.Errorf("%+v, %v", d.Approvals, err)
	}
}

func TestExceptionsAndRegistries(t *testing.T) {
	store, c := wire(t, nil)
	trusting := apitest.HelloGo
	trusting.TrustedVEXKeys = []string{apitest.PublicKey}
	store.AddProject(trusting, "grace")
	ctx := context.Background()
	e, err := c.AddException(ctx, pipeline.Exception{Project: "hello-go", Finding: "CVE-1", Package: "p", Reason: "r", ExpiresAt: apitest.Now.Add(time.Hour)})
	if err != nil || e.Author != "grace" || !strings.HasPrefix(e.ID, "exc_") {
		t.Fatalf("%+v, %v", e, err)
	}
	q := client.ExceptionsQuery{Project: "hello-go"}
	list, err := c.Exceptions(ctx, q)
	if err != nil || len(list.Items) != 2 {
		t.Errorf("%+v, %v", list, err)
	}
	if e, err = c.RevokeException(ctx, "hello-go", e.ID); err != nil || e.RevokedBy != "grace" {
		t.Errorf("%+v, %v", e, err)
	}
	q.All = true
	if list, err = c.Exceptions(ctx, q); err != nil || len(list.Items) != 3 {
		t.Errorf("%+v, %v", list, err)
	}
	v, err := c.AddVEX(ctx, "hello-go", []byte("{\"author\":\"a\",\"statements\":[{\"vulnerability\":\"CVE-2\",\"status\":\"fixed\"}]}\n"), []byte("sig"))
	if err != nil || v.Author != "a" || fmt.Sprint(v.Statements) != "[{CVE-2 fixed }]" || v.Document != nil {
		t.Fatalf("%+v, %v", v, err)
	}
	// Byte by byte, the line end included: it was signed.
	docs, err := store.VEXDocuments(ctx, "hello-go", false, pipeline.Page{Limit: 9})
	if err != nil || string(docs[0].Document[len(docs[0].Document)-2:]) != "}\n" || string(docs[0].Signature) != "sig" {
		t.Errorf("%q, %v", docs[0].Document, err)
	}
	vex, err := c.VEXDocuments(ctx, client.ExceptionsQuery{Project: "hello-go"})
	if err != nil || len(vex.Items) != 2 || vex.Items[1].Statements[0].Vulnerability != "CVE-2024-45337" {
		t.Errorf("%+v, %v", vex, err)
	}
	if v, err = c.RevokeVEX(ctx, "hello-go", v.ID); err != nil || v.RevokedAt == nil {
		t.Errorf("%+v, %v", v, err)
	}
	drift, err := c.Drift(ctx, client.DriftQuery{Project: "hello-go"})
	if err != nil || len(drift.Items) != 1 || drift.Items[0].ID != apitest.Drift {
		t.Errorf("%+v, %v", drift, err)
	}
	if drift, err = c.Drift(ctx, client.DriftQuery{All: true}); err != nil || len(drift.Items) != 2 {
		t.Errorf("%+v, %v", drift, err)
	}
	hosts, err := c.Registries(ctx, client.PageQuery{})
	if err != nil || len(hosts.Items) != 2 || hosts.Items[0].Host != "other.example" {
		t.Errorf("%+v, %v", hosts, err)
	}
	if p, err := c.ProbeRegistry(ctx, "prod.example:5000"); err != nil || p.Host != "prod.example:5000" || p.Mount != pipeline.CapabilityNo {
		t.Errorf("%+v, %v", p, err)
	}
}
