//go:build goexperiment.jsonv2

package scanner

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/aquasecurity/trivy-db/pkg/ecosystem"
	"github.com/aquasecurity/trivy-db/pkg/vulnsrc/vulnerability"
	"github.com/aquasecurity/trivy/pkg/detector/library"
	ftypes "github.com/aquasecurity/trivy/pkg/fanal/types"
	bolt "go.etcd.io/bbolt"

	"github.com/dray-project/dray/pipeline"
)

// An index is a summary of a vulnerability database: for each package that it
// speaks of, a hash of all that it says of it, the vulnerabilities' own entries
// included. Two of them tell which packages may be matched otherwise. It stays
// when its database is removed.
type index map[uint64]uint64

const (
	// indexVersion changes with what keys mean.
	indexVersion = 1
	// keptIndexes is how many databases back changes can be told.
	keptIndexes = 12
)

// Classes of keys. A package of a distribution is looked up by its name or that
// of its source, in the distribution's buckets; all distributions share a class,
// which costs a match now and then and misses none.
const (
	classOS  = "os"
	classAny = "any"
	// classAll stands for what every image depends on.
	classAll = "all"
	// classRedHat stands for the table that says which repositories hold what.
	classRedHat = "redhat-cpe"
)

func keyOf(class, name string) uint64 {
	sum := sha256.Sum256([]byte(class + "\x00" + name))
	return binary.BigEndian.Uint64(sum[:])
}

// keyForm comes first in all keys, so that those of another form are known as such.
func keyForm() uint64 { return keyOf("form", fmt.Sprint(indexVersion)) }

// languages are the ecosystems whose buckets are looked up under their own name.
func languages() []ecosystem.Type {
	return []ecosystem.Type{ecosystem.Npm, ecosystem.Composer, ecosystem.Pip, ecosystem.RubyGems, ecosystem.Cargo, ecosystem.Julia,
		ecosystem.NuGet, ecosystem.Maven, ecosystem.Go, ecosystem.Conan, ecosystem.Erlang, ecosystem.Pub, ecosystem.Swift,
		ecosystem.Cocoapods, ecosystem.Bitnami, ecosystem.Kubernetes}
}

// analysisKeys are what of a database can matter to an image, form first, then sorted.
func analysisKeys(d ftypes.ArtifactDetail) []byte {
	keys := map[uint64]bool{keyOf(classAll, ""): true}
	for _, p := range d.Packages {
		for _, name := range []string{p.Name, p.SrcName} {
			if name != "" {
				keys[keyOf(classOS, name)], keys[keyOf(classAny, name)] = true, true
			}
		}
	}
	if f := d.OS.Family; len(d.Packages) > 0 && (f == ftypes.RedHat || f == ftypes.CentOS) {
		keys[keyOf(classRedHat, "")] = true
	}
	for _, app := range d.Applications {
		driver, ok := library.NewDriver(app.Type)
		if !ok {
			continue // not matched at all
		}
		for _, p := range app.Packages {
			name := vulnerability.NormalizePkgName(ecosystem.Type(driver.Type()), p.Name)
			keys[keyOf(driver.Type(), name)], keys[keyOf(classAny, name)] = true, true
		}
	}
	return packKeys(slices.Collect(maps.Keys(keys)))
}

func packKeys(keys []uint64) []byte {
	slices.Sort(keys)
	out := binary.BigEndian.AppendUint64(make([]byte, 0, 8*(len(keys)+1)), keyForm())
	for _, k := range keys {
		out = binary.BigEndian.AppendUint64(out, k)
	}
	return out
}

// Changes says what an image has to hold to be matched otherwise with the
// database in force, which it names, than with the one of that digest. When that
// one is not known here any more, everything may have changed.
func (s *Scanner) Changes(ctx context.Context, from pipeline.Digest) (pipeline.VulnerabilityDatabase, pipeline.Changes, error) {
	info, release, err := s.db.acquire(ctx)
	if err != nil {
		return info, pipeline.Changes{}, fmt.Errorf("compare vulnerability databases: %w", err)
	}
	release()
	before, err := s.db.readIndex(from)
	if err == nil {
		var now index
		if now, err = s.db.readIndex(info.Digest); err == nil {
			return info, now.since(before), nil
		}
	}
	s.cfg.Log.InfoContext(ctx, "what a vulnerability database changed cannot be told; everything is matched again", "from", from, "to", info.Digest, "reason", err)
	return info, pipeline.Changes{All: true}, nil
}

func (now index) since(before index) pipeline.Changes {
	var keys []uint64
	for k, v := range now {
		if old, ok := before[k]; !ok || old != v {
			keys = append(keys, k)
		}
	}
	for k := range before {
		if _, ok := now[k]; !ok {
			keys = append(keys, k)
		}
	}
	return pipeline.Changes{Keys: packKeys(keys)}
}

func (d *database) indexFile(digest pipeline.Digest) string {
	return filepath.Join(d.dir, fmt.Sprintf("index-%d-%s", indexVersion, digest.Hex()))
}

// keepIndex makes the index of a database if it is not there, and removes the
// oldest ones.
func (d *database) keepIndex(c *copyOnDisk) error {
	file := d.indexFile(c.Digest)
	now := time.Now()
	if os.Chtimes(file, now, now) == nil {
		return nil
	}
	x, err := indexOf(filepath.Join(d.path(c.Digest), databaseFile))
	if err != nil {
		return fmt.Errorf("index the vulnerability database %s: %w", c.Digest, err)
	}
	raw := make([]byte, 0, 16*len(x)+sha256.Size)
	for _, k := range slices.Sorted(maps.Keys(x)) {
		raw = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(raw, k), x[k])
	}
	sum := sha256.Sum256(raw)
	if err := os.WriteFile(file+".new", append(raw, sum[:]...), 0o600); err != nil {
		return err
	}
	if err := os.Rename(file+".new", file); err != nil {
		return err
	}
	return d.pruneIndexes()
}

