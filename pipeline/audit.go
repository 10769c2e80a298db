package pipeline

import (
	"fmt"
	"slices"
	"time"
)

// Reach is the projects that an answer may be about.
type Reach struct {
	All      bool
	Projects []string
}

// Has reports whether the project is within reach.
func (r Reach) Has(project string) bool { return r.All || slices.Contains(r.Projects, project) }

// Values of AuditScope.Promoted.
const (
	// PromotedNow: an environment holds the image now, or held it within the time asked about.
	PromotedNow = "now"
	// PromotedEver: an environment held it at some time.
	PromotedEver = "ever"
)

// AuditScope narrows an audit to images. Empty fields do not narrow.
type AuditScope struct {
	Reach       Reach
	Project     string
	Environment string // implies Promoted, if that is empty: now
	Promoted    string // "", PromotedNow or PromotedEver
	// Since and Until bound the time, Until excluded: of a promotion's image, that
	// an environment held it at some moment between them; else, that it was first
	// recorded between them. With PromotedNow they bound when it came.
	Since, Until *time.Time
	Page         Page // Limit is from 1 to MaxAuditPage
}

// MaxAuditPage is the longest page of an audit.
const MaxAuditPage = 1000

// Check refuses a scope that does not fit together. The error wraps ErrInvalid.
func (s *AuditScope) Check() error {
	switch {
	case s.Promoted != "" && s.Promoted != PromotedNow && s.Promoted != PromotedEver:
		return fmt.Errorf("promoted is %.40q: want now or ever: %w", s.Promoted, ErrInvalid)
	case s.Since != nil && s.Until != nil && !s.Since.Before(*s.Until):
		return fmt.Errorf("since is not before until: %w", ErrInvalid)
	case s.Environment != "" && s.Promoted == "":
		s.Promoted = PromotedNow
	}
	if s.Page.Limit <= 0 {
		s.Page.Limit = 50
	}
	s.Page.Limit = min(s.Page.Limit, MaxAuditPage)
	return nil
}

// PackageAuditQuery asks which images contain packages. One of Name, PURL and
// License is required; they narrow each other.
type PackageAuditQuery struct {
	AuditScope
	Name string
	// PURL is a package URL. What it has no version or qualifier of, it does not narrow.
	PURL    string
	Version string // exactly
	// Range of versions, as package versions reads it.
	Range string
	// License is an SPDX identifier, in either case: "GPL-3.0" is also
	// "GPL-3.0-only" and "MIT OR GPL-3.0-or-later".
	License string
}

// PackageAudit is one package version in one image, and how it came about.
type PackageAudit struct {
	// ID orders the list; pass the last one as Page.After.
	ID        string     `json:"id"`
	Project   string     `json:"project"`
	Image     Image      `json:"image"`
	Platforms []Platform `json:"platforms"`
	Package   Package    `json:"package"`
	// Uncomparable: its version could not be compared with the range that was
	// asked for, so that it has to be looked at.
	Uncomparable bool `json:"uncomparable,omitempty"`
	// Run and Commit of the image, by its newest record.
	Run        RunID     `json:"run"`
	Commit     string    `json:"commit"`
	RecordedAt time.Time `json:"recordedAt"`
	// First is what brought this package version into the project.
	First *Origin `json:"first,omitempty"`
	// Places that held the image, in order; those without Until hold it now.
	Places []Stay `json:"places"`
	// Exceptions in force that cover the package in this image.
	Exceptions []Exception `json:"exceptions"`
}

// Origin is the run that recorded something first.
type Origin struct {
	Run    RunID     `json:"run"`
	Commit string    `json:"commit"`
	Digest Digest    `json:"digest"`
	At     time.Time `json:"at"`
}

