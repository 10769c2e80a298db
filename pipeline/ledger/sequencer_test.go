package ledger_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/ledger"
	"github.com/dray-project/dray/pipeline/ledger/ledgertest"
)

// TestFaults: whatever step fails, before its effect or after it, nothing is lost
// and nothing twice once it works again.
func TestFaults(t *testing.T) {
	for _, method := range []string{"LogPending", "SequenceLog", "LogHashes", "LogCheckpoint", "LogLeaves"} {
		for _, after := range []bool{false, true} {
			w := newWorld(t)
			w.grow(3)
			trusted := w.checkpoint()
			w.Write(leaf(t, 3), leaf(t, 4))
			w.Fail(method, 1, after)
			err := w.seq.Once(t.Context())
			sequences := method != "LogCheckpoint" && method != "LogLeaves" && (!after || method == "SequenceLog")
			if sequences != errors.Is(err, ledgertest.ErrInjected) {
				t.Errorf("%s, after %v: %v", method, after, err)
			}
			w.Fail(method, 0, after)
			// The next attempt is made by this process, and by one that knows nothing.
			if err := w.seq.Once(t.Context()); err != nil {
				t.Errorf("%s, after %v, again: %v", method, after, err)
			}
			w.Write(leaf(t, 5))
			if err := w.sequencer().Once(t.Context()); err != nil {
				t.Errorf("%s, after %v, elsewhere: %v", method, after, err)
			}
			f, err := w.follow(trusted)
			if err != nil || f.N != 6 || f.Hash != rootOf([][]byte{leaf(t, 0), leaf(t, 1), leaf(t, 2), leaf(t, 3), leaf(t, 4), leaf(t, 5)}) {
				t.Errorf("%s, after %v: followed %+v, %v", method, after, f, err)
			}
		}
	}
	for _, method := range []string{"LogCheckpoint", "LogHashes", "LogLeaves"} {
		w := newWorld(t)
		w.grow(300)
		w.Fail(method, 1, false)
		if _, err := w.follow(); !errors.Is(err, ledgertest.ErrInjected) || errors.Is(err, pipeline.ErrUnverified) {
			t.Errorf("following while %s fails: %v", method, err)
		}
		w.Fail(method, 1, false)
		if _, err := w.log.Prove(t.Context(), 3, 0); !errors.Is(err, ledgertest.ErrInjected) {
			t.Errorf("proving while %s fails: %v", method, err)
		}
	}
}

