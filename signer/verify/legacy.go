package verify

import (
	"encoding/base64"
	"encoding/json"

	dssepb "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"

	"github.com/dray-project/dray/pipeline"
)

const (
	// SimpleSigningType is the media type of a signature's payload in the legacy
	// layout.
	SimpleSigningType = "application/vnd.dev.cosign.simplesigning.v1+json"
	// EnvelopeType is the media type of an attestation in the legacy layout.
	EnvelopeType = "application/vnd.dsse.envelope.v1+json"

	signatureAnnotation   = "dev.cosignproject.cosign/signature"
	certificateAnnotation = "dev.sigstore.cosign/certificate"

	simpleSigningKind = "cosign container image signature"

	// maxPayload is far more than a simple signing payload needs.
	maxPayload = 1 << 20
)

// LegacyTag is the tag under which the legacy layout keeps what belongs to an
// image: suffix "sig" or "att".
func LegacyTag(d pipeline.Digest, suffix string) string {
	return "sha256-" + d.Hex() + "." + suffix
}

// checkSimpleSigning verifies a signature of the legacy layout: the payload is
// the layer, the signature is an annotation of it.
func (r keyring) checkSimpleSigning(payload []byte, annotations map[string]string, image pipeline.Digest) (keyID string, err error) {
	sig, err := base64.StdEncoding.DecodeString(annotations[signatureAnnotation])
	if err != nil || len(sig) == 0 {
		return "", reject("the layer has no signature in its annotations")
	}
	keyID, ok := r.signer(payload, sig)
	if !ok {
		if annotations[certificateAnnotation] != "" {
			return "", reject("signed with a certificate, and only keys are trusted here")
		}
		return "", unknownKey("")
	}
	var kind, digest string
	if err := descend(payload, &kind, "critical", "type"); err != nil || kind != simpleSigningKind {
		return "", reject("the payload is a %.100q, want a %s", kind, simpleSigningKind)
	}
	if err := descend(payload, &digest, "critical", "image", "docker-manifest-digest"); err != nil || digest != string(image) {
		return "", reject("the signature is about another image, %.100q", digest)
	}
	return keyID, nil
}

// descend finds a string in nested JSON objects.
func descend(raw json.RawMessage, into *string, path ...string) error {
	for _, name := range path {
		fields, err := object(orNull(raw))
		if err != nil {
			return err
		}
		raw = fields[name]
	}
	return text(raw, into)
}

// checkLegacyEnvelope verifies an attestation of the legacy layout.
func (r keyring) checkLegacyEnvelope(raw []byte, annotations map[string]string, image pipeline.Digest) (claim, error) {
	var e struct {
		PayloadType string `json:"payloadType"`
		Payload     []byte `json:"payload"`
		Signatures  []struct {
			Sig []byte `json:"sig"`
		} `json:"signatures"`
	}
	if err := json.Unmarshal(raw, &e); err != nil {
		return claim{}, reject("not a DSSE envelope: %v", err)
	}
	envelope := &dssepb.Envelope{PayloadType: e.PayloadType, Payload: e.Payload}
	for _, s := range e.Signatures {
		envelope.Signatures = append(envelope.Signatures, &dssepb.Signature{Sig: s.Sig})
	}
	c, err := r.checkEnvelope(envelope, image, "")
	if rej, ok := rejected(err); ok && rej.unknownKey && annotations[certificateAnnotation] != "" {
		return claim{}, reject("signed with a certificate, and only keys are trusted here")
	}
	if err == nil && c.predicateType == PredicateSignature {
		return claim{}, reject("the statement is a signature, which has no place among attestations")
	}
	return c, err
}
