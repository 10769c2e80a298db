package postgres

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

const (
	// refusalsEvery is how often one kind of refusal is written.
	refusalsEvery = time.Minute
	// maxRefusals is how many kinds are told apart at a time; all others are one.
	maxRefusals = 16
	// elsewhere stands for the networks of all others.
	elsewhere = "elsewhere"
)

// RefuseDelivery notes in the evidence log that a webhook was not let in. Whoever
// knows the address can cause it, so it is bounded: for each forge and network (24
// bits of an IPv4 address, 48 of an IPv6 address) one entry is written each
// minute, which counts those that came since the entry before; and beyond 16
// of them at a time, one for all others. That is per process and makes at most 17
// entries a minute. A count that is still open is written with the next refusal,
// wherever that comes from, and lost with the process.
func (s *Store) RefuseDelivery(ctx context.Context, r pipeline.Refusal) error {
	due := s.refusals.add(time.Now(), r)
	if len(due) == 0 {
		return nil
	}
	err := s.tx(ctx, func(tx pgx.Tx) error {
		for _, d := range due {
			said := data{"forge": short(d.last.Forge), "from": d.network, "count": d.count, "reason": short(d.last.Reason),
				"delivery": short(d.last.Delivery), "body": d.last.Body}
			if d.since != (time.Time{}) {
				said["since"] = d.since.UTC()
			}
			err := s.entry(ctx, tx, pipeline.Entry{Kind: pipeline.EntryDeliveryRefused, Project: cut(d.last.Project, 63), Actor: actorDray, Data: said.json()})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		s.refusals.giveBack(due)
	}
	return wrap(err, "note that a delivery from %s was refused", r.Forge)
}

// refusal counts one kind.
type refusal struct {
	forge, network string
	count          int
	// since is when counting began: when it was written last; zero for the first.
	since time.Time
	last  pipeline.Refusal
}

// refusals counts what was not written yet.
type refusals struct {
	mu    sync.Mutex
	kinds []refusal
}

// add counts a refusal and returns what is due.
func (k *refusals) add(now time.Time, r pipeline.Refusal) (due []refusal) {
	k.mu.Lock()
	defer k.mu.Unlock()
	// Those that have been quiet for long are forgotten, and make room.
	k.kinds = slices.DeleteFunc(k.kinds, func(f refusal) bool { return f.count == 0 && now.Sub(f.since) >= refusalsEvery })
	f := k.find(r.Forge, networkOf(r.From))
	f.count++
	f.last = r
	f.last.Forge, f.last.Project = strings.Clone(r.Forge), strings.Clone(r.Project) // not the whole request with them
	for i := range k.kinds {
		if f := &k.kinds[i]; f.count > 0 && now.Sub(f.since) >= refusalsEvery {
			due = append(due, *f)
			f.count, f.since = 0, now
		}
	}
	return due
}

func (k *refusals) find(forge, network string) *refusal {
	is := func(f refusal) bool { return f.forge == forge && f.network == network }
	i := slices.IndexFunc(k.kinds, is)
	if i < 0 && len(k.kinds) >= maxRefusals {
		forge, network = "", elsewhere
		i = slices.IndexFunc(k.kinds, is)
	}
	if i < 0 {
		k.kinds = append(k.kinds, refusal{forge: forge, network: network})
		i = len(k.kinds) - 1
	}
	return &k.kinds[i]
}

// giveBack counts again what could not be written.
func (k *refusals) giveBack(due []refusal) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, d := range due {
		f := k.find(d.forge, d.network)
		f.count += d.count
		f.since = d.since
		if f.last.Forge == "" {
			f.last = d.last
		}
	}
}

func networkOf(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	a = a.Unmap()
	bits := 48
	if a.Is4() {
		bits = 24
	}
	p, err := a.WithZone("").Prefix(bits)
	if err != nil {
		return ""
	}
	return p.String()
}
