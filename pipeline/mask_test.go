package pipeline

import (
	"encoding/base64"
	"net/url"
	"strings"
	"testing"
)

func TestMasker(t *testing.T) {
	const secret = "hunter2/+correct horse"
	m := NewMasker(secret, "ab")
	for name, text := range map[string]string{
		"plain": "password is " + secret + "!",
		"query": "https://x/?t=" + url.QueryEscape(secret),
		"path":  "https://x/" + url.PathEscape(secret),
	} {
		if got := m.Mask(text); strings.Contains(got, "hunter2") || !strings.Contains(got, "***") {
			t.Errorf("%s: %q", name, got)
		}
	}
	for _, before := range []string{"", "u", "us", "usr", "user:"} {
		for _, enc := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding} {
			text := enc.EncodeToString([]byte(before + secret + "@host"))
			if got := m.Mask("Authorization: Basic " + text); !strings.Contains(got, "***") {
				t.Errorf("base64 after %q: %q is not masked", before, got)
			}
		}
	}
	if got := m.Mask("absent"); got != "absent" {
		t.Errorf("a secret too short to hide changed %q", got)
	}
}
