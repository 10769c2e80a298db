package postgres

import (
	"fmt"
	"net/url"
	"strings"

	"github.com/dray-project/dray/pipeline"
)

// packageURL is a package URL in the parts that matter here.
type packageURL struct {
	base       string // without version, qualifiers and subpath
	version    string // decoded; empty: any
	qualifiers url.Values
}

// parsePackageURL reads one as people write it: the scheme and the type in any
// case, an @ in front of an npm scope as it is.
func parsePackageURL(s string) (p packageURL, err error) {
	s = clean(s)
	rest, ok := strings.CutPrefix(s, "pkg:")
	rest, _, _ = strings.Cut(rest, "#")
	rest, qualifiers, _ := strings.Cut(rest, "?")
	rest = strings.TrimLeft(rest, "/")
	typ, path, slash := strings.Cut(rest, "/")
	if !ok || !slash || typ == "" || path == "" {
		return p, fmt.Errorf("purl %.80q: want pkg:type/namespace/name@version: %w", s, pipeline.ErrInvalid)
	}
	if i := strings.LastIndex(path, "@"); i > strings.LastIndex(path, "/")+1 || i > 0 && !strings.Contains(path[i:], "/") {
		if p.version, err = url.PathUnescape(path[i+1:]); err != nil {
			return p, fmt.Errorf("purl %.80q: the version is not percent-encoded: %w", s, pipeline.ErrInvalid)
		}
		path = path[:i]
	}
	if p.qualifiers, err = url.ParseQuery(qualifiers); err != nil {
		return p, fmt.Errorf("purl %.80q: the qualifiers cannot be read: %w", s, pipeline.ErrInvalid)
	}
	p.base = "pkg:" + strings.ToLower(typ) + "/" + strings.ReplaceAll(path, "@", "%40")
	return p, nil
}

// covers reports whether a recorded package URL is one of those that p means.
func (p packageURL) covers(recorded string) bool {
	have, err := parsePackageURL(recorded)
	if err != nil || have.base != p.base || p.version != "" && have.version != p.version {
		return false
	}
	for name := range p.qualifiers {
		if have.qualifiers.Get(name) != p.qualifiers.Get(name) {
			return false
		}
	}
	return true
}
