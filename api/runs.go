package api

import (
	"context"
	"log/slog"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/dray-project/dray/pipeline"
)

type runsInput struct {
	Project string `query:"project" maxLength:"200" doc:"Only this project's."`
	State   string `query:"state" enum:"queued,running,succeeded,failed,refused" doc:"Only runs in this state."`
	PageInput
}

type runInput struct {
	ID string `path:"id" maxLength:"64" example:"run_06f3n8w2c41r0kd7t9qh"`
}

type runOutput struct{ Body pipeline.RunDetail }

type retryOutput struct {
	Location string `header:"Location" doc:"The run that tries again."`
	Replayed bool   `header:"Idempotent-Replayed" doc:"true when the event was being run again already, and this is that run as it stands."`
	Body     pipeline.Run
}

func (a *API) registerRuns() {
	handle(a, huma.Operation{
		OperationID: "list-runs",
		Method:      http.MethodGet,
		Path:        "/api/v1/runs",
		Summary:     "List runs, newest first",
		Tags:        []string{"runs"},
		Responses:   a.problems(422),
	}, needRead, func(ctx context.Context, in *runsInput) (*listOutput[pipeline.Run], error) {
		id := func(r pipeline.Run) string { return string(r.ID) }
		runs, err := across(ctx, a, in.Project, in.page(), byID(id), func(project string) ([]pipeline.Run, error) {
			return a.Store.Runs(ctx, project, pipeline.State(in.State), in.page())
		})
		if err != nil {
			return nil, err
		}
		return listOf(ctx, in.PageInput, runs, id), nil
	})
	handle(a, huma.Operation{
		OperationID: "get-run",
		Method:      http.MethodGet,
		Path:        "/api/v1/runs/{id}",
		Summary:     "Show a run with its stages, decision, findings and tags",
		Tags:        []string{"runs"},
		Responses:   a.problems(404, 422),
	}, needRead, func(ctx context.Context, in *runInput) (*runOutput, error) {
		run, err := a.runDetail(ctx, needRead, pipeline.RunID(in.ID))
		return &runOutput{run}, err
	})
	handle(a, huma.Operation{
		OperationID: "retry-run",
		Method:      http.MethodPost,
		Path:        "/api/v1/runs/{id}/retry",
		Summary:     "Run a run that failed or was refused again",
		Description: "Starts a new run of the same event; the old one stays as it was. While one is open, asking again gives that one. " +
			"A run that is open itself, or whose event has been run successfully, is a conflict.",
		Tags:          []string{"runs"},
		DefaultStatus: http.StatusAccepted,
		Responses:     a.problems(404, 409, 422),
	}, needDevelop, a.retry)
	handle(a, streamOperation(a, "runs", "follow-run", "/api/v1/runs/{id}/events", "Follow a run"), needRead,
		func(ctx context.Context, in *streamInput) (*streamOutput, error) {
			id := pipeline.RunID(in.ID)
			if _, err := a.runDetail(ctx, needRead, id); err != nil {
				return nil, err
			}
			return a.stream(in, id.Job(), func(ctx context.Context) (streamEnd, error) {
				run, err := a.Store.RunDetail(ctx, id)
				return streamEnd{run.State, run.Reason}, err
			})
		})
}

func (a *API) retry(ctx context.Context, in *runInput) (*retryOutput, error) {
	if _, err := a.runDetail(ctx, needDevelop, pipeline.RunID(in.ID)); err != nil {
		return nil, err
	}
	run, created, err := a.Store.Retry(ctx, pipeline.RunID(in.ID), infoOf(ctx).token.Name)
	if err != nil {
		return nil, err
	}
	note(ctx, slog.String("run", string(run.ID)))
	return &retryOutput{
		Location: "/api/v1/runs/" + string(run.ID),
		Replayed: !created,
		Body:     run,
	}, nil
}

// runDetail returns a run for somebody who may do something with it.
func (a *API) runDetail(ctx context.Context, n need, id pipeline.RunID) (pipeline.RunDetail, error) {
	run, err := a.Store.RunDetail(ctx, id)
	if err == nil {
		err = a.allow(ctx, n, run.Project, "run", string(id))
	}
	if err != nil {
		return pipeline.RunDetail{}, found(err, "run", string(id))
	}
	run.Stages, run.Tags = list(run.Stages), list(run.Tags)
	run.Decision = tidy(run.Decision)
	return run, nil
}

// tidy makes a decision's lists readable without null checks. The store's own
// stays as it is.
func tidy(d *pipeline.Decision) *pipeline.Decision {
	if d == nil {
		return nil
	}
	tidied := *d
	tidied.Rules = list(d.Rules)
	return &tidied
}