// Stay is an image in an environment, from when until when.
type Stay struct {
	Project     string      `json:"project"`
	Environment string      `json:"environment"`
	Image       Image       `json:"image"` // in the environment
	Promotion   PromotionID `json:"promotion"`
	Action      string      `json:"action"` // "promote" or "rollback"
	RequestedBy string      `json:"requestedBy"`
	ApprovedBy  []string    `json:"approvedBy"`
	BreakGlass  string      `json:"breakGlass,omitempty"`
	Commit      string      `json:"commit,omitempty"`
	Since       time.Time   `json:"since"`
	// Until is when another image took its place; nil: it is there now.
	Until *time.Time `json:"until,omitempty"`
}

// FindingAuditQuery asks which images have a known vulnerability.
type FindingAuditQuery struct {
	AuditScope
	Finding string // its id, in upper or lower case: "CVE-2024-45337"
	Package string // only in the package of that name
}

// FindingAudit is a vulnerability in one package of one image.
type FindingAudit struct {
	ID         string     `json:"id"`
	Project    string     `json:"project"`
	Image      Image      `json:"image"`
	Platforms  []Platform `json:"platforms"`
	Finding    Finding    `json:"finding"`
	Run        RunID      `json:"run"`
	Commit     string     `json:"commit"`
	RecordedAt time.Time  `json:"recordedAt"`
	// ScannedAt is when the image was last scanned, or matched without a scan.
	ScannedAt time.Time `json:"scannedAt"`
	First     *Origin   `json:"first,omitempty"` // of the package version
	Places    []Stay    `json:"places"`
	// Suppressed lists the exceptions and VEX documents that speak for it today.
	Suppressed []FindingSuppression `json:"suppressed"`
}

// AuditEvent is something that happened, or that somebody did.
type AuditEvent struct {
	ID string    `json:"id"`
	At time.Time `json:"at"`
	// Kind is one of the kinds of the evidence log.
	Kind        string `json:"kind"`
	Project     string `json:"project"`
	Actor       string `json:"actor,omitempty"`
	Subject     string `json:"subject,omitempty"` // a run, a promotion, an exception, …
	Environment string `json:"environment,omitempty"`
	Image       Digest `json:"image,omitempty"`
	Note        string `json:"note,omitempty"` // in words
}

// EventKindLeft: another image took this one's place in an environment. The log
// has it as the other's promotion.
const EventKindLeft = "environment.left"

// EnvironmentAuditQuery asks what an environment held: at a time, or between two
// times, or, without any, always.
type EnvironmentAuditQuery struct {
	Project, Environment string
	At                   *time.Time
	From, To             *time.Time
	Page                 Page
}

// Check refuses times that do not fit together. The error wraps ErrInvalid.
func (q EnvironmentAuditQuery) Check() error {
	switch {
	case q.At != nil && (q.From != nil || q.To != nil):
		return fmt.Errorf("give at, or from and to: %w", ErrInvalid)
	case (q.From == nil) != (q.To == nil):
		return fmt.Errorf("from and to go together: %w", ErrInvalid)
	case q.From != nil && !q.From.Before(*q.To):
		return fmt.Errorf("from is not before to: %w", ErrInvalid)
	}
	return nil
}

// Values of EnvironmentAudit.Kind.
const (
	AuditedImage   = "image"
	AuditedPackage = "package"
	AuditedFinding = "finding"
)

// EnvironmentAudit is one thing that an environment held, or one difference
// between what it held at two times.
type EnvironmentAudit struct {
	ID   string `json:"id"`
	Kind string `json:"kind"`
	// Change is "held" or "entered" for images, "added", "removed" or "changed" else.
	Change string `json:"change"`
	Stay   *Stay  `json:"stay,omitempty"` // of an image
	// Name of the package, or id of the finding.
	Name string `json:"name,omitempty"`
	Type string `json:"type,omitempty"` // of a package
	// Package that has the finding.
	Package  string   `json:"package,omitempty"`
	Severity Severity `json:"severity,omitempty"`
	// From and To are versions, comma-separated where there are several.
	From string `json:"from,omitempty"`
	To   string `json:"to,omitempty"`
}
