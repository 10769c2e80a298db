// Package client talks to a Dray server's API.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/dray-project/dray/pipeline"
)

// Config says where the server is and who is asking.
type Config struct {
	// URL of the server, without /api/v1: "https://dray.example". Required.
	URL string
	// Token is sent as the bearer token. Empty reaches only what is public.
	Token string
	// HTTP carries the requests; the default has sensible timeouts and none on a
	// whole response, because streams last.
	HTTP *http.Client
	// UserAgent names the program that uses the client.
	UserAgent string
	// Idle is how long a stream may be silent before it counts as broken. The
	// server sends a sign of life every 15 s. Default 45 s.
	Idle time.Duration
	// Backoff is the first wait before a failed request or stream is tried again;
	// it doubles up to five seconds. Default 250 ms.
	Backoff time.Duration
}

// Client is safe for concurrent use.
type Client struct {
	base      *url.URL
	token     string
	http      *http.Client
	userAgent string
	idle      time.Duration
	backoff   time.Duration
}

const (
	maxBackoff = 5 * time.Second
	// maxAnswer bounds what is read of one answer that is no stream; an SBOM of
	// a large image has some tens of megabytes.
	maxAnswer = 256 << 20
	// requestTimeout bounds a request that is no stream.
	requestTimeout = time.Minute
)

// New checks the configuration; it does not connect.
func New(c Config) (*Client, error) {
	u, err := url.Parse(strings.TrimRight(c.URL, "/"))
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.User != nil {
		return nil, fmt.Errorf("server URL %q: want http://host or https://host: %w", c.URL, pipeline.ErrInvalid)
	}
	if strings.ContainsAny(c.Token, " \r\n\t") {
		return nil, fmt.Errorf("the token has white space in it: %w", pipeline.ErrInvalid)
	}
	cl := &Client{base: u, token: c.Token, http: c.HTTP, userAgent: c.UserAgent, idle: c.Idle, backoff: c.Backoff}
	if cl.http == nil {
		transport := http.DefaultTransport.(*http.Transport).Clone()
		transport.ResponseHeaderTimeout = 30 * time.Second
		cl.http = &http.Client{Transport: transport}
	}
	if cl.userAgent == "" {
		cl.userAgent = "dray-client"
	}
	if cl.idle <= 0 {
		cl.idle = 45 * time.Second
	}
	if cl.backoff <= 0 {
		cl.backoff = 250 * time.Millisecond
	}
	return cl, nil
}

// List is one page of a list, newest first.
type List[T any] struct {
	Items []T
	// Next is the cursor of the next page; empty on the last.
	Next string
}

// PageQuery asks for a part of a list. Zero values ask for the first page of
// the server's usual length.
type PageQuery struct {
	Limit  int // 1 to 100
	Cursor string
}

func (p PageQuery) set(q url.Values) {
	if p.Limit > 0 {
		q.Set("limit", strconv.Itoa(p.Limit))
	}
	setIf(q, "cursor", p.Cursor)
}

func setIf(q url.Values, name, value string) {
	if value != "" {
		q.Set(name, value)
	}
}

// RunsQuery narrows a list of runs; empty fields do not.
type RunsQuery struct {
	Project string
	State   pipeline.State
	PageQuery
}

// Runs lists runs, newest first.
func (c *Client) Runs(ctx context.Context, q RunsQuery) (List[pipeline.Run], error) {
	v := url.Values{}
	setIf(v, "project", q.Project)
	setIf(v, "state", string(q.State))
	q.set(v)
	return getList[pipeline.Run](ctx, c, "/api/v1/runs", v)
}

// Run returns a run with its stages.
func (c *Client) Run(ctx context.Context, id pipeline.RunID) (run pipeline.RunDetail, err error) {
	err = c.getJSON(ctx, "/api/v1/runs/"+url.PathEscape(string(id)), nil, &run)
	return run, err
}

// Retry asks for a run that failed or was refused to be run again, and returns
// the run that tries again: a new one, or the one that tries already. Asking is
// idempotent while that one is open, and so the request is sent again when the
// answer is lost.
func (c *Client) Retry(ctx context.Context, id pipeline.RunID) (run pipeline.Run, err error) {
	err = c.post(ctx, "/api/v1/runs/"+url.PathEscape(string(id))+"/retry", nil, nil, &run)
	return run, err
}

// Image is an image as the server shows it.
type Image struct {
	pipeline.ImageDetail
	// VerifyCommands check the image where it was built, without Dray.
	VerifyCommands []string `json:"verifyCommands,omitempty"`
}

// Image returns what is known of an image. When several projects hold the
// digest and project is empty, the error is a *Problem that names them and
// wraps pipeline.ErrAmbiguous; the same goes for SBOM and Provenance.
func (c *Client) Image(ctx context.Context, d pipeline.Digest, project string) (img Image, err error) {
	v := url.Values{}
	setIf(v, "project", project)
	err = c.getJSON(ctx, imagePath(d), v, &img)
	return img, err
}

// SBOM returns the CycloneDX document of one platform; the platform may be
// empty when the image has only one.
func (c *Client) SBOM(ctx context.Context, d pipeline.Digest, project string, platform pipeline.Platform) ([]byte, error) {
	v := url.Values{}
	setIf(v, "project", project)
	setIf(v, "platform", string(platform))
	return c.getRaw(ctx, imagePath(d)+"/sbom", v)
}

// Provenance returns the SLSA predicate of an image.
func (c *Client) Provenance(ctx context.Context, d pipeline.Digest, project string) ([]byte, error) {
	v := url.Values{}
	setIf(v, "project", project)
	return c.getRaw(ctx, imagePath(d)+"/provenance", v)
}

