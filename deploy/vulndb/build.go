package vulndb

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/aquasecurity/trivy-db/pkg/types"
	bolt "go.etcd.io/bbolt"
)

// Schema is the version of the database layout.
const Schema = 2

const (
	databaseFile = "trivy.db"
	metadataFile = "metadata.json"
)

// metadata says of a database when it was made; the scanner reads its age here.
type metadata struct {
	Version      int
	NextUpdate   time.Time
	UpdatedAt    time.Time
	DownloadedAt time.Time
}

// Build writes the database into a new temporary directory, which the caller
// removes. The same advisories and time give the same bytes.
func Build(ctx context.Context, advisories []Advisory, updatedAt time.Time) (dir string, err error) {
	dir, err = os.MkdirTemp("", "dray-vulndb-")
	if err != nil {
		return "", fmt.Errorf("build a vulnerability database: %w", err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("build a vulnerability database: %w", err)
			_ = os.RemoveAll(dir)
			dir = ""
		}
	}()
	if err := writeDatabase(ctx, filepath.Join(dir, databaseFile), advisories); err != nil {
		return dir, err
	}
	updatedAt = updatedAt.UTC().Truncate(time.Second)
	meta, err := json.Marshal(metadata{
		Version: Schema, UpdatedAt: updatedAt, NextUpdate: updatedAt.Add(24 * time.Hour),
	})
	if err != nil {
		return dir, err
	}
	return dir, os.WriteFile(filepath.Join(dir, metadataFile), meta, 0o644)
}

func writeDatabase(ctx context.Context, path string, advisories []Advisory) (err error) {
	advisories = slices.Clone(advisories)
	slices.SortStableFunc(advisories, func(a, b Advisory) int {
		return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.Ecosystem, b.Ecosystem), cmp.Compare(a.Package, b.Package))
	})
	db, err := bolt.Open(path, 0o644, &bolt.Options{
		// The page size is the machine's unless it is given, and the bytes would
		// differ between machines. Nothing survives a crash here anyway: no sync.
		PageSize: 4096, NoSync: true, NoGrowSync: true, Timeout: time.Second,
	})
	if err != nil {
		return err
	}
	defer func() {
		if cerr := db.Close(); err == nil {
			err = cerr
		}
	}()
	// Bolt writes the buckets that a transaction touched in random order. One
	// bucket per transaction leaves it no choice, so the bytes are reproducible.
	if err := put(db, nil, "vulnerability", nil); err != nil {
		return err
	}
	for i, a := range advisories {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := a.validate(); err != nil {
			return fmt.Errorf("advisory %s (%s): %w", a.ID, a.Package, err)
		}
		if i > 0 && same(a, advisories[i-1]) {
			return fmt.Errorf("advisory %s (%s): given twice for %s", a.ID, a.Package, a.Ecosystem)
		}
		if err := putAdvisory(db, a); err != nil {
			return fmt.Errorf("advisory %s (%s): %w", a.ID, a.Package, err)
		}
	}
	return db.Sync()
}

func same(a, b Advisory) bool {
	return a.ID == b.ID && a.Ecosystem == b.Ecosystem && a.Package == b.Package
}

func putAdvisory(db *bolt.DB, a Advisory) error {
	b, err := a.bucket()
	if err != nil {
		return err
	}
	severity, err := a.severity()
	if err != nil {
		return err
	}
	// Debian rates few vulnerabilities itself; the scanner then falls back on
	// the national database's rating.
	rater := b.source.ID
	if a.distribution() {
		rater = "nvd"
	}
	if err := put(db, []string{"data-source"}, b.name, b.source); err != nil {
		return err
	}
	if err := put(db, []string{b.name, a.Package}, a.ID, a.entry()); err != nil {
		return err
	}
	return putVulnerability(db, a, rater, severity)
}

// putVulnerability adds to what earlier advisories said under the same id.
func putVulnerability(db *bolt.DB, a Advisory, rater types.SourceID, severity types.Severity) error {
	v := types.Vulnerability{Title: a.Title}
	err := db.View(func(tx *bolt.Tx) error {
		if raw := tx.Bucket([]byte("vulnerability")).Get([]byte(a.ID)); raw != nil {
			return json.Unmarshal(raw, &v)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if v.VendorSeverity == nil {
		v.VendorSeverity = types.VendorSeverity{}
	}
	v.VendorSeverity[rater] = max(severity, v.VendorSeverity[rater])
	if a.URL != "" && !slices.Contains(v.References, a.URL) {
		v.References = append(v.References, a.URL)
	}
	return put(db, []string{"vulnerability"}, a.ID, v)
}

// put writes one value below nested buckets; a nil value makes the bucket key.
func put(db *bolt.DB, buckets []string, key string, value any) error {
	return db.Update(func(tx *bolt.Tx) error {
		if value == nil {
			_, err := tx.CreateBucketIfNotExists([]byte(key))
			return err
		}
		b, err := tx.CreateBucketIfNotExists([]byte(buckets[0]))
		for _, name := range buckets[1:] {
			if err != nil {
				return err
			}
			b, err = b.CreateBucketIfNotExists([]byte(name))
		}
		if err != nil {
			return err
		}
		raw, err := json.Marshal(value)
		if err != nil {
			return err
		}
		return b.Put([]byte(key), raw)
	})
}
