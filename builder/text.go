package builder

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	maxLine    = 16 << 10 // bytes of a line
	maxMessage = 4 << 10  // bytes of an error's text
	cutMark    = " [cut]"
)

// cleanLine makes one line of a build's output fit to be stored and shown:
// what a carriage return overwrote is gone, as on a terminal; escape sequences,
// control characters and the marks that reorder text are removed; tabs become
// spaces; invalid UTF-8 is replaced; it is at most maxLine bytes long.
func cleanLine(s string) string {
	s = strings.TrimRight(s, "\r\n")
	if i := strings.LastIndexByte(s, '\r'); i >= 0 {
		s = s[i+1:]
	}
	s = strings.ToValidUTF8(s, string(utf8.RuneError))
	if !strings.ContainsFunc(s, func(r rune) bool { return r == '\t' || hidden(r) }) {
		return cutText(s, maxLine)
	}
	var b strings.Builder
	column := 0
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == 0x1b:
			i += escapeLength(s[i:])
			continue
		case r == 0x9b: // one-character form of ESC [
			i += n + csiLength(s[i+n:])
			continue
		case r == '\t':
			for ok := true; ok; ok = column%8 != 0 {
				b.WriteByte(' ')
				column++
			}
		case !hidden(r):
			b.WriteRune(r)
			column++
		}
		i += n
	}
	return cutText(b.String(), maxLine)
}

// hidden reports whether a character can change how others are shown.
func hidden(r rune) bool {
	switch {
	case unicode.IsControl(r), r == 0x2028, r == 0x2029:
		return true
	case r >= 0x202a && r <= 0x202e, r >= 0x2066 && r <= 0x2069, r == 0x200e, r == 0x200f, r == 0x061c:
		return true
	}
	return false
}

// escapeLength is the length of the escape sequence that s starts with.
func escapeLength(s string) int {
	if len(s) < 2 {
		return len(s)
	}
	switch c := s[1]; {
	case c == '[':
		return 2 + csiLength(s[2:])
	case c == ']' || c == 'P' || c == 'X' || c == '^' || c == '_':
		// A string that ends with BEL or ESC \. One without an end takes no
		// more than its introducer, or it could swallow the rest of the line.
		for i := 2; i < len(s); i++ {
			if s[i] == 0x07 {
				return i + 1
			}
			if s[i] == 0x1b {
				if i+1 < len(s) && s[i+1] == '\\' {
					return i + 2
				}
				break
			}
		}
		return 2
	case c >= 0x20 && c <= 0x2f: // intermediate bytes, then a final one
		i := 1
		for i < len(s) && s[i] >= 0x20 && s[i] <= 0x2f {
			i++
		}
		if i < len(s) && s[i] < utf8.RuneSelf {
			i++
		}
		return i
	case c >= 0x30 && c <= 0x7e:
		return 2
	}
	return 1
}

// csiLength is the length of a control sequence's parameters and final byte.
func csiLength(s string) int {
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 0x40 && c <= 0x7e:
			return i + 1
		case c < 0x20 || c > 0x3f:
			return i
		}
	}
	return len(s)
}

// cutText shortens s to at most limit bytes, between characters.
func cutText(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	end := limit - len(cutMark)
	for end > 0 && !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + cutMark
}

// tidyMessage cleans the text of an error line by line and bounds it.
func tidyMessage(s string) string {
	if s == "" {
		return ""
	}
	var out []string
	for line := range strings.SplitSeq(strings.TrimSpace(s), "\n") {
		out = append(out, cleanLine(line))
	}
	return cutText(strings.Join(out, "\n"), maxMessage)
}
