package forge

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"strings"

	"github.com/dray-project/dray/pipeline"
)

// Headers that GitHub sends with each delivery.
const (
	headerSignature = "X-Hub-Signature-256"
	headerEvent     = "X-GitHub-Event"
	headerDelivery  = "X-GitHub-Delivery"
)

// maxDeliveryID bounds the delivery id; GitHub's are UUIDs of 36 characters.
const maxDeliveryID = 128

// GitHub reads the webhooks of github.com and GitHub Enterprise Server.
type GitHub struct {
	// CloneURL returns the clone URL that the settings have for a repository
	// ("acme/hello-go"), and "" for one that they do not have. It says which host
	// the forge is: a delivery's own word for it does not count. Nil means that
	// events have no CompareURL.
	CloneURL func(source string) string
}

// Verify reports whether body was signed with secret: X-Hub-Signature-256 is
// the HMAC-SHA256 of the raw bytes, compared in constant time. Nothing of the
// body is parsed. Every refusal wraps pipeline.ErrUnverified; an empty secret
// verifies nothing.
func (GitHub) Verify(secret []byte, header http.Header, body []byte) error {
	if len(secret) == 0 {
		return fmt.Errorf("verify a GitHub webhook: the project has no secret: %w", pipeline.ErrUnverified)
	}
	values := header.Values(headerSignature)
	if len(values) != 1 {
		return fmt.Errorf("verify a GitHub webhook: want one %s header, got %d (set a secret in the webhook's settings at the forge): %w",
			headerSignature, len(values), pipeline.ErrUnverified)
	}
	digits, ok := strings.CutPrefix(values[0], "sha256=")
	claimed, err := hex.DecodeString(digits)
	if !ok || err != nil || len(claimed) != sha256.Size {
		return fmt.Errorf("verify a GitHub webhook: %s is not sha256=<64 hexadecimal digits>: %w",
			headerSignature, pipeline.ErrUnverified)
	}
	mac := hmac.New(sha256.New, secret)
	mac.Write(body)
	if !hmac.Equal(mac.Sum(nil), claimed) {
		return fmt.Errorf("verify a GitHub webhook: the signature does not match (the secret at the forge differs from the one that Dray has, or the body was changed on its way): %w",
			pipeline.ErrUnverified)
	}
	return nil
}

// Parse reads a delivery whose signature has been verified, and returns the
// event and the delivery's id.
//
// A push of a branch or tag gives EventPush, with its newest 250 commits, and a
// CompareURL if the delivery has one in that repository on the forge's own host.
// A ping gives EventPing. For every other
// type of event the Kind is GitHub's own name for it ("issues"), nothing else
// is filled in and the body is not looked at: there is nothing to do.
//
// What GitHub would not send is an error that wraps pipeline.ErrInvalid: a
// missing or null field, a ref that is incomplete or that git would not
// accept, a commit that is not 40 or 64 hexadecimal digits, a delivery without
// an id.
func (g GitHub) Parse(header http.Header, body []byte) (pipeline.Event, string, error) {
	id := header.Get(headerDelivery)
	if !token(id, maxDeliveryID) {
		return pipeline.Event{}, "", fmt.Errorf("GitHub webhook: want a %s header of 1 to %d printable characters without spaces: %w",
			headerDelivery, maxDeliveryID, pipeline.ErrInvalid)
	}
	kind := header.Get(headerEvent)
	if !eventName(kind) {
		return pipeline.Event{}, "", fmt.Errorf("GitHub webhook %s: %s header %.80q does not name an event: %w",
			id, headerEvent, kind, pipeline.ErrInvalid)
	}
	var (
		event pipeline.Event
		err   error
	)
	switch pipeline.EventKind(kind) {
	case pipeline.EventPush, pipeline.EventPing:
		var payload []byte
		if payload, err = unwrap(header, body); err != nil {
			break
		}
		if kind == string(pipeline.EventPush) {
			event, err = g.parsePush(payload)
		} else {
			event, err = parsePing(payload)
		}
	default:
		event = pipeline.Event{Kind: pipeline.EventKind(kind)}
	}
	if err != nil {
		return pipeline.Event{}, "", fmt.Errorf("GitHub %s event %s: %w", kind, id, err)
	}
	return event, id, nil
}

// unwrap takes the JSON out of the body: GitHub sends it as it is, or, by the
// default of its settings page, as the form field "payload".
func unwrap(header http.Header, body []byte) ([]byte, error) {
	contentType := header.Get("Content-Type")
	if contentType == "" {
		return body, nil
	}
	media, _, err := mime.ParseMediaType(contentType)
	switch {
	case err == nil && media == "application/json":
		return body, nil
	case err == nil && media == "application/x-www-form-urlencoded":
		form, err := url.ParseQuery(string(body))
		if err != nil {
			return nil, fmt.Errorf("the body is not a form: %v: %w", err, pipeline.ErrInvalid)
		}
		return []byte(form.Get("payload")), nil
	}
	return nil, fmt.Errorf("content type %.80q: want application/json: %w", contentType, pipeline.ErrInvalid)
}

