package pipeline

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/binary"
	"time"
)

var idEncoding = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// newID is 20 characters: 48 bits of milliseconds, so that ids sort by
// creation, then 48 random bits that make them unguessable.
func newID(now time.Time) string {
	var b [8 + 6]byte
	binary.BigEndian.PutUint64(b[:8], uint64(now.UnixMilli()))
	if _, err := rand.Read(b[8:]); err != nil {
		panic(err) // crypto/rand never fails on a supported system
	}
	return idEncoding.EncodeToString(b[2:])
}

// NewRunID makes a new run's id.
func NewRunID(now time.Time) RunID { return RunID("run_" + newID(now)) }

// NewPromotionID makes a new promotion's id.
func NewPromotionID(now time.Time) PromotionID { return PromotionID("prm_" + newID(now)) }

// NewExceptionID makes a new exception's id.
func NewExceptionID(now time.Time) string { return "exc_" + newID(now) }

// NewVEXID makes a new VEX document's id.
func NewVEXID(now time.Time) string { return "vex_" + newID(now) }

// NewDriftID makes a new drift's id.
func NewDriftID(now time.Time) string { return "dft_" + newID(now) }

// NewRetentionID makes a new retention run's id.
func NewRetentionID(now time.Time) string { return "ret_" + newID(now) }
