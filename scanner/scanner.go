//go:build goexperiment.jsonv2

package scanner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync/atomic"
	"time"

	trivydb "github.com/aquasecurity/trivy-db/pkg/db"
	"github.com/aquasecurity/trivy/pkg/cache"
	"github.com/aquasecurity/trivy/pkg/fanal/applier"
	trivylog "github.com/aquasecurity/trivy/pkg/log"
	"github.com/aquasecurity/trivy/pkg/scan/langpkg"
	"github.com/aquasecurity/trivy/pkg/scan/ospkg"
	"github.com/aquasecurity/trivy/pkg/vulnerability"
	xos "github.com/aquasecurity/trivy/pkg/x/os"
	"golang.org/x/sync/errgroup"

	// Trivy reads RPM and Java databases through database/sql's "sqlite".
	_ "modernc.org/sqlite"

	"github.com/dray-project/dray/pipeline"
)

// trivyVersion is that of the module in go.mod; a library cannot ask Trivy.
const trivyVersion = "0.74.0"

// open is true while a Scanner of this process is. Trivy's database handle is
// a package variable, and two scanners would pull it from under each other.
var open atomic.Bool

// Scanner finds the packages of an image and their vulnerabilities. It is safe
// for concurrent use.
type Scanner struct {
	cfg    Config
	db     *database
	layers cache.FSCache
	// contents are the layers' lists of files.
	contents contents
	// inspectors are those that nobody uses now.
	inspectors chan *inspector
	// slots are taken by layers that are being read.
	slots chan struct{}
	// applier puts the layers of an image together.
	applier applier.Applier
	matcher matcher
	// known are packages that a pass of re-matching has matched already.
	known remembered
}

var _ pipeline.Scanner = (*Scanner)(nil)

// New opens the cache directory. It does not reach out: the database is pulled
// by the first scan, or by Database.
func New(_ context.Context, c Config) (_ *Scanner, err error) {
	c = c.withDefaults()
	if err := c.validate(); err != nil {
		return nil, err
	}
	if !open.CompareAndSwap(false, true) {
		return nil, errors.New("scanner: another Scanner is open in this process, and Trivy's database handle allows one: close the other first")
	}
	defer func() {
		if err != nil {
			open.Store(false)
		}
	}()
	if _, ok := slog.Default().Handler().(*trivylog.DeferredHandler); ok {
		slog.SetDefault(c.Log)
	}
	if err := os.MkdirAll(c.CacheDir, 0o700); err != nil {
		return nil, fmt.Errorf("scanner: CacheDir: %w", err)
	}
	layers, err := openLayerCache(c.CacheDir, c.Log)
	if err != nil {
		return nil, err
	}
	kept, err := openContents(c.CacheDir, c.Log)
	if err != nil {
		return nil, errors.Join(err, layers.Close())
	}
	if err := initJava(c.CacheDir); err != nil {
		return nil, errors.Join(err, layers.Close())
	}
	db, err := newDatabase(c)
	if err != nil {
		return nil, errors.Join(err, layers.Close())
	}
	// Trivy makes this directory once per process, and Close removes it.
	if err := os.MkdirAll(xos.TempDir(), 0o700); err != nil {
		return nil, errors.Join(fmt.Errorf("scanner: scratch directory: %w", err), layers.Close())
	}
	inspectors, err := newInspectors(c, layers, kept)
	if err != nil {
		return nil, errors.Join(err, layers.Close())
	}
	return &Scanner{
		cfg:        c,
		db:         db,
		layers:     layers,
		contents:   kept,
		inspectors: inspectors,
		slots:      make(chan struct{}, c.Parallel),
		applier:    applier.NewApplier(layers),
		matcher:    matcher{ospkg.NewScanner(), langpkg.NewScanner(), vulnerability.NewClient(trivydb.Config{})},
	}, nil
}

