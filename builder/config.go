package builder

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"time"

	"github.com/dray-project/dray/pipeline"
)

// Modes of Config.CacheExport.
const (
	CacheMax = "max" // every layer of every stage
	CacheMin = "min" // only the layers of the final image
	CacheOff = "off" // nothing is exported; an existing cache is still read
)

// DefaultTimeout bounds a whole build when Config.Timeout is zero.
const DefaultTimeout = 30 * time.Minute

// Config is what a Builder works with. Addresses and Log are required.
type Config struct {
	// Addresses of the buildkitd pool: "unix:///run/buildkit/buildkitd.sock" or
	// "tcp://host:port".
	Addresses []string
	// TLS for the tcp addresses. Without it they are spoken to in the clear,
	// which suits a private network only: who reaches buildkitd commands it.
	TLS *TLS
	// Hosts are the registries that builds may use: where images and caches are
	// pushed to and where private bases come from. A registry that is not
	// listed is used without credentials. Registries of later environments do
	// not belong here.
	Hosts []pipeline.RegistryHost
	// GitCredentials by origin ("https://git.example"), sent to that origin only.
	GitCredentials map[string]GitCredential
	// CacheExport is CacheMax (the default), CacheMin or CacheOff.
	CacheExport string
	// Timeout of a whole build over all platforms; DefaultTimeout when zero.
	Timeout time.Duration
	// AllowedFrontends are the digests of the frontends that a `# syntax=` line
	// may name. The default is none: buildkitd's own Dockerfile frontend serves.
	AllowedFrontends []pipeline.Digest
	Log              *slog.Logger
}

// TLS names the files for mutual TLS with buildkitd.
type TLS struct {
	CA, Cert, Key string
	// ServerName to verify instead of the address's host.
	ServerName string
}

// GitCredential is what a git server asks for over HTTP. With an empty Username
// the Password is sent as a token.
type GitCredential struct {
	Username string
	Password string
}

func (c *Config) validate() error {
	if len(c.Addresses) == 0 {
		return errors.New("builder: Addresses: at least one buildkitd address is required")
	}
	seen := map[string]bool{}
	for _, a := range c.Addresses {
		u, err := url.Parse(a)
		switch {
		case err != nil:
			return fmt.Errorf("builder: Addresses: %q: %w", a, err)
		case u.Scheme == "unix" && u.Path != "":
		case u.Scheme == "tcp" && u.Host != "":
		default:
			return fmt.Errorf("builder: Addresses: %q: want unix:///path/to/buildkitd.sock or tcp://host:port", a)
		}
		if seen[a] {
			return fmt.Errorf("builder: Addresses: %q is listed twice", a)
		}
		seen[a] = true
	}
	if t := c.TLS; t != nil && (t.CA == "" || (t.Cert == "") != (t.Key == "")) {
		return errors.New("builder: TLS: a CA file is required, and a certificate and its key go together")
	}
	seen = map[string]bool{}
	for _, h := range c.Hosts {
		if h.Host == "" || strings.Contains(h.Host, "/") {
			return fmt.Errorf("builder: Hosts: %q: want host or host:port, without a scheme", h.Host)
		}
		if seen[h.Host] {
			return fmt.Errorf("builder: Hosts: %q is listed twice", h.Host)
		}
		seen[h.Host] = true
	}
	for o, cred := range c.GitCredentials {
		u, err := url.Parse(o)
		if err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") || u.User != nil || strings.Trim(u.Path, "/") != "" {
			return fmt.Errorf("builder: GitCredentials: %q: want an origin such as https://git.example", o)
		}
		if cred.Password == "" || strings.ContainsAny(cred.Password+cred.Username, "\r\n") {
			return fmt.Errorf("builder: GitCredentials: %q: the password or token is empty or has a line break in it", o)
		}
	}
	switch c.CacheExport {
	case "":
		c.CacheExport = CacheMax
	case CacheMax, CacheMin, CacheOff:
	default:
		return fmt.Errorf("builder: CacheExport: %q: want %s, %s or %s", c.CacheExport, CacheMax, CacheMin, CacheOff)
	}
	switch {
	case c.Timeout < 0:
		return errors.New("builder: Timeout: must not be negative")
	case c.Timeout == 0:
		c.Timeout = DefaultTimeout
	}
	for _, d := range c.AllowedFrontends {
		if _, err := pipeline.ParseDigest(string(d)); err != nil {
			return fmt.Errorf("builder: AllowedFrontends: %w", err)
		}
	}
	if c.Log == nil {
		return errors.New("builder: Log: a logger is required")
	}
	return nil
}

// Builder implements pipeline.Builder. It is safe for concurrent use.
type Builder struct {
	cfg  Config
	pool *pool
	// seed makes the keys that prove to buildkitd, across the sessions of this
	// process, that they hold the same registry credentials.
	seed []byte
}

var _ pipeline.Builder = (*Builder)(nil)

// New checks the configuration and prepares the connections. It does not wait
// for buildkitd: Ping says who answers.
func New(ctx context.Context, c Config) (*Builder, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	p, err := newPool(ctx, c.Addresses, c.TLS)
	if err != nil {
		return nil, err
	}
	for _, a := range c.Addresses {
		if strings.HasPrefix(a, "tcp://") && c.TLS == nil {
			c.Log.Warn("buildkitd is reached without TLS: whoever reaches it commands it", "address", a)
		}
	}
	return &Builder{cfg: c, pool: p, seed: randomBytes(32)}, nil
}

// Close ends the connections to buildkitd.
func (b *Builder) Close() error { return b.pool.close() }

// host returns what is known of a registry.
func (b *Builder) host(host string) pipeline.RegistryHost {
	for _, h := range b.cfg.Hosts {
		if h.Host == host {
			return h
		}
	}
	return pipeline.RegistryHost{Host: host}
}
