package api

import (
	"context"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
)

// checkTimeout bounds one readiness check.
const checkTimeout = 3 * time.Second

// registerKeys serves what a verifier needs. Neither is a secret, and whoever
// verifies should not need a token for it.
func (a *API) registerKeys() {
	serve := func(id, path, summary, contentType string, doc []byte) {
		handle(a, huma.Operation{
			OperationID: id,
			Method:      http.MethodGet,
			Path:        path,
			Summary:     summary,
			Tags:        []string{"keys"},
			Responses:   a.raw(contentType, "The file"),
		}, needNothing, func(context.Context, *struct{}) (*rawOutput, error) {
			return &rawOutput{contentType, doc}, nil
		})
	}
	serve("get-public-key", "/api/v1/public-key", "Get the public key that verifies Dray's signatures",
		"application/x-pem-file", a.PublicKeyPEM)
	serve("get-trusted-root", "/api/v1/trusted-root.json", "Get the sigstore trusted root that goes with the key",
		"application/json", a.TrustedRoot)
}

type versionOutput struct {
	Body struct {
		Version string `json:"version" example:"v1.2.3"`
	}
}

type healthOutput struct {
	Body struct {
		Status string   `json:"status" example:"ok"`
		Checks []string `json:"checks,omitempty" nullable:"false" doc:"What was checked."`
	}
}

func (a *API) registerHealth() {
	handle(a, huma.Operation{
		OperationID: "get-version",
		Method:      http.MethodGet,
		Path:        "/api/v1/version",
		Summary:     "Show which version of Dray answers",
		Tags:        []string{"service"},
		Responses:   a.problems(),
	}, needToken, func(context.Context, *struct{}) (*versionOutput, error) {
		out := &versionOutput{}
		out.Body.Version = a.Version
		return out, nil
	})
	handle(a, huma.Operation{
		OperationID: "live",
		Method:      http.MethodGet,
		Path:        "/livez",
		Summary:     "Is the process alive?",
		Description: "Touches nothing but the process itself: restarting it does not mend a database.",
		Tags:        []string{"service"},
		Responses:   a.problems(),
	}, needNothing, func(context.Context, *struct{}) (*healthOutput, error) {
		out := &healthOutput{}
		out.Body.Status = "ok"
		return out, nil
	})
	handle(a, huma.Operation{
		OperationID: "ready",
		Method:      http.MethodGet,
		Path:        "/readyz",
		Summary:     "Can the process take traffic?",
		Description: "Names what fails; why it fails is in the log.",
		Tags:        []string{"service"},
		Responses:   a.problems(503),
	}, needNothing, a.ready)
}

func (a *API) ready(ctx context.Context, _ *struct{}) (*healthOutput, error) {
	select {
	case <-a.draining:
		return nil, newProblem(ctx, http.StatusServiceUnavailable, problemUnavailable, "shutting down")
	default:
	}
	checks := append([]Check{{"database", a.Store.Ready}}, a.Checks...)
	errs := make([]error, len(checks))
	var wg sync.WaitGroup
	for i, c := range checks {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, checkTimeout)
			defer cancel()
			errs[i] = c.Run(ctx)
		})
	}
	wg.Wait()
	out := &healthOutput{}
	out.Body.Status = "ok"
	var failing []FieldError
	for i, c := range checks {
		out.Body.Checks = append(out.Body.Checks, c.Name)
		if errs[i] != nil {
			a.Log.LogAttrs(ctx, slog.LevelWarn, "not ready", slog.String("check", c.Name), slog.Any("error", errs[i]))
			failing = append(failing, FieldError{Location: c.Name, Message: "fails; the server's log says why"})
		}
	}
	if len(failing) > 0 {
		p := newProblem(ctx, http.StatusServiceUnavailable, problemUnavailable, "not ready")
		p.Errors = slices.Clip(failing)
		return nil, p
	}
	return out, nil
}
