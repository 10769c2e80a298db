package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/dray-project/dray/pipeline"
)

func readFile(t *testing.T, text string) (*projectFile, error) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "project.yaml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return (&app{}).readProjectFile(name)
}

// TestReferencePage reads every example of the reference page, and looks for
// every field in its tables.
func TestReferencePage(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join("..", "..", "docs", "reference", "project.md"))
	if err != nil {
		t.Fatal(err)
	}
	page := string(raw)
	var files []*projectFile
	for _, m := range regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(page, -1) {
		f, err := readFile(t, m[1])
		if err != nil {
			t.Errorf("%v in\n%s", err, m[1])
			continue
		}
		if err := f.compile(t.Context()); err != nil {
			t.Error(err)
		}
		files = append(files, f)
	}
	if len(files) != 2 {
		t.Fatalf("%d examples", len(files))
	}
	small, all := files[0], files[1]
	if e := small.Environments[1]; e.Repository != "prod.example/acme/hello-go" || e.Gate.FailOn != pipeline.SeverityCritical || small.Platforms[0] != "linux/amd64" {
		t.Errorf("%+v", small.ProjectFile)
	}
	// What the page calls all of it uses every field that there is.
	var used map[string]any
	if err := json.Unmarshal(all.json, &used); err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	collect(used, names)
	for _, field := range fields(reflect.TypeFor[pipeline.ProjectFile]()) {
		if !names[field] && field != "with" && field != "use" {
			t.Errorf("the example does not use %s", field)
		}
		if !strings.Contains(page, "`"+field+"`") {
			t.Errorf("the page does not describe %s", field)
		}
	}
}

func collect(v any, names map[string]bool) {
	switch v := v.(type) {
	case map[string]any:
		for name, member := range v {
			names[name] = true
			collect(member, names)
		}
	case []any:
		for _, item := range v {
			collect(item, names)
		}
	}
}

// fields are the JSON names in a type, and in those within it.
func fields(t reflect.Type) (out []string) {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return nil
	}
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		out = append(out, name)
		out = append(out, fields(t.Field(i).Type)...)
	}
	return out
}

// A bomb fails before it goes off.
func TestBombs(t *testing.T) {
	var aliases strings.Builder
	aliases.WriteString("a0: &a0 [x, x, x, x, x, x, x, x, x]\n")
	for i := 1; i < 12; i++ {
		fmt.Fprintf(&aliases, "a%d: &a%d [%s*a%d]\n", i, i, strings.Repeat(fmt.Sprintf("*a%d, ", i-1), 8), i-1)
	}
	for name, text := range map[string]string{
		"aliases": aliases.String(),
		"depth":   "apiVersion: " + strings.Repeat("[", 9000) + strings.Repeat("]", 9000),
		"flow":    "environments: " + strings.Repeat("{a: ", 5000) + strings.Repeat("}", 5000),
		"size":    "name: " + strings.Repeat("x", 300<<10),
		"tag":     "name: !!binary aGVsbG8=",
		"merge":   "<<: {name: x}",
	} {
		start := time.Now()
		_, err := readFile(t, text)
		var u *usageError
		if !errors.As(err, &u) {
			t.Errorf("%s: %v", name, err)
		}
		// A hundred times what it takes, on a machine that is busy.
		if d := time.Since(start); d > 2*time.Second {
			t.Errorf("%s took %s", name, d)
		}
	}
}

func TestScalars(t *testing.T) {
	f := &projectFile{lines: map[string]int{}}
	if err := f.convert([]byte("a: yes\nb: 'no'\nc: 1.10\nd: 0x1F\ne: 2026-12-20\nf: ~\ng: 2026-12-20T17:00\nh: .inf\ni: true\nj: \"é\\u001b\"\nk: 17\n")); err != nil {
		t.Fatal(err)
	}
	want := `{"a":"yes","b":"no","c":1.10,"d":"0x1F","e":"2026-12-20","f":null,"g":"2026-12-20T17:00","h":".inf","i":true,"j":"é\u001b","k":17}`
	if string(f.json) != want {
		t.Errorf("got  %s\nwant %s", f.json, want)
	}
}
