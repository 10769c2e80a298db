//go:build goexperiment.jsonv2

package scanner

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	javadbstore "github.com/aquasecurity/trivy-java-db/pkg/db"
	ftypes "github.com/aquasecurity/trivy/pkg/fanal/types"
	"github.com/aquasecurity/trivy/pkg/javadb"
)

// initJava gives Trivy an empty index of Java archives. Without any, an image
// with a jar in it could not be scanned; the public one is a second download of
// a gigabyte. With an empty one, an archive is known by its own pom.properties
// and manifest, or by its name.
func initJava(cacheDir string) error {
	dir := filepath.Join(cacheDir, "java-db")
	if err := makeJavaIndex(dir); err != nil {
		return fmt.Errorf("scanner: make an index of Java archives in CacheDir %s: %w", cacheDir, err)
	}
	const skipUpdate, quiet = true, true
	javadb.Init(cacheDir, nil, skipUpdate, quiet, ftypes.RegistryOptions{})
	return nil
}

func makeJavaIndex(dir string) error {
	meta := javadbstore.NewMetadata(dir)
	switch m, err := meta.Get(); {
	case err == nil && m.Version == javadbstore.SchemaVersion:
		return nil
	case err != nil && !errors.Is(err, os.ErrNotExist):
		// A file that was cut off: make it again.
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	db, err := javadbstore.New(dir)
	if err != nil {
		return err
	}
	if err := errors.Join(db.Init(), db.Close()); err != nil {
		return err
	}
	// Last: it says that the index is whole.
	return meta.Update(javadbstore.Metadata{
		Version: javadbstore.SchemaVersion, UpdatedAt: time.Unix(0, 0), NextUpdate: time.Unix(0, 0), DownloadedAt: time.Unix(0, 0),
	})
}
