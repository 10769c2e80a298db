//go:build linux

package stack

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
)

// maxSocket is what a socket's path may have: sockaddr_un has 108 bytes, and
// PostgreSQL and others add a suffix of their own.
const maxSocket = 90

// socketDir returns a directory for sockets: below the state directory, or
// where that has too long a name, a short one elsewhere that is derived from it.
func socketDir(dir string) (string, error) {
	d := filepath.Join(dir, "run", "s")
	if len(d) > maxSocket-len("/buildkitd.sock") {
		d = shortDir(dir)
	}
	if err := os.MkdirAll(d, 0o755); err != nil {
		return "", fmt.Errorf("stack: make the directory for sockets: %w", err)
	}
	// The short one lies where others may write too: it has to be our own.
	info, err := os.Lstat(d)
	if err != nil {
		return "", fmt.Errorf("stack: the directory for sockets: %w", err)
	}
	if !info.IsDir() || ownerOf(info) != os.Geteuid() {
		return "", fmt.Errorf("stack: %s is for sockets and belongs to somebody else: please remove it", d)
	}
	return d, nil
}

func shortDir(dir string) string {
	sum := sha256.Sum256([]byte(dir))
	base := os.TempDir()
	if os.Geteuid() == 0 {
		base = "/run"
	}
	return filepath.Join(base, "dray-"+hex.EncodeToString(sum[:6]))
}
