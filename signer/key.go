package signer

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"

	"github.com/sigstore/cosign/v2/pkg/cosign"
	commonpb "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/sigstore/sigstore/pkg/signature/options"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/signer/verify"
)

// maxKeyFile is far more than a key needs.
const maxKeyFile = 64 << 10

// GenerateKey makes a new ECDSA P-256 key pair in the form that cosign writes:
// the private key encrypted with the password, both in PEM.
func GenerateKey(password []byte) (private, public []byte, err error) {
	keys, err := cosign.GenerateKeyPair(func(bool) ([]byte, error) { return password, nil })
	if err != nil {
		return nil, nil, fmt.Errorf("generate a key pair: %w", err)
	}
	return keys.PrivateBytes, keys.PublicBytes, nil
}

// key is the private key. It signs, and shows nothing of itself: printing it
// in any form gives its id.
type key struct {
	// sign is a closure, so that no printing by reflection reaches the key.
	sign   func(ctx context.Context, message []byte) ([]byte, error)
	public crypto.PublicKey
	id     string
}

func (k *key) String() string   { return "key " + k.id }
func (k *key) GoString() string { return k.String() }

// loadKey reads and decrypts the key that the configuration names.
func loadKey(c Config) (*key, error) {
	text, setting := c.Key, "setting Key"
	switch {
	case c.KeyFile != "" && len(c.Key) > 0:
		return nil, errors.New("set KeyFile or Key, not both")
	case c.KeyFile != "":
		setting = "setting KeyFile " + c.KeyFile
		var err error
		if text, err = readKeyFile(c.KeyFile); err != nil {
			return nil, fmt.Errorf("setting KeyFile: %w", err)
		}
	case len(c.Key) == 0:
		return nil, errors.New("KeyFile is required: the encrypted private key")
	}
	if err := encryptedKey(text); err != nil {
		return nil, fmt.Errorf("%s: %w", setting, err)
	}
	var password []byte
	if c.Password != nil {
		var err error
		if password, err = c.Password(); err != nil {
			return nil, fmt.Errorf("setting Password: read the password of the signing key: %w", err)
		}
	}
	k, err := decrypt(text, password)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", setting, err)
	}
	return k, nil
}

func readKeyFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxKeyFile {
		return nil, fmt.Errorf("%s is larger than a key file can be", path)
	}
	return os.ReadFile(path)
}

// encryptedKey says what is wrong with a file that is not an encrypted private
// key. It quotes nothing of it.
func encryptedKey(text []byte) error {
	block, _ := pem.Decode(text)
	if block == nil {
		return errors.New("not a key in PEM form; want the cosign.key of `cosign generate-key-pair`")
	}
	switch block.Type {
	case cosign.SigstorePrivateKeyPemType, cosign.CosignPrivateKeyPemType:
		return nil
	case "PUBLIC KEY":
		return errors.New("this is the public key; want the encrypted private key")
	case cosign.PrivateKeyPemType, cosign.ECPrivateKeyPemType, cosign.RSAPrivateKeyPemType:
		return errors.New("the private key is not encrypted; encrypt it with `cosign import-key-pair`")
	default:
		return fmt.Errorf("a PEM block of type %q; want %q", block.Type, cosign.SigstorePrivateKeyPemType)
	}
}

func decrypt(text, password []byte) (*key, error) {
	sv, err := cosign.LoadPrivateKey(text, password, &[]signature.LoadOption{options.WithHash(crypto.SHA256)})
	if err != nil {
		return nil, fmt.Errorf("the password does not open the key; check Password and that it belongs to this key: %w", err)
	}
	public, err := sv.PublicKey()
	if err != nil {
		return nil, fmt.Errorf("read the public half of the key: %w", err)
	}
	// Others load, but cosign's own verify command guesses another hash or
	// algorithm for them than its sign command used.
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() {
			return nil, fmt.Errorf("the key is on curve %s; users' cosign verifies P-256 or RSA: %w", k.Curve.Params().Name, pipeline.ErrInvalid)
		}
	case *rsa.PublicKey:
	default:
		return nil, fmt.Errorf("the key is a %T; users' cosign verifies ECDSA P-256 or RSA: %w", public, pipeline.ErrInvalid)
	}
	id, err := verify.KeyID(public)
	if err != nil {
		return nil, err
	}
	return &key{
		sign: func(ctx context.Context, message []byte) ([]byte, error) {
			return sv.SignMessage(bytes.NewReader(message), options.WithContext(ctx))
		},
		public: public,
		id:     id,
	}, nil
}

// keypair lets sigstore-go sign with the key.
type keypair struct{ *key }

// GetHashAlgorithm implements sign.Keypair.
func (keypair) GetHashAlgorithm() commonpb.HashAlgorithm { return commonpb.HashAlgorithm_SHA2_256 }

// GetSigningAlgorithm implements sign.Keypair.
func (k keypair) GetSigningAlgorithm() commonpb.PublicKeyDetails {
	details, err := signature.GetDefaultAlgorithmDetails(k.public)
	if err != nil {
		return commonpb.PublicKeyDetails_PUBLIC_KEY_DETAILS_UNSPECIFIED
	}
	return details.GetSignatureAlgorithm()
}

// GetHint implements sign.Keypair. cosign's hint is the base64 form of the key id.
func (k keypair) GetHint() []byte {
	sum, _ := hex.DecodeString(k.id)
	return []byte(base64.StdEncoding.EncodeToString(sum))
}

// GetKeyAlgorithm implements sign.Keypair.
func (k keypair) GetKeyAlgorithm() string {
	if _, ok := k.public.(*rsa.PublicKey); ok {
		return "RSA"
	}
	return "ECDSA"
}

// GetPublicKey implements sign.Keypair.
func (k keypair) GetPublicKey() crypto.PublicKey { return k.public }

// GetPublicKeyPem implements sign.Keypair.
func (k keypair) GetPublicKeyPem() (string, error) {
	text, err := verify.MarshalPublicKey(k.public)
	return string(text), err
}

// SignData implements sign.Keypair.
func (k keypair) SignData(ctx context.Context, data []byte) (sig, digest []byte, err error) {
	sum := sha256.Sum256(data)
	sig, err = k.sign(ctx, data)
	return sig, sum[:], err
}