func (d *database) pruneIndexes() error {
	files, err := filepath.Glob(filepath.Join(d.dir, "index-*"))
	if err != nil {
		return err
	}
	age := func(path string) (t time.Time) {
		if info, err := os.Stat(path); err == nil {
			t = info.ModTime()
		}
		return t
	}
	slices.SortFunc(files, func(a, b string) int { return age(b).Compare(age(a)) })
	for _, f := range files[min(len(files), keptIndexes):] {
		err = errors.Join(err, os.Remove(f))
	}
	return err
}

func (d *database) readIndex(digest pipeline.Digest) (index, error) {
	if _, err := pipeline.ParseDigest(string(digest)); err != nil {
		return nil, err
	}
	raw, err := os.ReadFile(d.indexFile(digest))
	if err != nil {
		return nil, err
	}
	n := len(raw) - sha256.Size
	if n < 0 || n%16 != 0 || sha256.Sum256(raw[:n]) != [sha256.Size]byte(raw[n:]) {
		return nil, fmt.Errorf("the index of %s is not whole", digest)
	}
	x := make(index, n/16)
	for i := 0; i < n; i += 16 {
		x[binary.BigEndian.Uint64(raw[i:])] = binary.BigEndian.Uint64(raw[i+8:])
	}
	return x, nil
}

// indexOf reads a database that may be in force at the same time.
func indexOf(path string) (x index, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the file is broken: %v", r)
		}
	}()
	db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true, Timeout: 5 * time.Second})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	err = db.View(func(tx *bolt.Tx) error {
		x = index{}
		return tx.ForEach((&indexer{tx: tx, index: x, entries: map[string]uint64{}}).bucket)
	})
	return x, err
}

type indexer struct {
	tx    *bolt.Tx
	index index
	// entries are the hashes of vulnerabilities' own entries, by id.
	entries map[string]uint64
}

// bucket adds what one source says.
func (x *indexer) bucket(name []byte, b *bolt.Bucket) error {
	switch string(name) {
	case "vulnerability", "data-source":
		return nil // looked at where something refers to them
	case "Red Hat CPE":
		return x.whole(keyOf(classRedHat, ""), name, b)
	}
	var source []byte
	if sources := x.tx.Bucket([]byte("data-source")); sources != nil {
		source = sources.Get(name)
	}
	return b.ForEach(func(pkg, v []byte) error {
		if v != nil {
			x.add(keyOf(classAll, ""), digest64(name, pkg, v)) // nothing that we know of
			return nil
		}
		var said uint64
		err := b.Bucket(pkg).ForEach(func(id, v []byte) error {
			if v == nil {
				x.add(keyOf(classAll, ""), digest64(name, pkg, id))
				return x.whole(keyOf(classAll, ""), id, b.Bucket(pkg).Bucket(id))
			}
			said += digest64(name, source, pkg, id, v) + x.vulnerability(id)
			return nil
		})
		for _, k := range packageKeys(string(name), string(pkg)) {
			x.add(k, said)
		}
		return err
	})
}

// packageKeys are the keys under which images look a package of a bucket up.
func packageKeys(bucket, pkg string) []uint64 {
	lang, _, isLang := strings.Cut(bucket, "::")
	switch {
	case isLang && slices.Contains(languages(), ecosystem.Type(lang)):
		return []uint64{keyOf(lang, pkg)}
	case isLang:
		return []uint64{keyOf(classAny, pkg)} // a supplier's, for some ecosystem
	}
	keys := []uint64{keyOf(classOS, pkg)}
	// A package of a module: "nodejs:18::npm".
	if i := strings.LastIndex(pkg, "::"); i >= 0 {
		keys = append(keys, keyOf(classOS, pkg[i+2:]))
	}
	return keys
}

// add makes the order in which things are found not matter.
func (x *indexer) add(key, what uint64) { x.index[key] += what }

// whole puts all of a bucket under one key.
func (x *indexer) whole(key uint64, name []byte, b *bolt.Bucket) error {
	return b.ForEach(func(k, v []byte) error {
		path := bytes.Join([][]byte{name, k}, []byte{0})
		if v == nil {
			return x.whole(key, path, b.Bucket(k))
		}
		x.add(key, digest64(path, v))
		return nil
	})
}

// vulnerability is the hash of the entry from which titles, severities and
// addresses come.
func (x *indexer) vulnerability(id []byte) uint64 {
	if h, ok := x.entries[string(id)]; ok {
		return h
	}
	var h uint64
	if all := x.tx.Bucket([]byte("vulnerability")); all != nil {
		h = digest64(id, all.Get(id))
	}
	x.entries[string(id)] = h
	return h
}

// digest64 is a hash of the parts, each with its length.
func digest64(parts ...[]byte) uint64 {
	h := sha256.New()
	var n [8]byte
	for _, p := range parts {
		binary.BigEndian.PutUint64(n[:], uint64(len(p)))
		h.Write(n[:])
		h.Write(p)
	}
	return binary.BigEndian.Uint64(h.Sum(nil))
}
