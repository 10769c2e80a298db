//go:build goexperiment.jsonv2

package scanner

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	trivydb "github.com/aquasecurity/trivy-db/pkg/db"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/dray-project/dray/pipeline"
)

const (
	databaseMediaType = "application/vnd.aquasec.trivy.db.layer.v1.tar+gzip"
	databaseFile      = "trivy.db"
	metadataFile      = "metadata.json"

	// Bounds on what a registry may send. The public database has about 100 MB
	// packed and 1 GB unpacked.
	maxPacked   = 2 << 30
	maxUnpacked = 8 << 30
	maxMetadata = 1 << 20
)

// artefact is what the reference names now.
type artefact struct {
	digest pipeline.Digest // of the manifest
	layer  v1.Descriptor
}

func (d *database) attempt(what string, err error) error {
	return fmt.Errorf("%s the vulnerability database %s from %s: %w", what, d.cfg.Database, d.ref.Context().RegistryStr(), err)
}

// resolve reads the manifest. Its digest is that of the bytes, not what the
// registry says it is.
func (d *database) resolve(ctx context.Context) (artefact, error) {
	desc, err := remote.Get(d.ref, d.cfg.remote(ctx)...)
	if err != nil {
		return artefact{}, d.attempt("find", err)
	}
	digest, err := pipeline.ParseDigest(desc.Digest.String())
	if err != nil {
		return artefact{}, d.attempt("find", err)
	}
	if !desc.MediaType.IsImage() {
		return artefact{}, d.attempt("find", fmt.Errorf("manifest %s has media type %q: it is no vulnerability database", digest, desc.MediaType))
	}
	var m v1.Manifest
	if err := json.Unmarshal(desc.Manifest, &m); err != nil {
		return artefact{}, d.attempt("find", fmt.Errorf("manifest %s: %w", digest, err))
	}
	if len(m.Layers) != 1 || m.Layers[0].MediaType != databaseMediaType {
		return artefact{}, d.attempt("find", fmt.Errorf("manifest %s is no vulnerability database: want one layer of media type %s", digest, databaseMediaType))
	}
	if size := m.Layers[0].Size; size <= 0 || size > maxPacked {
		return artefact{}, d.attempt("find", fmt.Errorf("manifest %s: the layer has %d bytes, more than %d are not read", digest, size, int64(maxPacked)))
	}
	return artefact{digest, m.Layers[0]}, nil
}

func (d *database) path(digest pipeline.Digest) string { return filepath.Join(d.dir, digest.Hex()) }
func (d *database) currentFile() string                { return filepath.Join(d.dir, "current.json") }

// pull brings the artefact into CacheDir/db/<digest>. What is there is whole:
// it appears under its name when everything was verified.
func (d *database) pull(ctx context.Context, a artefact) (_ *copyOnDisk, err error) {
	defer func() {
		if err != nil && !pipeline.IsPermanent(err) {
			err = d.attempt("pull", err)
		}
	}()
	// Leftovers of attempts that a crash ended: nobody else is here.
	old, _ := filepath.Glob(filepath.Join(d.dir, "pull-*"))
	for _, dir := range old {
		_ = os.RemoveAll(dir)
	}
	scratch, err := os.MkdirTemp(d.dir, "pull-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(scratch) }()

	layer, err := remote.Layer(d.ref.Context().Digest(a.layer.Digest.String()), d.cfg.remote(ctx)...)
	if err != nil {
		return nil, err
	}
	// Checks the digest when it has read everything.
	packed, err := layer.Compressed()
	if err != nil {
		return nil, err
	}
	defer func() { _ = packed.Close() }()
	sha, size, err := unpack(io.LimitReader(packed, a.layer.Size), scratch)
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", a.layer.Digest, err)
	}
	switch n, err := io.Copy(io.Discard, io.LimitReader(packed, 1)); {
	case err != nil:
		return nil, fmt.Errorf("layer %s: %w", a.layer.Digest, err)
	case n != 0:
		return nil, fmt.Errorf("layer %s: it is longer than the %d bytes that the manifest says", a.layer.Digest, a.layer.Size)
	}
	updatedAt, err := readMetadata(scratch)
	if err != nil {
		return nil, err
	}
	c := &copyOnDisk{Reference: d.cfg.Database, Digest: a.digest, UpdatedAt: updatedAt, SHA256: sha, Size: size}
	if err := writeJSON(filepath.Join(scratch, "copy.json"), c); err != nil {
		return nil, err
	}
	if err := os.RemoveAll(d.path(a.digest)); err != nil {
		return nil, err
	}
	return c, os.Rename(scratch, d.path(a.digest))
}

