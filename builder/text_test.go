package builder

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestCleanLine(t *testing.T) {
	for in, want := range map[string]string{
		"plain":                              "plain",
		"windows\r\n":                        "windows",
		" 10%\r 50%\r100% done":              "100% done",
		"progress\r":                         "progress",
		"\x1b[1;31mred\x1b[0m":               "red",
		"\x1b]0;title\x07text":               "text",
		"\x1b]8;;http://x\x1b\\link\x1b]8;;": "link8;;",
		"\x1b]no end":                        "no end",
		"\x1b(Bset":                          "set",
		"\x1b=\x1b>keys":                     "keys",
		"\x1b":                               "",
		"\x1b[":                              "",
		"\x1b[31\u00e9":                      "\u00e9",
		"\u009b31mone byte":                  "one byte",
		"a\tb":                               "a       b",
		"12345678\tb":                        "12345678        b",
		"bell\x07 back\x08space\x00":         "bell backspace",
		"bad \xff\xfe utf":                   "bad \ufffd utf",
		"user\u202egnp.exe":                  "usergnp.exe",
		"\u2066iso\u2069 \u200fmark":         "iso mark",
		"line\u2028sep":                      "linesep",
		"日本語 and ünïcödé 🚀":                  "日本語 and ünïcödé 🚀",
	} {
		if got := cleanLine(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestCleanLineLength(t *testing.T) {
	got := cleanLine(strings.Repeat("é", maxLine))
	if len(got) > maxLine || !strings.HasSuffix(got, cutMark) || !utf8.ValidString(got) {
		t.Errorf("%d bytes, ends with %q", len(got), got[len(got)-20:])
	}
}

func FuzzCleanLine(f *testing.F) {
	for _, s := range []string{"\x1b[31mred", "\x1b]8;;\x1b\\", "a\rb\tc", "\xff\x1b\xff", "\u009b\u009b31"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := cleanLine(s)
		if len(got) > maxLine || !utf8.ValidString(got) || strings.ContainsFunc(got, unicode.IsControl) {
			t.Errorf("%q gives %q", s, got)
		}
		if again := cleanLine(got); again != got {
			t.Errorf("%q gives %q and then %q", s, got, again)
		}
	})
}

func TestTidyMessage(t *testing.T) {
	if got := tidyMessage(" one\n\x1b[31mtwo\n"); got != "one\ntwo" {
		t.Errorf("got %q", got)
	}
	if got := tidyMessage(strings.Repeat("x\n", 10000)); len(got) > maxMessage {
		t.Errorf("%d bytes", len(got))
	}
}
