//go:build goexperiment.jsonv2

package scanner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	trivydb "github.com/aquasecurity/trivy-db/pkg/db"
	"github.com/google/go-containerregistry/pkg/name"
	bolt "go.etcd.io/bbolt"

	"github.com/dray-project/dray/pipeline"
)

const (
	// pullTimeout bounds one refresh: the public database has about 100 MB.
	pullTimeout = 15 * time.Minute
	// retryAfter is how long a failed refresh is not tried again while there is
	// a database that may be used.
	retryAfter = time.Minute
	// clockSlack is how far in the future a database may come from. Beyond it
	// one of the clocks is wrong, and its age means nothing.
	clockSlack = 24 * time.Hour
)

// database is the vulnerability database: pulled by the digest of its manifest,
// kept in CacheDir/db/<digest>, and opened for all scans of the process.
type database struct {
	cfg Config
	ref name.Reference
	dir string

	// refreshing has room for the one that asks the registry.
	refreshing chan struct{}
	// handle is held for reading while a scan reads Trivy's database handle,
	// and for writing while the handle or current is replaced.
	handle  sync.RWMutex
	current *copyOnDisk // nil until the first refresh
	closed  bool
	// next is when the registry is to be asked again. Guarded by handle.
	next time.Time
}

// copyOnDisk is a database that was pulled and verified.
type copyOnDisk struct {
	Reference string          `json:"reference"`
	Digest    pipeline.Digest `json:"digest"`
	UpdatedAt time.Time       `json:"updatedAt"`
	// SHA256 and Size are those of trivy.db: a file that was cut off or changed
	// would crash the process that maps it.
	SHA256 string `json:"sha256"`
	Size   int64  `json:"size"`
}

var errClosed = errors.New("the scanner is closed")

func newDatabase(c Config) (*database, error) {
	ref, err := c.reference(c.Database)
	if err != nil {
		return nil, fmt.Errorf("scanner: Database %q: %w", c.Database, err)
	}
	d := &database{cfg: c, ref: ref, dir: filepath.Join(c.CacheDir, "db"), refreshing: make(chan struct{}, 1)}
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return nil, fmt.Errorf("scanner: CacheDir: %w", err)
	}
	return d, nil
}

// acquire returns the database that is in force, young enough, and holds it
// until release is called.
func (d *database) acquire(ctx context.Context) (_ pipeline.VulnerabilityDatabase, release func(), err error) {
	if err := d.refresh(ctx); err != nil {
		return pipeline.VulnerabilityDatabase{}, nil, err
	}
	d.handle.RLock()
	if err := d.usable(d.current); err != nil {
		d.handle.RUnlock()
		return pipeline.VulnerabilityDatabase{}, nil, err
	}
	return pipeline.VulnerabilityDatabase{
		Reference: d.current.Reference, Digest: d.current.Digest, UpdatedAt: d.current.UpdatedAt,
	}, d.handle.RUnlock, nil
}

// refresh asks the registry for a newer database when it is time to. When the
// registry cannot be asked, a database that is young enough does.
func (d *database) refresh(ctx context.Context) error {
	due, usable := d.due()
	if !due {
		return nil
	}
	if usable {
		select {
		case d.refreshing <- struct{}{}:
		default:
			return nil // somebody asks already, and there is one to go on with
		}
	} else {
		select {
		case d.refreshing <- struct{}{}:
		case <-ctx.Done():
			return fmt.Errorf("wait for the vulnerability database %s: %w", d.cfg.Database, ctx.Err())
		}
	}
	defer func() { <-d.refreshing }()
	if due, _ := d.due(); !due {
		return nil // somebody asked while this one waited
	}

	ctx, cancel := context.WithTimeout(ctx, pullTimeout)
	defer cancel()
	err := d.update(ctx)
	d.handle.Lock()
	defer d.handle.Unlock()
	if err == nil {
		d.next = d.cfg.Now().Add(d.cfg.RefreshEvery)
		return d.usable(d.current)
	}
	if d.closed {
		return errClosed
	}
	if d.current == nil {
		d.openKept(ctx)
	}
	switch unusable := d.usable(d.current); {
	case unusable != nil && d.current != nil:
		// In words only: whether trying again can help is for err to say.
		return fmt.Errorf("%w (and the one at hand cannot serve: %v)", err, unusable)
	case unusable != nil:
		return err
	}
	d.next = d.cfg.Now().Add(min(retryAfter, d.cfg.RefreshEvery))
	d.cfg.Log.WarnContext(ctx, "could not refresh the vulnerability database; scanning goes on with the one at hand",
		"err", err, "digest", d.current.Digest, "updated_at", d.current.UpdatedAt, "max_age", d.cfg.MaxAge)
	return nil
}

// due reports whether the registry is to be asked, and whether there is a
// database to go on with meanwhile.
func (d *database) due() (due, usable bool) {
	d.handle.RLock()
	defer d.handle.RUnlock()
	usable = d.usable(d.current) == nil
	return !usable || !d.cfg.Now().Before(d.next), usable
}

