package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/dray-project/dray/pipeline"
)

// manyImages is a store of images of which none holds anything that changed.
type manyImages struct {
	pipeline.RematchStore
	images    int
	recording atomic.Int32
	recorded  []string
	// failAt is the page that cannot be recorded, counted from 1.
	failAt, pages int
	finished      bool
}

const databaseOfMany = pipeline.Digest("sha256:2")

func (s *manyImages) StartRematch(context.Context, pipeline.VulnerabilityDatabase) (pipeline.RematchPass, error) {
	return pipeline.RematchPass{ID: "rmt_1"}, nil
}

func (s *manyImages) Unmatched(_ context.Context, _ pipeline.Digest, held bool, after string, limit int) (out []pipeline.Matchable, err error) {
	if held {
		return nil, nil
	}
	next := 0
	if after != "" {
		if _, err := fmt.Sscan(after, &next); err != nil {
			return nil, err
		}
		next++
	}
	for ; next < s.images && len(out) < limit; next++ {
		out = append(out, pipeline.Matchable{Cursor: fmt.Sprint(next), Run: pipeline.RunID(fmt.Sprint(next)), Keys: [][]byte{keys(1, 7)}})
	}
	return out, nil
}

func (s *manyImages) RecordMatches(_ context.Context, _ pipeline.RematchID, matches []pipeline.Match) error {
	defer s.recording.Add(-1)
	if s.recording.Add(1) != 1 {
		return errors.New("two pages are recorded at a time")
	}
	if s.pages++; s.pages == s.failAt {
		return errors.New("the disk is full")
	}
	for _, m := range matches {
		if !m.Unaffected {
			return fmt.Errorf("%s is affected", m.Run)
		}
		s.recorded = append(s.recorded, string(m.Run))
	}
	return nil
}

func (s *manyImages) FinishRematch(context.Context, pipeline.RematchID) (pipeline.RematchPass, error) {
	s.finished = true
	return pipeline.RematchPass{ID: "rmt_1"}, nil
}

type nothingNew struct{ pipeline.Rematcher }

func (nothingNew) Database(context.Context) (pipeline.VulnerabilityDatabase, error) {
	return pipeline.VulnerabilityDatabase{Digest: databaseOfMany}, nil
}

func (nothingNew) Changes(context.Context, pipeline.Digest) (pipeline.VulnerabilityDatabase, pipeline.Changes, error) {
	return pipeline.VulnerabilityDatabase{Digest: databaseOfMany}, pipeline.Changes{Keys: keys(1, 9)}, nil
}

// TestRematchPages: pages are recorded one after the other while the next is
// matched; one that cannot be recorded ends the pass, and none after it is.
func TestRematchPages(t *testing.T) {
	b, _ := held(t)
	for _, c := range []struct{ images, failAt, recorded int }{
		{0, 0, 0}, {1, 0, 1}, {99, 0, 99}, {100, 0, 100}, {101, 0, 101}, {450, 0, 450},
		{450, 1, 0}, {450, 3, 200}, {450, 5, 400}, {100, 1, 0}, {30, 1, 0},
	} {
		s := &manyImages{images: c.images, failAt: c.failAt}
		_, err := b.p.Rematch(t.Context(), nothingNew{}, s)
		if (err == nil) != (c.failAt == 0) || s.finished != (err == nil) || err != nil && !strings.Contains(err.Error(), "the disk is full") {
			t.Errorf("%+v: %v, finished: %t", c, err, s.finished)
		}
		if len(s.recorded) != c.recorded {
			t.Errorf("%+v: %d are recorded", c, len(s.recorded))
		}
		for i, r := range s.recorded {
			if r != fmt.Sprint(i) {
				t.Fatalf("%+v: %s is recorded as the %dth", c, r, i)
			}
		}
	}
}
