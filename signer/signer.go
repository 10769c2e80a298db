package signer

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/signer/internal/oci"
	"github.com/dray-project/dray/signer/verify"
)

// Config is what a Signer works with. KeyFile (or Key) and Locker are required.
type Config struct {
	// KeyFile is the path of an encrypted private key as cosign writes it.
	KeyFile string
	// Key is the same in PEM, for those who keep it elsewhere than in a file.
	Key []byte
	// Password opens the key; nil means an empty password. It is called once.
	Password func() ([]byte, error)
	// TrustedKeys are those whose signatures count besides the Signer's own: of
	// the keys that were in use before, and of those that come next.
	TrustedKeys []crypto.PublicKey
	// Layouts to write: verify.LayoutBundle, verify.LayoutLegacy, or both, which
	// is what an empty list means. All layouts are read.
	Layouts []string
	// Hosts are the registries that need settings. Others are reached with
	// https; plain http is tried for the loopback address only.
	Hosts []pipeline.RegistryHost
	// Keychain has the credentials for hosts that are not in Hosts; nil means
	// that those are used anonymously.
	Keychain authn.Keychain
	// Transport carries the requests; nil means one with sensible timeouts.
	Transport http.RoundTripper
	// Locker serialises the writers of one subject: on a registry without the
	// referrers API they would overwrite each other's signatures.
	Locker pipeline.Locker
	Limits verify.Limits
	// ReadBack is how often a registry is asked again for what was just written
	// to it before it counts as lost, with waits that double from 200 ms; 5.
	ReadBack int
	Log      *slog.Logger
	Now      func() time.Time
}

// LogValue keeps the key and the password out of logs.
func (c Config) LogValue() slog.Value {
	return slog.GroupValue(slog.String("keyFile", c.KeyFile), slog.Any("layouts", c.Layouts))
}

// String keeps the key and the password out of messages.
func (c Config) String() string { return c.LogValue().String() }

// GoString keeps the key and the password out of messages.
func (c Config) GoString() string { return c.String() }

// Signer implements pipeline.Signer with one key. It may be used by several
// goroutines.
type Signer struct {
	key      *key
	verifier *verify.Verifier
	access   *oci.Access
	layouts  []string
	locker   pipeline.Locker
	limits   verify.Limits
	readBack int
	log      *slog.Logger
	now      func() time.Time
}

var _ pipeline.Signer = (*Signer)(nil)

// New reads and opens the key and checks the configuration. It asks no registry.
func New(ctx context.Context, c Config) (*Signer, error) {
	switch {
	case c.Locker == nil:
		return nil, errors.New("signer: Locker is required: writers of one image's signatures take turns")
	case c.ReadBack < 0:
		return nil, errors.New("signer: ReadBack must not be negative")
	}
	if len(c.Layouts) == 0 {
		c.Layouts = []string{verify.LayoutBundle, verify.LayoutLegacy}
	}
	for _, l := range c.Layouts {
		if l != verify.LayoutBundle && l != verify.LayoutLegacy {
			return nil, fmt.Errorf("signer: Layouts: %q: want %s or %s", l, verify.LayoutBundle, verify.LayoutLegacy)
		}
	}
	if c.ReadBack == 0 {
		c.ReadBack = 5
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	k, err := loadKey(c)
	if err != nil {
		return nil, fmt.Errorf("signer: %w", err)
	}
	v, err := verify.New(ctx, verify.Config{
		TrustedKeys: append([]crypto.PublicKey{k.public}, c.TrustedKeys...),
		Hosts:       c.Hosts, Keychain: c.Keychain, Transport: c.Transport,
		Limits: c.Limits, Log: c.Log, Now: c.Now,
	})
	if err != nil {
		return nil, fmt.Errorf("signer: %w", err)
	}
	access, err := oci.New(oci.Config{Hosts: c.Hosts, Keychain: c.Keychain, Transport: c.Transport})
	if err != nil {
		return nil, fmt.Errorf("signer: %w", err)
	}
	return &Signer{
		key: k, verifier: v, access: access, layouts: slices.Compact(slices.Sorted(slices.Values(c.Layouts))),
		locker: c.Locker, limits: v.Limits(), readBack: c.ReadBack, log: c.Log, now: c.Now,
	}, nil
}

// KeyID is the lower-case hexadecimal sha256 of the public key's PKIX form.
func (s *Signer) KeyID() string { return s.key.id }

// PublicKey is the public half of the key in PEM, as users give it to cosign.
func (s *Signer) PublicKey() ([]byte, error) { return verify.MarshalPublicKey(s.key.public) }

// Commands are what a user types to check an image without Dray; see
// verify.Commands. Whether the registry has TLS is known here.
func (s *Signer) Commands(img pipeline.Image, o verify.CommandOptions) []verify.Command {
	o.PlainHTTP = o.PlainHTTP || s.access.PlainHTTP(img.Repository)
	return verify.Commands(img, o)
}

// Verify reads all layouts and returns what a trusted key signed; see
// verify.Verifier.
func (s *Signer) Verify(ctx context.Context, img pipeline.Image) (pipeline.Verified, error) {
	return s.verifier.Verify(ctx, img)
}

// String names the key and shows nothing of it.
func (s *Signer) String() string { return "signer with " + s.key.String() }

// GoString is String.
func (s *Signer) GoString() string { return s.String() }

// LogValue is String.
func (s *Signer) LogValue() slog.Value { return slog.StringValue(s.String()) }
