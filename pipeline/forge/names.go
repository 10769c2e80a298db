package forge

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/dray-project/dray/pipeline"
)

// maxRef bounds a ref's length in bytes; file systems stop git well before it.
const maxRef = 1024

// checkRef returns nil for a complete name of a branch or tag that git itself
// would accept (git-check-ref-format(1)), and that no command line can take
// for an option.
func checkRef(ref string) error {
	refuse := func(why string) error {
		return fmt.Errorf("ref %.200q: %s: %w", ref, why, pipeline.ErrInvalid)
	}
	if len(ref) > maxRef {
		return refuse(fmt.Sprintf("longer than %d bytes", maxRef))
	}
	short, ok := strings.CutPrefix(ref, "refs/heads/")
	if !ok {
		short, ok = strings.CutPrefix(ref, "refs/tags/")
	}
	switch {
	case !ok:
		return refuse("want refs/heads/<branch> or refs/tags/<tag>")
	case !utf8.ValidString(ref):
		return refuse("not UTF-8")
	case strings.HasPrefix(short, "-"):
		return refuse("a name may not start with a dash")
	case strings.Contains(ref, ".."), strings.Contains(ref, "@{"):
		return refuse("a ref may not contain .. or @{")
	case strings.HasSuffix(ref, "."):
		return refuse("a ref may not end with a dot")
	}
	for _, r := range ref {
		if r < 0x20 || r == 0x7f || strings.ContainsRune(` ~^:?*[\`, r) {
			return refuse(fmt.Sprintf("a ref may not contain %q", r))
		}
	}
	for part := range strings.SplitSeq(short, "/") {
		if part == "" || strings.HasPrefix(part, ".") || strings.HasSuffix(part, ".lock") {
			return refuse("no part between slashes may be empty, start with a dot or end with .lock")
		}
	}
	return nil
}

// object checks a git object id: 40 hexadecimal digits, or 64 in a SHA-256
// repository. All zeros mean that there is none, and give "".
func object(name, id string) (string, error) {
	if len(id) != 40 && len(id) != 64 || strings.Trim(id, "0123456789abcdef") != "" {
		return "", fmt.Errorf("%s %.80q: want 40 or 64 lower-case hexadecimal digits: %w", name, id, pipeline.ErrInvalid)
	}
	if strings.Trim(id, "0") == "" {
		return "", nil
	}
	return id, nil
}

// fullName reports whether s is "owner/name" as GitHub allows it.
func fullName(s string) bool {
	owner, name, ok := strings.Cut(s, "/")
	if !ok || len(s) > 200 {
		return false
	}
	for _, part := range []string{owner, name} {
		if part == "" || part == "." || part == ".." || strings.HasPrefix(part, "-") {
			return false
		}
		for _, r := range part {
			if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_.", r)) {
				return false
			}
		}
	}
	return true
}

// eventName reports whether s looks like GitHub's name of an event.
func eventName(s string) bool {
	return s != "" && len(s) <= 64 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz_") == ""
}

// token reports whether s is 1 to limit printable ASCII characters, none a space.
func token(s string, limit int) bool {
	if s == "" || len(s) > limit {
		return false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// printable drops what could move a cursor or hide text, and keeps at most
// limit characters.
func printable(s string, limit int) string {
	var b strings.Builder
	n := 0
	for _, r := range s {
		if n == limit {
			break
		}
		if unicode.IsPrint(r) {
			b.WriteRune(r)
			n++
		}
	}
	return b.String()
}
