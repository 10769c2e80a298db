package verify

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	dssepb "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"

	"github.com/dray-project/dray/pipeline"
)

// maxEnvelope bounds an envelope in bytes, as Limits.Bundle does by default.
const maxEnvelope = 64 << 20

// Statement is an in-toto statement that a trusted key signed.
type Statement struct {
	KeyID         string
	Subject       pipeline.Digest // the one that was asked for, of those it has
	PredicateType string
	// Predicate is a JSON object.
	Predicate json.RawMessage
	// Payload is the whole statement, byte by byte as it was signed, and Digest
	// its digest.
	Payload json.RawMessage
	Digest  pipeline.Digest
}

// Envelope checks a DSSE envelope in JSON that stands for itself, without any
// registry: that it has one signature, by one of the keys, over an in-toto
// statement about the image, of the predicate type. What does not check out is
// an error that wraps pipeline.ErrUnverified; what the caller asks for in vain
// (no keys, no digest, no type), one that wraps pipeline.ErrInvalid.
func Envelope(envelope []byte, image pipeline.Digest, predicateType string, keys []crypto.PublicKey) (Statement, error) {
	if _, err := pipeline.ParseDigest(string(image)); err != nil {
		return Statement{}, fmt.Errorf("verify an envelope: %w", err)
	}
	if predicateType == "" {
		return Statement{}, fmt.Errorf("verify an envelope about %s: which predicate type is wanted must be said: %w", image, pipeline.ErrInvalid)
	}
	ring, err := newKeyring(keys)
	if err != nil {
		return Statement{}, fmt.Errorf("verify an envelope about %s: %w", image, err)
	}
	st, err := ring.openEnvelope(envelope, image, predicateType)
	if err != nil {
		return Statement{}, fmt.Errorf("verify an envelope about %s: %s: %w", image, tame(err.Error()), pipeline.ErrUnverified)
	}
	return st, nil
}

func (r keyring) openEnvelope(raw []byte, image pipeline.Digest, predicateType string) (Statement, error) {
	e, err := parseEnvelope(raw)
	if err != nil {
		return Statement{}, fmt.Errorf("not a DSSE envelope: %w", err)
	}
	c, err := r.checkEnvelope(e, image, "")
	if err != nil {
		return Statement{}, err
	}
	if c.predicateType != predicateType {
		return Statement{}, fmt.Errorf("the statement is of type %.200q, want %s", c.predicateType, predicateType)
	}
	fields, err := object(c.payload)
	if err != nil {
		return Statement{}, err
	}
	predicate := bytes.TrimSpace(fields["predicate"])
	if !bytes.HasPrefix(predicate, []byte("{")) {
		return Statement{}, errors.New("the statement has no predicate")
	}
	sum := sha256.Sum256(c.payload)
	return Statement{
		KeyID: c.keyID, Subject: image, PredicateType: c.predicateType, Predicate: predicate,
		Payload: c.payload, Digest: pipeline.Digest("sha256:" + hex.EncodeToString(sum[:])),
	}, nil
}

// parseEnvelope takes names literally and refuses one that appears twice, where
// another reader might take the other.
func parseEnvelope(raw []byte) (*dssepb.Envelope, error) {
	if len(raw) > maxEnvelope {
		return nil, fmt.Errorf("%d bytes, more than the bound of %d", len(raw), maxEnvelope)
	}
	fields, err := object(raw)
	if err != nil {
		return nil, err
	}
	var e dssepb.Envelope
	if err := text(fields["payloadType"], &e.PayloadType); err != nil {
		return nil, fmt.Errorf("payloadType: %w", err)
	}
	if e.Payload, err = octets(fields["payload"]); err != nil {
		return nil, fmt.Errorf("payload: %w", err)
	}
	// No more are looked at than are needed to say that there are too many.
	dec := json.NewDecoder(bytes.NewReader(orNull(fields["signatures"])))
	if t, err := dec.Token(); err != nil || t != json.Delim('[') {
		return nil, errors.New("signatures: not a list")
	}
	for dec.More() {
		if len(e.Signatures) == 1 {
			return nil, errors.New("more than one signature, want one")
		}
		var one json.RawMessage
		if err := dec.Decode(&one); err != nil {
			return nil, fmt.Errorf("signatures: %w", err)
		}
		signature, err := object(one)
		if err != nil {
			return nil, fmt.Errorf("signatures: %w", err)
		}
		sig, err := octets(signature["sig"])
		if err != nil {
			return nil, fmt.Errorf("signatures: sig: %w", err)
		}
		e.Signatures = append(e.Signatures, &dssepb.Signature{Sig: sig})
	}
	return &e, nil
}

// octets reads base64 in either alphabet, as the DSSE specification asks.
func octets(raw json.RawMessage) ([]byte, error) {
	var s string
	if err := text(raw, &s); err != nil {
		return nil, err
	}
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		b, err = base64.URLEncoding.DecodeString(s)
	}
	if err != nil {
		return nil, errors.New("not base64")
	}
	return b, nil
}
