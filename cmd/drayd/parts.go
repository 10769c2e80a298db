package main

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/dray-project/dray/builder"
	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/ledger"
	"github.com/dray-project/dray/pipeline/policy"
	"github.com/dray-project/dray/pipeline/postgres"
	"github.com/dray-project/dray/pipeline/registry"
	"github.com/dray-project/dray/pipeline/vex"
	"github.com/dray-project/dray/scanner"
	"github.com/dray-project/dray/signer"
	"github.com/dray-project/dray/signer/verify"
)

// parts are the adapters of one process, opened in the order in which they
// need each other and closed in the reverse.
type parts struct {
	settings *Settings
	log      *slog.Logger
	pool     *pgxpool.Pool
	store    *postgres.Store
	registry *registry.Registry
	signer   *signer.Signer
	scanner  *scanner.Scanner
	builder  *builder.Builder
	judge    *policy.Policy
	pipeline *pipeline.Pipeline
	retainer *pipeline.Retainer
	evidence evidence
	// sequencer and publisher are nil where nothing is worked on.
	sequencer *ledger.Sequencer
	publisher *ledger.Publisher
	closers   []func()
}

func (p *parts) onClose(f func()) { p.closers = append(p.closers, f) }

func (p *parts) Close() {
	for i := len(p.closers) - 1; i >= 0; i-- {
		p.closers[i]()
	}
}

// openDatabase connects and, where the settings say so, migrates.
func (p *parts) openDatabase(ctx context.Context) (err error) {
	s := p.settings
	seal, err := s.seal()
	if err != nil {
		return err
	}
	if p.pool, err = postgres.Connect(ctx, s.Database.URL, int32(s.Database.MaxConnections)); err != nil {
		return fmt.Errorf("database.url: %w", err)
	}
	p.onClose(p.pool.Close)
	if s.Database.Migrate {
		if err := postgres.Migrate(ctx, p.pool, seal); err != nil {
			return fmt.Errorf("migrate the database: %w", err)
		}
	}
	if p.store, err = postgres.New(ctx, postgres.Config{Pool: p.pool, Seal: seal, Log: p.log}); err != nil {
		return err
	}
	p.onClose(p.store.Close)
	return nil
}

// openRegistry needs the database for its locks.
func (p *parts) openRegistry(ctx context.Context, lock pipeline.Locker) (err error) {
	c := registry.Config{Hosts: p.settings.Hosts(), Locker: lock, MemoryAge: p.settings.Copy.Remember, Log: p.log}
	if p.store != nil {
		c.Memory = p.store
	}
	if p.registry, err = registry.New(ctx, c); err != nil {
		return fmt.Errorf("registries: %w", err)
	}
	p.onClose(p.registry.Close)
	return nil
}

func (p *parts) openSigner(ctx context.Context, lock pipeline.Locker) (err error) {
	s := p.settings
	var trusted []crypto.PublicKey
	for _, path := range s.Signer.TrustedKeyFiles {
		pem, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("signer.trusted_key_files: %w", err)
		}
		keys, err := verify.ParsePublicKeys(pem)
		if err != nil {
			return fmt.Errorf("signer.trusted_key_files: %s: %w", path, err)
		}
		trusted = append(trusted, keys...)
	}
	p.signer, err = signer.New(ctx, signer.Config{
		KeyFile: s.Signer.KeyFile, Password: func() ([]byte, error) { return []byte(s.Signer.Password), nil },
		TrustedKeys: trusted, Layouts: s.Signer.Layouts,
		Hosts: s.Hosts(), Transport: p.registry.Transport(), Locker: lock, Log: p.log,
	})
	if err != nil {
		return fmt.Errorf("signer.key_file: %w", err)
	}
	return nil
}

