package ledger

import (
	"encoding/binary"
	"fmt"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/dray-project/dray/pipeline"
)

const (
	// tileHeight and tileWidth are those of c2sp.org/tlog-tiles.
	tileHeight = 8
	tileWidth  = 1 << tileHeight
	// maxLevel is the highest at which a tree of 2^63 entries has a tile.
	maxLevel = 7
	// entriesLevel marks a bundle of entries rather than hashes, as in tlog.
	entriesLevel = -1
	maxTilePath  = 100
)

// TilePath is where a tile is: tile/<L>/<N>[.p/<W>], or for level -1
// tile/entries/<N>[.p/<W>]. Its height must be 8.
func TilePath(t tlog.Tile) string {
	path := strings.TrimPrefix(t.Path(), fmt.Sprintf("tile/%d/", tileHeight))
	if t.L == entriesLevel {
		path = "entries" + strings.TrimPrefix(path, "data")
	}
	return "tile/" + path
}

// ParseTilePath is the inverse of TilePath; anything else is
// pipeline.ErrInvalid.
func ParseTilePath(path string) (tlog.Tile, error) {
	bad := fmt.Errorf("tile path %.100q: want tile/<level>/<number> or tile/entries/<number>: %w", path, pipeline.ErrInvalid)
	rest, ok := strings.CutPrefix(path, "tile/")
	if !ok || len(path) > maxTilePath || strings.HasPrefix(rest, "data/") {
		return tlog.Tile{}, bad
	}
	if number, ok := strings.CutPrefix(rest, "entries/"); ok {
		rest = "data/" + number
	}
	t, err := tlog.ParseTilePath(fmt.Sprintf("tile/%d/%s", tileHeight, rest))
	if err != nil || t.L > 63 || t.N < 0 || TilePath(t) != path {
		return tlog.Tile{}, bad
	}
	return t, nil
}

// within reports whether a tree of that size has every hash or entry of the tile.
func within(t tlog.Tile, size int64) bool {
	if t.L > maxLevel {
		return false
	}
	if t.L > 0 {
		size >>= uint(t.L * tileHeight)
	}
	return t.N <= size>>tileHeight && t.N<<tileHeight+int64(t.W) <= size
}

// entriesTile is the bundle that has an entry, as wide as the size allows.
func entriesTile(index, size int64) tlog.Tile {
	n := index >> tileHeight
	return tlog.Tile{H: tileHeight, L: entriesLevel, N: n, W: int(min(tileWidth, size-n<<tileHeight))}
}

// EncodeEntries writes a bundle: each leaf with two bytes of length before it.
func EncodeEntries(leaves [][]byte) ([]byte, error) {
	size := 0
	for _, leaf := range leaves {
		size += 2 + len(leaf)
	}
	bundle := make([]byte, 0, size)
	for _, leaf := range leaves {
		if len(leaf) > pipeline.MaxLeaf {
			return nil, fmt.Errorf("entry of %d bytes: at most %d can be served: %w", len(leaf), pipeline.MaxLeaf, pipeline.ErrInvalid)
		}
		bundle = binary.BigEndian.AppendUint16(bundle, uint16(len(leaf)))
		bundle = append(bundle, leaf...)
	}
	return bundle, nil
}

// DecodeEntries reads a bundle of at most 256 leaves.
func DecodeEntries(bundle []byte) (leaves [][]byte, err error) {
	for len(bundle) > 0 {
		if len(bundle) < 2 {
			return nil, fmt.Errorf("bundle of entries ends within a length: %w", pipeline.ErrInvalid)
		}
		n := int(binary.BigEndian.Uint16(bundle))
		if bundle = bundle[2:]; len(bundle) < n {
			return nil, fmt.Errorf("bundle of entries ends within an entry: %w", pipeline.ErrInvalid)
		}
		if len(leaves) == tileWidth {
			return nil, fmt.Errorf("bundle of more than %d entries: %w", tileWidth, pipeline.ErrInvalid)
		}
		leaves, bundle = append(leaves, bundle[:n:n]), bundle[n:]
	}
	return leaves, nil
}
