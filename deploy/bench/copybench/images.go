//go:build linux

package main

import (
	"fmt"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// The image that is copied: an index of two platforms with five layers of 64 KiB
// each, so that there are 12 blobs and 3 manifests.
const (
	platforms, layers, layerSize = 2, 5, 64 << 10
	manifests                    = 1 + platforms
	blobs                        = platforms * (layers + 1)
)

// The signed image has, at each of the three manifests, one referrer (two
// blobs) and one legacy signature (two blobs).
const (
	referrers      = manifests
	legacy         = manifests
	attachedBlobs  = 2*referrers + 2*legacy
	signedSubjects = manifests
)

func push(repo, tag string, signed bool) (digest string, err error) {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	var subjects []partial.Describable
	for _, arch := range []string{"amd64", "arm64"} {
		img, err := random.Image(layerSize, layers)
		if err != nil {
			return "", err
		}
		img = mutate.MediaType(img, types.OCIManifestSchema1)
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
		subjects = append(subjects, img)
	}
	ref, err := name.NewTag(repo + ":" + tag)
	if err != nil {
		return "", err
	}
	if err := remote.WriteIndex(ref, index); err != nil {
		return "", err
	}
	h, err := index.Digest()
	if err != nil || !signed {
		return h.String(), err
	}
	for i, s := range append(subjects, index) {
		if err := sign(repo, s, i); err != nil {
			return "", err
		}
	}
	return h.String(), nil
}

func sign(repo string, subject partial.Describable, i int) error {
	desc, err := partial.Descriptor(subject)
	if err != nil {
		return err
	}
	img, err := random.Image(2000, 1)
	if err != nil {
		return err
	}
	img = mutate.ConfigMediaType(mutate.MediaType(img, types.OCIManifestSchema1), "application/vnd.dev.sigstore.bundle.v0.3+json")
	img = mutate.Subject(img, v1.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size}).(v1.Image)
	h, err := img.Digest()
	if err != nil {
		return err
	}
	ref, err := name.NewDigest(repo + "@" + h.String())
	if err != nil {
		return err
	}
	if err := remote.Write(ref, img); err != nil {
		return err
	}
	old, err := mutate.Append(mutate.MediaType(empty.Image, types.OCIManifestSchema1), mutate.Addendum{
		Layer: static.NewLayer(fmt.Appendf(nil, "payload %d of %s", i, desc.Digest), "application/vnd.dev.cosign.simplesigning.v1+json"),
	})
	if err != nil {
		return err
	}
	// Without this, all have the same config.
	if old, err = mutate.Config(old, v1.Config{WorkingDir: desc.Digest.Hex}); err != nil {
		return err
	}
	tag, err := name.NewTag(repo + ":sha256-" + desc.Digest.Hex + ".sig")
	if err != nil {
		return err
	}
	return remote.Write(tag, old)
}

// pushBulk pushes an image of one platform with four layers of that size
// together.
func pushBulk(repo string, mib int) (digest string, err error) {
	img, err := random.Image(int64(mib)<<20/4, 4)
	if err != nil {
		return "", err
	}
	img = mutate.MediaType(img, types.OCIManifestSchema1)
	ref, err := name.NewTag(repo + ":v1")
	if err != nil {
		return "", err
	}
	if err := remote.Write(ref, img); err != nil {
		return "", err
	}
	h, err := img.Digest()
	return h.String(), err
}
