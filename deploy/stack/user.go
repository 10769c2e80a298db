//go:build linux

package stack

import (
	"fmt"
	"os"
	"os/exec"
	osuser "os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// capDacReadSearch lets a process pass directories that it may not enter.
const capDacReadSearch = 2

// user is whom a daemon runs as.
type user struct{ uid, gid uint32 }

func lookupUser(name string) (*user, error) {
	u, err := osuser.Lookup(name)
	if err != nil {
		return nil, fmt.Errorf("stack: look up the user %s: %w", name, err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("stack: the user %s: %w", name, err)
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("stack: the user %s: %w", name, err)
	}
	return &user{uint32(uid), uint32(gid)}, nil
}

// become makes the command run as that user. The state directory may lie in a
// home that the user cannot enter (/root is closed on Debian): then the process
// also gets the capability to pass through directories, and nothing more. The
// capability counts from the moment that the program runs, which is after the
// change to its working directory, so that one becomes the root directory.
func (u *user) become(cmd *exec.Cmd, dir string) {
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: u.uid, Gid: u.gid}
	for d := dir; d != "/"; d = filepath.Dir(d) {
		info, err := os.Stat(d)
		if err != nil || info.Mode().Perm()&0o001 == 0 {
			cmd.SysProcAttr.AmbientCaps = []uintptr{capDacReadSearch}
			cmd.Dir = "/"
			return
		}
	}
}

func ownerOf(info os.FileInfo) int {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid)
	}
	return -1
}
