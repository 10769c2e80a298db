package registry

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"unicode"

	ggcr "github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/dray-project/dray/pipeline"
)

// statusError is a registry's answer that was not the one hoped for.
type statusError struct {
	status int
	codes  []string // "MANIFEST_UNKNOWN"
	detail string   // the registry's words, cleaned
}

func (e *statusError) Error() string {
	s := fmt.Sprintf("%d %s", e.status, http.StatusText(e.status))
	if e.detail != "" {
		s += " (" + e.detail + ")"
	}
	return s
}

func (e *statusError) has(code string) bool {
	for _, c := range e.codes {
		if c == code {
			return true
		}
	}
	return false
}

// checkStatus returns nil if the status is one of those, else a statusError
// with what the body says (distribution specification, "Error Codes").
func checkStatus(res *http.Response, want ...int) error {
	for _, w := range want {
		if res.StatusCode == w {
			return nil
		}
	}
	e := &statusError{status: res.StatusCode}
	if res.Request == nil || res.Request.Method != http.MethodHead {
		body, _ := io.ReadAll(io.LimitReader(res.Body, 64<<10))
		var parsed struct {
			Errors []struct {
				Code    string `json:"code"`
				Message string `json:"message"`
			} `json:"errors"`
		}
		if json.Unmarshal(body, &parsed) == nil {
			var parts []string
			for _, d := range parsed.Errors {
				e.codes = append(e.codes, d.Code)
				parts = append(parts, clean(strings.TrimSpace(d.Code+": "+d.Message), 200))
			}
			e.detail = clean(strings.Join(parts, "; "), 400)
		}
	}
	return e
}

// clean makes a foreign text harmless for logs and pages, and short.
func clean(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s)
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "") + "…"
	}
	return s
}

func statusOf(err error) int {
	var s *statusError
	if errors.As(err, &s) {
		return s.status
	}
	return 0
}

// explain puts an error of talking to a host into words, and marks what trying
// again cannot mend. object is what it was about: "manifest sha256:… of
// registry.example/team/app".
func (r *Registry) explain(host, op, object string, err error) error {
	if err == nil {
		return nil
	}
	var told *toldError
	if errors.As(err, &told) {
		return err
	}
	if fromLibrary := (*ggcr.Error)(nil); errors.As(err, &fromLibrary) {
		s := &statusError{status: fromLibrary.StatusCode}
		for _, d := range fromLibrary.Errors {
			s.codes = append(s.codes, string(d.Code))
			s.detail = clean(string(d.Code)+": "+d.Message, 200)
		}
		err = s
	}
	err = withoutURL(err)
	what := fmt.Sprintf("%s %s", op, object)
	var status *statusError
	switch {
	case errors.As(err, &status):
		return &toldError{what, r.explainStatus(host, status)}
	case pipeline.IsPermanent(err), errors.Is(err, context.Canceled):
		return &toldError{what, err}
	}
	var verify *tls.CertificateVerificationError
	var notTLS tls.RecordHeaderError
	var dns *net.DNSError
	var op2 *net.OpError
	switch {
	case errors.As(err, &verify):
		err = pipeline.Permanent(fmt.Errorf("registry %s shows a certificate that this machine does not trust: %w "+
			"(add its authority to the system's certificates or to SSL_CERT_FILE)", host, err))
	case errors.As(err, &notTLS) || strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		err = pipeline.Permanent(fmt.Errorf("registry %s does not speak TLS: %w (set plain_http for it under registries)", host, err))
	case errors.As(err, &dns), errors.As(err, &op2) && op2.Op == "dial":
		err = fmt.Errorf("registry %s cannot be reached: %w (check the address and the network)", host, err)
	default:
		err = fmt.Errorf("registry %s: %w", host, err)
	}
	return &toldError{what, err}
}

func (r *Registry) explainStatus(host string, s *statusError) error {
	set := r.hosts[host]
	switch s.status {
	case http.StatusUnauthorized:
		if set.Username == "" {
			return pipeline.Permanent(fmt.Errorf("registry %s wants credentials: %w (set username and password for it under registries)", host, s))
		}
		return pipeline.Permanent(fmt.Errorf("registry %s does not accept the credentials of %q: %w "+
			"(check username and password for it under registries)", host, set.Username, s))
	case http.StatusForbidden:
		who := "an anonymous client"
		hint := "set username and password for it under registries"
		if set.Username != "" {
			who = fmt.Sprintf("%q", set.Username)
			hint = "give this user the right, or set another username and password for it under registries"
		}
		return pipeline.Permanent(fmt.Errorf("registry %s does not allow this to %s: %w (%s)", host, who, s, hint))
	case http.StatusNotFound:
		return fmt.Errorf("registry %s: %w: %w", host, s, pipeline.ErrNotFound)
	case http.StatusTooManyRequests:
		return fmt.Errorf("registry %s still limits our requests after waiting: %w", host, s)
	case http.StatusRequestTimeout, http.StatusConflict:
		return fmt.Errorf("registry %s: %w", host, s)
	}
	// A blob or child that went missing meanwhile is sent again next time.
	if s.status >= 500 || s.has("MANIFEST_BLOB_UNKNOWN") || s.has("BLOB_UNKNOWN") ||
		s.has("BLOB_UPLOAD_UNKNOWN") || s.has("BLOB_UPLOAD_INVALID") {
		return fmt.Errorf("registry %s failed: %w", host, s)
	}
	return pipeline.Permanent(fmt.Errorf("registry %s refused: %w", host, s))
}

// toldError already names its object, host and cause.
type toldError struct {
	what string
	err  error
}

func (e *toldError) Error() string { return e.what + ": " + e.err.Error() }
func (e *toldError) Unwrap() error { return e.err }

// withoutURL drops the URL that net/http puts before an error: those of blobs
// carry signatures in their query.
func withoutURL(err error) error {
	var u *url.Error
	for errors.As(err, &u) {
		err = u.Err
	}
	return err
}

// refuse is a permanent error about content.
func refuse(format string, args ...any) error {
	return pipeline.Permanent(fmt.Errorf(format+": %w", append(args, pipeline.ErrInvalid)...))
}
