package registry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/dray-project/dray/pipeline"
)

// transport is the one way to every registry.
type transport struct {
	base   *http.Transport
	guard  guard
	limits *limiters
	timing Timing
	log    *slog.Logger
	now    func() time.Time
}

func newTransport(hosts map[string]pipeline.RegistryHost, parallel int, timing Timing, log *slog.Logger, now func() time.Time) *transport {
	dialer := &net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second, Control: refuseLinkLocal}
	return &transport{
		base: &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           dialer.DialContext,
			TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12},
			ForceAttemptHTTP2:     true,
			MaxIdleConns:          4 * parallel,
			MaxIdleConnsPerHost:   2 * parallel,
			IdleConnTimeout:       90 * time.Second,
			TLSHandshakeTimeout:   10 * time.Second,
			ResponseHeaderTimeout: timing.Response,
			// Digests are of the bytes as the registry keeps them.
			DisableCompression: true,
		},
		guard:  guard{hosts},
		limits: &limiters{parallel: parallel},
		timing: timing,
		log:    log,
		now:    now,
	}
}

func userAgent(t http.RoundTripper) http.RoundTripper { return ggcr.NewUserAgent(t, "dray") }

// refuseLinkLocal keeps redirects and token realms away from the addresses
// under which clouds hand out a machine's own credentials.
func refuseLinkLocal(_, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("address %q: %w", address, err)
	}
	if a := ap.Addr().Unmap(); a.IsLinkLocalUnicast() || a.IsLinkLocalMulticast() || a == netip.MustParseAddr("fd00:ec2::254") {
		return pipeline.Permanent(fmt.Errorf("address %s is link-local: no registry is reached there", a))
	}
	return nil
}

var (
	errStalled = errors.New("the transfer stalled")
	errDone    = errors.New("the response was read")
)

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(in *http.Request) (*http.Response, error) {
	if in.Body != nil {
		defer in.Body.Close() //nolint:errcheck // a request body has nothing to say when closed
	}
	admitted, err := t.guard.admit(in)
	if err != nil {
		return nil, err
	}
	ctx := in.Context()
	host := admitted.URL.Host
	lim := t.limits.of(host)
	var asked time.Duration // what the registry asked us to wait so far
	for attempt := 1; ; attempt++ {
		release, err := t.limits.slot(ctx, host)
		if err != nil {
			return nil, err
		}
		if err := lim.rest(ctx); err != nil {
			release()
			return nil, err
		}
		res, err := t.try(admitted, release)
		wait, again := t.verdict(admitted, res, err, attempt)
		if wait.asked > 0 {
			asked += wait.asked
			again = again && asked <= t.timing.MaxWait
			if wait.asked <= t.timing.MaxWait {
				lim.pause(time.Now().Add(wait.asked))
			}
		}
		if !again || ctx.Err() != nil {
			if err != nil && attempt > 1 {
				err = &exhaustedError{attempt, err}
			}
			if res != nil {
				res.Request = in
				if admitted.URL.Scheme != in.URL.Scheme {
					res.Request = admitted // a redirect's origin must be seen as it was
				}
			}
			return res, err
		}
		t.log.DebugContext(ctx, "repeating a request to a registry", "host", host, "method", in.Method,
			"path", in.URL.Path, "attempt", attempt, "status", status(res), "error", err)
		if res != nil {
			_, _ = io.CopyN(io.Discard, res.Body, 64<<10)
			_ = res.Body.Close()
		}
		if wait.backoff > 0 {
			if err := sleep(ctx, wait.backoff); err != nil {
				return nil, err
			}
		}
	}
}

// exhaustedError: the transport has repeated the request often enough.
type exhaustedError struct {
	attempts int
	err      error
}

func (e *exhaustedError) Error() string { return fmt.Sprintf("%v (tried %d times)", e.err, e.attempts) }
func (e *exhaustedError) Unwrap() error { return e.err }

func status(res *http.Response) int {
	if res == nil {
		return 0
	}
	return res.StatusCode
}

// maxAsked is how often a request is sent to a host that asks for patience.
const maxAsked = 10

type pauses struct{ asked, backoff time.Duration }

