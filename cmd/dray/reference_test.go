package main

import (
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

//go:generate go test -run TestReference -update .

// TestReference keeps docs/reference/cli.md as the commands are.
func TestReference(t *testing.T) {
	a := &app{getenv: func(string) string { return "" }, stdout: io.Discard, stderr: io.Discard, now: time.Now}
	root := a.root()
	var b strings.Builder
	b.WriteString("# The `dray` command line\n\n<!-- Written by `go generate ./cmd/dray`; do not edit. -->\n\n")
	b.WriteString(paragraphs(root.Long))
	b.WriteString("\n## Flags of every command\n\n")
	b.WriteString(flagTable(root.PersistentFlags()))
	b.WriteString("\n## Commands\n\n")
	all := commands(root)
	for _, c := range all {
		fmt.Fprintf(&b, "- [`%s`](#%s): %s\n", c.CommandPath(), strings.ReplaceAll(c.CommandPath(), " ", "-"), c.Short)
	}
	for _, c := range all {
		describe(&b, c)
	}
	golden(t, filepath.Join("..", "..", "docs", "reference", "cli.md"), b.String())

	for _, c := range all {
		if c.Example == "" && c.Name() != "completion" && c.Parent().Name() != "completion" {
			t.Errorf("%s has no example", c.CommandPath())
		}
	}
}

// commands lists the commands that do something, in their order.
func commands(c *cobra.Command) []*cobra.Command {
	var out []*cobra.Command
	for _, sub := range c.Commands() {
		switch {
		case sub.Hidden || sub.Name() == "help":
		case sub.HasSubCommands() && sub.Name() != "completion":
			out = append(out, commands(sub)...)
		default:
			out = append(out, sub)
		}
	}
	return out
}

func describe(b *strings.Builder, c *cobra.Command) {
	fmt.Fprintf(b, "\n### %s\n\n", c.CommandPath())
	if c.Name() == "completion" {
		b.WriteString("Print a completion script for bash, fish, powershell or zsh; `dray completion SHELL --help` says how to load it.\n")
		return
	}
	long := c.Long
	if long == "" {
		long = c.Short + "."
	}
	b.WriteString(paragraphs(long))
	fmt.Fprintf(b, "\n```\n%s\n```\n", c.UseLine())
	if table := flagTable(c.LocalNonPersistentFlags()); table != "" {
		b.WriteString("\n" + table)
	}
	if c.Example != "" {
		var lines []string
		for line := range strings.Lines(c.Example) {
			lines = append(lines, strings.TrimPrefix(strings.TrimRight(line, "\n"), "  "))
		}
		fmt.Fprintf(b, "\n```sh\n%s\n```\n", strings.Join(lines, "\n"))
	}
}

// paragraphs turns help text into Markdown: what is indented is a block.
func paragraphs(text string) string {
	var b strings.Builder
	block := false
	for line := range strings.Lines(text + "\n") {
		line = strings.TrimRight(line, "\n")
		indented := strings.HasPrefix(line, "  ")
		switch {
		case indented && !block:
			b.WriteString("\n```\n")
			block = true
		case !indented && block:
			b.WriteString("```\n")
			block = false
		}
		b.WriteString(strings.TrimPrefix(line, "  ") + "\n")
	}
	if block {
		b.WriteString("```\n")
	}
	return strings.TrimRight(b.String(), "\n") + "\n"
}

func flagTable(flags *pflag.FlagSet) string {
	var rows []string
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		name := "`--" + f.Name
		if kind, _ := pflag.UnquoteUsage(f); kind != "" {
			name += " " + kind
		}
		name += "`"
		if f.Shorthand != "" {
			name = "`-" + f.Shorthand + "`, " + name
		}
		usage := f.Usage
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "0s" && f.DefValue != "[]" {
			usage += fmt.Sprintf(" (default %s)", f.DefValue)
		}
		rows = append(rows, fmt.Sprintf("| %s | %s |", name, usage))
	})
	if len(rows) == 0 {
		return ""
	}
	return "| flag | meaning |\n|---|---|\n" + strings.Join(rows, "\n") + "\n"
}
