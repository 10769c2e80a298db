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
	// RefuseDelivery notes that a webhook was not let in. It bounds by itself
	// what a flood of them can write.
	RefuseDelivery(context.Context, pipeline.Refusal) error
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
	Promotions(context.Context, pipeline.PromotionQuery) ([]pipeline.Promotion, error)
	PromotionDetail(context.Context, pipeline.PromotionID) (pipeline.PromotionDetail, error)

	// Approve keeps an approval or a rejection. A rejection ends the promotion as
	// refused; an approval has it looked at again. A promotion that does not wait
	// for approvals, a second word by the same person on the same plan, and a
	// plan that is not the promotion's (any more) are pipeline.ErrConflict.
	Approve(context.Context, pipeline.Approval) (pipeline.Promotion, error)
	// CancelPromotion calls off one that has not entered its environment yet;
	// else it is pipeline.ErrConflict.
	CancelPromotion(ctx context.Context, id pipeline.PromotionID, by, reason string) (pipeline.Promotion, error)

	// Projects lists the versions that are in force, by name.
	Projects(context.Context) ([]pipeline.ProjectVersion, error)
	// ProjectVersion returns one version, or with 0 the one in force.
	ProjectVersion(ctx context.Context, name string, version int) (pipeline.ProjectVersion, error)
	// ProjectVersions lists a project's versions, newest first, at most limit
	// that are older than before (0: from the newest).
	ProjectVersions(ctx context.Context, name string, before, limit int) ([]pipeline.ProjectVersion, error)
	// ApplyProject makes a new version the one in force. What is in force
	// already makes no new one (changed is false). If c.Base is not 0 and not
	// the version in force, it is pipeline.ErrConflict. What the settings file
	// says of the project (forge, source, clone URL, repositories) stays.
	ApplyProject(ctx context.Context, c pipeline.ProjectChange) (v pipeline.ProjectVersion, changed bool, err error)
	// Environments says what each of a project's environments holds, in order.
	Environments(ctx context.Context, project string) ([]pipeline.EnvironmentState, error)

	// AddException checks and keeps an exception, with a new id. A project or an
	// environment that does not exist is pipeline.ErrInvalid.
	AddException(context.Context, pipeline.Exception) (pipeline.Exception, error)
	// Exceptions lists them, newest first; all includes those that expired or
	// were revoked.
	Exceptions(ctx context.Context, project string, all bool, page pipeline.Page) ([]pipeline.Exception, error)
	// RevokeException takes one back; again is no error.
	RevokeException(ctx context.Context, project, id, by string) (pipeline.Exception, error)
	AddVEX(context.Context, pipeline.VEXDocument) (pipeline.VEXDocument, error)
	VEXDocuments(ctx context.Context, project string, all bool, page pipeline.Page) ([]pipeline.VEXDocument, error)
	RevokeVEX(ctx context.Context, project, id, by string) (pipeline.VEXDocument, error)

	// Drifts lists them, newest first; all includes those that were repaired or
	// resolved.
	Drifts(ctx context.Context, project string, all bool, page pipeline.Page) ([]pipeline.Drift, error)
	// Registries lists what the last probe of each registry learnt, by host.
	Registries(context.Context) ([]pipeline.RegistryProbe, error)
	// Rematches lists passes of re-matching, newest first.
	Rematches(context.Context, pipeline.Page) ([]pipeline.RematchPass, error)

	Auditor

	// Ready returns nil when the database answers and its schema is current.
	Ready(context.Context) error
}
