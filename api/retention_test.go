package api_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/dray-project/dray/api/apitest"
	"github.com/dray-project/dray/pipeline"
)

// retainer knows one plan.
type retainer struct{}

var retentionPlan = pipeline.RetentionPlan{Project: "hello-go", At: apitest.Clock, Keep: []pipeline.Kept{}, Logs: []pipeline.LogRemoval{}, Digest: apitest.Digest("e"),
	Remove: []pipeline.Removal{{Kind: pipeline.RemoveImage, Image: apitest.Good, Tags: []string{}, Manifests: []pipeline.Digest{apitest.Good.Digest}, Bytes: 10, Reason: "old"}}}

func (retainer) Plan(_ context.Context, project string) (pipeline.RetentionPlan, error) {
	return retentionPlan, nil
}

func (retainer) Apply(_ context.Context, project string, plan pipeline.Digest, by string) (pipeline.RetentionRun, error) {
	if plan != retentionPlan.Digest {
		return pipeline.RetentionRun{}, fmt.Errorf("the plan is %s by now: %w", retentionPlan.Digest, pipeline.ErrConflict)
	}
	return pipeline.RetentionRun{ID: "ret_1", Project: project, Plan: plan, RequestedBy: by, Outcomes: []pipeline.RemovalOutcome{}}, nil
}

func (retainer) Retention(_ context.Context, project string) (pipeline.RetentionRun, error) {
	if project != "hello-go" {
		return pipeline.RetentionRun{}, pipeline.ErrNotFound
	}
	return pipeline.RetentionRun{ID: "ret_1", Project: project, Outcomes: []pipeline.RemovalOutcome{}}, nil
}

func TestRetention(t *testing.T) {
	s := newServer(t, wired)
	var plan pipeline.RetentionPlan
	s.ok(s.send("GET", "/api/v1/projects/hello-go/retention", "", auth), 200, &plan)
	if plan.Digest != retentionPlan.Digest || len(plan.Remove) != 1 || plan.Remove[0].Image != apitest.Good {
		t.Errorf("%+v", plan)
	}
	got := s.send("POST", "/api/v1/projects/hello-go/retention", `{"plan":"`+string(plan.Digest)+`"}`, auth)
	var run pipeline.RetentionRun
	s.ok(got, 202, &run)
	if run.RequestedBy == "" || got.Header.Get("Location") != "/api/v1/projects/hello-go/retention/last" {
		t.Errorf("%+v %v", run, got.Header)
	}
	p := s.want(s.send("POST", "/api/v1/projects/hello-go/retention", `{"plan":"`+string(apitest.Digest("f"))+`"}`, auth), 409, "conflict")
	if !strings.Contains(p.Detail, "by now") {
		t.Errorf("%+v", p)
	}
	s.want(s.send("POST", "/api/v1/projects/hello-go/retention", `{"plan":"latest"}`, auth), 422, "invalid")
	s.want(s.send("GET", "/api/v1/projects/web/retention/last", "", auth), 404, "not-found")
	s.want(newServer(t).send("GET", "/api/v1/projects/hello-go/retention", "", auth), 501, "disabled")
}
