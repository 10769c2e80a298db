package pipeline

import (
	"encoding/json"
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

const smallFile = `{"apiVersion":"dray/v1","kind":"Project","name":"hello-go","environments":[
	{"name":"staging","repository":"staging.example/{environment}/{project}"},
	{"name":"prod","repository":"prod.example/hello-go","gate":{"allowRoot":true},"after":["staging"],"soak":"24h"}]}`

func TestParseProjectFile(t *testing.T) {
	f, err := ParseProjectFile([]byte(smallFile))
	if err != nil {
		t.Fatal(err)
	}
	staging, prod := f.Environments[0], f.Environments[1]
	if f.Gate.FailOn != SeverityCritical || staging.Gate.FailOn != SeverityCritical || prod.Gate.FailOn != SeverityCritical || !prod.Gate.AllowRoot ||
		staging.Repository != "staging.example/staging/hello-go" || prod.Soak.Std() != 24*time.Hour || f.Platforms[0] != "linux/amd64" {
		t.Errorf("%+v", f)
	}
	// What is read and written again is the same, by way of the project too.
	f.Environments[1].BreakGlass = &BreakGlassRule{Roles: []string{}, Overrides: []string{}}
	f.Retention = &Retention{Auto: true, Images: &ImageRetention{Keep: 3, KeepTagged: KeepAll}, Tags: &TagRetention{SHA: &AgeRetention{For: Duration(90 * 24 * time.Hour)}}}
	p := f.ApplyTo(Project{Source: "acme/hello-go", Repository: "dev.example/hello-go"})
	if p.Source != "acme/hello-go" || p.Repository != "dev.example/hello-go" {
		t.Errorf("what the file does not set was changed: %+v", p)
	}
	raw, err := json.Marshal(ProjectFileOf(p))
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseProjectFile(raw)
	if err != nil || !reflect.DeepEqual(again, f) {
		t.Errorf("%v\ngot  %+v\nwant %+v", err, again, f)
	}
	for _, on := range []string{"unknown", "low", "HIGH"} {
		if f, err = ParseProjectFile([]byte(strings.Replace(smallFile, `"environments"`, `"gate":{"failOn":"`+on+`"},"environments"`, 1))); err != nil || !strings.EqualFold(f.Gate.FailOn.String(), on) {
			t.Errorf("failOn %s: %v, %v", on, f.Gate.FailOn, err)
		}
	}
}

func TestProjectFileRefusals(t *testing.T) {
	head := `"apiVersion":"dray/v1","kind":"Project","name":"x"`
	environment := func(members string) string {
		return `{` + head + `,"environments":[{"name":"e","repository":"r.example/e"` + members + `}]}`
	}
	for name, tc := range map[string]struct{ file, path, says string }{
		"empty":                {``, "", "ends in the middle"},
		"cut":                  {`{"name":"x"`, "", "ends in the middle"},
		"not JSON":             {`name: x`, "", "not JSON"},
		"a list":               {`[]`, "", "want an object"},
		"null":                 {`null`, "", "want an object"},
		"two":                  {`{} {}`, "", "after the end"},
		"unknown":              {`{` + head + `,"enviroments":[]}`, "enviroments", "known are apiVersion, environments"},
		"unknown deeper":       {environment(`,"gate":{"failon":"high"}`), "environments[0].gate.failon", "not known"},
		"other case":           {`{"Name":"x"}`, "Name", "not known"},
		"twice":                {`{` + head + `,"name":"y"}`, "name", "given twice"},
		"null deeper":          {environment(`,"after":null`), "environments[0].after", "is empty"},
		"null in a list":       {`{` + head + `,"environments":[null]}`, "environments[0]", "is empty"},
		"no version":           {`{"kind":"Project","name":"x"}`, "apiVersion", `want "dray/v1"`},
		"other version":        {strings.Replace(`{`+head+`}`, "dray/v1", "dray/v2", 1), "apiVersion", `want "dray/v1"`},
		"no kind":              {`{"apiVersion":"dray/v1","name":"x"}`, "kind", `want "Project"`},
		"no name":              {`{"apiVersion":"dray/v1","kind":"Project"}`, "name", "lower-case"},
		"name":                 {strings.Replace(`{`+head+`}`, `"x"`, `"../x"`, 1), "name", "lower-case"},
		"text for a list":      {`{` + head + `,"platforms":"linux/amd64"}`, "platforms", "want a list, got text"},
		"number for text":      {environment(`,"soak":24`), "environments[0].soak", "want text, got the number 24"},
		"soak":                 {environment(`,"soak":"a day"`), "environments[0].soak", "duration"},
		"negative soak":        {environment(`,"soak":"-1h"`), "environments[0].soak", "duration"},
		"soak of nothing":      {environment(`,"soak":"1h"`), "", "after names none"},
		"severity":             {environment(`,"gate":{"failOn":"severe"}`), "environments[0].gate.failOn", "want one of"},
		"yes":                  {environment(`,"auto":"yes"`), "environments[0].auto", "want true or false"},
		"fraction":             {environment(`,"approvals":[{"role":"a","count":1.5}]`), "environments[0].approvals[0].count", "whole number"},
		"huge":                 {environment(`,"approvals":[{"role":"a","count":1e99}]`), "environments[0].approvals[0].count", "whole number"},
		"negative":             {environment(`,"approvals":[{"role":"a","count":-1}]`), "environments[0].approvals[0].count", "1 to 100"},
		"role":                 {environment(`,"approvals":[{"count":1}]`), "environments[0].approvals[0].role", "want a role"},
		"platform":             {`{` + head + `,"platforms":["amd64"]}`, "platforms[0]", "os/architecture"},
		"platform twice":       {`{` + head + `,"platforms":["linux/amd64","linux/amd64"]}`, "platforms[1]", "twice"},
		"circle":               {environment(`,"after":["e"]`), "", "comes after"},
		"no repository":        {`{` + head + `,"environments":[{"name":"e"}]}`, "", "repository"},
		"template":             {`{` + head + `,"environments":[{"name":"e","repository":"r.example/{team}"}]}`, "", "repository"},
		"rule of neither":      {environment(`,"rules":[{"reason":"x"}]`), "environments[0].rules[0]", "either use"},
		"rule of both":         {environment(`,"rules":[{"use":"a","expr":"true"}]`), "environments[0].rules[0]", "no place"},
		"CEL without name":     {environment(`,"rules":[{"expr":"true"}]`), "environments[0].rules[0].name", "required"},
		"CEL with with":        {environment(`,"rules":[{"name":"a","expr":"true","with":{}}]`), "environments[0].rules[0].with", "takes none"},
		"with is no object":    {environment(`,"rules":[{"use":"a","with":[1]}]`), "environments[0].rules[0].with", "want an object"},
		"freeze":               {environment(`,"freezes":[{"name":"x","start":"2026-01-01T00:00"}]`), "environments[0].freezes[0].for", "required"},
		"break glass":          {environment(`,"breakGlass":{"roles":["admin"],"overrides":[]}`), "environments[0].breakGlass", "want both"},
		"rollback rule":        {environment(`,"rollback":{"rules":[{}]}`), "environments[0].rollback.rules[0]", "either use"},
		"retention":            {`{` + head + `,"retention":{"images":{"keepTagged":"all"}}}`, "retention.images", "want keep, for or both"},
		"retention too short":  {`{` + head + `,"retention":{"logs":{"for":"1h"}}}`, "retention.logs.for", "at least 1d"},
		"retention of tags":    {`{` + head + `,"retention":{"tags":{"semver":{"for":"9d"}}}}`, "retention.tags.semver", "not known"},
		"retention keepTagged": {`{` + head + `,"retention":{"images":{"keep":1,"keepTagged":"some"}}}`, "retention.images.keepTagged", "want releases or all"},
		"retention promoted":   {`{` + head + `,"retention":{"promoted":{"for":"90d"}}}`, "retention.promoted", "no images"},
		"key":                  {`{` + head + `,"trustedVEXKeys":["ssh-ed25519 AAAA"]}`, "trustedVEXKeys[0]", "PEM"},
		"broken key":           {`{` + head + `,"trustedVEXKeys":["-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"]}`, "trustedVEXKeys[0]", "asn1"},
		"deep":                 {`{"gate":` + strings.Repeat(`{"a":`, 40) + `1` + strings.Repeat(`}`, 41), "", "nested more than"},
		"long":                 {`{"name":"` + strings.Repeat("x", MaxProjectFile) + `"}`, "", "at most"},
		"what is the server's": {`{` + head + `,"cloneURL":"https://evil.example/x.git"}`, "cloneURL", "not known"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseProjectFile([]byte(tc.file))
			var file *FileError
			if !errors.As(err, &file) || !errors.Is(err, ErrInvalid) {
				t.Fatalf("%v", err)
			}
			if !slices.ContainsFunc(file.Problems, func(p FieldProblem) bool { return p.Path == tc.path && strings.Contains(p.Message, tc.says) }) {
				t.Errorf("want %s: …%s…, got %v", tc.path, tc.says, err)
			}
			if len(err.Error()) > 8000 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
		})
	}
	// All that is wrong is told at once.
	_, err := ParseProjectFile([]byte(environment(`,"soak":1,"auto":1,"nothing":1`)))
	var file *FileError
	if !errors.As(err, &file) || len(file.Problems) != 3 {
		t.Errorf("%v", err)
	}
}