// unpack writes trivy.db and metadata.json into dir, and nothing else, and
// returns the digest and size of the former.
func unpack(packed io.Reader, dir string) (sha string, size int64, err error) {
	zr, err := gzip.NewReader(packed)
	if err != nil {
		return "", 0, err
	}
	limited := &io.LimitedReader{R: zr, N: maxUnpacked}
	tr := tar.NewReader(limited)
	found := map[string]bool{}
	for {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", 0, tooLarge(limited, err)
		}
		if hdr.Typeflag != tar.TypeReg || (hdr.Name != databaseFile && hdr.Name != metadataFile) {
			continue
		}
		if found[hdr.Name] {
			return "", 0, fmt.Errorf("it holds %s twice", hdr.Name)
		}
		found[hdr.Name] = true
		if hdr.Name == metadataFile && hdr.Size > maxMetadata {
			return "", 0, fmt.Errorf("%s has %d bytes, more than %d", hdr.Name, hdr.Size, maxMetadata)
		}
		h := sha256.New()
		n, err := writeFile(filepath.Join(dir, hdr.Name), io.TeeReader(tr, h))
		if err != nil {
			return "", 0, tooLarge(limited, err)
		}
		if hdr.Name == databaseFile {
			sha, size = fmt.Sprintf("%x", h.Sum(nil)), n
		}
	}
	// To the end, so that the digest is checked over all of it.
	if _, err := io.Copy(io.Discard, limited); err != nil {
		return "", 0, err
	}
	if limited.N == 0 {
		return "", 0, tooLarge(limited, nil)
	}
	if _, err := io.Copy(io.Discard, packed); err != nil {
		return "", 0, err
	}
	for _, name := range []string{databaseFile, metadataFile} {
		if !found[name] {
			return "", 0, fmt.Errorf("it holds no %s", name)
		}
	}
	return sha, size, nil
}

func tooLarge(l *io.LimitedReader, err error) error {
	if l.N == 0 {
		return fmt.Errorf("it unpacks to more than %d bytes", int64(maxUnpacked))
	}
	return err
}

func readMetadata(dir string) (updatedAt time.Time, err error) {
	raw, err := os.ReadFile(filepath.Join(dir, metadataFile))
	if err != nil {
		return time.Time{}, err
	}
	var meta struct {
		Version   int
		UpdatedAt time.Time
	}
	if err := json.Unmarshal(raw, &meta); err != nil {
		return time.Time{}, fmt.Errorf("%s: %w", metadataFile, err)
	}
	if meta.Version != trivydb.SchemaVersion {
		return time.Time{}, pipeline.Permanent(fmt.Errorf(
			"the vulnerability database has layout version %d, and this scanner reads version %d: set the reference to one of that version",
			meta.Version, trivydb.SchemaVersion))
	}
	if meta.UpdatedAt.IsZero() {
		return time.Time{}, fmt.Errorf("%s does not say when the database was updated", metadataFile)
	}
	return meta.UpdatedAt.UTC(), nil
}

// kept returns the copy under that digest if it is whole.
func (d *database) kept(digest pipeline.Digest) (*copyOnDisk, error) {
	if _, err := pipeline.ParseDigest(string(digest)); err != nil {
		return nil, err
	}
	raw, err := os.ReadFile(filepath.Join(d.path(digest), "copy.json"))
	if err != nil {
		return nil, err
	}
	var c copyOnDisk
	if err := json.Unmarshal(raw, &c); err != nil {
		return nil, err
	}
	if c.Digest != digest {
		return nil, fmt.Errorf("the copy says that it is %s", c.Digest)
	}
	f, err := os.Open(filepath.Join(d.path(digest), databaseFile))
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		return nil, err
	}
	if n != c.Size || fmt.Sprintf("%x", h.Sum(nil)) != c.SHA256 {
		return nil, errors.New("the file is not what was pulled")
	}
	// A mirror may serve the same database under another name.
	c.Reference = d.cfg.Database
	return &c, nil
}

// remember notes which copy is in force, for a start without the registry.
func (d *database) remember(c *copyOnDisk) error {
	tmp := d.currentFile() + ".new"
	if err := writeJSON(tmp, c); err != nil {
		return err
	}
	return os.Rename(tmp, d.currentFile())
}

func writeJSON(path string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(path, raw, 0o600)
}

// writeFile writes and syncs: the copy is used after a crash of the machine.
func writeFile(path string, r io.Reader) (n int64, err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if n, err = io.Copy(f, r); err != nil {
		return n, err
	}
	return n, f.Sync()
}
