package ledger_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/ledger"
)

// server answers as a log does, with something in between.
type server struct {
	*ledger.Log
	checkpoint func([]byte) []byte
	tile       func(path string, data []byte) []byte
	asked      []string
}

func (s *server) Checkpoint(ctx context.Context) ([]byte, error) {
	c, err := s.Log.Checkpoint(ctx)
	if err == nil && s.checkpoint != nil {
		c = s.checkpoint(c)
	}
	return c, err
}

func (s *server) Tile(ctx context.Context, path string) ([]byte, error) {
	s.asked = append(s.asked, path)
	data, err := s.Log.Tile(ctx, path)
	if err == nil && s.tile != nil {
		data = s.tile(path, bytes.Clone(data))
	}
	return data, err
}

// TestHostileServer: every byte of every tile that is read counts, and the error
// says where.
func TestHostileServer(t *testing.T) {
	w := newWorld(t)
	w.grow(300)
	trusted := w.checkpoint()
	w.grow(600)
	honest := &server{Log: w.log}
	if _, err := (ledger.Follow{Source: honest, Keys: w.keys, Trusted: [][]byte{trusted}}).Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	tried := map[string]bool{}
	for _, path := range honest.asked {
		if tried[path] {
			continue
		}
		tried[path] = true
		for how, change := range map[string]func([]byte) []byte{
			"first byte": func(b []byte) []byte { b[0] ^= 1; return b },
			"a byte":     func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
			"last byte":  func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
			"cut":        func(b []byte) []byte { return b[:len(b)-1] },
			"longer":     func(b []byte) []byte { return append(b, 0, 0) },
			"empty":      func([]byte) []byte { return nil },
		} {
			hostile := &server{Log: w.log, tile: func(at string, data []byte) []byte {
				if at == path {
					return change(data)
				}
				return data
			}}
			_, err := ledger.Follow{Source: hostile, Keys: w.keys}.Run(t.Context())
			if !errors.Is(err, pipeline.ErrUnverified) {
				t.Errorf("%s, %s: %v", path, how, err)
			} else if !strings.Contains(err.Error(), path) && !strings.Contains(err.Error(), "entry ") {
				t.Errorf("%s, %s: the error does not say where: %v", path, how, err)
			}
		}
	}
	if len(tried) < 7 {
		t.Errorf("only %v were read", tried)
	}

	other := newSigner(t, origin)
	c, err := w.keys.Open(w.checkpoint())
	if err != nil {
		t.Fatal(err)
	}
	forged, err := other.Sign(c.Tree)
	if err != nil {
		t.Fatal(err)
	}
	elsewhere, err := newSigner(t, "other/log").Sign(c.Tree)
	if err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func([]byte) []byte{
		"nothing":           func([]byte) []byte { return nil },
		"no signature":      func(b []byte) []byte { return b[:bytes.Index(b, []byte("—"))] },
		"another size":      func(b []byte) []byte { return bytes.Replace(b, []byte("\n600\n"), []byte("\n599\n"), 1) },
		"another root":      func(b []byte) []byte { return bytes.Replace(b, []byte("="), []byte("A"), 1) },
		"another key":       func([]byte) []byte { return forged },
		"another log":       func([]byte) []byte { return elsewhere },
		"another log's end": func(b []byte) []byte { return append(b, elsewhere...) },
		"very long":         func(b []byte) []byte { return append(b, make([]byte, 1<<17)...) },
	} {
		_, err := ledger.Follow{Source: &server{Log: w.log, checkpoint: change}, Keys: w.keys}.Run(t.Context())
		unverified(t, err)
		if t.Failed() {
			t.Fatal(what)
		}
	}
}

// TestRewritten: somebody who can write the database, and even sign, is found out
// by whoever has an earlier checkpoint.
func TestRewritten(t *testing.T) {
	lie := []byte(strings.Replace(string(leaf(t, 250)), "rita", "evil", 1))
	for what, c := range map[string]struct {
		change func(w *world)
		says   []string
		// alone: found without an earlier checkpoint.
		alone bool
	}{
		"an entry changed": {func(w *world) {
			w.Change(func(l *[][]byte, _ *[]tlog.Hash, _ map[int64][]byte) { (*l)[250] = lie })
		}, []string{"entry 250 was changed", "prm_250"}, true},
		"an entry removed": {func(w *world) { w.Remove(250) }, []string{"entry 250", "missing"}, true},
		"two entries swapped": {func(w *world) {
			w.Change(func(l *[][]byte, _ *[]tlog.Hash, _ map[int64][]byte) { (*l)[7], (*l)[8] = (*l)[8], (*l)[7] })
		}, []string{"entry 7 was changed"}, true},
		"an entry and its hash": {func(w *world) {
			w.Change(func(l *[][]byte, h *[]tlog.Hash, _ map[int64][]byte) {
				(*l)[250] = lie
				(*h)[tlog.StoredHashIndex(0, 250)] = tlog.RecordHash(lie)
			})
		}, []string{"tile/0/000", "tile/1/000"}, true},
		"a hash in the middle": {func(w *world) {
			w.Change(func(_ *[][]byte, h *[]tlog.Hash, _ map[int64][]byte) { (*h)[tlog.StoredHashIndex(8, 0)][0] ^= 1 })
		}, []string{"tile/1/000"}, true},
		"a suffix, its hashes and checkpoints": {func(w *world) { rewrite(w, 250, lie, 300, 400) }, []string{"history was rewritten", "first 300"}, false},
		"a suffix, to the same size":           {func(w *world) { rewrite(w, 250, lie, 300, 300) }, []string{"forked", "size 300"}, false},
		"a suffix, to a smaller size":          {func(w *world) { rewrite(w, 250, lie, 299, 299) }, []string{"shrunk", "299", "300"}, false},
		"taken back": {func(w *world) {
			w.Change(func(l *[][]byte, h *[]tlog.Hash, c map[int64][]byte) {
				*l, *h = (*l)[:200], (*h)[:tlog.StoredHashCount(200)]
				delete(c, 300)
			})
		}, []string{"shrunk", "200"}, false},
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t)
			w.grow(100)
			early := w.checkpoint()
			w.grow(200)
			w.grow(300)
			trusted := w.checkpoint()
			c.change(w)
			_, err := w.follow(trusted)
			unverified(t, err, c.says...)
			_, err = w.follow()
			if c.alone {
				unverified(t, err, c.says...)
			} else if err != nil {
				t.Errorf("a log that agrees with itself: %v", err)
			}
			// Who has only an earlier one sees what is wrong after it, if the log does
			// not agree with itself, and cannot see more.
			if _, err = w.follow(early); c.alone != errors.Is(err, pipeline.ErrUnverified) {
				t.Errorf("from an earlier checkpoint: %v", err)
			}
		})
	}
}