// repository is the part of GitHub's repository object that is read.
type repository struct {
	FullName field[string] `json:"full_name"`
}

// source returns the repository's full name, checked.
func (r repository) source() (string, error) {
	name, err := r.FullName.required("repository.full_name")
	if err != nil {
		return "", err
	}
	if !fullName(name) {
		return "", fmt.Errorf("repository.full_name %.120q: want owner/name: %w", name, pipeline.ErrInvalid)
	}
	return name, nil
}

func (g GitHub) parsePush(payload []byte) (pipeline.Event, error) {
	var p struct {
		Ref        field[string]     `json:"ref"`
		Before     field[string]     `json:"before"`
		After      field[string]     `json:"after"`
		Deleted    field[bool]       `json:"deleted"`
		Repository field[repository] `json:"repository"`
		Pusher     field[struct {
			Name field[string] `json:"name"`
		}] `json:"pusher"`
		Commits field[json.RawMessage] `json:"commits"`
		Compare field[string]          `json:"compare"`
	}
	if err := decode(payload, &p); err != nil {
		return pipeline.Event{}, err
	}
	event := pipeline.Event{Kind: pipeline.EventPush}
	ref, err := p.Ref.required("ref")
	if err != nil {
		return pipeline.Event{}, err
	}
	if err := checkRef(ref); err != nil {
		return pipeline.Event{}, err
	}
	event.Ref = ref
	after, err := p.After.required("after")
	if err != nil {
		return pipeline.Event{}, err
	}
	if event.After, err = object("after", after); err != nil {
		return pipeline.Event{}, err
	}
	before, err := p.Before.optional("before")
	if err != nil {
		return pipeline.Event{}, err
	}
	if before != "" {
		if event.Before, err = object("before", before); err != nil {
			return pipeline.Event{}, err
		}
	}
	deleted, err := p.Deleted.optional("deleted")
	if err != nil {
		return pipeline.Event{}, err
	}
	if deleted && event.After != "" {
		return pipeline.Event{}, fmt.Errorf("deleted is true and after is %s: a ref that is gone names nothing: %w", event.After, pipeline.ErrInvalid)
	}
	event.Deleted = event.After == ""
	repo, err := p.Repository.required("repository")
	if err != nil {
		return pipeline.Event{}, err
	}
	if event.Source, err = repo.source(); err != nil {
		return pipeline.Event{}, err
	}
	pusher, err := p.Pusher.optional("pusher")
	if err != nil {
		return pipeline.Event{}, err
	}
	name, err := pusher.Name.optional("pusher.name")
	if err != nil {
		return pipeline.Event{}, err
	}
	event.Pusher = printable(name, maxName)
	commits, err := p.Commits.optional("commits")
	if err != nil {
		return pipeline.Event{}, err
	}
	if event.Commits, event.CommitsOmitted, err = parseCommits(commits); err != nil {
		return pipeline.Event{}, err
	}
	compare, err := p.Compare.optional("compare")
	if err != nil {
		return pipeline.Event{}, err
	}
	if g.CloneURL != nil {
		event.CompareURL = checkCompare(compare, event.Source, g.CloneURL(event.Source))
	}
	return event, nil
}

// parsePing accepts a ping with a repository and, as an organisation's webhook
// sends it, without.
func parsePing(payload []byte) (pipeline.Event, error) {
	var p struct {
		Repository field[repository] `json:"repository"`
	}
	if err := decode(payload, &p); err != nil {
		return pipeline.Event{}, err
	}
	event := pipeline.Event{Kind: pipeline.EventPing}
	if !p.Repository.set {
		return event, nil
	}
	repo, err := p.Repository.required("repository")
	if err != nil {
		return pipeline.Event{}, err
	}
	event.Source, err = repo.source()
	return event, err
}

// field is one member of a JSON object, which knows whether it was there and
// whether it was null.
type field[T any] struct {
	value T
	set   bool
	null  bool
}

// UnmarshalJSON is called for null as well.
func (f *field[T]) UnmarshalJSON(b []byte) error {
	f.set = true
	if string(b) == "null" {
		f.null = true
		return nil
	}
	return json.Unmarshal(b, &f.value)
}

func (f field[T]) required(name string) (T, error) {
	if !f.set {
		return f.value, fmt.Errorf("%s is missing: %w", name, pipeline.ErrInvalid)
	}
	return f.optional(name)
}

func (f field[T]) optional(name string) (T, error) {
	if f.null {
		return f.value, fmt.Errorf("%s is null: %w", name, pipeline.ErrInvalid)
	}
	return f.value, nil
}

// decode reads a JSON object; anything else is ErrInvalid.
func decode(payload []byte, v any) error {
	trimmed := strings.TrimLeft(string(payload[:min(len(payload), 64)]), " \t\r\n")
	if !strings.HasPrefix(trimmed, "{") {
		return fmt.Errorf("the payload is not a JSON object: %w", pipeline.ErrInvalid)
	}
	if err := json.Unmarshal(payload, v); err != nil {
		return fmt.Errorf("the payload does not parse: %v: %w", err, pipeline.ErrInvalid)
	}
	return nil
}
