package builder

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"sort"
	"strconv"
	"strings"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"

	"github.com/dray-project/dray/pipeline"
)

const (
	maxDockerfile = 1 << 20
	// maxWord bounds a FROM or ARG expression and what it may grow to: twenty
	// lines of ARG A=$A$A would otherwise be a gigabyte.
	maxWord   = 4096
	maxStages = 500
)

// dockerfile is a parsed Dockerfile.
type dockerfile struct {
	name   string // path in the repository, for messages
	stages []instructions.Stage
	args   []instructions.ArgCommand // those before the first FROM
	escape rune
	data   []byte
}

// baseImage is an image that a Dockerfile starts or copies from.
type baseImage struct {
	name   string          // normalised, with its tag and without digest
	digest pipeline.Digest // when the Dockerfile pins it
	// platform that it is wanted for, the first if there are several.
	platform pipeline.Platform
	line     int
}

// parseDockerfile parses in process; what is wrong is a permanent error with
// the file and the line.
func parseDockerfile(name string, data []byte, allowed []pipeline.Digest) (d *dockerfile, err error) {
	// The parser is fed what anybody may push. A fault in it must fail this
	// run, not the process.
	defer func() {
		if r := recover(); r != nil {
			d, err = nil, pipeline.Permanent(fmt.Errorf("%s: the parser failed: %v: %w", name, r, pipeline.ErrInvalid))
		}
	}()
	if err := checkSyntax(name, data, allowed); err != nil {
		return nil, err
	}
	ast, err := parser.Parse(bytes.NewReader(data))
	if err != nil {
		return nil, dockerfileError(name, 0, err)
	}
	stages, args, err := instructions.Parse(ast.AST, linter.New(&linter.Config{SkipAll: true}))
	if err != nil {
		return nil, dockerfileError(name, 0, err)
	}
	if len(stages) == 0 {
		return nil, dockerfileError(name, 0, errors.New("there is no FROM in it"))
	}
	if len(stages) > maxStages {
		return nil, dockerfileError(name, 0, fmt.Errorf("more than %d stages", maxStages))
	}
	for _, st := range stages {
		for _, cmd := range st.Commands {
			if err := checkEntitlements(cmd); err != nil {
				return nil, dockerfileError(name, lineOf(cmd.Location()), err)
			}
		}
	}
	return &dockerfile{name: name, stages: stages, args: args, escape: ast.EscapeToken, data: data}, nil
}

// checkEntitlements refuses early, with the line, what buildkitd would refuse
// without it.
func checkEntitlements(cmd instructions.Command) error {
	run, ok := cmd.(*instructions.RunCommand)
	switch {
	case !ok:
	case instructions.GetSecurity(run) == instructions.SecurityInsecure:
		return errors.New("RUN --security=insecure: builds do not get the entitlement security.insecure")
	case instructions.GetNetwork(run) == instructions.NetworkHost:
		return errors.New("RUN --network=host: builds do not get the entitlement network.host")
	}
	return nil
}

var onLine = regexp.MustCompile(`^dockerfile parse error on line \d+: `)

func dockerfileError(name string, line int, err error) error {
	var loc *parser.LocationError
	if line == 0 && errors.As(err, &loc) && len(loc.Locations) > 0 && len(loc.Locations[0]) > 0 {
		line = loc.Locations[0][0].Start.Line
	}
	msg := onLine.ReplaceAllString(err.Error(), "")
	if line > 0 {
		return pipeline.Permanent(fmt.Errorf("%s:%d: %s: %w", name, line, tidyMessage(msg), pipeline.ErrInvalid))
	}
	return pipeline.Permanent(fmt.Errorf("%s: %s: %w", name, tidyMessage(msg), pipeline.ErrInvalid))
}

// checkSyntax refuses `# syntax=` lines: they make buildkitd fetch and run a
// program of the Dockerfile's choosing in place of its own parser.
func checkSyntax(name string, data []byte, allowed []pipeline.Digest) error {
	ref, _, where, ok := parser.DetectSyntax(data)
	if !ok {
		return nil
	}
	line := 1
	if len(where) > 0 && where[0].Start.Line > 0 {
		line = where[0].Start.Line
	}
	if _, dig, pinned := strings.Cut(ref, "@"); pinned {
		for _, a := range allowed {
			if string(a) == dig {
				return nil
			}
		}
	}
	return dockerfileError(name, line, fmt.Errorf("the syntax line asks for the frontend %q, which is not on the list of allowed frontends; "+
		"remove the line (buildkitd's own Dockerfile frontend is used), or have the frontend allowed and name it by its digest", ref))
}

