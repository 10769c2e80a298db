package evidence

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"time"

	"github.com/dray-project/dray/pipeline"
)

// Store is what a Collector asks of the record. A missing thing is an error that
// wraps pipeline.ErrNotFound.
type Store interface {
	ImageRecord(ctx context.Context, project string, d pipeline.Digest) (pipeline.ImageRecord, error)
	// ImageDetails returns the image in every project that holds it, or in one.
	ImageDetails(ctx context.Context, d pipeline.Digest, project string) ([]pipeline.ImageDetail, error)
	// RunDecisions returns what every run decided of the image, oldest first.
	RunDecisions(ctx context.Context, project string, d pipeline.Digest) ([]pipeline.RunDecision, error)
	PromotionDetail(context.Context, pipeline.PromotionID) (pipeline.PromotionDetail, error)
	ProjectVersion(ctx context.Context, name string, version int) (pipeline.ProjectVersion, error)
	Exceptions(ctx context.Context, project string, all bool, page pipeline.Page) ([]pipeline.Exception, error)
	VEXDocuments(ctx context.Context, project string, all bool, page pipeline.Page) ([]pipeline.VEXDocument, error)
}

// Registry is what a Collector asks of the registries.
type Registry interface {
	// Closure reads the manifests of an image and of what is attached to it.
	Closure(context.Context, pipeline.Image) (pipeline.Closure, error)
	// Blob writes a blob to w; what was written is the blob iff the error is nil.
	Blob(ctx context.Context, repository string, d pipeline.Digest, size int64, w io.Writer) error
}

// Log is what a Collector asks of the evidence log.
type Log interface {
	// Settle waits until every entry that was committed before the call is under a
	// signed checkpoint, and returns the newest (a C2SP tlog-checkpoint note).
	Settle(context.Context) (checkpoint []byte, err error)
	// Entries lists entries that have their place in the log.
	Entries(context.Context, pipeline.EntryQuery) ([]pipeline.LogEntry, error)
	// Inclusion proves that an entry is in the tree of that size.
	Inclusion(ctx context.Context, index, size int64) (pipeline.Inclusion, error)
}

// Sealer signs the inventory.
type Sealer interface {
	Seal(context.Context, pipeline.Image, pipeline.Statement) (pipeline.Sealed, error)
}

// Config is what a Collector works with. All fields but Log, LogKey, Limits and
// Now are required.
type Config struct {
	Store    Store
	Registry Registry
	Sealer   Sealer
	// Log is nil where there is none; bundles then say so.
	Log Log
	// SigningKey is the public key (PEM) of the signatures, LogKey the log's as a
	// note verifier key. Both are put into bundles for information.
	SigningKey []byte
	LogKey     string
	// Limits of the bundles that are made.
	Limits  Limits
	Logger  *slog.Logger
	Now     func() time.Time
	Retries int // how often an image that changes meanwhile is read again; 3
}

// Collector makes bundles. It is safe for concurrent use.
type Collector struct{ Config }

// New checks the configuration.
func New(_ context.Context, c Config) (*Collector, error) {
	switch {
	case c.Store == nil, c.Registry == nil, c.Sealer == nil:
		return nil, errors.New("evidence: a store, a registry and a sealer are required")
	case len(c.SigningKey) == 0:
		return nil, errors.New("evidence: the public key of the signatures is required")
	case c.Logger == nil:
		return nil, errors.New("evidence: a logger is required")
	}
	c.Limits = c.Limits.withDefaults()
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Retries <= 0 {
		c.Retries = 3
	}
	return &Collector{c}, nil
}
