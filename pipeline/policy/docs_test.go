package policy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"cel.dev/cel-go/common/types"
	"go.yaml.in/yaml/v3"

	"github.com/dray-project/dray/pipeline"
)

func page(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("../../docs/reference/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Every example of the page can be used as it is.
func TestExamplesOfThePage(t *testing.T) {
	p := newPolicy(t)
	blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(page(t), -1)
	if len(blocks) < 15 {
		t.Fatalf("only %d examples were found", len(blocks))
	}
	used := map[string]bool{}
	for _, b := range blocks {
		var v map[string]any
		if err := yaml.Unmarshal([]byte(b[1]), &v); err != nil {
			t.Errorf("%v:\n%s", err, b[1])
			continue
		}
		raw, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		var env pipeline.Environment
		dec := json.NewDecoder(bytes.NewReader(raw))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&env); err != nil {
			t.Errorf("%v:\n%s", err, b[1])
			continue
		}
		g := env.EntryGate(pipeline.ActionPromote)
		if g.Soak > 0 && len(g.After) == 0 {
			t.Errorf("soak without after:\n%s", b[1])
		}
		if err := p.Check(g); err != nil {
			t.Errorf("%v:\n%s", err, b[1])
		}
		// None breaks down on ordinary facts.
		for _, r := range p.Judge(g, good()).Rules {
			if strings.Contains(r.Reason, "cannot be evaluated") {
				t.Errorf("%s: %s", r.Rule, r.Reason)
			}
		}
		for _, r := range env.Rules {
			used[r.Use] = true
		}
	}
	for name := range p.ready {
		if !used[name] {
			t.Errorf("there is no example of %s", name)
		}
		if !strings.Contains(page(t), "| [`"+name+"`](#") {
			t.Errorf("the table of ready-made rules does not have %s", name)
		}
	}
}

// The page has every argument of every ready-made rule: what it does not have,
// the rule refuses, and the other way round.
func TestArgumentsOfThePage(t *testing.T) {
	p := newPolicy(t)
	for _, row := range regexp.MustCompile("(?m)^\\| \\[`([a-z-]+)`\\]\\(#[a-z-]+\\) \\|[^|]*\\|([^|]*)\\|$").FindAllStringSubmatch(page(t), -1) {
		use, documented := row[1], regexp.MustCompile("`([a-zA-Z]+)`").FindAllStringSubmatch(row[2], -1)
		names := map[string]bool{}
		for _, d := range documented {
			names[d[1]] = true
		}
		for _, arg := range []string{"failOn", "ignoreUnfixed", "severity", "max", "allow", "bytes", "compressed", "percent", "rules", "except", "deny", "ignorePackages", "keys", "count", "builder", "source", "branches", "tags"} {
			err := p.Check(pipeline.Gate{Rules: []pipeline.Rule{{Use: use, With: json.RawMessage(fmt.Sprintf(`{%q:null}`, arg))}}})
			unknown := err != nil && strings.Contains(err.Error(), "unknown field")
			if unknown == names[arg] {
				t.Errorf("%s: argument %s is on the page: %t, and in the code: %t (%v)", use, arg, names[arg], !unknown, err)
			}
		}
		delete(p.ready, use)
	}
	if len(p.ready) > 0 {
		t.Errorf("not on the page: %v", sortedKeys(p.ready))
	}
}

// The page has every fact with its type, and no other.
func TestFactsOfThePage(t *testing.T) {
	s, err := newSchema(reflect.TypeFor[facts]())
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{}
	var visit func(prefix, object string)
	visit = func(prefix, object string) {
		for _, f := range s.objects[object].order {
			name, inner := prefix+f.name, f.celType
			kind := inner.String()
			if inner.Kind() == types.ListKind {
				inner = inner.Parameters()[0]
				kind = "list of " + inner.String()
				name += "[]"
			}
			if _, ok := s.objects[inner.TypeName()]; ok {
				kind = strings.Replace(kind, inner.String(), "object", 1)
				visit(name+".", inner.TypeName())
			}
			want[strings.TrimSuffix(name, "[]")] = strings.TrimPrefix(kind, "google.protobuf.")
		}
	}
	visit("", factsType)
	for name, kind := range want {
		want[name] = strings.ToLower(strings.Replace(kind, "google.protobuf.", "", 1))
	}
	got := map[string]string{}
	_, table, _ := strings.Cut(page(t), "\n## Facts\n")
	for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\| ([a-z ]+) \\| (.+) \\|$").FindAllStringSubmatch(table, -1) {
		got[row[1]] = row[2]
	}
	for name, kind := range want {
		if got[name] != kind {
			t.Errorf("the page says that %s is of type %q; it is %s", name, got[name], kind)
		}
		delete(got, name)
	}
	for name := range got {
		t.Errorf("the page has %s, which is no fact", name)
	}
}