// graph is how the stages of a Dockerfile hang together for one platform.
type graph struct {
	lex    *shell.Lex
	env    shell.EnvGetter
	byName map[string]int
	names  []string // of what each stage starts from, filled in
	from   []int    // the stage that a stage starts from, or -1
	goal   int      // the stage that is built
}

func (d *dockerfile) graph(target string, args map[string]string, build, platform pipeline.Platform) (*graph, error) {
	g := &graph{lex: shell.NewLex(d.escape), byName: map[string]int{}, names: make([]string, len(d.stages)), from: make([]int, len(d.stages))}
	var err error
	if g.env, err = d.globalArgs(g.lex, target, args, build, platform); err != nil {
		return nil, err
	}
	for i, st := range d.stages {
		base, err := expand(g.lex, st.BaseName, g.env)
		if err != nil {
			return nil, dockerfileError(d.name, lineOf(st.Location), err)
		}
		if base == "" {
			return nil, dockerfileError(d.name, lineOf(st.Location), fmt.Errorf("the base name %q is empty once its arguments are filled in", st.BaseName))
		}
		g.names[i], g.from[i] = base, -1
		if j, ok := g.byName[strings.ToLower(base)]; ok {
			g.from[i] = j
		}
		if st.Name != "" {
			g.byName[strings.ToLower(st.Name)] = i
		}
	}
	g.goal = len(d.stages) - 1
	if target != "" {
		var ok bool
		if g.goal, ok = g.byName[strings.ToLower(target)]; !ok {
			if g.goal, err = strconv.Atoi(target); err != nil || g.goal < 0 || g.goal >= len(d.stages) {
				return nil, dockerfileError(d.name, 0, fmt.Errorf("there is no stage %q to build; stages are %s", target, d.stageNames()))
			}
		}
	}
	return g, nil
}

// bases returns the images that building target for a platform needs, in order
// of appearance: of stages that are reached, what FROM, COPY --from and
// RUN --mount=from name and what is neither a stage nor scratch.
func (d *dockerfile) bases(target string, args map[string]string, build, platform pipeline.Platform) ([]baseImage, error) {
	g, err := d.graph(target, args, build, platform)
	if err != nil {
		return nil, err
	}
	lex, env, byName, names, from := g.lex, g.env, g.byName, g.names, g.from
	var out []baseImage
	seen := map[string]bool{}
	use := func(name string, wanted pipeline.Platform, line int) error {
		if strings.EqualFold(name, "scratch") || seen[name] {
			return nil
		}
		seen[name] = true
		b, err := parseBase(name)
		if err != nil {
			return dockerfileError(d.name, line, err)
		}
		b.line, b.platform = line, wanted
		out = append(out, b)
		return nil
	}
	reached := map[int]bool{}
	queue := []int{g.goal}
	for len(queue) > 0 {
		i := queue[0]
		queue = queue[1:]
		if reached[i] {
			continue
		}
		reached[i] = true
		if from[i] >= 0 {
			queue = append(queue, from[i])
		} else {
			line := lineOf(d.stages[i].Location)
			wanted, err := stagePlatform(lex, d.stages[i], env, platform)
			if err != nil {
				return nil, dockerfileError(d.name, line, err)
			}
			if err := use(names[i], wanted, line); err != nil {
				return nil, err
			}
		}
		for _, cmd := range d.stages[i].Commands {
			for _, src := range sources(cmd) {
				if j, ok := byName[strings.ToLower(src.name)]; ok {
					queue = append(queue, j)
				} else if j, err := strconv.Atoi(src.name); err == nil && src.index && j >= 0 && j < len(d.stages) {
					queue = append(queue, j)
				} else if err := use(src.name, platform, lineOf(cmd.Location())); err != nil {
					return nil, err
				}
			}
		}
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].line < out[j].line })
	return out, nil
}

