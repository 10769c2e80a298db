package evidence_test

import (
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestEvidencePageWithoutDray runs what docs/evidence.md says can be done without
// Dray, and does it again with another key and with a file that was changed.
func TestEvidencePageWithoutDray(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "evidence.md"))
	check(t, err)
	_, rest, ok := strings.Cut(string(page), "\n## Without Dray\n")
	if !ok {
		t.Fatal("the page has no such section")
	}
	script := "set -eu\n"
	for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(rest, -1) {
		script += block[1]
	}
	if strings.Count(script, "cosign verify-blob-attestation") != 3 || strings.Contains(script, "dray ") {
		t.Fatalf("the commands are\n%s", script)
	}
	tools := t.TempDir()
	cosign := os.Getenv("DRAY_TEST_COSIGN3")
	if cosign == "" {
		cosign = filepath.Join("..", "..", "bin", "cosign3")
	}
	for name, at := range map[string]string{"cosign": cosign, "jq": "jq"} {
		path, err := exec.LookPath(at)
		if err != nil {
			if os.Getenv("DRAY_TEST_REQUIRE") != "" {
				t.Fatalf("%s: %v", at, err)
			}
			t.Skipf("%s: %v", at, err)
		}
		path, err = filepath.Abs(path)
		check(t, err)
		check(t, os.Symlink(path, filepath.Join(tools, name)))
	}
	f, err := os.Open(filepath.Join("testdata", "v1", "bundle.tar.gz"))
	check(t, err)
	defer f.Close()
	r, err := gzip.NewReader(f)
	check(t, err)
	good, err := io.ReadAll(r)
	check(t, err)
	key, err := os.ReadFile(filepath.Join("testdata", "v1", "cosign.pub"))
	check(t, err)
	_, other := keyPair()

	run := func(bundle, key []byte) (string, error) {
		dir := t.TempDir()
		check(t, os.WriteFile(filepath.Join(dir, "app.evidence.tar"), bundle, 0o600))
		check(t, os.WriteFile(filepath.Join(dir, "cosign.pub"), key, 0o600))
		cmd := exec.CommandContext(t.Context(), "sh", "-c", script)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "PATH="+tools+":"+os.Getenv("PATH"), "HOME="+dir)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	out, err := run(good, key)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for what, n := range map[string]int{
		"https://sigstore.dev/cosign/sign/v1 of ": 3, "https://slsa.dev/provenance/v1 of ": 3, "https://cyclonedx.org/bom of ": 3,
		"FAILED https://dray.example/projects/app/environments/staging ": 1, "PASSED https://dray.example/projects/app/environments/staging ": 1,
		"PASSED https://dray.example/projects/app/environments/prod ": 1, "PASSED https://dray.example/projects/app ": 1,
	} {
		if got := strings.Count(out, what); got != n {
			t.Errorf("%q is said %d times, want %d:\n%s", what, got, n, out)
		}
	}
	if out, err := run(good, other); err == nil {
		t.Errorf("with another key:\n%s", out)
	}
	if out, err := run(bytes.Replace(good, []byte(`"mona"`), []byte(`"nora"`), 1), key); err == nil {
		t.Errorf("with another approver:\n%s", out)
	}
}