// TestProjectSchema compares the schema with the types that the parser goes by:
// the same names with the same kinds, and nothing else allowed.
func TestProjectSchema(t *testing.T) {
	var schema map[string]any
	if err := json.Unmarshal(ProjectSchema(), &schema); err != nil {
		t.Fatal(err)
	}
	defs := schema["$defs"].(map[string]any)
	seen := map[string]bool{}
	var compare func(path string, s map[string]any, typ reflect.Type)
	compare = func(path string, s map[string]any, typ reflect.Type) {
		for typ.Kind() == reflect.Pointer {
			typ = typ.Elem()
		}
		if ref, ok := s["$ref"].(string); ok {
			name := strings.TrimPrefix(ref, "#/$defs/")
			seen[name] = true
			s = defs[name].(map[string]any)
		}
		kind := "object"
		switch {
		case typ == reflect.TypeFor[json.RawMessage]():
			if s["type"] != kind {
				t.Errorf("%s is %v", path, s["type"])
			}
			return
		case typ == reflect.TypeFor[Severity]():
			var names []any
			for _, n := range severityNames {
				names = append(names, n)
			}
			if !reflect.DeepEqual(s["enum"], names) {
				t.Errorf("%s is one of %v", path, s["enum"])
			}
			return
		case s["const"] != nil:
			return
		case typ == reflect.TypeFor[Duration](), typ.Kind() == reflect.String:
			kind = "string"
		case typ.Kind() == reflect.Bool:
			kind = "boolean"
		case typ.Kind() == reflect.Int:
			kind = "integer"
		case typ.Kind() == reflect.Slice:
			kind = "array"
			compare(path+"[]", s["items"].(map[string]any), typ.Elem())
		}
		if s["type"] != kind {
			t.Errorf("%s is %v, want %s", path, s["type"], kind)
		}
		if kind != "object" {
			return
		}
		if s["additionalProperties"] != false {
			t.Errorf("%s allows more than it says", path)
		}
		properties := s["properties"].(map[string]any)
		fields, names := jsonFields(typ)
		if have := slices.Sorted(maps.Keys(properties)); !slices.Equal(have, names) {
			t.Errorf("%s has %v in the schema and %v in the parser", path, have, names)
			return
		}
		for name, field := range fields {
			compare(path+"."+name, properties[name].(map[string]any), field)
		}
	}
	compare("", schema, reflect.TypeFor[ProjectFile]())
	for name := range defs {
		if !seen[name] {
			t.Errorf("nothing uses $defs/%s", name)
		}
	}
}

func FuzzParseProjectFile(f *testing.F) {
	f.Add([]byte(smallFile))
	f.Add([]byte(`{"environments":[{"gate":[]}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		file, err := ParseProjectFile(raw)
		if err != nil {
			return
		}
		again, err := json.Marshal(file)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseProjectFile(again); err != nil {
			t.Errorf("%s was read, and %s is not: %v", raw, again, err)
		}
	})
}