// stagePlatform is what a stage says with FROM --platform, or else the target.
func stagePlatform(lex *shell.Lex, st instructions.Stage, env shell.EnvGetter, target pipeline.Platform) (pipeline.Platform, error) {
	if st.Platform == "" {
		return target, nil
	}
	word, err := expand(lex, st.Platform, env)
	if err != nil {
		return "", err
	}
	if word == "" {
		return "", fmt.Errorf("the platform %q is empty once its arguments are filled in", st.Platform)
	}
	p, err := platforms.Parse(word)
	if err != nil {
		return "", err
	}
	return pipeline.Platform(platforms.Format(p)), nil
}

type copySource struct {
	name  string
	index bool // a number means a stage
}

// sources are the stages and images that a command copies or mounts from.
func sources(cmd instructions.Command) []copySource {
	switch c := cmd.(type) {
	case *instructions.CopyCommand:
		if c.From != "" && !strings.EqualFold(c.From, "context") {
			return []copySource{{c.From, true}}
		}
	case *instructions.RunCommand:
		var out []copySource
		for _, m := range instructions.GetMounts(c) {
			if m.From != "" {
				out = append(out, copySource{m.From, false})
			}
		}
		return out
	}
	return nil
}

func parseBase(name string) (baseImage, error) {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return baseImage{}, fmt.Errorf("image %q: %w", name, err)
	}
	var b baseImage
	if c, ok := named.(reference.Digested); ok {
		if b.digest, err = pipeline.ParseDigest(c.Digest().String()); err != nil {
			return baseImage{}, fmt.Errorf("image %q: %w", name, err)
		}
		b.name = reference.TrimNamed(named).Name()
		if t, ok := named.(reference.Tagged); ok {
			b.name += ":" + t.Tag()
		}
		return b, nil
	}
	b.name = reference.TagNameOnly(named).String()
	return b, nil
}

// globalArgs are the arguments that FROM lines may use.
func (d *dockerfile) globalArgs(lex *shell.Lex, target string, args map[string]string, build, platform pipeline.Platform) (shell.EnvGetter, error) {
	if target == "" {
		target = "default"
		if last := d.stages[len(d.stages)-1].Name; last != "" {
			target = last
		}
	}
	env := map[string]string{}
	for prefix, p := range map[string]pipeline.Platform{"BUILD": build, "TARGET": platform} {
		os, arch, variant := p.Parts()
		env[prefix+"PLATFORM"], env[prefix+"OS"], env[prefix+"ARCH"], env[prefix+"VARIANT"] = string(p), os, arch, variant
	}
	env["TARGETSTAGE"] = target
	for name := range env {
		if v, ok := args[name]; ok {
			env[name] = v
		}
	}
	for _, cmd := range d.args {
		for _, a := range cmd.Args {
			if v, ok := args[a.Key]; ok {
				env[a.Key] = v
				continue
			}
			if a.Value == nil {
				continue
			}
			v, err := expand(lex, *a.Value, getter(env))
			if err != nil {
				return nil, dockerfileError(d.name, lineOf(cmd.Location()), err)
			}
			env[a.Key] = v
		}
	}
	return getter(env), nil
}

func expand(lex *shell.Lex, word string, env shell.EnvGetter) (string, error) {
	if len(word) > maxWord {
		return "", fmt.Errorf("the expression is longer than %d bytes", maxWord)
	}
	out, _, err := lex.ProcessWord(word, env)
	if err != nil {
		return "", err
	}
	if len(out) > maxWord {
		return "", fmt.Errorf("the value of %q is longer than %d bytes", word, maxWord)
	}
	return out, nil
}

type getter map[string]string

func (g getter) Get(name string) (string, bool) { v, ok := g[name]; return v, ok }

func (g getter) Keys() []string {
	var keys []string
	for k := range g {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

func (d *dockerfile) stageNames() string {
	var names []string
	for _, st := range d.stages {
		if st.Name != "" {
			names = append(names, st.Name)
		}
	}
	if len(names) == 0 {
		return "not named"
	}
	return strings.Join(names, ", ")
}

func lineOf(where []parser.Range) int {
	if len(where) == 0 {
		return 0
	}
	return where[0].Start.Line
}
