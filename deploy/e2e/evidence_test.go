//go:build linux

package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dray-project/dray/pipeline"
)

// TestEvidenceBundle: what a real drayd recorded of a real image is packed,
// checked without a network, and refused when it was changed.
func TestEvidenceBundle(t *testing.T) {
	need(t)
	w := repository(t, "proven", map[string]string{"Dockerfile": "FROM {{base/busybox}}\nUSER 1000\nCOPY README.md /\n"})
	run := released(t, w, "v1.0.0")
	d := run.Image.Digest
	apply(t, "proven", "\nenvironments:\n  - name: prod\n    repository: "+at.Stack.Prod.Host+"/proven\n    approvals: [{role: release-manager, notRequester: true}]\n")
	p := ask(t, "proven", d, "prod", pipeline.StateWaiting)
	mustDray(t, at.Approver, 0, "approve", string(p.ID), "--yes")
	wantState(t, settled(t, p.ID), pipeline.StateSucceeded)

	dir := t.TempDir()
	bundle := filepath.Join(dir, "proven.tar")
	mustDray(t, at.Token, 0, "evidence", string(d), "-o", bundle)
	verify := []string{"verify", "--bundle", bundle, "--key", at.PublicKey, "--log-key", at.LogKey, "--image", string(d), "-e", "prod"}
	// No server, no token; where it can be had, no network either.
	alone := []string{}
	if exec.CommandContext(t.Context(), "unshare", "-n", "true").Run() == nil {
		alone = []string{"unshare", "-n"}
	}
	offline := func(args ...string) (string, int) {
		words := append(append([]string{}, alone...), append([]string{filepath.Join(at.Bin, "dray")}, args...)...)
		cmd := exec.CommandContext(t.Context(), words[0], words[1:]...)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "NO_COLOR=1"}
		out, err := cmd.CombinedOutput()
		return string(out), exitCode(err)
	}
	out, code := offline(verify...)
	if code != 0 {
		t.Fatalf("exit code %d\n%s", code, out)
	}
	says(t, out, "pass         signature", "/acme/proven.git, refs/tags/v1.0.0 at commit ", "1 of 1 with the role release-manager", "under policy version", "entries are among the", " 0 failed")

	raw, err := os.ReadFile(bundle)
	if err != nil {
		t.Fatal(err)
	}
	bad := bytes.Clone(raw)
	bad[len(bad)/2] ^= 1
	if err := os.WriteFile(bundle, bad, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, code := offline(verify...); code != 6 {
		t.Errorf("one byte of it was changed: exit code %d\n%s", code, out)
	}
	if err := os.WriteFile(bundle, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	// Another image's does not do, and those who may not see the project get none.
	if err := os.WriteFile(filepath.Join(w.Dir, "README.md"), []byte("# another\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Commit(t.Context(), "another"); err != nil {
		t.Fatal(err)
	}
	other := released(t, w, "v1.1.0")
	if out, code := offline(append(verify, "--image", string(other.Image.Digest))...); code != 6 || !strings.Contains(out, "was asked for") {
		t.Errorf("as another image's: exit code %d\n%s", code, out)
	}
	mustDray(t, at.Token, 4, "evidence", "sha256:"+strings.Repeat("0", 64), "-o", filepath.Join(dir, "none.tar"))
	if _, err := os.Stat(filepath.Join(dir, "none.tar")); err == nil {
		t.Error("a bundle that could not be had is there")
	}
}
