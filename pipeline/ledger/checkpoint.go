package ledger

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/dray-project/dray/pipeline"
)

// maxCheckpoint bounds a signed checkpoint, in bytes.
const maxCheckpoint = 64 << 10

// Checkpoint is what a log's key says of the whole log: how many entries it has
// and the root of their tree.
type Checkpoint struct {
	Origin string
	tlog.Tree
}

// Text is the form that is signed (c2sp.org/tlog-checkpoint).
func (c Checkpoint) Text() string {
	return fmt.Sprintf("%s\n%d\n%s\n", c.Origin, c.N, c.Hash)
}

// ParseCheckpoint reads the form that is signed. Extension lines are allowed and
// not looked at.
func ParseCheckpoint(text string) (c Checkpoint, err error) {
	malformed := func(what string) (Checkpoint, error) {
		return Checkpoint{}, fmt.Errorf("checkpoint %s: %w", what, pipeline.ErrInvalid)
	}
	if !strings.HasSuffix(text, "\n") {
		return malformed("does not end with its line")
	}
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if len(lines) < 3 {
		return malformed("has fewer than three lines")
	}
	for _, line := range lines {
		if line == "" {
			return malformed("has an empty line")
		}
	}
	c.Origin = lines[0]
	if c.N, err = strconv.ParseInt(lines[1], 10, 64); err != nil || c.N < 0 || strconv.FormatInt(c.N, 10) != lines[1] {
		return malformed(fmt.Sprintf("has the size %.40q", lines[1]))
	}
	root, err := base64.StdEncoding.DecodeString(lines[2])
	if err != nil || len(root) != tlog.HashSize || base64.StdEncoding.EncodeToString(root) != lines[2] {
		return malformed(fmt.Sprintf("has the root %.80q", lines[2]))
	}
	copy(c.Hash[:], root)
	if empty, _ := tlog.TreeHash(0, nil); c.N == 0 && c.Hash != empty {
		return malformed("of no entries has the root of some")
	}
	return c, nil
}

// Open returns what a signed checkpoint says, if it is of this log and one of the
// keys signed it; else the error wraps pipeline.ErrUnverified.
func (k Keys) Open(signed []byte) (Checkpoint, error) {
	if len(signed) > maxCheckpoint {
		return Checkpoint{}, fmt.Errorf("checkpoint of %d bytes: %w", len(signed), pipeline.ErrUnverified)
	}
	n, err := note.Open(signed, k.verifiers)
	var unknown *note.UnverifiedNoteError
	switch {
	case errors.As(err, &unknown):
		by := "nobody"
		if sigs := unknown.Note.UnverifiedSigs; len(sigs) > 0 {
			by = fmt.Sprintf("the key %s+%08x", sigs[0].Name, sigs[0].Hash)
		}
		return Checkpoint{}, fmt.Errorf("checkpoint is signed by %s and not by the trusted key of %s: %w", by, k.origin, pipeline.ErrUnverified)
	case err != nil:
		return Checkpoint{}, fmt.Errorf("checkpoint: %w: %w", err, pipeline.ErrUnverified)
	}
	c, err := ParseCheckpoint(n.Text)
	if err != nil {
		return Checkpoint{}, fmt.Errorf("%w: %w", err, pipeline.ErrUnverified)
	}
	if c.Origin != k.origin {
		return Checkpoint{}, fmt.Errorf("checkpoint is of the log %.200q, want %s: %w", c.Origin, k.origin, pipeline.ErrUnverified)
	}
	return c, nil
}

// Sign makes the signed checkpoint of a tree.
func (s *Signer) Sign(tree tlog.Tree) ([]byte, error) {
	signed, err := note.Sign(&note.Note{Text: Checkpoint{s.Origin(), tree}.Text()}, s.signer)
	if err != nil {
		return nil, fmt.Errorf("sign the checkpoint of size %d: %w", tree.N, err)
	}
	return signed, nil
}

// publicOf derives the public key's line from the private key's.
func publicOf(line string, s note.Signer) (string, error) {
	parts := strings.SplitN(line, "+", 5)
	if len(parts) != 5 {
		return "", fmt.Errorf("private log key: %w", pipeline.ErrInvalid)
	}
	key, err := base64.StdEncoding.DecodeString(parts[4])
	if err != nil || len(key) != 1+ed25519.SeedSize {
		return "", fmt.Errorf("private log key: %w", pipeline.ErrInvalid)
	}
	public, ok := ed25519.NewKeyFromSeed(key[1:]).Public().(ed25519.PublicKey)
	if !ok {
		return "", fmt.Errorf("private log key: %w", pipeline.ErrInvalid)
	}
	return note.NewEd25519VerifierKey(s.Name(), public)
}
