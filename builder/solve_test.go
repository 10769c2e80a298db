package builder

import (
	"encoding/base64"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/client"

	"github.com/dray-project/dray/pipeline"
)

func testSource() pipeline.Source {
	return pipeline.Source{
		CloneURL: "https://git.example/acme/hello-go.git", Ref: "refs/tags/v1.0.0",
		Commit: strings.Repeat("ab", 20), CommitTime: time.Unix(1_700_000_000, 0).UTC(),
		Plan: pipeline.Plan{
			Context: "app", Dockerfile: "build/Dockerfile", Target: "release",
			Args: map[string]string{"GO_VERSION": "1.26"}, Platforms: []pipeline.Platform{"linux/amd64", "linux/arm/v7"},
			Ignore: []string{"*.log"},
		},
		Bases: []pipeline.Material{
			{URI: "docker.io/library/golang:1.26", Digest: someDigest},
			{URI: "docker.io/library/alpine", Digest: someDigest, Pinned: true},
		},
	}
}

// The options decide the image's digest: a change here changes every image.
func TestSolveOptGolden(t *testing.T) {
	b := &Builder{cfg: Config{
		CacheExport: CacheMax,
		Hosts:       []pipeline.RegistryHost{{Host: "cache.example:5000", PlainHTTP: true, Username: "u", Password: "never-in-options"}},
	}}
	p := pipeline.Project{
		Name: "hello-go", Repository: "registry.example/acme/hello-go",
		CacheRepository: "cache.example:5000/hello-go",
	}
	opt := b.solveOpt(p, testSource(), "linux/arm/v7")
	got := describe(t, opt)
	golden(t, "testdata/solve.json", got)
	if strings.Contains(got, "never-in-options") {
		t.Error("a password is in the options")
	}
}

// describe writes options down without what cannot be compared.
func describe(t *testing.T, opt client.SolveOpt) string {
	var policy []string
	for _, r := range opt.SourcePolicy.Rules {
		policy = append(policy, strings.TrimSpace(fmt.Sprintf("%s %s %s %s", r.Action, r.Selector.MatchType, r.Selector.Identifier, r.Updates.GetIdentifier())))
	}
	var exports []any
	for _, e := range opt.Exports {
		exports = append(exports, map[string]any{"type": e.Type, "attrs": e.Attrs})
	}
	return asJSON(t, map[string]any{
		"frontend": opt.Frontend, "attrs": opt.FrontendAttrs, "exports": exports,
		"cacheImports": opt.CacheImports, "cacheExports": opt.CacheExports,
		"policy": policy, "entitlements": opt.AllowedEntitlements,
	})
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	got += "\n"
	if os.Getenv("DRAY_TEST_UPDATE") == "1" {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (DRAY_TEST_UPDATE=1 writes it anew); got\n%s", file, got)
	}
}

func TestSolveOptIgnoresTheRef(t *testing.T) {
	b := &Builder{cfg: Config{CacheExport: CacheMin}}
	p := pipeline.Project{Name: "p", Repository: "registry.example/p"}
	one, two := testSource(), testSource()
	two.Ref = "refs/heads/main"
	if x, y := describe(t, b.solveOpt(p, one, "linux/amd64")), describe(t, b.solveOpt(p, two, "linux/amd64")); x != y {
		t.Error("a branch and a tag of one commit would give two images")
	}
}

func TestCacheOff(t *testing.T) {
	b := &Builder{cfg: Config{CacheExport: CacheOff}}
	opt := b.solveOpt(pipeline.Project{Name: "p", Repository: "registry.example/p"}, testSource(), "linux/amd64")
	if len(opt.CacheExports) != 0 || len(opt.CacheImports) != 1 {
		t.Errorf("exports %v, imports %v", opt.CacheExports, opt.CacheImports)
	}
}

