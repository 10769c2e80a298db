//go:build linux

package stack

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// The packages that the base images carry files of. They are fetched from the
// mirror that this machine is set up for, with apt's signatures checked, but
// with package lists of their own: nothing is installed and no setting changes.
func debianPackages() []string {
	return []string{
		"base-files:amd64", "base-files:arm64", "busybox-static:amd64", "busybox-static:arm64",
		"ca-certificates", "netbase", "tzdata",
	}
}

// deb is a Debian package, unpacked.
type deb struct {
	name    string
	version string
	control string // the paragraph that dpkg would keep of it
	sums    string // its md5sums file: "sum  path" lines
	root    string // where its files are
}

// debs returns the packages by name, or name:architecture where that matters.
// They are fetched once and kept; removing the directory fetches them again.
func (s *Stack) debs(ctx context.Context) (map[string]deb, error) {
	unlock, err := lock(ctx, s.cache)
	if err != nil {
		return nil, err
	}
	defer unlock()
	dir := filepath.Join(s.cache, "debs")
	if !exists(filepath.Join(dir, "complete")) {
		if err := s.fetchDebs(ctx, dir); err != nil {
			return nil, fmt.Errorf("stack: fetch Debian packages for the base images: %w", err)
		}
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil {
		return nil, err
	}
	all := map[string]deb{}
	for _, file := range files {
		d, arch, err := readDeb(strings.TrimSuffix(file, ".deb"))
		if err != nil {
			return nil, fmt.Errorf("stack: read %s: %w", file, err)
		}
		if arch != "all" {
			all[d.name+":"+arch] = d
			continue
		}
		all[d.name] = d
	}
	for _, name := range debianPackages() {
		if _, ok := all[name]; !ok {
			return nil, fmt.Errorf("stack: the Debian package %s is missing in %s: remove that directory, it is filled again", name, dir)
		}
	}
	return all, nil
}

func (s *Stack) fetchDebs(ctx context.Context, dir string) error {
	s.log.printf("base images: fetching %s from Debian", strings.Join(debianPackages(), ", "))
	fresh := dir + ".new"
	if err := os.RemoveAll(fresh); err != nil {
		return err
	}
	apt := filepath.Join(fresh, "apt")
	for _, sub := range []string{"state/lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(apt, sub), 0o755); err != nil {
			return err
		}
	}
	options := []string{
		"-qq", "-o", "Dir::State=" + filepath.Join(apt, "state"), "-o", "Dir::State::status=/dev/null",
		"-o", "Dir::Cache=" + filepath.Join(apt, "cache"), "-o", "Acquire::Languages=none",
		"-o", "APT::Architectures::=amd64", "-o", "APT::Architectures::=arm64",
		"-o", "APT::Sandbox::User=root",
	}
	apply := func(args ...string) error {
		cmd := exec.CommandContext(ctx, "apt-get", append(slices.Clone(options), args...)...)
		cmd.Dir, cmd.Env = fresh, append(baseEnv(s.Dir), "DEBIAN_FRONTEND=noninteractive")
		return run(ctx, cmd)
	}
	// A repository of somebody else's that does not answer is no obstacle, if
	// Debian's does.
	updateErr := apply("update")
	if err := apply(append([]string{"download"}, debianPackages()...)...); err != nil {
		if updateErr != nil {
			return fmt.Errorf("%w (before that: %w)", err, updateErr)
		}
		return err
	}
	if err := os.RemoveAll(apt); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(fresh, "*.deb"))
	if err != nil {
		return err
	}
	for _, file := range files {
		to := strings.TrimSuffix(file, ".deb")
		for _, args := range [][]string{{"-x", file, to}, {"-e", file, to + "/DEBIAN"}} {
			cmd := exec.CommandContext(ctx, "dpkg-deb", args...)
			cmd.Env = baseEnv(s.Dir)
			if err := run(ctx, cmd); err != nil {
				return err
			}
		}
	}
	if err := os.WriteFile(filepath.Join(fresh, "complete"), nil, 0o644); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.Rename(fresh, dir)
}

func readDeb(root string) (d deb, arch string, err error) {
	control, err := os.ReadFile(filepath.Join(root, "DEBIAN", "control"))
	if err != nil {
		return deb{}, "", err
	}
	sums, err := os.ReadFile(filepath.Join(root, "DEBIAN", "md5sums"))
	if err != nil {
		return deb{}, "", err
	}
	d = deb{root: root, sums: string(sums)}
	var paragraph strings.Builder
	lines := bufio.NewScanner(strings.NewReader(string(control)))
	for lines.Scan() {
		line := lines.Text()
		fmt.Fprintln(&paragraph, line)
		field, value, _ := strings.Cut(line, ": ")
		switch field {
		case "Package":
			d.name = value
			fmt.Fprintln(&paragraph, "Status: install ok installed")
		case "Version":
			d.version = value
		case "Architecture":
			arch = value
		}
	}
	d.control = paragraph.String()
	return d, arch, lines.Err()
}

// carry puts files of the package into the tree (paths, or directories that end
// in a slash) and records the package the way images without dpkg do: a file in
// status.d, with the sums of what is really there.
func (t tree) carry(d deb, paths ...string) error {
	carried := map[string]bool{}
	for _, p := range paths {
		part := tree{}
		if err := part.add(strings.TrimSuffix(p, "/"), filepath.Join(d.root, p), nil); err != nil {
			return fmt.Errorf("stack: %s of the Debian package %s: %w", p, d.name, err)
		}
		for name, n := range part {
			t[name] = n
			carried[name] = true
		}
	}
	var sums strings.Builder
	for line := range strings.Lines(d.sums) {
		if _, name, ok := strings.Cut(strings.TrimSpace(line), "  "); ok && carried[name] {
			sums.WriteString(line)
		}
	}
	record := path.Join("var/lib/dpkg/status.d", d.name)
	t.text(record, d.control)
	t.text(record+".md5sums", sums.String())
	return nil
}
