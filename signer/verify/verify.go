package verify

import (
	"context"
	"crypto"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/signer/internal/oci"
)

// Layouts in which a registry keeps signatures and attestations.
const (
	// LayoutBundle: Sigstore bundles as OCI 1.1 referrers.
	LayoutBundle = "bundle"
	// LayoutLegacy: the tags sha256-<hex>.sig and sha256-<hex>.att.
	LayoutLegacy = "legacy"
)

// Config is what a Verifier works with. Only TrustedKeys is required.
type Config struct {
	// TrustedKeys are those whose signatures count.
	TrustedKeys []crypto.PublicKey
	// Hosts are the registries that need settings. Others are reached with
	// https; plain http is tried for the loopback address only.
	Hosts []pipeline.RegistryHost
	// Keychain has the credentials for hosts that are not in Hosts; nil means
	// that those are used anonymously.
	Keychain authn.Keychain
	// Transport carries the requests; nil means one with sensible timeouts.
	Transport http.RoundTripper
	Limits    Limits
	Log       *slog.Logger
	Now       func() time.Time
}

// Limits bound what one call reads. Zero fields take their defaults.
type Limits struct {
	// Referrers is how many referrers an image may have, and how many layers
	// each of its legacy tags; 1000.
	Referrers int
	// Bundle is how large one bundle or attestation may be; 64 MiB.
	Bundle int64
	// Total is how much one call may read of them together; 512 MiB.
	Total int64
}

func (l Limits) withDefaults() (Limits, error) {
	if l.Referrers < 0 || l.Bundle < 0 || l.Total < 0 {
		return l, fmt.Errorf("setting Limits: negative numbers bound nothing: %w", pipeline.ErrInvalid)
	}
	if l.Referrers == 0 {
		l.Referrers = 1000
	}
	if l.Bundle == 0 {
		l.Bundle = 64 << 20
	}
	if l.Total == 0 {
		l.Total = max(512<<20, l.Bundle)
	}
	return l, nil
}

// Verifier reads signatures and attestations and checks them. It may be used
// by several goroutines.
type Verifier struct {
	keys   keyring
	access *oci.Access
	limits Limits
	log    *slog.Logger
	now    func() time.Time
}

// New checks the configuration.
func New(_ context.Context, c Config) (*Verifier, error) {
	keys, err := newKeyring(c.TrustedKeys)
	if err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	limits, err := c.Limits.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	access, err := oci.New(oci.Config{Hosts: c.Hosts, Keychain: c.Keychain, Transport: c.Transport})
	if err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	v := &Verifier{keys: keys, access: access, limits: limits, log: c.Log, now: c.Now}
	if v.log == nil {
		v.log = slog.New(slog.DiscardHandler)
	}
	if v.now == nil {
		v.now = time.Now
	}
	return v, nil
}

// KeyIDs are the trusted keys.
func (v *Verifier) KeyIDs() []string {
	var ids []string
	for _, k := range v.keys {
		ids = append(ids, k.id)
	}
	return ids
}

// Verify returns the signatures and attestations of the image that a trusted
// key made, in either layout. When no signature verifies, the error wraps
// pipeline.ErrUnverified and says what was looked for and what was there
// instead; it wraps pipeline.ErrNotFound too when the image is not there at all. Any other error means that the registry could not be read, or holds
// more than the limits allow.
func (v *Verifier) Verify(ctx context.Context, img pipeline.Image) (pipeline.Verified, error) {
	f, err := v.read(ctx, img, Everything())
	if err != nil {
		return pipeline.Verified{}, err
	}
	if len(f.verified.Signatures) == 0 {
		if f.absent(ctx) {
			return pipeline.Verified{}, fmt.Errorf("verify %s: the registry has no such image: %w: %w", img, pipeline.ErrNotFound, pipeline.ErrUnverified)
		}
		return pipeline.Verified{}, f.unverified(v.keys)
	}
	for _, n := range f.notes {
		v.log.DebugContext(ctx, "ignored what does not verify", "image", img.String(), "where", n.where, "why", n.why())
	}
	return f.verified, nil
}

// Read is Verify for those to whom it is no error that something is missing,
// and who look for something in particular.
func (v *Verifier) Read(ctx context.Context, img pipeline.Image, what Selection) (pipeline.Verified, error) {
	f, err := v.read(ctx, img, what)
	if err != nil {
		return pipeline.Verified{}, err
	}
	return f.verified, nil
}

// Selection says what to read. Bundles that are annotated as something else
// are skipped unread.
type Selection struct {
	// Signatures are wanted.
	Signatures bool
	// Attestations of this predicate type are wanted; "*" wants all.
	Attestations string
}

// Everything selects all signatures and attestations.
func Everything() Selection { return Selection{Signatures: true, Attestations: "*"} }

// wants reports whether a bundle annotated with that predicate type may hold
// what was asked for. cosign v2 annotates attestations as signatures.
func (s Selection) wants(annotated string) bool {
	switch annotated {
	case "", PredicateSignature:
		return true
	default:
		return s.Attestations == "*" || s.Attestations == annotated
	}
}

func (s Selection) wantsClaim(predicateType string) bool {
	if predicateType == PredicateSignature {
		return s.Signatures
	}
	return s.Attestations == "*" || s.Attestations == predicateType
}

// Limits are the bounds in force.
func (v *Verifier) Limits() Limits { return v.limits }
