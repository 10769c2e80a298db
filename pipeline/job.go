package pipeline

import (
	"fmt"
	"time"
)

// JobID names a run or a promotion; stages and events hang off either.
type JobID string

// RunID names a run: "run_" and 20 characters, in order of creation.
type RunID string

// Job is the run as a JobID.
func (id RunID) Job() JobID { return JobID(id) }

// Stage is one step of a run or of a promotion.
type Stage string

// The stages of a run, in order. Record comes before Tag, so that nothing ever
// carries a tag of Dray's without a record.
const (
	StageResolve Stage = "resolve"
	StageBuild   Stage = "build"
	StageScan    Stage = "scan"
	StageGate    Stage = "gate"
	StageSign    Stage = "sign"
	StageVerify  Stage = "verify"
	StageRecord  Stage = "record"
	StageTag     Stage = "tag"
)

// RunStages lists the stages of a run in their order.
func RunStages() []Stage {
	return []Stage{StageResolve, StageBuild, StageScan, StageGate, StageSign, StageVerify, StageRecord, StageTag}
}

// State of a run or a promotion.
type State string

// Queued, running and waiting are open; the others are final.
const (
	StateQueued  State = "queued"
	StateRunning State = "running"
	// StateWaiting: a promotion that nobody works on, because people or time
	// have to do something first.
	StateWaiting   State = "waiting"
	StateSucceeded State = "succeeded"
	StateFailed    State = "failed"
	StateRefused   State = "refused"
	// StateCancelled: somebody called the promotion off.
	StateCancelled State = "cancelled"
	// StateSuperseded: a newer promotion entered the environment first.
	StateSuperseded State = "superseded"
)

// Final reports whether the state never changes again.
func (s State) Final() bool {
	switch s {
	case StateSucceeded, StateFailed, StateRefused, StateCancelled, StateSuperseded:
		return true
	}
	return false
}

// Run is one image built from one commit.
type Run struct {
	ID      RunID  `json:"id"`
	Project string `json:"project"`
	Event   Event  `json:"event"`
	State   State  `json:"state"`
	// Reason says why a run failed or was refused.
	Reason     string     `json:"reason,omitempty"`
	Commit     string     `json:"commit,omitempty"` // once resolved
	Image      *Image     `json:"image,omitempty"`  // once built
	CreatedAt  time.Time  `json:"createdAt"`
	StartedAt  *time.Time `json:"startedAt,omitempty"`
	FinishedAt *time.Time `json:"finishedAt,omitempty"`
	// RetryOf is the run that this one repeats; empty for one that an event started.
	RetryOf RunID `json:"retryOf,omitempty"`
	// RequestedBy asked for the retry; empty for a run that an event started.
	RequestedBy string `json:"requestedBy,omitempty"`
}

// Retryable returns nil if the run may be run again, because it failed or was
// refused, and otherwise an ErrConflict that says what stands against it.
func (r Run) Retryable() error {
	switch {
	case !r.State.Final():
		return fmt.Errorf("run %s is still %s, and only one that failed or was refused can be retried: %w", r.ID, r.State, ErrConflict)
	case r.State == StateSucceeded:
		return fmt.Errorf("run %s succeeded, so there is nothing to retry: %w", r.ID, ErrConflict)
	}
	return nil
}

// Source is the outcome of resolve: exactly what is to be built, and how.
type Source struct {
	CloneURL string `json:"cloneURL"`
	Ref      string `json:"ref"`
	// Commit is the full SHA; of an annotated tag, the commit that it names.
	Commit     string    `json:"commit"`
	CommitTime time.Time `json:"commitTime"`
	Plan       Plan      `json:"plan"`
	// Bases are the images that the Dockerfile starts from, pinned.
	Bases []Material `json:"bases"`
	// Lint is what BuildKit's checks object to in the Dockerfile.
	Lint []LintFinding `json:"lint,omitempty"`
}

// Plan says how to build; it comes from .dray.yaml or from the only Dockerfile.
type Plan struct {
	// Context is a directory within the repository, "." for its root.
	Context string `json:"context"`
	// Dockerfile is a path within the repository.
	Dockerfile string            `json:"dockerfile"`
	Target     string            `json:"target,omitempty"`
	Args       map[string]string `json:"args,omitempty"`
	Platforms  []Platform        `json:"platforms"`
	// Ignore holds the patterns of .dockerignore: what stays out of the context.
	Ignore []string `json:"ignore,omitempty"`
}

// Material is something that went into a build.
type Material struct {
	// URI as SLSA wants it: "pkg:docker/…", "git+https://…", or an image name.
	URI    string `json:"uri"`
	Digest Digest `json:"digest,omitempty"`
	// Pinned: the source itself named the digest.
	Pinned bool `json:"pinned"`
}

// Built is the outcome of build.
type Built struct {
	Image     Image           `json:"image"` // the index
	Platforms []PlatformImage `json:"platforms"`
	// Run that did the building; an unchanged commit reuses an earlier run's image.
	Run        RunID     `json:"run"`
	Source     Source    `json:"source"`
	Builder    string    `json:"builder"` // "buildkitd v0.33.1"
	StartedAt  time.Time `json:"startedAt"`
	FinishedAt time.Time `json:"finishedAt"`
}

// PlatformImages names the index first and then each platform's manifest: what
// is signed, attested and verified.
func (b Built) PlatformImages() []Image {
	images := []Image{b.Image}
	for _, p := range b.Platforms {
		images = append(images, Image{Repository: b.Image.Repository, Digest: p.Digest})
	}
	return images
}

// Event kinds.
const (
	KindState = "state" // the run or promotion changed its state
	KindStage = "stage" // a stage started, finished or failed
	KindStep  = "step"  // a build step changed
	KindLog   = "log"   // a line of output
)

// JobEvent is something that happened to a run or a promotion, as its followers
// see it.
type JobEvent struct {
	// Seq counts from 1 without gaps within a job.
	Seq     int64     `json:"seq"`
	Time    time.Time `json:"time"`
	Kind    string    `json:"kind"`
	Stage   Stage     `json:"stage,omitempty"`
	Attempt int       `json:"attempt,omitempty"`
	// State of the job, or of the stage: started, succeeded, failed.
	State   string `json:"state,omitempty"`
	Message string `json:"message,omitempty"`
	Step    *Step  `json:"step,omitempty"`
	Log     *Line  `json:"log,omitempty"`
}

// Step is one step of a build on one platform.
type Step struct {
	ID        string     `json:"id"`
	Platform  Platform   `json:"platform,omitempty"`
	Name      string     `json:"name"`
	Started   *time.Time `json:"started,omitempty"`
	Completed *time.Time `json:"completed,omitempty"`
	Cached    bool       `json:"cached,omitempty"`
	Error     string     `json:"error,omitempty"`
}

// Line is one line that a build step printed, without its line end and
// without control characters.
type Line struct {
	Step     string   `json:"step"`
	Platform Platform `json:"platform,omitempty"`
	Text     string   `json:"text"`
}

// StageStatus is what the store knows of a stage.
type StageStatus struct {
	Stage      Stage      `json:"stage"`
	Attempt    int        `json:"attempt"`
	State      string     `json:"state"` // started, succeeded, failed
	Reason     string     `json:"reason,omitempty"`
	StartedAt  time.Time  `json:"startedAt"`
	FinishedAt *time.Time `json:"finishedAt,omitempty"`
}
