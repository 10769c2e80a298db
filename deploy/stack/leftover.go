//go:build linux

package stack

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ownerVariable is in the environment of everything that was started here, and
// of its children: how they are recognised when their parent is dead.
const ownerVariable = "STACK_OWNER"

func owner(dir, name string) string { return dir + ":" + name }

// Stop stops whatever was started in that directory, in the reverse order, and
// removes what it left behind: processes, containers, mounts, sockets. It works
// from what is recorded there, so it needs no Stack, and it may be called any
// number of times.
func Stop(ctx context.Context, dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if dir, err = filepath.EvalSymlinks(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("stack: stop: %w", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "run")); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	unlock, err := lock(ctx, dir)
	if err != nil {
		return err
	}
	defer unlock()

	all, err := Processes(dir)
	errs := []error{err}
	slices.Reverse(all)
	for _, p := range all {
		errs = append(errs, stopRecorded(ctx, dir, p.Name))
	}
	errs = append(errs,
		killLeftovers(dir, ""),
		clearContainers(ctx, dir),
		unmountBelow(ctx, dir),
		os.RemoveAll(shortDir(dir)),
	)
	return errors.Join(errs...)
}

// killLeftovers kills the processes that the daemon of that name, or any of
// that directory, started and left.
func killLeftovers(dir, name string) error {
	mark := []byte(ownerVariable + "=" + owner(dir, name))
	return killAll(func(pid int) bool {
		env, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
		if err != nil {
			return false
		}
		for v := range bytes.SplitSeq(env, []byte{0}) {
			if name != "" && bytes.Equal(v, mark) || name == "" && bytes.HasPrefix(v, mark) {
				return true
			}
		}
		// PostgreSQL's processes write over their environment, and git may be
		// started without; but only ours have no terminal and work in there.
		for _, part := range []string{"postgres", "buildkit"} {
			if name != "" && name != part && name != part+"d" {
				continue
			}
			cwd, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/cwd")
			if err == nil && below(cwd, filepath.Join(dir, part)) {
				st, err := readStat(pid)
				return err == nil && st.tty == 0
			}
		}
		return false
	})
}

// killAll kills every other process that matches, until there is none.
func killAll(match func(pid int) bool) error {
	deadline := time.Now().Add(killIn)
	for {
		entries, err := os.ReadDir("/proc")
		if err != nil {
			return fmt.Errorf("stack: look for processes left behind: %w", err)
		}
		left := 0
		for _, e := range entries {
			pid, err := strconv.Atoi(e.Name())
			if err != nil || pid <= 1 || pid == os.Getpid() {
				continue
			}
			proc, err := os.FindProcess(pid)
			if err != nil {
				continue
			}
			if st, err := readStat(pid); err == nil && !st.dead() && match(pid) {
				left++
				proc.Kill() // tried again below
			}
			proc.Release()
		}
		if left == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("stack: %d processes left behind could not be killed within %v", left, killIn)
		}
		time.Sleep(pollEvery)
	}
}

// clearContainers removes the containers that build steps ran in and that
// survived buildkitd, and their processes.
func clearContainers(ctx context.Context, dir string) error {
	var errs []error
	states, _ := filepath.Glob("/run/runc/*/state.json")
	for _, path := range states {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		var state struct {
			Config struct {
				Rootfs string `json:"rootfs"`
			} `json:"config"`
		}
		if json.Unmarshal(b, &state) != nil || !below(state.Config.Rootfs, dir) {
			continue
		}
		cmd := exec.CommandContext(ctx, "runc", "delete", "--force", filepath.Base(filepath.Dir(path)))
		cmd.Env = baseEnv(dir)
		if err := run(ctx, cmd); err != nil {
			errs = append(errs, fmt.Errorf("stack: remove a container left behind: %w", err))
		}
	}
	errs = append(errs, killAll(rootedIn(dir)))
	return errors.Join(errs...)
}

// rootedIn matches processes whose root file system is made of files below the
// directory.
func rootedIn(dir string) func(pid int) bool {
	own, _ := os.Readlink("/proc/self/ns/mnt")
	device, inside := locate(dir)
	return func(pid int) bool {
		ns, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/ns/mnt")
		if err != nil || ns == own {
			return false
		}
		mounts, err := readMounts("/proc/" + strconv.Itoa(pid) + "/mountinfo")
		if err != nil {
			return false
		}
		for _, m := range mounts {
			if m.point != "/" {
				continue
			}
			for option := range strings.SplitSeq(m.options, ",") {
				if upper, ok := strings.CutPrefix(option, "upperdir="); ok && below(upper, dir) {
					return true
				}
			}
			if inside != "" && m.device == device && below(m.root, inside) {
				return true
			}
		}
		return false
	}
}

// unmountBelow unmounts everything below the directory, the deepest first; what
// is busy is detached, and goes when its last user does.
func unmountBelow(ctx context.Context, dir string) error {
	for try := 0; ; try++ {
		mounts, err := readMounts("/proc/self/mountinfo")
		if err != nil {
			return fmt.Errorf("stack: look for mounts left behind: %w", err)
		}
		var points []string
		for _, m := range mounts {
			if m.point != dir && below(m.point, dir) {
				points = append(points, m.point)
			}
		}
		if len(points) == 0 {
			return nil
		}
		if try == 10 {
			return fmt.Errorf("stack: still mounted below %s: %s", dir, strings.Join(points, ", "))
		}
		// Later mounts lie deeper, or above the same point.
		slices.Reverse(points)
		flags := 0
		if try > 2 {
			flags = syscall.MNT_DETACH
		}
		for _, point := range points {
			syscall.Unmount(point, flags) // looked at again above
		}
		if try > 0 {
			if err := pause(ctx, 2*pollEvery); err != nil {
				return fmt.Errorf("stack: unmount below %s: %w", dir, err)
			}
		}
	}
}

func mountOverlay(point, options string) error {
	return syscall.Mount("overlay", point, "overlay", 0, options)
}

// mount is a line of proc_pid_mountinfo(5).
type mount struct {
	device  string // major:minor
	root    string // within the file system
	point   string
	options string // of the file system
}

func readMounts(path string) ([]mount, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var all []mount
	for line := range strings.Lines(string(b)) {
		fields, rest, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
		f, fsys := strings.Fields(fields), strings.Fields(rest)
		if !ok || len(f) < 6 || len(fsys) < 2 {
			continue
		}
		m := mount{device: f[2], root: unescape(f[3]), point: unescape(f[4])}
		if len(fsys) > 2 {
			m.options = unescape(fsys[2])
		}
		all = append(all, m)
	}
	return all, nil
}

// locate returns the device that the directory is on, and its path there.
func locate(dir string) (device, inside string) {
	mounts, err := readMounts("/proc/self/mountinfo")
	if err != nil {
		return "", ""
	}
	best := -1
	for _, m := range mounts {
		if (m.point == dir || m.point == "/" || below(dir, m.point)) && len(m.point) >= best {
			best = len(m.point)
			rel, err := filepath.Rel(m.point, dir)
			if err != nil {
				return "", ""
			}
			device, inside = m.device, filepath.Join(m.root, rel)
		}
	}
	return device, inside
}

// unescape undoes mountinfo's octal for white space and backslashes.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

func below(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }
