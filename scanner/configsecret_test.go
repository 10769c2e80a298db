//go:build goexperiment.jsonv2

package scanner

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// The values are put together here so that no scanner of repositories takes them
// for real ones.
func fake(prefix, alphabet string, n int) string {
	return prefix + strings.Repeat(alphabet, n/len(alphabet)+1)[:n]
}

const (
	alnum = "aB3dE5gH7jK9mN1pQ"
	upper = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
	hexed = "0123456789abcdef"
)

// knownFormats has a value of each format.
var knownFormats = map[string]string{
	"private-key":          "-----BEGIN RSA PRIVATE KEY-----\nMIIEow" + alnum + "\n-----END RSA PRIVATE KEY-----",
	"aws-access-key-id":    fake("AKIA", upper, 16),
	"azure-storage-key":    "DefaultEndpointsProtocol=https;AccountKey=" + fake("", alnum, 86) + "==;EndpointSuffix=x",
	"google-api-key":       fake("AIza", alnum, 35),
	"github-token":         fake("ghp_", alnum, 36),
	"gitlab-token":         fake("glpat-", alnum, 20),
	"npm-token":            fake("npm_", alnum, 36),
	"pypi-token":           fake("pypi-AgEIcHlwaS5vcmc", alnum, 60),
	"docker-token":         fake("dckr_pat_", alnum, 27),
	"slack-token":          fake("xoxb-", hexed, 24),
	"slack-webhook":        "https://hooks.slack.com/services/T" + fake("", upper, 8) + "/B" + fake("", upper, 8) + "/" + fake("", alnum, 24),
	"stripe-key":           fake("sk_live_", alnum, 24),
	"sendgrid-key":         fake("SG.", alnum, 22) + fake(".", alnum, 43),
	"openai-key":           fake("sk-proj-", alnum, 48),
	"huggingface-token":    fake("hf_", alnum, 34),
	"digitalocean-token":   fake("dop_v1_", hexed, 64),
	"vault-token":          fake("hvs.", alnum, 90),
	"age-key":              fake("AGE-SECRET-KEY-1", upper, 58),
	"jwt":                  fake("eyJ", alnum, 20) + fake(".eyJ", alnum, 40) + fake(".", alnum, 43),
	"authorization-header": "Authorization: Bearer " + fake("", alnum, 20),
	"url-password":         "postgres://app:" + fake("", alnum, 12) + "@db:5432/app",
}

func TestSecretFormats(t *testing.T) {
	page, err := os.ReadFile("../docs/reference/hygiene.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range secretFormats {
		value, ok := knownFormats[f.rule]
		if !ok {
			t.Errorf("no value of %s to try", f.rule)
			continue
		}
		if !strings.Contains(string(page), "`"+f.rule+"`") {
			t.Errorf("docs/reference/hygiene.md does not name %s", f.rule)
		}
		c := &v1.ConfigFile{
			Config:  v1.Config{Env: []string{"PATH=/bin", "SETTING=" + value}, Labels: map[string]string{"org.example": "x " + value}},
			History: []v1.History{{CreatedBy: "FROM x"}, {CreatedBy: "RUN curl -H '" + value + "' https://example.org # buildkit"}},
		}
		found := configSecrets(c)
		if got := fmt.Sprint(found); !strings.Contains(got, "{env SETTING "+f.rule+"} {label org.example "+f.rule+"}") ||
			!strings.Contains(got, "{history 2 "+f.rule+"}") || strings.Contains(got, "PATH") || strings.Contains(got, "history 1") {
			t.Errorf("%s: found %s", f.rule, got)
		}
		masked := cleanHistory(c.History[1].CreatedBy)
		raw, err := json.Marshal(found)
		if err != nil {
			t.Fatal(err)
		}
		for _, form := range []string{masked, string(raw)} {
			for _, part := range []string{alnum[:8], upper[:8], hexed[:8]} {
				if strings.Contains(form, part) {
					t.Errorf("%s: %q tells of the value", f.rule, form)
				}
			}
		}
		if !strings.Contains(masked, "***") || !strings.HasPrefix(masked, "RUN curl -H '") || !strings.HasSuffix(masked, "https://example.org") {
			t.Errorf("%s: masked as %q", f.rule, masked)
		}
	}
	if len(knownFormats) != len(secretFormats) {
		t.Errorf("%d values for %d formats", len(knownFormats), len(secretFormats))
	}
}

