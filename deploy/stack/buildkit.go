//go:build linux

package stack

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Buildkit is a buildkitd with runc.
type Buildkit struct {
	Address string // "unix:///…/buildkitd.sock"
}

// buildkitConfig is buildkitd.toml. Registries on loopback addresses need not be
// named: BuildKit talks plain http to them by itself.
const buildkitConfig = `# Written at each start.
root = %[1]q
# Builds get no entitlement: neither the host's network by name, nor its devices.
insecure-entitlements = []
# Nothing of the host's goes into provenance.
provenanceEnvDir = %[2]q

[grpc]
  address = [%[3]q]
  uid = %[4]d
  gid = %[5]d

[otel]
  socketPath = %[6]q

[cdi]
  disabled = true

[history]
  maxAge = "24h"
  maxEntries = 100

[worker.containerd]
  enabled = false

[worker.oci]
  enabled = true
  # overlayfs, or copies where the kernel or the file system has none of it.
  snapshotter = %[7]q
  gc = true
  reservedSpace = "1GB"
  maxUsedSpace = "8GB"
  minFreeSpace = "5%%"
  max-parallelism = 8
`

func (s *Stack) startBuildkit(ctx context.Context) (*Buildkit, error) {
	daemon, err := s.program("buildkitd")
	if err != nil {
		return nil, err
	}
	ctl, err := s.program("buildctl")
	if err != nil {
		return nil, err
	}
	base := filepath.Join(s.Dir, "buildkit")
	root, tmp, provenance := filepath.Join(base, "root"), filepath.Join(base, "tmp"), filepath.Join(base, "provenance")
	for _, dir := range []string{base, root, tmp, provenance} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("stack: make %s: %w", dir, err)
		}
	}
	sockets, err := socketDir(s.Dir)
	if err != nil {
		return nil, err
	}
	b := &Buildkit{Address: "unix://" + filepath.Join(sockets, "buildkitd.sock")}
	uid, gid := invoker()
	config := filepath.Join(base, "buildkitd.toml")
	text := fmt.Sprintf(buildkitConfig, root, provenance, b.Address, uid, gid,
		filepath.Join(sockets, "otel.sock"), snapshotter(ctx, base))
	if err := writeFile(config, []byte(text), 0o644); err != nil {
		return nil, fmt.Errorf("stack: write buildkitd's settings: %w", err)
	}

	_, err = s.StartDaemon(ctx, Daemon{
		Name: "buildkitd", Argv: []string{daemon, "--config", config}, Files: []string{config},
		WorkDir: base, Address: b.Address,
		// Its temporary mounts are to lie where Stop finds them.
		Env: []string{"TMPDIR=" + tmp},
		// What a buildkitd that was killed left: its build steps go on running and
		// its mounts stay.
		prepare: func(ctx context.Context) error { return clearBuildkit(ctx, s.Dir, base) },
		Ready: func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			cmd := exec.CommandContext(ctx, ctl, "--addr", b.Address, "--timeout", "5", "debug", "workers")
			cmd.Env = baseEnv(s.Dir)
			return run(ctx, cmd)
		},
	})
	return b, err
}

// clearBuildkit makes the state of a dead buildkitd fit for the next one.
func clearBuildkit(ctx context.Context, dir, base string) error {
	if err := clearContainers(ctx, dir); err != nil {
		return err
	}
	if err := unmountBelow(ctx, base); err != nil {
		return err
	}
	bundles, _ := filepath.Glob(filepath.Join(base, "root", "runc-*", "executor", "*", "rootfs"))
	for _, rootfs := range bundles {
		// Refused unless it is empty: a mount that stayed is never deleted through.
		if err := os.Remove(rootfs); err == nil {
			os.RemoveAll(filepath.Dir(rootfs))
		}
	}
	tmp, _ := filepath.Glob(filepath.Join(base, "tmp", "*"))
	for _, path := range tmp {
		os.RemoveAll(path)
	}
	return nil
}

// snapshotter finds out whether overlayfs works in that directory, by trying.
func snapshotter(ctx context.Context, dir string) string {
	try, err := os.MkdirTemp(dir, "overlay-*")
	if err != nil {
		return "native"
	}
	defer os.RemoveAll(try)
	for _, sub := range []string{"lower", "upper", "work", "merged"} {
		if os.Mkdir(filepath.Join(try, sub), 0o755) != nil {
			return "native"
		}
	}
	merged := filepath.Join(try, "merged")
	options := fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", try)
	if strings.ContainsAny(try, ",:\\") || mountOverlay(merged, options) != nil {
		return "native"
	}
	if unmountBelow(ctx, try) != nil {
		return "native"
	}
	return "overlayfs"
}
