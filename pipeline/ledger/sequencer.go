package ledger

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/dray-project/dray/pipeline"
)

// SequencerConfig is what a Sequencer works with.
type SequencerConfig struct {
	Storage Storage // required
	Signer  *Signer // required
	// OldKeys are public keys that checkpoints were signed with before the key was
	// changed, one a line. The log goes on from what they signed.
	OldKeys string
	// Poll is how often waiting entries are looked for. Default 250 ms, at most a
	// second.
	Poll time.Duration
	// Batch is how many entries get their places in one transaction. Default 1000.
	Batch int
	Log   *slog.Logger // required
	Now   func() time.Time
}

// Sequencer gives entries their places and signs checkpoints. Any number, in any
// number of processes, may share a storage; one works at a time.
type Sequencer struct {
	SequencerConfig
	keys Keys

	mu     sync.Mutex
	last   tlog.Tree // the newest that this process knows to be signed
	known  bool
	status Status
}

// Status says how a Sequencer fares.
type Status struct {
	// Size of the log when this process last looked.
	Size int64
	// At is when it last looked without an error.
	At time.Time
	// Err is what went wrong the last time.
	Err error
	// Rewritten: the log is not what was signed. Nothing is signed any more until
	// somebody puts it right.
	Rewritten bool
}

const (
	defaultPoll  = 250 * time.Millisecond
	defaultBatch = 1000
	// sequenceTimeout bounds one transaction.
	sequenceTimeout = 30 * time.Second
	maxPause        = 5 * time.Second
)

