package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/dray-project/dray/pipeline"
)

const (
	// maxWebhookBody is what GitHub itself caps deliveries at.
	maxWebhookBody = 25 << 20
	// smallBody is what nearly every delivery fits in. Larger ones share a few
	// slots, so that a crowd of them cannot fill the memory.
	smallBody = 1 << 20
	// webhookRead is how long a delivery's body may take to arrive.
	webhookRead = 30 * time.Second
	// slotWait is how long a large delivery waits for a slot.
	slotWait = 5 * time.Second
)

// registerWebhooks gives each forge two addresses.
//
// At /webhooks/{forge}/{project} the address says whose secret counts: a bad
// signature and a project that does not exist give the same 401, and a body
// about another repository is 404.
//
// At /webhooks/{forge} the repository in the body says it, and the body is not
// parsed before a signature was checked. So the raw bytes are checked against
// every secret first. None fits: 401, whatever the body says, and an unsigned
// caller learns nothing. Some fit: the body is parsed, a repository that nobody
// watches is 404, and one whose own secret is not among those that fitted is
// 401. A delivery is accepted only if its repository's own secret signed it.
func (a *API) registerWebhooks() {
	names := make([]string, 0, len(a.Forges))
	for name := range a.Forges {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		path := "/webhooks/" + name
		a.mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
			a.webhook(w, r, name, "")
		})
		a.mux.HandleFunc("POST "+path+"/{project}", func(w http.ResponseWriter, r *http.Request) {
			a.webhook(w, r, name, r.PathValue("project"))
		})
		a.documentWebhook(name, path, false)
		a.documentWebhook(name, path+"/{project}", true)
	}
}

func (a *API) webhook(w http.ResponseWriter, r *http.Request, forge, project string) {
	accepted, status, err := a.receive(w, r, forge, project)
	if err != nil {
		p := a.problem(r.Context(), err)
		a.refused(r, forge, project, p)
		switch p.Status {
		case http.StatusRequestEntityTooLarge, http.StatusRequestTimeout:
			// The rest of the body is not worth reading.
			w.Header().Set("Connection", "close")
		case http.StatusServiceUnavailable:
			w.Header().Set("Retry-After", "5")
		}
		a.fail(w, r, p)
		return
	}
	if accepted.Run != "" {
		w.Header().Set("Location", "/api/v1/runs/"+string(accepted.Run))
		note(r.Context(), slog.String("run", string(accepted.Run)))
	}
	note(r.Context(), slog.Bool("duplicate", accepted.Duplicate))
	body, err := json.Marshal(accepted)
	if err != nil {
		a.fail(w, r, fmt.Errorf("write the answer to a webhook: %w", err))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // the delivery stands, whether the answer arrives or not
}

// refuseTimeout bounds how long the answer to a refused delivery waits for the
// evidence log.
const refuseTimeout = 2 * time.Second

// refused notes a delivery that was not let in, and not what went wrong here.
// The answer does not depend on it: whoever is refused must not learn from it
// how the database is.
func (a *API) refused(r *http.Request, forge, project string, p *Problem) {
	if p.Status >= http.StatusInternalServerError || p.Status == http.StatusRequestTimeout {
		return
	}
	if !slices.ContainsFunc(a.Hooks, func(h Hook) bool { return h.Forge == forge && h.Project == project }) {
		project = "" // anybody can make up an address
	}
	refusal := pipeline.Refusal{Forge: forge, Project: project, Reason: p.Type + ": " + p.Title}
	if from, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		refusal.From = from.Addr()
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), refuseTimeout)
	defer cancel()
	if err := a.Store.RefuseDelivery(ctx, refusal); err != nil {
		a.Log.WarnContext(ctx, "a refused delivery was not noted", "forge", forge, "error", err)
	}
}

// receive takes a delivery in: size, signature, content, in this order.
func (a *API) receive(w http.ResponseWriter, r *http.Request, forge, project string) (pipeline.Accepted, int, error) {
	ctx := r.Context()
	none := pipeline.Accepted{}
	body, release, err := a.readWebhook(w, r)
	if err != nil {
		return none, 0, err
	}
	defer release()
	signed := a.signedBy(forge, project, r.Header, body)
	if len(signed) == 0 {
		return none, 0, newProblem(ctx, http.StatusUnauthorized, problemBadSignature,
			"the signature does not verify: the secret set at the forge must be the one that Dray has for this project")
	}
	event, delivery, err := a.Forges[forge].Parse(r.Header, body)
	switch {
	case errors.Is(err, pipeline.ErrInvalid):
		return none, 0, newProblem(ctx, http.StatusBadRequest, problemMalformed, err.Error())
	case err != nil:
		return none, 0, err
	}
	note(ctx, slog.String("delivery", delivery))
	if event.Kind != pipeline.EventPush && event.Kind != pipeline.EventPing {
		return pipeline.Accepted{Note: fmt.Sprintf("ignored: Dray does not act on %q events", event.Kind)}, http.StatusAccepted, nil
	}
	if event.Kind == pipeline.EventPing && event.Source == "" {
		return pipeline.Accepted{Note: "pong"}, http.StatusOK, nil
	}
	hook, err := a.hookOf(ctx, forge, project, event.Source, signed)
	if err != nil {
		return none, 0, err
	}
	note(ctx, slog.String("project", hook.Project))
	if event.Kind == pipeline.EventPing {
		return pipeline.Accepted{Note: "pong"}, http.StatusOK, nil
	}
	sum := sha256.Sum256(body)
	event.Source = hook.Source // one spelling, or the same event could count twice
	accepted, err := a.Store.Accept(ctx, pipeline.Delivery{
		Forge:      forge,
		ID:         delivery,
		Project:    hook.Project,
		Event:      event,
		BodyDigest: pipeline.Digest("sha256:" + hex.EncodeToString(sum[:])),
		ReceivedAt: a.Now().UTC(),
	})
	if err != nil {
		return none, 0, fmt.Errorf("accept delivery %s of project %s: %w", delivery, hook.Project, err)
	}
	return accepted, http.StatusAccepted, nil
}

