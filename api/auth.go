package api

import (
	"errors"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/dray-project/dray/pipeline"
)

// maxToken bounds what is taken for a token and looked up.
const maxToken = 512

// authenticate lets a request through to an operation that asks for a token
// only with one that the store knows. The token itself goes nowhere but to the
// store: no log line and no error carries it.
func (a *API) authenticate(hctx huma.Context, next func(huma.Context)) {
	if len(hctx.Operation().Security) == 0 {
		next(hctx)
		return
	}
	r, w := humago.Unwrap(hctx)
	deny := func(challenge, detail string) {
		w.Header().Set("WWW-Authenticate", challenge)
		a.fail(w, r, newProblem(r.Context(), http.StatusUnauthorized, problemUnauthenticated, detail))
	}
	const challenge = `Bearer realm="dray"`
	values := r.Header.Values("Authorization")
	if len(values) == 0 {
		deny(challenge, "send a token: Authorization: Bearer <token>")
		return
	}
	scheme, secret, ok := strings.Cut(values[0], " ")
	secret = strings.TrimSpace(secret)
	if !ok || len(values) > 1 || !strings.EqualFold(scheme, "Bearer") || secret == "" {
		deny(challenge+`, error="invalid_request"`, "want one header: Authorization: Bearer <token>")
		return
	}
	const refused = challenge + `, error="invalid_token"`
	if len(secret) > maxToken || !strings.HasPrefix(secret, "dray_") {
		deny(refused, "that is no token of Dray's: they start with dray_")
		return
	}
	token, err := a.Store.TokenBySecret(r.Context(), secret)
	switch {
	case errors.Is(err, pipeline.ErrNotFound):
		deny(refused, "the token is unknown, revoked or expired")
	case err != nil:
		a.fail(w, r, err)
	case token.ExpiresAt != nil && !a.Now().Before(*token.ExpiresAt):
		deny(refused, "the token is unknown, revoked or expired")
	default:
		infoOf(r.Context()).token = &token
		next(hctx)
	}
}
