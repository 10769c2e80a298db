package vex

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"github.com/dray-project/dray/pipeline"
)

// key is a trusted public key with its id.
type key struct {
	id     string
	public crypto.PublicKey
}

type keyring []key

// parseKeys reads the project's trusted keys. One that cannot be read is an
// error: a key that silently does not count would be missed when it matters.
func parseKeys(texts []string) (keyring, error) {
	var ring keyring
	for i, text := range texts {
		found := 0
		for rest := []byte(text); ; found++ {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil {
				break
			}
			k, err := parseKey(block)
			if err != nil {
				return nil, fmt.Errorf("trustedVEXKeys[%d]: %w: %w", i, err, pipeline.ErrInvalid)
			}
			if len(ring) == maxKeys {
				return nil, fmt.Errorf("trustedVEXKeys: more than %d keys: %w", maxKeys, pipeline.ErrInvalid)
			}
			ring = append(ring, k)
		}
		if found == 0 {
			return nil, fmt.Errorf("trustedVEXKeys[%d]: no public key in PEM form: %w", i, pipeline.ErrInvalid)
		}
	}
	return ring, nil
}

func parseKey(block *pem.Block) (key, error) {
	if block.Type != "PUBLIC KEY" {
		return key{}, fmt.Errorf("a PEM block is %.40q, want \"PUBLIC KEY\"", block.Type)
	}
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return key{}, err
	}
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() && k.Curve != elliptic.P521() {
			return key{}, errors.New("want an ECDSA key on P-256, P-384 or P-521")
		}
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < 2048 || n > 16384 {
			return key{}, errors.New("want an RSA key of 2048 to 16384 bits")
		}
	case ed25519.PublicKey:
	default:
		return key{}, fmt.Errorf("%T is not an ECDSA, RSA or Ed25519 public key", public)
	}
	// The id is of the form that the library writes, as for all other keys.
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return key{}, err
	}
	sum := sha256.Sum256(der)
	return key{id: hex.EncodeToString(sum[:]), public: public}, nil
}

// verifies reports whether sig is the key's signature of message in one of the
// forms that cosign makes: ECDSA over SHA-256 or over the hash of the curve's
// size, RSA PKCS #1 v1.5 over SHA-256, and Ed25519 pure or prehashed.
func (k key) verifies(message, sig []byte) bool {
	s256 := sha256.Sum256(message)
	switch public := k.public.(type) {
	case *ecdsa.PublicKey:
		if ecdsa.VerifyASN1(public, s256[:], sig) {
			return true
		}
		switch public.Curve {
		case elliptic.P384():
			s := sha512.Sum384(message)
			return ecdsa.VerifyASN1(public, s[:], sig)
		case elliptic.P521():
			s := sha512.Sum512(message)
			return ecdsa.VerifyASN1(public, s[:], sig)
		}
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(public, crypto.SHA256, s256[:], sig) == nil
	case ed25519.PublicKey:
		s := sha512.Sum512(message)
		return ed25519.VerifyWithOptions(public, s[:], sig, &ed25519.Options{Hash: crypto.SHA512}) == nil ||
			ed25519.Verify(public, message, sig)
	}
	return false
}

// signer returns the id of the trusted key that made the signature.
func (r keyring) signer(message, sig []byte) (string, error) {
	for _, k := range r {
		if k.verifies(message, sig) {
			return k.id, nil
		}
	}
	if len(r) == 0 {
		return "", fmt.Errorf("the project trusts no key for VEX documents (trustedVEXKeys): %w", pipeline.ErrUnverified)
	}
	var ids []string
	for _, k := range r[:min(len(r), 5)] {
		ids = append(ids, k.id)
	}
	if len(r) > 5 {
		ids = append(ids, "…")
	}
	return "", fmt.Errorf("the signature is not one of a trusted key (%s) over these bytes: %w", strings.Join(ids, ", "), pipeline.ErrUnverified)
}