// usable returns a permanent error if the database is not to be scanned with.
func (d *database) usable(c *copyOnDisk) error {
	if d.closed {
		return errClosed
	}
	if c == nil {
		return fmt.Errorf("there is no vulnerability database yet: %s was not pulled", d.cfg.Database)
	}
	age := d.cfg.Now().Sub(c.UpdatedAt)
	switch {
	case age > d.cfg.MaxAge:
		return pipeline.Permanent(fmt.Errorf(
			"the vulnerability database %s (%s) was updated at %s, %s ago, and may be %s old at most: "+
				"bring a newer one to that reference, or allow a greater age in the settings",
			c.Reference, c.Digest, c.UpdatedAt.UTC().Format(time.RFC3339), age.Round(time.Minute), d.cfg.MaxAge))
	case age < -clockSlack:
		return pipeline.Permanent(fmt.Errorf(
			"the vulnerability database %s (%s) says that it was updated at %s, which is %s from now: "+
				"set this machine's clock, or repair the database at that reference",
			c.Reference, c.Digest, c.UpdatedAt.UTC().Format(time.RFC3339), (-age).Round(time.Minute)))
	}
	return nil
}

// update asks the registry, pulls what is new, and opens it.
func (d *database) update(ctx context.Context) error {
	current, closed := d.inForce()
	if closed {
		return errClosed
	}
	artefact, err := d.resolve(ctx)
	if err != nil {
		return err
	}
	if current != nil && current.Digest == artefact.digest {
		return nil
	}
	c, err := d.kept(artefact.digest)
	if err != nil {
		if c, err = d.pull(ctx, artefact); err != nil {
			return err
		}
	}
	// Before the database is in force: scans go on meanwhile with the one before.
	if err := d.keepIndex(c); err != nil {
		d.cfg.Log.WarnContext(ctx, "what this vulnerability database changes cannot be told; everything will be matched again", "error", err)
	}
	d.handle.Lock()
	defer d.handle.Unlock()
	// One that is too old does not replace one that is not.
	if err := d.usable(c); err != nil {
		return err
	}
	if err := d.open(c); err != nil {
		return err
	}
	d.cfg.Log.InfoContext(ctx, "vulnerability database in force",
		"reference", c.Reference, "digest", c.Digest, "updated_at", c.UpdatedAt)
	return nil
}

func (d *database) inForce() (c *copyOnDisk, closed bool) {
	d.handle.RLock()
	defer d.handle.RUnlock()
	return d.current, d.closed
}

// open puts the copy in force. The caller holds handle for writing, so no scan
// is reading.
func (d *database) open(c *copyOnDisk) (err error) {
	dir := d.path(c.Digest)
	if err := probe(filepath.Join(dir, databaseFile)); err != nil {
		return fmt.Errorf("open the vulnerability database %s (%s): %w", c.Reference, c.Digest, err)
	}
	previous := d.current
	if err := d.closeHandle(); err != nil {
		return fmt.Errorf("close the vulnerability database %s: %w", previous.Digest, err)
	}
	if err := trivydb.Init(dir, trivydb.WithBoltOptions(&bolt.Options{ReadOnly: true, Timeout: 5 * time.Second})); err != nil {
		return fmt.Errorf("open the vulnerability database %s (%s): %w", c.Reference, c.Digest, err)
	}
	d.current = c
	if err := d.remember(c); err != nil {
		d.cfg.Log.Warn("could not note which vulnerability database is in force; after a restart it must be pulled to be found", "err", err)
	}
	if previous != nil && previous.Digest != c.Digest {
		_ = os.RemoveAll(d.path(previous.Digest))
	}
	return nil
}

func (d *database) closeHandle() error {
	if d.current == nil {
		return nil
	}
	d.current = nil
	return trivydb.Close()
}

// shut refuses all scans from now on. It reports whether it was this call that did.
func (d *database) shut() bool {
	d.handle.Lock()
	defer d.handle.Unlock()
	was := d.closed
	d.closed = true
	return !was
}

// close waits for scans that are matching, and closes Trivy's handle.
func (d *database) close() error {
	d.handle.Lock()
	defer d.handle.Unlock()
	return d.closeHandle()
}

// openKept opens the database that was in force when the process last ran, if
// it came from the same reference and is young enough. The caller holds handle.
func (d *database) openKept(ctx context.Context) {
	raw, err := os.ReadFile(d.currentFile())
	if err != nil {
		return
	}
	var last copyOnDisk
	if json.Unmarshal(raw, &last) != nil || last.Reference != d.cfg.Database {
		return
	}
	c, err := d.kept(last.Digest)
	if err == nil && d.usable(c) == nil {
		err = d.open(c)
	}
	if err != nil {
		d.cfg.Log.WarnContext(ctx, "the vulnerability database on disk cannot be used", "digest", last.Digest, "err", err)
	}
}

// probe opens the file as Trivy will, but in a way that a broken one is an
// error and no crash.
func probe(path string) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the file is broken: %v", r)
		}
	}()
	db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true, Timeout: 5 * time.Second})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	return db.View(func(tx *bolt.Tx) error {
		for _, bucket := range []string{"vulnerability", "data-source"} {
			if tx.Bucket([]byte(bucket)) == nil {
				return fmt.Errorf("the file has no %q: it is no vulnerability database", bucket)
			}
		}
		return nil
	})
}
