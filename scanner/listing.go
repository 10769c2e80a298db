//go:build goexperiment.jsonv2

package scanner

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
)

// A listing is the table of contents of one layer: an encoding of its entries,
// each path once, in the order of their paths. Listings of layers are merged as
// streams (see overlay.go), so that a final filesystem of millions of files
// never stands in memory as a tree.

// Bounds on a listing. A million files of ordinary names take about 30 MB.
const (
	maxPath    = 4096 // bytes; the kernel opens nothing that is longer
	maxListing = 64 << 20
	maxBatch   = 4 << 20 // bytes that are sorted at a time
)

// tooMuch is what an honest image does not have; reading it again does not help.
type tooMuch string

func (e tooMuch) Error() string { return string(e) }

// What an entry is, and what it does to the layers below its own.
const (
	kindNone byte = iota // no file: only what the flags say
	kindDirectory
	kindFile
	kindHardLink
	kindSymlink
	kindOther // a device, pipe or socket
	kindMask  = 7

	flagExecutable = 1 << 3
	flagSetuid     = 1 << 4 // or setgid
	flagWhiteout   = 1 << 5 // the path is removed from the layers below
	flagOpaque     = 1 << 6 // all that is in the directory is removed from the layers below
)

type entry struct {
	// path has no leading slash, and zero bytes in the place of slashes: in the
	// order of bytes a directory then stands right before what is in it.
	path   []byte
	flags  byte
	size   int64  // of a regular file, in bytes
	target []byte // of a symbolic link, as it is written
}

func (e *entry) kind() byte { return e.flags & kindMask }

// update makes e what it is after a later entry of the same layer and path.
func (e *entry) update(later entry) {
	if later.kind() == kindNone {
		e.flags |= later.flags
		return
	}
	e.flags = later.flags | e.flags&(flagWhiteout|flagOpaque)
	e.size, e.target = later.size, later.target
}

const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh."
	opaqueMarker   = ".wh..wh..opq"
)

// list reads a layer's archive and returns its listing. The reader may be left
// in the middle when that fails.
func list(r io.Reader) ([]byte, error) {
	in := &counter{r: r}
	tr := tar.NewReader(in)
	l := &lister{setuid: map[string]bool{}}
	var last *tar.Header
	var from int64
	for {
		hdr, err := tr.Next()
		if last != nil {
			// A sparse file claims any size that it likes.
			last.Size = min(last.Size, in.n-from)
			if err := l.header(last); err != nil {
				return nil, err
			}
		}
		if errors.Is(err, io.EOF) {
			return l.finish()
		}
		if err != nil {
			return nil, err
		}
		last, from = hdr, in.n
	}
}

type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// lister sorts entries in batches, and keeps sorted batches encoded.
type lister struct {
	batch  []entry
	held   int // bytes in the batch
	runs   [][]byte
	stored int // bytes in runs and names of setuid files
	setuid map[string]bool
}

func (l *lister) header(hdr *tar.Header) error {
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	if len(hdr.Name) > maxPath || strings.IndexByte(hdr.Name, 0) >= 0 {
		return tooMuch(fmt.Sprintf("it has a path of %d bytes, which no system can open", len(hdr.Name)))
	}
	name := cleanPath(hdr.Name)
	dir, base := path.Split(name)
	switch {
	case base == opaqueMarker:
		return l.add(entry{path: pathKey(strings.TrimSuffix(dir, "/")), flags: flagOpaque})
	case strings.HasPrefix(base, whiteoutMeta):
		return nil // a note of AUFS to itself
	case strings.HasPrefix(base, whiteoutPrefix):
		switch base = base[len(whiteoutPrefix):]; base {
		case "", ".", "..":
			return nil // removes nothing that has a name
		}
		return l.add(entry{path: pathKey(dir + base), flags: flagWhiteout})
	}
	e := entry{path: pathKey(name)}
	if hdr.Mode&0o111 != 0 {
		e.flags |= flagExecutable
	}
	set := hdr.Mode&0o6000 != 0
	switch hdr.Typeflag {
	case tar.TypeDir:
		e.flags |= kindDirectory
		set = false
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		e.flags |= kindFile
		e.size = hdr.Size
	case tar.TypeLink:
		e.flags |= kindHardLink
		// What it names came before it in the archive, and has one set of bits
		// with it, whatever this header says.
		set = set || l.setuid[cleanPath(hdr.Linkname)]
	case tar.TypeSymlink:
		e.flags |= kindSymlink
		set = false
		if len(hdr.Linkname) <= maxPath {
			e.target = []byte(hdr.Linkname)
		}
	default:
		e.flags |= kindOther
		set = false
	}
	if set {
		e.flags |= flagSetuid
		l.setuid[name] = true
		l.stored += len(name)
	}
	return l.add(e)
}

