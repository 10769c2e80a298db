package registry

import (
	"context"
	"fmt"
	"time"

	"github.com/dray-project/dray/pipeline"
)

// Memory keeps what was verified where, so that a copy need not ask for it
// again. It is a help and never the truth: losing entries costs requests, and
// an error from it is logged and taken for having no memory. All processes may
// share one. It must be safe for concurrent use.
//
// repository is the registry's canonical host and the path,
// "registry.example:5000/team/app": the same for every way to write it.
type Memory interface {
	// Known returns those of the digests that were remembered in the repository
	// within the given time, by the memory's own clock, as they were remembered.
	Known(ctx context.Context, repository string, digests []pipeline.Digest, within time.Duration) (map[pipeline.Digest]pipeline.Content, error)
	// Remember notes that these were verified in the repository just now. An
	// entry of the same repository and digest is replaced, its time too. One call
	// never names a digest twice.
	Remember(ctx context.Context, repository string, contents []pipeline.Content) error
	// Forget removes the entries; what is not there is no error.
	Forget(ctx context.Context, repository string, digests []pipeline.Digest) error
}

// known asks the memory for what was verified in the repository.
func (p *repository) known(ctx context.Context, digests []pipeline.Digest) map[pipeline.Digest]pipeline.Content {
	if p.r.memory == nil || len(digests) == 0 {
		return nil
	}
	known, err := p.r.memory.Known(ctx, p.String(), digests, p.r.memoryAge)
	if err != nil {
		p.r.log.WarnContext(ctx, "what was verified before is not known, so everything is asked for again",
			"repository", p.String(), "error", err)
		return nil
	}
	return known
}

// remember notes what was verified, also when the work is being cancelled.
func (p *repository) remember(ctx context.Context, contents []pipeline.Content) {
	if p.r.memory == nil || len(contents) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), memoryPatience)
	defer cancel()
	if err := p.r.memory.Remember(ctx, p.String(), contents); err != nil {
		p.r.log.WarnContext(ctx, "what was verified is not remembered, and will be asked for again",
			"repository", p.String(), "error", err)
	}
}

// forget drops what turned out not to be there. An error is the caller's: a
// memory that keeps what is wrong would be believed again.
func (p *repository) forget(ctx context.Context, digests []pipeline.Digest) error {
	for _, d := range digests {
		p.r.cache.forget(p.String(), d)
	}
	if p.r.memory == nil || len(digests) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), memoryPatience)
	defer cancel()
	if err := p.r.memory.Forget(ctx, p.String(), digests); err != nil {
		return fmt.Errorf("forget what is not in %s any more: %w", p, err)
	}
	return nil
}

// memoryPatience bounds how long a copy that is over waits for its memory.
const memoryPatience = 5 * time.Second
