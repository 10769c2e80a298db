package verify

import (
	"errors"
	"fmt"

	bundlepb "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	dssepb "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/dray-project/dray/pipeline"
)

const (
	// BundleType is the media type and artifact type of a Sigstore bundle.
	BundleType = "application/vnd.dev.sigstore.bundle.v0.3+json"
	// An earlier spelling of the same version.
	bundleTypeParameter = "application/vnd.dev.sigstore.bundle+json;version=0.3"
	bundleTypePrefix    = "application/vnd.dev.sigstore.bundle"
)

// claim is a statement about the image that a trusted key signed.
type claim struct {
	keyID         string
	predicateType string
	payload       []byte
}

// rejection says why something that looks like a signature does not count.
type rejection struct {
	reason string
	// unknownKey: the form is right, and no trusted key made it.
	unknownKey bool
	// keyID is the key that the signature says it is by; often empty.
	keyID string
}

func (r *rejection) Error() string { return r.reason }

func reject(format string, args ...any) *rejection {
	return &rejection{reason: fmt.Sprintf(format, args...)}
}

func unknownKey(keyID string) *rejection {
	by := "a key that is not trusted"
	if keyID != "" {
		by += " (key id " + keyID + ")"
	}
	return &rejection{reason: "signed by " + by, unknownKey: true, keyID: keyID}
}

// checkBundle reads a Sigstore bundle (version 0.3) and returns what a trusted
// key claims of the image in it. Neither the annotations of the manifest around
// it nor the key hint inside are believed.
func (r keyring) checkBundle(raw []byte, image pipeline.Digest) (claim, error) {
	var b bundlepb.Bundle
	if err := protojson.Unmarshal(raw, &b); err != nil {
		return claim{}, reject("not a Sigstore bundle: %v", err)
	}
	if b.GetMediaType() != BundleType && b.GetMediaType() != bundleTypeParameter {
		return claim{}, reject("a bundle of media type %.100q, want %s", b.GetMediaType(), BundleType)
	}
	envelope := b.GetDsseEnvelope()
	if envelope == nil {
		return claim{}, reject("the bundle signs bytes, not a statement about an image")
	}
	switch m := b.GetVerificationMaterial().GetContent().(type) {
	case *bundlepb.VerificationMaterial_PublicKey:
		return r.checkEnvelope(envelope, image, hinted(m.PublicKey.GetHint()))
	case *bundlepb.VerificationMaterial_Certificate, *bundlepb.VerificationMaterial_X509CertificateChain:
		return claim{}, reject("signed with a certificate, and only keys are trusted here")
	default:
		return claim{}, reject("the bundle does not say what verifies it")
	}
}

// checkEnvelope verifies a DSSE envelope with its one signature, and that its
// statement is about the image.
func (r keyring) checkEnvelope(e *dssepb.Envelope, image pipeline.Digest, hint string) (claim, error) {
	if e.GetPayloadType() != PayloadType {
		return claim{}, reject("the signed payload is %.100q, want %s", e.GetPayloadType(), PayloadType)
	}
	// One is what the bundle format allows; with more it would be unclear whose
	// word the statement is.
	if len(e.GetSignatures()) != 1 {
		return claim{}, reject("the envelope has %d signatures, want one", len(e.GetSignatures()))
	}
	keyID, ok := r.signer(preAuthEncoding(e.GetPayloadType(), e.GetPayload()), e.GetSignatures()[0].GetSig())
	if !ok {
		if r.has(hint) {
			return claim{}, reject("the signature is not one of key %s over this content", hint)
		}
		return claim{}, unknownKey(hint)
	}
	predicateType, err := checkStatement(e.GetPayload(), image)
	if err != nil {
		return claim{}, &rejection{reason: err.Error()}
	}
	return claim{keyID: keyID, predicateType: predicateType, payload: e.GetPayload()}, nil
}

// rejected returns the rejection in err, if it is one: everything else is a
// failure to read.
func rejected(err error) (*rejection, bool) {
	var r *rejection
	ok := errors.As(err, &r)
	return r, ok
}
