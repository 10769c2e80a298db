//go:build goexperiment.jsonv2

package scanner

import (
	"cmp"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/dray-project/dray/pipeline"
)

// secretFormat is a kind of secret that is known by its looks. Its first group,
// or else all of it, is the secret.
type secretFormat struct {
	rule string
	// hints, of which one is in every text with such a secret, spare the search.
	hints []string
	form  *regexp.Regexp
}

// secretFormats are tried in this order.
var secretFormats = []secretFormat{
	{"private-key", []string{"PRIVATE KEY"}, regexp.MustCompile(`-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----[^-]*`)},
	{"aws-access-key-id", []string{"AKIA", "ASIA"}, regexp.MustCompile(`\b(?:AKIA|ASIA)[A-Z2-7]{16}\b`)},
	{"azure-storage-key", []string{"AccountKey="}, regexp.MustCompile(`AccountKey=([A-Za-z0-9+/]{86}==)`)},
	{"google-api-key", []string{"AIza"}, regexp.MustCompile(`\bAIza[0-9A-Za-z_-]{35}`)},
	{"github-token", []string{"gh", "github_pat_"}, regexp.MustCompile(`\b(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{50,255})`)},
	{"gitlab-token", []string{"gl"}, regexp.MustCompile(`\bgl(?:pat|dt|rt|cbt|ptt|ft|soat|agent)-[A-Za-z0-9_.-]{20,}`)},
	{"npm-token", []string{"npm_"}, regexp.MustCompile(`\bnpm_[A-Za-z0-9]{36}`)},
	{"pypi-token", []string{"pypi-"}, regexp.MustCompile(`\bpypi-[A-Za-z0-9_-]{50,}`)},
	{"docker-token", []string{"dckr_"}, regexp.MustCompile(`\bdckr_(?:pat|oat)_[A-Za-z0-9_-]{20,}`)},
	{"slack-token", []string{"xox"}, regexp.MustCompile(`\bxox[abeoprs]-[A-Za-z0-9-]{10,}`)},
	{"slack-webhook", []string{"hooks.slack.com"}, regexp.MustCompile(`hooks\.slack\.com/services/[A-Za-z0-9/_-]{20,}`)},
	{"stripe-key", []string{"_live_"}, regexp.MustCompile(`\b[rs]k_live_[A-Za-z0-9]{16,}`)},
	{"sendgrid-key", []string{"SG."}, regexp.MustCompile(`\bSG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{32,}`)},
	{"openai-key", []string{"sk-"}, regexp.MustCompile(`\bsk-(?:(?:proj|svcacct|admin|ant)-[A-Za-z0-9_-]{32,}|[A-Za-z0-9]{48}\b)`)},
	{"huggingface-token", []string{"hf_"}, regexp.MustCompile(`\bhf_[A-Za-z0-9]{34}`)},
	{"digitalocean-token", []string{"_v1_"}, regexp.MustCompile(`\bdo[opr]_v1_[a-f0-9]{64}\b`)},
	{"vault-token", []string{"hvs.", "hvb."}, regexp.MustCompile(`\bhv[sb]\.[A-Za-z0-9_-]{24,}`)},
	{"age-key", []string{"AGE-SECRET-KEY-"}, regexp.MustCompile(`\bAGE-SECRET-KEY-1[A-Z0-9]{58}\b`)},
	{"jwt", []string{"eyJ"}, regexp.MustCompile(`\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}`)},
	{"authorization-header", []string{":"}, regexp.MustCompile(`(?i)\b(?:authorization:\s*(?:basic|bearer|token)|private-token:|job-token:|x-api-key:)\s*([^\s"'$]+)`)},
	{"url-password", []string{"://"}, regexp.MustCompile(`[A-Za-z][A-Za-z0-9+.-]*://[^\s/:@"']*:([^\s/@"'$]+)@`)},
}

// ruleName is that of a secret that is known by what it is called.
const ruleName = "name"

// assignment is a name with a value, as histories have it: of ENV and ARG, in
// front of a command, or as an option.
var (
	assignment = regexp.MustCompile(`([A-Za-z_][A-Za-z0-9_.-]*)=("(?:[^"\\]|\\.)*"|'[^']*'|[^\s"';&|]+)`)
	option     = regexp.MustCompile(`--([A-Za-z][A-Za-z0-9-]*)\s+("(?:[^"\\]|\\.)*"|'[^']*'|[^\s"';&|-][^\s"';&|]*)`)
)

// secret is a place in a text.
type secret struct {
	rule       string
	start, end int
}

// formatSecrets are those that their looks give away.
func formatSecrets(text string) []secret {
	var out []secret
	for _, f := range secretFormats {
		if !slices.ContainsFunc(f.hints, func(h string) bool { return strings.Contains(text, h) }) {
			continue
		}
		for _, m := range f.form.FindAllStringSubmatchIndex(text, -1) {
			start, end := m[0], m[1]
			if len(m) > 2 && m[2] >= 0 {
				start, end = m[2], m[3]
			}
			if !placeholder(text[start:end]) {
				out = append(out, secret{f.rule, start, end})
			}
		}
	}
	return out
}

