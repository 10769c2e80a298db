package registrytest

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Proxy stands before a registry, counts what passes and injects faults.
type Proxy struct {
	// Host to talk to: "127.0.0.1:port", plain http.
	Host string

	backend http.Handler
	mu      sync.Mutex
	faults  []*fault
	seen    []*Request
}

// Request is one request that the proxy received.
type Request struct {
	Method string
	Path   string // with the query
	Header http.Header
	Status int
	// Received and Sent count the bytes of the bodies, as far as they came, once
	// the request is over.
	Received, Sent int64
	// Injected: a fault handled it.
	Injected bool
}

// Fault handles a request instead of the registry, or with its help: registry
// is the way on to the real one.
type Fault func(w http.ResponseWriter, r *http.Request, registry http.Handler)

type fault struct {
	method string
	path   *regexp.Regexp
	times  int
	do     Fault
}

// NewProxy puts a proxy before the registry at that host.
func NewProxy(t testing.TB, registry string) *Proxy {
	t.Helper()
	p := &Proxy{backend: &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "http", registry
			// The registry writes the address that the client used into Location.
			r.Out.Host = r.In.Host
		},
		FlushInterval: -1,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) {
			w.WriteHeader(http.StatusBadGateway)
		},
	}}
	p.Host = Serve(t, p)
	return p
}

// Inject makes the next requests of that method (any when empty) whose path
// matches the expression meet the fault: so many times, or always when times
// is 0. The fault that was injected first is met first.
func (p *Proxy) Inject(method, path string, times int, do Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if times == 0 {
		times = -1
	}
	p.faults = append(p.faults, &fault{method, regexp.MustCompile(path), times, do})
}

// Clear removes the faults and forgets the requests.
func (p *Proxy) Clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults, p.seen = nil, nil
}

// Requests returns what was received, in order. What is not answered yet has
// the status 0.
func (p *Proxy) Requests() []Request {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := make([]Request, len(p.seen))
	for i, r := range p.seen {
		list[i] = *r
	}
	return list
}

// Count returns how many requests of that method (any when empty) had a path
// that matches the expression.
func (p *Proxy) Count(method, path string) int {
	re := regexp.MustCompile(path)
	n := 0
	for _, r := range p.Requests() {
		if (method == "" || r.Method == method) && re.MatchString(r.Path) {
			n++
		}
	}
	return n
}

// Received returns how many bytes came in request bodies whose path matches.
func (p *Proxy) Received(path string) int64 {
	re := regexp.MustCompile(path)
	var n int64
	for _, r := range p.Requests() {
		if re.MatchString(r.Path) {
			n += r.Received
		}
	}
	return n
}

func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	do := p.take(r)
	seen := &Request{Method: r.Method, Path: r.URL.RequestURI(), Header: r.Header.Clone(), Injected: do != nil}
	p.mu.Lock()
	p.seen = append(p.seen, seen)
	p.mu.Unlock()
	body := &countingBody{ReadCloser: r.Body}
	r.Body = body
	// The status is noted before the client can see it, the sizes afterwards.
	out := &recorder{ResponseWriter: w, noted: func(status int) {
		p.mu.Lock()
		defer p.mu.Unlock()
		seen.Status = status
	}}
	defer func() {
		// A fault may abort the connection by panicking with http.ErrAbortHandler.
		p.mu.Lock()
		seen.Received, seen.Sent = body.n.Load(), out.n
		p.mu.Unlock()
	}()
	if do != nil {
		do(out, r, p.backend)
		return
	}
	p.backend.ServeHTTP(out, r)
}

func (p *Proxy) take(r *http.Request) Fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.faults {
		if f.times != 0 && (f.method == "" || f.method == r.Method) && f.path.MatchString(r.URL.RequestURI()) {
			f.times--
			return f.do
		}
	}
	return nil
}

// Status answers with a status and headers (pairs) and an empty body.
func Status(code int, header ...string) Fault {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(code)
	}
}

// Latency waits, then passes the request on.
func Latency(d time.Duration) Fault {
	return func(w http.ResponseWriter, r *http.Request, registry http.Handler) {
		select {
		case <-time.After(d):
			registry.ServeHTTP(w, r)
		case <-r.Context().Done():
		}
	}
}

