package builder

import (
	"context"
	"fmt"
	"io/fs"
	"path"
	"sort"
	"strings"

	gateway "github.com/moby/buildkit/frontend/gateway/client"
	fstypes "github.com/tonistiigi/fsutil/types"

	"github.com/dray-project/dray/pipeline"
)

const (
	maxLinks       = 16   // links followed in one path
	maxDepth       = 4    // directories below the root that are searched for a Dockerfile
	maxDirectories = 2000 // directories that are searched
	maxListed      = 20   // Dockerfiles that an error lists
)

// directory is the part of a gateway reference that reading a tree needs.
type directory interface {
	ReadFile(context.Context, gateway.ReadRequest) ([]byte, error)
	ReadDir(context.Context, gateway.ReadDirRequest) ([]*fstypes.Stat, error)
}

// tree reads the files of one commit. It follows links itself, step by step,
// and refuses those that lead out of the repository.
type tree struct {
	ref   directory
	known map[string]map[string]*fstypes.Stat
}

func newTree(ref directory) *tree {
	return &tree{ref: ref, known: map[string]map[string]*fstypes.Stat{}}
}

// list returns the entries of a directory by name. dir holds no link.
func (t *tree) list(ctx context.Context, dir string) (map[string]*fstypes.Stat, error) {
	if m, ok := t.known[dir]; ok {
		return m, nil
	}
	entries, err := t.ref.ReadDir(ctx, gateway.ReadDirRequest{Path: "/" + dir})
	if err != nil {
		return nil, fmt.Errorf("read directory %s of the source: %w", dir, err)
	}
	m := make(map[string]*fstypes.Stat, len(entries))
	for _, e := range entries {
		m[path.Base(e.Path)] = e
	}
	t.known[dir] = m
	return m, nil
}

// resolve follows the links in a clean path. It returns the path without
// links; ok is false when nothing is there.
func (t *tree) resolve(ctx context.Context, p string) (string, fs.FileMode, bool, error) {
	done, rest := ".", p
	links := 0
	mode := fs.ModeDir
	for rest != "" && rest != "." {
		name, after, _ := strings.Cut(rest, "/")
		entries, err := t.list(ctx, done)
		if err != nil {
			return "", 0, false, err
		}
		e, ok := entries[name]
		if !ok {
			return "", 0, false, nil
		}
		mode = fs.FileMode(e.Mode)
		if mode&fs.ModeSymlink == 0 {
			if after != "" && !mode.IsDir() {
				return "", 0, false, nil
			}
			done, rest = path.Join(done, name), after
			continue
		}
		if links++; links > maxLinks {
			return "", 0, false, pipeline.Permanent(fmt.Errorf("%s: more than %d links to follow: %w", p, maxLinks, pipeline.ErrInvalid))
		}
		target := path.Join(done, e.Linkname)
		if path.IsAbs(e.Linkname) || target == ".." || strings.HasPrefix(target, "../") {
			return "", 0, false, pipeline.Permanent(fmt.Errorf("%s: the link %s leads to %q, out of the repository: %w",
				p, path.Join(done, name), e.Linkname, pipeline.ErrInvalid))
		}
		done, rest, mode = ".", path.Join(target, after), fs.ModeDir
	}
	return done, mode, true, nil
}

// file reads a regular file of at most limit bytes. ok is false when there is
// none; real is its path without links.
func (t *tree) file(ctx context.Context, p string, limit int) (real string, data []byte, ok bool, err error) {
	real, mode, ok, err := t.resolve(ctx, p)
	if err != nil || !ok {
		return "", nil, false, err
	}
	if !mode.IsRegular() {
		return "", nil, false, pipeline.Permanent(fmt.Errorf("%s is not a file: %w", p, pipeline.ErrInvalid))
	}
	data, err = t.ref.ReadFile(ctx, gateway.ReadRequest{Filename: "/" + real, Range: &gateway.FileRange{Length: limit + 1}})
	if err != nil {
		return "", nil, false, fmt.Errorf("read %s of the source: %w", p, err)
	}
	if len(data) > limit {
		return "", nil, false, pipeline.Permanent(fmt.Errorf("%s is larger than %d bytes: %w", p, limit, pipeline.ErrInvalid))
	}
	return real, data, true, nil
}

// findDockerfile is zero configuration: the Dockerfile at the root, or else
// the only one within maxDepth directories.
func (t *tree) findDockerfile(ctx context.Context) (string, error) {
	root, err := t.list(ctx, ".")
	if err != nil {
		return "", err
	}
	if _, ok := root["Dockerfile"]; ok {
		return "Dockerfile", nil
	}
	var found []string
	level := []string{"."}
	searched := 0
	for depth := 0; depth <= maxDepth && len(level) > 0; depth++ {
		var next []string
		for _, dir := range level {
			if searched++; searched > maxDirectories {
				return "", pipeline.Permanent(fmt.Errorf("no Dockerfile at the root and more than %d directories to search; say where it is in %s:\n%s\n%w",
					maxDirectories, planFile, planExample("path/to"), pipeline.ErrInvalid))
			}
			entries, err := t.list(ctx, dir)
			if err != nil {
				return "", err
			}
			for name, e := range entries {
				mode := fs.FileMode(e.Mode)
				switch {
				case mode.IsDir() && !skipDirectory(name):
					next = append(next, path.Join(dir, name))
				case name == "Dockerfile" && !mode.IsDir():
					found = append(found, path.Join(dir, name))
				}
			}
		}
		sort.Strings(next)
		level = next
	}
	sort.Strings(found)
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return "", pipeline.Permanent(fmt.Errorf("nothing to build: there is no Dockerfile at the root or in the %d levels of directories below it; "+
			"add a Dockerfile, or a %s that says where it is:\n%s\n%w", maxDepth, planFile, planExample("path/to"), pipeline.ErrInvalid))
	}
	shown := found
	more := ""
	if len(shown) > maxListed {
		more = fmt.Sprintf(" and %d more", len(shown)-maxListed)
		shown = shown[:maxListed]
	}
	return "", pipeline.Permanent(fmt.Errorf("there are %d Dockerfiles, and Dray cannot know which one is meant: %s%s; say so in a %s:\n%s\n%w",
		len(found), strings.Join(shown, ", "), more, planFile, planExample(path.Dir(found[0])), pipeline.ErrAmbiguous))
}

// skipDirectory keeps the search out of what people do not write themselves.
func skipDirectory(name string) bool {
	return strings.HasPrefix(name, ".") || name == "node_modules" || name == "vendor" || name == "testdata"
}

func planExample(dir string) string {
	return fmt.Sprintf("apiVersion: %s\nbuild:\n  context: %s", planVersion, dir)
}
