package evidence

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/dray-project/dray/pipeline"
)

// Bundle is one that was read and is what its manifest says. That says nothing
// of who made it: Verify does.
type Bundle struct {
	Manifest Manifest
	// digest of manifest.json.
	digest    pipeline.Digest
	inventory []byte

	r      io.ReaderAt
	at     []int64 // where each file's bytes are
	limits Limits
}

// Open reads a bundle of that many bytes, in one pass and in memory that does not
// grow with it: every file is listed, there once, and has the size and digest that
// the manifest says; and there is nothing else. What is not so is an error that
// wraps pipeline.ErrUnverified and names the file. r must not change meanwhile.
func Open(r io.ReaderAt, size int64, l Limits) (*Bundle, error) {
	b, err := open(r, size, l.withDefaults())
	if err != nil {
		return nil, fmt.Errorf("evidence bundle: %w: %w", err, pipeline.ErrUnverified)
	}
	return b, nil
}

func open(r io.ReaderAt, size int64, l Limits) (*Bundle, error) {
	if size > l.Bundle {
		return nil, fmt.Errorf("it has %d bytes, more than the limit of %d", size, l.Bundle)
	}
	s := &scanner{r: r, size: size}
	b := &Bundle{r: r, limits: l}
	raw, err := s.whole(ManifestName, maxManifest)
	if err != nil {
		return nil, err
	}
	b.digest = digestOf(raw)
	if err := decode(raw, &b.Manifest); err != nil {
		return nil, fmt.Errorf("%s: %w", ManifestName, err)
	}
	if err := b.Manifest.check(l); err != nil {
		return nil, fmt.Errorf("%s: %w", ManifestName, err)
	}
	if b.inventory, err = s.whole(InventoryName, maxInventory); err != nil {
		return nil, err
	}
	buffer := make([]byte, 256<<10)
	for _, f := range b.Manifest.Files {
		at, err := s.next(f.Name, f.Size)
		if err != nil {
			return nil, err
		}
		h := sha256.New()
		if _, err := io.CopyBuffer(h, io.NewSectionReader(r, at, f.Size), buffer); err != nil {
			return nil, fmt.Errorf("file %s: %w", f.Name, err)
		}
		if got := sum(h); got != f.SHA256 {
			return nil, fmt.Errorf("file %s has the digest %s, the manifest says %s: it was changed", f.Name, got, f.SHA256)
		}
		b.at = append(b.at, at)
	}
	return b, s.end()
}

func (s *scanner) whole(name string, limit int64) ([]byte, error) {
	at, size, err := s.first(name, limit)
	if err != nil {
		return nil, err
	}
	raw := make([]byte, size)
	if _, err := s.r.ReadAt(raw, at); err != nil && !(errors.Is(err, io.EOF) && at+size == s.size) {
		return nil, fmt.Errorf("file %s: %w", name, err)
	}
	return raw, nil
}

// file finds a file by its name.
func (b *Bundle) file(name string) (int, bool) {
	return slices.BinarySearchFunc(b.Manifest.Files, name, func(f File, name string) int {
		switch {
		case f.Name < name:
			return -1
		case f.Name > name:
			return 1
		}
		return 0
	})
}

// Has reports whether the bundle holds a file.
func (b *Bundle) Has(name string) bool {
	_, ok := b.file(name)
	return ok
}

// Read returns a file, whose digest is looked at once more.
func (b *Bundle) Read(name string) ([]byte, error) {
	i, ok := b.file(name)
	if !ok {
		return nil, fmt.Errorf("the bundle holds no %s: %w", name, pipeline.ErrNotFound)
	}
	f := b.Manifest.Files[i]
	raw := make([]byte, f.Size)
	if _, err := io.ReadFull(io.NewSectionReader(b.r, b.at[i], f.Size), raw); err != nil {
		return nil, fmt.Errorf("file %s of the bundle: %w", name, err)
	}
	if digestOf(raw) != f.SHA256 {
		return nil, fmt.Errorf("file %s of the bundle changed while it was read: %w", name, pipeline.ErrUnverified)
	}
	return raw, nil
}

// blob returns a manifest or blob of the registry.
func (b *Bundle) blob(d pipeline.Digest) ([]byte, error) { return b.Read(blobPrefix + d.Hex()) }

// names lists the files of a role, in order.
func (b *Bundle) names(role Role) (names []string) {
	for _, f := range b.Manifest.Files {
		if f.Role == role {
			names = append(names, f.Name)
		}
	}
	return names
}

// document reads a file into v.
func (b *Bundle) document(name string, v any) error {
	raw, err := b.Read(name)
	if err != nil {
		return err
	}
	if err := decode(raw, v); err != nil {
		return fmt.Errorf("%s: %w: %w", name, err, pipeline.ErrUnverified)
	}
	return nil
}

// decode reads one JSON document. What it does not know it refuses: nobody should
// read something in it that this program did not look at.
func decode(raw []byte, v any) error {
	if err := uniqueNames(raw); err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return fmt.Errorf("not a document of this version: %w", err)
	}
	return nil
}

const maxDepth = 100

// uniqueNames refuses JSON in which an object has a name twice,
// and JSON that is followed by something.
func uniqueNames(raw []byte) error {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var stack []map[string]bool // nil for an array
	var name bool               // the next token of an object is a name
	for {
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) && len(stack) == 0 {
			return errors.New("not JSON: it is empty")
		}
		if err != nil {
			return fmt.Errorf("not JSON: %w", err)
		}
		switch tok {
		case json.Delim('{'):
			stack, name = append(stack, map[string]bool{}), true
		case json.Delim('['):
			stack, name = append(stack, nil), false
		case json.Delim('}'), json.Delim(']'):
			stack = stack[:len(stack)-1]
			name = len(stack) > 0 && stack[len(stack)-1] != nil
		default:
			if name {
				key, _ := tok.(string)
				if seen := stack[len(stack)-1]; seen[key] {
					return fmt.Errorf("the name %.60q is there twice", key)
				} else {
					seen[key] = true
				}
				name = false
			} else {
				name = len(stack) > 0 && stack[len(stack)-1] != nil
			}
		}
		if len(stack) > maxDepth {
			return fmt.Errorf("JSON is nested deeper than %d", maxDepth)
		}
		if len(stack) == 0 {
			break
		}
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the JSON document")
	}
	return nil
}
