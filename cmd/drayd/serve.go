package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/dray-project/dray/api"
	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/forge"
	"github.com/dray-project/dray/pipeline/postgres"
	"github.com/dray-project/dray/pipeline/vex"
	"github.com/dray-project/dray/signer/verify"
)

// serve is the service from its start to its end. It returns nil after a
// termination signal and a drain.
func serve(ctx context.Context, s *Settings, logTo io.Writer) error {
	log, err := newLog(s, logTo)
	if err != nil {
		return err
	}
	// Libraries that log by themselves do it here: Trivy's handler would keep
	// their lines until somebody asks for them.
	slog.SetDefault(libraries(log))
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
	if err := p.openLedger(ctx); err != nil {
		return err
	}
	// A process that only serves says what a gate would say, and looks at the
	// image for it.
	for _, open := range []func(context.Context) error{p.openScanner, p.openBuilder, p.openPipeline} {
		if err := open(ctx); err != nil {
			return err
		}
	}
	for _, project := range projects {
		if err := p.checkProject(project); err != nil {
			return fmt.Errorf("projects[%s]: %w", project.Name, err)
		}
	}

	defer p.keepLog(ctx)()
	stopWork := func(time.Duration) {}
	if s.Works() {
		if stopWork, err = p.work(ctx); err != nil {
			return err
		}
	}
	background, stopBackground := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBackground()
	if s.Works() {
		go p.probeNew(background)
		tell, err := p.notices(background)
		if err != nil {
			stopWork(s.Worker.Drain)
			return err
		}
		told := make(chan struct{})
		go func() { defer close(told); tell() }()
		defer func() { stopBackground(); <-told }()
	}
	stopMetrics, err := p.serveMetrics()
	if err != nil {
		stopWork(s.Worker.Drain)
		return err
	}
	defer stopMetrics()
	failed := make(chan error, 1)
	stopServing, err := p.listen(ctx, failed)
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
	s, pipe := p.settings, p.pipeline
	rest := newRest(p.log)
	p.onClose(rest.stop)
	queue, err := postgres.NewQueue(ctx, postgres.QueueConfig{
		Pool: p.pool, Store: p.store, Run: during(rest, pipe.Run), Promote: during(rest, pipe.Promote),
		Reconcile: p.reconcile, ReconcileEvery: s.Reconcile.Every, Periodic: p.periodic(),
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

// reconcile is one pass over what the environments hold.
func (p *parts) reconcile(ctx context.Context) error {
	sum, err := p.pipeline.Reconcile(ctx)
	if err == nil {
		p.log.DebugContext(ctx, "reconciled", "places", sum.Places, "drifts", sum.Drifts, "repaired", sum.Repaired)
	}
	return err
}

// probe learns what a registry can do, and keeps it.
func (p *parts) probe(ctx context.Context, host string) (pipeline.RegistryProbe, error) {
	repository, err := p.repositoryAt(ctx, host)
	if err != nil {
		return pipeline.RegistryProbe{}, err
	}
	found, err := p.registry.Probe(ctx, repository)
	if err != nil {
		found.Host, found.Repository, found.ProbedAt, found.Error = host, repository, time.Now().UTC(), err.Error()
	}
	return found, p.store.RecordProbe(ctx, found)
}

// repositoryAt finds a repository of a project's in that registry: a place that
// Dray may write to anyway.
func (p *parts) repositoryAt(ctx context.Context, host string) (string, error) {
	projects, err := p.store.Projects(ctx)
	if err != nil {
		return "", err
	}
	for _, v := range projects {
		for _, e := range v.Project.Environments {
			if strings.HasPrefix(e.Repository, host+"/") {
				return e.Repository, nil
			}
		}
		if strings.HasPrefix(v.Project.Repository, host+"/") {
			return v.Project.Repository, nil
		}
	}
	return "", fmt.Errorf("registry %q: no project writes to it: %w", host, pipeline.ErrNotFound)
}

// probeNew probes the registries that were never probed.
func (p *parts) probeNew(ctx context.Context) {
	known, err := p.store.Registries(ctx)
	if err != nil {
		p.log.WarnContext(ctx, "registries not probed", "error", err)
		return
	}
	for _, r := range p.settings.Registries {
		if ctx.Err() != nil || slices.ContainsFunc(known, func(k pipeline.RegistryProbe) bool { return k.Host == r.Host && k.Error == "" }) {
			continue
		}
		if found, err := p.probe(ctx, r.Host); errors.Is(err, pipeline.ErrNotFound) {
			continue
		} else if err != nil {
			p.log.WarnContext(ctx, "registry not probed", "host", r.Host, "error", err)
		} else {
			p.log.InfoContext(ctx, "registry probed", "host", r.Host, "referrers", found.Referrers, "mount", found.Mount, "problem", found.Error)
		}
	}
}

// listen serves the API until stop is called. An error of serving itself goes
// to failed.
func (p *parts) listen(ctx context.Context, failed chan<- error) (stop func(context.Context), err error) {
	handler, err := p.api(ctx)
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

func (p *parts) api(ctx context.Context) (*api.API, error) {
	var hooks []api.Hook
	projects, err := p.settings.DomainProjects()
	if err != nil {
		return nil, err
	}
	public, err := p.signer.PublicKey()
	if err != nil {
		return nil, err
	}
	collect, err := p.collector(ctx)
	if err != nil {
		return nil, err
	}
	for i, d := range projects {
		hooks = append(hooks, api.Hook{Forge: d.Forge, Source: d.Source, Project: d.Name, Secret: p.settings.Projects[i].WebhookSecret})
	}
	return api.New(api.Config{
		Store: p.store, Forges: map[string]api.Forge{"github": forge.GitHub{CloneURL: func(source string) string {
			for _, d := range projects {
				if strings.EqualFold(d.Source, source) {
					return d.CloneURL
				}
			}
			return ""
		}}}, Hooks: hooks,
		PublicKeyPEM: public, TrustedRoot: verify.TrustedRoot(),
		VerifyCommands: func(img pipeline.Image) (out []string) {
			for _, c := range verify.Commands(img, verify.CommandOptions{Key: "cosign.pub", TrustedRoot: "trusted-root.json", PlainHTTP: p.plainHTTP(img)}) {
				out = append(out, c.String())
			}
			return out
		},
		Retainer: retention{p.retainer, p.store}, CheckProject: p.checkProject, Eligibility: p.pipeline.Eligibility, Probe: p.probe,
		CheckVEX: func(doc pipeline.VEXDocument, keys []string) error {
			_, err := vex.Reader{}.Read(doc, keys)
			return err
		},
		Ledger: p.evidence, Evidence: collect, Log: p.log, Version: version,
	})
}

// migrate brings the schema up to date.
func migrate(ctx context.Context, s *Settings, out io.Writer) error {
	seal, err := s.seal()
	if err != nil {
		return err
	}
	pool, err := postgres.Connect(ctx, s.Database.URL, 2)
	if err != nil {
		return fmt.Errorf("database.url: %w", err)
	}
	defer pool.Close()
	if err := postgres.Migrate(ctx, pool, seal); err != nil {
		return err
	}
	_, err = fmt.Fprintln(out, "the schema is up to date")
	return err
}
