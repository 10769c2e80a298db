package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/dray-project/dray/pipeline"
)

// session is an authenticated way to one registry, for certain scopes.
type session struct {
	busy   chan struct{} // full while the handshake is under way
	client *http.Client
}

// repository is one repository with the right to do something in it.
type repository struct {
	r    *Registry
	name name.Repository
	// asked is the name as the caller wrote it, which locks are taken under.
	asked string
	host  string
	// scopes of the token: what this repository is used for.
	scopes []string
}

// open parses the name. Actions are ggcr.PullScope or ggcr.PushScope (which
// includes pulling).
func (r *Registry) open(repo, actions string) (*repository, error) {
	first, _, ok := strings.Cut(repo, "/")
	if !ok || strings.Contains(repo, "@") {
		return nil, refuse("repository %q: want registry/path without tag or digest", repo)
	}
	n, err := name.NewRepository(strings.ToLower(first)+repo[len(first):], append(r.NameOptions(first), name.StrictValidation)...)
	if err != nil {
		return nil, refuse("repository %q: %w", repo, err)
	}
	return &repository{r: r, name: n, asked: repo, host: n.RegistryStr(), scopes: []string{n.Scope(actions)}}, nil
}

// with adds a right in another repository of the same registry, for mounts.
func (p *repository) with(scope string) *repository {
	q := *p
	q.scopes = append([]string{p.scopes[0]}, scope)
	return &q
}

func (p *repository) String() string { return p.host + "/" + p.name.RepositoryStr() }

// isOpen reports whether the host is asked without a handshake: no credentials are
// set for it, and it has not asked for any.
func (p *repository) isOpen() bool {
	return p.r.hosts[p.host].Username == "" && !p.r.learned.has(p.r.learned.auth, p.host)
}

// client returns the authenticated client, after a handshake when it is the
// first time.
func (p *repository) client(ctx context.Context) (*http.Client, error) {
	if p.isOpen() {
		return p.r.bare, nil
	}
	key := p.host + " " + strings.Join(p.scopes, " ")
	p.r.mu.Lock()
	s, ok := p.r.sessions[key]
	if !ok {
		s = &session{busy: make(chan struct{}, 1)}
		p.r.sessions[key] = s
	}
	p.r.mu.Unlock()
	select {
	case s.busy <- struct{}{}:
		defer func() { <-s.busy }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if s.client != nil {
		return s.client, nil
	}
	auth, err := authn.Resolve(ctx, p.r.Keychain(), p.name)
	if err != nil {
		return nil, err
	}
	rt, err := ggcr.NewWithContext(ctx, p.name.Registry, auth, p.r.roots, p.scopes)
	if answer := (*ggcr.Error)(nil); errors.As(err, &answer) && answer.StatusCode == http.StatusNotFound {
		// Not to be taken for a missing manifest.
		return nil, fmt.Errorf("%s does not answer as a registry: GET /v2/ or its token service is not found (404)", p.host)
	}
	if err != nil {
		return nil, err
	}
	s.client = httpClient(rt)
	return s.client, nil
}

func httpClient(rt http.RoundTripper) *http.Client {
	return &http.Client{Transport: rt, CheckRedirect: func(_ *http.Request, via []*http.Request) error {
		if len(via) > 5 {
			return errors.New("more than 5 redirects")
		}
		return nil
	}}
}

// url of something in the repository: path is "manifests/…" or "blobs/…".
func (p *repository) url(path string, query url.Values) *url.URL {
	scheme := "https"
	if p.r.hosts[p.host].PlainHTTP {
		scheme = "http"
	}
	return &url.URL{
		Scheme: scheme, Host: p.host,
		Path: "/v2/" + p.name.RepositoryStr() + "/" + path, RawQuery: query.Encode(),
	}
}

type request struct {
	method string
	url    *url.URL
	header http.Header
	body   io.Reader // a *bytes.Reader can be sent again, a stream cannot
	size   int64     // of a stream
}

// errHandshake: the host turned out to want a handshake while slots were held,
// which those who are at it may need.
var errHandshake = pipeline.Permanent(errors.New("the registry wants a handshake first"))

// do sends a request. The caller closes the body.
func (p *repository) do(ctx context.Context, q request) (*http.Response, error) {
	open := p.isOpen()
	client, err := p.client(ctx)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, q.method, q.url.String(), q.body)
	if err != nil {
		return nil, pipeline.Permanent(err)
	}
	for k, v := range q.header {
		req.Header[k] = v
	}
	if q.size > 0 {
		req.ContentLength = q.size
	}
	res, err := client.Do(req)
	if err != nil || !open {
		return res, err
	}
	known := p.r.learned
	switch {
	case res.StatusCode == http.StatusUnauthorized:
		known.note(known.auth, p.host)
		if req.Body != nil && req.Body != http.NoBody && req.GetBody == nil {
			return res, nil // a stream cannot be sent again; its owner will
		}
		closeBody(res)
		if holds(ctx, p.host) {
			return nil, errHandshake
		}
		if req.GetBody != nil {
			if q.body, err = req.GetBody(); err != nil {
				return nil, err
			}
			q.size = req.ContentLength
		}
		return p.do(ctx, q)
	case res.StatusCode < 400 || strings.HasPrefix(res.Header.Get("Docker-Distribution-Api-Version"), "registry/"):
		known.note(known.proven, p.host)
	case res.StatusCode == http.StatusNotFound && !known.has(known.proven, p.host):
		if err := p.prove(ctx); err != nil {
			closeBody(res)
			return nil, err
		}
		known.note(known.proven, p.host)
	}
	return res, nil
}

