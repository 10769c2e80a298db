package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/dray-project/dray/pipeline/evidence"
)

// bundleDir holds a bundle and its keys, and a bundle in which one byte is wrong.
func bundleDir(t *testing.T) (dir string, good []byte) {
	t.Helper()
	from := filepath.Join("..", "..", "pipeline", "evidence", "testdata", "v1")
	f, err := os.Open(filepath.Join(from, "bundle.tar.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	if good, err = io.ReadAll(r); err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	bad := bytes.Replace(good, []byte(`"mona"`), []byte(`"nora"`), 1)
	for name, body := range map[string][]byte{"good.tar": good, "bad.tar": bad, "cut.tar": good[:len(good)/2], "no.txt": []byte("not a bundle\n")} {
		if err := os.WriteFile(filepath.Join(dir, name), body, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"cosign.pub", "log.pub"} {
		body, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), body, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir, good
}

func TestVerifyBundle(t *testing.T) {
	dir, good := bundleDir(t)
	t.Chdir(dir)
	dray := func(stdin io.Reader, env map[string]string, args ...string) (code int, stdout, stderr string) {
		var out, errs bytes.Buffer
		code = run(context.Background(), args, func(k string) string { return env[k] }, stdin, &out, &errs)
		return code, out.String(), errs.String()
	}
	keys := []string{"--key", "cosign.pub", "--log-key", "log.pub"}
	code, out, stderr := dray(nil, nil, append([]string{"verify", "--bundle", "good.tar"}, keys...)...)
	if code != 0 || stderr != "" {
		t.Fatalf("exit code %d: %s\n%s", code, stderr, out)
	}
	for _, want := range []string{
		`(?m)^verified \S+@sha256:[0-9a-f]{64} of project app, as collected 20`,
		`(?m)^pass +signature +linux/arm64 +key [0-9a-f]{12} \(bundle layout\)`,
		`(?m)^pass +provenance +index +built by https://dray.example/builders#shared from git\+https://git.example/acme/app.git`,
		`(?m)^pass +decision +prod \(prm_\S+\) +passed at \S+ under policy version 1 with digest [0-9a-f]{12}, sealed by key`,
		`(?m)^pass +decision +staging \(prm_\S+\) +refused \(severity`,
		`(?m)^pass +approvals +prod \(prm_\S+\) +1 of 1 with the role release-manager, bound to the plan [0-9a-f]{12}: mona`,
		`(?m)^pass +log +approval of prod \(prm_\S+\) by mona +entry \d+ of \d+`,
		`(?m)^not checked +not in the bundle +the content of the image's layers`,
		`(?m)^\d+ passed, 0 failed, \d+ not checked$`,
	} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("no %s in\n%s", want, out)
		}
	}
	image := regexp.MustCompile(`sha256:[0-9a-f]{64}`).FindString(out)
	code, out, _ = dray(bytes.NewReader(good), map[string]string{"DRAY_PUBLIC_KEY": "cosign.pub", "DRAY_LOG_KEY": "log.pub"},
		"verify", "--bundle", "-", "--image", image, "-e", "prod", "-o", "json")
	var result evidence.Result
	if err := json.Unmarshal([]byte(out), &result); err != nil || code != 0 || !result.Passed || len(result.Claims) < 50 {
		t.Errorf("from standard input: exit code %d, %v, %.300s", code, err, out)
	}
	if code, out, _ := dray(nil, nil, "verify", "--bundle", "good.tar", "--key", "cosign.pub", "--without-log"); code != 0 || !strings.Contains(out, "no public key of the evidence log was given") {
		t.Errorf("without the log: exit code %d, %s", code, out)
	}
	for what, c := range map[string]struct {
		code int
		args []string
		say  string
	}{
		"changed":           {6, append([]string{"--bundle", "bad.tar"}, keys...), "it was changed"},
		"cut":               {6, append([]string{"--bundle", "cut.tar"}, keys...), "cut short"},
		"no bundle":         {6, append([]string{"--bundle", "no.txt"}, keys...), "cut short"},
		"another image":     {6, append([]string{"--bundle", "good.tar", "--image", "sha256:" + strings.Repeat("0", 64)}, keys...), "was asked for"},
		"another builder":   {6, append([]string{"--bundle", "good.tar", "--builder", "x"}, keys...), "want x"},
		"another policy":    {6, append([]string{"--bundle", "good.tar", "--policy", "prod=sha256:" + strings.Repeat("0", 64)}, keys...), "decided under"},
		"never in moon":     {6, append([]string{"--bundle", "good.tar", "-e", "moon"}, keys...), "moon"},
		"no key of the log": {2, []string{"--bundle", "good.tar", "--key", "cosign.pub"}, "--without-log"},
		"no key":            {2, []string{"--bundle", "good.tar"}, "DRAY_PUBLIC_KEY"},
		"the wrong key":     {2, []string{"--bundle", "good.tar", "--key", "log.pub", "--log-key", "log.pub"}, "PEM"},
		"the wrong log key": {2, []string{"--bundle", "good.tar", "--key", "cosign.pub", "--log-key", "cosign.pub"}, "log"},
		"a missing file":    {1, append([]string{"--bundle", "none.tar"}, keys...), "none.tar"},
		"an image too":      {2, append([]string{"--bundle", "good.tar", "a/b@" + image}, keys...), "--image"},
		"a bad policy":      {2, append([]string{"--bundle", "good.tar", "--policy", "prod"}, keys...), "ENVIRONMENT="},
		"require":           {2, append([]string{"--bundle", "good.tar", "--require", "sbom"}, keys...), "--require"},
		"flags without it":  {2, []string{"a/b@" + image, "--key", "cosign.pub", "--log-key", "log.pub"}, "goes with --bundle"},
		"nothing":           {2, []string{"--key", "cosign.pub"}, "arg"},
	} {
		code, out, stderr := dray(nil, nil, append([]string{"verify"}, c.args...)...)
		if code != c.code || !strings.Contains(stderr, c.say) {
			t.Errorf("%s: exit code %d, want %d: %s\n%s", what, code, c.code, stderr, out)
		}
	}
}

// Checking a bundle needs no network: it is done where there is none at all.
func TestVerifyBundleWithoutNetwork(t *testing.T) {
	dir, _ := bundleDir(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(dir, "dray")); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "unshare", "-n", "true").CombinedOutput(); err != nil {
		if os.Getenv("DRAY_TEST_REQUIRE") == "1" {
			t.Fatalf("no network namespace can be made here: %v %s", err, out)
		}
		t.Skipf("no network namespace can be made here: %v %s", err, out)
	}
	// Not even the loopback interface is up in a new namespace.
	cmd := exec.CommandContext(t.Context(), "unshare", "-n", "./dray", "verify", "--bundle", "good.tar", "--key", "cosign.pub", "--log-key", "log.pub", "-o", "name")
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "@sha256:") {
		t.Errorf("%v: %s", err, out)
	}
}

func TestWholeFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.tar")
	broke := errors.New("it broke off")
	if _, err := wholeFile(path, func(w io.Writer) (int64, error) {
		_, _ = io.WriteString(w, "half")
		return 4, broke
	}); !errors.Is(err, broke) {
		t.Errorf("%v", err)
	}
	if left, err := filepath.Glob(filepath.Join(filepath.Dir(path), "*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
	if _, err := wholeFile(path, func(w io.Writer) (int64, error) { n, err := io.WriteString(w, "whole"); return int64(n), err }); err != nil {
		t.Fatal(err)
	}
	if raw, err := os.ReadFile(path); err != nil || string(raw) != "whole" {
		t.Errorf("%q, %v", raw, err)
	}
}
