package ledger

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/dray-project/dray/pipeline"
)

// Log reads a log for those who ask: checkpoints, tiles and proofs. What it gives
// is for them to verify; it does not do so itself.
type Log struct{ storage Storage }

// NewLog returns a reader of what a storage holds.
func NewLog(s Storage) (*Log, error) {
	if s == nil {
		return nil, errors.New("ledger: a storage is required")
	}
	return &Log{s}, nil
}

// Checkpoint returns the newest signed checkpoint; pipeline.ErrNotFound before
// the first one.
func (l *Log) Checkpoint(ctx context.Context) ([]byte, error) {
	return l.storage.LogCheckpoint(ctx, -1)
}

// Size is how many entries the newest checkpoint is of.
func (l *Log) Size(ctx context.Context) (int64, error) {
	tree, err := l.newest(ctx)
	return tree.N, err
}

// newest returns the size that the newest checkpoint is for. Whoever verifies
// opens it with a key; here only a bound is wanted.
func (l *Log) newest(ctx context.Context) (tlog.Tree, error) {
	signed, err := l.Checkpoint(ctx)
	if err != nil {
		return tlog.Tree{}, err
	}
	return unverified(signed)
}

// Tile returns the tile or the bundle of entries at a path of c2sp.org/tlog-tiles,
// which starts with "tile/". What the newest checkpoint does not cover is
// pipeline.ErrNotFound. A path's content never changes.
func (l *Log) Tile(ctx context.Context, path string) ([]byte, error) {
	t, err := ParseTilePath(path)
	if err != nil {
		return nil, err
	}
	tree, err := l.newest(ctx)
	if err != nil {
		return nil, err
	}
	if !within(t, tree.N) {
		return nil, fmt.Errorf("%s of a log of %d entries: %w", path, tree.N, pipeline.ErrNotFound)
	}
	if t.L == entriesLevel {
		leaves, err := l.storage.LogLeaves(ctx, t.N<<tileHeight, t.N<<tileHeight+int64(t.W))
		if err != nil {
			return nil, err
		}
		return EncodeEntries(leaves)
	}
	return tlog.ReadTileData(t, l.hashes(ctx))
}

// Prove proves that an entry is in the tree of that size; 0 is the newest.
func (l *Log) Prove(ctx context.Context, index, size int64) (p pipeline.Inclusion, err error) {
	tree, err := l.newest(ctx)
	if err != nil {
		return p, err
	}
	if size == 0 {
		size = tree.N
	}
	if index < 0 || size < 0 || size > tree.N {
		return p, fmt.Errorf("proof of entry %d in the first %d of %d entries: %w", index, size, tree.N, pipeline.ErrInvalid)
	}
	if index >= size {
		return p, fmt.Errorf("entry %d among the first %d: %w", index, size, pipeline.ErrNotFound)
	}
	leaves, err := l.storage.LogLeaves(ctx, index, index+1)
	if err != nil {
		return p, err
	}
	proof, err := tlog.ProveRecord(size, index, l.hashes(ctx))
	if err != nil {
		return p, fmt.Errorf("proof of entry %d: %w", index, err)
	}
	p = pipeline.Inclusion{Index: index, Leaf: leaves[0], Size: size, Proof: hashBytes(proof)}
	signed, err := l.storage.LogCheckpoint(ctx, size)
	if err != nil && !errors.Is(err, pipeline.ErrNotFound) {
		return p, err
	}
	p.Checkpoint = string(signed)
	return p, nil
}

// ProveTree proves that the tree of one size is the beginning of that of another;
// 0 for the second is the newest. It returns that size.
func (l *Log) ProveTree(ctx context.Context, from, to int64) (size int64, proof [][]byte, err error) {
	tree, err := l.newest(ctx)
	if err != nil {
		return 0, nil, err
	}
	if to == 0 {
		to = tree.N
	}
	if from < 1 || to < from || to > tree.N {
		return 0, nil, fmt.Errorf("proof from size %d to %d of a log of %d entries: want 1 or more, and the smaller one first: %w", from, to, tree.N, pipeline.ErrInvalid)
	}
	p, err := tlog.ProveTree(to, from, l.hashes(ctx))
	if err != nil {
		return 0, nil, fmt.Errorf("proof from size %d to %d: %w", from, to, err)
	}
	return to, hashBytes(p), nil
}

func (l *Log) hashes(ctx context.Context) tlog.HashReader { return storedHashes(ctx, l.storage) }

func storedHashes(ctx context.Context, s Storage) tlog.HashReader {
	return tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		if len(indexes) == 0 {
			return nil, nil
		}
		return s.LogHashes(ctx, indexes)
	})
}

func hashBytes(hashes []tlog.Hash) [][]byte {
	out := make([][]byte, len(hashes))
	for i := range hashes {
		out[i] = hashes[i][:]
	}
	return out
}

// unverified reads a signed checkpoint without looking at the signature.
func unverified(signed []byte) (tlog.Tree, error) {
	c, err := ParseCheckpoint(noteText(signed))
	return c.Tree, err
}

// noteText is the part of a signed note that is signed.
func noteText(signed []byte) string {
	text := string(signed)
	for i := len(text) - 1; i > 0; i-- {
		if text[i] == '\n' && text[i-1] == '\n' {
			return text[:i]
		}
	}
	return text
}
