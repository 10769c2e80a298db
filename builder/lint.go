package builder

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend/dockerfile/dockerfile2llb"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerui"
	lintresult "github.com/moby/buildkit/frontend/subrequests/lint"
	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/dray-project/dray/pipeline"
)

const (
	// lintTimeout is how long BuildKit's checks may take. What passes lintable
	// takes milliseconds.
	lintTimeout = 10 * time.Second
	maxFindings = 500
)

// lint checks the Dockerfile: BuildKit's own rules, for the first platform, and
// Dray's. Nothing is fetched: configs are those of the base images that are
// known, by name. With an error, the findings are those of the checks that could
// be made.
func (d *dockerfile) lint(ctx context.Context, p pipeline.Plan, build pipeline.Platform, configs map[string][]byte) ([]pipeline.LintFinding, error) {
	if len(p.Platforms) == 0 {
		return nil, errors.New("there is no platform to check it for")
	}
	g, err := d.graph(p.Target, p.Args, build, p.Platforms[0])
	if err != nil {
		return nil, err
	}
	bases := lintBases(configs)
	out, err := d.lintBuildKit(ctx, p, build, g, bases)
	out = append(out, d.lintDray(g, p, bases)...)

	mask := d.mask(p.Args)
	for i := range out {
		if r, ok := ruleOf(out[i].Rule); ok {
			out[i].Remedy, out[i].URL = r.Remedy, r.URL
		}
		out[i].Detail = cutText(mask(cleanLine(out[i].Detail)), maxStepName)
	}
	slices.SortStableFunc(out, func(a, b pipeline.LintFinding) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Rule, b.Rule), cmp.Compare(a.Detail, b.Detail))
	})
	out = slices.Compact(out)
	if err != nil {
		err = errors.New(mask(tidyMessage(err.Error())))
	}
	return out[:min(len(out), maxFindings)], err
}

// lintBuildKit runs BuildKit's checks in process.
func (d *dockerfile) lintBuildKit(ctx context.Context, p pipeline.Plan, build pipeline.Platform, g *graph, bases lintBases) ([]pipeline.LintFinding, error) {
	if err := d.lintable(p.Args, bases); err != nil {
		return nil, err
	}
	data := d.withoutOnbuild()
	// The source map needs a definition, or the result cannot be made.
	def, err := llb.Scratch().Marshal(ctx)
	if err != nil {
		return nil, err
	}
	sourceMap := llb.NewSourceMap(nil, d.name, "Dockerfile", data)
	sourceMap.Definition = def
	caps := pb.Caps.CapSet(pb.Caps.All())
	target, args := ociPlatform(p.Platforms[0]), map[string]string{}
	for name, value := range p.Args {
		// BuildKit would go and look at what this names.
		if name != "SOURCE_DATE_EPOCH" {
			args[name] = value
		}
	}
	opt := dockerfile2llb.ConvertOpt{
		Config: dockerui.Config{
			BuildArgs: args, Target: p.Target, BuildPlatforms: []ocispecs.Platform{ociPlatform(build)},
		},
		SourceMap: sourceMap, TargetPlatform: &target, MetaResolver: bases, LLBCaps: &caps,
	}

	type result struct {
		found *lintresult.LintResults
		err   error
	}
	done := make(chan result, 1)
	ctx, cancel := context.WithTimeout(ctx, lintTimeout)
	defer cancel()
	go func() {
		var r result
		defer func() {
			if p := recover(); p != nil {
				r.err = fmt.Errorf("buildkit's checks failed: %v", p)
			}
			done <- r
		}()
		r.found, r.err = dockerfile2llb.DockerfileLint(ctx, data, opt)
	}()
	var r result
	select {
	case r = <-done:
	case <-ctx.Done():
		// It ends by itself; lintable has bounded what it can take.
		return nil, fmt.Errorf("buildkit's checks: %w", ctx.Err())
	}
	if r.err != nil {
		return nil, r.err
	}
	var out []pipeline.LintFinding
	for _, w := range r.found.Warnings {
		line := 0
		if w.Location != nil && len(w.Location.Ranges) > 0 && w.Location.Ranges[0].Start != nil {
			line = int(w.Location.Ranges[0].Start.Line)
		}
		if w.RuleName == linter.RuleUndefinedVar.Name && !d.knows(g, line, bases) {
			continue // it may well be defined by the base image
		}
		out = append(out, pipeline.LintFinding{Rule: w.RuleName, Line: line, Detail: w.Detail, Remedy: w.Description, URL: w.URL})
	}
	// With `# check=error=true` the findings are the error; the build says so.
	if e := r.found.Error; e != nil && !strings.HasPrefix(e.Message, "lint violation found") {
		return out, errors.New(e.Message)
	}
	return out, nil
}

func ociPlatform(p pipeline.Platform) ocispecs.Platform {
	os, arch, variant := p.Parts()
	return platforms.Normalize(ocispecs.Platform{OS: os, Architecture: arch, Variant: variant})
}

