package api

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/dray-project/dray/pipeline"
)

// Forge reads one kind of forge's webhooks.
type Forge interface {
	// Verify returns nil if body was signed with secret. It parses nothing and
	// compares in constant time.
	Verify(secret []byte, header http.Header, body []byte) error
	// Parse returns the event and the delivery's id. What the forge would not
	// send is an error that wraps pipeline.ErrInvalid. An event of a kind that
	// Dray does not act on has that Kind and nothing else.
	Parse(header http.Header, body []byte) (pipeline.Event, string, error)
}

// Hook says whose webhooks are accepted: one source repository and the secret
// that its deliveries are signed with.
type Hook struct {
	Forge   string // a key of Config.Forges
	Source  string // the repository's full name at the forge
	Project string
	Secret  string
}

// Check is one thing that must work before this process takes traffic.
type Check struct {
	Name string
	// Run gives up when ctx is done, which is after three seconds.
	Run func(ctx context.Context) error
}

// Config is what an API works with.
type Config struct {
	Store Store // required
	// Forges by the name that is in their webhooks' URL: "github".
	Forges map[string]Forge
	Hooks  []Hook
	// PublicKeyPEM is the key that verifies this Dray's signatures. Required.
	PublicKeyPEM []byte
	// TrustedRoot is a sigstore trusted root in JSON, for verifiers that ask for
	// one. Required.
	TrustedRoot []byte
	// VerifyCommands are what an ordinary user types to verify an image. May be nil.
	VerifyCommands func(pipeline.Image) []string
	// CheckProject refuses settings that could not be used: gates that do not
	// compile, registries that nobody knows. Its error wraps pipeline.ErrInvalid.
	// Nil: projects cannot be applied.
	CheckProject func(pipeline.Project) error
	// Eligibility asks a gate without promoting; the request has a project and,
	// as its image, a digest. Nil: it cannot be asked.
	Eligibility func(context.Context, pipeline.PromotionRequest) (pipeline.Eligibility, error)
	// CheckVEX checks a document against the keys (PEM) that its project trusts.
	// Nil: no documents are taken.
	CheckVEX func(pipeline.VEXDocument, []string) error
	// Probe tries what a registry can do, and keeps what it learnt. A host that
	// the settings do not know is pipeline.ErrNotFound. Nil: it cannot be asked for.
	Probe func(ctx context.Context, host string) (pipeline.RegistryProbe, error)
	// Ledger is the evidence log. Nil: it is not served.
	Ledger Ledger
	// Retainer plans and applies retention. Nil: it is not served.
	Retainer Retainer
	// Evidence packs what is known of an image within a project. Nil: it cannot be
	// asked for.
	Evidence func(ctx context.Context, project string, d pipeline.Digest) (EvidenceBundle, error)
	// Checks are run by /readyz besides the store's own.
	Checks []Check
	Log    *slog.Logger // required
	Now    func() time.Time
	// Version of this Dray: "v1.2.3".
	Version string
	// Poll is how often a followed stream looks for new events, at its fastest.
	// Default 200 ms; an idle stream slows down to five times that.
	Poll time.Duration
	// Heartbeat is how often a quiet stream says that it is alive. Default 15 s.
	Heartbeat time.Duration
}

