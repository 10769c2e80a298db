//go:build goexperiment.jsonv2

package scanner

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// contents keeps what is in layers beside Trivy's analysis of them, and what
// the layers of an image amount to. Both are files that are named for digests
// and never change.
type contents struct{ dir string }

const (
	// contentsVersion changes with what listings or surveys hold or mean; what
	// was kept under another one is not read.
	contentsVersion = 1
	// maxContents is how many bytes may be kept before they are thrown away at
	// start. A layer of ten thousand files takes about 250 kB.
	maxContents = 1 << 30
)

func openContents(cacheDir string, log *slog.Logger) (contents, error) {
	c := contents{filepath.Join(cacheDir, "contents")}
	fail := func(err error) (contents, error) {
		return contents{}, fmt.Errorf("scanner: open the lists of files in CacheDir %s: %w", cacheDir, err)
	}
	var size int64
	err := filepath.WalkDir(c.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if strings.HasPrefix(d.Name(), tempPrefix) {
			return os.Remove(path) // what a process that died was writing
		}
		info, err := d.Info()
		if err == nil {
			size += info.Size()
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fail(err)
	}
	if size > maxContents {
		log.Info("the scanner's lists of files are too many and start anew", "dir", c.dir, "bytes", size)
		if err := os.RemoveAll(c.dir); err != nil {
			return fail(err)
		}
	}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return fail(err)
	}
	return c, nil
}

// layer returns a layer's listing and its unpacked size; ok is false when it has
// to be read again.
func (c contents) layer(diffID v1.Hash) (listing []byte, size int64, ok bool) {
	data, ok := c.get(layerName(diffID))
	if !ok || len(data) < 8 {
		return nil, 0, false
	}
	return data[8:], int64(binary.LittleEndian.Uint64(data)), true
}

func (c contents) putLayer(diffID v1.Hash, listing []byte, size int64) error {
	data := binary.LittleEndian.AppendUint64(make([]byte, 0, 8+len(listing)), uint64(size))
	if err := c.put(layerName(diffID), append(data, listing...)); err != nil {
		return fmt.Errorf("keep the list of files of layer %s: %w", diffID, err)
	}
	return nil
}

func layerName(diffID v1.Hash) string {
	return fmt.Sprintf("%d-layer-%s-%s", contentsVersion, diffID.Algorithm, diffID.Hex)
}

// image returns the survey of these layers if it was made before.
func (c contents) image(layers []v1.Hash) (files, bool) {
	var out files
	data, ok := c.get(imageName(layers))
	if !ok || json.Unmarshal(data, &out) != nil || len(out.Sizes) != len(layers) {
		return files{}, false
	}
	return out, true
}

// imageName depends on what is looked for too: a longer list of shells is
// another survey.
func imageName(layers []v1.Hash) string {
	h := sha256.New()
	for _, names := range [][]string{shells, packageManagers, notPrograms} {
		fmt.Fprintln(h, names)
	}
	for _, l := range layers {
		fmt.Fprintln(h, l)
	}
	return fmt.Sprintf("%d-image-%x", contentsVersion, h.Sum(nil))
}

// survey returns what the layers of an image leave behind. Their listings have
// to be there, unless the survey was made before.
func (c contents) survey(ctx context.Context, layers []v1.Hash) (files, error) {
	if out, ok := c.image(layers); ok {
		return out, nil
	}
	lists, sizes := make([][]byte, len(layers)), make([]int64, len(layers))
	total := 0
	for i, l := range layers {
		var ok bool
		if lists[i], sizes[i], ok = c.layer(l); !ok {
			return files{}, fmt.Errorf("the list of files of layer %s was removed while it was needed", l)
		}
		if total += len(lists[i]); total > maxListing {
			return files{}, tooMuch(fmt.Sprintf("the lists of its layers' files take more than %d bytes", maxListing))
		}
	}
	out, err := survey(ctx, lists)
	if err != nil {
		return files{}, err
	}
	out.Sizes = sizes
	data, err := json.Marshal(out)
	if err != nil {
		return files{}, err
	}
	if err := c.put(imageName(layers), data); err != nil {
		return files{}, fmt.Errorf("keep what is in the image: %w", err)
	}
	// What was kept is what is told: bytes that are no UTF-8 become the same
	// characters now as they do when it is read.
	err = json.Unmarshal(data, &out)
	return out, err
}

const tempPrefix = "new-"

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// get returns false for a file that is not there or not whole.
func (c contents) get(name string) ([]byte, bool) {
	data, err := os.ReadFile(filepath.Join(c.dir, name))
	if err != nil || len(data) < 4 {
		return nil, false
	}
	body := data[:len(data)-4]
	if crc32.Checksum(body, castagnoli) != binary.LittleEndian.Uint32(data[len(body):]) {
		return nil, false
	}
	return body, true
}

func (c contents) put(name string, data []byte) (err error) {
	f, err := os.CreateTemp(c.dir, tempPrefix)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(binary.LittleEndian.AppendUint32(data, crc32.Checksum(data, castagnoli)))
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), filepath.Join(c.dir, name))
}
