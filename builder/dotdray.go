package builder

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"sort"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/dray-project/dray/pipeline"
)

const (
	planFile    = ".dray.yaml"
	planVersion = "dray/v1"
	maxPlanFile = 256 << 10
	maxArgs     = 200
	maxArgValue = 4096
)

// buildFile is what a .dray.yaml says. Paths are clean and relative to the
// repository's root.
type buildFile struct {
	Context    string
	Dockerfile string
	Target     string
	Args       map[string]string
	Platforms  []pipeline.Platform
}

// parsePlanFile reads a .dray.yaml. It knows every field that it accepts: a
// field that it does not know is an error, so that a misspelt one is noticed.
// Anchors and aliases are refused, which also ends alias bombs.
func parsePlanFile(data []byte) (buildFile, error) {
	if len(data) > maxPlanFile {
		return buildFile{}, planError(0, "is %d bytes long, at most %d are read", len(data), maxPlanFile)
	}
	if bytes.ContainsRune(data, 0) {
		return buildFile{}, planError(0, "is not a text file")
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return buildFile{}, planError(0, "is empty; it starts with: apiVersion: %s", planVersion)
		}
		return buildFile{}, planError(0, "%s", strings.TrimPrefix(err.Error(), "yaml: "))
	}
	var more yaml.Node
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		return buildFile{}, planError(more.Line, "has a second document; one is read")
	}
	root := doc.Content[0]
	fields, err := mapping(root, "the file", "apiVersion", "build")
	if err != nil {
		return buildFile{}, err
	}
	version, ok := fields["apiVersion"]
	if !ok {
		return buildFile{}, planError(root.Line, "apiVersion is missing; want apiVersion: %s", planVersion)
	}
	if v, err := text(version, "apiVersion"); err != nil {
		return buildFile{}, err
	} else if v != planVersion {
		return buildFile{}, planError(version.Line, "apiVersion %q is not known; want %s", v, planVersion)
	}
	out := buildFile{Context: "."}
	build, ok := fields["build"]
	if !ok {
		return out, nil
	}
	if fields, err = mapping(build, "build", "context", "dockerfile", "target", "args", "platforms"); err != nil {
		return buildFile{}, err
	}
	if n, ok := fields["context"]; ok {
		if out.Context, err = repositoryPath(n, "build.context"); err != nil {
			return buildFile{}, err
		}
	}
	if n, ok := fields["dockerfile"]; ok {
		if out.Dockerfile, err = repositoryPath(n, "build.dockerfile"); err != nil {
			return buildFile{}, err
		}
		if out.Dockerfile == "." {
			return buildFile{}, planError(n.Line, "build.dockerfile: want the path of a file")
		}
	}
	if n, ok := fields["target"]; ok {
		if out.Target, err = text(n, "build.target"); err != nil {
			return buildFile{}, err
		}
		if !stageName.MatchString(out.Target) {
			return buildFile{}, planError(n.Line, "build.target: %q is not the name of a stage", out.Target)
		}
	}
	if n, ok := fields["args"]; ok {
		if out.Args, err = buildArgs(n); err != nil {
			return buildFile{}, err
		}
	}
	if n, ok := fields["platforms"]; ok {
		if out.Platforms, err = platformList(n); err != nil {
			return buildFile{}, err
		}
	}
	return out, nil
}

