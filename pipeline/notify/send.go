package notify

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/dray-project/dray/pipeline"
)

// Headers of a request.
const (
	HeaderSignature = "X-Dray-Signature-256"
	HeaderDelivery  = "X-Dray-Delivery"
	HeaderEvent     = "X-Dray-Event"
)

// Message is the body of a request. The signature is over all of it.
type Message struct {
	// ID is the same for every attempt: a receiver that has seen it is done.
	ID string `json:"id"`
	// SentAt is when this attempt was made.
	SentAt  time.Time `json:"sentAt"`
	Attempt int       `json:"attempt"` // from 1
	pipeline.Notice
}

// Sign is the value of the signature's header for a body.
func Sign(secret string, body []byte) string {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write(body)
	return "sha256=" + hex.EncodeToString(mac.Sum(nil))
}

// refusedError is an answer that is not a success.
type refusedError struct {
	status int
	// after is how long the receiver asks to be left alone.
	after time.Duration
}

func (e *refusedError) Error() string {
	return fmt.Sprintf("it answered %d %s", e.status, http.StatusText(e.status))
}

func (n *Notifier) send(ctx context.Context, r Receiver, d pipeline.NoticeDelivery) error {
	m := Message{ID: "ntc_" + strconv.FormatInt(d.ID, 10), SentAt: n.cfg.Now().UTC().Truncate(time.Millisecond), Attempt: d.Attempts + 1}
	if err := json.Unmarshal(d.Body, &m.Notice); err != nil {
		return fmt.Errorf("notice %d: %w", d.ID, err)
	}
	body, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("notice %d: %w", d.ID, err)
	}
	ctx, cancel := context.WithTimeout(ctx, n.cfg.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.URL, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "dray")
	req.Header.Set(HeaderDelivery, m.ID)
	req.Header.Set(HeaderEvent, m.Event)
	req.Header.Set(HeaderSignature, Sign(r.Secret, body))
	res, err := n.clients[r.Name].Do(req)
	if err != nil {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return fmt.Errorf("no answer within %s", n.cfg.Timeout)
		}
		return err
	}
	defer func() { _ = res.Body.Close() }()
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 64<<10)) // so that the connection serves again
	if res.StatusCode/100 == 2 {
		return nil
	}
	refused := &refusedError{status: res.StatusCode}
	if s, err := strconv.Atoi(res.Header.Get("Retry-After")); err == nil && s > 0 {
		refused.after = time.Duration(min(s, 86400)) * time.Second
	}
	return refused
}

// maxRedirects that are followed; each is dialled by the same rules.
const maxRedirects = 3

// client speaks to one receiver. No proxy is used: it would dial for us whatever
// it is asked to.
func client(r Receiver, timeout time.Duration) *http.Client {
	return &http.Client{
		Transport: &http.Transport{DialContext: dialer(r.Allow, timeout), ForceAttemptHTTP2: true, MaxIdleConns: 2, IdleConnTimeout: time.Minute,
			MaxResponseHeaderBytes: 64 << 10}, // the context bounds all the rest
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			switch {
			case len(via) > maxRedirects:
				return fmt.Errorf("more than %d redirects", maxRedirects)
			case req.Method != http.MethodPost:
				return errors.New("it redirects in a way that loses the notice: only 307 and 308 keep it")
			case via[0].URL.Scheme == "https" && req.URL.Scheme != "https":
				return fmt.Errorf("it redirects from https to %s", req.URL.Scheme)
			}
			return nil
		},
	}
}