// NewSequencer checks the configuration.
func NewSequencer(c SequencerConfig) (*Sequencer, error) {
	switch {
	case c.Storage == nil:
		return nil, errors.New("ledger: a storage is required")
	case c.Signer == nil:
		return nil, errors.New("ledger: a signer is required")
	case c.Log == nil:
		return nil, errors.New("ledger: a logger is required")
	case c.Poll < 0 || c.Poll > time.Second:
		return nil, fmt.Errorf("ledger: entries are looked for every %s: want at most 1s", c.Poll)
	case c.Batch < 0 || c.Batch > 100_000:
		return nil, fmt.Errorf("ledger: %d entries in one transaction: want 1 to 100000", c.Batch)
	}
	if c.Poll == 0 {
		c.Poll = defaultPoll
	}
	if c.Batch == 0 {
		c.Batch = defaultBatch
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	keys, err := ParseKeys(c.Signer.PublicKey() + "\n" + c.OldKeys)
	if err != nil {
		return nil, fmt.Errorf("ledger: old keys: %w", err)
	}
	return &Sequencer{SequencerConfig: c, keys: keys}, nil
}

// Status says how it fares.
func (s *Sequencer) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

// Run works until ctx is done. What fails is tried again with growing pauses, and
// logged when it changes.
func (s *Sequencer) Run(ctx context.Context) {
	pause, said := s.Poll, ""
	for ctx.Err() == nil {
		err := s.Once(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil && said != "":
			s.Log.InfoContext(ctx, "entries of the evidence log get their places again")
			pause, said = s.Poll, ""
		case err == nil:
			pause = s.Poll
		default:
			if text := err.Error(); text != said {
				said = text
				if errors.Is(err, pipeline.ErrUnverified) {
					s.Log.ErrorContext(ctx, "the evidence log is not what was signed: nothing is signed until it is put right", "error", err)
				} else {
					s.Log.WarnContext(ctx, "entries of the evidence log wait for their places", "error", err)
				}
			}
			pause = min(2*pause, maxPause)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// Once gives all waiting entries their places, unless another process is at it.
func (s *Sequencer) Once(ctx context.Context) (err error) {
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.status.Err = err
		if err == nil {
			s.status.At, s.status.Rewritten = s.Now(), false
		} else if errors.Is(err, pipeline.ErrUnverified) {
			s.status.Rewritten = true
		}
	}()
	for {
		pending, err := s.Storage.LogPending(ctx)
		if err != nil || !pending {
			return err
		}
		n, mine, err := s.sequence(ctx)
		if err != nil || !mine || n < s.Batch {
			return err
		}
	}
}

func (s *Sequencer) sequence(ctx context.Context) (n int, mine bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, sequenceTimeout)
	defer cancel()
	var grown tlog.Tree
	n, mine, err = s.Storage.SequenceLog(ctx, s.Batch, func(size int64, checkpoint []byte, leaves [][]byte, stored tlog.HashReader) (hashes []tlog.Hash, signed []byte, err error) {
		hashes, signed, grown, err = s.extend(size, checkpoint, leaves, stored)
		return hashes, signed, err
	})
	if err != nil {
		return n, mine, fmt.Errorf("sequence the evidence log: %w", err)
	}
	if mine && grown != (tlog.Tree{}) {
		s.mu.Lock()
		s.last, s.known, s.status.Size = grown, true, grown.N
		s.mu.Unlock()
	}
	return n, mine, nil
}

// extend checks that the log is still what was signed, and only then signs more.
func (s *Sequencer) extend(size int64, checkpoint []byte, leaves [][]byte, stored tlog.HashReader) (hashes []tlog.Hash, signed []byte, tree tlog.Tree, err error) {
	known := &overlay{base: stored, have: map[int64]tlog.Hash{}}
	if err := s.check(size, checkpoint, known); err != nil {
		return nil, nil, tree, err
	}
	next := tlog.StoredHashCount(size)
	for i, leaf := range leaves {
		if len(leaf) > pipeline.MaxLeaf {
			return nil, nil, tree, fmt.Errorf("a waiting entry has %d bytes, more than the %d that can be served: %w", len(leaf), pipeline.MaxLeaf, pipeline.ErrInvalid)
		}
		more, err := tlog.StoredHashes(size+int64(i), leaf, known)
		if err != nil {
			return nil, nil, tree, err
		}
		for _, h := range more {
			known.have[next] = h
			next++
		}
		hashes = append(hashes, more...)
	}
	tree.N = size + int64(len(leaves))
	if tree.Hash, err = tlog.TreeHash(tree.N, known); err != nil {
		return nil, nil, tree, err
	}
	signed, err = s.Signer.Sign(tree)
	return hashes, signed, tree, err
}

// check compares what is stored with what was signed last, as it is stored and as
// this process remembers it.
func (s *Sequencer) check(size int64, checkpoint []byte, stored tlog.HashReader) error {
	if checkpoint != nil {
		c, err := s.keys.Open(checkpoint)
		if err != nil {
			return fmt.Errorf("newest checkpoint, of size %d: %w", size, err)
		}
		if c.N != size {
			return fmt.Errorf("the newest checkpoint is stored for size %d and says %d: %w", size, c.N, pipeline.ErrUnverified)
		}
		if err := sameTree(c.Tree, stored); err != nil {
			return err
		}
	}
	s.mu.Lock()
	last, known := s.last, s.known
	s.mu.Unlock()
	switch {
	case !known:
		return nil
	case size < last.N:
		return fmt.Errorf("the log has %d entries, and this process signed a checkpoint of %d: %w", size, last.N, pipeline.ErrUnverified)
	}
	return sameTree(last, stored)
}

// sameTree checks that the hashes which are stored give a root that was signed.
func sameTree(signed tlog.Tree, stored tlog.HashReader) error {
	root, err := tlog.TreeHash(signed.N, stored)
	if err != nil {
		return err
	}
	if root != signed.Hash {
		return fmt.Errorf("the first %d entries have the root %s, and %s was signed: history was rewritten: %w", signed.N, root, signed.Hash, pipeline.ErrUnverified)
	}
	return nil
}

// overlay remembers hashes: those that were read, and those that are not stored yet.
type overlay struct {
	base tlog.HashReader
	have map[int64]tlog.Hash
}

// ReadHashes implements tlog.HashReader.
func (o *overlay) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	var missing []int64
	for _, i := range indexes {
		if _, ok := o.have[i]; !ok {
			missing = append(missing, i)
		}
	}
	if len(missing) > 0 {
		got, err := o.base.ReadHashes(missing)
		if err != nil {
			return nil, err
		}
		if len(got) != len(missing) {
			return nil, fmt.Errorf("%d hashes of %d were read", len(got), len(missing))
		}
		for i, index := range missing {
			o.have[index] = got[i]
		}
	}
	out := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		out[i] = o.have[index]
	}
	return out, nil
}
