//go:build goexperiment.jsonv2

package scanner

import (
	"context"
	"path"
	"slices"
	"strings"
)

// Names of the programs that are looked for. They count wherever they are, but
// for two places that have configuration and completions under the same names.
var (
	shells = []string{
		"ash", "bash", "busybox", "csh", "dash", "elvish", "fish", "ksh", "ksh93", "lksh", "mksh", "nu", "pwsh",
		"rbash", "sh", "tcsh", "toybox", "yash", "zsh",
	}
	packageManagers = []string{
		"apk", "apt", "apt-get", "aptitude", "bundle", "conda", "dnf", "dnf5", "dpkg", "emerge", "gem", "mamba",
		"microdnf", "nix-env", "npm", "opkg", "pacman", "pip", "pip3", "pipx", "pnpm", "rpm", "tdnf", "uv",
		"xbps-install", "yarn", "yum", "zypper",
	}
	notPrograms = []string{"etc", "usr/share"}
)

// Bounds on what is looked at and told of one image.
const (
	maxNamed = 1000 // paths of a kind, the first in order
	maxLinks = 40   // links that are followed on the way to a file, as in the kernel
	maxDepth = 128  // components of a path that is followed
)

// files is what the layers of an image leave behind.
type files struct {
	Shells          []string `json:"shells"`
	PackageManagers []string `json:"packageManagers"`
	Setuid          []string `json:"setuid"`
	Wasted          int64    `json:"wasted"` // bytes
	Sizes           []int64  `json:"sizes"`  // of the layers as they are unpacked, in bytes
}

// survey looks at the final filesystem of the layers whose listings are given.
func survey(ctx context.Context, lists [][]byte) (files, error) {
	var out files
	var named [3][]*namedFile
	keep := func(of int, path []byte) {
		if len(named[of]) < maxNamed {
			at := string(path)
			named[of] = append(named[of], &namedFile{list: of, at: at})
		}
	}
	step := 0
	err := overlay(lists, func(path []byte, top *entry, wasted int64) error {
		if step++; step%10_000 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		out.Wasted += wasted
		if top == nil {
			return nil
		}
		if top.flags&flagSetuid != 0 {
			keep(listSetuid, path)
		}
		switch kind := top.kind(); {
		case kind == kindFile && top.flags&flagExecutable != 0, kind == kindHardLink, kind == kindSymlink:
			if of := program(path); of >= 0 {
				keep(of, path)
			}
		}
		return nil
	})
	if err != nil {
		return files{}, err
	}
	if err := follow(ctx, lists, slices.Concat(named[:]...)); err != nil {
		return files{}, err
	}
	for of, into := range []*[]string{&out.Shells, &out.PackageManagers, &out.Setuid} {
		*into = []string{}
		for _, f := range named[of] {
			if f.found {
				*into = append(*into, printable(keyPath([]byte(f.name)), maxPath))
			}
		}
		slices.Sort(*into)
		*into = slices.Compact(*into)
	}
	return out, nil
}

const (
	listShells = iota
	listManagers
	listSetuid
)

// program returns the list that a path belongs into by its name, or -1.
func program(key []byte) int {
	name := key
	for i := len(key) - 1; i >= 0; i-- {
		if key[i] == 0 {
			name = key[i+1:]
			break
		}
	}
	of := -1
	if _, ok := slices.BinarySearch(shells, string(name)); ok {
		of = listShells
	} else if _, ok := slices.BinarySearch(packageManagers, string(name)); ok || versioned(string(name)) {
		of = listManagers
	} else {
		return -1
	}
	for _, dir := range notPrograms {
		if within(key, pathKey(dir)) {
			return -1
		}
	}
	return of
}

// versioned tells the names that pip gives itself: "pip3.11".
func versioned(name string) bool {
	v, ok := strings.CutPrefix(name, "pip3.")
	return ok && v != "" && strings.Trim(v, "0123456789") == ""
}

// namedFile is a path on its way to the file that it stands for.
type namedFile struct {
	list int
	// at is where the way has come to, links until there are followed.
	at    string
	links int
	// name is the path without links among its directories, which is told.
	name  string
	done  bool
	found bool
}

// follow finds out which of the paths lead to a regular file, and what they are
// called when no directory on the way is a link. Each round looks up what is on
// the way of all of them in one pass over the listings.
func follow(ctx context.Context, lists [][]byte, named []*namedFile) error {
	for {
		wanted := map[string]entry{}
		for _, f := range named {
			if f.done {
				continue
			}
			if strings.Count(f.at, "\x00") >= maxDepth {
				// Nobody puts a program there for others to find.
				f.name, f.done, f.found = f.at, true, f.links == 0
				continue
			}
			for i := range f.at {
				if f.at[i] == 0 {
					wanted[f.at[:i]] = entry{}
				}
			}
			wanted[f.at] = entry{}
		}
		if len(wanted) == 0 {
			return nil
		}
		step := 0
		err := overlay(lists, func(path []byte, top *entry, _ int64) error {
			if step++; step%10_000 == 0 && ctx.Err() != nil {
				return ctx.Err()
			}
			if _, ok := wanted[string(path)]; ok && top != nil {
				wanted[string(path)] = entry{flags: top.flags, target: slices.Clone(top.target)}
			}
			return nil
		})
		if err != nil {
			return err
		}
		for _, f := range named {
			if !f.done {
				f.step(wanted)
			}
		}
	}
}

// step follows the first link on the way, or ends the way.
func (f *namedFile) step(wanted map[string]entry) {
	for i := range f.at {
		if f.at[i] != 0 {
			continue
		}
		if dir := wanted[f.at[:i]]; dir.kind() == kindSymlink {
			f.replace(f.at[:i], dir.target, f.at[i+1:])
			return
		}
	}
	if f.name == "" {
		f.name = f.at
	}
	switch e := wanted[f.at]; e.kind() {
	case kindSymlink:
		f.replace(f.at, e.target, "")
	case kindHardLink:
		f.done, f.found = true, true
	case kindFile:
		f.done, f.found = true, f.list == listSetuid || e.flags&flagExecutable != 0
	default:
		f.done = true
	}
}

// replace goes on from where a link points to.
func (f *namedFile) replace(link string, target []byte, rest string) {
	if f.links++; f.links > maxLinks || len(target) == 0 {
		f.done = true
		return
	}
	to := string(target)
	if !strings.HasPrefix(to, "/") {
		to = path.Dir(keyPath([]byte(link))) + "/" + to
	}
	to = cleanPath(to + keyPath([]byte(rest)))
	if len(to) > maxPath {
		f.done = true
		return
	}
	f.at = string(pathKey(to))
}