// TestManySequencers: whoever works, each entry has one place.
func TestManySequencers(t *testing.T) {
	w := newWorld(t)
	var writers, sequencers sync.WaitGroup
	done := make(chan struct{})
	for range 4 {
		s := w.sequencer()
		sequencers.Go(func() {
			for {
				if err := s.Once(t.Context()); err != nil {
					t.Error(err)
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	for i := range 8 {
		writers.Go(func() {
			for n := range 100 {
				w.Write(leaf(t, i*100+n))
			}
		})
	}
	writers.Wait()
	close(done)
	sequencers.Wait()
	w.grow(0)
	seen := map[string]bool{}
	f, err := ledger.Follow{Source: w.log, Keys: w.keys, Each: func(_ int64, _ []byte, e pipeline.Entry) error {
		if seen[e.Subject] {
			t.Errorf("%s is there twice", e.Subject)
		}
		seen[e.Subject] = true
		return nil
	}}.Run(t.Context())
	if err != nil || f.N != 800 || len(seen) != 800 {
		t.Errorf("%+v, %v: %d entries", f, err, len(seen))
	}
}

// TestSignsNoRewrittenHistory: where what is stored is not what was signed,
// nothing more is signed.
func TestSignsNoRewrittenHistory(t *testing.T) {
	for what, c := range map[string]struct {
		change func(*[][]byte, *[]tlog.Hash, map[int64][]byte)
		says   string
		// others: a process that signed nothing itself notices as well.
		others bool
	}{
		"a hash": {func(_ *[][]byte, h *[]tlog.Hash, _ map[int64][]byte) { (*h)[tlog.StoredHashIndex(3, 0)][0] ^= 1 }, "history was rewritten", true},
		"the last entry gone": {func(l *[][]byte, _ *[]tlog.Hash, _ map[int64][]byte) {
			*l = (*l)[:9]
		}, "not of one size", true},
		"the hashes gone":       {func(_ *[][]byte, h *[]tlog.Hash, _ map[int64][]byte) { *h = nil }, "not of one size", true},
		"the newest checkpoint": {func(_ *[][]byte, _ *[]tlog.Hash, c map[int64][]byte) { delete(c, 10) }, "not of one size", true},
		"a checkpoint of another key": {func(_ *[][]byte, _ *[]tlog.Hash, c map[int64][]byte) {
			c[10] = bytes.Replace(c[10], []byte("— dray.example/log "), []byte("— dray.example/log A"), 1)
		}, "checkpoint", true},
		"all of it taken back to an earlier size": {func(l *[][]byte, h *[]tlog.Hash, c map[int64][]byte) {
			*l, *h = (*l)[:6], (*h)[:tlog.StoredHashCount(6)]
			delete(c, 10)
		}, "signed a checkpoint of 10", false},
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t)
			w.grow(6)
			w.grow(10)
			other := w.sequencer()
			w.Change(c.change)
			w.Write(leaf(t, 10))
			unverified(t, w.seq.Once(t.Context()), c.says)
			if st := w.seq.Status(); !st.Rewritten || st.Err == nil {
				t.Errorf("status %+v", st)
			}
			if err := other.Once(t.Context()); c.others {
				unverified(t, err, c.says)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
}

// TestRun: entries have their places within a second, errors are said once, and
// the end of the context ends it.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said bytes.Buffer
		m := ledgertest.New()
		s, err := ledger.NewSequencer(ledger.SequencerConfig{Storage: m, Signer: newSigner(t, origin), Log: slog.New(slog.NewTextHandler(&said, nil))})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { s.Run(ctx); close(ended) }()
		m.Write(leaf(t, 0))
		time.Sleep(time.Second)
		if st := s.Status(); st.Size != 1 || st.Err != nil {
			t.Errorf("after a second: %+v", st)
		}
		m.Fail("SequenceLog", 5, false)
		m.Write(leaf(t, 1))
		time.Sleep(time.Minute)
		if st := s.Status(); st.Size != 2 || st.Err != nil {
			t.Errorf("after a fault: %+v", st)
		}
		cancel()
		<-ended
		if got := said.String(); strings.Count(got, "wait for their places") != 1 || strings.Count(got, "again") != 1 {
			t.Errorf("it said:\n%s", got)
		}
	})
}

func TestSequencerConfig(t *testing.T) {
	m, signer, log := ledgertest.New(), newSigner(t, origin), slog.New(slog.DiscardHandler)
	for what, c := range map[string]ledger.SequencerConfig{
		"storage":  {Signer: signer, Log: log},
		"signer":   {Storage: m, Log: log},
		"logger":   {Storage: m, Signer: signer},
		"1s":       {Storage: m, Signer: signer, Log: log, Poll: time.Minute},
		"100000":   {Storage: m, Signer: signer, Log: log, Batch: -1},
		"old keys": {Storage: m, Signer: signer, Log: log, OldKeys: newSigner(t, "other/log").PublicKey()},
	} {
		if _, err := ledger.NewSequencer(c); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
	// A leaf that could never be served is not let in.
	s, err := ledger.NewSequencer(ledger.SequencerConfig{Storage: m, Signer: signer, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	m.Write(make([]byte, pipeline.MaxLeaf+1))
	if err := s.Once(t.Context()); !errors.Is(err, pipeline.ErrInvalid) {
		t.Errorf("a long leaf: %v", err)
	}
}