func TestSecretsByName(t *testing.T) {
	for _, name := range []string{"PASSWORD", "DB_PASSWORD", "PGPASSWORD", "MYSQL_PWD", "dbPassword", "db.passwd", "SECRET", "client-secret", "SECRET_KEY_BASE",
		"GITHUB_TOKEN", "authToken", "APIKEY", "STRIPE_API_KEY", "AWS_SECRET_ACCESS_KEY", "PRIVATE_KEY", "GOOGLE_CREDENTIALS", "REDISCLI_AUTH", "SSH_PASSPHRASE", "SMTP_PASS"} {
		if !telling(name) {
			t.Errorf("%s tells nothing", name)
		}
	}
	for _, name := range []string{"PATH", "PWD", "OLDPWD", "GPG_KEY", "KEY", "HOME", "TOKENIZERS_PARALLELISM", "MAX_TOKENS", "PASSWORD_FILE", "POSTGRES_PASSWORD_FILE", "TOKEN_URL",
		"SECRET_NAME", "PUBLIC_KEY", "SSH_PUBLIC_KEY", "AUTHOR", "AUTH", "TOKEN_TTL", "COMPASS", "KEYBOARD", "PASSENGER_VERSION", "MONKEY"} {
		if telling(name) {
			t.Errorf("%s does not name a secret", name)
		}
	}
	for _, value := range []string{"hunter2", "changeme", "c29tZXRoaW5n", "/+secret/with/slashes==", "two words"} {
		if harmless(value) {
			t.Errorf("%q may be a secret", value)
		}
	}
	for _, value := range []string{"", "true", "0", "$TOKEN", "${TOKEN:-}", "$(cat /run/secrets/x)", "`cat x`", "/run/secrets/token", "<your token>", "{{ token }}", "***", "xxxx", "arn:aws:x"} {
		if !harmless(value) {
			t.Errorf("%q is no secret", value)
		}
	}
}

func TestSecretsInHistory(t *testing.T) {
	for text, want := range map[string]string{
		"RUN |1 TOKEN=hunter22 /bin/sh -c make # buildkit":           "RUN |1 TOKEN=*** /bin/sh -c make",
		"ENV DB_PASSWORD=hunter22 MODE=fast":                         "ENV DB_PASSWORD=*** MODE=fast",
		"/bin/sh -c #(nop)  ENV DB_PASSWORD=\"hunter22 and more\"":   "ENV DB_PASSWORD=\"***\"",
		"RUN tool --db-password=hunter22 --token 'hunter22' --quiet": "RUN tool --db-password=*** --token '***' --quiet",
		"RUN git clone https://me:hunter22@git.example/x":            "RUN git clone https://me:***@git.example/x",
	} {
		c := &v1.ConfigFile{History: []v1.History{{CreatedBy: text}}}
		if got := configSecrets(c); len(got) != 1 || got[0].Where != "history" || got[0].Name != "1" {
			t.Errorf("%s: found %+v", text, got)
		}
		if got := cleanHistory(text); got != want {
			t.Errorf("%s: told as %q, want %q", text, got, want)
		}
	}
	for _, text := range []string{
		"ENV POSTGRES_PASSWORD_FILE=/run/secrets/pg", "ARG TOKEN", "RUN TOKEN=$(cat /run/secrets/t) make", "RUN tool --token $TOKEN", "RUN tool --password --force",
		"RUN curl https://$USER:$PASSWORD@git.example/", "COPY --chown=app:app . /app", "RUN adduser -D --password '' app", "RUN git config user.name=x",
	} {
		if got := configSecrets(&v1.ConfigFile{History: []v1.History{{CreatedBy: text}}}); len(got) != 0 {
			t.Errorf("%s: found %+v", text, got)
		}
	}
}

// A name may be a secret by mistake, or full of what a terminal obeys.
func TestNamesOfSecrets(t *testing.T) {
	c := &v1.ConfigFile{Config: v1.Config{Env: []string{
		knownFormats["github-token"] + "_TOKEN=hunter22", "\x1b[31mPASSWORD\xff=hunter22", strings.Repeat("x", 1000) + "_TOKEN=hunter22",
	}}}
	got := fmt.Sprintf("%q", configSecrets(c))
	if strings.Contains(got, alnum) || strings.Contains(got, `\x1b`) || strings.Contains(got, "hunter") || len(got) > 1000 || strings.Count(got, `"env"`) != 3 {
		t.Errorf("found %s", got)
	}
}

// A configuration of the largest size that is made to be slow to search.
func TestSecretsInAHugeConfiguration(t *testing.T) {
	var hints []string
	for _, f := range secretFormats {
		hints = append(hints, f.hints...)
	}
	c := &v1.ConfigFile{}
	unit := strings.Join(hints, "a") + " A_TOKEN='\"b --c://d:e eyJ.eyJ. "
	for size := 0; size < maxConfigSize/4; size += 1 << 20 {
		c.History = append(c.History, v1.History{CreatedBy: strings.Repeat(unit, (1<<20)/len(unit))})
	}
	begin := time.Now()
	if got := configSecrets(c); len(got) > maxNamed {
		t.Errorf("%d found", len(got))
	}
	createdBy(c.History, len(c.History))
	if took := time.Since(begin); took > time.Minute {
		t.Errorf("it took %s", took)
	}
	t.Log(time.Since(begin))
}
