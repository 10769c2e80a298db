package versions

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	gem "github.com/aquasecurity/go-gem-version"
	npm "github.com/aquasecurity/go-npm-version/pkg"
	pep440 "github.com/aquasecurity/go-pep440-version"
	maven "github.com/masahiro331/go-mvn-version"
)

const (
	maxRange       = 1000 // bytes
	maxComparators = 64
)

// ErrRange: a range cannot be read.
var ErrRange = errors.New("not a version range")

// Range is a set of versions. Which it has depends on the scheme that it is
// read by: 1.0~rc1 comes before 1.0 for Debian, and is no version for npm.
type Range struct {
	text string
	// any of these, of which all must hold; nil when the range is in an
	// ecosystem's own notation.
	any [][]comparator
	// only restricts a vers range to its scheme; empty means every scheme.
	only Scheme
}

type comparator struct{ op, version string }

func (r Range) String() string { return r.text }

// Parse reads a range. Every ecosystem takes comparators (= != < <= > >=, "=" can
// be left out), separated by spaces or commas where all must hold, and by "||"
// where any does: ">=1.0 <1.4.2 || >=2.0 <2.0.7". A vers range of the package URL
// specifications ("vers:deb/>=1.0|<1.4.2") is the same within one ecosystem.
//
// What else is taken is an ecosystem's own notation, and holds versions of that
// ecosystem alone: "^1.2", "~1.2", "1.x" and "1 - 2" for npm, "~=1.4" and "==1.*" for
// Python, "~> 1.2" for gems, "[1.0,2.0)" for Maven.
//
// Versions before a release are ordered like all others: "<1.4.2" has 1.4.2-rc.1,
// as vulnerability databases mean it. The error wraps ErrRange.
func Parse(text string) (Range, error) {
	text = strings.TrimSpace(text)
	if text == "" || len(text) > maxRange {
		return Range{}, fmt.Errorf("version range: want 1 to %d bytes: %w", maxRange, ErrRange)
	}
	if rest, ok := strings.CutPrefix(text, "vers:"); ok {
		return parseVers(text, rest)
	}
	r := Range{text: text}
	any, err := parseComparators(text)
	if err == nil {
		r.any = any
		return r, nil
	}
	if errors.Is(err, errOwn) {
		for _, s := range []Scheme{NPM, PEP440, Gem, Maven} {
			if _, own := ownNotation(s, text); own == nil {
				return r, nil
			}
		}
	}
	return Range{}, fmt.Errorf("version range %.80q: %w: %w", text, err, ErrRange)
}

// errOwn says that what was read may be an ecosystem's own notation.
var errOwn = errors.New(`want comparators such as ">=1.0 <1.4.2", or a notation of npm, Python, gems or Maven`)

func parseComparators(text string) (any [][]comparator, err error) {
	n := 0
	for alternative := range strings.SplitSeq(text, "||") {
		var all []comparator
		op := ""
		for _, word := range strings.FieldsFunc(alternative, func(r rune) bool { return r == ' ' || r == ',' || r == '\t' }) {
			rest := strings.TrimLeft(word, "<>=!~^")
			own := word[:len(word)-len(rest)]
			if own != "" {
				if op != "" {
					return nil, fmt.Errorf("%q follows %q: %w", word, op, errOwn)
				}
				op = own
			}
			if rest == "" {
				continue // the version is the next word
			}
			c, err := newComparator(op, rest)
			if err != nil {
				return nil, err
			}
			all, op = append(all, c), ""
			if n++; n > maxComparators {
				return nil, fmt.Errorf("more than %d comparators", maxComparators)
			}
		}
		switch {
		case op != "":
			return nil, fmt.Errorf("no version after %q: %w", op, errOwn)
		case len(all) == 0:
			return nil, errors.New("an empty alternative")
		}
		any = append(any, all)
	}
	return any, nil
}

func newComparator(op, version string) (comparator, error) {
	switch op {
	case "", "==":
		op = "="
	case "=", "!=", "<", "<=", ">", ">=":
	default:
		return comparator{}, fmt.Errorf("%q: %w", op, errOwn)
	}
	if strings.ContainsAny(version, "*[]()") || version == "-" || version == "x" || version == "X" ||
		strings.Contains(version+".", ".x.") || strings.Contains(version+".", ".X.") {
		return comparator{}, fmt.Errorf("%q: %w", version, errOwn)
	}
	if err := plausible(version); err != nil {
		return comparator{}, fmt.Errorf("version %.60q: %w", version, err)
	}
	return comparator{op, version}, nil
}

