package pipeline

import (
	"encoding/base64"
	"net/url"
	"sort"
	"strings"
)

// Masker replaces known secrets in text. It knows each secret as it is, in
// base64 at any alignment, and escaped for a URL.
type Masker struct{ replacer *strings.Replacer }

// NewMasker ignores secrets shorter than six bytes: replacing those would
// destroy ordinary words and hide nothing.
func NewMasker(secrets ...string) *Masker {
	forms := map[string]bool{}
	for _, s := range secrets {
		if len(s) < 6 {
			continue
		}
		forms[s] = true
		forms[url.QueryEscape(s)] = true
		forms[url.PathEscape(s)] = true
		for shift := range 3 {
			// The characters that depend on the neighbouring bytes are left out.
			enc := base64.RawStdEncoding.EncodeToString([]byte(strings.Repeat("\x00", shift) + s))
			enc = enc[(shift*8+5)/6:]
			if (len(s)+shift)%3 != 0 {
				enc = enc[:len(enc)-1]
			}
			if len(enc) >= 6 {
				forms[enc] = true
				forms[strings.NewReplacer("+", "-", "/", "_").Replace(enc)] = true
			}
		}
	}
	var list []string
	for f := range forms {
		list = append(list, f)
	}
	sort.Slice(list, func(i, j int) bool { return len(list[i]) > len(list[j]) })
	var pairs []string
	for _, f := range list {
		pairs = append(pairs, f, "***")
	}
	return &Masker{strings.NewReplacer(pairs...)}
}

// Mask returns s without the secrets.
func (m *Masker) Mask(s string) string { return m.replacer.Replace(s) }