// assignedSecrets are those in assignments to telling names.
func assignedSecrets(text string) []secret {
	var out []secret
	for _, form := range []*regexp.Regexp{assignment, option} {
		for _, m := range form.FindAllStringSubmatchIndex(text, -1) {
			start, end := m[4], m[5]
			if quoted := text[start] == '"' || text[start] == '\''; quoted {
				start, end = start+1, end-1
			}
			if telling(text[m[2]:m[3]]) && !harmless(text[start:end]) {
				out = append(out, secret{ruleName, start, end})
			}
		}
	}
	return out
}

// configSecrets names the secrets in an image's configuration, in a fixed order.
// A variable or label is told once, by the most particular rule that it meets.
func configSecrets(c *v1.ConfigFile) []pipeline.ConfigSecret {
	out := []pipeline.ConfigSecret{}
	named := func(where, name, value string) {
		rule := ""
		if found := formatSecrets(value); len(found) > 0 {
			rule = found[0].rule
		} else if telling(name) && !harmless(value) {
			rule = ruleName
		}
		if rule != "" {
			// A name may be a secret itself, by mistake.
			out = append(out, pipeline.ConfigSecret{Where: where, Name: printable(maskSecrets(name), 200), Rule: rule})
		}
	}
	for _, env := range c.Config.Env {
		name, value, _ := strings.Cut(env, "=")
		named("env", name, value)
	}
	for name, value := range c.Config.Labels {
		named("label", name, value)
	}
	slices.SortFunc(out, func(a, b pipeline.ConfigSecret) int {
		return cmp.Or(cmp.Compare(a.Where, b.Where), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Rule, b.Rule))
	})
	for n, h := range c.History {
		var rules []string
		for _, s := range slices.Concat(formatSecrets(h.CreatedBy), formatSecrets(h.Comment), assignedSecrets(h.CreatedBy)) {
			rules = append(rules, s.rule)
		}
		slices.Sort(rules)
		for _, rule := range slices.Compact(rules) {
			out = append(out, pipeline.ConfigSecret{Where: "history", Name: strconv.Itoa(n + 1), Rule: rule})
		}
	}
	out = slices.Compact(out)
	return out[:min(len(out), maxNamed)]
}

// maskSecrets replaces the secrets in a text.
func maskSecrets(text string) string {
	found := append(formatSecrets(text), assignedSecrets(text)...)
	if len(found) == 0 {
		return text
	}
	slices.SortFunc(found, func(a, b secret) int { return cmp.Compare(a.start, b.start) })
	var out strings.Builder
	at := 0
	for _, s := range found {
		if s.start > at || at == 0 {
			out.WriteString(text[at:max(at, s.start)])
			out.WriteString("***")
		}
		at = max(at, s.end)
	}
	out.WriteString(text[at:])
	return out.String()
}

// telling reports whether a variable of that name holds a secret, and not the
// place, the length or the public part of one.
func telling(name string) bool {
	words := nameWords(name)
	for i, w := range words {
		switch w {
		case "public", "file", "filename", "path", "dir", "url", "uri", "name", "type", "ttl", "length", "expiry",
			"expires", "timeout", "header", "endpoint", "version", "count", "limit", "enabled", "disabled", "policy":
			return false
		case "pwd":
			if len(words) == 1 {
				words[i] = "" // the working directory
			}
		}
	}
	for i, w := range words {
		switch w {
		case "pwd", "pass", "pword", "passphrase", "secrets", "credential", "credentials":
			return true
		case "key":
			if i == 0 {
				continue
			}
			switch words[i-1] {
			case "api", "access", "secret", "private", "signing", "encryption", "master", "account", "ssh", "deploy", "auth", "storage":
				return true
			}
		case "auth":
			if i > 0 && i == len(words)-1 {
				return true
			}
		}
		for _, end := range []string{"password", "passwd", "secret", "token", "apikey"} {
			if strings.HasSuffix(w, end) {
				return true
			}
		}
	}
	return false
}

// nameWords splits DB_PASSWORD, db.password and dbPassword alike.
func nameWords(name string) []string {
	var b strings.Builder
	lower := false
	for _, r := range name {
		if unicode.IsUpper(r) && lower {
			b.WriteByte(' ')
		}
		lower = unicode.IsLower(r)
		if !unicode.IsLetter(r) && !unicode.IsDigit(r) {
			r = ' '
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return strings.Fields(b.String())
}

var pathValue = regexp.MustCompile(`^(?:/[\w.@+-]+)+/?$|^(?:arn|file|vault):`)

// harmless values stand under telling names without being secrets.
func harmless(value string) bool {
	switch strings.ToLower(value) {
	case "", "true", "false", "yes", "no", "on", "off", "none", "null", "nil", "0", "1":
		return true
	}
	return placeholder(value) || strings.ContainsAny(value, "$`") || pathValue.MatchString(value)
}

// placeholder is what documentation writes, and what was masked before.
func placeholder(value string) bool {
	return strings.Trim(value, "*") == "" || strings.Trim(strings.ToLower(value), "x") == "" ||
		strings.HasPrefix(value, "<") || strings.HasPrefix(value, "{{") || strings.HasPrefix(value, "%")
}
