package verify

import (
	"fmt"
	"strings"
	"unicode"

	"github.com/dray-project/dray/pipeline"
)

// note is one candidate that did not verify, and why.
type note struct {
	*rejection
	where string
}

func (n note) why() string { return tame(n.reason) }

func (f *finding) note(where string, r *rejection) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.notes = append(f.notes, note{r, where})
}

func (f *finding) place(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.places = append(f.places, fmt.Sprintf(format, args...))
}

// maxNotes is how many candidates an error describes one by one.
const maxNotes = 5

// unverified says which signature was looked for, where, and what was there
// instead.
func (f *finding) unverified(trusted keyring) error {
	var keys []string
	for _, k := range trusted {
		keys = append(keys, k.id)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "no signature of %s by a trusted key (%s); looked in %s",
		f.verified.Image, strings.Join(keys, ", "), strings.Join(f.places, ", "))
	if found := f.keyIDs(); len(found) > 0 {
		if len(found) > maxNotes {
			found = append(found[:maxNotes:maxNotes], "and others")
		}
		fmt.Fprintf(&b, "; found signatures by the untrusted key %s", strings.Join(found, ", "))
	}
	for i, n := range f.notes {
		if i == maxNotes {
			fmt.Fprintf(&b, "; and %d more", len(f.notes)-i)
			break
		}
		fmt.Fprintf(&b, "; %s: %s", n.where, n.why())
	}
	return fmt.Errorf("%s: %w", b.String(), pipeline.ErrUnverified)
}

// tame makes text that a registry served fit for a log: one short line.
func tame(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
	if len(s) > 300 {
		s = strings.ToValidUTF8(s[:300], "") + "…"
	}
	return s
}