func TestPlatformImage(t *testing.T) {
	desc := func(mediaType, digest string) map[string]string {
		return map[string]string{"containerimage.descriptor": base64.StdEncoding.EncodeToString(
			[]byte(fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":123}`, mediaType, digest)))}
	}
	const manifest = "application/vnd.oci.image.manifest.v1+json"
	got, err := platformImage("linux/amd64", desc(manifest, someDigest))
	if want := (pipeline.PlatformImage{Platform: "linux/amd64", Digest: someDigest, Size: 123, MediaType: manifest}); err != nil || got != want {
		t.Errorf("got %v, %v", got, err)
	}
	for name, resp := range map[string]map[string]string{
		"nothing":    {},
		"not base64": {"containerimage.descriptor": "???"},
		"index":      desc("application/vnd.oci.image.index.v1+json", someDigest),
		"docker":     desc("application/vnd.docker.distribution.manifest.v2+json", someDigest),
		"no digest":  desc(manifest, ""),
	} {
		if got, err := platformImage("linux/amd64", resp); err == nil {
			t.Errorf("%s: accepted as %v", name, got)
		}
	}
}

func TestCheckSource(t *testing.T) {
	if err := checkSource(testSource()); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*pipeline.Source){
		"commit":         func(s *pipeline.Source) { s.Commit = "main" },
		"no platform":    func(s *pipeline.Source) { s.Plan.Platforms = nil },
		"context":        func(s *pipeline.Source) { s.Plan.Context = "../.." },
		"unclean":        func(s *pipeline.Source) { s.Plan.Context = "a/../b" },
		"dockerfile":     func(s *pipeline.Source) { s.Plan.Dockerfile = "/etc/passwd" },
		"frontend":       func(s *pipeline.Source) { s.Plan.Args = map[string]string{"BUILDKIT_SYNTAX": "evil"} },
		"base unpinned":  func(s *pipeline.Source) { s.Bases[0].Digest = "" },
		"empty pathname": func(s *pipeline.Source) { s.Plan.Context = "" },
	} {
		s := testSource()
		change(&s)
		err := checkSource(s)
		if err == nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		wantPermanent(t, err)
	}
}

func TestConfigValidate(t *testing.T) {
	good := func() Config {
		return Config{Addresses: []string{"unix:///run/b.sock", "tcp://b:1234"}, Log: discard()}
	}
	c := good()
	if err := c.validate(); err != nil || c.Timeout != DefaultTimeout || c.CacheExport != CacheMax {
		t.Errorf("%+v, %v", c, err)
	}
	for says, change := range map[string]func(*Config){
		"Addresses: at least one":       func(c *Config) { c.Addresses = nil },
		`Addresses: "/run/b.sock"`:      func(c *Config) { c.Addresses = []string{"/run/b.sock"} },
		`Addresses: "tcp://"`:           func(c *Config) { c.Addresses = []string{"tcp://"} },
		"listed twice":                  func(c *Config) { c.Addresses = []string{"tcp://a:1", "tcp://a:1"} },
		"TLS: a CA":                     func(c *Config) { c.TLS = &TLS{Cert: "x", Key: "y"} },
		"go together":                   func(c *Config) { c.TLS = &TLS{CA: "x", Key: "y"} },
		`Hosts: "https://r.example"`:    func(c *Config) { c.Hosts = []pipeline.RegistryHost{{Host: "https://r.example"}} },
		`Hosts: "r" is listed twice`:    func(c *Config) { c.Hosts = []pipeline.RegistryHost{{Host: "r"}, {Host: "r"}} },
		`GitCredentials: "git.example"`: func(c *Config) { c.GitCredentials = map[string]GitCredential{"git.example": {Password: "x"}} },
		"want an origin": func(c *Config) {
			c.GitCredentials = map[string]GitCredential{"https://git.example/path": {Password: "x"}}
		},
		"password or token is empty": func(c *Config) { c.GitCredentials = map[string]GitCredential{"https://git.example": {}} },
		"line break": func(c *Config) {
			c.GitCredentials = map[string]GitCredential{"https://git.example": {Password: "a\r\nX: y"}}
		},
		"CacheExport":      func(c *Config) { c.CacheExport = "all" },
		"Timeout":          func(c *Config) { c.Timeout = -1 },
		"AllowedFrontends": func(c *Config) { c.AllowedFrontends = []pipeline.Digest{"docker/dockerfile:1"} },
		"Log":              func(c *Config) { c.Log = nil },
	} {
		c := good()
		change(&c)
		if err := c.validate(); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("want an error that says %q, got %v", says, err)
		}
	}
}