func imagePath(d pipeline.Digest) string { return "/api/v1/images/" + url.PathEscape(string(d)) }

// Packages finds the images that contain a package. Page.After is the cursor.
func (c *Client) Packages(ctx context.Context, q pipeline.PackageQuery) (List[pipeline.PackageUse], error) {
	v := url.Values{}
	v.Set("name", q.Name)
	setIf(v, "version", q.Version)
	setIf(v, "project", q.Project)
	setIf(v, "environment", q.Environment)
	if q.Promoted {
		v.Set("promoted", "true")
	}
	PageQuery{Limit: q.Page.Limit, Cursor: q.Page.After}.set(v)
	return getList[pipeline.PackageUse](ctx, c, "/api/v1/packages", v)
}

// PublicKey returns the key that verifies this Dray's signatures, in PEM.
func (c *Client) PublicKey(ctx context.Context) ([]byte, error) {
	return c.getRaw(ctx, "/api/v1/public-key", nil)
}

// TrustedRoot returns the sigstore trusted root that goes with the key.
func (c *Client) TrustedRoot(ctx context.Context) ([]byte, error) {
	return c.getRaw(ctx, "/api/v1/trusted-root.json", nil)
}

// Version returns the server's version.
func (c *Client) Version(ctx context.Context) (string, error) {
	var v struct {
		Version string `json:"version"`
	}
	err := c.getJSON(ctx, "/api/v1/version", nil, &v)
	return v.Version, err
}

func getList[T any](ctx context.Context, c *Client, path string, q url.Values) (List[T], error) {
	var list List[T]
	err := c.call(ctx, http.MethodGet, path, q, nil, nil, func(resp *http.Response) error {
		list.Next = nextCursor(resp.Header)
		return decode(resp, &list)
	})
	return list, err
}

// nextCursor takes the cursor out of the Link header (RFC 8288).
func nextCursor(h http.Header) string {
	for _, value := range h.Values("Link") {
		target, params, ok := strings.Cut(strings.TrimPrefix(value, "<"), ">")
		if !ok || !strings.Contains(params, `rel="next"`) {
			continue
		}
		if u, err := url.Parse(target); err == nil {
			return u.Query().Get("cursor")
		}
	}
	return ""
}

func (c *Client) getJSON(ctx context.Context, path string, q url.Values, v any) error {
	return c.call(ctx, http.MethodGet, path, q, nil, nil, func(resp *http.Response) error { return decode(resp, v) })
}

// post sends a request that may be repeated, until it is answered for good.
func (c *Client) post(ctx context.Context, path string, header http.Header, body []byte, v any) error {
	for attempt := 1; ; attempt++ {
		err := c.call(ctx, http.MethodPost, path, nil, header, body, func(resp *http.Response) error { return decode(resp, v) })
		if err == nil || attempt == 4 || !transient(err) {
			return err
		}
		if err := c.wait(ctx, attempt); err != nil {
			return err
		}
	}
}

// once sends a request with a JSON body that must not be repeated.
func (c *Client) once(ctx context.Context, method, path string, q url.Values, header http.Header, in, out any) error {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return fmt.Errorf("%s %s: %w", method, path, err)
		}
		if header == nil {
			header = http.Header{}
		}
		header.Set("Content-Type", "application/json")
	}
	return c.call(ctx, method, path, q, header, body, func(resp *http.Response) error { return decode(resp, out) })
}

func (c *Client) getRaw(ctx context.Context, path string, q url.Values) (body []byte, err error) {
	err = c.call(ctx, http.MethodGet, path, q, nil, nil, func(resp *http.Response) error {
		body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
		return err
	})
	return body, err
}

func decode(resp *http.Response, v any) error {
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(v); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	return nil
}

// call sends one request and hands a good answer to use. A bad one becomes a
// *Problem.
func (c *Client) call(ctx context.Context, method, path string, q url.Values, header http.Header, body []byte, use func(*http.Response) error) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	resp, err := c.send(ctx, method, path, q, header, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := use(resp); err != nil {
		return fmt.Errorf("%s %s: %w", method, c.base.JoinPath(path).Redacted(), err)
	}
	return nil
}

// send returns a response whose status is 2xx; the caller closes its body.
func (c *Client) send(ctx context.Context, method, path string, q url.Values, header http.Header, body []byte) (*http.Response, error) {
	u := *c.base
	u.Path, u.RawPath = "", ""
	target := u.String() + strings.TrimRight(c.base.EscapedPath(), "/") + path
	if len(q) > 0 {
		target += "?" + q.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, target, err)
	}
	for name, values := range header {
		req.Header[name] = values
	}
	req.Header.Set("User-Agent", c.userAgent)
	if req.Header.Get("Accept") == "" {
		req.Header.Set("Accept", "application/json")
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		// *url.Error names the method and the address already.
		return nil, fmt.Errorf("reach Dray: %w", err)
	}
	if resp.StatusCode/100 != 2 {
		defer resp.Body.Close()
		return nil, problemOf(resp)
	}
	return resp, nil
}

// transient reports whether trying again may help: the network broke, or the
// server said that it cannot answer at the moment.
func transient(err error) bool {
	if errors.Is(err, context.Canceled) {
		return false
	}
	var p *Problem
	if errors.As(err, &p) {
		switch p.Status {
		case http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			return true
		}
		return false
	}
	return true
}

// wait sleeps before the next attempt, or returns ctx's error.
func (c *Client) wait(ctx context.Context, attempt int) error {
	d := c.backoff
	for range attempt - 1 {
		d = min(2*d, maxBackoff)
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
