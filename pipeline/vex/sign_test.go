package vex_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"sync"
	"testing"
)

// signer is somebody with a key.
type signer struct {
	pem  string
	id   string
	sign func(message []byte) []byte
}

func newSigner(t testing.TB, private crypto.Signer, o crypto.SignerOpts) signer {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(private.Public())
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(der)
	return signer{
		pem: string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})),
		id:  hex.EncodeToString(sum[:]),
		sign: func(message []byte) []byte {
			if h := o.HashFunc(); h != 0 {
				d := h.New()
				d.Write(message)
				message = d.Sum(nil)
			}
			sig, err := private.Sign(rand.Reader, message, o)
			if err != nil {
				t.Fatal(err)
			}
			return sig
		},
	}
}

func ecdsaSigner(t testing.TB, curve elliptic.Curve, h crypto.Hash) signer {
	t.Helper()
	k, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return newSigner(t, k, h)
}

func ed25519Signer(t testing.TB, o crypto.SignerOpts) signer {
	t.Helper()
	_, k, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return newSigner(t, k, o)
}

var rsaKey = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

func rsaSigner(t testing.TB) signer {
	t.Helper()
	k, err := rsaKey()
	if err != nil {
		t.Fatal(err)
	}
	return newSigner(t, k, crypto.SHA256)
}

// base64Form is what cosign sign-blob prints.
func (s signer) base64Form(document []byte) []byte {
	return []byte(base64.StdEncoding.EncodeToString(s.sign(document)) + "\n")
}

func (s signer) bundle(document []byte) []byte {
	sum := sha256.Sum256(document)
	return asJSON(map[string]any{
		"mediaType":            "application/vnd.dev.sigstore.bundle.v0.3+json",
		"verificationMaterial": map[string]any{"publicKey": map[string]any{"hint": "x"}},
		"messageSignature":     map[string]any{"messageDigest": map[string]any{"algorithm": "SHA2_256", "digest": sum[:]}, "signature": s.sign(document)},
	})
}

// statement is an in-toto statement around the predicate.
func statement(predicateType string, predicate []byte) []byte {
	return asJSON(map[string]any{
		"_type": "https://in-toto.io/Statement/v0.1", "predicateType": predicateType,
		"subject":   []any{map[string]any{"name": "x", "digest": map[string]string{"sha256": "00"}}},
		"predicate": json.RawMessage(predicate),
	})
}

func (s signer) envelope(payloadType string, payload []byte) map[string]any {
	sig := s.sign(fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(payloadType), payloadType, len(payload), payload))
	return map[string]any{"payloadType": payloadType, "payload": payload, "signatures": []any{map[string]any{"sig": sig}}}
}

const inToto = "application/vnd.in-toto+json"

func (s signer) attestation(document []byte) []byte {
	return asJSON(map[string]any{
		"mediaType":            "application/vnd.dev.sigstore.bundle.v0.3+json",
		"verificationMaterial": map[string]any{"publicKey": map[string]any{"hint": "x"}},
		"dsseEnvelope":         s.envelope(inToto, statement("https://openvex.dev/ns", document)),
	})
}

func asJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}
