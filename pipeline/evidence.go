package pipeline

import (
	"encoding/json"
	"time"
)

// Predicate types of the attestations that Dray makes.
const (
	PredicateProvenance = "https://slsa.dev/provenance/v1"
	PredicateCycloneDX  = "https://cyclonedx.org/bom"
	PredicateSummary    = "https://slsa.dev/verification_summary/v1"
)

// Statement is an in-toto statement to be: what is claimed of an image. The
// signer adds the subject.
type Statement struct {
	PredicateType string          `json:"predicateType"`
	Predicate     json.RawMessage `json:"predicate"`
}

// Sealed is a signed statement that stands for itself, wherever it is kept.
type Sealed struct {
	// Envelope is a DSSE envelope in JSON.
	Envelope json.RawMessage `json:"envelope,omitempty"`
	// Statement is the digest of the payload, as Attestation has it.
	Statement Digest `json:"statement,omitempty"`
	KeyID     string `json:"keyID,omitempty"`
}

// Signature is one signature that a registry holds for an image.
type Signature struct {
	Image Image `json:"image"`
	// KeyID is the lower-case hexadecimal sha256 of the public key's PKIX form.
	KeyID string `json:"keyID"`
	// Layout it was found in: "bundle" (OCI 1.1 referrer) or "legacy" (sha256-….sig tag).
	Layout string `json:"layout"`
	// Manifest that carries it.
	Manifest Digest `json:"manifest"`
}

// Attestation is one signed statement that a registry holds for an image.
type Attestation struct {
	Image         Image  `json:"image"`
	PredicateType string `json:"predicateType"`
	KeyID         string `json:"keyID"`
	Layout        string `json:"layout"`
	Manifest      Digest `json:"manifest"`
	// Statement is the digest of the signed payload.
	Statement Digest `json:"statement"`
}

// Verified is what was read back from the registry and checked against the
// trusted keys: only what verified is listed.
type Verified struct {
	Image        Image         `json:"image"`
	Signatures   []Signature   `json:"signatures"`
	Attestations []Attestation `json:"attestations"`
	// Statements are the payloads of the attestations, by their digest.
	Statements map[Digest]json.RawMessage `json:"-"`
	VerifiedAt time.Time                  `json:"verifiedAt"`
}

// Has reports whether an attestation of that predicate type verified.
func (v Verified) Has(predicateType string) bool {
	for _, a := range v.Attestations {
		if a.PredicateType == predicateType {
			return true
		}
	}
	return false
}

// Copied is the outcome of bringing an image into another repository.
type Copied struct {
	Image Image `json:"image"` // at the destination
	// Manifests and Blobs are how many were in the closure; Bytes is what was sent.
	Manifests int   `json:"manifests"`
	Blobs     int   `json:"blobs"`
	Sent      int64 `json:"bytesSent"`
	Skipped   int   `json:"blobsSkipped"`
	Mounted   int   `json:"blobsMounted"`
	// Referrers are the manifests that were attached to the image or to one of
	// its platforms, in either layout.
	Referrers []Digest `json:"referrers"`
	// Contents is the whole closure, as it was confirmed at the destination.
	Contents []Content `json:"contents,omitempty"`
}

// ImageRecord is everything that is known of an image when its run comes to
// record it: how it came to be, what is in it, what was decided, who signed.
type ImageRecord struct {
	Project  string     `json:"project"`
	Run      RunID      `json:"run"`
	Built    Built      `json:"built"`
	Report   Report     `json:"report"`
	Decision Decision   `json:"decision"`
	Verified []Verified `json:"verified"` // empty when the gate refused
	// Provenance is the SLSA predicate, as attested.
	Provenance json.RawMessage `json:"provenance,omitempty"`
	// Summary is the signed verification summary of the decision.
	Summary Sealed `json:"summary"`
}

// TagMove is one tag that was asked for, and what became of it.
type TagMove struct {
	Repository string `json:"repository"`
	Tag        string `json:"tag"`
	// From is what the tag named before; empty when it did not exist.
	From Digest `json:"from,omitempty"`
	To   Digest `json:"to"`
	// Moved is false when the tag already was right, or stays with a newer release.
	Moved bool `json:"moved"`
	// Held is true when the tag names To now.
	Held bool   `json:"held"`
	Note string `json:"note,omitempty"`
}

// RunDecision is what one run decided of an image, when it recorded it.
type RunDecision struct {
	Run        RunID     `json:"run"`
	Decision   Decision  `json:"decision"`
	Summary    Sealed    `json:"summary"`
	RecordedAt time.Time `json:"recordedAt"`
}
