package signer

import (
	"context"
	"crypto"
	"encoding/json"
	"fmt"

	"github.com/sigstore/sigstore-go/pkg/sign"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/signer/verify"
)

// Seal signs the statement about the image, in the very bytes that Attest would
// sign, as a DSSE envelope in JSON; verify.Envelope checks it. Nothing is
// written, and the registry is not asked whether the image exists.
func (s *Signer) Seal(ctx context.Context, img pipeline.Image, st pipeline.Statement) (pipeline.Sealed, error) {
	if _, err := pipeline.ParseImage(img.String()); err != nil {
		return pipeline.Sealed{}, pipeline.Permanent(fmt.Errorf("seal a %s statement: %w", st.PredicateType, err))
	}
	payload, err := s.payload(img, st)
	if err != nil {
		return pipeline.Sealed{}, pipeline.Permanent(fmt.Errorf("seal a statement about %s: %w", img, err))
	}
	envelope, err := s.envelope(ctx, payload)
	if err != nil {
		return pipeline.Sealed{}, fmt.Errorf("seal a %s statement about %s: %w", st.PredicateType, img, err)
	}
	// Nothing reads it back from a registry, so that this is the only look at it.
	sealed, err := verify.Envelope(envelope, img.Digest, st.PredicateType, []crypto.PublicKey{s.key.public})
	if err != nil {
		return pipeline.Sealed{}, fmt.Errorf("seal a %s statement about %s: %w", st.PredicateType, img, err)
	}
	return pipeline.Sealed{Envelope: envelope, Statement: sealed.Digest, KeyID: sealed.KeyID}, nil
}

// payload is the statement's bytes, if they are not too large to be read back.
func (s *Signer) payload(img pipeline.Image, st pipeline.Statement) ([]byte, error) {
	payload, err := statement(img, st)
	if err != nil {
		return nil, err
	}
	// In base64 and with a signature it has to pass the bound on reading.
	if need := int64(len(payload))*4/3 + 8<<10; need > s.limits.Bundle {
		return nil, fmt.Errorf("a %s statement of %d bytes would be larger than the bound of %d on reading it back: %w",
			st.PredicateType, len(payload), s.limits.Bundle, pipeline.ErrInvalid)
	}
	return payload, nil
}

// envelope signs the statement as a DSSE envelope in JSON.
func (s *Signer) envelope(ctx context.Context, statement []byte) ([]byte, error) {
	data := sign.DSSEData{Data: statement, PayloadType: verify.PayloadType}
	sig, err := s.key.sign(ctx, data.PreAuthEncoding())
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	type signature struct {
		KeyID string `json:"keyid"`
		Sig   []byte `json:"sig"`
	}
	envelope, err := json.Marshal(struct {
		PayloadType string      `json:"payloadType"`
		Payload     []byte      `json:"payload"`
		Signatures  []signature `json:"signatures"`
	}{verify.PayloadType, statement, []signature{{Sig: sig}}})
	if err != nil {
		return nil, fmt.Errorf("encode the envelope: %w", err)
	}
	return envelope, nil
}
