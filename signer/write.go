package signer

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	ggcrstatic "github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	cosignoci "github.com/sigstore/cosign/v2/pkg/oci"
	"github.com/sigstore/cosign/v2/pkg/oci/mutate"
	cosignremote "github.com/sigstore/cosign/v2/pkg/oci/remote"
	"github.com/sigstore/cosign/v2/pkg/oci/static"
	"github.com/sigstore/sigstore-go/pkg/sign"
	"github.com/sigstore/sigstore/pkg/signature/payload"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/dray-project/dray/signer/verify"
)

const emptyConfigType = "application/vnd.oci.empty.v1+json"

// referrer is a manifest as it is pushed.
type referrer []byte

func (r referrer) RawManifest() ([]byte, error)      { return r, nil }
func (referrer) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }

// writeBundle pushes the signed statement as a Sigstore bundle that refers to
// the image (OCI 1.1). The library adds it to the fallback tag where the
// registry has no referrers API.
func (s *Signer) writeBundle(ctx context.Context, at target, statement []byte, predicateType string) error {
	bundle, err := sign.Bundle(&sign.DSSEData{Data: statement, PayloadType: verify.PayloadType}, keypair{s.key}, sign.BundleOptions{Context: ctx})
	if err != nil {
		return fmt.Errorf("sign: %w", err)
	}
	raw, err := protojson.Marshal(bundle)
	if err != nil {
		return fmt.Errorf("encode the bundle: %w", err)
	}
	pusher, err := remote.NewPusher(at.session.Options(ctx)...)
	if err != nil {
		return err
	}
	var descriptors []v1.Descriptor
	for _, layer := range []v1.Layer{
		ggcrstatic.NewLayer([]byte("{}"), emptyConfigType),
		ggcrstatic.NewLayer(raw, verify.BundleType),
	} {
		if err := pusher.Upload(ctx, at.session.Repository, layer); err != nil {
			return fmt.Errorf("push the bundle: %w", err)
		}
		d, err := describe(layer)
		if err != nil {
			return err
		}
		descriptors = append(descriptors, d)
	}
	manifest, err := json.Marshal(v1.Manifest{
		SchemaVersion: 2,
		MediaType:     types.OCIManifestSchema1,
		ArtifactType:  verify.BundleType,
		Config:        descriptors[0],
		Layers:        descriptors[1:],
		Subject:       &at.subject,
		Annotations: map[string]string{
			"org.opencontainers.image.created": s.now().UTC().Format(time.RFC3339),
			"dev.sigstore.bundle.content":      "dsse-envelope",
			verify.PredicateTypeAnnotation:     predicateType,
		},
	})
	if err != nil {
		return err
	}
	hash, _, err := v1.SHA256(bytes.NewReader(manifest))
	if err != nil {
		return err
	}
	if err := pusher.Put(ctx, at.session.Repository.Digest(hash.String()), referrer(manifest)); err != nil {
		return fmt.Errorf("push the bundle's manifest: %w", err)
	}
	return nil
}

func describe(l v1.Layer) (d v1.Descriptor, err error) {
	if d.Digest, err = l.Digest(); err != nil {
		return d, err
	}
	if d.Size, err = l.Size(); err != nil {
		return d, err
	}
	d.MediaType, err = l.MediaType()
	return d, err
}

// appendSignature adds a simple signing signature to the tag sha256-<hex>.sig.
func (s *Signer) appendSignature(ctx context.Context, at target) error {
	claim, err := payload.Cosign{Image: at.session.Repository.Digest(string(at.image.Digest))}.MarshalJSON()
	if err != nil {
		return fmt.Errorf("encode the payload: %w", err)
	}
	sig, err := s.key.sign(ctx, claim)
	if err != nil {
		return fmt.Errorf("sign: %w", err)
	}
	layer, err := static.NewSignature(claim, base64.StdEncoding.EncodeToString(sig))
	if err != nil {
		return err
	}
	return s.appendLayer(ctx, at, "sig", layer)
}

// appendAttestation adds a DSSE envelope to the tag sha256-<hex>.att.
func (s *Signer) appendAttestation(ctx context.Context, at target, statement []byte, predicateType string) error {
	envelope, err := s.envelope(ctx, statement)
	if err != nil {
		return err
	}
	layer, err := static.NewAttestation(envelope,
		static.WithLayerMediaType(verify.EnvelopeType),
		static.WithAnnotations(map[string]string{"predicateType": predicateType}))
	if err != nil {
		return err
	}
	return s.appendLayer(ctx, at, "att", layer)
}

// appendLayer adds a layer to what the legacy tag holds.
func (s *Signer) appendLayer(ctx context.Context, at target, suffix string, layer cosignoci.Signature) error {
	tag := at.session.Repository.Tag(verify.LegacyTag(at.image.Digest, suffix))
	opts := at.session.Options(ctx)
	base, err := cosignremote.Signatures(tag, cosignremote.WithRemoteOptions(opts...))
	if err != nil {
		return fmt.Errorf("read the tag %s: %w", tag.TagStr(), err)
	}
	all, err := mutate.AppendSignatures(base, false, layer)
	if err != nil {
		return fmt.Errorf("append to the tag %s: %w", tag.TagStr(), err)
	}
	if err := remote.Write(tag, all, opts...); err != nil {
		return fmt.Errorf("push the tag %s: %w", tag.TagStr(), err)
	}
	return nil
}
