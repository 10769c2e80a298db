package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/dray-project/dray/pipeline"
)

// problemBase precedes every problem's name in its type. The types are part of
// the API: docs/reference/api.md lists them, and they do not change.
const problemBase = "urn:dray:problem:"

// The names of the problems.
const (
	problemMalformed        = "malformed"
	problemInvalid          = "invalid"
	problemUnauthenticated  = "unauthenticated"
	problemForbidden        = "forbidden"
	problemBadSignature     = "bad-signature"
	problemNotFound         = "not-found"
	problemMethodNotAllowed = "method-not-allowed"
	problemNotAcceptable    = "not-acceptable"
	problemTimeout          = "timeout"
	problemConflict         = "conflict"
	problemPlanChanged      = "plan-changed"
	problemPrecondition     = "precondition-failed"
	problemAmbiguous        = "ambiguous"
	problemTooLarge         = "too-large"
	problemMediaType        = "unsupported-media-type"
	problemRefused          = "refused"
	problemUnverified       = "unverified"
	problemInternal         = "internal"
	problemDisabled         = "disabled"
	problemUnavailable      = "unavailable"
)

var problemTitles = map[string]string{
	problemMalformed:        "The request cannot be read",
	problemInvalid:          "A value cannot be accepted",
	problemUnauthenticated:  "A valid token is required",
	problemForbidden:        "The token's roles do not allow it",
	problemBadSignature:     "The webhook's signature does not verify",
	problemNotFound:         "Not found",
	problemMethodNotAllowed: "Method not allowed",
	problemNotAcceptable:    "No representation is acceptable",
	problemTimeout:          "The request took too long to arrive",
	problemConflict:         "The request contradicts what is there",
	problemPlanChanged:      "What would be changed is not what was shown",
	problemPrecondition:     "It was changed since you read it",
	problemAmbiguous:        "More than one thing answers to that name",
	problemTooLarge:         "The request body is too large",
	problemMediaType:        "Unsupported media type",
	problemRefused:          "Refused by policy",
	problemUnverified:       "Not verified",
	problemInternal:         "Internal error",
	problemDisabled:         "This server does not do that",
	problemUnavailable:      "Unavailable at the moment",
}

// Problem is an error as RFC 9457 writes it.
type Problem struct {
	Type   string `json:"type" doc:"Which problem it is: urn:dray:problem:<name>. Stable; branch on this."`
	Title  string `json:"title" doc:"The type in words; the same for every occurrence."`
	Status int    `json:"status" doc:"The HTTP status."`
	Detail string `json:"detail,omitempty" doc:"What went wrong this time, and what to do."`
	// Instance carries the request's id, by which an operator finds it in the log.
	Instance string       `json:"instance,omitempty" doc:"This request: urn:dray:request:<id>. The server's log has it."`
	Errors   []FieldError `json:"errors,omitempty" nullable:"false" doc:"The values that were not accepted."`
	Projects []string     `json:"projects,omitempty" nullable:"false" doc:"Of an ambiguous image: the projects that hold it. Ask again with one of them as project."`
	Roles    []string     `json:"roles,omitempty" nullable:"false" doc:"Of a forbidden request: the roles of which one is needed."`
	// Plan is what an approval would have to be for.
	Plan pipeline.Digest `json:"plan,omitempty" doc:"Of plan-changed: the digest of the difference as it is today."`
}

// FieldError is one value that was not accepted, or one check that failed.
type FieldError struct {
	Location string `json:"location,omitempty" doc:"Where: body.image, query.limit, or the name of a check."`
	Message  string `json:"message"`
}

func (p *Problem) Error() string {
	if p.Detail == "" {
		return p.Title
	}
	return p.Detail
}

// GetStatus is the HTTP status.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType is application/problem+json, whatever was asked for.
func (p *Problem) ContentType(string) string { return "application/problem+json" }

func newProblem(ctx context.Context, status int, name, detail string) *Problem {
	p := &Problem{Type: problemBase + name, Title: problemTitles[name], Status: status, Detail: detail}
	if id := infoOf(ctx).id; id != "" {
		p.Instance = "urn:dray:request:" + id
	}
	return p
}

// ambiguousImage says that several projects hold a digest.
type ambiguousImage struct {
	digest   pipeline.Digest
	projects []string
}

func (e *ambiguousImage) Error() string {
	return fmt.Sprintf("image %s is held by the projects %s: ask with project=<one of them>", e.digest, strings.Join(e.projects, ", "))
}

func (e *ambiguousImage) Unwrap() error { return pipeline.ErrAmbiguous }

