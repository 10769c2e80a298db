package pipeline

import (
	"encoding/json"
	"time"
)

// Page asks for a part of a list, newest first.
type Page struct {
	// Limit is from 1 to 200.
	Limit int
	// After is the id of the last item of the page before; empty for the first.
	After string
}

// RunDetail is a run with its stages, decision and tags.
type RunDetail struct {
	Run
	Source   *Source       `json:"source,omitempty"`
	Stages   []StageStatus `json:"stages"`
	Decision *Decision     `json:"decision,omitempty"`
	Findings Findings      `json:"findings"`
	Tags     []TagMove     `json:"tags"`
}

// Findings counts what a scan found.
type Findings struct {
	Critical int `json:"critical"`
	High     int `json:"high"`
	Medium   int `json:"medium"`
	Low      int `json:"low"`
	Unknown  int `json:"unknown"`
}

// PromotionDetail is a promotion with its stages and what verified at the
// destination.
type PromotionDetail struct {
	Promotion
	Stages []StageStatus `json:"stages"`
	// Diff is what the promotion changes, as approvers are shown it; nil before
	// its gate was asked.
	Diff *Diff `json:"diff,omitempty"`
	// Summary is the signed verification summary of the last decision.
	Summary  *Sealed    `json:"summary,omitempty"`
	Copied   *Copied    `json:"copied,omitempty"`
	Verified []Verified `json:"verified,omitempty"`
}

// ImageDetail is everything that Dray knows of an image within one project.
type ImageDetail struct {
	Project    string          `json:"project"`
	Image      Image           `json:"image"`
	Run        RunID           `json:"run"`
	RecordedAt time.Time       `json:"recordedAt"`
	Source     Source          `json:"source"`
	Builder    string          `json:"builder"`
	Platforms  []PlatformImage `json:"platforms"`
	// ScannedAt, Scanner and Database say how the findings came about.
	ScannedAt time.Time             `json:"scannedAt"`
	Scanner   string                `json:"scanner"`
	Database  VulnerabilityDatabase `json:"database"`
	// MatchedAt is when the image was matched again, with a newer database than
	// it was scanned with; nil when it was not.
	MatchedAt    *time.Time        `json:"matchedAt,omitempty"`
	Findings     []ImageFinding    `json:"findings"`
	Hygiene      []PlatformHygiene `json:"hygiene,omitempty"`
	Packages     int               `json:"packages"`
	Decision     Decision          `json:"decision"`
	Tags         []TagMove         `json:"tags"` // what Dray tagged it, everywhere
	Signatures   []Signature       `json:"signatures"`
	Attestations []Attestation     `json:"attestations"`
	Provenance   json.RawMessage   `json:"provenance,omitempty"`
	Promotions   []Promotion       `json:"promotions"`
}

// ImageFinding is a finding with the platforms that have it.
type ImageFinding struct {
	Finding
	Platforms []Platform `json:"platforms"`
	// Suppressed lists what says that it does not count, and where; the API
	// fills it in from the exceptions and VEX documents that hold today.
	Suppressed []FindingSuppression `json:"suppressed,omitempty"`
}

// FindingSuppression is a suppression and the environment that it is for.
type FindingSuppression struct {
	Suppression
	Environment string `json:"environment,omitempty"` // empty: the whole project
}

// PromotionQuery asks for promotions; empty fields do not narrow.
type PromotionQuery struct {
	Project     string
	Environment string
	State       State
	Page        Page
}

// PackageQuery asks where a package is. Name is required; the others narrow.
type PackageQuery struct {
	Name        string
	Version     string
	Project     string
	Environment string // only images that were promoted there
	Promoted    bool   // only images that were promoted anywhere
	Page        Page
}

// PackageUse is one package in one image.
type PackageUse struct {
	// ID orders the list; pass the last one as Page.After.
	ID        string     `json:"id"`
	Project   string     `json:"project"`
	Image     Image      `json:"image"`
	Platforms []Platform `json:"platforms"`
	Package   Package    `json:"package"`
	Commit    string     `json:"commit"`
	Run       RunID      `json:"run"`
	Tags      []string   `json:"tags"`
	// Promotions of that image that succeeded.
	Promotions []PlacedAt `json:"promotions"`
}

// PlacedAt says where a promotion put an image, and who asked for it.
type PlacedAt struct {
	Promotion   PromotionID `json:"promotion"`
	Environment string      `json:"environment"`
	Image       Image       `json:"image"`
	RequestedBy string      `json:"requestedBy"`
	At          time.Time   `json:"at"`
}

// PromotionRequest is what a release manager asks for.
type PromotionRequest struct {
	// Image is "sha256:…" or "repository@sha256:…".
	Image       string `json:"image"`
	Environment string `json:"environment"`
	// Project is needed only when two projects hold the same digest.
	Project string `json:"project,omitempty"`
	// Action is "promote" (or empty) or "rollback". Of a rollback, Image may be
	// empty: it then is what the environment held before what it holds now.
	Action string `json:"action,omitempty"`
	// Note says what the promotion is for.
	Note string `json:"note,omitempty"`
	// BreakGlass is the reason for overriding what the environment lets an
	// emergency override; empty: it is no emergency.
	BreakGlass string `json:"breakGlass,omitempty"`
	// Set from the request, not the body.
	RequestedBy    string  `json:"-"`
	Grants         []Grant `json:"-"`
	IdempotencyKey string  `json:"-"`
}

// Token is a machine's right to use the API. The secret itself is not kept.
type Token struct {
	Name string `json:"name"`
	// Grants are what its bearer may do.
	Grants    []Grant    `json:"grants"`
	CreatedAt time.Time  `json:"createdAt"`
	ExpiresAt *time.Time `json:"expiresAt,omitempty"`
}

// PlatformHygiene is the hygiene of one platform of an image.
type PlatformHygiene struct {
	Platform Platform `json:"platform"`
	User     string   `json:"user"`
	Hygiene  Hygiene  `json:"hygiene"`
}

// Eligibility says whether an image could enter an environment now, and what
// would change. Nothing was promoted and nothing is kept.
type Eligibility struct {
	Project     string   `json:"project"`
	Environment string   `json:"environment"`
	Image       Image    `json:"image"`
	Decision    Decision `json:"decision"`
	Diff        Diff     `json:"diff"`
	// Plan is the digest of Diff that an approval would be bound to.
	Plan Digest `json:"plan"`
}
