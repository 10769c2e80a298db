package pipeline

import (
	"context"
	"errors"
	"log/slog"
	"time"
)

// Progress receives what a build does while it does it. Its methods do not
// block for long and may be called from several goroutines.
type Progress interface {
	Step(Step)
	Line(Line)
}

// Builder turns source into platform images that are pushed by digest.
type Builder interface {
	// Resolve fixes what will be built: the commit, the plan, the bases. No
	// branch name is left in its answer.
	Resolve(context.Context, Project, Event, Progress) (Source, error)
	// Build pushes one manifest per platform to repository, by digest only.
	// The same source gives the same digests. It tags nothing but its cache.
	Build(ctx context.Context, p Project, s Source, out Progress) (BuildResult, error)
}

// BuildResult is what a Builder made.
type BuildResult struct {
	Platforms []PlatformImage
	Builder   string // name and version of what built it
}

// Scanner finds out what is in an image and what is known against it.
type Scanner interface {
	// Scan reads every platform of the image. A vulnerability database that is
	// older than the scanner's bound is a permanent error.
	Scan(context.Context, Image, []PlatformImage) (Report, error)
}

// Signer signs, attests and verifies. Signing the same thing twice leaves one
// signature by the same key in each layout.
type Signer interface {
	Sign(context.Context, Image) ([]Signature, error)
	Attest(context.Context, Image, Statement) ([]Attestation, error)
	// Seal signs the statement about the image and writes nothing.
	Seal(context.Context, Image, Statement) (Sealed, error)
	// Verify reads the registry and returns what verifies against the trusted
	// keys. No valid signature is an error that wraps ErrUnverified.
	Verify(context.Context, Image) (Verified, error)
}

// Registry handles manifests, tags and copies.
type Registry interface {
	// Assemble pushes an index of the platforms and returns it by digest. The
	// same input gives the same digest.
	Assemble(ctx context.Context, repository string, platforms []PlatformImage, annotations map[string]string) (Image, error)
	// Exists reports whether the manifest can be read by its digest.
	Exists(context.Context, Image) (bool, error)
	// Tags lists the repository's tags; a repository that does not exist has none.
	Tags(ctx context.Context, repository string) ([]string, error)
	// TagHolds returns what a tag names now. ok is false when there is no such tag.
	TagHolds(ctx context.Context, repository, tag string) (d Digest, ok bool, err error)
	// Tag makes the tag name the image, and reads it back.
	Tag(ctx context.Context, img Image, tag string) error
	// Copy brings the image with everything attached to it and to its platforms
	// into the repository, by digest, without any tag of Dray's.
	// What is there already is not sent again, so that it also repairs.
	Copy(ctx context.Context, img Image, repository string) (Copied, error)
	// Audit looks whether the contents are there and can be found. It only reads.
	Audit(ctx context.Context, img Image, contents []Content) (Audit, error)
}

// Config is what a Pipeline works with. All fields but Now are required.
type Config struct {
	Store    Store
	Locker   Locker
	Builder  Builder
	Scanner  Scanner
	Signer   Signer
	Registry Registry
	Judge    Judge
	// VEX reads the documents that projects hand in.
	VEX VEXReader
	// BaseURL is where people reach Dray, without a slash at its end. It stands
	// in summaries: the verifier's id, and the environments' URIs.
	BaseURL string
	// BuilderID is the builder.id of the provenance: a page that says how far
	// this builder can be trusted.
	BuilderID string
	// Mask removes secrets that Dray knows from what is stored of a build's
	// output.
	Mask *Masker
	Log  *slog.Logger
	Now  func() time.Time
}

// Pipeline runs runs and promotions. It keeps no state of its own: any number
// of them may share a store.
type Pipeline struct {
	Config
}

// New checks the configuration.
func New(c Config) (*Pipeline, error) {
	switch {
	case c.Store == nil, c.Locker == nil, c.Builder == nil, c.Scanner == nil, c.Signer == nil, c.Registry == nil, c.Judge == nil, c.VEX == nil:
		return nil, errors.New("pipeline: a store, locker, builder, scanner, signer, registry, judge and VEX reader are required")
	case c.BuilderID == "":
		return nil, errors.New("pipeline: a builder id is required")
	case c.BaseURL == "":
		return nil, errors.New("pipeline: a base URL is required")
	case c.Log == nil:
		return nil, errors.New("pipeline: a logger is required")
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Mask == nil {
		c.Mask = NewMasker()
	}
	return &Pipeline{c}, nil
}
