package api

import (
	"context"
	"encoding/json"

	"github.com/dray-project/dray/pipeline"
)

// Store is what the API asks of the database. A missing thing is an error that
// wraps pipeline.ErrNotFound.
type Store interface {
	// Accept writes the delivery, the run and its job in one transaction. The
	// same delivery id, or the same event under another id, gives the first
	// one's run, or the newest retry of that, and writes no second.
	Accept(context.Context, pipeline.Delivery) (pipeline.Accepted, error)
	// Retry writes a new run of the same event, and its job, in one transaction,
	// if the run failed or was refused. While a run of that event is open, it
	// gives that one (created is false). A run that is open itself, or an event
	// of which a run succeeded, is pipeline.ErrConflict.
	Retry(ctx context.Context, id pipeline.RunID, requestedBy string) (r pipeline.Run, created bool, err error)
	// Promote writes the promotion and its job in one transaction. The same
	// idempotency key by the same requester gives the first promotion again
	// (created is false), or pipeline.ErrConflict if what it asks for differs.
	Promote(context.Context, pipeline.PromotionRequest) (p pipeline.Promotion, created bool, err error)

	// TokenBySecret finds the unexpired token with that secret.
	TokenBySecret(ctx context.Context, secret string) (pipeline.Token, error)

	Runs(ctx context.Context, project string, state pipeline.State, page pipeline.Page) ([]pipeline.Run, error)
	RunDetail(context.Context, pipeline.RunID) (pipeline.RunDetail, error)
	// Events returns at most limit events of a job after seq, and whether the
	// job is final and has no later ones.
	Events(ctx context.Context, job pipeline.JobID, after int64, limit int) (events []pipeline.JobEvent, end bool, err error)
	// ImageDetails returns the image in every project that holds it.
	ImageDetails(ctx context.Context, d pipeline.Digest, project string) ([]pipeline.ImageDetail, error)
	// SBOM returns the CycloneDX document of one platform of an image.
	SBOM(ctx context.Context, project string, d pipeline.Digest, platform pipeline.Platform) (json.RawMessage, error)
	Packages(context.Context, pipeline.PackageQuery) ([]pipeline.PackageUse, error)
	Promotions(ctx context.Context, project string, page pipeline.Page) ([]pipeline.Promotion, error)
	PromotionDetail(context.Context, pipeline.PromotionID) (pipeline.PromotionDetail, error)
	// Ready returns nil when the database answers and its schema is current.
	Ready(context.Context) error
}
