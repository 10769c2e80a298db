package api

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/dray-project/dray/pipeline"
)

// changes lists what differs between two settings of a project, by the names
// that the project file has for them.
func changes(from, to pipeline.Project) ([]ProjectChange, error) {
	before, err := flatten(pipeline.ProjectFileOf(from))
	if err != nil {
		return nil, err
	}
	after, err := flatten(pipeline.ProjectFileOf(to))
	if err != nil {
		return nil, err
	}
	out := []ProjectChange{}
	for path, was := range before {
		if now := after[path]; string(was) != string(now) {
			out = append(out, ProjectChange{path, was, now})
		}
	}
	for path, now := range after {
		if before[path] == nil {
			out = append(out, ProjectChange{Path: path, To: now})
		}
	}
	slices.SortFunc(out, func(x, y ProjectChange) int { return strings.Compare(x.Path, y.Path) })
	return out, nil
}

// flatten gives every setting one path; what has a name is named by it, so that
// an environment that moves in the list does not look like another one. Lists
// of other things are one setting each.
func flatten(f pipeline.ProjectFile) (map[string]json.RawMessage, error) {
	raw, err := json.Marshal(f)
	if err != nil {
		return nil, err
	}
	var tree map[string]any
	if err := json.Unmarshal(raw, &tree); err != nil {
		return nil, err
	}
	out := map[string]json.RawMessage{}
	var walk func(path string, v any) error
	walk = func(path string, v any) error {
		switch v := v.(type) {
		case map[string]any:
			for name, member := range v {
				if err := walk(strings.TrimPrefix(path+"."+name, "."), member); err != nil {
					return err
				}
			}
			return nil
		case []any:
			if path == "environments" {
				var order []string
				for _, item := range v {
					environment, _ := item.(map[string]any)
					name, _ := environment["name"].(string)
					order = append(order, name)
					delete(environment, "name")
					if err := walk("environments["+name+"]", environment); err != nil {
						return err
					}
				}
				path = "environments"
				v = []any{strings.Join(order, ", ")}
				if len(order) == 0 {
					return nil
				}
				raw, err := json.Marshal(v[0])
				out[path] = raw
				return err
			}
		}
		raw, err := json.Marshal(v)
		out[path] = raw
		return err
	}
	return out, walk("", tree)
}