// cleanPath makes a name in an archive relative to the root, which it cannot leave.
func cleanPath(name string) string { return path.Clean("/" + name)[1:] }

func pathKey(name string) []byte {
	key := []byte(name)
	for i, c := range key {
		if c == '/' {
			key[i] = 0
		}
	}
	return key
}

// keyPath is a path as people read it.
func keyPath(key []byte) string {
	return "/" + strings.ReplaceAll(string(key), "\x00", "/")
}

func (l *lister) add(e entry) error {
	const overhead = 80 // bytes of an entry beside its strings
	l.batch = append(l.batch, e)
	l.held += len(e.path) + len(e.target) + overhead
	if l.held < maxBatch {
		return nil
	}
	return l.flush()
}

func (l *lister) flush() error {
	slices.SortStableFunc(l.batch, func(a, b entry) int { return bytes.Compare(a.path, b.path) })
	var enc encoder
	for i := 0; i < len(l.batch); {
		e := l.batch[i]
		for i++; i < len(l.batch) && bytes.Equal(l.batch[i].path, e.path); i++ {
			e.update(l.batch[i])
		}
		enc.write(e)
	}
	l.runs = append(l.runs, enc.out)
	l.stored += len(enc.out)
	clear(l.batch)
	l.batch, l.held = l.batch[:0], 0
	if l.stored > maxListing {
		return tooMuch(fmt.Sprintf("the list of its files takes more than %d bytes", maxListing))
	}
	return nil
}

func (l *lister) finish() ([]byte, error) {
	if err := l.flush(); err != nil {
		return nil, err
	}
	if len(l.runs) == 1 {
		return l.runs[0], nil
	}
	var enc encoder
	err := merge(l.runs, func(found []occurrence) error {
		e := *found[0].entry
		for _, later := range found[1:] {
			e.update(*later.entry)
		}
		enc.write(e)
		return nil
	})
	return enc.out, err
}

// encoder writes entries that come in the order of their paths.
type encoder struct {
	out  []byte
	last []byte
}

func (c *encoder) write(e entry) {
	shared := 0
	for shared < len(c.last) && shared < len(e.path) && c.last[shared] == e.path[shared] {
		shared++
	}
	rest := e.path[shared:]
	c.out = binary.AppendUvarint(c.out, uint64(shared))
	c.out = binary.AppendUvarint(c.out, uint64(len(rest)))
	c.out = append(c.out, rest...)
	c.out = append(c.out, e.flags)
	switch e.kind() {
	case kindFile:
		c.out = binary.AppendUvarint(c.out, uint64(max(e.size, 0)))
	case kindSymlink:
		c.out = binary.AppendUvarint(c.out, uint64(len(e.target)))
		c.out = append(c.out, e.target...)
	}
	c.last = append(c.last[:shared], rest...)
}

var errListing = errors.New("the list of a layer's files is damaged")

// decoder reads a listing. The entry is valid until the next one is read.
type decoder struct {
	layer int
	rest  []byte
	entry entry
}

// next returns false at the end.
func (d *decoder) next() (bool, error) {
	if len(d.rest) == 0 {
		return false, nil
	}
	shared, err := d.uvarint(len(d.entry.path))
	if err != nil {
		return false, err
	}
	tail, err := d.bytes()
	if err != nil {
		return false, err
	}
	d.entry.path = append(d.entry.path[:shared], tail...)
	if len(d.rest) == 0 {
		return false, errListing
	}
	d.entry.flags, d.rest = d.rest[0], d.rest[1:]
	d.entry.size, d.entry.target = 0, nil
	switch d.entry.kind() {
	case kindFile:
		size, n := binary.Uvarint(d.rest)
		if n <= 0 || size > 1<<62 {
			return false, errListing
		}
		d.entry.size, d.rest = int64(size), d.rest[n:]
	case kindSymlink:
		if d.entry.target, err = d.bytes(); err != nil {
			return false, err
		}
	}
	return true, nil
}

func (d *decoder) uvarint(limit int) (int, error) {
	v, n := binary.Uvarint(d.rest)
	if n <= 0 || v > uint64(limit) {
		return 0, errListing
	}
	d.rest = d.rest[n:]
	return int(v), nil
}

func (d *decoder) bytes() ([]byte, error) {
	n, err := d.uvarint(len(d.rest))
	if err != nil || n > len(d.rest) {
		return nil, errListing
	}
	b := d.rest[:n:n]
	d.rest = d.rest[n:]
	return b, nil
}
