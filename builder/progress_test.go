package builder

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	digest "github.com/opencontainers/go-digest"
)

func TestStepName(t *testing.T) {
	for _, c := range []struct{ in, platform, want string }{
		{"[linux/amd64 build 2/3] RUN make", "linux/amd64", "[build 2/3] RUN make"},
		{"[linux/arm/v7 2/3] RUN make", "linux/arm/v7", "[2/3] RUN make"},
		{"[linux/amd64 build 2/3] RUN make", "linux/arm64", "[linux/amd64 build 2/3] RUN make"},
		{"[linux/amd64->arm64 build 2/3] RUN make", "linux/arm64", "[linux/amd64->arm64 build 2/3] RUN make"},
		{"[build 2/3] RUN make", "linux/amd64", "[build 2/3] RUN make"},
		{"[internal] load build definition", "", "[internal] load build definition"},
		{"[1/1] RUN a\nb\x1b[31m", "", "[1/1] RUN a b"},
	} {
		if got := stepName(c.in, platformOf(c.platform)); got != c.want {
			t.Errorf("%q on %q: got %q, want %q", c.in, c.platform, got, c.want)
		}
	}
	if got := stepName(strings.Repeat("x", 5000), ""); len(got) > maxStepName {
		t.Errorf("%d bytes", len(got))
	}
}

func TestStreamSteps(t *testing.T) {
	out := &progress{}
	st := newRecorder(out).stream("linux/amd64")
	d := digest.FromString("v")
	begin, end := time.Unix(1, 0), time.Unix(2, 0)
	update := func(v client.Vertex) {
		v.Digest = d
		st.update(&client.SolveStatus{Vertexes: []*client.Vertex{&v}})
	}
	update(client.Vertex{Name: "[linux/amd64 1/2] RUN x"})
	update(client.Vertex{Name: "[linux/amd64 1/2] RUN x"}) // nothing new
	update(client.Vertex{Name: "[linux/amd64 1/2] RUN x", Started: &begin})
	again := begin
	update(client.Vertex{Name: "[linux/amd64 1/2] RUN x", Started: &again}) // nothing new
	update(client.Vertex{Name: "[linux/amd64 1/2] RUN x", Started: &begin, Completed: &end, Error: "\x1b[31mbroken"})
	if len(out.steps) != 3 {
		t.Fatalf("%d steps: %s", len(out.steps), out.text())
	}
	last := out.steps[2]
	if last.Name != "[1/2] RUN x" || last.Platform != "linux/amd64" || last.Error != "broken" || !last.Started.Equal(begin) || !last.Completed.Equal(end) || !strings.HasPrefix(last.ID, "linux/amd64/") {
		t.Errorf("step is %s", asJSON(t, last))
	}
}

func TestStreamLines(t *testing.T) {
	out := &progress{}
	st := newRecorder(out).stream("linux/amd64")
	d := digest.FromString("v")
	say := func(fd int, text string) {
		st.update(&client.SolveStatus{Logs: []*client.VertexLog{{Vertex: d, Stream: fd, Data: []byte(text)}}})
	}
	say(1, "one\ntw")
	say(2, "err")
	say(1, "o\nthr\x1b[3")
	say(1, "1mee\n\nfo\xc3")
	say(2, "or\n")
	say(1, "\xa9ur") // the second byte of é
	st.end()
	var got []string
	for _, l := range out.lines {
		got = append(got, l.Text)
	}
	if want := "one|two|three||error|fo\u00e9ur"; strings.Join(got, "|") != want {
		t.Errorf("got %q, want %q", strings.Join(got, "|"), want)
	}
	// A line without an end is not kept in memory for ever.
	for range 100 {
		say(1, strings.Repeat("y", 10_000))
	}
	say(1, "\nnext\n")
	n := len(out.lines)
	if long := out.lines[n-2].Text; len(long) > maxLine+len(cutMark) || !strings.HasSuffix(long, cutMark) || out.lines[n-1].Text != "next" {
		t.Errorf("%d bytes, then %q", len(long), out.lines[n-1].Text)
	}
}

func TestStreamLimits(t *testing.T) {
	out := &progress{}
	rec := newRecorder(out)
	rec.limit = 10
	st, other := rec.stream("linux/amd64"), rec.stream("linux/arm64")
	for i := range 20 {
		for _, s := range []*stream{st, other} {
			s.update(&client.SolveStatus{Logs: []*client.VertexLog{{Vertex: digest.FromString("v"), Stream: 1, Data: []byte(fmt.Sprintf("%d\n", i))}}})
		}
	}
	if len(out.lines) != 11 || !strings.Contains(out.lines[10].Text, "longer than 10 lines") {
		t.Errorf("%d lines, the last is %q", len(out.lines), out.lines[len(out.lines)-1].Text)
	}
	_, tail := st.failed(digest.FromString("v"))
	if len(tail) != tailLines || tail[tailLines-1] != "19" {
		t.Errorf("the last lines are lost: %q", tail)
	}
}

func TestStreamCacheImport(t *testing.T) {
	out := &progress{}
	st := newRecorder(out).stream("linux/amd64")
	now := time.Unix(1, 0)
	st.update(&client.SolveStatus{Vertexes: []*client.Vertex{{
		Digest: digest.FromString("c"), Name: "importing cache manifest from r/x:cache", Started: &now, Completed: &now, Error: "not found",
	}}})
	if len(out.steps) != 1 || out.steps[0].Error != "" || len(out.lines) != 1 || !strings.Contains(out.lines[0].Text, "not found") {
		t.Errorf("%s", out.text())
	}
}
