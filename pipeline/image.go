package pipeline

import (
	"encoding/hex"
	"fmt"
	"strings"
)

// Digest is a content digest as the OCI image specification writes it. Dray
// accepts sha256 only: "sha256:" and 64 lower-case hexadecimal digits.
type Digest string

// ParseDigest returns s as a Digest, or an error that wraps ErrInvalid.
func ParseDigest(s string) (Digest, error) {
	rest, ok := strings.CutPrefix(s, "sha256:")
	if !ok {
		return "", fmt.Errorf("digest %q: want sha256:<64 hexadecimal digits>: %w", s, ErrInvalid)
	}
	if len(rest) != 64 || strings.ToLower(rest) != rest {
		return "", fmt.Errorf("digest %q: want 64 lower-case hexadecimal digits: %w", s, ErrInvalid)
	}
	if _, err := hex.DecodeString(rest); err != nil {
		return "", fmt.Errorf("digest %q: not hexadecimal: %w", s, ErrInvalid)
	}
	return Digest(s), nil
}

// Hex is the digest without its algorithm.
func (d Digest) Hex() string { return strings.TrimPrefix(string(d), "sha256:") }

// Short is the first twelve hexadecimal digits, for people. Never compare it.
func (d Digest) Short() string {
	h := d.Hex()
	if len(h) > 12 {
		return h[:12]
	}
	return h
}

// Image is a manifest or index in one repository, named by digest. Stages pass
// images to each other, never tags.
type Image struct {
	// Repository includes the registry: "registry.example:5000/team/app".
	Repository string `json:"repository"`
	Digest     Digest `json:"digest"`
}

func (i Image) String() string { return i.Repository + "@" + string(i.Digest) }

// ParseImage parses "repository@sha256:…". A tag is refused: a tag does not
// name an image.
func ParseImage(s string) (Image, error) {
	repo, dig, ok := strings.Cut(s, "@")
	if !ok || repo == "" {
		return Image{}, fmt.Errorf("image %q: want repository@sha256:<digest>: %w", s, ErrInvalid)
	}
	d, err := ParseDigest(dig)
	if err != nil {
		return Image{}, fmt.Errorf("image %q: %w", s, err)
	}
	if slash := strings.LastIndex(repo, "/"); strings.Contains(repo[slash+1:], ":") && slash >= 0 {
		return Image{}, fmt.Errorf("image %q: a tag and a digest together are ambiguous, give the digest alone: %w", s, ErrInvalid)
	}
	return Image{Repository: repo, Digest: d}, nil
}

// Platform is an OCI platform: "os/architecture" or "os/architecture/variant".
type Platform string

// ParsePlatform checks the form; it does not check that anybody makes such a
// processor.
func ParsePlatform(s string) (Platform, error) {
	parts := strings.Split(s, "/")
	if len(parts) < 2 || len(parts) > 3 {
		return "", fmt.Errorf("platform %q: want os/architecture or os/architecture/variant: %w", s, ErrInvalid)
	}
	for _, p := range parts {
		if p == "" || strings.Trim(p, "abcdefghijklmnopqrstuvwxyz0123456789") != "" {
			return "", fmt.Errorf("platform %q: want lower-case letters and digits between the slashes: %w", s, ErrInvalid)
		}
	}
	return Platform(s), nil
}

// Parts splits the platform into operating system, architecture and variant
// (which may be empty).
func (p Platform) Parts() (os, arch, variant string) {
	parts := strings.SplitN(string(p), "/", 3)
	for len(parts) < 3 {
		parts = append(parts, "")
	}
	return parts[0], parts[1], parts[2]
}

// PlatformImage is the manifest of one platform within an index.
type PlatformImage struct {
	Platform Platform `json:"platform"`
	Digest   Digest   `json:"digest"`
	// Size is that of the manifest itself, in bytes.
	Size int64 `json:"size"`
	// MediaType of the manifest.
	MediaType string `json:"mediaType"`
}

// RegistryHost says how to reach one registry. Credentials belong to this
// origin and are never sent to another.
type RegistryHost struct {
	Host      string // "registry.example:5000", without a scheme
	Username  string
	Password  string
	PlainHTTP bool
	// TokenHost is the one other host that the credentials may be sent to: the
	// token service, where it is not the registry itself ("gitlab.example" for
	// "registry.gitlab.example"). Docker Hub's is known.
	TokenHost string
}
