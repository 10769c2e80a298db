package pipeline

import (
	"cmp"
	"fmt"
	"strings"
	"time"
)

// Exception is a finding that somebody accepted: within a project, and, where
// they are given, for one environment, one image or one package only.
type Exception struct {
	ID      string `json:"id"` // "exc_" and 20 characters
	Project string `json:"project"`
	// Environment and Image narrow the scope; empty means all of the project's.
	Environment string `json:"environment,omitempty"`
	Image       Digest `json:"image,omitempty"`
	Finding     string `json:"finding"` // "CVE-2024-45337"
	// Package narrows it to one package's name; empty means all.
	Package   string    `json:"package,omitempty"`
	Reason    string    `json:"reason"`
	Author    string    `json:"author"`
	CreatedAt time.Time `json:"createdAt"`
	ExpiresAt time.Time `json:"expiresAt"`
	// RevokedAt is set when somebody took it back.
	RevokedAt *time.Time `json:"revokedAt,omitempty"`
	RevokedBy string     `json:"revokedBy,omitempty"`
}

// MaxExceptionLife is the longest that a finding can be accepted for.
const MaxExceptionLife = 366 * 24 * time.Hour

// Check refuses an exception that says too little. The error wraps ErrInvalid.
func (e Exception) Check(now time.Time) error {
	switch {
	case e.Finding == "" || len(e.Finding) > 200:
		return fmt.Errorf("finding: want an id such as CVE-2024-45337: %w", ErrInvalid)
	case strings.TrimSpace(e.Reason) == "":
		return fmt.Errorf("reason: why the finding can be accepted is required: %w", ErrInvalid)
	case e.Author == "":
		return fmt.Errorf("author is required: %w", ErrInvalid)
	case !e.ExpiresAt.After(now):
		return fmt.Errorf("expiresAt: %s is not in the future: %w", e.ExpiresAt.UTC().Format(time.RFC3339), ErrInvalid)
	case e.ExpiresAt.Sub(now) > MaxExceptionLife:
		return fmt.Errorf("expiresAt: %s is more than a year away; accept it again when the time comes: %w", e.ExpiresAt.UTC().Format(time.RFC3339), ErrInvalid)
	}
	if e.Image != "" {
		if _, err := ParseDigest(string(e.Image)); err != nil {
			return err
		}
	}
	return nil
}

// Covers reports whether the exception is about that finding in that place. It
// does not look at the time.
func (e Exception) Covers(f Finding, environment string, image Digest) bool {
	return strings.EqualFold(e.Finding, f.ID) &&
		(e.Package == "" || e.Package == f.Package) &&
		(e.Environment == "" || e.Environment == environment) &&
		(e.Image == "" || e.Image == image)
}

// VEXDocument is an OpenVEX document that somebody handed in, with its signature.
type VEXDocument struct {
	ID      string `json:"id"` // "vex_" and 20 characters
	Project string `json:"project"`
	// Document as it was signed, byte by byte.
	Document []byte `json:"document"`
	// Signature over the document as cosign sign-blob makes it: base64 of the
	// signature, or a bundle in JSON.
	Signature  []byte     `json:"signature"`
	UploadedBy string     `json:"uploadedBy"`
	UploadedAt time.Time  `json:"uploadedAt"`
	RevokedAt  *time.Time `json:"revokedAt,omitempty"`
	RevokedBy  string     `json:"revokedBy,omitempty"`
}

// What a VEX statement can say of a product and a vulnerability.
const (
	VEXNotAffected        = "not_affected"
	VEXFixed              = "fixed"
	VEXAffected           = "affected"
	VEXUnderInvestigation = "under_investigation"
)

// VEXStatement says of some products how a vulnerability affects them.
type VEXStatement struct {
	Document string `json:"document"` // the id of the VEXDocument
	// Author as the document has it, and the key that signed it.
	Author string `json:"author"`
	KeyID  string `json:"keyID"`
	// Vulnerability and its aliases.
	Vulnerability []string `json:"vulnerability"`
	Status        string   `json:"status"`
	// Justification is the label, or what the statement says of the impact.
	Justification string `json:"justification,omitempty"`
	// Products that it is about: package URLs, image names or digests. With
	// Subcomponents, only those within the products.
	Products []VEXProduct `json:"products"`
	// At is the statement's time, which is its document's when it has none of
	// its own. DocumentAt is when the document was issued or last updated.
	At         time.Time `json:"at"`
	DocumentAt time.Time `json:"documentAt"`
}

// Counts reports whether the statement says anything: not_affected needs a
// justification (OpenVEX 0.2.0, status requirements).
func (s VEXStatement) Counts() bool { return s.Status != VEXNotAffected || s.Justification != "" }

// Suppresses reports whether the statement is a reason to let the finding pass.
func (s VEXStatement) Suppresses() bool {
	return s.Counts() && (s.Status == VEXNotAffected || s.Status == VEXFixed)
}

// Overrides reports whether the statement takes the place of another about the
// same vulnerability and product, which comes before it in the order in which
// Read returns them: the newer statement does, then that of the newer document,
// then the later one of one document. Between documents that are equally new,
// the one that does not suppress does.
func (s VEXStatement) Overrides(o VEXStatement) bool {
	if c := cmp.Or(s.At.Compare(o.At), s.DocumentAt.Compare(o.DocumentAt)); c != 0 {
		return c > 0
	}
	return s.Document == o.Document || !s.Suppresses()
}

// VEXProduct is one product of a statement.
type VEXProduct struct {
	ID            string   `json:"id"`
	Subcomponents []string `json:"subcomponents,omitempty"`
}

// VEXReader reads VEX documents.
type VEXReader interface {
	// Read checks the signature against the trusted keys (PEM, PKIX) and
	// returns all statements, oldest first: also those that suppress nothing,
	// because they may override one that does. A document by no trusted key is
	// an error that wraps ErrUnverified; one that is no OpenVEX, one that wraps
	// ErrInvalid.
	Read(doc VEXDocument, trustedKeys []string) ([]VEXStatement, error)
	// Matches reports whether the statement is about that finding in that
	// image, as it is on all of those platforms.
	Matches(s VEXStatement, f Finding, img Image, platforms []PlatformImage) bool
}
