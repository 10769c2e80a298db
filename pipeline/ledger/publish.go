package ledger

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"github.com/dray-project/dray/pipeline"
)

// MediaCheckpoint is the media type of a checkpoint that is published to a
// registry: a signed note.
const MediaCheckpoint = "application/vnd.dray.log.checkpoint.v1"

// TagLatest names the newest checkpoint in a registry. Each one also has a tag of
// its own, checkpoint-<size>.
const TagLatest = "latest"

// Artifacts keeps small things in a registry.
type Artifacts interface {
	// PushArtifact puts body under a tag, as the one layer of an artefact of that
	// media type. Again is no error.
	PushArtifact(ctx context.Context, repository, tag, mediaType string, body []byte) error
	// PullArtifact returns what PushArtifact has put there; pipeline.ErrNotFound if
	// there is no such tag.
	PullArtifact(ctx context.Context, repository, tag, mediaType string) ([]byte, error)
}

// PublisherConfig is what a Publisher works with.
type PublisherConfig struct {
	Storage Storage // required
	// Keys of the log. Required.
	Keys Keys
	// Every is the least time between two publications. Default one minute.
	Every time.Duration
	// File that checkpoints are appended to; empty: none.
	File string
	// Repository in a registry that they are pushed to; empty: none. Artifacts is
	// required with it.
	Repository string
	Artifacts  Artifacts
	// Turn reports whether it is this process's turn to push: one of all processes
	// in that time. Nil: always.
	Turn func(ctx context.Context, name string, every time.Duration) (bool, error)
	Log  *slog.Logger // required
	Now  func() time.Time
}

// Publisher puts signed checkpoints where whoever rewrites the database cannot
// take them back, and compares the log with what it has published.
type Publisher struct {
	PublisherConfig
	places []*place

	mu     sync.Mutex
	status PublisherStatus
}

// PublisherStatus says how a Publisher fares.
type PublisherStatus struct {
	// Size that was published last.
	Size int64
	// Err is what went wrong the last time.
	Err error
	// Rewritten: the log is not consistent with what was published. Nothing more
	// is published.
	Rewritten bool
}

// place is one of those that are published to.
type place struct {
	name string
	turn bool
	// read returns what was published last, or nil.
	read func(context.Context) ([]byte, error)
	// write publishes.
	write func(ctx context.Context, c Checkpoint, signed []byte) error

	known bool
	last  Checkpoint // the greatest that is known to be published
	some  bool       // there is one
}

// NewPublisher checks the configuration. With neither a file nor a repository, it
// has nothing to do.
func NewPublisher(c PublisherConfig) (*Publisher, error) {
	switch {
	case c.Storage == nil:
		return nil, errors.New("ledger: a storage is required")
	case c.Keys.origin == "":
		return nil, errors.New("ledger: the log's public key is required")
	case c.Log == nil:
		return nil, errors.New("ledger: a logger is required")
	case c.Repository != "" && c.Artifacts == nil:
		return nil, errors.New("ledger: publishing to a repository takes a registry")
	}
	if c.Every <= 0 {
		c.Every = time.Minute
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	p := &Publisher{PublisherConfig: c}
	if c.File != "" {
		p.places = append(p.places, &place{name: c.File, read: p.readFile, write: p.writeFile})
	}
	if c.Repository != "" {
		p.places = append(p.places, &place{name: c.Repository, turn: true, read: p.readRepository, write: p.writeRepository})
	}
	return p, nil
}

// Status says how it fares.
func (p *Publisher) Status() PublisherStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status
}

// Run publishes until ctx is done.
func (p *Publisher) Run(ctx context.Context) {
	if len(p.places) == 0 {
		return
	}
	for ctx.Err() == nil {
		if err := p.Once(ctx); err != nil && ctx.Err() == nil {
			if errors.Is(err, pipeline.ErrUnverified) {
				p.Log.ErrorContext(ctx, "the evidence log is not what was published: its history was rewritten", "error", err)
			} else {
				p.Log.WarnContext(ctx, "a checkpoint was not published; it is tried again", "error", err)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(p.Every):
		}
	}
}

// Once publishes the newest checkpoint wherever a smaller one was published last.
func (p *Publisher) Once(ctx context.Context) (err error) {
	size := int64(0)
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.status.Err, p.status.Rewritten = err, errors.Is(err, pipeline.ErrUnverified)
		if err == nil {
			p.status.Size = size
		}
	}()
	signed, err := p.Storage.LogCheckpoint(ctx, -1)
	if err != nil {
		if errors.Is(err, pipeline.ErrNotFound) && !p.published() {
			return nil // none was signed yet
		}
		return err
	}
	now, err := p.Keys.Open(signed)
	if err != nil {
		return fmt.Errorf("newest checkpoint: %w", err)
	}
	size = now.N
	var problems []error
	for _, place := range p.places {
		if err := p.publish(ctx, place, now, signed); err != nil {
			problems = append(problems, fmt.Errorf("publish the checkpoint of size %d to %s: %w", now.N, place.name, err))
		}
	}
	return errors.Join(problems...)
}

func (p *Publisher) published() bool {
	for _, place := range p.places {
		if place.some {
			return true
		}
	}
	return false
}

func (p *Publisher) publish(ctx context.Context, at *place, now Checkpoint, signed []byte) error {
	if !at.known {
		last, err := at.read(ctx)
		if err != nil {
			return fmt.Errorf("read what was published last: %w", err)
		}
		if last != nil {
			if at.last, err = p.Keys.Open(last); err != nil {
				return fmt.Errorf("what was published last: %w", err)
			}
			at.some = true
		}
		at.known = true
	}
	if at.some {
		if now.N < at.last.N {
			return fmt.Errorf("the log has %d entries, and a checkpoint of %d was published: %w", now.N, at.last.N, pipeline.ErrUnverified)
		}
		if err := sameTree(at.last.Tree, storedHashes(ctx, p.Storage)); err != nil {
			return fmt.Errorf("compared with what was published: %w", err)
		}
		if now.N == at.last.N {
			return nil
		}
	}
	if err := sameTree(now.Tree, storedHashes(ctx, p.Storage)); err != nil {
		return err
	}
	if at.turn && p.Turn != nil {
		mine, err := p.Turn(ctx, "publish", p.Every)
		if err != nil || !mine {
			return err
		}
	}
	if err := at.write(ctx, now, signed); err != nil {
		return err
	}
	at.last, at.some = now, true
	return nil
}

func (p *Publisher) readFile(context.Context) ([]byte, error) {
	all, err := ReadCheckpoints(p.File)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return all[len(all)-1], nil
}

func (p *Publisher) writeFile(_ context.Context, c Checkpoint, signed []byte) error {
	return appendPublished(p.File, published{p.Now().UTC(), c.N, string(signed)})
}

func (p *Publisher) readRepository(ctx context.Context) ([]byte, error) {
	signed, err := p.Artifacts.PullArtifact(ctx, p.Repository, TagLatest, MediaCheckpoint)
	if errors.Is(err, pipeline.ErrNotFound) {
		return nil, nil
	}
	return signed, err
}

func (p *Publisher) writeRepository(ctx context.Context, c Checkpoint, signed []byte) error {
	for _, tag := range []string{fmt.Sprintf("checkpoint-%d", c.N), TagLatest} {
		if err := p.Artifacts.PushArtifact(ctx, p.Repository, tag, MediaCheckpoint, signed); err != nil {
			return err
		}
	}
	return nil
}
