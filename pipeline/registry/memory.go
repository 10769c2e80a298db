package registry

import (
	"context"
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
