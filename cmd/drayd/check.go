package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/dray-project/dray/pipeline"
)

// errCheck ends drayd check after something was found; what it was is printed.
var errCheck = errors.New("something is wrong, see above")

// checkTimeout bounds each connection that is tried.
const checkTimeout = 20 * time.Second

// check tries every setting and every connection, prints a line for each, and
// returns an error if one is wrong. It goes on after a failure: whoever sets
// Dray up wants the whole list.
func check(ctx context.Context, s *Settings, out io.Writer) error {
	failed := false
	report := func(what string, err error, good string) {
		if err == nil {
			fmt.Fprintf(out, "ok    %-28s %s\n", what, good)
			return
		}
		failed = true
		fmt.Fprintf(out, "WRONG %-28s %s\n", what, strings.ReplaceAll(err.Error(), "\n", "\n"+strings.Repeat(" ", 35)))
	}
	report("settings", s.Validate(), fmt.Sprintf("%d projects, %d registries", len(s.Projects), len(s.Registries)))

	p := &parts{settings: s, log: slog.New(slog.DiscardHandler)}
	defer p.Close()
	try := func(f func(context.Context) error) error {
		ctx, cancel := context.WithTimeout(ctx, checkTimeout)
		defer cancel()
		return f(ctx)
	}

	// A check changes nothing: the schema is looked at, not migrated.
	migrates := s.Database.Migrate
	s.Database.Migrate = false
	report("database", try(func(ctx context.Context) error {
		if err := p.openDatabase(ctx); err != nil {
			return err
		}
		err := p.store.Ready(ctx)
		if err != nil && migrates && p.pool.Ping(ctx) == nil {
			return nil // it answers, and drayd will migrate when it starts
		}
		return err
	}), "answers")

	// Without a database there are no locks between processes; reading needs none.
	var lock pipeline.Locker = &localLocks{held: map[string]chan struct{}{}}
	if err := p.openRegistry(ctx, lock); err != nil {
		report("registries", err, "")
		return errCheck
	}
	if s.Works() {
		report("signer", try(func(ctx context.Context) error { return p.openSigner(ctx, lock) }), "the key opens with its password")
		var log string
		report("evidence log", try(func(ctx context.Context) (err error) {
			log, err = p.checkLedger(ctx)
			return err
		}), log)
		p.checkBuilders(ctx, report, try)
		p.checkScanner(ctx, report, try)
	}
	p.checkRegistries(ctx, report, try)
	if failed {
		return errCheck
	}
	return nil
}

type reporter = func(what string, err error, good string)

func (p *parts) checkBuilders(ctx context.Context, report reporter, try func(func(context.Context) error) error) {
	if err := p.openBuilder(ctx); err != nil {
		report("builder", err, "")
		return
	}
	var good string
	err := try(func(ctx context.Context) error {
		members, err := p.builder.Ping(ctx)
		for _, m := range members {
			good += fmt.Sprintf("%s %s %v ", m.Address, m.Version, m.Platforms)
		}
		return err
	})
	report("builder", err, good)
}

func (p *parts) checkScanner(ctx context.Context, report reporter, try func(func(context.Context) error) error) {
	if err := p.openScanner(ctx); err != nil {
		report("scanner", err, "")
		return
	}
	var good string
	err := try(func(ctx context.Context) error {
		db, err := p.scanner.Database(ctx)
		good = fmt.Sprintf("database %s of %s", db.Digest.Short(), db.UpdatedAt.Format(time.RFC3339))
		return err
	})
	report("scanner", err, good)
}

// checkRegistries looks at every repository that a project writes to.
func (p *parts) checkRegistries(ctx context.Context, report reporter, try func(func(context.Context) error) error) {
	seen := map[string]bool{}
	look := func(repository string) {
		if repository == "" || seen[repository] {
			return
		}
		seen[repository] = true
		var good string
		err := try(func(ctx context.Context) error {
			c, err := p.registry.Reach(ctx, repository)
			good = "answers, no referrers API (the fallback tag is used)"
			if c.Referrers {
				good = "answers, with the referrers API"
			}
			return err
		})
		report("registry "+repository, err, good)
	}
	look(p.settings.Ledger.Publish.Repository)
	for _, pr := range p.settings.Projects {
		look(pr.Repository)
		look(pr.CacheRepository)
		for _, e := range pr.Environments {
			look(e.Repository)
		}
	}
}

// localLocks are locks within this process.
type localLocks struct {
	mu   sync.Mutex
	held map[string]chan struct{}
}

func (l *localLocks) Lock(ctx context.Context, key string) (func(), error) {
	l.mu.Lock()
	c, ok := l.held[key]
	if !ok {
		c = make(chan struct{}, 1)
		l.held[key] = c
	}
	l.mu.Unlock()
	select {
	case c <- struct{}{}:
		return func() { <-c }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
