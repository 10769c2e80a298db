package builder

import (
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/dray-project/dray/pipeline"
)

func TestParsePlanFile(t *testing.T) {
	const head = "apiVersion: dray/v1\n"
	for name, c := range map[string]struct {
		text string
		want buildFile
	}{
		"smallest":    {head, buildFile{Context: "."}},
		"json":        {`{"apiVersion": "dray/v1", "build": {"context": "a/./b/"}}`, buildFile{Context: "a/b"}},
		"as written":  {head + "build: {args: {A: 1.10, B: yes, C: 0x1F, D: '', E: 2001-01-01}}", buildFile{Context: ".", Args: map[string]string{"A": "1.10", "B": "yes", "C": "0x1F", "D": "", "E": "2001-01-01"}}},
		"dots inside": {head + "build: {context: a..b/...}", buildFile{Context: "a..b/..."}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parsePlanFile([]byte(c.text))
			if err != nil || !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %+v, %v; want %+v", got, err, c.want)
			}
		})
	}
}

func TestParsePlanFileRefusals(t *testing.T) {
	const head = "apiVersion: dray/v1\nbuild:\n"
	for name, c := range map[string]struct {
		text string
		says string
	}{
		"empty":            {"", "is empty"},
		"comment only":     {"# nothing\n", "is empty"},
		"null":             {"~", ".dray.yaml:1: the file: want a mapping"},
		"no version":       {"build: {}\n", "apiVersion is missing"},
		"other version":    {"apiVersion: dray/v2\n", `.dray.yaml:1: apiVersion "dray/v2" is not known`},
		"unknown at top":   {"apiVersion: dray/v1\nimage: x\n", `.dray.yaml:2: unknown field "image"`},
		"unknown":          {head + "  context: .\n  dockerFile: x\n", `.dray.yaml:4: unknown field "dockerFile" in build; known are context, dockerfile`},
		"twice":            {head + "  target: a\n  target: b\n", ".dray.yaml:4"},
		"two documents":    {"apiVersion: dray/v1\n---\na: b\n", "second document"},
		"not yaml":         {"apiVersion: [\n", "line"},
		"tab":              {"apiVersion: dray/v1\nbuild:\n\tcontext: x\n", "line 3"},
		"list":             {"- a\n", "want a mapping"},
		"build text":       {"apiVersion: dray/v1\nbuild: x\n", ".dray.yaml:2: build: want a mapping"},
		"null context":     {head + "  context:\n", ".dray.yaml:3: build.context: want a single value"},
		"absolute":         {head + "  context: /etc\n", ".dray.yaml:3: build.context: \"/etc\" is absolute"},
		"escape":           {head + "  context: ../..\n", "leads out of the repository"},
		"hidden escape":    {head + "  context: a/../../b\n", "leads out of the repository"},
		"dockerfile out":   {head + "  dockerfile: ../Dockerfile\n", ".dray.yaml:3: build.dockerfile: "},
		"dockerfile dir":   {head + "  dockerfile: .\n", "want the path of a file"},
		"git fragment":     {head + "  context: 'a:b'\n", "has a colon"},
		"backslash":        {head + "  context: 'a\\..\\b'\n", "backslash"},
		"nul":              {head + "  context: \"a\\0b\"\n", "NUL"},
		"target":           {head + "  target: --x\n", "not the name of a stage"},
		"arg name":         {head + "  args: {a-b: c}\n", "not the name of a build argument"},
		"arg list":         {head + "  args: [a]\n", "build.args: want a mapping"},
		"arg value":        {head + "  args:\n    A: [1]\n", ".dray.yaml:4: build.args.A: want a single value"},
		"frontend":         {head + "  args: {BUILDKIT_SYNTAX: evil/frontend}\n", "steers BuildKit"},
		"frontend, lower":  {head + "  args: {buildkit_syntax: evil/frontend}\n", "steers BuildKit"},
		"epoch":            {head + "  args: {SOURCE_DATE_EPOCH: 0}\n", "always the commit's time"},
		"platform":         {head + "  platforms: [amd64]\n", "want os/architecture"},
		"platform twice":   {head + "  platforms: [linux/amd64, linux/amd64]\n", "listed twice"},
		"no platform":      {head + "  platforms: []\n", "want a list"},
		"alias":            {"x: &a y\n", "unknown field"},
		"alias as a value": {"apiVersion: &v dray/v1\nbuild: {target: *v}\n", "anchors and aliases"},
		"binary":           {head + "  target: !!binary aGk=\n", "plain text"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parsePlanFile([]byte(c.text))
			wantPermanent(t, err, c.says)
		})
	}
}

