package builder

import (
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/dray-project/dray/pipeline"
)

// Resolve checks the Dockerfile that the plan names, with what buildkitd said of
// its base image, and fails for nothing that it finds.
func TestResolveLint(t *testing.T) {
	s := newStack(t)
	base := s.registry + "/base:1"
	pushBase(t, base, nil, func(c *v1.Config) { c.Env = append(c.Env, "FROM_BASE=/x") })
	src := s.mustResolve(s.push(map[string]string{
		".dray.yaml":        "apiVersion: dray/v1\nbuild: {dockerfile: sub/Dockerfile, context: ., target: app, args: {API_TOKEN: hunter2hunter2}}\n",
		"sub/Dockerfile":    "FROM " + base + " AS App\nARG API_TOKEN\nCOPY ignored $FROM_BASE $MISSING /y/\nCMD run\nFROM scratch AS never\nMAINTAINER me\n",
		".dockerignore":     "ignored\n",
		"other.Dockerfile":  "not one",
		"ignored/something": "x",
	}))
	for _, want := range []pipeline.LintFinding{
		{Rule: "StageNameCasing", Line: 1}, {Rule: "DL3057", Line: 1}, {Rule: "SecretsUsedInArgOrEnv", Line: 2},
		{Rule: "CopyIgnoredFile", Line: 3}, {Rule: "UndefinedVar", Line: 3}, {Rule: "JSONArgsRecommended", Line: 4}, {Rule: "MaintainerDeprecated", Line: 6},
	} {
		found := 0
		for _, f := range src.Lint {
			if f.Rule == want.Rule {
				found++
				if f.Line != want.Line || f.Detail == "" || f.Remedy == "" || f.URL == "" {
					t.Errorf("got %+v, want %+v", f, want)
				}
			}
		}
		if found != 1 {
			t.Errorf("%s was found %d times in %s", want.Rule, found, asJSON(t, src.Lint))
		}
	}
	if text := asJSON(t, src.Lint); strings.Contains(text, "hunter2") || strings.Contains(text, "FROM_BASE") {
		t.Errorf("found %s", text)
	}

	// What cannot be checked is built all the same.
	src, out, err := s.resolve(s.push(map[string]string{
		"Dockerfile": "FROM scratch\nARG A=aaaa\n" + strings.Repeat("ENV A=$A$A\n", 30),
	}))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.text(), "the checks of Dockerfile could not be finished: Dockerfile:") || len(src.Lint) != 1 || src.Lint[0].Rule != ruleNoHealthcheck {
		t.Errorf("found %s, output %s", asJSON(t, src.Lint), out.text())
	}
}