// withoutOnbuild leaves out instructions that this build does not run, but for
// stages that start from one with them: there, BuildKit would parse and follow
// them, in ways that are not bounded.
func (d *dockerfile) withoutOnbuild() []byte {
	drop := map[int]bool{}
	for _, st := range d.stages {
		for _, cmd := range st.Commands {
			if _, ok := cmd.(*instructions.OnbuildCommand); ok {
				for _, r := range cmd.Location() {
					for n := r.Start.Line; n <= r.End.Line; n++ {
						drop[n] = true
					}
				}
			}
		}
	}
	if len(drop) == 0 {
		return d.data
	}
	lines := strings.Split(string(d.data), "\n")
	for n := range lines {
		if drop[n+1] {
			lines[n] = ""
		}
	}
	return []byte(strings.Join(lines, "\n"))
}

// lintBases are configurations of base images. It stands in for a registry.
type lintBases map[string][]byte

var _ llb.ImageMetaResolver = lintBases{}

// baseConfig is what checks look at in a base image.
type baseConfig struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Variant      string `json:"variant,omitempty"`
	Config       struct {
		Env         []string `json:"Env,omitempty"`
		User        string   `json:"User,omitempty"`
		WorkingDir  string   `json:"WorkingDir,omitempty"`
		Shell       []string `json:"Shell,omitempty"`
		Healthcheck *struct {
			Test []string `json:"Test,omitempty"`
		} `json:"Healthcheck,omitempty"`
	} `json:"config"`
	RootFS struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
}

// config of an image that is named as FROM does; ok is false when it is not known.
func (l lintBases) config(name string) (c baseConfig, ok bool) {
	b, err := parseBase(name)
	if err != nil || b.digest != "" {
		return c, false
	}
	raw, ok := l[b.name]
	if !ok || json.Unmarshal(raw, &c) != nil {
		return baseConfig{}, false
	}
	return c, true
}

// ResolveImageConfig gives BuildKit as much of a configuration as its checks
// need. An image that is not known is of the platform that is asked for.
func (l lintBases) ResolveImageConfig(_ context.Context, ref string, opt sourceresolver.Opt) (string, digest.Digest, []byte, error) {
	c, ok := l.config(ref)
	if !ok && opt.ImageOpt != nil && opt.ImageOpt.Platform != nil {
		p := opt.ImageOpt.Platform
		c.OS, c.Architecture, c.Variant = p.OS, p.Architecture, p.Variant
	}
	// Without a layer it would be taken for scratch.
	c.RootFS.Type, c.RootFS.DiffIDs = "layers", []string{digest.FromString(ref).String()}
	raw, err := json.Marshal(c)
	return ref, "", raw, err
}

// knows reports whether the environment of the stage at a line is known down to
// its base image.
func (d *dockerfile) knows(g *graph, line int, bases lintBases) bool {
	at := -1
	for i, st := range d.stages {
		if lineOf(st.Location) <= line {
			at = i
		}
	}
	if at < 0 {
		return true
	}
	for g.from[at] >= 0 {
		at = g.from[at]
	}
	if strings.EqualFold(g.names[at], "scratch") {
		return true
	}
	_, ok := bases.config(g.names[at])
	return ok
}

var (
	secretName = regexp.MustCompile(`(?i)(pass(word|wd|phrase)?|pword|secret|token|credentials?|api_?key|access_?key|private_?key|auth)`)
	secretURL  = regexp.MustCompile(`(://[^/\s:@]*:)[^/\s@]+@`)
)

// mask returns what takes secrets out of findings: values of build arguments
// and variables that are named like one, and passwords in addresses.
func (d *dockerfile) mask(args map[string]string) func(string) string {
	var values []string
	value := func(name, v string) {
		if secretName.MatchString(name) && len(v) <= maxWord {
			values = append(values, v)
		}
	}
	for name, v := range args {
		value(name, v)
	}
	optional := func(cmd *instructions.ArgCommand) {
		for _, a := range cmd.Args {
			value(a.Key, strings.Trim(a.ValueString(), `"'`))
		}
	}
	for i := range d.args {
		optional(&d.args[i])
	}
	for _, st := range d.stages {
		for _, cmd := range st.Commands {
			switch c := cmd.(type) {
			case *instructions.ArgCommand:
				optional(c)
			case *instructions.EnvCommand:
				for _, kv := range c.Env {
					value(kv.Key, strings.Trim(kv.Value, `"'`))
				}
			}
		}
	}
	m := pipeline.NewMasker(values...)
	return func(s string) string { return secretURL.ReplaceAllString(m.Mask(s), "${1}***@") }
}

// skipped reports whether the comments before an instruction ask not to be told
// of a rule, as BuildKit or hadolint has it.
func skipped(rule string, comments []string) bool {
	for _, c := range comments {
		c = strings.TrimSpace(strings.TrimLeft(c, "# \t"))
		if v, ok := strings.CutPrefix(c, "check="); ok && skips(v, rule) {
			return true
		}
		v, ok := strings.CutPrefix(c, "hadolint")
		if !ok {
			continue
		}
		v = strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(v), "global"))
		if list, ok := strings.CutPrefix(v, "ignore="); ok {
			for r := range strings.SplitSeq(list, ",") {
				if f := strings.Fields(r); len(f) > 0 && f[0] == rule {
					return true
				}
			}
		}
	}
	return false
}

// skips reports whether a check directive leaves a rule out.
func skips(directive, rule string) bool {
	c, err := linter.ParseLintOptions(directive)
	return err == nil && (c.SkipAll || slices.Contains(c.SkipRules, rule))
}
