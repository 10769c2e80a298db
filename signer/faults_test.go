package signer_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/signer"
	"github.com/dray-project/dray/signer/internal/signertest"
	"github.com/dray-project/dray/signer/verify"
)

func TestBounds(t *testing.T) {
	reg := signertest.Distribution(t)
	img := reg.Image(t, "team/app")
	s := newSigner(t, 0, nil)
	if _, err := s.Sign(t.Context(), img); err != nil {
		t.Fatal(err)
	}
	big := pipeline.Statement{PredicateType: "https://dray.example/test/v1",
		Predicate: json.RawMessage(`{"x":"` + strings.Repeat("x", 100<<10) + `"}`)}
	if _, err := s.Attest(t.Context(), img, big); err != nil {
		t.Fatal(err)
	}
	small := newSigner(t, 0, func(c *signer.Config) { c.Limits.Bundle = 50 << 10 })
	if _, err := small.Attest(t.Context(), img, big); !pipeline.IsPermanent(err) {
		t.Errorf("attesting beyond the bound: %v, want a permanent refusal", err)
	}
	// What is too large is not read, and the rest is.
	if v, err := small.Verify(t.Context(), img); err != nil || len(v.Signatures) != 2 || len(v.Attestations) != 0 {
		t.Errorf("%+v, %v; want two signatures and no attestation", v, err)
	}
	total := newSigner(t, 0, func(c *signer.Config) { c.Limits.Total = 200 << 10 })
	if _, err := total.Verify(t.Context(), img); err == nil || errors.Is(err, pipeline.ErrUnverified) || !strings.Contains(err.Error(), "exceed") {
		t.Errorf("more than may be read together: %v, want an error that says so", err)
	}
	for name, bad := range map[string]pipeline.Statement{
		"no type":     {Predicate: json.RawMessage(`{}`)},
		"not JSON":    {PredicateType: "x", Predicate: json.RawMessage(`{`)},
		"two values":  {PredicateType: "x", Predicate: json.RawMessage(`{} {}`)},
		"no object":   {PredicateType: "x", Predicate: json.RawMessage(`[1]`)},
		"a signature": {PredicateType: verify.PredicateSignature},
	} {
		if _, err := s.Attest(t.Context(), img, bad); !pipeline.IsPermanent(err) || !errors.Is(err, pipeline.ErrInvalid) {
			t.Errorf("%s: %v, want a permanent ErrInvalid", name, err)
		}
	}
}

// What the registry took and does not show is not reported as done.
func TestLostWrites(t *testing.T) {
	reg := signertest.Distribution(t)
	img := reg.Image(t, "team/app")
	fallback := "/manifests/sha256-" + img.Digest.Hex()
	reg.Override(func(w http.ResponseWriter, r *http.Request, registry http.Handler) {
		if r.Method == http.MethodPut && strings.HasSuffix(r.URL.Path, fallback) {
			w.WriteHeader(http.StatusCreated) // and forget it
			return
		}
		registry.ServeHTTP(w, r)
	})
	lock := &signertest.Locker{}
	s := newSigner(t, 0, func(c *signer.Config) { c.ReadBack, c.Locker = 2, lock })
	_, err := s.Sign(t.Context(), img)
	unverified(t, err, "bundle", "does not show it")
	if pipeline.IsPermanent(err) {
		t.Error("signing again would mend it, but the error is permanent")
	}
	unlock, err := lock.Lock(t.Context(), "referrers:"+img.String())
	if err != nil {
		t.Fatalf("the lock was not given back: %v", err)
	}

	// While somebody else has the turn, nothing is written, and waiting ends
	// with the context.
	reg.Requests()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Sign(ctx, img); !errors.Is(err, context.Canceled) {
		t.Errorf("waiting for the lock: %v, want context.Canceled", err)
	}
	if seen := reg.Requests(); len(seen) > 0 {
		t.Errorf("without the lock it asked %v", seen)
	}
	unlock()

	reg.Override(nil)
	if signed, err := s.Sign(t.Context(), img); err != nil || len(signed) != 2 {
		t.Errorf("signing again: %+v, %v", signed, err)
	}
}

// A registry that shows a write only after a while is asked again.
func TestSlowRegistry(t *testing.T) {
	reg := signertest.Olareg(t)
	img := reg.Image(t, "team/app")
	var wrote, hidden atomic.Int32
	reg.Override(func(w http.ResponseWriter, r *http.Request, registry http.Handler) {
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, ".sig") {
			wrote.Add(1)
		}
		if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, ".sig") && wrote.Load() > 0 && hidden.Add(1) <= 2 {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		registry.ServeHTTP(w, r)
	})
	if signed, err := newSigner(t, 0, nil).Sign(t.Context(), img); err != nil || len(signed) != 2 {
		t.Errorf("%+v, %v; want both layouts", signed, err)
	}
	if wrote.Load() != 1 {
		t.Errorf("the tag was written %d times, want once", wrote.Load())
	}
}

// Credentials belong to their host, and plain http is for hosts that ask for it.
func TestCredentials(t *testing.T) {
	reg := signertest.Olareg(t)
	img := reg.Image(t, "team/app")
	var asked atomic.Int32
	reg.Override(func(w http.ResponseWriter, r *http.Request, registry http.Handler) {
		if name, secret, ok := r.BasicAuth(); !ok || name != "robot" || secret != "s3cret-token" {
			w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		asked.Add(1)
		registry.ServeHTTP(w, r)
	})
	host := pipeline.RegistryHost{Host: reg.Host, Username: "robot", Password: "s3cret-token", PlainHTTP: true}
	with := func(h ...pipeline.RegistryHost) *signer.Signer {
		return newSigner(t, 0, func(c *signer.Config) { c.Hosts = h })
	}
	if _, err := with(host).Sign(t.Context(), img); err != nil {
		t.Fatal(err)
	}
	asked.Store(0)
	elsewhere := host
	elsewhere.Host = "registry.example:5000"
	overTLS := host
	overTLS.PlainHTTP = false
	for name, s := range map[string]*signer.Signer{"another host's": with(elsewhere), "none": with(), "https only": with(overTLS)} {
		_, err := s.Verify(t.Context(), img)
		if err == nil || errors.Is(err, pipeline.ErrUnverified) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("credentials of %s: %v, want a refusal without the password", name, err)
		}
	}
	if n := asked.Load(); n > 0 {
		t.Errorf("%d requests carried the credentials", n)
	}
}
