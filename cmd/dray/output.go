package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/dray-project/dray/pipeline"
)

// formats are the values of --output.
var formats = []string{"table", "json", "yaml", "name"}

// print writes v as --output says; table and names are called for theirs.
func (a *app) print(v any, table func(*writer), names func() []string) error {
	switch a.output {
	case "name":
		for _, n := range names() {
			if _, err := fmt.Fprintln(a.stdout, clean(n)); err != nil {
				return err
			}
		}
		return nil
	case "json":
		enc := json.NewEncoder(a.stdout)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	case "yaml":
		return writeYAML(a.stdout, v)
	}
	w := a.writer(a.stdout)
	table(w)
	_, err := a.stdout.Write(w.buf.Bytes())
	return err
}

// writeYAML writes what the JSON would be, its members in the same order.
func writeYAML(out io.Writer, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var node yaml.Node
	if err := yaml.Unmarshal(raw, &node); err != nil {
		return err
	}
	plainStyle(&node)
	enc := yaml.NewEncoder(out)
	enc.SetIndent(2)
	if err := enc.Encode(&node); err != nil {
		return err
	}
	return enc.Close()
}

// plainStyle drops the braces and quotes that JSON brought along; the encoder
// puts quotes back where a string would read as something else.
func plainStyle(n *yaml.Node) {
	n.Style = 0
	for _, c := range n.Content {
		plainStyle(c)
	}
}

// writer collects text for people.
type writer struct {
	buf   bytes.Buffer
	color bool
	now   time.Time
}

// writer returns a writer whose colours suit the destination.
func (a *app) writer(out io.Writer) *writer {
	color := !a.noColor && a.getenv("NO_COLOR") == "" && a.getenv("TERM") != "dumb" && terminal(out)
	return &writer{color: color, now: a.now()}
}

func terminal(out io.Writer) bool {
	f, ok := out.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

func (w *writer) printf(format string, args ...any) { fmt.Fprintf(&w.buf, format, args...) }

// cell is text with a colour.
type cell struct {
	text  string
	color string // an SGR parameter: "32"
}

const (
	green  = "32"
	red    = "31"
	yellow = "33"
	cyan   = "36"
	faint  = "2"
	bold   = "1"
)

func (w *writer) paint(c cell) string {
	if !w.color || c.color == "" || c.text == "" {
		return c.text
	}
	return "\x1b[" + c.color + "m" + c.text + "\x1b[0m"
}

// text is a cell without colour.
func text(s string) cell { return cell{text: oneLine(s)} }

// oneLine is clean, and without line ends: a table's row is one line.
func oneLine(s string) string { return strings.ReplaceAll(clean(s), "\n", " ") }

// stateCell colours a state of a run, a promotion or a stage.
func stateCell(state string) cell {
	colors := map[string]string{"succeeded": green, "failed": red, "refused": yellow, "running": cyan, "started": cyan, "queued": faint,
		"waiting": cyan, "cancelled": faint, "superseded": faint}
	return cell{clean(state), colors[state]}
}

// table writes rows under a head, the columns two spaces apart; the last
// column is not padded.
func (w *writer) table(head []string, rows [][]cell) {
	all := make([][]cell, 0, len(rows)+1)
	if head != nil {
		var h []cell
		for _, name := range head {
			h = append(h, cell{name, bold})
		}
		all = append(all, h)
	}
	all = append(all, rows...)
	var widths []int
	for _, row := range all {
		for i, c := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(c.text))
		}
	}
	for _, row := range all {
		for len(row) > 0 && row[len(row)-1].text == "" {
			row = row[:len(row)-1]
		}
		for i, c := range row {
			w.buf.WriteString(w.paint(c))
			if i < len(row)-1 {
				w.buf.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c.text)+2))
			}
		}
		w.buf.WriteByte('\n')
	}
}

// facts writes names and values, leaving out those without a value.
func (w *writer) facts(pairs ...any) {
	var rows [][]cell
	for i := 0; i+1 < len(pairs); i += 2 {
		value, ok := pairs[i+1].(cell)
		if !ok {
			value = text(fmt.Sprint(pairs[i+1]))
		}
		if value.text != "" {
			rows = append(rows, []cell{{fmt.Sprint(pairs[i]), faint}, value})
		}
	}
	w.table(nil, rows)
}

// clean keeps text from elsewhere from steering the terminal: a branch can be
// named as its author likes.
func clean(s string) string {
	s = strings.ToValidUTF8(s, "")
	if strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) && r != '\n' }) < 0 {
		return s
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || unicode.IsPrint(r):
			return r
		case r == '\t':
			return ' '
		}
		return -1
	}, s)
}

// duration is how long something took, for people: 0.3s, 12s, 3m05s, 2h10m.
func duration(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	}
	return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
}

// took is the time from start to end; for what is not over yet, until now.
func (w *writer) took(start, end *time.Time) string {
	switch {
	case start == nil || start.IsZero():
		return ""
	case end == nil:
		return duration(w.now.Sub(*start))
	}
	return duration(end.Sub(*start))
}

// age is how long ago t was.
func (w *writer) age(t time.Time) string {
	d := w.now.Sub(t)
	switch {
	case t.IsZero():
		return ""
	case d < 48*time.Hour:
		return duration(d.Round(time.Second)) + " ago"
	}
	return t.UTC().Format("2006-01-02")
}

// when is a moment to the second, with its zone.
func when(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02 15:04:05 MST")
}

// shortRef is a branch or tag without its prefix.
func shortRef(ref string) string {
	if tag, ok := strings.CutPrefix(ref, "refs/tags/"); ok {
		return tag
	}
	return strings.TrimPrefix(ref, "refs/heads/")
}

func shortCommit(sha string) string { return sha[:min(len(sha), 12)] }

func plural(n int, one, many string) string {
	if n == 1 {
		return fmt.Sprintf("%d %s", n, one)
	}
	return fmt.Sprintf("%d %s", n, many)
}

func platformNames(platforms []pipeline.Platform) string {
	var names []string
	for _, p := range platforms {
		names = append(names, string(p))
	}
	return strings.Join(names, ", ")
}
