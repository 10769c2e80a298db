package pipeline

import (
	"errors"
	"fmt"
)

// Sentinels. Wrap them with what was attempted and on what; test with errors.Is.
var (
	// ErrNotFound: the thing does not exist, or not for this project.
	ErrNotFound = errors.New("not found")
	// ErrInvalid: the input can never be accepted as it is.
	ErrInvalid = errors.New("invalid")
	// ErrConflict: the request contradicts what is already there.
	ErrConflict = errors.New("conflict")
	// ErrRefused: a gate said no. The decision says why.
	ErrRefused = errors.New("refused by policy")
	// ErrUnverified: a signature or attestation is missing or does not verify.
	ErrUnverified = errors.New("not verified")
	// ErrStale: another attempt has taken over; this one must stop writing.
	ErrStale = errors.New("superseded by another attempt")
	// ErrAmbiguous: more than one thing answers to that name.
	ErrAmbiguous = errors.New("ambiguous")
)

// TagConflict says that a tag which never moves names another image today.
type TagConflict struct {
	Repository string
	Tag        string
	Holds      Digest // what the tag names today
	Wanted     Digest // what it was asked to name
}

func (e *TagConflict) Error() string {
	return fmt.Sprintf("tag %s:%s names %s today and never moves; refused to point it at %s "+
		"(release under a new version, or delete the tag in the registry if it was never shipped)",
		e.Repository, e.Tag, e.Holds, e.Wanted)
}

func (e *TagConflict) Unwrap() error { return ErrConflict }

type permanentError struct{ err error }

func (e *permanentError) Error() string { return e.err.Error() }
func (e *permanentError) Unwrap() error { return e.err }

// Permanent marks an error that trying again cannot mend: a Dockerfile that
// does not parse, a tag conflict, a refusal. Every other error is retried.
func Permanent(err error) error {
	if err == nil || IsPermanent(err) {
		return err
	}
	return &permanentError{err}
}

// IsPermanent reports whether err, or one that it wraps, was marked Permanent.
func IsPermanent(err error) bool {
	var p *permanentError
	return errors.As(err, &p)
}
