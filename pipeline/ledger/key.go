package ledger

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"unicode"

	"golang.org/x/mod/sumdb/note"

	"github.com/dray-project/dray/pipeline"
)

// maxKeyFile bounds what is read of a key file.
const maxKeyFile = 64 << 10

// CheckOrigin refuses what cannot be a log's origin: the first line of its
// checkpoints and the name of its key (c2sp.org/tlog-checkpoint).
func CheckOrigin(origin string) error {
	switch {
	case origin == "" || len(origin) > 200:
		return fmt.Errorf("origin of a log %.200q: want 1 to 200 bytes: %w", origin, pipeline.ErrInvalid)
	case strings.Contains(origin, "://"):
		return fmt.Errorf("origin of a log %q: want it without a scheme, such as dray.example/log: %w", origin, pipeline.ErrInvalid)
	case strings.ContainsFunc(origin, func(r rune) bool { return r == '+' || unicode.IsSpace(r) || !unicode.IsPrint(r) }):
		return fmt.Errorf("origin of a log %q: want it without spaces and plus signs, such as dray.example/log: %w", origin, pipeline.ErrInvalid)
	}
	return nil
}

// GenerateKey makes an Ed25519 key for a log, in the text form of signed notes:
// the private half as "PRIVATE+KEY+origin+…", the public as "origin+…", each with
// the end of its line.
func GenerateKey(origin string) (private, public []byte, err error) {
	if err := CheckOrigin(origin); err != nil {
		return nil, nil, err
	}
	s, v, err := note.GenerateKey(rand.Reader, origin)
	if err != nil {
		return nil, nil, fmt.Errorf("make a log key: %w", err)
	}
	return []byte(s + "\n"), []byte(v + "\n"), nil
}

// Signer signs checkpoints of one log.
type Signer struct {
	signer note.Signer
	public string
}

// Origin of the log.
func (s *Signer) Origin() string { return s.signer.Name() }

// PublicKey is the line that verifiers need.
func (s *Signer) PublicKey() string { return s.public }

// ParseSigner reads a private key.
func ParseSigner(text []byte) (*Signer, error) {
	line := strings.TrimSpace(string(text))
	s, err := note.NewSigner(line)
	if err != nil {
		// The text is not shown: it may be a key all the same.
		return nil, fmt.Errorf("private log key: %w: want the file that drayd key generate-log writes: %w", err, pipeline.ErrInvalid)
	}
	if err := CheckOrigin(s.Name()); err != nil {
		return nil, err
	}
	public, err := publicOf(line, s)
	if err != nil {
		return nil, err
	}
	return &Signer{s, public}, nil
}

// ReadSigner reads a private key from a file that only its owner, and at most its
// group, may read.
func ReadSigner(path string) (*Signer, error) {
	text, err := ReadSecret(path)
	if err != nil {
		return nil, err
	}
	s, err := ParseSigner(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

// ReadSecret reads a key file that only its owner, and at most its group, may read.
func ReadSecret(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o007 != 0 {
		return nil, fmt.Errorf("%s may be read by everybody (mode %04o): it speaks for the log; chmod 600 it: %w", path, info.Mode().Perm(), pipeline.ErrInvalid)
	}
	return readSmall(path)
}

func readSmall(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxKeyFile || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: %d bytes, want a file of at most %d: %w", path, info.Size(), maxKeyFile, pipeline.ErrInvalid)
	}
	return os.ReadFile(path)
}

// Keys are the public keys that a log's checkpoints may be signed with: usually
// one, and two or more when the key was changed.
type Keys struct {
	origin    string
	text      string
	verifiers note.Verifiers
}

// Origin of the log.
func (k Keys) Origin() string { return k.origin }

// String is the keys' text, a line for each.
func (k Keys) String() string { return k.text }

// ParseKeys reads public keys of one log, one a line; empty lines and those that
// start with # are passed over.
func ParseKeys(text string) (Keys, error) {
	var k Keys
	var list []note.Verifier
	var lines []string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if strings.HasPrefix(line, "PRIVATE+KEY+") {
			return Keys{}, fmt.Errorf("that is the private key of a log: want the public one: %w", pipeline.ErrInvalid)
		}
		v, err := note.NewVerifier(line)
		if err != nil {
			return Keys{}, fmt.Errorf("public log key %.100q: %w: want a line such as dray.example/log+1a2b3c4d+…: %w", line, err, pipeline.ErrInvalid)
		}
		if len(list) > 0 && v.Name() != list[0].Name() {
			return Keys{}, fmt.Errorf("public log keys of %s and %s: want those of one log: %w", list[0].Name(), v.Name(), pipeline.ErrInvalid)
		}
		if !containsKey(list, v) {
			list, lines = append(list, v), append(lines, line)
		}
	}
	if len(list) == 0 {
		return Keys{}, fmt.Errorf("there is no public log key: %w", pipeline.ErrInvalid)
	}
	k.origin, k.text, k.verifiers = list[0].Name(), strings.Join(lines, "\n"), note.VerifierList(list...)
	return k, nil
}

// ReadKeys reads public keys from a file.
func ReadKeys(path string) (Keys, error) {
	text, err := readSmall(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Keys{}, err
	}
	if err != nil {
		return Keys{}, err
	}
	k, err := ParseKeys(string(text))
	if err != nil {
		return Keys{}, fmt.Errorf("%s: %w", path, err)
	}
	return k, nil
}

func containsKey(list []note.Verifier, v note.Verifier) bool {
	for _, have := range list {
		if have.Name() == v.Name() && have.KeyHash() == v.KeyHash() {
			return true
		}
	}
	return false
}
