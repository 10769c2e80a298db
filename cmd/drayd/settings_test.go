package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const goodSettings = `
database:
  url: postgres://dray@localhost/dray
signer:
  key_file: /etc/dray/cosign.key
ledger:
  key_file: /etc/dray/log.key
  seal_file: /etc/dray/log.seal
scanner:
  max_age: 24h
registries:
  - host: registry.example:5000
    username: robot
    password: correct horse battery
projects:
  - name: hello
    source: acme/hello
    clone_url: https://git.example/acme/hello.git
    webhook_secret: abc123
    repository: registry.example:5000/acme/hello
    platforms: [linux/amd64, linux/arm64]
    gate: {fail_on: high}
    environments:
      - name: prod
        repository: prod.example/acme/hello
`

func load(t *testing.T, text string, env map[string]string, flags map[string]string) (*Settings, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "drayd.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return LoadSettings(path, func(k string) string { return env[k] }, flags)
}

func TestSettingsPrecedence(t *testing.T) {
	s, err := load(t, goodSettings, map[string]string{"DRAY_LISTEN": "127.0.0.1:1", "DRAY_SCANNER_MAX_AGE": "48h", "DRAY_SIGNER_LAYOUTS": "bundle"},
		map[string]string{"listen": "127.0.0.1:2"})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	if s.Listen != "127.0.0.1:2" || s.Scanner.MaxAge != 48*time.Hour || !slices.Equal(s.Signer.Layouts, []string{"bundle"}) || s.Worker.MaxAttempts != 5 {
		t.Errorf("flag, environment, file and default do not win in this order: %+v", s)
	}
	projects, err := s.DomainProjects()
	if err != nil || len(projects) != 1 {
		t.Fatal(projects, err)
	}
	p := projects[0]
	if p.Forge != "github" || len(p.Platforms) != 2 || p.Gate.FailOn.String() != "high" || p.Environments[0].Gate.FailOn.String() != "critical" {
		t.Errorf("project is %+v", p)
	}
	if !slices.Contains(s.Secrets(), "correct horse battery") {
		t.Error("a password is not among the secrets")
	}
}

func TestSettingsThatAreWrong(t *testing.T) {
	for name, tt := range map[string]struct {
		change [2]string // replace this by that
		want   string
	}{
		"a name that nobody knows":        {[2]string{"max_age", "maxage"}, "maxage"},
		"a project without a secret":      {[2]string{"webhook_secret: abc123", "latest: true"}, "projects[hello].webhook_secret_file is required"},
		"a project with an empty secret":  {[2]string{"abc123", `""`}, "projects[hello].webhook_secret_file is required"},
		"a threshold that does not exist": {[2]string{"fail_on: high", "fail_on: severe"}, `projects[hello].gate.fail_on: severity "severe"`},
		"a repository with a tag's digest": {[2]string{"repository: registry.example:5000/acme/hello", "repository: hello@sha256:00"},
			"projects[hello].repository"},
		"a platform that is no platform": {[2]string{"linux/arm64", "arm64"}, `platform "arm64"`},
		"a registry with a scheme":       {[2]string{"host: registry", "host: https://registry"}, "registries[0].host"},
		"no database":                    {[2]string{"url: postgres://dray@localhost/dray", "max_connections: 3"}, "DRAY_DATABASE_URL"},
		"a file that is not there":       {[2]string{"webhook_secret: abc123", "webhook_secret_file: /nowhere/secret"}, "projects[hello].webhook_secret_file: open /nowhere/secret"},
		"a duration without a unit":      {[2]string{"max_age: 24h", "max_age: soon"}, "max_age"},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(goodSettings, tt.change[0], tt.change[1], 1)
			if text == goodSettings {
				t.Fatal("the change changes nothing")
			}
			s, err := load(t, text, nil, nil)
			if err == nil {
				err = s.Validate()
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error that says %q", err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), "correct horse") {
				t.Errorf("the error gives a password away: %v", err)
			}
		})
	}
}

// TestAliasBomb: a settings file cannot be used to fill the memory.
func TestAliasBomb(t *testing.T) {
	var b strings.Builder
	b.WriteString("a0: &a0 [x,x,x,x,x,x,x,x,x]\n")
	for i := range 12 {
		ref := "*a" + string(rune('0'+i%10))
		b.WriteString("a" + string(rune('0'+(i+1)%10)) + ": &a" + string(rune('0'+(i+1)%10)) + " [" + strings.Repeat(ref+",", 8) + ref + "]\n")
	}
	if _, err := load(t, b.String(), nil, nil); err == nil {
		t.Error("an alias bomb was read as settings")
	}
}

func TestReferenceIsCurrent(t *testing.T) {
	var b strings.Builder
	if err := WriteReference(&b); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../../docs/reference/settings.md")
	if err != nil {
		t.Fatal(err)
	}
	if string(page) != b.String() {
		t.Error(`docs/reference/settings.md is stale: run "make docs"`)
	}
	for _, want := range []string{"`DRAY_SCANNER_MAX_AGE`", "`environments[].gate.fail_on`", "`webhook_secret_file`"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the page does not name %s", want)
		}
	}
}
