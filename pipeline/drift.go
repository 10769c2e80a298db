package pipeline

import "time"

// Kinds of drift.
const (
	// DriftTag: a tag of Dray's names something else, or is gone.
	DriftTag = "tag"
	// DriftMissing: a manifest or a blob of a recorded image cannot be read.
	DriftMissing = "missing"
	// DriftUnlisted: a signature or another referrer is there, but not in the
	// list by which it would be found.
	DriftUnlisted = "unlisted"
	// DriftUnverified: everything is there, and yet it does not verify.
	DriftUnverified = "unverified"
)

// Drift is a place where a registry is not as the record says.
type Drift struct {
	ID          string `json:"id"` // "dft_" and 20 characters
	Project     string `json:"project"`
	Environment string `json:"environment"` // empty: where images are built to
	Image       Image  `json:"image"`
	Kind        string `json:"kind"`
	// Subject is the tag or the digest that it is about.
	Subject string `json:"subject"`
	// Detail says in words what is there instead.
	Detail     string    `json:"detail"`
	DetectedAt time.Time `json:"detectedAt"`
	// RepairedAt is when Dray put it right; Repair says how.
	RepairedAt *time.Time `json:"repairedAt,omitempty"`
	Repair     string     `json:"repair,omitempty"`
	// ResolvedAt is when it was found to be right again, by whomever.
	ResolvedAt *time.Time `json:"resolvedAt,omitempty"`
	// Blocked says why Dray does not, or could not, repair it; empty when it did.
	Blocked string `json:"blocked,omitempty"`
}

// Placed is what the record says of one image in one place.
type Placed struct {
	Project     string      `json:"project"`
	Environment string      `json:"environment"`
	Promotion   PromotionID `json:"promotion"`
	// Source is where it was copied from, Image where it is.
	Source   Image     `json:"source"`
	Image    Image     `json:"image"`
	Contents []Content `json:"contents"`
	// Verified is what verified there when it was recorded.
	Verified []Verified `json:"verified"`
	// Tags that should name it.
	Tags []string `json:"tags"`
	// Current: the environment holds it now.
	Current bool `json:"current"`
}
