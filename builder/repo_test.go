package builder

import (
	"fmt"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// repo is a bare repository served over HTTP, with a clone to commit in.
type repo struct {
	t    *testing.T
	bare string
	dir  string
	url  string
	when int64
}

func newRepo(t *testing.T, wrap func(http.Handler) http.Handler) *repo {
	t.Helper()
	out, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		missing(t, "no git: %v", err)
	}
	root := t.TempDir()
	r := &repo{t: t, bare: filepath.Join(root, "app.git"), dir: filepath.Join(root, filepath.Base(root)+"work"), when: 1_700_000_000}
	run(t, root, nil, "git", "init", "-q", "--bare", "-b", "main", r.bare)
	run(t, root, nil, "git", "init", "-q", "-b", "main", r.dir)
	r.git("remote", "add", "origin", r.bare)
	var h http.Handler = &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(out)), "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1"},
	}
	if wrap != nil {
		h = wrap(h)
	}
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	r.url = srv.URL + "/app.git"
	return r
}

func run(t *testing.T, dir string, env []string, command ...string) string {
	t.Helper()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Dir = dir
	cmd.Env = append(append(os.Environ(), "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null",
		"GIT_AUTHOR_NAME=Ada", "GIT_AUTHOR_EMAIL=ada@example.com",
		"GIT_COMMITTER_NAME=Ada", "GIT_COMMITTER_EMAIL=ada@example.com"), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(command, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

func (r *repo) git(args ...string) string {
	r.t.Helper()
	return run(r.t, r.dir, nil, append([]string{"git"}, args...)...)
}

// commit replaces the tree by files; a value that starts with "link:" makes a
// symbolic link. It returns the commit.
func (r *repo) commit(files map[string]string) string {
	r.t.Helper()
	r.git("rm", "-rqf", "--ignore-unmatch", ".")
	for name, text := range files {
		full := filepath.Join(r.dir, name)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			r.t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(text, "link:"); ok {
			err = os.Symlink(target, full)
		} else {
			err = os.WriteFile(full, []byte(text), 0o644)
		}
		if err != nil {
			r.t.Fatal(err)
		}
	}
	r.git("add", "-A", "-f", ".")
	r.when += 60
	date := fmt.Sprintf("%d +0200", r.when)
	run(r.t, r.dir, []string{"GIT_AUTHOR_DATE=" + date, "GIT_COMMITTER_DATE=" + date}, "git", "commit", "-q", "--allow-empty", "-m", "change")
	return r.git("rev-parse", "HEAD")
}
