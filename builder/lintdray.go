package builder

import (
	"fmt"
	"path"
	"strings"

	"github.com/distribution/reference"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/patternmatcher"

	"github.com/dray-project/dray/pipeline"
)

// Dray's own checks have the numbers that hadolint gave to the same advice.
const (
	ruleRootUser      = "DL3002"
	ruleUntagged      = "DL3006"
	ruleLatest        = "DL3007"
	ruleUnpinnedApt   = "DL3008"
	ruleAptLists      = "DL3009"
	ruleAptRecommends = "DL3015"
	ruleAddForCopy    = "DL3020"
	ruleNoHealthcheck = "DL3057"
	rulePipefail      = "DL4006"
)

const (
	maxLintMatches = 200_000
	maxReported    = 10 * maxFindings // before they are sorted and cut
)

// inspection is one Dockerfile under Dray's checks.
type inspection struct {
	d     *dockerfile
	g     *graph
	bases lintBases
	// ignore are the patterns of files that stay out of the context, or nil.
	ignore *patternmatcher.PatternMatcher
	// matches is how many patterns may still be tried: a repository brings both
	// the patterns and the paths.
	matches int
	// directive is what the Dockerfile's first lines say of checks.
	directive string
	found     []pipeline.LintFinding
}

func (d *dockerfile) lintDray(g *graph, p pipeline.Plan, bases lintBases) []pipeline.LintFinding {
	c := &inspection{d: d, g: g, bases: bases, matches: maxLintMatches}
	c.directive, _, _, _ = parser.ParseDirective("check", d.data)
	if m, err := patternmatcher.New(p.Ignore); err == nil && len(p.Ignore) > 0 && !m.Exclusions() {
		c.ignore = m // with exceptions, what is ignored cannot be told from here
	}
	shells := make([]bool, len(d.stages)) // whether a pipe's failure counts at a stage's end
	for i, st := range d.stages {
		c.from(i, st)
		for _, cmd := range st.Commands {
			switch cmd := cmd.(type) {
			case *instructions.AddCommand:
				c.add(cmd)
				c.ignored(cmd, "Add", cmd.SourcePaths)
			case *instructions.CopyCommand:
				if cmd.From == "" {
					c.ignored(cmd, "Copy", cmd.SourcePaths)
				}
			}
		}
		shells[i] = c.pipes(i, st, shells)
	}
	final := c.chain()
	for i, st := range d.stages {
		for _, cmd := range st.Commands {
			if run, ok := cmd.(*instructions.RunCommand); ok {
				c.apt(run, final[i])
			}
		}
	}
	c.user()
	c.healthcheck()
	return c.found
}

func (c *inspection) report(rule string, cmd instructions.Command, format string, args ...any) {
	c.reportAt(rule, lineOf(cmd.Location()), cmd.Comments(), format, args...)
}

func (c *inspection) reportAt(rule string, line int, comments []string, format string, args ...any) {
	if len(c.found) < maxReported && !skips(c.directive, rule) && !skipped(rule, comments) {
		c.found = append(c.found, pipeline.LintFinding{Rule: rule, Line: line, Detail: fmt.Sprintf(format, args...)})
	}
}

// chain are the stages whose layers are in the image that is built.
func (c *inspection) chain() map[int]bool {
	out := map[int]bool{}
	for i := c.g.goal; i >= 0 && !out[i]; i = c.g.from[i] {
		out[i] = true
	}
	return out
}

// from checks how a base image is named.
func (c *inspection) from(i int, st instructions.Stage) {
	if c.g.from[i] >= 0 || strings.EqualFold(c.g.names[i], "scratch") {
		return
	}
	named, err := reference.ParseNormalizedNamed(c.g.names[i])
	if err != nil {
		return
	}
	if _, pinned := named.(reference.Digested); pinned {
		return
	}
	line := lineOf(st.Location)
	switch tagged, ok := named.(reference.Tagged); {
	case !ok:
		c.reportAt(ruleUntagged, line, st.Comments, "The base image %s has no tag and no digest", st.BaseName)
	case tagged.Tag() == "latest":
		c.reportAt(ruleLatest, line, st.Comments, "The base image %s is whatever is latest when it is built", st.BaseName)
	}
}

// add checks that ADD does what COPY cannot.
func (c *inspection) add(cmd *instructions.AddCommand) {
	for _, src := range cmd.SourcePaths {
		name := strings.ToLower(src)
		archive := strings.Contains(name, ".tar")
		for _, end := range []string{".tgz", ".tbz", ".tbz2", ".txz", ".tzst", ".gz", ".bz2", ".xz", ".zst", ".z"} {
			archive = archive || strings.HasSuffix(name, end)
		}
		remote := strings.Contains(name, "://") || strings.HasPrefix(name, "git@")
		if !archive && !remote && !strings.Contains(src, "$") {
			c.report(ruleAddForCopy, cmd, "ADD copies %q, which is no archive and no address", src)
			return
		}
	}
}

