// Package vex reads OpenVEX documents that a trusted key signed and says which
// findings their statements are about.
package vex

import (
	"fmt"
	"time"

	"github.com/dray-project/dray/pipeline"
)

// Bounds on what is read. A vendor's whole catalogue stays well below them.
const (
	maxDocument   = 4 << 20
	maxSignature  = 8 << 20 // an attestation carries the document once more, in base64
	maxKeys       = 100
	maxDepth      = 32
	maxStatements = 10_000
	maxAliases    = 100
	maxProducts   = 50_000 // of all statements, subcomponents included
	maxID         = 2048   // characters of an identifier
	maxText       = 500    // characters of text for people
)

// clockSlack is how much later than its arrival a document may be dated.
const clockSlack = 24 * time.Hour

// Reader implements pipeline.VEXReader. Its zero value is ready and may be used
// by several goroutines.
type Reader struct{}

var _ pipeline.VEXReader = Reader{}

// Read checks the signature over the exact bytes of the document against the
// trusted keys (PEM, PKIX: ECDSA on P-256, P-384 or P-521, RSA of 2048 bits or
// more, Ed25519), and returns all its statements in the order in which they
// override each other: oldest first.
//
// The signature is one of: base64 as cosign sign-blob prints it, a Sigstore
// bundle or cosign's older bundle in JSON, or a DSSE envelope (alone or in a
// bundle) around an in-toto statement whose predicate is the document. A
// certificate counts for nothing: only keys are trusted.
//
// A document that no trusted key signed, or that somebody revoked, is an error
// that wraps pipeline.ErrUnverified. One that is larger than 4 MiB, is no OpenVEX
// 0.2.0, names a field twice, or is dated more than a day after it was handed in
// is an error that wraps pipeline.ErrInvalid, as is a trusted key that is none.
func (Reader) Read(doc pipeline.VEXDocument, trustedKeys []string) ([]pipeline.VEXStatement, error) {
	if doc.RevokedAt != nil {
		return nil, fmt.Errorf("revoked by %s at %s: %w", printable(doc.RevokedBy), doc.RevokedAt.UTC().Format(time.RFC3339), pipeline.ErrUnverified)
	}
	if len(doc.Document) > maxDocument {
		return nil, fmt.Errorf("the document is %d bytes, more than the bound of %d: %w", len(doc.Document), maxDocument, pipeline.ErrInvalid)
	}
	if len(doc.Signature) > maxSignature {
		return nil, fmt.Errorf("the signature is %d bytes, more than the bound of %d: %w", len(doc.Signature), maxSignature, pipeline.ErrInvalid)
	}
	keys, err := parseKeys(trustedKeys)
	if err != nil {
		return nil, err
	}
	keyID, err := keys.verify(doc.Document, doc.Signature)
	if err != nil {
		return nil, err
	}
	return parse(doc, keyID)
}
