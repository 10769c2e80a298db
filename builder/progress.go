package builder

import (
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/moby/buildkit/client"
	digest "github.com/opencontainers/go-digest"

	"github.com/dray-project/dray/pipeline"
)

// Streams, as BuildKit counts them.
const (
	stdout = 1
	stderr = 2
)

const (
	maxLines    = 200_000  // lines of output that one build may store
	maxStepName = 1 << 10  // bytes
	tailLines   = 10       // last lines of a step that its error shows
	maxSteps    = 10_000   // steps that one solve may report
	maxRawLine  = 64 << 10 // bytes kept of a line before escapes are removed
)

// recorder turns BuildKit's status into steps and lines for one call. The cap
// on lines holds over all its streams.
type recorder struct {
	out pipeline.Progress

	mu    sync.Mutex
	lines int
	limit int
}

func newRecorder(out pipeline.Progress) *recorder { return &recorder{out: out, limit: maxLines} }

// stream is the status of one solve.
type stream struct {
	rec      *recorder
	platform pipeline.Platform

	mu    sync.Mutex
	steps map[digest.Digest]*step
}

type step struct {
	id   string
	name string
	sent pipeline.Step
	// out and err are joined over the borders of chunks, apart from each other.
	partial map[int]*partialLine
	tail    []string
}

type partialLine struct {
	text []byte
	lost bool // the rest of an overlong line is dropped
}

func (r *recorder) stream(platform pipeline.Platform) *stream {
	return &stream{rec: r, platform: platform, steps: map[digest.Digest]*step{}}
}

// note writes a line of Dray's own that belongs to no step.
func (r *recorder) note(platform pipeline.Platform, text string) {
	r.line(pipeline.Line{Platform: platform, Text: cleanLine(text)})
}

func (r *recorder) line(l pipeline.Line) {
	r.mu.Lock()
	r.lines++
	n := r.lines
	r.mu.Unlock()
	switch {
	case n <= r.limit:
		r.out.Line(l)
	case n == r.limit+1:
		r.out.Line(pipeline.Line{Platform: l.Platform, Text: fmt.Sprintf("[the output is longer than %d lines; the rest is not kept]", r.limit)})
	}
}

func (s *stream) update(status *client.SolveStatus) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range status.Vertexes {
		s.vertex(v)
	}
	for _, l := range status.Logs {
		st := s.step(l.Vertex)
		// What git prints to its callers is objects and hashes; what it tells
		// people goes to the other stream.
		if st == nil || l.Stream == stdout && strings.HasPrefix(st.name, sourceStep) {
			continue
		}
		s.data(st, l.Stream, l.Data)
	}
	for _, w := range status.Warnings {
		if st := s.step(w.Vertex); st != nil {
			s.emit(st, "warning: "+string(w.Short), false)
		}
	}
}

// step returns the step of a vertex, or nil when there are too many.
func (s *stream) step(d digest.Digest) *step {
	st, ok := s.steps[d]
	if ok || len(s.steps) >= maxSteps {
		return st
	}
	id := d.Encoded()
	if len(id) > 16 {
		id = id[:16]
	}
	if s.platform != "" {
		id = string(s.platform) + "/" + id
	}
	st = &step{id: id, partial: map[int]*partialLine{}}
	s.steps[d] = st
	return st
}

func (s *stream) vertex(v *client.Vertex) {
	st := s.step(v.Digest)
	if st == nil {
		return
	}
	if v.Name != "" {
		st.name = stepName(v.Name, s.platform)
	}
	now := pipeline.Step{
		ID: st.id, Platform: s.platform, Name: st.name,
		Started: utc(v.Started), Completed: utc(v.Completed), Cached: v.Cached,
		Error: tidyMessage(v.Error),
	}
	if now.Error != "" && strings.HasPrefix(st.name, "importing cache manifest from ") {
		// The first build of a platform has no cache, and no cache fails a build.
		why := "no cache is used: " + now.Error
		if strings.HasSuffix(now.Error, ": not found") {
			why = "there is no cache yet"
		}
		s.emit(st, why, false)
		now.Error = ""
	}
	if v.Completed != nil {
		s.flush(st)
	}
	if sameStep(st.sent, now) {
		return
	}
	st.sent = now
	s.rec.out.Step(now)
}

func utc(t *time.Time) *time.Time {
	if t == nil {
		return nil
	}
	u := t.UTC()
	return &u
}

func sameStep(a, b pipeline.Step) bool {
	same := func(x, y *time.Time) bool { return (x == nil) == (y == nil) && (x == nil || x.Equal(*y)) }
	return a.ID == b.ID && a.Name == b.Name && a.Cached == b.Cached && a.Error == b.Error &&
		same(a.Started, b.Started) && same(a.Completed, b.Completed)
}

// data takes a chunk of output and emits the lines that it completes.
func (s *stream) data(st *step, fd int, chunk []byte) {
	p := st.partial[fd]
	if p == nil {
		p = &partialLine{}
		st.partial[fd] = p
	}
	for len(chunk) > 0 {
		head, rest, ended := chunk, []byte(nil), false
		for i, c := range chunk {
			if c == '\n' {
				head, rest, ended = chunk[:i], chunk[i+1:], true
				break
			}
		}
		chunk = rest
		if room := maxRawLine - len(p.text); len(head) > room {
			head, p.lost = head[:room], true
		}
		p.text = append(p.text, head...)
		if ended {
			s.emit(st, string(p.text), p.lost)
			p.text, p.lost = p.text[:0], false
		}
	}
}

// flush emits lines that never got their end.
func (s *stream) flush(st *step) {
	for _, fd := range []int{stdout, stderr} {
		if p := st.partial[fd]; p != nil && len(p.text) > 0 {
			s.emit(st, string(p.text), p.lost)
			p.text, p.lost = nil, false
		}
	}
}

func (s *stream) emit(st *step, raw string, cut bool) {
	text := cleanLine(raw)
	if cut {
		text += cutMark
	}
	if len(st.tail) == tailLines {
		st.tail = append(st.tail[:0], st.tail[1:]...)
	}
	st.tail = append(st.tail, text)
	s.rec.line(pipeline.Line{Step: st.id, Platform: s.platform, Text: text})
}

// end flushes what a solve left behind.
func (s *stream) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.steps {
		s.flush(st)
	}
}

// failed returns the name and the last lines of a step.
func (s *stream) failed(d digest.Digest) (name string, tail []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.steps[d]; st != nil {
		return st.name, append([]string(nil), st.tail...)
	}
	return "", nil
}

var stepPlatform = regexp.MustCompile(`^\[([a-z0-9]+/[a-z0-9]+(?:/[a-z0-9]+)?(?:->[a-z0-9/]+)?) `)

// stepName takes the platform out of a step's name, where the step has it
// anyway: "[linux/arm64 build 2/3] RUN make" becomes "[build 2/3] RUN make".
// A step of another platform than the one that is built keeps its own.
func stepName(name string, platform pipeline.Platform) string {
	name = cleanLine(strings.ReplaceAll(name, "\n", " "))
	if m := stepPlatform.FindStringSubmatch(name); m != nil && m[1] == string(platform) {
		name = "[" + name[len(m[0]):]
	}
	return cutText(name, maxStepName)
}
