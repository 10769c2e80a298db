package client

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/dray-project/dray/pipeline"
)

// Problem is an error that the server answered with (RFC 9457). It wraps the
// pipeline sentinel that goes with its type, so that errors.Is works across
// the wire.
type Problem struct {
	// Type is urn:dray:problem:<name>; docs/reference/api.md lists the names.
	Type     string       `json:"type"`
	Title    string       `json:"title"`
	Status   int          `json:"status"`
	Detail   string       `json:"detail"`
	Instance string       `json:"instance"`
	Errors   []FieldError `json:"errors"`
	// Projects, of an ambiguous image: those that hold it.
	Projects []string `json:"projects"`
	// Roles, of a forbidden request: those of which one is needed.
	Roles []string `json:"roles"`
	// Plan, of a plan that changed: today's.
	Plan pipeline.Digest `json:"plan"`
}

// FieldError is one value that was not accepted.
type FieldError struct {
	Location string `json:"location"`
	Message  string `json:"message"`
}

func (p *Problem) Error() string {
	switch {
	case p.Detail != "":
		return p.Detail
	case p.Title != "":
		return p.Title
	}
	return fmt.Sprintf("the server answered %d %s", p.Status, http.StatusText(p.Status))
}

// PlanChanged reports whether the plan is not (any more) what was shown.
func (p *Problem) PlanChanged() bool { return p.Type == "urn:dray:problem:plan-changed" }

// Unwrap returns the sentinel of the domain, or nil.
func (p *Problem) Unwrap() error {
	switch strings.TrimPrefix(p.Type, "urn:dray:problem:") {
	case "not-found":
		return pipeline.ErrNotFound
	case "invalid", "malformed":
		return pipeline.ErrInvalid
	case "conflict", "plan-changed", "precondition-failed":
		return pipeline.ErrConflict
	case "ambiguous":
		return pipeline.ErrAmbiguous
	case "refused":
		return pipeline.ErrRefused
	case "unverified":
		return pipeline.ErrUnverified
	}
	return nil
}

// problemOf reads a failed response, whoever sent it: a proxy in between does
// not write problems.
func problemOf(resp *http.Response) *Problem {
	p := &Problem{}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err == nil && strings.HasPrefix(resp.Header.Get("Content-Type"), "application/problem+json") && json.Unmarshal(body, p) == nil {
		p.Status = resp.StatusCode
		return p
	}
	return &Problem{
		Title:  http.StatusText(resp.StatusCode),
		Status: resp.StatusCode,
		Detail: fmt.Sprintf("%s answered %d %s, and not as Dray does: is DRAY_URL right, and is there a proxy in between?",
			resp.Request.URL.Host, resp.StatusCode, http.StatusText(resp.StatusCode)),
	}
}
