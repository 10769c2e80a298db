//go:build linux

package stack

import (
	"fmt"
	"os"
)

// GiveToInvoker makes whoever ran this through sudo the owner of the file.
func GiveToInvoker(path string) error {
	uid, gid := invoker()
	if err := os.Chown(path, uid, gid); err != nil {
		return fmt.Errorf("stack: %w", err)
	}
	return nil
}
