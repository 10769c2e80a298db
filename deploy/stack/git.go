//go:build linux

package stack

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// Git is a git server that speaks smart HTTP, lets anybody on this machine read
// and push, and sends an event for each ref that a push changed.
type Git struct {
	URL string // "http://127.0.0.1:PORT"

	dir      string // of the server: repos/, hooks/
	work     string // of the work trees
	stateDir string
}

var repositoryName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]*(\.[a-z0-9_-]+)*/[a-z0-9][a-z0-9_-]*(\.[a-z0-9_-]+)*$`)

func (s *Stack) startGit(ctx context.Context, webhook, secret string) (*Git, error) {
	self, err := s.program("dray-dev")
	if err != nil {
		return nil, err
	}
	if _, err := exec.LookPath("git"); err != nil {
		return nil, fmt.Errorf("stack: git is not installed: apt-get install git")
	}
	dir := filepath.Join(s.Dir, "git")
	if err := os.MkdirAll(filepath.Join(dir, "repos"), 0o755); err != nil {
		return nil, fmt.Errorf("stack: make %s: %w", dir, err)
	}
	secretFile := filepath.Join(dir, "webhook-secret")
	if err := writeFile(secretFile, []byte(secret), 0o600); err != nil {
		return nil, fmt.Errorf("stack: write the webhook's secret: %w", err)
	}
	return started(3, func() (*Git, error) {
		address, err := reserve(s.Dir, "git")
		if err != nil {
			return nil, err
		}
		url := "http://" + address
		argv := []string{self, "git", "--addr", address, "--dir", dir}
		if webhook != "" {
			argv = append(argv, "--webhook", webhook, "--secret-file", secretFile)
		}
		_, err = s.StartDaemon(ctx, Daemon{
			Name: "git", Argv: argv, Address: address, Files: []string{secretFile},
			Ready: answers(url + "/-/ready"),
		})
		return &Git{URL: url, dir: dir, work: filepath.Join(s.Dir, "work"), stateDir: s.Dir}, err
	}, func() bool { return s.portTaken("git") })
}

// CloneURL returns the address of a repository: "acme/hello-go".
func (g *Git) CloneURL(name string) string { return g.URL + "/" + name + ".git" }

// Create makes an empty bare repository unless it is there: "acme/hello-go".
func (g *Git) Create(ctx context.Context, name string) error {
	if !repositoryName.MatchString(name) {
		return fmt.Errorf("stack: %q is no name for a repository: want owner/name in lower case", name)
	}
	bare := g.bare(name)
	if _, err := os.Stat(filepath.Join(bare, "HEAD")); err == nil {
		return nil
	}
	for _, args := range [][]string{
		{"init", "--quiet", "--bare", "--initial-branch=main", bare},
		{"-C", bare, "config", "http.receivepack", "true"},
		// buildkitd asks for the very commit that it is to build.
		{"-C", bare, "config", "uploadpack.allowAnySHA1InWant", "true"},
		{"-C", bare, "config", "core.hooksPath", filepath.Join(g.dir, "hooks")},
	} {
		if _, err := g.git(ctx, "", nil, args...); err != nil {
			return fmt.Errorf("stack: make the repository %s: %w", name, err)
		}
	}
	return nil
}

// Redeliver sends the push event of a ref again, as it would be sent if the ref
// had just been made; it returns what the receiver answered.
func (g *Git) Redeliver(ctx context.Context, name, ref string) (string, error) {
	bare := g.bare(name)
	sha, err := g.git(ctx, "", nil, "-C", bare, "rev-parse", "--verify", ref)
	if err != nil {
		return "", fmt.Errorf("stack: deliver %s of %s again: %w", ref, name, err)
	}
	cmd := exec.CommandContext(ctx, filepath.Join(g.dir, "hooks", "post-receive"))
	cmd.Dir = bare
	cmd.Env = append(gitEnv(g.stateDir), "GIT_DIR=.")
	cmd.Stdin = strings.NewReader(fmt.Sprintf("%s %s %s\n", strings.Repeat("0", 40), sha, ref))
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("stack: deliver %s of %s again: %w: %s", ref, name, err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

func (g *Git) bare(name string) string { return filepath.Join(g.dir, "repos", name+".git") }

// git runs git without anybody's settings and returns what it printed, trimmed.
func (g *Git) git(ctx context.Context, dir string, env []string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir, cmd.Env = dir, append(gitEnv(g.stateDir), env...)
	out, err := cmd.Output()
	if err != nil {
		detail := string(out)
		if exit, ok := err.(*exec.ExitError); ok {
			detail += string(exit.Stderr)
		}
		return "", fmt.Errorf("git %s: %w: %s", args[0], err, strings.TrimSpace(detail))
	}
	return strings.TrimSpace(string(out)), nil
}

func gitEnv(dir string) []string {
	return append(baseEnv(dir),
		"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_TERMINAL_PROMPT=0",
		// The state directory may belong to who ran sudo.
		"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*",
		"GIT_AUTHOR_NAME="+authorName, "GIT_AUTHOR_EMAIL="+authorEmail,
		"GIT_COMMITTER_NAME="+authorName, "GIT_COMMITTER_EMAIL="+authorEmail,
	)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