// Drop closes the connection without an answer.
func Drop() Fault {
	return func(http.ResponseWriter, *http.Request, http.Handler) { panic(http.ErrAbortHandler) }
}

// DropAfter lets the registry do what was asked and then closes the
// connection, so that the client does not learn of it.
func DropAfter() Fault {
	return func(_ http.ResponseWriter, r *http.Request, registry http.Handler) {
		registry.ServeHTTP(discard{http.Header{}}, r)
		panic(http.ErrAbortHandler)
	}
}

// Hang reads nothing and says nothing until the client gives up or the test
// ends.
func Hang() Fault {
	return func(_ http.ResponseWriter, r *http.Request, _ http.Handler) { <-r.Context().Done() }
}

// Truncate sends the registry's answer with its full Content-Length but only
// the first n bytes of the body, and closes the connection.
func Truncate(n int) Fault {
	return func(w http.ResponseWriter, r *http.Request, registry http.Handler) {
		rec := capture(r, registry)
		copyHeader(w.Header(), rec.header)
		w.WriteHeader(rec.status)
		body := rec.body.Bytes()
		_, _ = w.Write(body[:min(n, len(body))])
		if f, ok := w.(http.Flusher); ok {
			f.Flush()
		}
		panic(http.ErrAbortHandler)
	}
}

// Edit passes the registry's answer through a function before it is sent.
// Content-Length follows the body.
func Edit(edit func(status int, header http.Header, body []byte) (int, []byte)) Fault {
	return func(w http.ResponseWriter, r *http.Request, registry http.Handler) {
		rec := capture(r, registry)
		status, body := edit(rec.status, rec.header, rec.body.Bytes())
		copyHeader(w.Header(), rec.header)
		if r.Method != http.MethodHead {
			w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		}
		w.WriteHeader(status)
		if r.Method != http.MethodHead {
			_, _ = w.Write(body)
		}
	}
}

// FlipByte changes one byte in the middle of the body.
func FlipByte() Fault {
	return Edit(func(status int, _ http.Header, body []byte) (int, []byte) {
		if len(body) > 0 {
			body[len(body)/2] ^= 0x20
		}
		return status, body
	})
}

// WrongDigestHeader puts another digest into Docker-Content-Digest.
func WrongDigestHeader() Fault {
	return Edit(func(status int, header http.Header, body []byte) (int, []byte) {
		header.Set("Docker-Content-Digest", "sha256:"+string(bytes.Repeat([]byte("ab"), 32)))
		return status, body
	})
}

// AcceptWithoutStoring reads the body, says 201 and keeps nothing.
func AcceptWithoutStoring() Fault {
	return func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusCreated)
	}
}

type captured struct {
	status int
	header http.Header
	body   bytes.Buffer
}

func (c *captured) Header() http.Header { return c.header }

func (c *captured) WriteHeader(status int) {
	if c.status == 0 {
		c.status = status
	}
}

func (c *captured) Write(b []byte) (int, error) {
	c.WriteHeader(http.StatusOK)
	return c.body.Write(b)
}

func capture(r *http.Request, registry http.Handler) *captured {
	c := &captured{header: http.Header{}}
	registry.ServeHTTP(c, r)
	return c
}

func copyHeader(to, from http.Header) {
	for k, v := range from {
		to[k] = v
	}
}

type discard struct{ header http.Header }

func (d discard) Header() http.Header       { return d.header }
func (discard) WriteHeader(int)             {}
func (discard) Write(b []byte) (int, error) { return len(b), nil }

type countingBody struct {
	io.ReadCloser
	n atomic.Int64 // a transport may still read when its handler has answered
}

func (b *countingBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n.Add(int64(n))
	return n, err
}

type recorder struct {
	http.ResponseWriter
	noted  func(status int)
	status int
	n      int64
}

func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
		r.noted(status)
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.WriteHeader(http.StatusOK)
	}
	n, err := r.ResponseWriter.Write(b)
	r.n += int64(n)
	return n, err
}

func (r *recorder) Flush() {
	if f, ok := r.ResponseWriter.(http.Flusher); ok {
		f.Flush()
	}
}

func (r *recorder) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return r.ResponseWriter.(http.Hijacker).Hijack()
}
