package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"

	"github.com/dray-project/dray/pipeline/notify"
	"github.com/dray-project/dray/pipeline/postgres"
)

// NotifySettings is somebody who is told what happens.
type NotifySettings struct {
	Name       string   `koanf:"name" help:"Name of the receiver, in lower case. What is on its way to it goes by this name, whatever its URL becomes."`
	URL        string   `koanf:"url" help:"Where notices are posted to: https, or http where allow names addresses."`
	Secret     string   `koanf:"secret" help:"Secret of the signature, at least 16 bytes. Prefer secret_file. One of them is required." secret:"true"`
	SecretFile string   `koanf:"secret_file" help:"File that holds the secret."`
	Projects   []string `koanf:"projects" help:"Projects that it is told of. Default: all."`
	Events     []string `koanf:"events" help:"Events that it is told of. Default: all."`
	Allow      []string `koanf:"allow" help:"Addresses (10.1.0.0/16, 10.1.2.3) that may be dialled although they are not public."`
}

// receivers turns the settings into what a Notifier takes.
func (s *Settings) receivers() (out []notify.Receiver, err error) {
	for i, n := range s.Notify {
		r := notify.Receiver{Name: n.Name, URL: n.URL, Secret: n.Secret, Projects: n.Projects, Events: n.Events}
		for _, a := range n.Allow {
			p, err := parseAllowed(a)
			if err != nil {
				return nil, fmt.Errorf("notify[%d].allow: %w", i, err)
			}
			r.Allow = append(r.Allow, p)
		}
		for _, p := range n.Projects {
			if !s.hasProject(p) {
				return nil, fmt.Errorf("notify[%d].projects has %q, which is no project", i, p)
			}
		}
		out = append(out, r)
	}
	return out, notify.Check(out)
}

func (s *Settings) hasProject(name string) bool {
	for _, p := range s.Projects {
		if p.Name == name {
			return true
		}
	}
	return false
}

// parseAllowed takes an address or a range.
func parseAllowed(s string) (netip.Prefix, error) {
	if !strings.Contains(s, "/") {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return netip.Prefix{}, fmt.Errorf("%q: want an address or a range such as 10.1.0.0/16", s)
		}
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf("%q: want an address or a range such as 10.1.0.0/16", s)
	}
	return p.Masked(), nil
}

// notices delivers until ctx is done.
func (p *parts) notices(ctx context.Context) (run func(), err error) {
	receivers, err := p.settings.receivers()
	if err != nil {
		return nil, err
	}
	n, err := notify.New(ctx, notify.Config{Queue: p.store, Locker: p.store, Receivers: receivers, Log: p.log})
	if err != nil {
		return nil, err
	}
	return func() { n.Run(ctx) }, nil
}

// periodic is what one process of all does now and then.
func (p *parts) periodic() []postgres.Periodic {
	out := []postgres.Periodic{p.retain(), p.thinCheckpoints()}
	if every := p.settings.Rematch.Every; every > 0 {
		out = append(out, postgres.Periodic{Name: "rematch", Every: every, Do: p.rematch,
			Failed: "recorded images could not all be matched with the vulnerability database"})
	}
	return out
}

// rematch is one look for a newer vulnerability database, and what follows from it.
func (p *parts) rematch(ctx context.Context) error {
	pass, err := p.pipeline.Rematch(ctx, p.scanner, p.store)
	if err == nil && pass.Images > 0 && pass.FinishedAt != nil {
		p.log.DebugContext(ctx, "re-matched", "pass", pass.ID, "database", pass.Database.Digest, "images", pass.Images, "changed", pass.Changed,
			"refused", pass.Refused, "failed", pass.Failed)
	}
	return err
}

// libraries is the log of those that log by themselves: what they warn of, and
// not each step that they take.
func libraries(log *slog.Logger) *slog.Logger { return slog.New(warnings{log.Handler()}) }

type warnings struct{ slog.Handler }

func (h warnings) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelWarn && h.Handler.Enabled(ctx, l)
}

func (h warnings) WithAttrs(a []slog.Attr) slog.Handler { return warnings{h.Handler.WithAttrs(a)} }
func (h warnings) WithGroup(name string) slog.Handler   { return warnings{h.Handler.WithGroup(name)} }
