// Package notify tells receivers outside of what the owners of projects should
// know: webhooks out, signed, in order, and tried again for a day.
package notify

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dray-project/dray/pipeline"
)

// Queue keeps what is on its way, in order, until it is delivered or given up.
type Queue interface {
	// GiveNotices puts new notices on their way to the receivers that to names,
	// each once, and returns how many notices there were.
	GiveNotices(ctx context.Context, to func(pipeline.Notice) []string) (int, error)
	// DueNotices returns what is to be sent to the receiver now, oldest first. A
	// notice that is to be tried later holds back those behind it while it is
	// younger than patience.
	DueNotices(ctx context.Context, receiver string, patience time.Duration, limit int) ([]pipeline.NoticeDelivery, error)
	NoticeDelivered(ctx context.Context, receiver string, id int64) error
	// NoticeFailed has the notice tried again after the wait.
	NoticeFailed(ctx context.Context, receiver string, id int64, why string, wait time.Duration) error
	NoticeGivenUp(ctx context.Context, receiver string, id int64, why string) error
	// PruneNotices removes what was over long ago.
	PruneNotices(context.Context) error
}

// Receiver is somebody who is told.
type Receiver struct {
	// Name under which the queue knows it: lower-case letters, digits, hyphens.
	Name string
	// URL that notices are posted to: https, or http where the setting says so.
	URL string
	// Secret of the signature.
	Secret string
	// Projects and Events that it is told of; empty: all.
	Projects, Events []string
	// Allow are addresses that may be dialled although they are not public.
	Allow []netip.Prefix
}

func (r Receiver) wants(n pipeline.Notice) bool {
	return (len(r.Projects) == 0 || slices.Contains(r.Projects, n.Project)) && (len(r.Events) == 0 || slices.Contains(r.Events, n.Event))
}

// Config is what a Notifier works with. Queue, Locker and Log are required.
type Config struct {
	Queue  Queue
	Locker pipeline.Locker
	// Receivers by distinct names.
	Receivers []Receiver
	// Timeout bounds one attempt, from the first byte to the last. Zero means 10 s.
	Timeout time.Duration
	// Every is how often the queue is asked. Zero means 1 s.
	Every time.Duration
	// Backoff is the wait after the nth failed attempt, counting from 1. Nil means
	// 10 s, doubled each time, at most an hour.
	Backoff func(attempt int) time.Duration
	Log     *slog.Logger
	// Now is the clock. Nil means time.Now.
	Now func() time.Time
}

const (
	// giveUpAfter is how old a notice gets before it is no longer tried.
	giveUpAfter = 24 * time.Hour
	// patience is how long a notice that cannot be delivered holds back those
	// behind it.
	patience = 15 * time.Minute
	// atOnce is how many notices are read for a receiver at a time.
	atOnce = 50
	// pruneEvery is how often old notices are removed.
	pruneEvery = time.Hour
)

// Notifier delivers notices. Any number of them may share a queue: one at a time
// works.
type Notifier struct {
	cfg     Config
	clients map[string]*http.Client
}

