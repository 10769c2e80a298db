package api

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/dray-project/dray/pipeline"
)

type exceptionsInput struct {
	ProjectInput
	All bool `query:"all" doc:"Those that expired or were revoked as well."`
	PageInput
}

type addExceptionInput struct {
	ProjectInput
	Body struct {
		Finding     string          `json:"finding" minLength:"1" maxLength:"200" example:"CVE-2024-45337"`
		Package     string          `json:"package,omitempty" maxLength:"400" doc:"Only in this package."`
		Environment string          `json:"environment,omitempty" maxLength:"200" doc:"Only in this environment."`
		Image       pipeline.Digest `json:"image,omitempty" maxLength:"100" doc:"Only in this image, by digest."`
		Reason      string          `json:"reason" minLength:"1" maxLength:"2000" doc:"Why it can be accepted."`
		ExpiresAt   time.Time       `json:"expiresAt" doc:"At most a year away."`
	}
}

// OneInput names one thing of a project.
type OneInput struct {
	ProjectInput
	ID string `path:"id" maxLength:"64"`
}

type exceptionOutput struct{ Body pipeline.Exception }

func (a *API) registerExceptions() {
	handle(a, huma.Operation{
		OperationID: "list-exceptions",
		Method:      http.MethodGet,
		Path:        "/api/v1/projects/{name}/exceptions",
		Summary:     "List the findings that somebody accepted, newest first",
		Tags:        []string{"exceptions"},
		Responses:   a.problems(404, 422),
	}, needRead, func(ctx context.Context, in *exceptionsInput) (*listOutput[pipeline.Exception], error) {
		if _, err := a.projectVersion(ctx, needRead, in.Name, 0); err != nil {
			return nil, err
		}
		items, err := a.Store.Exceptions(ctx, in.Name, in.All, in.page())
		if err != nil {
			return nil, found(err, "project", in.Name)
		}
		return listOf(ctx, in.PageInput, items, func(e pipeline.Exception) string { return e.ID }), nil
	})
	handle(a, huma.Operation{
		OperationID:   "add-exception",
		Method:        http.MethodPost,
		Path:          "/api/v1/projects/{name}/exceptions",
		Summary:       "Accept a finding until a day",
		Description:   "Its author is the token's bearer. Promotions that wait, and those to come, take it into account; decisions that were made stay as they are.",
		Tags:          []string{"exceptions"},
		DefaultStatus: http.StatusCreated,
		Responses:     a.problems(400, 404, 408, 413, 415, 422),
	}, needRelease, a.addException)
	handle(a, huma.Operation{
		OperationID:   "revoke-exception",
		Method:        http.MethodDelete,
		Path:          "/api/v1/projects/{name}/exceptions/{id}",
		Summary:       "Take an exception back",
		Description:   "It stays on record. Doing so again changes nothing.",
		Tags:          []string{"exceptions"},
		DefaultStatus: http.StatusOK,
		Responses:     a.problems(404, 422),
	}, needRelease, func(ctx context.Context, in *OneInput) (*exceptionOutput, error) {
		if err := a.allow(ctx, needRelease, in.Name, "exception", in.ID); err != nil {
			return nil, err
		}
		e, err := a.Store.RevokeException(ctx, in.Name, in.ID, infoOf(ctx).token.Name)
		note(ctx, slog.String("exception", in.ID))
		return &exceptionOutput{e}, found(err, "exception", in.ID)
	})
}

func (a *API) addException(ctx context.Context, in *addExceptionInput) (*exceptionOutput, error) {
	if _, err := a.projectVersion(ctx, needRelease, in.Name, 0); err != nil {
		return nil, err
	}
	e := pipeline.Exception{Project: in.Name, Environment: in.Body.Environment, Image: in.Body.Image, Finding: in.Body.Finding,
		Package: in.Body.Package, Reason: in.Body.Reason, Author: infoOf(ctx).token.Name, ExpiresAt: in.Body.ExpiresAt}
	if err := e.Check(a.Now()); err != nil {
		return nil, err
	}
	e, err := a.Store.AddException(ctx, e)
	if err != nil {
		return nil, fmt.Errorf("accept %s in project %s: %w", in.Body.Finding, in.Name, err)
	}
	note(ctx, slog.String("exception", e.ID))
	return &exceptionOutput{e}, nil
}