// rewrite makes another history from an entry on, by somebody who has the key.
func rewrite(w *world, from int, lie []byte, checkpoint, size int) {
	fresh := newWorld(w.t)
	fresh.signer, fresh.keys = w.signer, w.keys
	fresh.seq = fresh.sequencer()
	for i := range from {
		fresh.Write(leaf(w.t, i))
	}
	fresh.Write(lie)
	fresh.n = from + 1
	fresh.grow(checkpoint)
	fresh.grow(size)
	*w = *fresh
}

// TestTwoSignedOfOneSize: two published checkpoints of one size are a fork,
// whatever the log says now.
func TestTwoSignedOfOneSize(t *testing.T) {
	w := newWorld(t)
	w.grow(5)
	one := w.checkpoint()
	two, err := w.signer.Sign(tlog.Tree{N: 5, Hash: tlog.Hash{1}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.follow(one, two)
	unverified(t, err, "forked", "size 5")
}

// TestFollowFrom: what was verified before is not read again.
func TestFollowFrom(t *testing.T) {
	w := newWorld(t)
	w.grow(1000)
	var got []int64
	s := &server{Log: w.log}
	f := ledger.Follow{Source: s, Keys: w.keys, From: 700, Each: func(i int64, raw []byte, e pipeline.Entry) error {
		if string(raw) != string(leaf(t, int(i))) || e.Subject != fmt.Sprintf("prm_%d", i) {
			t.Errorf("entry %d is %s", i, raw)
		}
		got = append(got, i)
		return nil
	}}
	out, err := f.Run(t.Context())
	if err != nil || out.Entries != 300 || len(got) != 300 || got[0] != 700 {
		t.Errorf("%+v, %v: %d entries", out, err, len(got))
	}
	for _, path := range s.asked {
		if strings.HasPrefix(path, "tile/entries/00") && path < "tile/entries/002" {
			t.Errorf("it read %s", path)
		}
	}
	f.From = 1001
	if _, err := f.Run(t.Context()); !errors.Is(err, pipeline.ErrInvalid) {
		t.Errorf("from beyond the end: %v", err)
	}
	stop := errors.New("enough")
	f.From, f.Each = 0, func(int64, []byte, pipeline.Entry) error { return stop }
	if _, err := f.Run(t.Context()); !errors.Is(err, stop) {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	f.Source = &server{Log: w.log, tile: func(string, []byte) []byte { cancel(); return nil }}
	if _, err := f.Run(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled follower: %v", err)
	}
}

func TestTrust(t *testing.T) {
	w := newWorld(t)
	w.grow(3)
	path := filepath.Join(t.TempDir(), "sub", "trust.json")
	if _, err := ledger.ReadTrust(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	trust := ledger.Trust{Key: w.keys.String(), Checkpoint: string(w.checkpoint())}
	for range 2 {
		if err := trust.Write(path); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := ledger.ReadTrust(path); err != nil || got != trust {
		t.Errorf("%+v, %v", got, err)
	}
	raw := filepath.Join(t.TempDir(), "checkpoint")
	if err := os.WriteFile(raw, w.checkpoint(), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{path, raw} {
		if got, err := ledger.ReadCheckpoints(p); err != nil || len(got) != 1 || !bytes.Equal(got[0], w.checkpoint()) {
			t.Errorf("%s: %q, %v", p, got, err)
		}
	}
	for _, bad := range []string{"", "x", "{}", "{\n", `{"key":"x"}`} {
		if err := os.WriteFile(raw, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ledger.ReadCheckpoints(raw); !errors.Is(err, pipeline.ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
		if _, err := ledger.ReadTrust(raw); !errors.Is(err, pipeline.ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
