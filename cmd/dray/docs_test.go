package main

import (
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestDocumentedCommands: the commands that pages show exist, with those flags.
func TestDocumentedCommands(t *testing.T) {
	words := regexp.MustCompile(`"[^"]*"|[^\s"]+`)
	for _, page := range []string{"promotion.md", "registries.md", "audit.md", "reference/project.md", "reference/vex.md", "reference/log.md", "evidence.md"} {
		raw, err := os.ReadFile(filepath.Join("..", "..", "docs", page))
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, m := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(string(raw), -1) {
			for line := range strings.Lines(strings.ReplaceAll(m[1], "\\\n", " ")) {
				line, _, _ = strings.Cut(line, "  #")
				_, rest, ok := strings.Cut(" "+strings.ReplaceAll(line, "$(", " "), " dray ")
				if !ok {
					continue
				}
				rest = strings.TrimRight(strings.TrimSpace(rest), ")")
				var args []string
				for _, w := range words.FindAllString(rest, -1) {
					if w == ">" || w == "|" {
						break
					}
					args = append(args, strings.Trim(w, `"`))
				}
				a := &app{getenv: func(string) string { return "" }, stdout: io.Discard, stderr: io.Discard, now: time.Now}
				cmd, left, err := a.root().Find(args)
				if err == nil {
					err = cmd.ParseFlags(left)
				}
				if err == nil && cmd.HasSubCommands() {
					err = usage("%s needs a command", cmd.CommandPath())
				}
				if err == nil && cmd.Args != nil {
					err = cmd.Args(cmd, cmd.Flags().Args())
				}
				if err != nil {
					t.Errorf("%s: %s: %v", page, strings.TrimSpace(line), err)
				}
				n++
			}
		}
		t.Logf("%s: %d commands", page, n)
		if page == "promotion.md" && n < 15 {
			t.Errorf("only %d commands were found in %s", n, page)
		}
	}
}
