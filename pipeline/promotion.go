package pipeline

import "time"

// PromotionID names a promotion: "prm_" and 20 characters.
type PromotionID string

// Job is the promotion as a JobID.
func (id PromotionID) Job() JobID { return JobID(id) }

// The stages of a promotion, in order. StageGate, StageRecord and StageTag are
// shared with runs.
const (
	// StageAdmit verifies the image where it comes from.
	StageAdmit Stage = "admit"
	StageCopy  Stage = "copy"
	// StageConfirm verifies the image where it went.
	StageConfirm Stage = "confirm"
)

// PromotionStages lists the stages of a promotion in their order.
func PromotionStages() []Stage {
	return []Stage{StageAdmit, StageGate, StageCopy, StageConfirm, StageRecord, StageTag}
}

// Promotion is the request to bring one digest into one environment, and what
// became of it.
type Promotion struct {
	ID          PromotionID `json:"id"`
	Project     string      `json:"project"`
	Image       Image       `json:"image"` // where it comes from
	Environment string      `json:"environment"`
	RequestedBy string      `json:"requestedBy"`
	State       State       `json:"state"`
	Reason      string      `json:"reason,omitempty"`
	Decision    *Decision   `json:"decision,omitempty"`
	// Destination is where the image went, once it is recorded there.
	Destination *Image     `json:"destination,omitempty"`
	Tags        []TagMove  `json:"tags,omitempty"`
	CreatedAt   time.Time  `json:"createdAt"`
	FinishedAt  *time.Time `json:"finishedAt,omitempty"`
}

// Placement is the record of an image at a destination: written after it was
// verified there and before any tag moves.
type Placement struct {
	Copied   Copied     `json:"copied"`
	Decision Decision   `json:"decision"`
	Verified []Verified `json:"verified"`
}
