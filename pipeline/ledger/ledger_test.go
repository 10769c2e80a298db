package ledger_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/ledger"
	"github.com/dray-project/dray/pipeline/ledger/ledgertest"
)

const origin = "dray.example/log"

// world is a log with its key and everything that reads it.
type world struct {
	*ledgertest.Memory
	t      *testing.T
	signer *ledger.Signer
	keys   ledger.Keys
	seq    *ledger.Sequencer
	log    *ledger.Log
	n      int
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{Memory: ledgertest.New(), t: t, signer: newSigner(t, origin)}
	w.keys = keysOf(t, w.signer)
	w.seq = w.sequencer()
	var err error
	if w.log, err = ledger.NewLog(w.Memory); err != nil {
		t.Fatal(err)
	}
	return w
}

func newSigner(t testing.TB, origin string) *ledger.Signer {
	t.Helper()
	private, public, err := ledger.GenerateKey(origin)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ledger.ParseSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	if s.PublicKey()+"\n" != string(public) {
		t.Fatalf("the public key is %q, and %q was derived", public, s.PublicKey())
	}
	return s
}

func keysOf(t testing.TB, s *ledger.Signer) ledger.Keys {
	t.Helper()
	k, err := ledger.ParseKeys(s.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// sequencer is another process on the same storage.
func (w *world) sequencer() *ledger.Sequencer {
	w.t.Helper()
	s, err := ledger.NewSequencer(ledger.SequencerConfig{Storage: w.Memory, Signer: w.signer, Batch: 100, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

func leaf(t testing.TB, n int) []byte {
	t.Helper()
	e := pipeline.Entry{Version: pipeline.EntryVersion, Kind: pipeline.EntryTagMoved, At: time.Unix(int64(n), 0), Project: []string{"app", "web"}[n%2],
		Actor: "rita", Subject: fmt.Sprintf("prm_%d", n), Data: json.RawMessage(`{"tag":"1.0"}`)}
	b, err := e.Leaf()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// grow writes entries until there are that many, and gives them their places.
func (w *world) grow(size int) {
	w.t.Helper()
	for ; w.n < size; w.n++ {
		w.Write(leaf(w.t, w.n))
	}
	if err := w.seq.Once(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) checkpoint() []byte {
	w.t.Helper()
	c, err := w.log.Checkpoint(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

func (w *world) follow(trusted ...[]byte) (ledger.Followed, error) {
	return ledger.Follow{Source: w.log, Keys: w.keys, Trusted: trusted}.Run(w.t.Context())
}

// rootOf is the RFC 6962 root of leaves, from its definition.
func rootOf(leaves [][]byte) tlog.Hash {
	switch len(leaves) {
	case 0:
		h, _ := tlog.TreeHash(0, nil)
		return h
	case 1:
		return tlog.RecordHash(leaves[0])
	}
	k := 1
	for 2*k < len(leaves) {
		k *= 2
	}
	return tlog.NodeHash(rootOf(leaves[:k]), rootOf(leaves[k:]))
}

func unverified(t *testing.T, err error, says ...string) {
	t.Helper()
	if !errors.Is(err, pipeline.ErrUnverified) {
		t.Errorf("%v, want ErrUnverified", err)
		return
	}
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("the error does not say %q: %v", s, err)
		}
	}
}

// TestConformance: the tree is RFC 6962's, whatever the batches, and every proof
// verifies by tlog.
func TestConformance(t *testing.T) {
	w := newWorld(t)
	var leaves [][]byte
	var checkpoints [][]byte
	for _, size := range []int{0, 1, 2, 3, 7, 8, 100, 255, 256, 257, 511, 700, 1000} {
		w.grow(size)
		for len(leaves) < size {
			leaves = append(leaves, leaf(t, len(leaves)))
		}
		signed := w.checkpoint()
		c, err := w.keys.Open(signed)
		if err != nil {
			t.Fatal(err)
		}
		if c.N != int64(size) || c.Hash != rootOf(leaves) || c.Origin != origin {
			t.Fatalf("checkpoint %+v, want size %d and root %s", c, size, rootOf(leaves))
		}
		if want := fmt.Sprintf("%s\n%d\n%s\n\n— %s ", origin, size, c.Hash, origin); !strings.HasPrefix(string(signed), want) {
			t.Errorf("the note is %q", signed)
		}
		got, err := w.follow(checkpoints...)
		if err != nil {
			t.Fatalf("size %d: %v", size, err)
		}
		if got.Entries != int64(size) || got.Consistent != len(checkpoints) || got.Tree != c.Tree {
			t.Errorf("size %d: followed %+v", size, got)
		}
		for i, earlier := range checkpoints {
			from, err := w.keys.Open(earlier)
			if err != nil {
				t.Fatal(err)
			}
			var proof [][]byte
			if from.N > 0 {
				if _, proof, err = w.log.ProveTree(t.Context(), from.N, 0); err != nil {
					t.Fatal(err)
				}
			}
			if err := ledger.VerifyConsistency(earlier, signed, proof, w.keys.String()); err != nil {
				t.Errorf("%d to %d: %v", from.N, size, err)
			}
			if len(proof) > 0 {
				proof[0][0] ^= 1
				unverified(t, ledger.VerifyConsistency(earlier, signed, proof, w.keys.String()))
			}
			if i > 0 && size > int(from.N) {
				unverified(t, ledger.VerifyConsistency(signed, earlier, nil, w.keys.String()), "shrunk")
			}
		}
		checkpoints = append(checkpoints, signed)
		for _, index := range []int{0, 1, size / 2, size - 2, size - 1} {
			if index < 0 || index >= size {
				continue
			}
			p, err := w.log.Prove(t.Context(), int64(index), 0)
			if err != nil {
				t.Fatal(err)
			}
			if err := ledger.VerifyInclusion(p.Leaf, p.Index, p.Proof, []byte(p.Checkpoint), w.keys.String()); err != nil {
				t.Errorf("entry %d of %d: %v", index, size, err)
			}
			unverified(t, ledger.VerifyInclusion(append(p.Leaf, ' '), p.Index, p.Proof, []byte(p.Checkpoint), w.keys.String()), fmt.Sprintf("entry %d", index))
			unverified(t, ledger.VerifyInclusion(p.Leaf, p.Index+1, p.Proof, []byte(p.Checkpoint), w.keys.String()))
			if len(p.Proof) > 0 {
				unverified(t, ledger.VerifyInclusion(p.Leaf, p.Index, p.Proof[1:], []byte(p.Checkpoint), w.keys.String()))
			}
			other := keysOf(t, newSigner(t, origin))
			unverified(t, ledger.VerifyInclusion(p.Leaf, p.Index, p.Proof, []byte(p.Checkpoint), other.String()), "not by the trusted key")
		}
	}
	if _, err := w.log.Prove(t.Context(), 1000, 0); !errors.Is(err, pipeline.ErrNotFound) {
		t.Errorf("proof of an entry that is not there: %v", err)
	}
	for _, bad := range [][2]int64{{0, 5}, {5, 1001}, {6, 5}, {-1, 5}} {
		if _, _, err := w.log.ProveTree(t.Context(), bad[0], bad[1]); !errors.Is(err, pipeline.ErrInvalid) {
			t.Errorf("proof from %d to %d: %v", bad[0], bad[1], err)
		}
	}
	// A proof for an earlier size comes with the checkpoint of that size, if one
	// was signed.
	for size, want := range map[int64]bool{700: true, 699: false} {
		p, err := w.log.Prove(t.Context(), 3, size)
		if err != nil || (p.Checkpoint != "") != want {
			t.Errorf("proof for size %d: checkpoint %q, %v", size, p.Checkpoint, err)
		}
	}
}

// TestTiles: every tile that the size allows is there, and is what tlog says; no
// other is.
func TestTiles(t *testing.T) {
	w := newWorld(t)
	w.grow(600)
	for path, want := range map[string]int{
		"tile/0/000": 256, "tile/0/001": 256, "tile/0/002.p/88": 88, "tile/0/002.p/1": 1, "tile/1/000.p/2": 2, "tile/1/000.p/1": 1, "tile/0/000.p/7": 7,
		"tile/0/002": -1, "tile/0/002.p/89": -1, "tile/1/000": -1, "tile/1/000.p/3": -1, "tile/2/000.p/1": -1, "tile/0/003": -1,
		"tile/63/000": -1, "tile/8/000.p/1": -1, "tile/7/x999/x999/x999/x999/x999/999": -1,
	} {
		data, err := w.log.Tile(t.Context(), path)
		if want < 0 {
			if !errors.Is(err, pipeline.ErrNotFound) {
				t.Errorf("%s: %v, want ErrNotFound", path, err)
			}
			continue
		}
		if err != nil || len(data) != want*tlog.HashSize {
			t.Errorf("%s: %d bytes, %v", path, len(data), err)
		}
	}
	for path, want := range map[string]int{"tile/entries/000": 256, "tile/entries/002.p/88": 88, "tile/entries/001.p/5": 5} {
		data, err := w.log.Tile(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		leaves, err := ledger.DecodeEntries(data)
		if err != nil || len(leaves) != want {
			t.Errorf("%s: %d entries, %v", path, len(leaves), err)
		}
	}
	for _, path := range []string{"tile/entries/002", "tile/entries/002.p/89", "tile/entries/003.p/1"} {
		if _, err := w.log.Tile(t.Context(), path); !errors.Is(err, pipeline.ErrNotFound) {
			t.Errorf("%s: %v, want ErrNotFound", path, err)
		}
	}
	for _, path := range []string{"", "tile", "tile/", "tile/0", "tile/0/0", "tile/0/0000", "tile/00/000", "tile/-1/000", "tile/data/000", "tile/64/000", "tile/0/000.p/0",
		"tile/0/000.p/256", "tile/0/000.p/01", "tile/0/x000/000", "tile/0/001/000", "tile/entries", "tile/entries/", "tile/entries/data/000", "tile/0/000/", "/tile/0/000",
		"tile/8/0/000", "tile/0/../0/000", "tile/0/" + strings.Repeat("x999/", 40) + "999", "tile/0/-01", "tile/0/x999/x999/x999/x999/x999/x999/999", "tile/+0/000"} {
		if _, err := w.log.Tile(t.Context(), path); !errors.Is(err, pipeline.ErrInvalid) {
			t.Errorf("%q: %v, want ErrInvalid", path, err)
		}
	}
}

// TestEntries: the bundle's form is C2SP's.
func TestEntries(t *testing.T) {
	got, err := ledger.EncodeEntries([][]byte{[]byte("ab"), nil, []byte("c")})
	if err != nil || string(got) != "\x00\x02ab\x00\x00\x00\x01c" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := ledger.EncodeEntries([][]byte{make([]byte, pipeline.MaxLeaf+1)}); !errors.Is(err, pipeline.ErrInvalid) {
		t.Errorf("an entry that is too long: %v", err)
	}
	for _, bad := range []string{"\x00", "\x00\x02a", strings.Repeat("\x00\x00", 257)} {
		if _, err := ledger.DecodeEntries([]byte(bad)); !errors.Is(err, pipeline.ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestKeys(t *testing.T) {
	for _, bad := range []string{"", "a b", "a+b", "https://dray.example/log", "a\nb", strings.Repeat("a", 201)} {
		if _, _, err := ledger.GenerateKey(bad); !errors.Is(err, pipeline.ErrInvalid) {
			t.Errorf("origin %q: %v", bad, err)
		}
	}
	private, public, err := ledger.GenerateKey(origin)
	if err != nil {
		t.Fatal(err)
	}
	for what, text := range map[string]string{
		"nothing": "", "a comment": "# nothing\n", "the private key": string(private), "another form": "dray.example/log", "two logs": string(public) + newSigner(t, "other/log").PublicKey(),
		"a changed key": strings.Replace(string(public), "+A", "+B", 1),
	} {
		if _, err := ledger.ParseKeys(text); !errors.Is(err, pipeline.ErrInvalid) || strings.Contains(err.Error(), string(private[30:])) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, text := range []string{"", string(public), "PRIVATE+KEY+x", string(private[:len(private)-9])} {
		if _, err := ledger.ParseSigner([]byte(text)); !errors.Is(err, pipeline.ErrInvalid) || text != "" && strings.Contains(err.Error(), text) {
			t.Errorf("private key %q: %v", text, err)
		}
	}
	// A log goes on when its key is changed; checkpoints of both are accepted.
	w := newWorld(t)
	w.grow(5)
	before := w.checkpoint()
	old := w.signer
	w.signer = newSigner(t, origin)
	w.seq = w.sequencer()
	w.Write(leaf(t, 5))
	unverified(t, w.seq.Once(t.Context()), "not by the trusted key")
	if w.seq, err = ledger.NewSequencer(ledger.SequencerConfig{Storage: w.Memory, Signer: w.signer, OldKeys: old.PublicKey(), Log: slog.New(slog.DiscardHandler)}); err != nil {
		t.Fatal(err)
	}
	w.n = 6
	w.grow(7)
	if w.keys, err = ledger.ParseKeys("# new\n" + w.signer.PublicKey() + "\n\n# old\n" + old.PublicKey()); err != nil {
		t.Fatal(err)
	}
	if f, err := w.follow(before); err != nil || f.N != 7 {
		t.Errorf("%+v, %v", f, err)
	}
}
