package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/ledger"
)

// shelf keeps artefacts.
type shelf struct {
	tags map[string]string
	fail error
}

func (s *shelf) PushArtifact(_ context.Context, repository, tag, mediaType string, body []byte) error {
	if s.fail == nil {
		s.tags[repository+":"+tag+" "+mediaType] = string(body)
	}
	return s.fail
}

func (s *shelf) PullArtifact(_ context.Context, repository, tag, mediaType string) ([]byte, error) {
	body, ok := s.tags[repository+":"+tag+" "+mediaType]
	if !ok && s.fail == nil {
		return nil, fmt.Errorf("%s: %w", tag, pipeline.ErrNotFound)
	}
	return []byte(body), s.fail
}

func TestPublish(t *testing.T) {
	w := newWorld(t)
	file := filepath.Join(t.TempDir(), "checkpoints")
	s := &shelf{tags: map[string]string{}}
	turns := 0
	c := ledger.PublisherConfig{Storage: w.Memory, Keys: w.keys, File: file, Repository: "r.example/log", Artifacts: s, Log: slog.New(slog.DiscardHandler),
		Turn: func(_ context.Context, _ string, every time.Duration) (bool, error) {
			turns++
			return every == time.Minute, nil
		}}
	newPublisher := func() *ledger.Publisher {
		p, err := ledger.NewPublisher(c)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	p := newPublisher()
	if err := p.Once(t.Context()); err != nil {
		t.Fatalf("before there is anything: %v", err)
	}
	w.grow(3)
	for range 3 {
		if err := p.Once(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	w.grow(9)
	s.fail = errors.New("the registry is away")
	if err := p.Once(t.Context()); !errors.Is(err, s.fail) || errors.Is(err, pipeline.ErrUnverified) {
		t.Errorf("%v", err)
	}
	s.fail = nil
	if err := p.Once(t.Context()); err != nil {
		t.Fatal(err)
	}
	all, err := ledger.ReadCheckpoints(file)
	if err != nil || len(all) != 2 {
		t.Fatalf("the file has %d checkpoints, %v", len(all), err)
	}
	now := string(w.checkpoint())
	const at = "r.example/log:"
	if len(s.tags) != 3 || s.tags[at+"latest "+ledger.MediaCheckpoint] != now || s.tags[at+"checkpoint-9 "+ledger.MediaCheckpoint] != now || s.tags[at+"checkpoint-3 "+ledger.MediaCheckpoint] != string(all[0]) {
		t.Errorf("the registry has %v", s.tags)
	}
	if p.Status().Size != 9 || p.Status().Rewritten || turns != 3 {
		t.Errorf("status %+v after %d turns", p.Status(), turns)
	}
	if f, err := w.follow(all...); err != nil || f.Consistent != 2 {
		t.Errorf("%+v, %v", f, err)
	}

	// A line that a crash has cut off is no harm.
	half, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := half.WriteString(`{"publishedAt":"20`); err != nil {
		t.Fatal(err)
	}
	if err := half.Close(); err != nil {
		t.Fatal(err)
	}
	p = newPublisher()
	w.grow(10)
	if err := p.Once(t.Context()); err != nil {
		t.Fatal(err)
	}
	if all, err = ledger.ReadCheckpoints(file); err != nil || len(all) != 3 {
		t.Fatalf("the file has %d checkpoints, %v", len(all), err)
	}

	// History is rewritten, also for a drayd that has just started and has nothing
	// but what was published: nothing more is.
	published := len(s.tags)
	rewrite(w, 5, []byte(strings.Replace(string(leaf(t, 5)), "rita", "evil", 1)), 10, 20)
	c.Storage = w.Memory
	unverified(t, newPublisher().Once(t.Context()), "history was rewritten", file, "r.example/log")
	rewrite(w, 5, leaf(t, 5), 6, 7)
	c.Storage = w.Memory
	q := newPublisher()
	unverified(t, q.Once(t.Context()), "7 entries", "of 10 was published")
	if !q.Status().Rewritten || len(s.tags) != published {
		t.Errorf("status %+v, %d tags", q.Status(), len(s.tags))
	}
	// Nor is a checkpoint that the log itself does not agree with.
	w2 := newWorld(t)
	w2.grow(4)
	w2.Change(func(_ *[][]byte, h *[]tlog.Hash, _ map[int64][]byte) { (*h)[tlog.StoredHashIndex(2, 0)][0] ^= 1 })
	c.Storage, c.Keys, c.File, c.Repository = w2.Memory, w2.keys, filepath.Join(t.TempDir(), "other"), ""
	unverified(t, newPublisher().Once(t.Context()), "history was rewritten")
	if _, err := os.Stat(c.File); err == nil {
		t.Error("it was published")
	}
}
