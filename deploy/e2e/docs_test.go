//go:build linux

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/dray-project/dray/pipeline"
)

var shellBlock = regexp.MustCompile("(?s)```sh\n(.*?)```")

// TestVerifyPage runs every command of docs/verify.md, for each cosign.
func TestVerifyPage(t *testing.T) {
	need(t)
	w := repository(t, "documented", map[string]string{"Dockerfile": "FROM {{base/busybox}}\nUSER 65532\n"})
	d := released(t, w, "v1.0.0")
	page, err := os.ReadFile("docs/verify.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := shellBlock.FindAllStringSubmatch(string(page), -1)
	if len(blocks) < 3 {
		t.Fatalf("the page has %d blocks of commands, want at least 3", len(blocks))
	}
	for _, version := range []string{"2", "3"} {
		cosign := os.Getenv("DRAY_TEST_COSIGN" + version)
		if cosign == "" {
			t.Fatalf("DRAY_TEST_COSIGN%s does not name a cosign", version)
		}
		bin, dir := t.TempDir(), t.TempDir()
		for name, target := range map[string]string{"cosign": cosign, "dray": filepath.Join(at.Bin, "dray")} {
			if err := os.Symlink(target, filepath.Join(bin, name)); err != nil {
				t.Fatal(err)
			}
		}
		for _, b := range blocks {
			for line := range strings.Lines(b[1]) {
				cmd := exec.CommandContext(t.Context(), "sh", "-c", line)
				cmd.Dir = dir
				cmd.Env = []string{"PATH=" + bin + ":" + os.Getenv("PATH"), "HOME=" + dir, "DRAY_URL=" + at.URL, "IMAGE=" + d.Image.String()}
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Errorf("cosign %s: %s%v\n%s", version, line, err, out)
				}
			}
		}
	}
}

// TestVersionedImmutable: a version that was released cannot be given to
// another commit, and the pusher can read what holds it.
func TestVersionedImmutable(t *testing.T) {
	need(t)
	w := repository(t, "again", map[string]string{"Dockerfile": "FROM {{base/busybox}}\nCOPY n /n\nUSER 65532\n", "n": "1"})
	first := released(t, w, "v1.0.0")
	if err := os.WriteFile(filepath.Join(w.Dir, "n"), []byte("2"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Commit(t.Context(), "Another content"); err != nil {
		t.Fatal(err)
	}
	// 1.0.0 again, spelt without the v.
	run, _ := push(t, w, "1.0.0")
	finished(t, run.ID.Job())
	d, err := at.Client.Run(t.Context(), run.ID)
	if err != nil {
		t.Fatal(err)
	}
	if d.State != pipeline.StateFailed {
		t.Fatalf("the second 1.0.0 %s", d.State)
	}
	says(t, d.Reason, "tag "+at.Dev("again")+":1.0.0 names "+string(first.Image.Digest))
}

// TestDrayIsSmall keeps the command line what it is meant to be.
func TestDrayIsSmall(t *testing.T) {
	need(t)
	info, err := os.Stat(filepath.Join(at.Bin, "dray"))
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > 30<<20 {
		t.Errorf("dray has %d bytes, more than 30 MB", info.Size())
	}
}