// Close waits for the scans that are running (cancel them first to have it
// soon) and frees the cache directory. Scans that come later fail. Closing
// again does nothing.
func (s *Scanner) Close() error {
	if !s.db.shut() {
		return nil
	}
	for range cap(s.inspectors) {
		<-s.inspectors
	}
	close(s.inspectors) // all are in: whoever waits for one learns that there is none
	err := errors.Join(s.db.close(), s.layers.Close(), os.RemoveAll(xos.TempDir()))
	open.Store(false)
	return err
}

// Database makes sure that there is a vulnerability database which is young
// enough, and says which. It fails as Scan would.
func (s *Scanner) Database(ctx context.Context) (pipeline.VulnerabilityDatabase, error) {
	info, release, err := s.db.acquire(ctx)
	if err != nil {
		return pipeline.VulnerabilityDatabase{}, err
	}
	release()
	return info, nil
}

// Scan reads every platform of the image by its digest and matches what it
// finds. All platforms are matched against the same database, which the report
// names. The order of packages and findings, what is said of hygiene, and every
// byte of the SBOMs, are the same whenever the same image is scanned.
//
// An error is permanent when the database is older than Config.MaxAge, or when
// the image itself is at fault: not an image, too large, or with layers that
// are not what its configuration says.
func (s *Scanner) Scan(ctx context.Context, img pipeline.Image, platforms []pipeline.PlatformImage) (pipeline.Report, error) {
	if len(platforms) == 0 {
		return pipeline.Report{}, pipeline.Permanent(fmt.Errorf("scan %s: no platform to scan: %w", img, pipeline.ErrInvalid))
	}
	// Before the image is pulled: a database that is too old refuses all of them.
	if err := s.db.refresh(ctx); err != nil {
		return pipeline.Report{}, fmt.Errorf("scan %s: %w", img, err)
	}
	inspected := make([]inspection, len(platforms))
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(s.cfg.Parallel)
	for i, p := range platforms {
		group.Go(func() error {
			var err error
			inspected[i], err = s.inspect(groupCtx, img.Repository, p)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return pipeline.Report{}, fmt.Errorf("scan %s: %w", img, err)
	}

	info, release, err := s.db.acquire(ctx)
	if err != nil {
		return pipeline.Report{}, fmt.Errorf("scan %s: %w", img, err)
	}
	defer release()
	report := pipeline.Report{
		ScannedAt: s.cfg.Now().UTC(),
		Scanner:   "trivy v" + trivyVersion,
		Database:  info,
	}
	for _, in := range inspected {
		p, err := s.match(ctx, in)
		if err != nil {
			return pipeline.Report{}, fmt.Errorf("scan %s: platform %s: %w", img, in.platform.Platform, err)
		}
		report.Platforms = append(report.Platforms, p)
	}
	return report, nil
}

// maxLayerCache is how large the analysis of layers may grow before it is
// thrown away at start. It costs about ten kilobytes for a hundred packages.
const maxLayerCache = 2 << 30

func openLayerCache(dir string, log *slog.Logger) (cache.FSCache, error) {
	layers, err := cache.NewFSCache(dir)
	if err != nil {
		return cache.FSCache{}, fmt.Errorf("scanner: open CacheDir %s (each process needs one of its own, and waits %s for it): %w",
			dir, 5*time.Second, err)
	}
	file, err := os.Stat(filepath.Join(dir, "fanal", "fanal.db"))
	if err != nil || file.Size() < maxLayerCache {
		return layers, nil
	}
	log.Info("the scanner's layer cache is full and starts anew", "dir", dir, "bytes", file.Size())
	if err := layers.Clear(context.Background()); err != nil {
		return cache.FSCache{}, fmt.Errorf("scanner: empty the layer cache in CacheDir %s: %w", dir, err)
	}
	return cache.NewFSCache(dir)
}

// recovered turns a panic of Trivy's, on an image or database that nobody
// thought of, into an error.
func recovered(err *error, log *slog.Logger) {
	if r := recover(); r != nil {
		log.Error("trivy panicked", "panic", r, "stack", string(debug.Stack()))
		*err = fmt.Errorf("trivy failed on what it read: %v", r)
	}
}