// signedBy returns the hooks whose secret signed the body. Every candidate is
// tried, so that the time taken does not tell which one fitted.
func (a *API) signedBy(forge, project string, header http.Header, body []byte) []Hook {
	var signed []Hook
	verdicts := map[string]bool{} // by secret: projects may share one
	verify := func(secret string) bool {
		ok, done := verdicts[secret]
		if !done {
			ok = a.Forges[forge].Verify([]byte(secret), header, body) == nil
			verdicts[secret] = ok
		}
		return ok
	}
	for _, h := range a.Hooks {
		if h.Forge == forge && (project == "" || h.Project == project) && verify(h.Secret) {
			signed = append(signed, h)
		}
	}
	if len(verdicts) == 0 {
		verify(string(a.noSecret))
		return nil
	}
	return signed
}

// hookOf returns the hook of the repository, which must be one that signed.
func (a *API) hookOf(ctx context.Context, forge, project, source string, signed []Hook) (Hook, error) {
	for _, h := range signed {
		if strings.EqualFold(h.Source, source) {
			return h, nil
		}
	}
	if project == "" && slices.ContainsFunc(a.Hooks, func(h Hook) bool {
		return h.Forge == forge && strings.EqualFold(h.Source, source)
	}) {
		return Hook{}, newProblem(ctx, http.StatusUnauthorized, problemBadSignature,
			"the delivery was signed with the secret of another project than the one that watches "+source)
	}
	return Hook{}, newProblem(ctx, http.StatusNotFound, problemNotFound,
		fmt.Sprintf("no project here watches repository %s (add it to the projects in Dray's settings, or remove the webhook)", source))
}

// readWebhook reads the body, at most one byte over the cap. release gives back
// what a large body takes; it is never nil when err is.
func (a *API) readWebhook(w http.ResponseWriter, r *http.Request) (body []byte, release func(), err error) {
	ctx := r.Context()
	tooLarge := newProblem(ctx, http.StatusRequestEntityTooLarge, problemTooLarge,
		fmt.Sprintf("a delivery may have at most %d bytes", maxWebhookBody))
	if r.ContentLength > maxWebhookBody {
		return nil, nil, tooLarge
	}
	// A recorder in a test has no deadlines.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(webhookRead))
	release = func() {}
	body, err = readAtMost(r.Body, smallBody+1)
	if err == nil && len(body) > smallBody {
		timer := time.NewTimer(slotWait)
		defer timer.Stop()
		select {
		case a.large <- struct{}{}:
		case <-timer.C:
			return nil, nil, newProblem(ctx, http.StatusServiceUnavailable, problemUnavailable,
				"too many large deliveries at once; deliver it again")
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
		release = func() { <-a.large }
		var rest []byte
		rest, err = readAtMost(r.Body, maxWebhookBody-int64(len(body))+1)
		body = append(body, rest...)
	}
	if err == nil && len(body) > maxWebhookBody {
		err = tooLarge
	}
	if err == nil {
		return body, release, nil
	}
	release()
	var timeout net.Error
	switch {
	case errors.Is(err, tooLarge):
		return nil, nil, err
	case errors.As(err, &timeout) && timeout.Timeout():
		return nil, nil, newProblem(ctx, http.StatusRequestTimeout, problemTimeout, "the body did not arrive in time")
	}
	return nil, nil, newProblem(ctx, http.StatusBadRequest, problemMalformed, "the body broke off: "+err.Error())
}

func readAtMost(r io.Reader, n int64) ([]byte, error) {
	var buf bytes.Buffer
	_, err := buf.ReadFrom(io.LimitReader(r, n))
	return buf.Bytes(), err
}

func (a *API) documentWebhook(forge, path string, perProject bool) {
	op := &huma.Operation{
		OperationID: "receive-" + forge + "-webhook",
		Method:      http.MethodPost,
		Path:        path,
		Tags:        []string{"webhooks"},
		Summary:     "Receive a webhook of " + forge,
		Description: "Signed with the project's webhook secret; the signature is over the raw bytes and is checked before anything is parsed. " +
			"The repository in the body decides which project it is for, and its own secret must have signed. " +
			"A redelivery, or the same event under another delivery id, is answered with the run of the first, or with the newest retry of that.",
		RequestBody: &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{
			"application/json": {Schema: &huma.Schema{Type: huma.TypeObject, AdditionalProperties: true}},
		}},
		Responses: a.problems(400, 401, 404, 408, 413, 503),
	}
	if perProject {
		op.OperationID += "-of-project"
		op.Summary += " at an address of the project's own"
		op.Description = "As without the project in the path, but only this project's secret counts, " +
			"so that nothing can be learnt about another. A project that does not exist answers like a bad signature."
		op.Parameters = []*huma.Param{{Name: "project", In: "path", Required: true, Schema: &huma.Schema{Type: huma.TypeString}}}
	}
	accepted := func(description string) *huma.Response {
		return &huma.Response{Description: description, Content: map[string]*huma.MediaType{
			"application/json": {Schema: a.schema(pipeline.Accepted{})},
		}}
	}
	op.Responses["200"] = accepted("A ping was answered")
	op.Responses["202"] = accepted("The delivery is recorded; run is what it started, if there was something to build")
	op.Responses["202"].Headers = map[string]*huma.Param{
		"Location": {Description: "The run", Schema: &huma.Schema{Type: huma.TypeString}},
	}
	a.huma.OpenAPI().AddOperation(op)
}
