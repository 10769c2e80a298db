package api

import (
	"context"
	"errors"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/dray-project/dray/pipeline"
)

// Retainer plans what a project's retention lets go, and has it removed.
type Retainer interface {
	// Plan changes nothing.
	Plan(ctx context.Context, project string) (pipeline.RetentionPlan, error)
	// Apply has the plan carried out if it still is the one of that digest; else it
	// is pipeline.ErrConflict.
	Apply(ctx context.Context, project string, plan pipeline.Digest, by string) (pipeline.RetentionRun, error)
	// Retention is what became of the plan that was applied last;
	// pipeline.ErrNotFound if none was.
	Retention(ctx context.Context, project string) (pipeline.RetentionRun, error)
}

type retentionPlanOutput struct{ Body pipeline.RetentionPlan }

type retentionRunOutput struct {
	Location string `header:"Location" doc:"How far it is."`
	Body     pipeline.RetentionRun
}

type applyRetentionInput struct {
	ProjectInput
	Body struct {
		Plan string `json:"plan" minLength:"71" maxLength:"71" pattern:"^sha256:[0-9a-f]{64}$" doc:"Digest of the plan that was looked at."`
	}
}

func (a *API) registerRetention() {
	handle(a, huma.Operation{
		OperationID: "get-retention-plan",
		Method:      http.MethodGet,
		Path:        "/api/v1/projects/{name}/retention",
		Summary:     "Show what the project's retention would remove now, and what stays and why",
		Description: "Looks into the registries and changes nothing.",
		Tags:        []string{"projects"},
		Responses:   a.problems(404, 422, 501),
	}, needRead, func(ctx context.Context, in *ProjectInput) (*retentionPlanOutput, error) {
		if err := a.retains(ctx, needRead, in.Name); err != nil {
			return nil, err
		}
		plan, err := a.Retainer.Plan(ctx, in.Name)
		return &retentionPlanOutput{plan}, err
	})
	handle(a, huma.Operation{
		OperationID:   "apply-retention-plan",
		Method:        http.MethodPost,
		Path:          "/api/v1/projects/{name}/retention",
		Summary:       "Remove what a retention plan says",
		Description:   "The plan is named by its digest, and is made again: if it would remove anything else by now, nothing is removed and the answer is 409. The work is recorded and queued; its Location says how far it is.",
		Tags:          []string{"projects"},
		DefaultStatus: http.StatusAccepted,
		Responses:     a.accepted(pipeline.RetentionRun{}, nil, 400, 404, 408, 409, 413, 415, 422, 501),
	}, needAdmin, func(ctx context.Context, in *applyRetentionInput) (*retentionRunOutput, error) {
		if err := a.retains(ctx, needAdmin, in.Name); err != nil {
			return nil, err
		}
		run, err := a.Retainer.Apply(ctx, in.Name, pipeline.Digest(in.Body.Plan), infoOf(ctx).token.Name)
		return &retentionRunOutput{lastRetention(in.Name), run}, err
	})
	handle(a, huma.Operation{
		OperationID: "get-last-retention",
		Method:      http.MethodGet,
		Path:        "/api/v1/projects/{name}/retention/last",
		Summary:     "Show what became of the retention plan that was applied last",
		Tags:        []string{"projects"},
		Responses:   a.problems(404, 422, 501),
	}, needRead, func(ctx context.Context, in *ProjectInput) (*retentionRunOutput, error) {
		if err := a.retains(ctx, needRead, in.Name); err != nil {
			return nil, err
		}
		run, err := a.Retainer.Retention(ctx, in.Name)
		if errors.Is(err, pipeline.ErrNotFound) {
			return nil, hidden("an applied retention plan of project", in.Name)
		}
		return &retentionRunOutput{lastRetention(in.Name), run}, err
	})
}

func lastRetention(project string) string { return "/api/v1/projects/" + project + "/retention/last" }

// retains checks that the caller may, and that this process can.
func (a *API) retains(ctx context.Context, n need, project string) error {
	if _, err := a.projectVersion(ctx, n, project, 0); err != nil {
		return err
	}
	if a.Retainer == nil {
		return disabled(ctx, "remove anything")
	}
	return nil
}
