package oci

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"

	"github.com/dray-project/dray/pipeline"
)

// MaxManifest is how large a manifest, index or page of referrers may be, in
// bytes. The distribution specification asks registries to take 4 MiB at least.
const MaxManifest = 4 << 20

// guard refuses plain http where it was not asked for, because the library
// would fall back to it for private addresses and send the password along, and
// cuts off manifests that are too large.
type guard struct {
	inner http.RoundTripper
	hosts map[string]pipeline.RegistryHost
}

func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme == "http" {
		h, listed := g.hosts[req.URL.Host]
		switch {
		case listed && !h.PlainHTTP:
			return nil, fmt.Errorf("plain http to %s refused: its setting asks for https", req.URL.Host)
		case !listed && !loopback(req.URL.Hostname()):
			return nil, fmt.Errorf("plain http to %s refused: list the host as one on plain http if that is meant", req.URL.Host)
		}
	}
	res, err := g.inner.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if p := req.URL.Path; strings.Contains(p, "/manifests/") || strings.Contains(p, "/referrers/") {
		res.Body = &limited{ReadCloser: res.Body, left: MaxManifest, what: req.URL.Path}
	}
	return res, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// TooLarge says that something exceeded a bound.
type TooLarge struct {
	What  string
	Bound int64 // bytes
}

func (e *TooLarge) Error() string {
	return fmt.Sprintf("%s is larger than %d bytes", e.What, e.Bound)
}

type limited struct {
	io.ReadCloser
	left int64
	what string
}

func (l *limited) Read(p []byte) (int, error) {
	if int64(len(p)) > l.left+1 {
		p = p[:l.left+1]
	}
	n, err := l.ReadCloser.Read(p)
	if l.left -= int64(n); l.left < 0 {
		return 0, &TooLarge{What: l.what, Bound: MaxManifest}
	}
	return n, err
}
