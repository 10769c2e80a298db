package pipeline

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

const provenanceBuilder = "https://dray.example/builders#shared"

// provenanceStatement is what is attested of one build.
func provenanceStatement(t *testing.T) string {
	t.Helper()
	predicate, err := provenance(provenanceBuilder, Built{
		Run: "run_06f3n8w2c41r0kd7t9qh", Builder: "buildkitd v0.33.1",
		StartedAt: time.Unix(1_700_000_000, 0), FinishedAt: time.Unix(1_700_000_060, 0),
		Source: Source{
			CloneURL: "https://git.example/acme/app.git", Ref: "refs/tags/v1.0.0", Commit: strings.Repeat("a", 40), CommitTime: time.Unix(1_699_999_000, 0),
			Plan:  Plan{Context: ".", Dockerfile: "Dockerfile", Target: "release", Args: map[string]string{"A": "1 & <2>", "a": "2"}, Platforms: []Platform{"linux/amd64", "linux/arm64"}},
			Bases: []Material{{URI: "pkg:docker/base", Digest: "sha256:" + Digest(strings.Repeat("b", 64))}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return `{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"app","digest":{"sha256":"00"}}],"predicateType":"` +
		PredicateProvenance + `","predicate":` + string(predicate) + `}`
}

// A provenance is believed if it is by the builder, from the source, of the build
// type, with the parameters that this build type has and no others.
func TestProvenanceParameters(t *testing.T) {
	good := provenanceStatement(t)
	if err := checkProvenance(json.RawMessage(good), provenanceBuilder, "https://git.example/acme/app.git"); err != nil {
		t.Fatal(err)
	}
	p, err := ReadProvenance(json.RawMessage(good))
	if err != nil {
		t.Fatal(err)
	}
	if p.Commit != strings.Repeat("a", 40) || p.Ref != "refs/tags/v1.0.0" || p.Run != "run_06f3n8w2c41r0kd7t9qh" || len(p.Platforms) != 2 {
		t.Errorf("read %+v", p)
	}
	for what, edit := range map[string][2]string{
		"another builder":                 {provenanceBuilder, "https://evil.example/builders"},
		"a builder of a weaker mode":      {"#shared", "#shared2"},
		"another build type":              {"build-type.md#v1", "build-type.md#v2"},
		"another source":                  {`"source":{"uri":"git+https://git.example/acme/app.git"`, `"source":{"uri":"git+https://git.example/evil/app.git"`},
		"another predicate type":          {`"predicateType":"https://slsa.dev/provenance/v1"`, `"predicateType":"https://slsa.dev/provenance/v0.2"`},
		"an unknown external parameter":   {`"context":"."`, `"context":".","entrypoint":"/evil"`},
		"one within the source":           {`"ref":"refs/tags/v1.0.0"}`, `"ref":"refs/tags/v1.0.0","submodules":true}`},
		"an unknown internal parameter":   {`"sourceDateEpoch":`, `"network":"host","sourceDateEpoch":`},
		"a parameter in another case":     {`"dockerfile"`, `"Dockerfile"`},
		"a parameter that is missing":     {`"dockerfile":"Dockerfile",`, ``},
		"a parameter that is there twice": {`"context":"."`, `"context":"evil","context":"."`},
		"an empty optional parameter":     {`"target":"release"`, `"target":""`},
		"a parameter of another type":     {`"context":"."`, `"context":["."]`},
		"no external parameters":          {`"externalParameters":{`, `"other":{`},
		"null external parameters":        {`"externalParameters":{`, `"externalParameters":null,"other":{`},
		"no commit":                       {`"gitCommit"`, `"sha1"`},
		"a dependency before the source":  {`"resolvedDependencies":[`, `"resolvedDependencies":[{"uri":"pkg:evil","digest":{"gitCommit":"00"}},`},
		"something after it":              {`"finishedOn"`, "\x00\"finishedOn\""},
	} {
		bad := strings.Replace(good, edit[0], edit[1], 1)
		if bad == good {
			t.Errorf("%s: nothing was edited", what)
			continue
		}
		err := checkProvenance(json.RawMessage(bad), provenanceBuilder, "https://git.example/acme/app.git")
		if err == nil {
			t.Errorf("%s: believed", what)
		} else {
			t.Logf("%s: %v", what, err)
		}
	}
}

// docs/slsa.md names the tests that show each requirement: they exist. The
// builder.id that is the default leads to a page that is there and has its part.
func TestSLSAPage(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "docs", "slsa.md"))
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]bool{}
	err = filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != ".." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "bin" || d.Name() == "testdata") {
			return fs.SkipDir
		}
		if !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		raw, err := os.ReadFile(path)
		for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(t \*testing\.T\)`).FindAllSubmatch(raw, -1) {
			tests[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`(Test\\w+)`").FindAllSubmatch(page, -1)
	if len(named) < 20 {
		t.Errorf("only %d tests are named", len(named))
	}
	for _, m := range named {
		if !tests[string(m[1])] {
			t.Errorf("there is no test %s", m[1])
		}
	}
	if !strings.Contains(string(page), "`"+verifiedLevel+"`") {
		t.Errorf("the page does not say that summaries claim %s", verifiedLevel)
	}

	const site = "https://github.com/dray-project/dray/blob/main/"
	settings, err := os.ReadFile(filepath.Join("..", "docs", "reference", "settings.md"))
	if err != nil {
		t.Fatal(err)
	}
	ids := regexp.MustCompile(regexp.QuoteMeta(site)+`(docs/reference/[\w-]+\.md)#([\w-]+)`).FindAllSubmatch(append(settings, []byte(BuildType)...), -1)
	modes := 0
	for _, m := range ids {
		leads, err := os.ReadFile(filepath.Join("..", filepath.FromSlash(string(m[1]))))
		if err != nil {
			t.Errorf("%s: %v", m[0], err)
			continue
		}
		if !strings.Contains(string(leads), `<a id="`+string(m[2])+`"></a>`) {
			t.Errorf("%s: the page has no such part", m[0])
		}
		if strings.HasSuffix(string(m[1]), "builders.md") {
			modes++
			if !strings.Contains(string(leads), "`"+string(m[0])+"`") {
				t.Errorf("%s: the page does not name the id", m[0])
			}
		}
	}
	if modes == 0 {
		t.Error("the settings' default builder.id was not found")
	}
}
