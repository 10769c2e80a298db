package vex

import (
	"bytes"
	"crypto"
	_ "crypto/sha256" // hashes that a bundle may name
	_ "crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/dray-project/dray/pipeline"
)

const (
	bundleType          = "application/vnd.dev.sigstore.bundle.v0.3+json"
	bundleTypeParameter = "application/vnd.dev.sigstore.bundle+json;version=0.3" // an earlier spelling
	payloadType         = "application/vnd.in-toto+json"
)

// bundle is a Sigstore bundle as far as keys go, or cosign's older one.
type bundle struct {
	MediaType string `json:"mediaType"`
	Material  struct {
		PublicKey   json.RawMessage `json:"publicKey"`
		Certificate json.RawMessage `json:"certificate"`
		Chain       json.RawMessage `json:"x509CertificateChain"`
	} `json:"verificationMaterial"`
	Message *struct {
		Digest *struct {
			Algorithm string `json:"algorithm"`
			Digest    []byte `json:"digest"`
		} `json:"messageDigest"`
		Signature []byte `json:"signature"`
	} `json:"messageSignature"`
	Envelope *envelope `json:"dsseEnvelope"`

	Base64Signature string `json:"base64Signature"`
}

// envelope is a DSSE envelope.
type envelope struct {
	PayloadType string `json:"payloadType"`
	Payload     []byte `json:"payload"`
	Signatures  []struct {
		Sig []byte `json:"sig"`
	} `json:"signatures"`
}

// verify returns the id of the trusted key that signed the document.
func (r keyring) verify(document, signature []byte) (keyID string, err error) {
	signature = bytes.TrimSpace(signature)
	if !bytes.HasPrefix(signature, []byte("{")) {
		sig, err := base64.StdEncoding.DecodeString(string(signature))
		if err != nil || len(sig) == 0 {
			return "", refuse("the signature is neither base64 as cosign sign-blob prints it nor a bundle in JSON")
		}
		return r.signer(document, sig)
	}
	if _, err := decode(signature); err != nil {
		return "", refuse("the signature's bundle: %v", err)
	}
	var b bundle
	if err := json.Unmarshal(signature, &b); err != nil {
		return "", refuse("the signature's bundle does not parse: %v", err)
	}
	switch {
	case b.MediaType != "":
		return r.verifyBundle(document, b)
	case b.Base64Signature != "":
		sig, err := base64.StdEncoding.DecodeString(b.Base64Signature)
		if err != nil {
			return "", refuse("the signature's bundle: base64Signature is not base64")
		}
		return r.signer(document, sig)
	}
	var e envelope
	if err := json.Unmarshal(signature, &e); err != nil || e.PayloadType == "" {
		return "", refuse("the signature is JSON and neither a Sigstore bundle nor a DSSE envelope")
	}
	return r.verifyEnvelope(document, e)
}

// verifyBundle believes nothing that the bundle says of the key: what counts is
// which trusted key verifies.
func (r keyring) verifyBundle(document []byte, b bundle) (string, error) {
	switch {
	case b.MediaType != bundleType && b.MediaType != bundleTypeParameter:
		return "", refuse("the signature is a bundle of media type %.100q, want %s", b.MediaType, bundleType)
	case b.Material.Certificate != nil || b.Material.Chain != nil:
		return "", refuse("signed with a certificate, and only keys are trusted here")
	case b.Material.PublicKey == nil:
		return "", refuse("the signature's bundle does not say what verifies it")
	case (b.Message == nil) == (b.Envelope == nil):
		return "", refuse("the signature's bundle holds not exactly one of a messageSignature and a dsseEnvelope")
	case b.Envelope != nil:
		return r.verifyEnvelope(document, *b.Envelope)
	}
	if d := b.Message.Digest; d != nil {
		hash, ok := map[string]crypto.Hash{"SHA2_256": crypto.SHA256, "SHA2_384": crypto.SHA384, "SHA2_512": crypto.SHA512}[d.Algorithm]
		if !ok {
			return "", refuse("the signature's bundle has a digest of algorithm %.40q, want SHA2_256, SHA2_384 or SHA2_512", d.Algorithm)
		}
		h := hash.New()
		h.Write(document)
		if !bytes.Equal(h.Sum(nil), d.Digest) {
			return "", refuse("the signature's bundle is about other bytes than this document")
		}
	}
	return r.signer(document, b.Message.Signature)
}

// verifyEnvelope accepts an attestation about whatever it is about: what the
// document says of products is in the document.
func (r keyring) verifyEnvelope(document []byte, e envelope) (string, error) {
	if e.PayloadType != payloadType {
		return "", refuse("the signature's envelope holds %.100q, want %s", e.PayloadType, payloadType)
	}
	if len(e.Signatures) != 1 {
		return "", refuse("the signature's envelope has %d signatures, want one", len(e.Signatures))
	}
	var signed bytes.Buffer
	fmt.Fprintf(&signed, "DSSEv1 %d %s %d ", len(e.PayloadType), e.PayloadType, len(e.Payload))
	signed.Write(e.Payload)
	keyID, err := r.signer(signed.Bytes(), e.Signatures[0].Sig)
	if err != nil {
		return "", err
	}
	payload, err := decode(e.Payload)
	if err != nil {
		return "", refuse("the signed statement: %v", err)
	}
	statement, _ := payload.(map[string]any)
	kind, _ := statement["_type"].(string)
	if !slices.Contains([]string{"https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1"}, kind) {
		return "", refuse("the signed statement's _type is %.100q, want an in-toto statement", kind)
	}
	if t, _ := statement["predicateType"].(string); !slices.Contains(contexts, t) {
		return "", refuse("the signed statement's predicateType is %.100q, want %s", t, strings.Join(contexts, " or "))
	}
	// An attestation holds the predicate in whatever form its maker encoded it.
	want, err := decode(document)
	if err != nil {
		return "", fmt.Errorf("the document: %w: %w", err, pipeline.ErrInvalid)
	}
	if !reflect.DeepEqual(statement["predicate"], want) {
		return "", refuse("the signed statement holds another document than this one")
	}
	return keyID, nil
}

func refuse(format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), pipeline.ErrUnverified)
}