// New checks the configuration.
func New(_ context.Context, c Config) (*Notifier, error) {
	if c.Queue == nil || c.Locker == nil || c.Log == nil {
		return nil, errors.New("notify: Queue, Locker and Log are required")
	}
	if c.Timeout == 0 {
		c.Timeout = 10 * time.Second
	}
	if c.Every == 0 {
		c.Every = time.Second
	}
	if c.Backoff == nil {
		c.Backoff = func(attempt int) time.Duration {
			return min(10*time.Second<<min(max(attempt-1, 0), 20), time.Hour)
		}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if err := Check(c.Receivers); err != nil {
		return nil, err
	}
	n := &Notifier{cfg: c, clients: map[string]*http.Client{}}
	for _, r := range c.Receivers {
		n.clients[r.Name] = client(r, c.Timeout)
	}
	return n, nil
}

// Check names what is wrong with the receivers, by their settings.
func Check(receivers []Receiver) error {
	names := map[string]bool{}
	for i, r := range receivers {
		at := fmt.Sprintf("notify[%d]", i)
		if r.Name == "" || strings.Trim(r.Name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return fmt.Errorf("%s.name is %q: want lower-case letters, digits and hyphens", at, r.Name)
		}
		if names[r.Name] {
			return fmt.Errorf("%s.name: %s is listed twice", at, r.Name)
		}
		names[r.Name] = true
		if err := r.check(); err != nil {
			return fmt.Errorf("notify[%s].%w", r.Name, err)
		}
	}
	return nil
}

func (r Receiver) check() error {
	u, err := url.Parse(r.URL)
	switch {
	case err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http"):
		return errors.New("url: want https://host/path")
	case u.User != nil:
		return errors.New("url: credentials do not belong in it; the signature is what the receiver checks")
	case u.Scheme == "http" && len(r.Allow) == 0:
		return errors.New("url is http: want https, or addresses of one's own network in allow")
	case len(r.Secret) < 16:
		return errors.New("secret_file is required, with a secret of at least 16 bytes: without it the receiver could not tell a notice from a forgery")
	}
	for _, e := range r.Events {
		if !slices.Contains(pipeline.NoticeEvents(), e) {
			return fmt.Errorf("events has %q: want some of %s", e, strings.Join(pipeline.NoticeEvents(), ", "))
		}
	}
	return nil
}

// Run delivers until ctx is done. Of several processes, one does at a time; when
// it dies another one takes over, and what was on its way may be sent twice.
func (n *Notifier) Run(ctx context.Context) {
	for ctx.Err() == nil {
		unlock, err := n.cfg.Locker.Lock(ctx, "notify")
		if err != nil {
			if ctx.Err() == nil {
				n.cfg.Log.WarnContext(ctx, "notices wait for the database", "error", err)
				n.pause(ctx, n.cfg.Every)
			}
			continue
		}
		n.work(ctx)
		unlock()
	}
}

// work runs until ctx is done, each receiver on its own: one that is slow keeps
// nobody else waiting.
func (n *Notifier) work(ctx context.Context) {
	var all sync.WaitGroup
	all.Go(func() { n.repeat(ctx, "give", n.give) })
	for _, r := range n.cfg.Receivers {
		all.Go(func() { n.repeat(ctx, r.Name, func(ctx context.Context) error { return n.drain(ctx, r) }) })
	}
	all.Wait()
}

func (n *Notifier) repeat(ctx context.Context, what string, do func(context.Context) error) {
	for ctx.Err() == nil {
		if err := do(ctx); err != nil && ctx.Err() == nil {
			n.cfg.Log.WarnContext(ctx, "notices", "receiver", what, "error", err)
		}
		n.pause(ctx, n.cfg.Every)
	}
}

func (n *Notifier) pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// give hands new notices to those who want them. It does so without receivers
// too: one that is added later is not told of what was long ago.
func (n *Notifier) give(ctx context.Context) error {
	var pruned time.Time
	for {
		given, err := n.cfg.Queue.GiveNotices(ctx, func(notice pipeline.Notice) (to []string) {
			for _, r := range n.cfg.Receivers {
				if r.wants(notice) {
					to = append(to, r.Name)
				}
			}
			return to
		})
		if err != nil {
			return err
		}
		if given > 0 {
			continue
		}
		if now := n.cfg.Now(); now.Sub(pruned) > pruneEvery {
			pruned = now
			if err := n.cfg.Queue.PruneNotices(ctx); err != nil {
				return err
			}
		}
		n.pause(ctx, n.cfg.Every)
		if ctx.Err() != nil {
			return nil
		}
	}
}

// drain sends what is due, in order, up to the first that fails.
func (n *Notifier) drain(ctx context.Context, r Receiver) error {
	for {
		due, err := n.cfg.Queue.DueNotices(ctx, r.Name, patience, atOnce)
		if err != nil || len(due) == 0 {
			return err
		}
		for _, d := range due {
			ok, err := n.deliver(ctx, r, d)
			if err != nil {
				return err
			}
			if !ok {
				break // the queue says whether those behind it may pass
			}
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// deliver makes one attempt, and notes how it ended.
func (n *Notifier) deliver(ctx context.Context, r Receiver, d pipeline.NoticeDelivery) (ok bool, err error) {
	why := n.send(ctx, r, d)
	if ctx.Err() != nil {
		return false, nil // unknown; it is sent again
	}
	if why == nil {
		return true, n.cfg.Queue.NoticeDelivered(ctx, r.Name, d.ID)
	}
	wait := n.cfg.Backoff(d.Attempts + 1)
	var refused *refusedError
	if errors.As(why, &refused) {
		wait = max(wait, min(refused.after, time.Hour))
	}
	log := n.cfg.Log.With("receiver", r.Name, "notice", d.ID, "attempt", d.Attempts+1, "error", why)
	if age := n.cfg.Now().Sub(d.At); age+wait > giveUpAfter || (refused != nil && refused.status == http.StatusGone) {
		log.ErrorContext(ctx, "a notice was not delivered, and is given up")
		return false, n.cfg.Queue.NoticeGivenUp(ctx, r.Name, d.ID, why.Error())
	}
	log.WarnContext(ctx, "a notice was not delivered", "again_in", wait)
	return false, n.cfg.Queue.NoticeFailed(ctx, r.Name, d.ID, why.Error(), wait)
}