// ignored is BuildKit's own check, which needs a build context where it runs.
func (c *inspection) ignored(cmd instructions.Command, verb string, sources []string) {
	if c.ignore == nil {
		return
	}
	for _, src := range sources {
		if strings.Contains(src, "://") || strings.HasPrefix(src, "git@") || strings.Contains(src, "$") {
			continue
		}
		if c.matches -= len(c.ignore.Patterns()); c.matches < 0 {
			return
		}
		src = strings.TrimPrefix(path.Clean("/"+src), "/")
		hit, err := false, error(nil)
		if src == "" {
			for _, p := range c.ignore.Patterns() {
				hit = hit || p.String() == "*" || p.String() == "**" || p.String() == "**/*"
			}
		} else {
			hit, err = c.ignore.MatchesOrParentMatches(src)
		}
		if err == nil && hit {
			c.report(linter.RuleCopyIgnoredFile.Name, cmd, "%s", linter.RuleCopyIgnoredFile.Format(verb, src))
		}
	}
}

// pipes checks that the failure of a program in a pipe is not lost, and returns
// whether the stage leaves behind a shell that sees to it.
func (c *inspection) pipes(i int, st instructions.Stage, before []bool) bool {
	safe := false
	if from := c.g.from[i]; from >= 0 {
		safe = before[from]
	} else if base, ok := c.bases.config(c.g.names[i]); ok {
		safe = pipefail(base.Config.Shell)
	}
	for _, cmd := range st.Commands {
		switch cmd := cmd.(type) {
		case *instructions.ShellCommand:
			safe = pipefail(cmd.Shell)
		case *instructions.RunCommand:
			text, ok := script(cmd)
			if safe || !ok || strings.Contains(text, "pipefail") {
				continue
			}
			for _, s := range simpleCommands(text) {
				if s.piped {
					c.report(rulePipefail, cmd, "The failure of %s, which is piped on, is not noticed", program(s.words))
					break
				}
			}
		}
	}
	return safe
}

// pipefail reports whether a SHELL stops at a failure within a pipe, or has
// other rules than the usual shells.
func pipefail(shell []string) bool {
	if len(shell) == 0 {
		return false
	}
	switch strings.TrimSuffix(strings.ToLower(path.Base(strings.ReplaceAll(shell[0], `\`, "/"))), ".exe") {
	case "powershell", "pwsh", "cmd":
		return true
	}
	return strings.Contains(strings.Join(shell[1:], " "), "pipefail")
}

// apt checks the use of Debian's package manager.
func (c *inspection) apt(cmd *instructions.RunCommand, final bool) {
	commands, text := commandsOf(cmd)
	updates := false
	unpinned := map[string]bool{}
	var names []string
	recommends := false
	for _, s := range commands {
		call, ok := aptCall(s.words)
		if !ok {
			continue
		}
		updates = updates || call.verb == "update"
		if call.verb != "install" {
			continue
		}
		recommends = recommends || len(call.packages) > 0 && !call.lean
		for _, p := range call.packages {
			if plainPackage(p) && !unpinned[p] {
				unpinned[p] = true
				names = append(names, p)
			}
		}
	}
	if len(names) > 0 {
		more := ""
		if len(names) > 10 {
			names, more = names[:10], " and others"
		}
		c.report(ruleUnpinnedApt, cmd, "Packages are installed in whatever version there is: %s%s", strings.Join(names, ", "), more)
	}
	if recommends {
		c.report(ruleAptRecommends, cmd, "Packages that are only recommended are installed too")
	}
	if updates && final && !strings.Contains(text, "/var/lib/apt/lists") && !cachesApt(cmd) {
		c.report(ruleAptLists, cmd, "The package lists that apt-get update fetched stay in the layer")
	}
}

func cachesApt(cmd *instructions.RunCommand) bool {
	// Until it is expanded, a mount is not more than where it comes from.
	if err := cmd.Expand(func(word string) (string, error) { return word, nil }); err != nil {
		return false
	}
	for _, m := range instructions.GetMounts(cmd) {
		switch path.Clean("/" + m.Target) {
		case "/var/lib/apt", "/var/lib/apt/lists", "/var/lib", "/var":
			return m.Type == instructions.MountTypeCache || m.Type == instructions.MountTypeTmpfs
		}
	}
	return false
}

// user checks who the image's process starts as, as far as the Dockerfile says.
func (c *inspection) user() {
	seen := map[int]bool{}
	for i := c.g.goal; i >= 0 && !seen[i]; i = c.g.from[i] {
		seen[i] = true
		commands := c.d.stages[i].Commands
		for n := len(commands) - 1; n >= 0; n-- {
			if u, ok := commands[n].(*instructions.UserCommand); ok {
				if name, _, _ := strings.Cut(u.User, ":"); name == "root" || name == "0" {
					c.report(ruleRootUser, u, "The last USER is root")
				}
				return
			}
		}
	}
}

// healthcheck checks that there is one, here or in the base image.
func (c *inspection) healthcheck() {
	last := -1
	seen := map[int]bool{}
	for i := c.g.goal; i >= 0 && !seen[i]; i = c.g.from[i] {
		seen[i], last = true, i
		for _, cmd := range c.d.stages[i].Commands {
			if _, ok := cmd.(*instructions.HealthCheckCommand); ok {
				return
			}
		}
	}
	if base, ok := c.bases.config(c.g.names[last]); ok {
		if h := base.Config.Healthcheck; h != nil && len(h.Test) > 0 {
			return
		}
	}
	st := c.d.stages[c.g.goal]
	c.reportAt(ruleNoHealthcheck, lineOf(st.Location), st.Comments, "The image has no health check")
}
