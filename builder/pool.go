package builder

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/moby/buildkit/client"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/dray-project/dray/pipeline"
)

const (
	// probeTimeout is how long a member may take to say that it is well.
	probeTimeout = 5 * time.Second
	// probeFresh is how long a good answer is believed.
	probeFresh = 10 * time.Second
)

// Member is one buildkitd of the pool, as it answered.
type Member struct {
	Address string
	// Version is "v0.33.1", or whatever the daemon was built to say.
	Version string
	// Platforms that it builds for; the first is its own.
	Platforms []pipeline.Platform
	// Err says why it did not answer; nil when it did.
	Err error
}

type member struct {
	address string
	client  *client.Client

	mu     sync.Mutex
	last   Member
	probed time.Time
}

// pool is the set of buildkitd that builds are spread over.
type pool struct{ members []*member }

func newPool(ctx context.Context, addresses []string, t *TLS) (*pool, error) {
	p := &pool{}
	for _, a := range addresses {
		// gRPC's own patience grows to two minutes; a daemon that is back should
		// be found sooner.
		params := grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: probeTimeout}
		params.Backoff.MaxDelay = 3 * time.Second
		opts := []client.ClientOpt{client.WithGRPCDialOption(grpc.WithConnectParams(params))}
		if t != nil && strings.HasPrefix(a, "tcp://") {
			opts = append(opts, client.WithServerConfig(t.ServerName, t.CA))
			if t.Cert != "" {
				opts = append(opts, client.WithCredentials(t.Cert, t.Key))
			}
		}
		c, err := client.New(ctx, a, opts...)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("builder: Addresses: %q: %w", a, err), p.close())
		}
		p.members = append(p.members, &member{address: a, client: c})
	}
	return p, nil
}

func (p *pool) close() error {
	var errs []error
	for _, m := range p.members {
		errs = append(errs, m.client.Close())
	}
	return errors.Join(errs...)
}

// probe asks the member how it is. A good answer younger than fresh is reused.
func (m *member) probe(ctx context.Context, fresh time.Duration) Member {
	m.mu.Lock()
	last, probed := m.last, m.probed
	m.mu.Unlock()
	if last.Err == nil && !probed.IsZero() && time.Since(probed) < fresh {
		return last
	}
	now := m.ask(ctx)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last, m.probed = now, time.Now()
	return now
}

// forget makes the next probe ask: something just failed there.
func (m *member) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.probed = time.Time{}
}

func (m *member) ask(ctx context.Context) Member {
	ctx, cancel := context.WithTimeoutCause(ctx, probeTimeout, fmt.Errorf("no answer within %s", probeTimeout))
	defer cancel()
	out := Member{Address: m.address}
	workers, err := m.client.ListWorkers(ctx)
	switch {
	case err != nil:
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		out.Err = fmt.Errorf("buildkitd at %s: %s: %w", m.address, tidyMessage(err.Error()), err)
	case len(workers) == 0:
		out.Err = fmt.Errorf("buildkitd at %s has no worker", m.address)
	default:
		out.Version = workers[0].BuildkitVersion.Version
		for _, pl := range workers[0].Platforms {
			s := pl.OS + "/" + pl.Architecture
			if pl.Variant != "" {
				s += "/" + pl.Variant
			}
			out.Platforms = append(out.Platforms, pipeline.Platform(s))
		}
	}
	return out
}

// probeAll asks every member at once and answers in the order of the addresses.
func (p *pool) probeAll(ctx context.Context, fresh time.Duration) []Member {
	out := make([]Member, len(p.members))
	var wg sync.WaitGroup
	for i, m := range p.members {
		wg.Go(func() { out[i] = m.probe(ctx, fresh) })
	}
	wg.Wait()
	return out
}

// pick returns the member that a key and platform belong to among those that
// answer and are not in avoid. Members that run the platform natively come
// first; among equals the rendezvous hash decides, so that a project's next
// build finds its cache and a lost member moves only its own keys. When every
// member that answers is to be avoided, avoid is ignored.
func (p *pool) pick(ctx context.Context, key string, platform pipeline.Platform, avoid map[string]bool) (*member, Member, error) {
	all := p.probeAll(ctx, probeFresh)
	if err := ctx.Err(); err != nil {
		return nil, Member{}, err
	}
	order := rank(all, key, platform)
	for _, skip := range []map[string]bool{avoid, nil} {
		for _, i := range order {
			if all[i].Err == nil && !skip[all[i].Address] {
				return p.members[i], all[i], nil
			}
		}
	}
	var errs []error
	for _, m := range all {
		errs = append(errs, m.Err)
	}
	return nil, Member{}, fmt.Errorf("no buildkitd answers; check that it runs and that the address is right: %w", errors.Join(errs...))
}

// rank orders the indexes of members for a key and platform.
func rank(members []Member, key string, platform pipeline.Platform) []int {
	scores := make([][]byte, len(members))
	order := make([]int, len(members))
	for i, m := range members {
		order[i] = i
		sum := sha256.Sum256([]byte(key + "\x00" + string(platform) + "\x00" + m.Address))
		scores[i] = sum[:]
	}
	native := func(m Member) bool {
		if len(m.Platforms) == 0 || platform == "" {
			return false
		}
		os, arch, _ := m.Platforms[0].Parts()
		wantOS, wantArch, _ := platform.Parts()
		return os == wantOS && arch == wantArch
	}
	sort.Slice(order, func(a, b int) bool {
		i, j := order[a], order[b]
		if ni, nj := native(members[i]), native(members[j]); ni != nj {
			return ni
		}
		return bytes.Compare(scores[i], scores[j]) > 0
	})
	return order
}

// Ping asks every buildkitd of the pool and returns the answers in the order of
// the addresses. The error is nil when at least one is well.
func (b *Builder) Ping(ctx context.Context) ([]Member, error) {
	members := b.pool.probeAll(ctx, 0)
	var errs []error
	for _, m := range members {
		if m.Err == nil {
			return members, nil
		}
		errs = append(errs, m.Err)
	}
	return members, errors.Join(errs...)
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails
	return b
}
