//go:build linux

package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/dray-project/dray/pipeline"
)

// printer shows the story: a line for what is attempted, a mark for what is
// proved, and the output of builds a little back.
type printer struct {
	w                      io.Writer
	bold, dim, good, reset string
	began                  map[pipeline.Stage]time.Time
	steps                  map[string]bool
}

func newPrinter(w io.Writer, getenv func(string) string) *printer {
	p := &printer{w: w, began: map[pipeline.Stage]time.Time{}, steps: map[string]bool{}}
	if f, ok := w.(*os.File); ok && getenv("NO_COLOR") == "" && getenv("TERM") != "dumb" {
		if info, err := f.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
			p.bold, p.dim, p.good, p.reset = "\x1b[1m", "\x1b[2m", "\x1b[32m", "\x1b[0m"
		}
	}
	return p
}

func (p *printer) title(n int, title string) {
	fmt.Fprintf(p.w, "\n%s%d. %s%s\n", p.bold, n, title, p.reset)
}

func (p *printer) say(format string, args ...any) { fmt.Fprintf(p.w, "   "+format+"\n", args...) }

// proved says something that was checked.
func (p *printer) proved(format string, args ...any) {
	fmt.Fprintf(p.w, "   %s✓%s %s\n", p.good, p.reset, fmt.Sprintf(format, args...))
}

// command shows what somebody would type.
func (p *printer) command(line string) { fmt.Fprintf(p.w, "   %s$ %s%s\n", p.bold, line, p.reset) }

// chatter shows lines of programs, set back.
func (p *printer) chatter() io.Writer { return &indent{p: p} }

type indent struct {
	p       *printer
	partial string
}

func (i *indent) Write(b []byte) (int, error) {
	text := i.partial + strings.ReplaceAll(string(b), "\r", "\n")
	for {
		line, rest, ok := strings.Cut(text, "\n")
		if !ok {
			i.partial = text
			return len(b), nil
		}
		if text = rest; strings.TrimSpace(line) != "" {
			fmt.Fprintf(i.p.w, "     %s%s%s\n", i.p.dim, line, i.p.reset)
		}
	}
}

// event shows what happens in a run or a promotion.
func (p *printer) event(e pipeline.JobEvent) {
	switch {
	case e.Kind == pipeline.KindStage && e.State == "started":
		p.began[e.Stage] = e.Time
		clear(p.steps)
		p.say("%-8s …", e.Stage)
	case e.Kind == pipeline.KindStage:
		p.say("%-8s %s after %s %s", e.Stage, e.State, e.Time.Sub(p.began[e.Stage]).Round(10*time.Millisecond), e.Message)
	case e.Kind == pipeline.KindState && e.Message != "":
		p.say("%s: %s", e.State, e.Message)
	case e.Kind == pipeline.KindStep && e.Step.Completed != nil:
		// One line for each step of the Dockerfile is enough of a picture; dray run
		// logs has the rest.
		name := strings.Join(strings.Fields(e.Step.Name), " ")
		key := string(e.Step.Platform) + name
		if p.steps[key] || strings.HasPrefix(name, "[source]") || strings.HasPrefix(name, "[internal]") || strings.HasPrefix(name, "importing") {
			return
		}
		p.steps[key] = true
		if len(name) > 100 {
			name = name[:99] + "…"
		}
		took := ""
		if e.Step.Started != nil {
			took = e.Step.Completed.Sub(*e.Step.Started).Round(10 * time.Millisecond).String()
		}
		if e.Step.Cached {
			took = "cached"
		}
		fmt.Fprintf(p.w, "     %s%-12s %7s  %s%s\n", p.dim, e.Step.Platform, took, name, p.reset)
	case e.Kind == pipeline.KindLog && (e.Log.Step == "" || e.Log.Platform != ""):
		fmt.Fprintf(p.w, "     %s%-12s          %s%s\n", p.dim, e.Log.Platform, e.Log.Text, p.reset)
	}
}

func (p *printer) after(s *story) {
	fmt.Fprintf(p.w, `
%[1]sEverything was proved. The stack stays up.%[2]s To go on:

   . .demo/env
   bin/dray run list
   bin/dray image show "$DRAY_DIGEST"
   bin/dray environment list hello-go
   bin/dray promotion list --project hello-go
   bin/dray verify "$DRAY_PROD_REGISTRY/hello-go@$DRAY_DIGEST" --key "$DRAY_PUBLIC_KEY"
   git clone "$DRAY_GIT_URL/acme/hello-go.git" /tmp/hello-go   # change it, tag it v1.2.0, push the tag
   curl -H "Authorization: Bearer $DRAY_TOKEN" "$DRAY_URL/api/v1/images/$DRAY_DIGEST"

With the cosign that you have (or "make bin/cosign3"):

`, p.bold, p.reset)
	for _, c := range s.cosign {
		fmt.Fprintf(p.w, "   %s\n", c)
	}
	fmt.Fprint(p.w, "\n   make down         stops everything\n   make clean-demo   and removes the state\n")
}
