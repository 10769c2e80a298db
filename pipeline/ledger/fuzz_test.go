package ledger_test

import (
	"bytes"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/dray-project/dray/pipeline/ledger"
)

func FuzzTilePath(f *testing.F) {
	for _, s := range []string{"tile/0/000", "tile/entries/x001/234.p/5", "tile/63/x999/999", "tile/0/000.p/256", "tile/data/000"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		tile, err := ledger.ParseTilePath(s)
		if err != nil {
			return
		}
		if got := ledger.TilePath(tile); got != s {
			t.Errorf("%q is read as %+v, which is %q", s, tile, got)
		}
		if tile.N < 0 || tile.W < 1 || tile.W > 256 || tile.L < -1 || tile.L > 63 {
			t.Errorf("%q is read as %+v", s, tile)
		}
	})
}

func FuzzEntries(f *testing.F) {
	f.Add([]byte("\x00\x02ab\x00\x00"))
	f.Fuzz(func(t *testing.T, bundle []byte) {
		leaves, err := ledger.DecodeEntries(bundle)
		if err != nil {
			return
		}
		if again, err := ledger.EncodeEntries(leaves); err != nil || !bytes.Equal(again, bundle) {
			t.Errorf("%q is read as %q, which is %q, %v", bundle, leaves, again, err)
		}
	})
}

func FuzzCheckpoint(f *testing.F) {
	signer := newSigner(f, origin)
	keys := keysOf(f, signer)
	signed, err := signer.Sign(tlog.Tree{N: 5, Hash: tlog.Hash{1}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(signed)
	f.Add([]byte("a\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n"))
	f.Add([]byte("a\n05\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		// What opens is what was signed: nothing else is by this key.
		if c, err := keys.Open(b); err == nil && (c.N != 5 || c.Hash != tlog.Hash{1} || c.Origin != origin) {
			t.Errorf("%q opens as %+v", b, c)
		}
		c, err := ledger.ParseCheckpoint(string(b))
		if err != nil {
			return
		}
		if !bytes.HasPrefix(b, []byte(c.Text())) {
			t.Errorf("%q is read as %+v", b, c)
		}
	})
}
