//go:build linux

package stack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

const (
	authorName  = "Acme Developer"
	authorEmail = "dev@acme.example"
)

// firstCommit is when the first commit of a sample was made; each later one is
// an hour younger. The same sample on the same bases has the same commits.
var firstCommit = time.Date(2026, 3, 2, 9, 0, 0, 0, time.UTC)

// Sample is an application to make a repository of.
type Sample struct {
	// Name of the repository: "acme/hello-go".
	Name string
	// Source is the directory of the application. Dockerfile.in there becomes
	// the Dockerfile, where {{base/go}} stands for the reference in Bases.
	Source string
	Bases  map[string]string
	// Over, if not empty, is a directory whose files lie over those of Source
	// from now on: a later version. Subject is that of the commit which brings it.
	Over    string
	Subject string
}

// Worktree is a clone of a repository, on the branch main.
type Worktree struct {
	Name string
	Dir  string
	URL  string // to clone from

	git *Git
}

// Repository makes a bare repository on the git server and a work tree with the
// sample in it, modules vendored so that its build needs no network. Nothing is
// pushed. Where the work tree is there from before, the sample is laid over it
// and committed if that changed anything.
func (s *Stack) Repository(ctx context.Context, c Sample) (*Worktree, error) {
	g := s.Git
	if g == nil {
		return nil, fmt.Errorf("stack: make the repository %s: the git server was not asked for", c.Name)
	}
	if err := g.Create(ctx, c.Name); err != nil {
		return nil, err
	}
	w := &Worktree{Name: c.Name, Dir: filepath.Join(g.work, c.Name), URL: g.CloneURL(c.Name), git: g}
	if err := w.lay(ctx, c); err != nil {
		return nil, fmt.Errorf("stack: make the repository %s: %w", c.Name, err)
	}
	return w, nil
}

func (w *Worktree) lay(ctx context.Context, c Sample) error {
	if err := os.MkdirAll(w.Dir, 0o755); err != nil {
		return err
	}
	fresh := !exists(filepath.Join(w.Dir, ".git"))
	if fresh {
		if _, err := w.run(ctx, "init", "--quiet", "--initial-branch=main"); err != nil {
			return err
		}
	}
	// The server's port may have changed.
	if _, err := w.run(ctx, "config", "remote.origin.url", w.URL); err != nil {
		return err
	}
	if err := render(c.Source, w.Dir, c.Bases); err != nil {
		return err
	}
	over, err := w.over(c.Over)
	if err != nil {
		return err
	}
	if over != "" {
		if err := render(over, w.Dir, c.Bases); err != nil {
			return err
		}
	}
	if fresh {
		if _, err := w.commit(ctx, "Greet whoever asks", ":!Dockerfile"); err != nil {
			return err
		}
	}
	if exists(filepath.Join(w.Dir, "go.mod")) {
		if err := w.vendor(ctx); err != nil {
			return err
		}
	}
	subject := "Build an image"
	switch {
	case c.Subject != "":
		subject = c.Subject
	case !fresh:
		subject = "Follow the base images"
	}
	_, err = w.Commit(ctx, subject)
	return err
}

// over remembers what was laid over the work tree: it stays there when the
// sample is laid again.
func (w *Worktree) over(dir string) (string, error) {
	note := filepath.Join(w.Dir, ".git", "over")
	if dir != "" {
		return dir, os.WriteFile(note, []byte(dir), 0o644)
	}
	b, err := os.ReadFile(note)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return string(b), err
}

// Commit commits whatever changed in the work tree and returns the commit that
// it is at, which is the old one when nothing changed.
func (w *Worktree) Commit(ctx context.Context, subject string) (string, error) {
	return w.commit(ctx, subject, ".")
}

func (w *Worktree) commit(ctx context.Context, subject, paths string) (string, error) {
	if _, err := w.run(ctx, "add", "--all", "--force", "--", ".", paths); err != nil {
		return "", err
	}
	staged, err := w.run(ctx, "diff", "--cached", "--name-only")
	if err != nil {
		return "", err
	}
	if staged != "" {
		if _, err := w.run(ctx, "commit", "--quiet", "--no-gpg-sign", "-m", subject); err != nil {
			return "", err
		}
	}
	return w.run(ctx, "rev-parse", "HEAD")
}

// Tag makes an annotated tag at the commit that the work tree is at, unless it
// is there already.
func (w *Worktree) Tag(ctx context.Context, name, message string) error {
	if _, err := w.run(ctx, "rev-parse", "--verify", "--quiet", "refs/tags/"+name); err == nil {
		return nil
	}
	_, err := w.run(ctx, "tag", "--annotate", "--no-sign", "-m", message, name)
	return err
}

// Push pushes the refs ("main", "v1.0.0"). What git says, and through it the
// receiver of the push event, goes to out as it comes.
func (w *Worktree) Push(ctx context.Context, out io.Writer, refs ...string) error {
	cmd := exec.CommandContext(ctx, "git", append([]string{"push", "origin"}, refs...)...)
	cmd.Dir, cmd.Env = w.Dir, gitEnv(w.git.stateDir)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("stack: push %s to %s: %w", strings.Join(refs, " "), w.URL, err)
	}
	return nil
}

// run runs git there, at the time that the next commit is to have.
func (w *Worktree) run(ctx context.Context, args ...string) (string, error) {
	var env []string
	if args[0] == "commit" || args[0] == "tag" {
		n := 0
		if out, err := w.git.git(ctx, w.Dir, nil, "rev-list", "--count", "HEAD"); err == nil {
			n, _ = strconv.Atoi(out)
		}
		date := firstCommit.Add(time.Duration(n) * time.Hour).Format(time.RFC3339)
		env = []string{"GIT_AUTHOR_DATE=" + date, "GIT_COMMITTER_DATE=" + date}
	}
	return w.git.git(ctx, w.Dir, env, args...)
}

func (w *Worktree) vendor(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "go", "mod", "vendor")
	cmd.Dir = w.Dir
	cmd.Env = append(os.Environ(), "GOFLAGS=-mod=mod -buildvcs=false", "GOWORK=off")
	if uid, _ := invoker(); uid != os.Geteuid() {
		// Nothing of root's is to be left in the user's module cache.
		mod := filepath.Join(w.git.stateDir, "gomod")
		cmd.Env = append(cmd.Env, "GOMODCACHE="+mod, "GOFLAGS=-mod=mod -buildvcs=false -modcacherw")
	}
	return run(ctx, cmd)
}

var placeholder = regexp.MustCompile(`\{\{([a-z/-]+)\}\}`)

// render copies the sample, with the Dockerfile's bases filled in.
func render(source, dir string, bases map[string]string) error {
	return filepath.WalkDir(source, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(source, path)
		if err != nil {
			return err
		}
		target := filepath.Join(dir, rel)
		if e.IsDir() {
			return os.MkdirAll(target, 0o755)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if e.Name() == "Dockerfile.in" {
			target = filepath.Join(filepath.Dir(target), "Dockerfile")
			var missing string
			b = placeholder.ReplaceAllFunc(b, func(m []byte) []byte {
				name := string(placeholder.FindSubmatch(m)[1])
				ref, ok := bases[name]
				if !ok {
					missing = name
				}
				return []byte(ref)
			})
			if missing != "" {
				return fmt.Errorf("%s starts from %q, which is not among the base images", path, missing)
			}
		}
		return os.WriteFile(target, b, 0o644)
	})
}
