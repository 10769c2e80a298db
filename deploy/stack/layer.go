//go:build linux

package stack

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"time"
)

// tree is a file system to make a layer of: by path, without a leading slash.
// Two trees of the same content make the same bytes: names are in order, times
// are zero, everything belongs to root.
type tree map[string]node

// node is a directory, a link, or a file whose content is in memory or on disk.
type node struct {
	mode fs.FileMode // permission bits, with os.ModeDir or os.ModeSymlink
	link string
	data []byte
	file string // path on this machine; its content counts when the layer is written
}

func (t tree) text(name, content string)             { t[name] = node{mode: 0o644, data: []byte(content)} }
func (t tree) link(name, target string)              { t[name] = node{mode: os.ModeSymlink | 0o777, link: target} }
func (t tree) dir(name string, mode fs.FileMode)     { t[name] = node{mode: os.ModeDir | mode} }
func (t tree) copy(name, from string, m fs.FileMode) { t[name] = node{mode: m, file: from} }

// add puts what lies below a directory of this machine into the tree; keep says
// of each path, relative to it, whether it is wanted. Nil wants everything.
func (t tree) add(prefix, dir string, keep func(rel string, e fs.DirEntry) bool) error {
	return filepath.WalkDir(dir, func(file string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, file)
		if err != nil {
			return err
		}
		if rel != "." && keep != nil && !keep(rel, e) {
			if e.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		name := path.Join(prefix, rel)
		switch {
		case name == ".":
		case e.IsDir():
			t.dir(name, 0o755)
		case e.Type()&os.ModeSymlink != 0:
			target, err := os.Readlink(file)
			if err != nil {
				return err
			}
			t.link(name, target)
		case e.Type().IsRegular():
			// Of the permissions only whether it can be run: a umask or a read-only
			// module cache makes no difference to the image.
			mode := fs.FileMode(0o644)
			if info.Mode().Perm()&0o111 != 0 {
				mode = 0o755
			}
			t.copy(name, file, mode)
		}
		return nil
	})
}

// write writes the tree as a compressed layer.
func (t tree) write(w io.Writer) error {
	names := map[string]bool{}
	for name := range t {
		for ; name != "." && !names[name]; name = path.Dir(name) {
			names[name] = true
		}
	}
	sorted := make([]string, 0, len(names))
	for name := range names {
		sorted = append(sorted, name)
	}
	slices.Sort(sorted)

	// It goes to a registry on this machine: speed counts for more than size.
	zip, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
	if err != nil {
		return err
	}
	out := tar.NewWriter(zip)
	for _, name := range sorted {
		n, ok := t[name]
		if !ok {
			n = node{mode: os.ModeDir | 0o755}
		}
		if err := n.write(out, name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if err := out.Close(); err != nil {
		return err
	}
	return zip.Close()
}

func (n node) write(out *tar.Writer, name string) error {
	h := &tar.Header{
		Name: name, Mode: int64(n.mode.Perm()), ModTime: time.Unix(0, 0), Format: tar.FormatPAX,
		Typeflag: tar.TypeReg,
	}
	if n.mode&os.ModeSticky != 0 {
		h.Mode |= 0o1000
	}
	switch {
	case n.mode.IsDir():
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
		return out.WriteHeader(h)
	case n.mode&os.ModeSymlink != 0:
		h.Typeflag, h.Linkname = tar.TypeSymlink, n.link
		return out.WriteHeader(h)
	}
	var content io.Reader = bytes.NewReader(n.data)
	h.Size = int64(len(n.data))
	if n.file != "" {
		f, err := os.Open(n.file)
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		content, h.Size = f, info.Size()
	}
	if err := out.WriteHeader(h); err != nil {
		return err
	}
	_, err := io.Copy(out, content)
	return err
}