// verdict says whether to send the request again, and after which wait.
func (t *transport) verdict(req *http.Request, res *http.Response, err error, attempt int) (pauses, bool) {
	replayable := req.Body == nil || req.Body == http.NoBody || req.GetBody != nil
	idempotent := req.Method != http.MethodPost && req.Method != http.MethodPatch
	var w pauses
	if err != nil {
		var verify *tls.CertificateVerificationError
		var notTLS tls.RecordHeaderError
		if pipeline.IsPermanent(err) || errors.As(err, &verify) || errors.As(err, &notTLS) {
			return w, false
		}
		// What was never sent can be sent again whatever it is.
		var dial *net.OpError
		unsent := errors.As(err, &dial) && dial.Op == "dial"
		w.backoff = t.backoff(attempt)
		return w, replayable && (idempotent || unsent) && attempt < t.timing.Attempts
	}
	switch res.StatusCode {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		if w.asked = t.retryAfter(res); w.asked > 0 {
			// The pause is the limiter's; the bound is the sum of the waits. One that
			// asks for no rest and limits again gets some all the same.
			w.asked = max(w.asked, t.backoff(attempt))
			return w, replayable && attempt < maxAsked
		}
		w.backoff = t.backoff(attempt)
		return w, replayable && attempt < t.timing.Attempts
	case http.StatusRequestTimeout, http.StatusInternalServerError, http.StatusBadGateway, http.StatusGatewayTimeout:
		w.backoff = t.backoff(attempt)
		return w, replayable && idempotent && attempt < t.timing.Attempts
	}
	return w, false
}

// backoff doubles from Timing.Backoff, plus or minus a quarter.
func (t *transport) backoff(attempt int) time.Duration {
	d := t.timing.Backoff << min(attempt-1, 8)
	return d - d/4 + rand.N(d/2+1)
}

// retryAfter reads the header in both its forms (RFC 9110 section 10.2.3); 0
// when there is none.
func (t *transport) retryAfter(res *http.Response) time.Duration {
	v := strings.TrimSpace(res.Header.Get("Retry-After"))
	if s, err := strconv.ParseUint(v, 10, 31); err == nil {
		return max(time.Duration(s)*time.Second, time.Millisecond)
	}
	if at, err := http.ParseTime(v); err == nil {
		return max(at.Sub(t.now()), time.Millisecond)
	}
	return 0
}

// try sends the request once. Of a GET, whose answer is what takes time, the
// slot is given back when that was read; of everything else when the answer is
// there. A library may send another request while it holds the answer to a PUT
// open; with all slots held like that, everybody would wait for everybody.
func (t *transport) try(req *http.Request, release func()) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	out := req.WithContext(ctx)
	watch := newWatch(t.timing.Stall, func() { cancel(errStalled) })
	if req.GetBody != nil {
		body, err := req.GetBody()
		if err != nil {
			release()
			cancel(errDone)
			return nil, err
		}
		out.Body = body
	}
	if out.Body != nil && out.Body != http.NoBody {
		out.Body = &sending{out.Body, watch}
	}
	res, err := t.base.RoundTrip(out)
	watch.stop()
	if err != nil {
		if errors.Is(context.Cause(ctx), errStalled) {
			err = fmt.Errorf("%w: %s took no byte for %s", errStalled, req.URL.Host, t.timing.Stall)
		}
		release()
		cancel(errDone)
		return nil, err
	}
	if req.Method != http.MethodGet {
		release()
	}
	body := &receiving{ReadCloser: res.Body, watch: watch, ctx: ctx, host: req.URL.Host, stall: t.timing.Stall}
	body.finish = sync.OnceFunc(func() {
		watch.stop()
		release()
		cancel(errDone)
	})
	// Callers that forget to close a body give its slot back with their context.
	context.AfterFunc(ctx, body.finish)
	res.Body = body
	return res, nil
}

// watch calls expire when it was started and not stopped for the given time.
type watch struct {
	after time.Duration
	timer *time.Timer
}

func newWatch(after time.Duration, expire func()) *watch {
	w := &watch{after: after, timer: time.AfterFunc(after, expire)}
	w.timer.Stop()
	return w
}

func (w *watch) start() { w.timer.Reset(w.after) }
func (w *watch) stop()  { w.timer.Stop() }

// sending watches how long the registry takes to accept what was read. The time
// that the body's source takes is the source's own affair.
type sending struct {
	io.ReadCloser
	watch *watch
}

func (s *sending) Read(p []byte) (int, error) {
	s.watch.stop()
	n, err := s.ReadCloser.Read(p)
	if err == nil {
		s.watch.start()
	}
	return n, err
}

func (s *sending) Close() error {
	s.watch.stop()
	return s.ReadCloser.Close()
}

// receiving is a response's body that holds a slot and watches for stalls.
type receiving struct {
	io.ReadCloser
	watch  *watch
	ctx    context.Context
	host   string
	stall  time.Duration
	finish func()
}

func (r *receiving) Read(p []byte) (int, error) {
	r.watch.start()
	n, err := r.ReadCloser.Read(p)
	r.watch.stop()
	if err != nil {
		if errors.Is(context.Cause(r.ctx), errStalled) {
			err = fmt.Errorf("%w: %s sent no byte for %s", errStalled, r.host, r.stall)
		}
		r.finish()
	}
	return n, err
}

func (r *receiving) Close() error {
	err := r.ReadCloser.Close()
	r.finish()
	return err
}
