package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/dray-project/dray/api"
	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/forge"
	"github.com/dray-project/dray/pipeline/postgres"
	"github.com/dray-project/dray/signer/verify"
)

// serve is the service from its start to its end. It returns nil after a
// termination signal and a drain.
func serve(ctx context.Context, s *Settings, logTo io.Writer) error {
	log, err := newLog(s, logTo)
	if err != nil {
		return err
	}
	p := &parts{settings: s, log: log}
	defer p.Close()
	if err := p.openDatabase(ctx); err != nil {
		return err
	}
	projects, err := s.DomainProjects()
	if err != nil {
		return err
	}
	if err := p.store.SyncProjects(ctx, projects); err != nil {
		return err
	}
	if err := p.openRegistry(ctx, p.store); err != nil {
		return err
	}
	if err := p.openSigner(ctx, p.store); err != nil {
		return err
	}

	stopWork := func(time.Duration) {}
	if s.Works() {
		if stopWork, err = p.work(ctx); err != nil {
			return err
		}
	}
	failed := make(chan error, 1)
	stopServing, err := p.listen(failed)
	if err != nil {
		stopWork(s.Worker.Drain)
		return err
	}
	log.Info("drayd is up", "version", version, "role", s.Role, "listen", s.Listen, "projects", len(projects))

	select {
	case <-ctx.Done():
		log.Info("stopping", "drain", s.Worker.Drain)
	case err = <-failed:
		log.Error("the API stopped serving", "error", err)
	}
	// Requests end first: a webhook that was acknowledged is in the database
	// already, and whoever comes later should be told to go elsewhere.
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.Worker.Drain)
	defer cancel()
	stopServing(end)
	stopWork(s.Worker.Drain)
	log.Info("drayd is down")
	return err
}

// work starts taking jobs. The function that it returns stops: jobs may go on
// for the given time, and resume elsewhere after that.
func (p *parts) work(ctx context.Context) (stop func(drain time.Duration), err error) {
	if err := p.openScanner(ctx); err != nil {
		return nil, err
	}
	if err := p.openBuilder(ctx); err != nil {
		return nil, err
	}
	s := p.settings
	pipe, err := pipeline.New(pipeline.Config{
		Store: p.store, Locker: p.store, Builder: p.builder, Scanner: p.scanner, Signer: p.signer, Registry: p.registry,
		BuilderID: s.Builder.ID, Mask: pipeline.NewMasker(s.Secrets()...), Log: p.log,
	})
	if err != nil {
		return nil, err
	}
	rest := newRest(p.log)
	p.onClose(rest.stop)
	queue, err := postgres.NewQueue(ctx, postgres.QueueConfig{
		Pool: p.pool, Store: p.store, Run: during(rest, pipe.Run), Promote: during(rest, pipe.Promote),
		MaxAttempts: s.Worker.MaxAttempts, Concurrency: s.Worker.Concurrency, Log: p.log,
	})
	if err != nil {
		return nil, err
	}
	// Jobs must survive the signal that ends ctx until the drain is over.
	if err := queue.Start(context.WithoutCancel(ctx)); err != nil {
		return nil, fmt.Errorf("take jobs: %w", err)
	}
	return func(drain time.Duration) {
		if err := queue.Stop(drain); err != nil {
			p.log.Warn("jobs were interrupted; they resume when a drayd is up", "error", err)
		}
	}, nil
}

// listen serves the API until stop is called. An error of serving itself goes
// to failed.
func (p *parts) listen(failed chan<- error) (stop func(context.Context), err error) {
	handler, err := p.api()
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", p.settings.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	server := handler.Server(p.settings.Listen)
	if !p.settings.Serves() {
		server.Handler = onlyHealth(server.Handler)
	}
	server.ErrorLog = slog.NewLogLogger(p.log.Handler(), slog.LevelWarn)
	go func() {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			failed <- err
		}
	}()
	return func(ctx context.Context) {
		handler.Drain()
		if err := server.Shutdown(ctx); err != nil {
			p.log.Warn("requests were cut off", "error", err)
			_ = server.Close()
		}
	}, nil
}

// onlyHealth is what a process answers that works and does not serve: whoever
// watches it must be able to ask how it is.
func onlyHealth(h http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /livez", h)
	mux.Handle("GET /readyz", h)
	return mux
}

func (p *parts) api() (*api.API, error) {
	var hooks []api.Hook
	projects, err := p.settings.DomainProjects()
	if err != nil {
		return nil, err
	}
	public, err := p.signer.PublicKey()
	if err != nil {
		return nil, err
	}
	for i, d := range projects {
		hooks = append(hooks, api.Hook{Forge: d.Forge, Source: d.Source, Project: d.Name, Secret: p.settings.Projects[i].WebhookSecret})
	}
	return api.New(api.Config{
		Store: p.store, Forges: map[string]api.Forge{"github": forge.GitHub{}}, Hooks: hooks,
		PublicKeyPEM: public, TrustedRoot: verify.TrustedRoot(),
		VerifyCommands: func(img pipeline.Image) (out []string) {
			for _, c := range verify.Commands(img, verify.CommandOptions{Key: "cosign.pub", TrustedRoot: "trusted-root.json", PlainHTTP: p.plainHTTP(img)}) {
				out = append(out, c.String())
			}
			return out
		},
		Log: p.log, Version: version,
	})
}

// migrate brings the schema up to date.
func migrate(ctx context.Context, s *Settings, out io.Writer) error {
	pool, err := postgres.Connect(ctx, s.Database.URL, 2)
	if err != nil {
		return fmt.Errorf("database.url: %w", err)
	}
	defer pool.Close()
	if err := postgres.Migrate(ctx, pool); err != nil {
		return err
	}
	_, err = fmt.Fprintln(out, "the schema is up to date")
	return err
}