// prove asks a host that knows nothing of what it was asked for whether it is a
// registry at all: its "not found" is not to be taken for a missing manifest.
func (p *repository) prove(ctx context.Context) error {
	base := p.url("", nil)
	base.Path = "/v2/"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base.String(), nil)
	if err != nil {
		return pipeline.Permanent(err)
	}
	res, err := p.r.bare.Do(req)
	if err != nil {
		return err
	}
	defer closeBody(res)
	if res.StatusCode == http.StatusNotFound {
		return fmt.Errorf("%s does not answer as a registry: GET /v2/ is not found (404)", p.host)
	}
	return nil
}

// closeBody lets the connection be used again.
func closeBody(res *http.Response) {
	_, _ = io.CopyN(io.Discard, res.Body, 32<<10)
	_ = res.Body.Close()
}

// readBody reads at most limit bytes; a longer body is refused for good.
func readBody(res *http.Response, limit int64) ([]byte, error) {
	if res.ContentLength > limit {
		return nil, refuse("the answer has %d bytes, more than the limit of %d", res.ContentLength, limit)
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(body)) > limit {
		return nil, refuse("the answer has more bytes than the limit of %d", limit)
	}
	return body, nil
}

// again runs f until it succeeds, fails for good, or was tried often enough. It
// is for faults that the transport does not see: bodies that break off or do
// not hash to their digest.
func (r *Registry) again(ctx context.Context, f func() error) error {
	for attempt := 1; ; attempt++ {
		err := f()
		if err == nil || attempt >= r.timing.Attempts || ctx.Err() != nil || pipeline.IsPermanent(err) ||
			tried(err) {
			return err
		}
		if err := sleep(ctx, r.transport.backoff(attempt)); err != nil {
			return err
		}
	}
}

// tried: the transport has repeated it already where that could help.
func tried(err error) bool {
	var exhausted *exhaustedError
	var stream *brokenError
	if errors.As(err, &stream) {
		return false
	}
	return statusOf(err) != 0 || errors.As(err, &exhausted)
}

// nextPage is the address in a Link header (distribution specification,
// "Listing Tags"), nil when there is none. It must stay with the registry.
func nextPage(res *http.Response, current *url.URL) (*url.URL, error) {
	for _, link := range res.Header.Values("Link") {
		for _, part := range strings.Split(link, ",") {
			target, params, ok := strings.Cut(strings.TrimSpace(part), ";")
			if !ok || !strings.Contains(strings.ReplaceAll(params, `"`, ""), "rel=next") {
				continue
			}
			next, err := current.Parse(strings.Trim(target, "<> "))
			if err != nil {
				return nil, refuse("the next page's address %q", clean(target, 200))
			}
			if !strings.EqualFold(next.Host, current.Host) {
				return nil, refuse("the next page is at another host, %s", clean(next.Host, 100))
			}
			if next.String() == current.String() {
				return nil, refuse("the next page is the page itself")
			}
			next.Scheme = current.Scheme
			return next, nil
		}
	}
	return nil, nil
}

func imageName(p *repository, ref string) string {
	if strings.HasPrefix(ref, "sha256:") {
		return fmt.Sprintf("%s@%s", p, ref)
	}
	return fmt.Sprintf("%s:%s", p, ref)
}