func TestPlanFileBombs(t *testing.T) {
	var aliases strings.Builder
	aliases.WriteString("apiVersion: dray/v1\na0: &a0 [x,x,x,x,x,x,x,x,x]\n")
	for i := 1; i < 40; i++ {
		aliases.WriteString("a" + string(rune('0'+i)) + ": &b" + string(rune('0'+i)) + " [*a0,*a0,*a0,*a0,*a0,*a0,*a0,*a0,*a0]\n")
	}
	for name, text := range map[string]string{
		"aliases":      "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: [*f,*f,*f,*f,*f,*f,*f,*f,*f]\n",
		"more aliases": aliases.String(),
		"deep":         strings.Repeat("[", maxPlanFile-1),
		"deeper":       strings.Repeat("{a: ", maxPlanFile/4-1),
		"deep block":   strings.Repeat("- ", maxPlanFile/2-1),
		"itself":       "apiVersion: dray/v1\nbuild: &b {args: *b}\n",
		"too long":     strings.Repeat("# comment\n", maxPlanFile/10+1),
		"many keys":    "apiVersion: dray/v1\nbuild:\n  args:\n" + strings.Repeat("    A: b\n", 5000),
	} {
		t.Run(name, func(t *testing.T) {
			// What a bomb costs is memory and time; counting allocations bounds
			// both, whatever else the machine is doing.
			var err error
			allocs := testing.AllocsPerRun(1, func() { _, err = parsePlanFile([]byte(text)) })
			wantPermanent(t, err)
			if limit := float64(8*len(text) + 10_000); allocs > limit {
				t.Errorf("%.0f allocations for %d bytes", allocs, len(text))
			}
		})
	}
}

func BenchmarkAliasBomb(b *testing.B) {
	bomb := []byte("a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: [*c,*c,*c,*c,*c,*c,*c,*c,*c]\n")
	for b.Loop() {
		if _, err := parsePlanFile(bomb); err == nil {
			b.Fatal("accepted")
		}
	}
}

func FuzzParsePlanFile(f *testing.F) {
	f.Add([]byte("apiVersion: dray/v1\nbuild: {context: a, args: {A: b}, platforms: [linux/amd64]}"))
	f.Add([]byte("apiVersion: &a dray/v1\nbuild: *a"))
	f.Add([]byte("--- !!map\n? [a]\n: b"))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := parsePlanFile(data)
		if err != nil {
			if !pipeline.IsPermanent(err) {
				t.Errorf("not permanent: %v", err)
			}
			return
		}
		if clean, err := cleanPath(got.Context); err != nil || clean != got.Context {
			t.Errorf("context %q came through", got.Context)
		}
	})
}

// The examples of the reference are read by the code that they document.
func TestReferenceExamples(t *testing.T) {
	text, err := os.ReadFile("../docs/reference/dray-yaml.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllSubmatch(text, -1)
	if len(blocks) < 2 {
		t.Fatalf("%d examples", len(blocks))
	}
	got, err := parsePlanFile(blocks[0][1])
	want := buildFile{
		Context: "services/web", Dockerfile: "build/web.Dockerfile", Target: "release",
		Args:      map[string]string{"GO_VERSION": "1.26", "FEATURES": "fast,small"},
		Platforms: []pipeline.Platform{"linux/amd64", "linux/arm64"},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, b := range blocks[1:] {
		if _, err := parsePlanFile(b[1]); err != nil {
			t.Errorf("%s\n%v", b[1], err)
		}
	}
	if _, err := parsePlanFile([]byte(planExample("path/to"))); err != nil {
		t.Errorf("what the errors propose is refused: %v", err)
	}
}

func TestNarrow(t *testing.T) {
	project := []pipeline.Platform{"linux/amd64", "linux/arm64", "linux/s390x"}
	got, err := narrow(project, []pipeline.Platform{"linux/s390x", "linux/amd64"})
	if want := []pipeline.Platform{"linux/amd64", "linux/s390x"}; err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v", got, err)
	}
	if got, err := narrow(project, nil); err != nil || !reflect.DeepEqual(got, project) {
		t.Errorf("got %v, %v", got, err)
	}
	_, err = narrow(project, []pipeline.Platform{"linux/amd64", "windows/amd64"})
	wantPermanent(t, err, "windows/amd64 is not built", "linux/amd64, linux/arm64, linux/s390x")
}
