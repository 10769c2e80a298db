package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"unicode"

	"github.com/danielgtaylor/huma/v2"

	"github.com/dray-project/dray/pipeline"
)

type eligibilityInput struct {
	ImageInput
	Environment string `query:"environment" required:"true" minLength:"1" maxLength:"200" example:"prod"`
	Action      string `query:"action" enum:"promote,rollback" default:"promote"`
}

type diffInput struct {
	ImageInput
	Environment string `query:"environment" required:"true" minLength:"1" maxLength:"200" example:"prod"`
	Accept      string `header:"Accept" hidden:"true" maxLength:"1000"`
}

type eligibilityOutput struct{ Body pipeline.Eligibility }

type rollbackInput struct {
	Project     string `path:"name" maxLength:"200" example:"hello-go"`
	Environment string `path:"environment" maxLength:"200" example:"prod"`
	Key         string `header:"Idempotency-Key" maxLength:"255" pattern:"^[!-~]*$" doc:"As for a promotion."`
	Body        struct {
		To         string `json:"to,omitempty" maxLength:"400" doc:"The digest to go back to. Left out: what the environment had before what it has now."`
		Note       string `json:"note,omitempty" maxLength:"2000" doc:"What the rollback is for."`
		BreakGlass string `json:"breakGlass,omitempty" maxLength:"2000" doc:"The reason for overriding what the environment lets an emergency override."`
	}
}

const mediaText = "text/plain; charset=utf-8"

func (a *API) registerEligibility() {
	handle(a, huma.Operation{
		OperationID: "get-eligibility",
		Method:      http.MethodGet,
		Path:        "/api/v1/images/{digest}/eligibility",
		Summary:     "Ask whether an image could enter an environment now, rule by rule",
		Description: "Looks at everything anew, with today's vulnerability database, as if the caller had asked for the promotion. Nothing is promoted and nothing is kept.",
		Tags:        []string{"images"},
		Responses:   a.problems(404, 409, 422, 501),
	}, needRead, func(ctx context.Context, in *eligibilityInput) (*eligibilityOutput, error) {
		r := pipeline.PromotionRequest{Image: in.Digest, Project: in.Project, Environment: in.Environment, Action: in.Action}
		if _, err := a.subject(ctx, needRead, &r); err != nil {
			return nil, err
		}
		e, err := a.eligibility(ctx, r)
		return &eligibilityOutput{e}, err
	})
	responses := a.problems(404, 409, 422, 501)
	responses["200"] = &huma.Response{Description: "The difference, in JSON or to be read", Content: map[string]*huma.MediaType{
		"application/json": {Schema: a.schema(pipeline.Diff{})},
		"text/plain":       {Schema: &huma.Schema{Type: huma.TypeString}},
	}}
	handle(a, huma.Operation{
		OperationID: "get-diff",
		Method:      http.MethodGet,
		Path:        "/api/v1/images/{digest}/diff",
		Summary:     "Show what promoting an image would change in an environment",
		Description: "JSON, or with Accept: text/plain a text to be read.",
		Tags:        []string{"images"},
		Responses:   responses,
	}, needRead, a.diff)
	handle(a, huma.Operation{
		OperationID:   "rollback",
		Method:        http.MethodPost,
		Path:          "/api/v1/projects/{name}/environments/{environment}/rollback",
		Summary:       "Bring an environment back to an image that it had before",
		Description:   "A rollback is a promotion with the action rollback: follow it at its Location.",
		Tags:          []string{"promotions"},
		DefaultStatus: http.StatusAccepted,
		Responses:     a.accepted(pipeline.Promotion{}, nil, 400, 404, 408, 409, 413, 415, 422),
	}, needRelease, a.rollback)
}

// eligibility asks drayd; the request names a project and a digest.
func (a *API) eligibility(ctx context.Context, r pipeline.PromotionRequest) (pipeline.Eligibility, error) {
	if a.Eligibility == nil {
		return pipeline.Eligibility{}, disabled(ctx, "ask gates")
	}
	if r.Image == "" {
		return pipeline.Eligibility{}, fmt.Errorf("image is required to ask whether it could enter %s: %w", r.Environment, pipeline.ErrInvalid)
	}
	if r.Action == "" {
		r.Action = pipeline.ActionPromote
	}
	e, err := a.Eligibility(ctx, r)
	if err != nil {
		return e, fmt.Errorf("whether %s could enter %s: %w", r.Image, r.Environment, err)
	}
	e.Decision = *tidy(&e.Decision)
	return e, nil
}

func (a *API) diff(ctx context.Context, in *diffInput) (*rawOutput, error) {
	r := pipeline.PromotionRequest{Image: in.Digest, Project: in.Project, Environment: in.Environment}
	if _, err := a.subject(ctx, needRead, &r); err != nil {
		return nil, err
	}
	e, err := a.eligibility(ctx, r)
	if err != nil {
		return nil, err
	}
	if wantsText(in.Accept) {
		return &rawOutput{mediaText, []byte(printable(e.Diff.Text(0)))}, nil
	}
	body, err := json.Marshal(e.Diff)
	return &rawOutput{"application/json", body}, err
}

// wantsText reports whether an Accept header names text/plain before JSON.
func wantsText(accept string) bool {
	for part := range strings.SplitSeq(accept, ",") {
		media, _, _ := strings.Cut(part, ";")
		switch strings.TrimSpace(strings.ToLower(media)) {
		case "text/plain", "text/*":
			return true
		case "application/json", "application/*", "*/*":
			return false
		}
	}
	return false
}

// printable drops what could steer a terminal: commits and packages are named
// by whoever wrote them.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || unicode.IsPrint(r) {
			return r
		}
		return -1
	}, strings.ToValidUTF8(s, ""))
}

func (a *API) rollback(ctx context.Context, in *rollbackInput) (*promoteOutput, error) {
	r := pipeline.PromotionRequest{
		Image: in.Body.To, Environment: in.Environment, Project: in.Project, Action: pipeline.ActionRollback,
		Note: in.Body.Note, BreakGlass: strings.TrimSpace(in.Body.BreakGlass), IdempotencyKey: in.Key,
	}
	v, err := a.projectVersion(ctx, needRelease, in.Project, 0)
	if err != nil {
		return nil, err
	}
	if _, ok := v.Project.Environment(in.Environment); !ok {
		return nil, hidden("environment", in.Environment)
	}
	if _, err := a.subject(ctx, needRelease, &r); err != nil {
		return nil, err
	}
	return a.start(ctx, r)
}
