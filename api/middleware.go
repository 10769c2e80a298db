package api

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"runtime/debug"
	"strings"
	"time"

	"github.com/dray-project/dray/pipeline"
)

// info travels with a request and collects what its log line will say.
type info struct {
	id    string
	url   *url.URL
	token *pipeline.Token
	// asked are the needs that the token's bearer was found to meet.
	asked []need
	attrs []slog.Attr
}

type infoKey struct{}

// infoOf returns the request's info, or an empty one outside a request.
func infoOf(ctx context.Context) *info {
	if i, ok := ctx.Value(infoKey{}).(*info); ok {
		return i
	}
	return &info{}
}

// note adds an attribute to the request's log line.
func note(ctx context.Context, attr slog.Attr) {
	i := infoOf(ctx)
	i.attrs = append(i.attrs, attr)
}

// writeTimeout bounds a whole response that is no stream, and each write of one
// that is.
const writeTimeout = time.Minute

// middleware gives every request an id, a log line, the security headers, a
// deadline for its writes, and a problem where the mux or a panic would give
// plain text or nothing.
func (a *API) middleware(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		start := a.Now()
		i := &info{id: newRequestID(), url: r.URL}
		r = r.WithContext(context.WithValue(r.Context(), infoKey{}, i))
		w := &response{ResponseWriter: rw}
		h := w.Header()
		h.Set("X-Request-Id", i.id)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		h.Set("Cache-Control", "no-store")
		if r.TLS != nil {
			h.Set("Strict-Transport-Security", "max-age=31536000")
		}
		// A recorder in a test has no deadlines, and a broken connection will show
		// itself at the first write.
		_ = http.NewResponseController(rw).SetWriteDeadline(time.Now().Add(writeTimeout))

		aborted := true
		defer func() {
			if aborted && w.status == 0 {
				w.status = 499 // nothing was answered
			}
			a.logRequest(r, w, i, start)
		}()
		a.serve(mux, w, r)
		aborted = false
	})
}

// serve calls the mux and catches panics.
func (a *API) serve(mux *http.ServeMux, w *response, r *http.Request) {
	defer func() {
		v := recover()
		if v == nil {
			return
		}
		if err, ok := v.(error); ok && errors.Is(err, http.ErrAbortHandler) {
			panic(v)
		}
		if r.Context().Err() == nil {
			a.Log.ErrorContext(r.Context(), "panic while serving a request", "request", infoOf(r.Context()).id,
				"panic", fmt.Sprint(v), "stack", string(debug.Stack()))
		}
		if w.status != 0 {
			// Half an answer is out; the caller must see that it broke off.
			panic(http.ErrAbortHandler)
		}
		a.fail(w, r, internalProblem(r.Context()))
	}()
	handler, pattern := mux.Handler(r)
	if pattern != "" {
		mux.ServeHTTP(w, r)
		return
	}
	// The mux has no route: take its verdict, and say it as a problem.
	probe := &verdict{header: http.Header{}}
	handler.ServeHTTP(probe, r)
	if probe.status == http.StatusMethodNotAllowed {
		allow := probe.header.Get("Allow")
		w.Header().Set("Allow", allow)
		a.fail(w, r, newProblem(r.Context(), probe.status, problemMethodNotAllowed,
			fmt.Sprintf("%s is not allowed here; allowed: %s", r.Method, allow)))
		return
	}
	a.fail(w, r, newProblem(r.Context(), http.StatusNotFound, problemNotFound,
		"there is nothing at this address; /openapi.json lists what there is"))
}

func (a *API) logRequest(r *http.Request, w *response, i *info, start time.Time) {
	level := slog.LevelInfo
	if strings.HasSuffix(r.Pattern, "/livez") || strings.HasSuffix(r.Pattern, "/readyz") {
		level = slog.LevelDebug
	}
	pattern := r.Pattern
	if _, path, ok := strings.Cut(pattern, " "); ok {
		pattern = path
	}
	// The pattern, not the path: a path may hold anything, a secret included.
	attrs := []slog.Attr{
		slog.String("request", i.id),
		slog.String("method", r.Method),
		slog.String("pattern", pattern),
		slog.Int("status", w.status),
		slog.Duration("duration", a.Now().Sub(start)),
		slog.Int64("bytes", w.bytes),
	}
	if i.token != nil {
		attrs = append(attrs, slog.String("token", i.token.Name))
	}
	a.Log.LogAttrs(r.Context(), level, "request", append(attrs, i.attrs...)...)
}

func newRequestID() string {
	var b [12]byte
	if _, err := rand.Read(b[:]); err != nil {
		panic(err) // crypto/rand never fails on a supported system
	}
	return hex.EncodeToString(b[:])
}

// response remembers what was answered.
type response struct {
	http.ResponseWriter
	status int
	bytes  int64
}

func (w *response) WriteHeader(status int) {
	if w.status == 0 && status >= 200 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *response) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(b)
	w.bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController reach the connection.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// verdict takes an answer's status and header and drops the rest.
type verdict struct {
	header http.Header
	status int
}

func (v *verdict) Header() http.Header         { return v.header }
func (v *verdict) WriteHeader(status int)      { v.status = status }
func (v *verdict) Write(b []byte) (int, error) { return len(b), nil }
