package builder

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
)

// Bounds on what BuildKit's checks are given. They fill in variables as a build
// does, here, in Dray's own process: thirty lines of ENV A=$A$A would otherwise
// be a gigabyte.
const (
	maxLintCommands  = 2000
	maxLintVariables = 2000
	maxLintName      = 128      // bytes of a variable's name
	maxLintValue     = 64 << 10 // bytes that one value may grow to
	maxLintTotal     = 16 << 20 // bytes that all of them may grow to
	maxLintGuesses   = 1 << 20  // pairs of an unknown variable and a known one
	maxLintNested    = 100      // default values within default values
)

var (
	variable     = regexp.MustCompile(`\$\{?([A-Za-z_][A-Za-z0-9_]*)`)
	substitution = regexp.MustCompile(`\$\{[^}/]*/`)
)

// lintable returns an error if filling in the Dockerfile's variables could take
// more than is sensible. It counts what could become of each text at most, and
// fills in nothing.
func (d *dockerfile) lintable(args map[string]string, bases lintBases) error {
	c := &lintCost{}
	global := sizes{}
	for name, v := range args {
		global[name] = len(v)
	}
	for i := range d.args {
		if err := c.args(&d.args[i], global, args); err != nil {
			return c.at(d, lineOf(d.args[i].Location()), err)
		}
	}
	// A stage may start from any that is before it, and is counted as starting
	// from all of them.
	all := sizes{"PATH": 256}
	for name, n := range global {
		all[name] = n
	}
	for name := range bases {
		config, _ := bases.config(name)
		for _, kv := range config.Config.Env {
			k, v, _ := strings.Cut(kv, "=")
			all[k] = max(all[k], len(v))
		}
	}
	for _, st := range d.stages {
		if err := c.text(st.BaseName+st.Platform, global); err != nil {
			return c.at(d, lineOf(st.Location), err)
		}
		declared := 0 // bytes of build arguments, which the history of each RUN repeats
		for _, cmd := range st.Commands {
			if err := c.command(cmd, all, args, &declared); err != nil {
				return c.at(d, lineOf(cmd.Location()), err)
			}
		}
	}
	return nil
}

// sizes are how long the values of variables are at most, in bytes.
type sizes map[string]int

type lintCost struct {
	commands, total, guesses int
}

func (*lintCost) at(d *dockerfile, line int, err error) error {
	return fmt.Errorf("%s:%d: buildkit's checks are left out: %w", d.name, line, err)
}

func (c *lintCost) command(cmd instructions.Command, known sizes, args map[string]string, declared *int) error {
	if c.commands++; c.commands > maxLintCommands {
		return fmt.Errorf("there are more than %d instructions", maxLintCommands)
	}
	text := fmt.Sprint(cmd)
	switch cmd := cmd.(type) {
	case *instructions.EnvCommand:
		for _, kv := range cmd.Env {
			if err := c.set(kv.Key, kv.Value, known); err != nil {
				return err
			}
		}
	case *instructions.ArgCommand:
		before := c.total
		if err := c.args(cmd, known, args); err != nil {
			return err
		}
		*declared += c.total - before
	case *instructions.RunCommand:
		for _, f := range cmd.Files {
			text += f.Data
		}
		c.total += *declared
	case *instructions.CopyCommand:
		for _, f := range cmd.SourceContents {
			text += f.Data
		}
	case *instructions.AddCommand:
		for _, f := range cmd.SourceContents {
			text += f.Data
		}
	}
	return c.text(text, known)
}

func (c *lintCost) args(cmd *instructions.ArgCommand, known sizes, args map[string]string) error {
	for _, a := range cmd.Args {
		value := a.ValueString()
		if given, ok := args[a.Key]; ok && len(given) > len(value) {
			if err := c.set(a.Key, given, known); err != nil {
				return err
			}
		}
		if err := c.set(a.Key, value, known); err != nil {
			return err
		}
	}
	return nil
}

func (c *lintCost) set(name, value string, known sizes) error {
	if len(name) > maxLintName {
		return fmt.Errorf("a variable's name is longer than %d bytes", maxLintName)
	}
	n, err := c.grown(value, known)
	if err != nil {
		return err
	}
	if n > maxLintValue {
		return fmt.Errorf("the value of %s can grow past %d bytes", name, maxLintValue)
	}
	// It may be set by one stage and read by another that did not start from it.
	known[name] = max(known[name], n)
	if len(known) > maxLintVariables {
		return fmt.Errorf("there are more than %d variables", maxLintVariables)
	}
	return nil
}

func (c *lintCost) text(text string, known sizes) error {
	_, err := c.grown(text, known)
	return err
}

// grown is how long a text is at most when its variables are filled in.
func (c *lintCost) grown(text string, known sizes) (int, error) {
	n := len(text)
	depth := 0
	for i := range n {
		switch {
		case text[i] == '{' && i > 0 && text[i-1] == '$':
			depth++
		case text[i] == '}' && depth > 0:
			depth--
		}
		// Each is a level of recursion, and a stack that overflows ends the process.
		if depth > maxLintNested {
			return 0, fmt.Errorf("variables are nested deeper than %d", maxLintNested)
		}
	}
	for _, m := range variable.FindAllStringSubmatchIndex(text, -1) {
		name := text[m[2]:m[3]]
		if len(name) > maxLintName {
			return 0, fmt.Errorf("a variable's name is longer than %d bytes", maxLintName)
		}
		n += known[name]
		// Each that is not known is compared with all that are.
		if c.guesses += len(known); c.guesses > maxLintGuesses {
			return 0, fmt.Errorf("there are too many variables in it")
		}
		if n > maxLintTotal {
			break
		}
	}
	if substitution.MatchString(text) && n <= maxLintTotal {
		n *= n // ${A//a/$B} puts one into the other
	}
	if c.total += min(n, maxLintTotal+1); c.total > maxLintTotal {
		return 0, fmt.Errorf("with its variables filled in, it can grow past %d bytes", maxLintTotal)
	}
	return n, nil
}
