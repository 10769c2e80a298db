package pipeline

import (
	"context"
	"encoding/json"
)

// Claim is one attempt at one stage. A claim is superseded when a later attempt
// at the same stage starts; every write that carries a superseded claim fails
// with ErrStale and changes nothing.
type Claim struct {
	Job     JobID
	Stage   Stage
	Attempt int
	// Done: the stage finished before, and Outcome is what it recorded. There
	// is nothing to run and nothing to finish.
	Done    bool
	Outcome json.RawMessage
}

// Ending is how a job ends.
type Ending struct {
	State  State // a final one
	Reason string
}

// Store keeps runs and promotions. When a method returns nil, what it wrote is
// committed; when it returns an error, either nothing was written or everything
// was (a connection can break after the commit), and the caller finds out by
// starting the stage again.
type Store interface {
	Run(context.Context, RunID) (Run, error)
	Promotion(context.Context, PromotionID) (Promotion, error)
	// Project returns the settings that are in force now.
	Project(ctx context.Context, name string) (Project, error)

	// StartStage claims a stage under the next attempt number, moves a queued
	// job to running, and writes a stage event. If the stage has finished
	// before, the claim says so and nothing is written. A job in a final state
	// gives ErrConflict.
	StartStage(context.Context, JobID, Stage) (Claim, error)
	// Holds returns ErrStale if the claim is superseded or the job is final.
	// Effects ask it right before they touch the world.
	Holds(context.Context, Claim) error
	// FinishStage records the outcome and a stage event.
	FinishStage(context.Context, Claim, json.RawMessage) error
	// FailStage records that this attempt failed and why.
	FailStage(ctx context.Context, c Claim, reason string) error
	// AppendEvents gives the events their sequence numbers and stores them.
	AppendEvents(context.Context, Claim, []JobEvent) error

	// RecordSource notes the commit of a run, and finishes resolve.
	RecordSource(context.Context, Claim, Source) error
	// RecordBuilt notes the image of a run, and finishes build.
	RecordBuilt(context.Context, Claim, Built) error
	// FindBuilt returns the image that an earlier, recorded run of the project
	// built from the same commit by the same plan; the bases may differ: one commit
	// is one image. ErrNotFound if none.
	FindBuilt(ctx context.Context, project string, s Source) (Built, error)
	// RecordImage writes the image with its platforms, packages, findings,
	// SBOMs, signatures, attestations and decision, and finishes record.
	RecordImage(context.Context, Claim, ImageRecord) error
	// ImageRecord returns the newest record of an image within a project.
	ImageRecord(ctx context.Context, project string, d Digest) (ImageRecord, error)
	// RecordPlacement writes that the image is at its destination, verified,
	// and finishes record.
	RecordPlacement(context.Context, Claim, Placement) error
	// RecordDecision keeps a promotion's decision, and finishes gate.
	RecordDecision(context.Context, Claim, Decision) error

	// RecordTags writes the tags, finishes the stage and ends the job as succeeded.
	RecordTags(context.Context, Claim, []TagMove) error
	// ImageVersions returns the semantic versions ("1.2.3") under which runs of
	// the project released that digest, highest first.
	ImageVersions(ctx context.Context, project string, d Digest) ([]string, error)
	// End ends an open job: failed or refused. A job that is final stays as it is.
	End(context.Context, JobID, Ending) error
}

// Locker serialises work across processes.
type Locker interface {
	// Lock waits until the key is free or ctx is done. The lock is gone when
	// unlock is called, or when the process that holds it dies.
	Lock(ctx context.Context, key string) (unlock func(), err error)
}
