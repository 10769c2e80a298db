package pipeline

import (
	"bytes"
	"context"
	"encoding/binary"
	"sort"
	"time"
)

// Rematcher matches images again from what a scanner kept of them.
type Rematcher interface {
	// Database makes sure that there is a vulnerability database which is young
	// enough, asking for a newer one when it is time to, and says which.
	Database(context.Context) (VulnerabilityDatabase, error)
	// Changes names the database in force and says what may be matched otherwise
	// with it than with the one of that digest.
	Changes(ctx context.Context, from Digest) (VulnerabilityDatabase, Changes, error)
	// Rematch names the database in force and returns, in the order of the
	// analyses, the findings that scanning those images with it would give. It
	// reads nothing from a registry but the database.
	Rematch(context.Context, []Analysis) (VulnerabilityDatabase, []Rematched, error)
}

// Rematched is what matching an image again found.
type Rematched struct {
	Findings []Finding
	// Unreadable says why the analysis could not be used; the image has to be
	// scanned. Empty when it could.
	Unreadable string
}

// Changes is what differs between two vulnerability databases.
type Changes struct {
	// All: everything may differ.
	All bool
	// Keys are the hashes of what differs, eight bytes each. The first says what
	// the others mean; they are sorted.
	Keys []byte
}

const keySize = 8

// Touch reports whether an image with these keys may be matched otherwise: it
// has one that differs, or they are of another form.
func (c Changes) Touch(keys []byte) bool {
	if c.All || len(keys) < keySize || len(c.Keys) < keySize || len(keys)%keySize != 0 || !bytes.Equal(keys[:keySize], c.Keys[:keySize]) {
		return true
	}
	changed := c.Keys[keySize:]
	n := len(changed) / keySize
	at := 0
	for k := keySize; k < len(keys) && at < n; k += keySize {
		want := binary.BigEndian.Uint64(keys[k:])
		at += sort.Search(n-at, func(i int) bool { return binary.BigEndian.Uint64(changed[(at+i)*keySize:]) >= want })
		if at < n && binary.BigEndian.Uint64(changed[at*keySize:]) == want {
			return true
		}
	}
	return false
}

// RematchID names a pass of re-matching: "rmt_" and 20 characters.
type RematchID string

// NewRematchID makes the id of a new pass.
func NewRematchID(now time.Time) RematchID { return RematchID("rmt_" + newID(now)) }

// RematchPass is one pass over all recorded images with one vulnerability
// database. A pass that was interrupted goes on as the same one.
type RematchPass struct {
	ID         RematchID             `json:"id"`
	Database   VulnerabilityDatabase `json:"database"`
	StartedAt  time.Time             `json:"startedAt"`
	FinishedAt *time.Time            `json:"finishedAt,omitempty"`
	// Images that the pass is done with. Of those, Unaffected hold nothing that
	// differs in the database, Scanned had to be read again because nothing was
	// kept of them, and Failed could not be.
	Images     int `json:"images"`
	Unaffected int `json:"unaffected"`
	Scanned    int `json:"scanned"`
	Failed     int `json:"failed"`
	// Changed images have other findings now: Appeared and Gone in all.
	Changed  int `json:"changed"`
	Appeared int `json:"appeared"`
	Gone     int `json:"gone"`
	// Refused counts the environments whose gate would not let in any more what
	// they hold.
	Refused int `json:"refused"`
}

// Matchable is an image that was not matched with the newest database yet.
type Matchable struct {
	// Cursor orders the images of a pass.
	Cursor  string
	Project string
	Image   Image
	// Run whose record is the image's newest.
	Run RunID
	// From is the database that it was matched with.
	From      Digest
	Platforms []PlatformImage
	// Keys of each platform's analysis; empty where there is none.
	Keys [][]byte
	// Environments that hold it now.
	Environments []string
}

// Match is what became of one image in a pass.
type Match struct {
	Matchable
	// Unaffected: nothing that it holds differs, and Findings is not set.
	Unaffected bool
	// Scanned: it was read again, and Analyses are what is kept now.
	Scanned bool
	// Failed says why it could be neither matched nor scanned; it stays as it was.
	Failed string
	// Findings and Analyses of each platform.
	Findings [][]Finding
	Analyses []Analysis
	Verdicts []Verdict
	// Notices to the owners.
	Notices []Notice
}

// Verdict is what the gate of an environment says of an image that it holds
// already. Nothing follows from it by itself.
type Verdict struct {
	Environment string `json:"environment"`
	// Decision with the new findings; Passed is what it was with those before.
	Decision Decision `json:"decision"`
	Passed   bool     `json:"passed"`
	// Appeared are the findings that the gate objects to now and did not before.
	Appeared []Finding `json:"appeared,omitempty"`
}

// Worse reports whether the owners have to know.
func (v Verdict) Worse() bool { return v.Passed && !v.Decision.Passed || len(v.Appeared) > 0 }

// RematchStore keeps what passes find. When a method returns nil, what it wrote
// is committed.
type RematchStore interface {
	// StartRematch returns the pass with that database, and begins it if there is
	// none. Earlier ones that were not finished never will be.
	StartRematch(context.Context, VulnerabilityDatabase) (RematchPass, error)
	// Unmatched lists images whose newest record was not matched with the
	// database, in the order of their cursors after the one given. held says
	// whether those that environments hold now, or the others.
	Unmatched(ctx context.Context, database Digest, held bool, after string, limit int) ([]Matchable, error)
	// Analyses returns what is kept of the platforms, by their manifests' digests.
	Analyses(context.Context, []Digest) (map[Digest]Analysis, error)
	// CurrentFindings returns what the newest match of a record found, by platform.
	CurrentFindings(context.Context, RunID) ([][]Finding, error)
	// RecordMatches writes what became of images, all or nothing: findings that
	// appeared and those that are gone, verdicts and notices. An image that has a
	// newer record than the match is about is left alone; so is one that the pass
	// has recorded already.
	RecordMatches(context.Context, RematchID, []Match) error
	// FinishRematch ends the pass and returns it with its sums.
	FinishRematch(context.Context, RematchID) (RematchPass, error)
}
