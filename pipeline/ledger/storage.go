package ledger

import (
	"context"

	"golang.org/x/mod/sumdb/tlog"
)

// Storage keeps a log. Entries come into it by other ways, in the transactions of
// the changes that they describe, and wait there for their place.
type Storage interface {
	// LogPending reports whether entries wait for their place, or no checkpoint was
	// ever signed. It is cheap and takes no lock.
	LogPending(context.Context) (bool, error)
	// SequenceLog gives at most limit waiting entries their places, in one
	// transaction. While it runs, no other SequenceLog does, in any process; where
	// one is at it, this one does nothing and returns false. Writers of entries
	// are not held up.
	//
	// extend is called within, with the size and the newest signed checkpoint of
	// the log as it is (nil: there is none), the waiting leaves in the order in
	// which they get their places, and the hashes that are stored. It returns the
	// hashes to store after those (golang.org/x/mod/sumdb/tlog's order) and the
	// checkpoint of the new size. It is not called when nothing is to be done. An
	// error of its own undoes everything and is returned.
	//
	// A log whose entries, hashes and newest checkpoint are not of one size is an
	// error that wraps pipeline.ErrUnverified. When the method returns another
	// error, either everything was committed or nothing.
	SequenceLog(ctx context.Context, limit int, extend Extend) (sequenced int, mine bool, err error)
	// LogCheckpoint returns the signed checkpoint of that size, or with a negative
	// size the newest; pipeline.ErrNotFound if there is none.
	LogCheckpoint(ctx context.Context, size int64) ([]byte, error)
	// LogLeaves returns the leaves from one index up to, not including, another. If
	// one is missing, the error names it and wraps pipeline.ErrUnverified.
	LogLeaves(ctx context.Context, from, to int64) ([][]byte, error)
	// LogHashes returns stored hashes, in the order of the indexes. If one is
	// missing, the error names it and wraps pipeline.ErrUnverified.
	LogHashes(ctx context.Context, indexes []int64) ([]tlog.Hash, error)
}

// Extend works out how a log grows; see Storage.
type Extend = func(size int64, checkpoint []byte, leaves [][]byte, stored tlog.HashReader) (hashes []tlog.Hash, signed []byte, err error)
