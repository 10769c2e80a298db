package ledger

import (
	"fmt"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/dray-project/dray/pipeline"
)

// VerifyInclusion checks, without any server, that a leaf is the entry with that
// index of the log whose public key is given (one a line), by the audit path to
// the root in a signed checkpoint. What does not verify is an error that wraps
// pipeline.ErrUnverified.
func VerifyInclusion(leaf []byte, index int64, proof [][]byte, checkpoint []byte, key string) error {
	keys, err := ParseKeys(key)
	if err != nil {
		return err
	}
	c, err := keys.Open(checkpoint)
	if err != nil {
		return fmt.Errorf("entry %d: %w", index, err)
	}
	path, err := proofHashes(proof)
	if err != nil {
		return fmt.Errorf("entry %d: %w", index, err)
	}
	if index < 0 || index >= c.N {
		return fmt.Errorf("entry %d: the checkpoint is of %d entries: %w", index, c.N, pipeline.ErrUnverified)
	}
	if err := tlog.CheckRecord(path, c.N, c.Hash, index, tlog.RecordHash(leaf)); err != nil {
		return fmt.Errorf("entry %d is not in the log %s of size %d: %w: %w", index, c.Origin, c.N, err, pipeline.ErrUnverified)
	}
	return nil
}

// VerifyConsistency checks, without any server, that the log of an earlier signed
// checkpoint is the beginning of that of a later one.
func VerifyConsistency(earlier, later []byte, proof [][]byte, key string) error {
	keys, err := ParseKeys(key)
	if err != nil {
		return err
	}
	from, err := keys.Open(earlier)
	if err != nil {
		return err
	}
	to, err := keys.Open(later)
	if err != nil {
		return err
	}
	path, err := proofHashes(proof)
	if err != nil {
		return err
	}
	switch {
	case from.N > to.N:
		return fmt.Errorf("the log %s has shrunk from %d to %d entries: %w", to.Origin, from.N, to.N, pipeline.ErrUnverified)
	case from.N == 0 && len(path) == 0:
		return nil
	case from.N == 0:
		return fmt.Errorf("a proof from the empty log has no hashes, this one has %d: %w", len(path), pipeline.ErrUnverified)
	}
	if err := tlog.CheckTree(path, to.N, to.Hash, from.N, from.Hash); err != nil {
		return fmt.Errorf("the log %s of size %d is not the beginning of that of size %d: %w: %w", to.Origin, from.N, to.N, err, pipeline.ErrUnverified)
	}
	return nil
}

func proofHashes(proof [][]byte) ([]tlog.Hash, error) {
	if len(proof) > 2*64 {
		return nil, fmt.Errorf("a proof of %d hashes: %w", len(proof), pipeline.ErrUnverified)
	}
	out := make([]tlog.Hash, len(proof))
	for i, h := range proof {
		if len(h) != tlog.HashSize {
			return nil, fmt.Errorf("hash %d of the proof has %d bytes: %w", i, len(h), pipeline.ErrUnverified)
		}
		copy(out[i][:], h)
	}
	return out, nil
}
