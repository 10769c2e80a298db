package registry

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/dray-project/dray/pipeline"
)

// guard decides what may be sent where.
type guard struct {
	hosts map[string]pipeline.RegistryHost
}

// admit returns the request as it may be sent, or why it may not.
func (g guard) admit(in *http.Request) (*http.Request, error) {
	out := in
	change := func() {
		if out == in {
			out = in.Clone(in.Context())
			out.GetBody = in.GetBody
		}
	}
	if in.URL.User != nil {
		// A Location must not choose the credentials.
		change()
		out.URL.User = nil
	}
	if h := in.URL.Host; h != strings.ToLower(h) {
		change()
		out.URL.Host = strings.ToLower(h)
	}
	host := g.hosts[out.URL.Host]
	switch {
	case in.URL.Scheme == "https" && host.PlainHTTP:
		// The client library tries https first; the setting knows better.
		change()
		out.URL.Scheme = "http"
	case in.URL.Scheme == "http" && !host.PlainHTTP && !redirectedFromPlain(in):
		return nil, pipeline.Permanent(fmt.Errorf("plain http to %s is refused: if it has no TLS, "+
			"set plain_http for it under registries", out.URL.Host))
	}
	if out.Header.Get("Authorization") == "" {
		return out, nil
	}
	if leftOrigin(out) {
		change()
		out.Header.Del("Authorization")
		return out, nil
	}
	user, password, ok := out.BasicAuth()
	if !ok {
		return out, nil
	}
	var owner string
	for name, h := range g.hosts {
		if h.Username == "" || h.Username != user || h.Password != password {
			continue
		}
		if out.URL.Host == name || (h.TokenHost != "" && out.URL.Host == strings.ToLower(h.TokenHost)) {
			return out, nil
		}
		owner = name
	}
	if owner == "" {
		return out, nil // not ours to judge
	}
	return nil, pipeline.Permanent(fmt.Errorf("%s asks for its credentials to be sent to %s: refused; "+
		"if that is its token service, set token_host to %s for %s under registries",
		owner, out.URL.Host, out.URL.Host, owner))
}

// redirectedFromPlain: a registry that is reached in the clear may keep its
// blobs at another place that is.
func redirectedFromPlain(req *http.Request) bool {
	return req.Response != nil && req.Response.Request != nil && req.Response.Request.URL.Scheme == "http"
}

// leftOrigin reports whether redirects led the request away from where it was
// sent first: to another host or port, or from https to http.
func leftOrigin(req *http.Request) bool {
	for r := req; r.Response != nil && r.Response.Request != nil; {
		r = r.Response.Request
		if !strings.EqualFold(r.URL.Host, req.URL.Host) || (r.URL.Scheme == "https" && req.URL.Scheme == "http") {
			return true
		}
	}
	return false
}