// problem is the one place that decides how an error looks outside. What
// nobody foresaw is logged whole and shown as "internal error" with the
// request's id.
func (a *API) problem(ctx context.Context, err error) *Problem {
	var p *Problem
	if errors.As(err, &p) {
		return p
	}
	var ambiguous *ambiguousImage
	var file *pipeline.FileError
	switch {
	case errors.As(err, &file):
		p = newProblem(ctx, http.StatusUnprocessableEntity, problemInvalid, err.Error())
		for _, f := range file.Problems {
			p.Errors = append(p.Errors, FieldError{Location: strings.TrimSuffix("body."+f.Path, "."), Message: f.Message})
		}
		return p
	case errors.As(err, &ambiguous):
		p = newProblem(ctx, http.StatusConflict, problemAmbiguous, err.Error())
		p.Projects = ambiguous.projects
		return p
	case errors.Is(err, pipeline.ErrAmbiguous):
		return newProblem(ctx, http.StatusConflict, problemAmbiguous, err.Error())
	case errors.Is(err, pipeline.ErrNotFound):
		return newProblem(ctx, http.StatusNotFound, problemNotFound, err.Error())
	case errors.Is(err, pipeline.ErrInvalid):
		return newProblem(ctx, http.StatusUnprocessableEntity, problemInvalid, err.Error())
	case errors.Is(err, pipeline.ErrRefused):
		return newProblem(ctx, http.StatusUnprocessableEntity, problemRefused, err.Error())
	case errors.Is(err, pipeline.ErrUnverified):
		return newProblem(ctx, http.StatusUnprocessableEntity, problemUnverified, err.Error())
	case errors.Is(err, pipeline.ErrConflict), errors.Is(err, pipeline.ErrStale):
		return newProblem(ctx, http.StatusConflict, problemConflict, err.Error())
	case ctx.Err() != nil:
		// The caller is gone, or its time is up: nobody's fault here.
		return newProblem(ctx, http.StatusServiceUnavailable, problemUnavailable, "the request was given up before it was done")
	}
	a.Log.ErrorContext(ctx, "request failed", "request", infoOf(ctx).id, "error", err)
	return internalProblem(ctx)
}

// disabled says that drayd was started without something.
func disabled(ctx context.Context, what string) *Problem {
	return newProblem(ctx, http.StatusNotImplemented, problemDisabled, "this server cannot "+what+": it was started without what it takes")
}

func internalProblem(ctx context.Context) *Problem {
	return newProblem(ctx, http.StatusInternalServerError, problemInternal,
		"internal error; the server's log has the cause under request "+infoOf(ctx).id)
}

// transform turns huma's own errors (a body that does not parse, a parameter
// out of range) into problems with a type.
func (a *API) transform(hctx huma.Context, _ string, v any) (any, error) {
	e, ok := v.(*huma.ErrorModel)
	if !ok {
		return v, nil
	}
	ctx := hctx.Context()
	if e.Status >= http.StatusInternalServerError {
		a.Log.ErrorContext(ctx, "request failed", "request", infoOf(ctx).id, "error", e.Detail, "causes", fmt.Sprint(e.Errors))
		return internalProblem(ctx), nil
	}
	name, ok := map[int]string{
		http.StatusUnprocessableEntity:   problemInvalid,
		http.StatusRequestEntityTooLarge: problemTooLarge,
		http.StatusUnsupportedMediaType:  problemMediaType,
		http.StatusNotAcceptable:         problemNotAcceptable,
		http.StatusRequestTimeout:        problemTimeout,
		http.StatusNotFound:              problemNotFound,
	}[e.Status]
	if !ok {
		name = problemMalformed
	}
	p := newProblem(ctx, e.Status, name, e.Detail)
	for _, d := range e.Errors {
		// The value is not echoed: it may be a secret in the wrong place.
		p.Errors = append(p.Errors, FieldError{Location: d.Location, Message: d.Message})
	}
	if e.Detail == "validation failed" && len(p.Errors) > 0 {
		parts := make([]string, 0, len(p.Errors))
		for _, d := range p.Errors {
			parts = append(parts, strings.TrimPrefix(d.Location+": "+d.Message, ": "))
		}
		p.Detail = strings.Join(parts, "; ")
	}
	return p, nil
}

// fail writes a problem where huma is not at work.
func (a *API) fail(w http.ResponseWriter, r *http.Request, err error) {
	p := a.problem(r.Context(), err)
	body, err := json.Marshal(p)
	if err != nil {
		body = []byte("{}")
	}
	w.Header().Set("Content-Type", p.ContentType(""))
	w.WriteHeader(p.Status)
	// The answer is on its way; if the caller is gone there is nobody to tell.
	_, _ = w.Write(append(body, '\n'))
}

// problems documents the responses of an operation that are problems.
func (a *API) problems(statuses ...int) map[string]*huma.Response {
	statuses = append(statuses, http.StatusInternalServerError)
	slices.Sort(statuses)
	responses := map[string]*huma.Response{}
	for _, status := range slices.Compact(statuses) {
		responses[fmt.Sprint(status)] = &huma.Response{
			Description: http.StatusText(status),
			Content: map[string]*huma.MediaType{
				"application/problem+json": {Schema: &huma.Schema{Ref: "#/components/schemas/Problem"}},
			},
		}
	}
	return responses
}