func (c *Config) validate() error {
	switch {
	case c.Store == nil:
		return errors.New("api: a store is required")
	case c.Log == nil:
		return errors.New("api: a logger is required")
	}
	if block, _ := pem.Decode(c.PublicKeyPEM); block == nil || block.Type != "PUBLIC KEY" {
		return errors.New(`api: the public key is not PEM of type "PUBLIC KEY"`)
	}
	if !json.Valid(c.TrustedRoot) {
		return errors.New("api: the trusted root is not JSON")
	}
	for _, check := range c.Checks {
		if check.Name == "" || check.Run == nil {
			return errors.New("api: a readiness check needs a name and a function")
		}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Version == "" {
		c.Version = "unknown"
	}
	if c.Poll <= 0 {
		c.Poll = 200 * time.Millisecond
	}
	if c.Heartbeat <= 0 {
		c.Heartbeat = 15 * time.Second
	}
	return c.validateHooks()
}

func (c *Config) validateHooks() error {
	for name, f := range c.Forges {
		if f == nil || name == "" || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return fmt.Errorf("api: forge %q: want a name of lower-case letters, digits and dashes, and an implementation", name)
		}
	}
	sources, projects := map[string]string{}, map[string]bool{}
	for _, h := range c.Hooks {
		if h.Project == "" || h.Source == "" {
			return fmt.Errorf("api: webhook of project %q, source %q: a project and a source are required", h.Project, h.Source)
		}
		if strings.TrimSpace(h.Secret) == "" {
			return fmt.Errorf("project %q has no webhook secret: its deliveries could come from anybody "+
				"(set webhook_secret to a random value, and the same value at the forge)", h.Project)
		}
		if c.Forges[h.Forge] == nil {
			return fmt.Errorf("project %q: unknown forge %q", h.Project, h.Forge)
		}
		source := h.Forge + " " + strings.ToLower(h.Source)
		if other, taken := sources[source]; taken {
			return fmt.Errorf("projects %q and %q both watch %s at %s: a repository belongs to one project", other, h.Project, h.Source, h.Forge)
		}
		if projects[h.Project] {
			return fmt.Errorf("project %q has two webhooks", h.Project)
		}
		sources[source], projects[h.Project] = h.Project, true
	}
	return nil
}

// API serves Dray's HTTP interface. It is an http.Handler.
type API struct {
	Config
	mux     *http.ServeMux
	handler http.Handler
	huma    huma.API
	openAPI []byte
	// noSecret stands in for the secret of a project that does not exist, so
	// that the answer takes as long.
	noSecret []byte
	// large bounds the webhook bodies over smallBody that are in memory at once.
	large chan struct{}

	drainOnce sync.Once
	draining  chan struct{}
}

// New checks the configuration and registers every route.
func New(c Config) (*API, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	a := &API{
		Config:   c,
		mux:      http.NewServeMux(),
		noSecret: make([]byte, 32),
		large:    make(chan struct{}, 4),
		draining: make(chan struct{}),
	}
	if _, err := rand.Read(a.noSecret); err != nil {
		return nil, fmt.Errorf("api: read random bytes: %w", err)
	}
	a.huma = humago.New(a.mux, a.humaConfig())
	a.huma.UseMiddleware(a.authenticate)
	a.registerWebhooks()
	a.registerRuns()
	a.registerPromotions()
	a.registerApprovals()
	a.registerEligibility()
	a.registerProjects()
	a.registerExceptions()
	a.registerVEX()
	a.registerRegistries()
	a.registerRematches()
	a.registerRetention()
	a.registerImages()
	a.registerEvidence()
	a.registerPackages()
	a.registerAudit()
	a.registerLog()
	a.registerKeys()
	a.registerHealth()
	if err := a.finishOpenAPI(); err != nil {
		return nil, err
	}
	a.handler = a.middleware(a.mux)
	return a, nil
}

// ServeHTTP serves one request.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.handler.ServeHTTP(w, r) }

// Server returns a server for addr ("host:port") with every bound set: ten
// seconds for a request's header, which may have 64 KiB, and a minute for the
// whole request. There is no write timeout, because event streams last; every
// single write has a deadline of its own instead. Shutdown ends open streams
// first, without their end event, so that their readers resume elsewhere.
func (a *API) Server(addr string) *http.Server {
	srv := &http.Server{
		Addr:              addr,
		Handler:           a,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       time.Minute,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(a.Log.Handler(), slog.LevelWarn),
	}
	srv.RegisterOnShutdown(a.Drain)
	return srv
}

// Drain ends the open event streams and makes /readyz fail. Other requests go on.
func (a *API) Drain() { a.drainOnce.Do(func() { close(a.draining) }) }
