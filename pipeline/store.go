package pipeline

import (
	"context"
	"encoding/json"
	"fmt"
	"time"
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
	// Standing returns, as of one moment, what the record knows that the gate of
	// a promotion looks at.
	Standing(ctx context.Context, project, environment string, d Digest) (Standing, error)
	// RecordDecision keeps a promotion's last decision and finishes gate. One
	// that passed enters its environment in the same transaction: promotions of
	// the same project into the same environment that are older and wait end as
	// superseded, and until this one ends no other enters. If another is inside
	// already, the error is a *BusyError and nothing is written.
	RecordDecision(context.Context, Claim, Judged) error
	// Wait keeps a decision that is not the last, with the difference, puts the
	// promotion into StateWaiting and ends the attempt. The promotion is worked
	// on again when w.Decision.Until comes, when somebody approves, or when
	// the promotion that it is behind has ended (at once, if it has already).
	Wait(context.Context, Claim, Waiting) error

	// RecordTags writes the tags, finishes the stage, ends the job as succeeded
	// and starts the promotions that follow from it.
	RecordTags(ctx context.Context, c Claim, moves []TagMove, next []PromotionRequest) error
	// Placed lists what should be where, in the order of the promotions' ids after
	// the one given, at most limit: every image that an environment holds now or
	// that carries a tag of Dray's there.
	Placed(ctx context.Context, after PromotionID, limit int) ([]Placed, error)
	// PlacedAt returns what Placed says of one promotion; ErrNotFound if it is
	// not, or not any more, among them.
	PlacedAt(context.Context, PromotionID) (Placed, error)
	// RecordDrift writes what was found wrong at one place just now: what is not
	// on record yet opens a drift, what is takes over the repair or what blocked
	// it, and open drifts of that place that were not found are resolved. It
	// returns those that are open or were repaired just now.
	RecordDrift(ctx context.Context, at Placed, found []Drift) ([]Drift, error)
	// End ends an open job: failed or refused. A job that is final stays as it is.
	End(context.Context, JobID, Ending) error
}

// Locker serialises work across processes.
type Locker interface {
	// Lock waits until the key is free or ctx is done. The lock is gone when
	// unlock is called, or when the process that holds it dies.
	Lock(ctx context.Context, key string) (unlock func(), err error)
}

// Judged is the last decision of a promotion's gate, with what it was about.
type Judged struct {
	Decision Decision `json:"decision"`
	Diff     Diff     `json:"diff"`
	// Summary is the signed verification summary of the decision.
	Summary Sealed `json:"summary"`
}

// Waiting is a decision that is not the last.
type Waiting struct {
	Decision Decision `json:"decision"`
	Diff     Diff     `json:"diff"`
	// Behind is the promotion that is inside the environment, if that is what
	// this one waits for.
	Behind PromotionID `json:"behind,omitempty"`
}

// BusyError says that another promotion is inside the environment.
type BusyError struct {
	Environment string
	By          PromotionID
}

func (e *BusyError) Error() string {
	return fmt.Sprintf("promotion %s is entering %s at this moment", e.By, e.Environment)
}

func (e *BusyError) Unwrap() error { return ErrConflict }

// Standing is what the record knows of an image and an environment.
type Standing struct {
	// Now is the database's clock: it is one clock for every process.
	Now time.Time
	// Reached are the environments that the digest was promoted to.
	Reached []ReachedFact
	// Current is what the environment holds; nil when it is empty.
	Current *PlacedImage
	// Versions are those that the digest was released under, highest first.
	Versions []string
	// Withdrawn are versions that the environment was rolled back from and that
	// were not promoted to it again.
	Withdrawn []string
	// Exceptions of the project that nobody revoked, expired ones of the last
	// thirty days included, so that it can be said that they are.
	Exceptions []Exception
	// VEX are the project's documents that nobody revoked.
	VEX []VEXDocument
	// Pushes to the project, newest first, as far back as is useful: 500.
	Pushes []Event
}
