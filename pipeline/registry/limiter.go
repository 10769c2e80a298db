package registry

import (
	"context"
	"slices"
	"sync"
	"time"
)

// limiter bounds the requests in flight to one host and makes all of them wait
// when the host asked for it.
type limiter struct {
	slots chan struct{}
	mu    sync.Mutex
	until time.Time // nobody sends before
}

func newLimiter(parallel int) *limiter { return &limiter{slots: make(chan struct{}, parallel)} }

// acquire waits for a slot. release may be called more than once.
func (l *limiter) acquire(ctx context.Context) (release func(), err error) {
	select {
	case l.slots <- struct{}{}:
		return sync.OnceFunc(func() { <-l.slots }), nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// pause makes everybody wait at least until then.
func (l *limiter) pause(until time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if until.After(l.until) {
		l.until = until
	}
}

// rest waits until the pause is over.
func (l *limiter) rest(ctx context.Context) error {
	for {
		l.mu.Lock()
		d := time.Until(l.until)
		l.mu.Unlock()
		if d <= 0 {
			return nil
		}
		if err := sleep(ctx, d); err != nil {
			return err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// limiters are the limiters of all hosts.
type limiters struct {
	parallel int
	mu       sync.Mutex
	byHost   map[string]*limiter
}

func (l *limiters) of(host string) *limiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.byHost == nil {
		l.byHost = map[string]*limiter{}
	}
	lim, ok := l.byHost[host]
	if !ok {
		lim = newLimiter(l.parallel)
		l.byHost[host] = lim
	}
	return lim
}

type heldKey struct{}

// hold takes one slot of each host for work that has requests to them in flight
// at once: a blob that is read here and written there. Requests with the
// context that it returns use those slots. The hosts are taken in one order, so
// that two transfers in opposite directions never wait for each other.
func (l *limiters) hold(ctx context.Context, hosts ...string) (_ context.Context, release func(), err error) {
	hosts = slices.Clone(hosts)
	slices.Sort(hosts)
	hosts = slices.Compact(hosts)
	var releases []func()
	release = func() {
		for _, r := range releases {
			r()
		}
	}
	for _, h := range hosts {
		free, err := l.of(h).acquire(ctx)
		if err != nil {
			release()
			return nil, nil, err
		}
		releases = append(releases, free)
	}
	return context.WithValue(ctx, heldKey{}, hosts), release, nil
}

// slot takes a slot of the host, or uses the one that the context holds.
func (l *limiters) slot(ctx context.Context, host string) (release func(), err error) {
	if holds(ctx, host) {
		return func() {}, nil
	}
	return l.of(host).acquire(ctx)
}

// holds reports whether the context holds a slot of the host.
func holds(ctx context.Context, host string) bool {
	held, _ := ctx.Value(heldKey{}).([]string)
	return slices.Contains(held, host)
}
