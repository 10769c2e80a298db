package ledger

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/dray-project/dray/pipeline"
)

// Source is where a log is followed: a server, or a copy of what one served.
type Source interface {
	// Checkpoint returns the newest signed checkpoint.
	Checkpoint(context.Context) ([]byte, error)
	// Tile returns what is at a path of c2sp.org/tlog-tiles that starts with
	// "tile/".
	Tile(ctx context.Context, path string) ([]byte, error)
}

// Follow says what to follow, and what is believed already.
type Follow struct {
	Source Source
	Keys   Keys
	// Trusted are signed checkpoints from before, in any order: the last one that
	// was verified, and those that were published. Each must be consistent with
	// what the log is now.
	Trusted [][]byte
	// From is the first entry to recompute; those before are taken as verified.
	From int64
	// Each is called with every entry that was recomputed, in order. May be nil.
	Each func(index int64, leaf []byte, e pipeline.Entry) error
}

// Followed is what a log was found to be.
type Followed struct {
	Checkpoint
	// Signed is the checkpoint, byte by byte.
	Signed []byte
	// Consistent is how many earlier checkpoints it was compared with.
	Consistent int
	// Entries is how many entries were recomputed.
	Entries int64
}

// Run reads the newest checkpoint, checks its signature and that every trusted
// checkpoint is the beginning of the same log, and computes the hash of every
// entry again. What does not verify is an error that wraps
// pipeline.ErrUnverified and says which entry, tile or checkpoint it is; nothing
// that Source says is believed without.
func (f Follow) Run(ctx context.Context) (out Followed, err error) {
	if out.Signed, err = f.Source.Checkpoint(ctx); err != nil {
		return out, fmt.Errorf("read the log's checkpoint: %w", err)
	}
	if out.Checkpoint, err = f.Keys.Open(out.Signed); err != nil {
		return out, err
	}
	tiles := &tileReader{ctx: ctx, source: f.Source, verified: map[tlog.Tile][]byte{}}
	hashes := &treeReader{tree: out.Tree, tiles: tiles, hashes: tlog.TileHashReader(out.Tree, tiles)}
	if out.Consistent, err = f.compare(out.Checkpoint, hashes); err != nil {
		return out, err
	}
	if f.From < 0 || f.From > out.N {
		return out, fmt.Errorf("recompute from entry %d of a log of %d: %w", f.From, out.N, pipeline.ErrInvalid)
	}
	for at := f.From; at < out.N; {
		n, err := f.bundle(ctx, at, out.N, hashes)
		out.Entries += n
		if err != nil {
			return out, err
		}
		at += n
	}
	return out, nil
}

// compare checks that each trusted checkpoint is the beginning of the log.
func (f Follow) compare(now Checkpoint, hashes tlog.HashReader) (n int, err error) {
	var trusted []Checkpoint
	for _, signed := range f.Trusted {
		c, err := f.Keys.Open(signed)
		if err != nil {
			return 0, fmt.Errorf("the checkpoint that was trusted: %w", err)
		}
		if !slices.Contains(trusted, c) {
			trusted = append(trusted, c)
		}
	}
	slices.SortFunc(trusted, func(a, b Checkpoint) int { return int(max(-1, min(1, a.N-b.N))) })
	for i, c := range trusted {
		if i > 0 && trusted[i-1].N == c.N {
			return i, fmt.Errorf("two checkpoints of size %d were signed, with the roots %s and %s: the log was forked: %w", c.N, trusted[i-1].Hash, c.Hash, pipeline.ErrUnverified)
		}
	}
	for i, c := range trusted {
		if c.N > now.N {
			return i, fmt.Errorf("the log has shrunk: it has %d entries, and a checkpoint of %d was trusted: %w", now.N, c.N, pipeline.ErrUnverified)
		}
		root, err := tlog.TreeHash(c.N, hashes)
		if err != nil {
			return i, fmt.Errorf("compare with the checkpoint of size %d: %w", c.N, err)
		}
		switch {
		case root == c.Hash:
		case c.N == now.N:
			return i, fmt.Errorf("the log was forked: its checkpoint of size %d has the root %s, and one with the root %s was trusted: %w", c.N, now.Hash, c.Hash, pipeline.ErrUnverified)
		default:
			return i, fmt.Errorf("history was rewritten: the first %d entries have the root %s now, and a checkpoint with the root %s was trusted: %w", c.N, root, c.Hash, pipeline.ErrUnverified)
		}
	}
	return len(trusted), nil
}

