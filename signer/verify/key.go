package verify

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/dray-project/dray/pipeline"
)

// ParsePublicKeys reads every "PUBLIC KEY" block of a PEM file, such as the
// cosign.pub that cosign writes.
func ParsePublicKeys(text []byte) ([]crypto.PublicKey, error) {
	var keys []crypto.PublicKey
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "PUBLIC KEY" {
			return nil, fmt.Errorf("a PEM block is %q, want \"PUBLIC KEY\": %w", block.Type, pipeline.ErrInvalid)
		}
		key, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("public key: %w: %w", err, pipeline.ErrInvalid)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("no public key in PEM form: %w", pipeline.ErrInvalid)
	}
	return keys, nil
}

// MarshalPublicKey is the inverse of ParsePublicKeys for one key.
func MarshalPublicKey(key crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode the public key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil
}

// KeyID is the lower-case hexadecimal sha256 of the key's PKIX form.
func KeyID(key crypto.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return "", fmt.Errorf("encode the public key: %w", err)
	}
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:]), nil
}

// trustedKey is a public key with its id.
type trustedKey struct {
	id  string
	key crypto.PublicKey
}

// newTrustedKey refuses what could not verify anything safely.
func newTrustedKey(key crypto.PublicKey) (trustedKey, error) {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		if k == nil || k.Curve != elliptic.P256() && k.Curve != elliptic.P384() && k.Curve != elliptic.P521() {
			return trustedKey{}, errors.New("want an ECDSA key on P-256, P-384 or P-521")
		}
	case *rsa.PublicKey:
		if k == nil || k.N == nil || k.N.BitLen() < 2048 {
			return trustedKey{}, errors.New("want an RSA key of at least 2048 bits")
		}
	case ed25519.PublicKey:
		if len(k) != ed25519.PublicKeySize {
			return trustedKey{}, errors.New("the Ed25519 key has the wrong size")
		}
	default:
		return trustedKey{}, fmt.Errorf("%T is not an ECDSA, RSA or Ed25519 public key", key)
	}
	id, err := KeyID(key)
	return trustedKey{id, key}, err
}

// verifies reports whether sig is the key's signature of message in one of the
// forms that cosign makes: ECDSA over SHA-256 or over the hash of the curve's
// size, RSA PKCS #1 v1.5 over SHA-256, and Ed25519 pure or prehashed.
func (k trustedKey) verifies(message, sig []byte) bool {
	s256 := sha256.Sum256(message)
	switch key := k.key.(type) {
	case *ecdsa.PublicKey:
		if ecdsa.VerifyASN1(key, s256[:], sig) {
			return true
		}
		switch key.Curve {
		case elliptic.P384():
			s := sha512.Sum384(message)
			return ecdsa.VerifyASN1(key, s[:], sig)
		case elliptic.P521():
			s := sha512.Sum512(message)
			return ecdsa.VerifyASN1(key, s[:], sig)
		}
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(key, crypto.SHA256, s256[:], sig) == nil
	case ed25519.PublicKey:
		s := sha512.Sum512(message)
		return ed25519.VerifyWithOptions(key, s[:], sig, &ed25519.Options{Hash: crypto.SHA512}) == nil ||
			ed25519.Verify(key, message, sig)
	}
	return false
}

// keyring is the trusted keys.
type keyring []trustedKey

func newKeyring(keys []crypto.PublicKey) (keyring, error) {
	var ring keyring
	for i, k := range keys {
		t, err := newTrustedKey(k)
		if err != nil {
			return nil, fmt.Errorf("setting TrustedKeys[%d]: %w: %w", i, err, pipeline.ErrInvalid)
		}
		if !ring.has(t.id) {
			ring = append(ring, t)
		}
	}
	if len(ring) == 0 {
		return nil, fmt.Errorf("setting TrustedKeys: at least one public key is required: %w", pipeline.ErrInvalid)
	}
	return ring, nil
}

func (r keyring) has(id string) bool {
	for _, k := range r {
		if k.id == id {
			return true
		}
	}
	return false
}

// signer returns the id of the trusted key that made the signature.
func (r keyring) signer(message, sig []byte) (id string, ok bool) {
	for _, k := range r {
		if k.verifies(message, sig) {
			return k.id, true
		}
	}
	return "", false
}

// hinted turns a bundle's key hint into a key id. cosign's hint is the base64
// form of the same hash; what has another form is not repeated.
func hinted(hint string) string {
	if sum, err := base64.StdEncoding.DecodeString(hint); err == nil && len(sum) == sha256.Size {
		return hex.EncodeToString(sum)
	}
	if sum, err := hex.DecodeString(hint); err == nil && len(sum) == sha256.Size {
		return hint
	}
	return ""
}

// preAuthEncoding is what a DSSE signature signs (DSSE protocol, version 1).
func preAuthEncoding(payloadType string, payload []byte) []byte {
	var b bytes.Buffer
	b.Grow(len(payload) + len(payloadType) + 64)
	fmt.Fprintf(&b, "DSSEv1 %d %s %d ", len(payloadType), payloadType, len(payload))
	b.Write(payload)
	return b.Bytes()
}
