package signer

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/signer/verify"
)

// inToto is an in-toto statement, version 1.
type inToto struct {
	Type          string    `json:"_type"`
	Subject       []subject `json:"subject"`
	PredicateType string    `json:"predicateType"`
	Predicate     any       `json:"predicate"`
}

type subject struct {
	Name   string            `json:"name,omitempty"`
	Digest map[string]string `json:"digest"`
}

// signatureStatement is what cosign v3 signs of an image: that it signs it.
func signatureStatement(img pipeline.Image) []byte {
	b, err := encode(inToto{
		Type:          verify.StatementType,
		Subject:       []subject{{Digest: map[string]string{"sha256": img.Digest.Hex()}}},
		PredicateType: verify.PredicateSignature,
		Predicate:     map[string]any{},
	})
	if err != nil {
		panic(err) // strings and maps of strings always encode
	}
	return b
}

// statement is the payload to sign. Equal predicates give equal bytes, however
// they were written: fields are sorted and nothing appears twice.
func statement(img pipeline.Image, st pipeline.Statement) ([]byte, error) {
	if st.PredicateType == "" {
		return nil, fmt.Errorf("the statement has no predicate type: %w", pipeline.ErrInvalid)
	}
	if st.PredicateType == verify.PredicateSignature {
		return nil, fmt.Errorf("a statement of type %s is a signature, not an attestation: %w", st.PredicateType, pipeline.ErrInvalid)
	}
	var predicate any = map[string]any{}
	if len(st.Predicate) > 0 && !bytes.Equal(st.Predicate, []byte("null")) {
		dec := json.NewDecoder(bytes.NewReader(st.Predicate))
		dec.UseNumber() // as it was written: no number may lose digits
		if err := dec.Decode(&predicate); err != nil {
			return nil, fmt.Errorf("the predicate is not JSON: %w: %w", err, pipeline.ErrInvalid)
		}
		if _, err := dec.Token(); !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("something follows the predicate: %w", pipeline.ErrInvalid)
		}
		if _, ok := predicate.(map[string]any); !ok {
			return nil, fmt.Errorf("the predicate is a JSON %T, want an object: %w", predicate, pipeline.ErrInvalid)
		}
	}
	return encode(inToto{
		Type:          verify.StatementType,
		Subject:       []subject{{Name: img.Repository, Digest: map[string]string{"sha256": img.Digest.Hex()}}},
		PredicateType: st.PredicateType,
		Predicate:     predicate,
	})
}

func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

func digestOf(b []byte) pipeline.Digest {
	sum := sha256.Sum256(b)
	return pipeline.Digest("sha256:" + hex.EncodeToString(sum[:]))
}
