package registry

import (
	"context"
	"net/http"
	"strings"

	ggcr "github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/dray-project/dray/pipeline"
)

// Capabilities are what a registry turned out to offer.
type Capabilities struct {
	// Host as requests name it.
	Host string `json:"host"`
	// PlainHTTP: it is reached without TLS, as set.
	PlainHTTP bool `json:"plainHTTP"`
	// Authenticated: the credentials that are set were accepted. False when none
	// are set.
	Authenticated bool `json:"authenticated"`
	// Repository that was asked about; empty when only a host was given, and then
	// the fields below are false.
	Repository string `json:"repository,omitempty"`
	// Referrers: the repository has the referrers API. Without it, the fallback
	// tag is used.
	Referrers bool `json:"referrers"`
	// Push: an upload could be started (it was cancelled at once). PushError says
	// why not.
	Push      bool   `json:"push"`
	PushError string `json:"pushError,omitempty"`
}

// Reach tries to reach a registry ("registry.example:5000") or a repository in
// it ("registry.example:5000/team/app") with the credentials that are set. It
// leaves nothing behind.
func (r *Registry) Reach(ctx context.Context, target string) (Capabilities, error) {
	host, path, _ := strings.Cut(target, "/")
	if path == "" {
		path = "dray/probe" // its existence does not matter: only the registry is asked
	}
	p, err := r.open(host+"/"+path, ggcr.PullScope)
	if err != nil {
		return Capabilities{}, err
	}
	set := r.hosts[p.host]
	c := Capabilities{Host: p.host, PlainHTTP: set.PlainHTTP, Authenticated: set.Username != ""}
	if err := p.reach(ctx); err != nil {
		return c, err
	}
	if !strings.Contains(target, "/") {
		return c, nil
	}
	c.Repository = p.String()
	// The digest of the empty string: nothing refers to it.
	nothing := hash(nil)
	if _, c.Referrers, err = p.referrers(ctx, nothing); err != nil {
		return c, err
	}
	if p, err = r.open(target, ggcr.PushScope); err != nil {
		return c, err
	}
	upload, _, err := p.start(ctx, "", descriptor{Digest: nothing})
	if err == nil {
		c.Push = true
		p.abandon(ctx, upload)
		return c, nil
	}
	err = r.explain(p.host, "start an upload to", p.String(), err)
	if pipeline.IsPermanent(err) {
		c.PushError = err.Error()
		return c, nil
	}
	return c, err
}

// reach asks the base endpoint whether this is a registry that takes our token;
// the repository's name is part of the token's scope.
func (p *repository) reach(ctx context.Context) error {
	err := p.r.again(ctx, func() error {
		base := p.url("", nil)
		base.Path = "/v2/"
		res, err := p.do(ctx, request{method: http.MethodGet, url: base})
		if err != nil {
			return err
		}
		defer closeBody(res)
		return checkStatus(res, http.StatusOK)
	})
	return p.r.explain(p.host, "reach", "registry "+p.host, err)
}
