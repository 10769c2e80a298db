package scanner

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// Defaults of the settings that have one.
const (
	DefaultDatabase     = "ghcr.io/aquasecurity/trivy-db:2"
	DefaultMaxAge       = 72 * time.Hour
	DefaultRefreshEvery = time.Hour
	DefaultTimeout      = 10 * time.Minute
	DefaultParallel     = 4
	DefaultMaxImageSize = 10 << 30
)

// Config is what a Scanner works with. CacheDir and Log are required.
type Config struct {
	// Database is the OCI reference of the vulnerability database. Empty means
	// DefaultDatabase. A site without internet access names its mirror here.
	Database string
	// MaxAge is how old the database may be, by its own metadata, before every
	// scan is refused. The public database is rebuilt every six hours;
	// DefaultMaxAge tolerates a long weekend without it and no more. Zero is
	// refused: there is no scanning against a database of any age.
	MaxAge time.Duration
	// RefreshEvery is how often the registry is asked whether there is a newer
	// database. Zero means DefaultRefreshEvery. A database that is too old is
	// asked about on every scan.
	RefreshEvery time.Duration
	// CacheDir holds the database and the analysis of layers that were seen
	// before. It belongs to one process: a second one is refused.
	CacheDir string
	// Keychain has the credentials of both registries. Nil means anonymous.
	Keychain authn.Keychain
	// NameOptions says how a host is spoken to; name.Insecure means plain HTTP.
	// Nil means HTTPS for all but loopback addresses.
	NameOptions func(host string) []name.Option
	// Transport carries requests to registries. Nil means a clone of
	// go-containerregistry's, which honours the proxy variables.
	Transport http.RoundTripper
	// Timeout bounds the reading of one platform's image. Zero means DefaultTimeout.
	Timeout time.Duration
	// Parallel is how many images, and over all of them how many layers, are read
	// at once. Zero means DefaultParallel.
	Parallel int
	// MaxImageSize bounds the unpacked size of one platform's image, in bytes.
	// Zero means DefaultMaxImageSize.
	MaxImageSize int64
	Log          *slog.Logger
	// Now is the clock. Nil means time.Now.
	Now func() time.Time
}

func (c Config) withDefaults() Config {
	if c.Database == "" {
		c.Database = DefaultDatabase
	}
	if c.RefreshEvery == 0 {
		c.RefreshEvery = DefaultRefreshEvery
	}
	if c.Keychain == nil {
		c.Keychain = anonymous{}
	}
	if c.Transport == nil {
		c.Transport = remote.DefaultTransport
		if t, ok := remote.DefaultTransport.(*http.Transport); ok {
			c.Transport = t.Clone()
		}
	}
	if c.Timeout == 0 {
		c.Timeout = DefaultTimeout
	}
	if c.Parallel == 0 {
		c.Parallel = DefaultParallel
	}
	if c.MaxImageSize == 0 {
		c.MaxImageSize = DefaultMaxImageSize
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return c
}

func (c Config) validate() error {
	switch {
	case c.MaxAge == 0:
		return fmt.Errorf("scanner: MaxAge is required: how old may the vulnerability database be (the default setting is %s)", DefaultMaxAge)
	case c.MaxAge < 0:
		return fmt.Errorf("scanner: MaxAge %s: want more than zero", c.MaxAge)
	case c.RefreshEvery < 0:
		return fmt.Errorf("scanner: RefreshEvery %s: want more than zero", c.RefreshEvery)
	case c.Timeout < 0:
		return fmt.Errorf("scanner: Timeout %s: want more than zero", c.Timeout)
	case c.Parallel < 0:
		return fmt.Errorf("scanner: Parallel %d: want more than zero", c.Parallel)
	case c.MaxImageSize < 0:
		return fmt.Errorf("scanner: MaxImageSize %d: want more than zero bytes", c.MaxImageSize)
	case c.CacheDir == "":
		return errors.New("scanner: CacheDir is required: a directory that this process alone uses")
	case !filepath.IsAbs(c.CacheDir):
		return fmt.Errorf("scanner: CacheDir %q: want an absolute path", c.CacheDir)
	case c.Log == nil:
		return errors.New("scanner: Log is required")
	}
	if _, err := c.reference(c.Database); err != nil {
		return fmt.Errorf("scanner: Database %q: %w", c.Database, err)
	}
	return nil
}

// reference parses an OCI reference the way its host wants to be spoken to.
func (c Config) reference(s string) (name.Reference, error) {
	ref, err := name.ParseReference(s)
	if err != nil || c.NameOptions == nil {
		return ref, err
	}
	return name.ParseReference(s, c.NameOptions(ref.Context().RegistryStr())...)
}

// anonymous has no credentials; unlike the default keychain it does not read
// those of the user that the process runs as.
type anonymous struct{}

func (anonymous) Resolve(authn.Resource) (authn.Authenticator, error) { return authn.Anonymous, nil }