func (p *parts) openScanner(ctx context.Context) (err error) {
	s := p.settings.Scanner
	p.scanner, err = scanner.New(ctx, scanner.Config{
		Database: s.Database, MaxAge: s.MaxAge, CacheDir: s.CacheDir, Timeout: s.Timeout,
		Keychain: p.registry.Keychain(), NameOptions: p.registry.NameOptions, Transport: p.registry.Transport(), Log: p.log,
	})
	if err != nil {
		return fmt.Errorf("scanner: %w", err)
	}
	p.onClose(func() {
		if err := p.scanner.Close(); err != nil {
			p.log.Warn("scanner not closed", "error", err)
		}
	})
	return nil
}

func (p *parts) openBuilder(ctx context.Context) (err error) {
	s := p.settings
	git := map[string]builder.GitCredential{}
	for _, g := range s.Git {
		git[g.Origin] = builder.GitCredential{Username: g.Username, Password: g.Token}
	}
	var frontends []pipeline.Digest
	for _, f := range s.Builder.Frontends {
		frontends = append(frontends, pipeline.Digest(f))
	}
	p.builder, err = builder.New(ctx, builder.Config{
		Addresses: s.Builder.Addresses, Hosts: s.BuildHosts(), GitCredentials: git,
		Timeout: s.Builder.Timeout, AllowedFrontends: frontends, Log: p.log,
	})
	if err != nil {
		return fmt.Errorf("builder: %w", err)
	}
	p.onClose(func() {
		if err := p.builder.Close(); err != nil {
			p.log.Warn("builder not closed", "error", err)
		}
	})
	return nil
}

func (p *parts) openPipeline(ctx context.Context) (err error) {
	s := p.settings
	if p.judge, err = policy.New(ctx, policy.Config{Log: p.log}); err != nil {
		return err
	}
	p.pipeline, err = pipeline.New(pipeline.Config{
		Store: p.store, Locker: p.store, Builder: p.builder, Scanner: p.scanner, Signer: p.signer, Registry: p.registry,
		Judge: p.judge, VEX: vex.Reader{}, BaseURL: strings.TrimRight(s.PublicURL, "/"), BuilderID: s.Builder.ID,
		Mask: pipeline.NewMasker(s.Secrets()...), Log: p.log,
	})
	if err != nil {
		return err
	}
	return p.openRetainer()
}

// checkProject refuses settings of a project that could not work: gates that do
// not compile, registries that drayd was not told of.
func (p *parts) checkProject(project pipeline.Project) error {
	if err := project.Check(); err != nil {
		return err
	}
	if err := p.judge.Check(project.BuildGate()); err != nil {
		return fmt.Errorf("the project's gate: %w", err)
	}
	for _, e := range project.Environments {
		host, _, _ := strings.Cut(e.Repository, "/")
		if !slices.ContainsFunc(p.settings.Registries, func(r RegistrySettings) bool { return r.Host == host }) {
			return fmt.Errorf("environment %s: registry %s is not among drayd's settings (registries): %w", e.Name, host, pipeline.ErrInvalid)
		}
		for _, action := range []string{pipeline.ActionPromote, pipeline.ActionRollback} {
			if err := p.judge.Check(e.EntryGate(action)); err != nil {
				return fmt.Errorf("environment %s, gate to %s: %w", e.Name, action, err)
			}
		}
	}
	return nil
}

// plainHTTP reports whether the image's registry is spoken to without TLS.
func (p *parts) plainHTTP(img pipeline.Image) bool {
	host, _, _ := strings.Cut(img.Repository, "/")
	repo, err := name.NewRepository(img.Repository, p.registry.NameOptions(host)...)
	return err == nil && repo.Scheme() == "http"
}

// newLog logs to w as the settings say.
func newLog(s *Settings, w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(s.Log.Level)); err != nil {
		return nil, fmt.Errorf("log.level is %q: want debug, info, warn or error", s.Log.Level)
	}
	o := &slog.HandlerOptions{Level: level}
	switch s.Log.Format {
	case "json":
		return slog.New(slog.NewJSONHandler(w, o)), nil
	case "text":
		return slog.New(slog.NewTextHandler(w, o)), nil
	}
	return nil, errors.New("log.format is " + s.Log.Format + ": want json or text")
}