var (
	stageName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)
	argName   = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,127}$`)
)

func planError(line int, format string, args ...any) error {
	at := planFile
	if line > 0 {
		at = fmt.Sprintf("%s:%d", planFile, line)
	}
	return pipeline.Permanent(fmt.Errorf("%s: %s: %w", at, fmt.Sprintf(format, args...), pipeline.ErrInvalid))
}

// mapping returns the values of a mapping that has no other keys than known.
func mapping(n *yaml.Node, where string, known ...string) (map[string]*yaml.Node, error) {
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		return nil, planError(n.Line, "%s: anchors and aliases are not supported", where)
	}
	if n.Kind != yaml.MappingNode {
		return nil, planError(n.Line, "%s: want a mapping of %s", where, strings.Join(known, ", "))
	}
	out := map[string]*yaml.Node{}
	for i := 0; i < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		name, err := text(k, "a key of "+where)
		if err != nil {
			return nil, err
		}
		ok := known == nil
		for _, want := range known {
			ok = ok || name == want
		}
		if !ok {
			return nil, planError(k.Line, "unknown field %q in %s; known are %s", name, where, strings.Join(known, ", "))
		}
		if first, twice := out[name]; twice {
			return nil, planError(k.Line, "%q is given twice, first on line %d", name, first.Line)
		}
		out[name] = v
	}
	return out, nil
}

// text returns a scalar as it is written: 1.10 stays 1.10.
func text(n *yaml.Node, where string) (string, error) {
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		return "", planError(n.Line, "%s: anchors and aliases are not supported", where)
	case n.Kind != yaml.ScalarNode || n.Tag == "!!null":
		return "", planError(n.Line, "%s: want a single value", where)
	case n.Tag == "!!binary":
		return "", planError(n.Line, "%s: want plain text", where)
	case strings.ContainsRune(n.Value, 0):
		return "", planError(n.Line, "%s: has a NUL character in it", where)
	}
	return n.Value, nil
}

func repositoryPath(n *yaml.Node, where string) (string, error) {
	p, err := text(n, where)
	if err != nil {
		return "", err
	}
	clean, err := cleanPath(p)
	if err != nil {
		return "", planError(n.Line, "%s: %s", where, err)
	}
	return clean, nil
}

// cleanPath accepts a slash-separated path that stays within the repository.
func cleanPath(p string) (string, error) {
	switch {
	case p == "":
		return "", errors.New("the path is empty")
	case len(p) > 1024:
		return "", errors.New("the path is longer than 1024 bytes")
	case strings.HasPrefix(p, "/"):
		return "", fmt.Errorf("%q is absolute; want a path within the repository", p)
	case strings.ContainsFunc(p, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\\' || r == ':' }):
		return "", fmt.Errorf("%q has a colon, a backslash or a control character in it", p)
	}
	clean := path.Clean(p)
	if clean == ".." || strings.HasPrefix(clean, "../") {
		return "", fmt.Errorf("%q leads out of the repository", p)
	}
	return clean, nil
}

func buildArgs(n *yaml.Node) (map[string]string, error) {
	fields, err := mapping(n, "build.args")
	if err != nil {
		return nil, err
	}
	if len(fields) > maxArgs {
		return nil, planError(n.Line, "build.args: at most %d are accepted", maxArgs)
	}
	out := map[string]string{}
	for name, v := range fields {
		if err := checkArg(name); err != nil {
			return nil, planError(v.Line, "build.args: %s", err)
		}
		if out[name], err = text(v, "build.args."+name); err != nil {
			return nil, err
		}
		if len(out[name]) > maxArgValue {
			return nil, planError(v.Line, "build.args.%s: is longer than %d bytes", name, maxArgValue)
		}
	}
	return out, nil
}

// checkArg refuses the build arguments that steer BuildKit itself.
func checkArg(name string) error {
	switch {
	case !argName.MatchString(name):
		return fmt.Errorf("%q is not the name of a build argument", name)
	case strings.HasPrefix(strings.ToUpper(name), "BUILDKIT_"):
		return fmt.Errorf("%s steers BuildKit itself and cannot be set here", name)
	case name == "SOURCE_DATE_EPOCH":
		return errors.New("SOURCE_DATE_EPOCH is always the commit's time")
	}
	return nil
}

func platformList(n *yaml.Node) ([]pipeline.Platform, error) {
	if n.Kind != yaml.SequenceNode || n.Anchor != "" || len(n.Content) == 0 || len(n.Content) > 32 {
		return nil, planError(n.Line, "build.platforms: want a list such as [linux/amd64, linux/arm64]")
	}
	var out []pipeline.Platform
	seen := map[pipeline.Platform]bool{}
	for _, item := range n.Content {
		s, err := text(item, "build.platforms")
		if err != nil {
			return nil, err
		}
		p, err := pipeline.ParsePlatform(s)
		if err != nil {
			return nil, planError(item.Line, "build.platforms: %q: want os/architecture or os/architecture/variant", s)
		}
		if seen[p] {
			return nil, planError(item.Line, "build.platforms: %s is listed twice", p)
		}
		seen[p] = true
		out = append(out, p)
	}
	return out, nil
}

// narrow picks the wanted platforms out of the project's, in the project's
// order. No wish means all of them.
func narrow(project, wanted []pipeline.Platform) ([]pipeline.Platform, error) {
	if len(wanted) == 0 {
		return project, nil
	}
	want := map[pipeline.Platform]bool{}
	for _, p := range wanted {
		want[p] = true
	}
	var out []pipeline.Platform
	for _, p := range project {
		if want[p] {
			out = append(out, p)
			delete(want, p)
		}
	}
	if len(want) > 0 {
		var left []string
		for p := range want {
			left = append(left, string(p))
		}
		sort.Strings(left)
		return nil, planError(0, "build.platforms: %s is not built by this project, whose platforms are %s",
			strings.Join(left, ", "), joinPlatforms(project))
	}
	return out, nil
}

func joinPlatforms(list []pipeline.Platform) string {
	var s []string
	for _, p := range list {
		s = append(s, string(p))
	}
	return strings.Join(s, ", ")
}
