package main

import (
	"context"
	"time"

	"github.com/dray-project/dray/api"
	"github.com/dray-project/dray/pipeline"
	packer "github.com/dray-project/dray/pipeline/evidence"
)

// Settle implements evidence.Log: it waits until everything that was committed
// before has its place.
func (e evidence) Settle(ctx context.Context) ([]byte, error) {
	mark, err := e.store.LogMark(ctx)
	for wait := 20 * time.Millisecond; err == nil; wait = min(2*wait, 500*time.Millisecond) {
		var reached bool
		if reached, err = e.store.LogReached(ctx, mark); err != nil {
			return nil, err
		}
		if reached {
			return e.Checkpoint(ctx)
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(wait):
		}
	}
	return nil, err
}

// Entries implements evidence.Log.
func (e evidence) Entries(ctx context.Context, q pipeline.EntryQuery) ([]pipeline.LogEntry, error) {
	return e.store.LogEntries(ctx, q)
}

// Inclusion implements evidence.Log.
func (e evidence) Inclusion(ctx context.Context, index, size int64) (pipeline.Inclusion, error) {
	return e.Prove(ctx, index, size)
}

// collector packs evidence for the API. Where the log is not known, because this
// process has no key of it, bundles say that they are without it.
func (p *parts) collector(ctx context.Context) (func(context.Context, string, pipeline.Digest) (api.EvidenceBundle, error), error) {
	public, err := p.signer.PublicKey()
	if err != nil {
		return nil, err
	}
	config := packer.Config{Store: p.store, Registry: p.registry, Sealer: p.signer, SigningKey: public, LogKey: p.evidence.PublicKey(), Logger: p.log}
	if p.evidence.Log != nil {
		config.Log = p.evidence
	}
	c, err := packer.New(ctx, config)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, project string, d pipeline.Digest) (api.EvidenceBundle, error) {
		b, err := c.Prepare(ctx, project, d)
		if err != nil {
			return nil, err
		}
		return b, nil
	}, nil
}
