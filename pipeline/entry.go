package pipeline

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"
)

// EntryVersion is the version of the form that entries are written in now.
const EntryVersion = 1

// Kinds of entries. A kind says what happened; its data are described in
// docs/reference/log.md.
const (
	EntryDeliveryAccepted   = "delivery.accepted"
	EntryDeliveryRefused    = "delivery.refused"
	EntryRunStarted         = "run.started"
	EntryRunDecided         = "run.decided"
	EntryRunEnded           = "run.ended"
	EntryImageRecorded      = "image.recorded"
	EntryEvidenceMade       = "evidence.made" // signatures and attestations, as verified
	EntryPromotionRequested = "promotion.requested"
	EntryPromotionDecided   = "promotion.decided"
	EntryPromotionApproved  = "promotion.approved"
	EntryPromotionRejected  = "promotion.rejected"
	EntryPromotionEnded     = "promotion.ended"
	EntryBreakGlass         = "promotion.break-glass"
	EntryCopied             = "image.copied"
	EntryTagMoved           = "tag.moved"
	EntryExceptionAdded     = "exception.added"
	EntryExceptionRevoked   = "exception.revoked"
	EntryVEXAdded           = "vex.added"
	EntryVEXRevoked         = "vex.revoked"
	EntryProjectApplied     = "project.applied"
	EntryTokenCreated       = "token.created"
	EntryTokenRevoked       = "token.revoked"
	EntryDriftFound         = "drift.found"
	EntryDriftRepaired      = "drift.repaired"
	EntryDriftResolved      = "drift.resolved"
	EntryDatabaseSeen       = "database.seen"          // a new vulnerability database
	EntryFindingsChanged    = "image.findings-changed" // by re-matching
	EntryRetentionApplied   = "retention.applied"
	EntryAdopted            = "log.adopted" // rows from before there was a log
)

// Entry is one leaf of the evidence log: a state change that matters, written
// in the transaction of the change.
type Entry struct {
	// Version of the form: 1.
	Version int    `json:"v"`
	Kind    string `json:"kind"`
	// At is when the change was made, by the database's clock, to microseconds.
	At      time.Time `json:"at"`
	Project string    `json:"project,omitempty"`
	// Actor is whoever caused it: a token's name, or "dray".
	Actor string `json:"actor,omitempty"`
	// Subject is the id of what it is about: a run, a promotion, an exception.
	Subject string `json:"subject,omitempty"`
	// Image that it is about, if any.
	Image Digest `json:"image,omitempty"`
	// Data says what happened, an object whose members depend on the kind. It
	// never holds a secret.
	Data json.RawMessage `json:"data,omitempty"`
	// Rows are the database rows that the entry describes, as they were at that
	// moment. The newest entry that names a row is what the row must be now.
	Rows []EntryRow `json:"rows,omitempty"`
}

// EntryRow pins one database row.
type EntryRow struct {
	Table string `json:"table"`
	Key   string `json:"key"`
	// Form is the version of the rendition that was hashed: which columns, in
	// which shape.
	Form int `json:"form"`
	// Digest is the sha256 of the rendition; empty when the row was removed by
	// the change itself.
	Digest Digest `json:"digest,omitempty"`
}

// Leaf is the entry in its canonical form: compact JSON, members in the order of
// the struct, times in UTC. This is what the log hashes.
func (e Entry) Leaf() ([]byte, error) {
	e.At = e.At.UTC().Truncate(time.Microsecond)
	if len(e.Data) > 0 {
		var compact bytes.Buffer
		if err := json.Compact(&compact, e.Data); err != nil {
			return nil, fmt.Errorf("data of a %s entry: %w", e.Kind, err)
		}
		e.Data = compact.Bytes()
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// ParseEntry reads a leaf. One that is not in canonical form is an error that
// wraps ErrInvalid: two forms of one entry would be two leaves.
func ParseEntry(leaf []byte) (e Entry, err error) {
	dec := json.NewDecoder(bytes.NewReader(leaf))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&e); err != nil {
		return e, fmt.Errorf("log entry: %w: %w", err, ErrInvalid)
	}
	if e.Version != EntryVersion {
		return e, fmt.Errorf("log entry of version %d, only %d is known: %w", e.Version, EntryVersion, ErrInvalid)
	}
	again, err := e.Leaf()
	if err != nil {
		return e, err
	}
	if !bytes.Equal(again, leaf) {
		return e, fmt.Errorf("log entry is not in canonical form: %w", ErrInvalid)
	}
	return e, nil
}

// LogEntry is an entry with its place in the log.
type LogEntry struct {
	Index int64 `json:"index"`
	// Leaf is the entry's canonical form, byte by byte.
	Leaf []byte `json:"leaf"`
}

// MaxLeaf is the longest that a leaf can be, in bytes: a bundle of entries
// (C2SP tlog-tiles) has two bytes for its length.
const MaxLeaf = 1<<16 - 1

// RowCheck is a database row that is not what the log says of it.
type RowCheck struct {
	Table string `json:"table"`
	Key   string `json:"key"`
	// Entry is the index of the entry that says what the row must be; -1 when
	// there is none, or when it has no place in the log yet.
	Entry int64 `json:"entry"`
	// Want is what the entry says, Have what the row is; Have is empty when the
	// row is gone, Want when no entry describes it.
	Want Digest `json:"want,omitempty"`
	Have Digest `json:"have,omitempty"`
	// Problem says it in words.
	Problem string `json:"problem"`
}

// EntryQuery asks for entries that have their place in the log.
type EntryQuery struct {
	// Projects narrows to entries of these; nil does not. InProject leaves out
	// entries that belong to no project.
	Projects  []string
	InProject bool
	// Kind, Subject and Image narrow when they are not empty.
	Kind    string
	Subject string
	Image   Digest
	// Before asks for entries with a smaller index, the greatest first; 0 starts
	// from the newest. With Ascending it asks for the index From and greater ones,
	// the smallest first.
	Before    int64
	Ascending bool
	From      int64
	// Limit is from 1 to 1000.
	Limit int
}

// Inclusion is the proof that a leaf is in the log.
type Inclusion struct {
	Index int64 `json:"index"`
	// Leaf is the entry's canonical form, byte by byte.
	Leaf []byte `json:"leaf"`
	// Size of the tree that the proof is for.
	Size int64 `json:"size"`
	// Proof is the audit path of RFC 6962, section 2.1.1: the leaf's sibling first.
	Proof [][]byte `json:"proof"`
	// Checkpoint is the signed checkpoint of that size; empty if none was signed,
	// or if it is not kept any more. The proof holds all the same for whoever has it.
	Checkpoint string `json:"checkpoint,omitempty"`
}
