package pipeline

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
)

// Seal marks entries of the evidence log as Dray's own while they wait for their
// place. Whoever can write into the database, and has no more than that, cannot
// have an entry of his signed.
type Seal struct{ keys [][]byte }

// sealKey is the length of a key, in bytes.
const sealKey = 32

// NewSealKey makes a key, in the form that ParseSeal reads.
func NewSealKey() []byte {
	var key [sealKey]byte
	_, _ = rand.Read(key[:]) // never fails
	return []byte(hex.EncodeToString(key[:]) + "\n")
}

// ParseSeal reads keys of 32 bytes in hexadecimal, one a line; empty lines and
// those that start with # are passed over. The first key seals, and seals of all
// of them count. Errors wrap ErrInvalid and show nothing of the text.
func ParseSeal(text []byte) (*Seal, error) {
	s := &Seal{}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		key, err := hex.DecodeString(line)
		if err != nil || len(key) != sealKey {
			return nil, fmt.Errorf("key of the log's seal: want %d hexadecimal digits a line, as drayd key generate-log writes them: %w", 2*sealKey, ErrInvalid)
		}
		s.keys = append(s.keys, key)
	}
	if len(s.keys) == 0 {
		return nil, fmt.Errorf("there is no key of the log's seal: %w", ErrInvalid)
	}
	return s, nil
}

// Of is the seal of the entry that has this number in the database: the
// HMAC-SHA-256 of both. A number is used once, so that no entry can be said again.
func (s *Seal) Of(id int64, leaf []byte) []byte { return sealOf(s.keys[0], id, leaf) }

// Good reports whether the seal is one of Dray's.
func (s *Seal) Good(id int64, leaf, seal []byte) bool {
	for _, key := range s.keys {
		if hmac.Equal(sealOf(key, id, leaf), seal) {
			return true
		}
	}
	return false
}

func sealOf(key []byte, id int64, leaf []byte) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte("dray log entry\n"))
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(id))
	mac.Write(n[:])
	mac.Write(leaf)
	return mac.Sum(nil)
}