// parseVers reads the part after "vers:". Its comparators are sorted by version and
// come in pairs: an upper bound belongs to the lower bound before it.
func parseVers(text, rest string) (Range, error) {
	fail := func(format string, args ...any) (Range, error) {
		return Range{}, fmt.Errorf("version range %.80q: %s: %w", text, fmt.Sprintf(format, args...), ErrRange)
	}
	typ, list, ok := strings.Cut(rest, "/")
	scheme, known := byType[typ]
	if !known {
		scheme = Generic
	}
	if !ok || typ == "" || list == "" {
		return fail("want vers:<type>/<comparators>")
	}
	r := Range{text: text, only: scheme}
	var all, not []comparator
	flush := func() {
		if len(all) > 0 {
			r.any = append(r.any, all)
			all = nil
		}
	}
	parts := strings.Split(list, "|")
	if len(parts) > maxComparators {
		return fail("more than %d comparators", maxComparators)
	}
	if list == "*" {
		r.any = [][]comparator{{}}
		return r, nil
	}
	for _, p := range parts {
		version := strings.TrimLeft(p, "<>=!")
		op := p[:len(p)-len(version)]
		decoded, err := url.PathUnescape(version)
		if err != nil {
			return fail("%q is not percent-encoded", version)
		}
		c, err := newComparator(op, decoded)
		if err != nil {
			return fail("%s", err)
		}
		switch c.op {
		case "!=":
			not = append(not, c)
		case "=":
			r.any = append(r.any, []comparator{c})
		case ">", ">=":
			flush()
			all = []comparator{c}
		default:
			all = append(all, c)
			flush()
		}
	}
	flush()
	if len(r.any) == 0 {
		r.any = [][]comparator{{}}
	}
	for i := range r.any {
		r.any[i] = append(r.any[i], not...)
	}
	return r, nil
}

// Holds reports whether the version is in the range by the scheme's rules. When
// that cannot be said, because the version or the range is none of the scheme's,
// the error wraps ErrIncomparable.
func (r Range) Holds(s Scheme, text string) (holds bool, err error) {
	// The libraries are not ours, and what they are given comes from images.
	defer func() {
		if p := recover(); p != nil {
			holds, err = false, fmt.Errorf("version %.60q in %.80q: %v: %w", text, r.text, p, ErrIncomparable)
		}
	}()
	v, err := parse(s, text)
	if err != nil {
		return false, err
	}
	if r.only != "" && r.only != s {
		return false, nil
	}
	if r.any == nil {
		check, err := ownNotation(s, r.text)
		if err != nil {
			return false, err
		}
		return check(v), nil
	}
	for _, all := range r.any {
		in := true
		for _, c := range all {
			bound, err := parse(s, c.version)
			if err != nil {
				return false, err
			}
			if !c.met(v.compare(bound)) {
				in = false
				break
			}
		}
		if in {
			return true, nil
		}
	}
	return false, nil
}

func (c comparator) met(order int) bool {
	switch c.op {
	case "=":
		return order == 0
	case "!=":
		return order != 0
	case "<":
		return order < 0
	case "<=":
		return order <= 0
	case ">":
		return order > 0
	}
	return order >= 0
}

// ownNotation reads a range as the ecosystem writes it.
func ownNotation(s Scheme, text string) (check func(version) bool, err error) {
	switch s {
	case NPM:
		c, e := npm.NewConstraints(text, npm.WithPreRelease(true))
		check, err = func(v version) bool { return c.Check(v.npm) }, e
	case PEP440:
		c, e := pep440.NewSpecifiers(text, pep440.WithPreRelease(true))
		check, err = func(v version) bool { return c.Check(v.pep440) }, e
	case Gem:
		c, e := gem.NewConstraints(text)
		check, err = func(v version) bool { return c.Check(v.gem) }, e
	case Maven:
		c, e := maven.NewRequirements(text)
		check, err = func(v version) bool { return c.Check(v.maven) }, e
	default:
		err = errOwn
	}
	if err != nil {
		return nil, fmt.Errorf("range %.80q is none of %s: %w", text, s, ErrIncomparable)
	}
	return check, nil
}
