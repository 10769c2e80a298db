package vex_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/vex"
)

// cosigns are the command lines that users have, by version.
func cosigns(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{"2.6": os.Getenv("DRAY_TEST_COSIGN2"), "3": os.Getenv("DRAY_TEST_COSIGN3")}
	for version, path := range found {
		if path != "" {
			continue
		}
		if os.Getenv("DRAY_TEST_REQUIRE") == "1" {
			t.Fatalf("no cosign %s: set DRAY_TEST_COSIGN2 and DRAY_TEST_COSIGN3 to the programs", version)
		}
		t.Skip("set DRAY_TEST_COSIGN2 and DRAY_TEST_COSIGN3 to the programs")
	}
	return found
}

// Documents that users sign with their own cosign count, by whichever of its
// commands; tampered, swapped and signed by another key they do not.
func TestUsersCosign(t *testing.T) {
	programs := cosigns(t)
	home := t.TempDir()
	cosign := func(t *testing.T, version string, args ...string) []byte {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, programs[version], args...)
		cmd.Env, cmd.Dir = []string{"HOME=" + home, "PATH=/usr/bin:/bin", "COSIGN_PASSWORD=x"}, home
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		if err := cmd.Run(); err != nil {
			t.Fatalf("cosign %s %q: %v\n%s", version, args, err, stderr.String())
		}
		return stdout.Bytes()
	}
	file := func(t *testing.T, name string) []byte {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(home, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	document, second := []byte(sample), bytes.Replace([]byte(sample), []byte("CVE-2026-0001"), []byte("CVE-2026-0009"), 1)
	for name, content := range map[string][]byte{"vex.json": document, "second.json": second} {
		if err := os.WriteFile(filepath.Join(home, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, k := range []string{"ours", "theirs"} {
		cosign(t, "2.6", "generate-key-pair", "--output-key-prefix", k)
	}
	ours, theirs := string(file(t, "ours.pub")), string(file(t, "theirs.pub"))

	// A command signs the file and leaves the signature in sig, or prints it.
	for name, c := range map[string]struct {
		version string
		args    []string
		printed bool
	}{
		"2.6 printed":       {"2.6", []string{"sign-blob", "--tlog-upload=false"}, true},
		"2.6 bundle":        {"2.6", []string{"sign-blob", "--tlog-upload=false", "--new-bundle-format", "--bundle", "sig"}, false},
		"2.6 older bundle":  {"2.6", []string{"sign-blob", "--tlog-upload=false", "--bundle", "sig"}, false},
		"2.6 attestation":   {"2.6", []string{"attest-blob", "--tlog-upload=false", "--type", "openvex", "--new-bundle-format", "--bundle", "sig", "--predicate"}, false},
		"2.6 bare envelope": {"2.6", []string{"attest-blob", "--tlog-upload=false", "--type", "openvex", "--output-signature", "sig", "--predicate"}, false},
		"3 bundle":          {"3", []string{"sign-blob", "--tlog-upload=false", "--use-signing-config=false", "--bundle", "sig"}, false},
		"3 printed":         {"3", []string{"sign-blob", "--tlog-upload=false", "--use-signing-config=false", "--new-bundle-format=false"}, true},
		"3 attestation":     {"3", []string{"attest-blob", "--tlog-upload=false", "--use-signing-config=false", "--type", "openvex", "--bundle", "sig", "--predicate"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			sign := func(document string) []byte {
				args := append([]string{}, c.args...)
				if args[len(args)-1] == "--predicate" {
					args = append(args, document)
				}
				out := cosign(t, c.version, append(args, "--key", "ours.key", "--yes", document)...)
				if c.printed {
					return out
				}
				return file(t, "sig")
			}
			signature := sign("vex.json")
			if got, err := read(document, signature, theirs, ours); err != nil || len(got) != 2 {
				t.Fatalf("%d statements, %v\n%s", len(got), err, signature)
			}
			tampered := bytes.Replace(document, []byte(`"affected"`), []byte(`"fixed"`), 1)
			for what, err := range map[string]error{
				"another key":               failure(read(document, signature, theirs)),
				"tampered":                  failure(read(tampered, signature, ours)),
				"another's signature":       failure(read(document, sign("second.json"), ours)),
				"the signature of this one": failure(read(second, signature, ours)),
			} {
				if !errors.Is(err, pipeline.ErrUnverified) {
					t.Errorf("%s: %v, want ErrUnverified", what, err)
				}
			}
		})
	}
}

func failure[T any](_ T, err error) error { return err }

// The commands of the documentation make what Dray reads.
func TestDocumentation(t *testing.T) {
	programs := cosigns(t)
	page, err := os.ReadFile("../../docs/reference/vex.md")
	if err != nil {
		t.Fatal(err)
	}
	block := func(language string) string {
		_, rest, _ := strings.Cut(string(page), "```"+language+"\n")
		text, _, ok := strings.Cut(rest, "```")
		if !ok {
			t.Fatalf("the page has no block of %s", language)
		}
		return text
	}
	home, document := t.TempDir(), []byte(block("json"))
	if err := os.WriteFile(filepath.Join(home, "hello-go.vex.json"), document, 0o600); err != nil {
		t.Fatal(err)
	}
	shell := func(line string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "sh", "-ec", line)
		cmd.Env, cmd.Dir = []string{"HOME=" + home, "PATH=" + home + ":/usr/bin:/bin", "COSIGN_PASSWORD=x"}, home
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s\n%v\n%s", line, err, out)
		}
	}
	for name, version := range map[string]string{"cosign2": "2.6", "cosign3": "3"} {
		path, err := filepath.Abs(programs[version])
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path, filepath.Join(home, name)); err != nil {
			t.Fatal(err)
		}
	}
	shell("cosign2 generate-key-pair --output-key-prefix vex")
	key, err := os.ReadFile(filepath.Join(home, "vex.pub"))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(block("sh")), "\n")
	if len(lines) < 3 {
		t.Fatalf("%d commands, want three", len(lines))
	}
	image := pipeline.Image{Repository: "registry.example/acme/hello-go", Digest: digest}
	finding := pipeline.Finding{ID: "CVE-2024-45337", PURL: "pkg:golang/golang.org/x/crypto@v0.30.0"}
	for _, line := range lines {
		shell(line)
		signature, err := os.ReadFile(filepath.Join(home, "hello-go.vex.sig"))
		if err != nil {
			t.Fatal(err)
		}
		got, err := read(document, signature, string(key))
		if err != nil {
			t.Fatalf("%s\n%v", line, err)
		}
		if len(got) != 1 || !got[0].Suppresses() || !(vex.Reader{}).Matches(got[0], finding, image, nil) {
			t.Errorf("%s\n%+v does not suppress %+v", line, got, finding)
		}
	}
}
