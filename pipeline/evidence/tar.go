package evidence

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/dray-project/dray/pipeline"
)

const block = 512

// header is the tar header of a file, in the one form that a bundle has it: a
// regular file of POSIX ustar, mode 0644, owner 0, time 0. One form leaves
// nothing about which two readers could differ, such as links, long names or
// sizes that are given twice.
func header(name string, size int64) ([]byte, error) {
	var b bytes.Buffer
	err := tar.NewWriter(&b).WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR,
	})
	if err != nil {
		return nil, fmt.Errorf("file %s of %d bytes in a tar archive: %w", name, size, err)
	}
	if b.Len() != block {
		return nil, fmt.Errorf("file %s of %d bytes in a tar archive: its header takes %d bytes", name, size, b.Len())
	}
	return b.Bytes(), nil
}

func padding(size int64) int64 { return (block - size%block) % block }

// content is a file of a bundle that is to be written.
type content struct {
	File
	// write writes the whole of it. A file that is in memory is in body instead.
	write func(io.Writer) error
	body  []byte
}

// pack writes files in the order in which they come.
func pack(w io.Writer, files []content) error {
	for _, f := range files {
		h, err := header(f.Name, f.Size)
		if err != nil {
			return err
		}
		if _, err := w.Write(h); err != nil {
			return err
		}
		c := &counted{w: w, left: f.Size, hash: sha256.New()}
		if f.write == nil {
			_, err = c.Write(f.body)
		} else {
			err = f.write(c)
		}
		if err != nil {
			return fmt.Errorf("file %s: %w", f.Name, err)
		}
		// The manifest, which says what comes, is with the reader already.
		if got := sum(c.hash); c.left != 0 || got != f.SHA256 {
			return fmt.Errorf("file %s changed while it was read: it has the digest %s, want %s", f.Name, got, f.SHA256)
		}
		if _, err := w.Write(make([]byte, padding(f.Size))); err != nil {
			return err
		}
	}
	_, err := w.Write(make([]byte, 2*block))
	return err
}

type counted struct {
	w    io.Writer
	left int64
	hash hash.Hash
}

func (c *counted) Write(p []byte) (int, error) {
	if int64(len(p)) > c.left {
		return 0, errors.New("it is longer than was said")
	}
	n, err := c.w.Write(p)
	c.left -= int64(n)
	c.hash.Write(p[:n])
	return n, err
}

func sum(h hash.Hash) pipeline.Digest {
	return pipeline.Digest("sha256:" + hex.EncodeToString(h.Sum(nil)))
}

func digestOf(b []byte) pipeline.Digest {
	s := sha256.Sum256(b)
	return pipeline.Digest("sha256:" + hex.EncodeToString(s[:]))
}

// scanner walks a bundle's tar from its start to its end.
type scanner struct {
	r    io.ReaderAt
	size int64
	at   int64
}

// next checks the header of a file whose name and size are known, and returns
// where its bytes are.
func (s *scanner) next(name string, size int64) (offset int64, err error) {
	want, err := header(name, size)
	if err != nil {
		return 0, err
	}
	got, err := s.block()
	if err != nil {
		return 0, fmt.Errorf("file %s: %w", name, err)
	}
	if !bytes.Equal(got, want) {
		return 0, fmt.Errorf("file %s of %d bytes is expected, and another tar header is there: %s", name, size, describe(got))
	}
	return s.skip(name, size)
}

// first checks the header of a file whose size is not known yet.
func (s *scanner) first(name string, limit int64) (offset, size int64, err error) {
	got, err := s.block()
	if err != nil {
		return 0, 0, fmt.Errorf("file %s: %w", name, err)
	}
	size, err = strconv.ParseInt(strings.TrimRight(string(got[124:136]), "\x00 "), 8, 64)
	if err != nil || size < 0 || size > limit {
		return 0, 0, fmt.Errorf("no file %s of at most %d bytes where it should be: %s", name, limit, describe(got))
	}
	s.at -= block
	offset, err = s.next(name, size)
	return offset, size, err
}

func (s *scanner) block() ([]byte, error) {
	b := make([]byte, block)
	if s.size-s.at < block {
		return nil, errors.New("the bundle ends before it: it was cut short")
	}
	if _, err := s.r.ReadAt(b, s.at); err != nil && err != io.EOF {
		return nil, err
	}
	s.at += block
	return b, nil
}

func (s *scanner) skip(name string, size int64) (offset int64, err error) {
	offset = s.at
	if s.size-s.at < size+padding(size) {
		return 0, fmt.Errorf("file %s: the bundle ends in the middle of it: it was cut short", name)
	}
	s.at += size + padding(size)
	pad := make([]byte, padding(size))
	if _, err := s.r.ReadAt(pad, offset+size); err != nil && err != io.EOF {
		return 0, err
	}
	if len(bytes.Trim(pad, "\x00")) > 0 {
		return 0, fmt.Errorf("file %s is followed by something that is no part of it", name)
	}
	return offset, nil
}

// end checks that there is nothing else.
func (s *scanner) end() error {
	if s.size-s.at != 2*block {
		if s.size-s.at < 2*block {
			return errors.New("the end of the archive is missing: it was cut short")
		}
		if b, err := s.block(); err == nil && len(bytes.Trim(b, "\x00")) > 0 {
			return fmt.Errorf("there is something that the manifest does not list: %s", describe(b))
		}
		return errors.New("something follows the end of the archive")
	}
	for range 2 {
		b, err := s.block()
		if err != nil {
			return err
		}
		if len(bytes.Trim(b, "\x00")) > 0 {
			return fmt.Errorf("there is something that the manifest does not list: %s", describe(b))
		}
	}
	return nil
}

// describe says what a header seems to be, for people.
func describe(h []byte) string {
	name, _, _ := strings.Cut(string(h[:100]), "\x00")
	return fmt.Sprintf("named %.100q, of type %q", name, h[156])
}