// bundle recomputes the entries from one index to the end of their bundle.
func (f Follow) bundle(ctx context.Context, at, size int64, hashes tlog.HashReader) (n int64, err error) {
	t := entriesTile(at, size)
	raw, err := f.Source.Tile(ctx, TilePath(t))
	if err != nil {
		return 0, fmt.Errorf("read the entries from %d: %w", t.N<<tileHeight, err)
	}
	leaves, err := DecodeEntries(raw)
	if err != nil {
		return 0, fmt.Errorf("%s: %w: %w", TilePath(t), err, pipeline.ErrUnverified)
	}
	first := t.N << tileHeight
	indexes := make([]int64, t.W)
	for i := range indexes {
		indexes[i] = tlog.StoredHashIndex(0, first+int64(i))
	}
	want, err := hashes.ReadHashes(indexes)
	if err != nil {
		return 0, fmt.Errorf("hashes of the entries from %d: %w", first, err)
	}
	for i := int(at - first); i < t.W; i++ {
		index := first + int64(i)
		if i >= len(leaves) {
			return n, fmt.Errorf("entry %d is missing: %s has %d entries of %d: %w", index, TilePath(t), len(leaves), t.W, pipeline.ErrUnverified)
		}
		if got := tlog.RecordHash(leaves[i]); got != want[i] {
			return n, fmt.Errorf("entry %d was changed: its hash is %s, and the log has %s (%s): %w", index, got, want[i], summary(leaves[i]), pipeline.ErrUnverified)
		}
		e, err := pipeline.ParseEntry(leaves[i])
		if err != nil {
			return n, fmt.Errorf("entry %d: %w: a newer dray may know it", index, err)
		}
		if f.Each != nil {
			if err := f.Each(index, leaves[i], e); err != nil {
				return n, err
			}
		}
		n++
	}
	if len(leaves) > t.W {
		return n, fmt.Errorf("%s has %d entries, want %d: %w", TilePath(t), len(leaves), t.W, pipeline.ErrUnverified)
	}
	return n, nil
}

// summary says in short what a leaf claims to be.
func summary(leaf []byte) string {
	e, err := pipeline.ParseEntry(leaf)
	if err != nil {
		return "no entry of Dray's"
	}
	return fmt.Sprintf("it says %s %s of %s", e.Kind, e.Subject, e.At.Format("2006-01-02T15:04:05Z"))
}

// tileReader fetches tiles, and keeps those that were verified: of the lowest
// level only the last few, because there are as many as entries by 256.
type tileReader struct {
	ctx      context.Context
	source   Source
	verified map[tlog.Tile][]byte
	lowest   []tlog.Tile
	fetched  map[tlog.Tile][]byte // by the last ReadTiles, if it read them all
}

// keepLowest is how many tiles of the lowest level are kept.
const keepLowest = 4

// Height implements tlog.TileReader.
func (*tileReader) Height() int { return tileHeight }

// ReadTiles implements tlog.TileReader.
func (r *tileReader) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	data := make([][]byte, len(tiles))
	fetched := make(map[tlog.Tile][]byte, len(tiles))
	for i, t := range tiles {
		b, ok := r.verified[t]
		if !ok {
			var err error
			if b, err = r.source.Tile(r.ctx, TilePath(t)); err != nil {
				return nil, fmt.Errorf("read %s: %w", TilePath(t), err)
			}
			if len(b) != t.W*tlog.HashSize {
				return nil, fmt.Errorf("%s has %d bytes, want %d: %w", TilePath(t), len(b), t.W*tlog.HashSize, pipeline.ErrUnverified)
			}
		}
		data[i], fetched[t] = b, b
	}
	r.fetched = fetched
	return data, nil
}

// SaveTiles implements tlog.TileReader.
func (r *tileReader) SaveTiles(tiles []tlog.Tile, data [][]byte) {
	for i, t := range tiles {
		if _, ok := r.verified[t]; ok {
			continue
		}
		r.verified[t] = bytes.Clone(data[i])
		if t.L > 0 {
			continue
		}
		if r.lowest = append(r.lowest, t); len(r.lowest) > keepLowest {
			delete(r.verified, r.lowest[0])
			r.lowest = r.lowest[1:]
		}
	}
}

// treeReader reads hashes that are proven to be in a tree, and says which tile is
// wrong when one is not.
type treeReader struct {
	tree   tlog.Tree
	tiles  *tileReader
	hashes tlog.HashReader
}

// ReadHashes implements tlog.HashReader.
func (r *treeReader) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	if len(indexes) == 0 {
		return nil, nil
	}
	r.tiles.fetched = nil
	out, err := r.hashes.ReadHashes(indexes)
	switch {
	case err == nil:
		return out, nil
	case r.tiles.ctx.Err() != nil:
		return nil, context.Cause(r.tiles.ctx)
	case r.tiles.fetched == nil:
		return nil, err // a tile could not be read
	}
	return nil, fmt.Errorf("%s: %w", r.blame(), pipeline.ErrUnverified)
}

// blame compares each tile that was fetched with the one above it.
func (r *treeReader) blame() string {
	for t, data := range r.tiles.fetched {
		if t.W != tileWidth {
			continue
		}
		for above, hashes := range r.tiles.fetched {
			at := t.N - above.N<<tileHeight
			if above.L != t.L+1 || at < 0 || at >= int64(above.W) {
				continue
			}
			var want tlog.Hash
			copy(want[:], hashes[at*tlog.HashSize:])
			if tileRoot(data) != want {
				return fmt.Sprintf("the hashes in %s are not those that %s sums up: one of the two was changed", TilePath(t), TilePath(above))
			}
		}
	}
	names := make([]string, 0, len(r.tiles.fetched))
	for t := range r.tiles.fetched {
		names = append(names, TilePath(t))
	}
	slices.Sort(names)
	return fmt.Sprintf("the hashes in %v do not give the root %s that was signed for %d entries: they were changed", names, r.tree.Hash, r.tree.N)
}

// tileRoot is the hash of a full tile's tree.
func tileRoot(data []byte) tlog.Hash {
	level := make([]tlog.Hash, len(data)/tlog.HashSize)
	for i := range level {
		copy(level[i][:], data[i*tlog.HashSize:])
	}
	for len(level) > 1 {
		for i := range len(level) / 2 {
			level[i] = tlog.NodeHash(level[2*i], level[2*i+1])
		}
		level = level[:len(level)/2]
	}
	return level[0]
}
