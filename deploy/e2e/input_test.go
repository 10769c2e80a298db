//go:build linux

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dray-project/dray/deploy/stack"
	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/signer/verify"
)

// failed runs a push to its failure and returns the reason.
func failed(t *testing.T, w *stack.Worktree, ref string) string {
	t.Helper()
	run, _ := push(t, w, ref)
	events := finished(t, run.ID.Job())
	d, err := at.Client.Run(t.Context(), run.ID)
	if err != nil {
		t.Fatal(err)
	}
	if d.State != pipeline.StateFailed {
		t.Fatalf("run %s, want it failed", d.State)
	}
	if last := events[len(events)-1]; last.State != string(pipeline.StateFailed) {
		t.Errorf("the last event is %+v", last)
	}
	return d.Reason
}

func says(t *testing.T, text string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("it does not say %q:\n%s", w, text)
		}
	}
}

func TestDockerfileThatDoesNotParse(t *testing.T) {
	need(t)
	w := repository(t, "broken", map[string]string{"Dockerfile": "FROM {{base/busybox}}\nRUNN true\n"})
	says(t, failed(t, w, "main"), "Dockerfile", "2", "RUNN")
}

func TestStepThatFails(t *testing.T) {
	need(t)
	w := repository(t, "failing", map[string]string{
		"Dockerfile": "FROM {{base/busybox}}\nRUN echo first; echo the disk of the moon is full; exit 7\n"})
	says(t, failed(t, w, "main"), "the disk of the moon is full", "7")

	// It can be run again, and fails again, as a run of its own.
	first, err := at.RunOf(t.Context(), "failing", "refs/heads/main", "")
	if err != nil {
		t.Fatal(err)
	}
	out, err := dray(t, online(), "run", "retry", string(first.ID), "--wait")
	if exitCode(err) != 1 {
		t.Errorf("dray run retry exits with %d, want 1\n%s", exitCode(err), out)
	}
	again, err := at.RunOf(t.Context(), "failing", "refs/heads/main", "")
	if err != nil || again.ID == first.ID || again.RetryOf != first.ID || again.RequestedBy != "demo" || again.State != pipeline.StateFailed {
		t.Errorf("the retry is %+v, %v", again, err)
	}
}

func TestUnreachableRegistry(t *testing.T) {
	need(t)
	w := repository(t, "shared", map[string]string{"Dockerfile": "FROM {{base/busybox}}\nUSER 65532\n"})
	d := released(t, w, "v1.0.0")
	if err := at.Stack.StopDaemon(t.Context(), "registry-prod"); err != nil {
		t.Fatal(err)
	}
	p, err := at.Client.Promote(t.Context(), pipeline.PromotionRequest{Image: string(d.Image.Digest), Environment: "prod"})
	if err != nil {
		t.Fatal(err)
	}
	events := finished(t, p.ID.Job())
	if n := attempts(events, pipeline.StageCopy); n != 2 {
		t.Errorf("the copy was attempted %d times, want the 2 that are set", n)
	}
	got, err := at.Client.Promotion(t.Context(), p.ID)
	if err != nil || got.State != pipeline.StateFailed {
		t.Fatalf("promotion %s, %v; want it failed", got.State, err)
	}
	says(t, got.Reason, at.Stack.Prod.Host, "refused")

	// It comes back, and so does the promotion that is asked for anew.
	if _, err := stack.Start(t.Context(), stack.Config{Dir: at.Dir, Bin: at.Bin, Registries: true}); err != nil {
		t.Fatal(err)
	}
	if out, err := dray(t, online(), "promote", d.Image.String(), "prod", "--wait"); err != nil {
		t.Fatalf("dray promote: %v\n%s", err, out)
	}
	verified(t, pipeline.Image{Repository: at.Prod("shared"), Digest: d.Image.Digest})

	t.Run("users' cosign accepts it in both registries", func(t *testing.T) {
		for _, repo := range []string{at.Dev("shared"), at.Prod("shared")} {
			img := pipeline.Image{Repository: repo, Digest: d.Image.Digest}
			platform := pipeline.Image{Repository: repo, Digest: platformOf(t, d.Image.Digest, "shared")}
			for _, i := range []pipeline.Image{img, platform} {
				for _, c := range verify.Commands(i, verify.CommandOptions{Key: at.PublicKey, TrustedRoot: at.TrustedRoot, PlainHTTP: true}) {
					cosign := os.Getenv("DRAY_TEST_COSIGN" + c.Version[:1])
					if cosign == "" {
						t.Fatalf("DRAY_TEST_COSIGN%s does not name a cosign", c.Version[:1])
					}
					if out, err := exec.CommandContext(t.Context(), cosign, c.Args[1:]...).CombinedOutput(); err != nil {
						t.Errorf("%s: %v\n%s", c, err, out)
					}
				}
			}
		}
	})
	t.Run("another key does not", func(t *testing.T) {
		dir := t.TempDir()
		cmd := exec.CommandContext(t.Context(), filepath.Join(at.Bin, "drayd"), "key", "generate", "--out", dir)
		cmd.Env = append(os.Environ(), "COSIGN_PASSWORD=another")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		out, err := dray(t, nil, "verify", d.Image.String(), "--key", filepath.Join(dir, "cosign.pub"))
		if exitCode(err) != 6 {
			t.Errorf("dray verify with another key exits with %d, want 6\n%s", exitCode(err), out)
		}
	})
}

func platformOf(t *testing.T, d pipeline.Digest, project string) pipeline.Digest {
	t.Helper()
	img, err := at.Client.Image(t.Context(), d, project)
	if err != nil {
		t.Fatal(err)
	}
	return img.Platforms[0].Digest
}

// TestCheck: drayd check says that all is well where it is, and names what is
// wrong where it is not.
func TestCheck(t *testing.T) {
	need(t)
	check := func(env ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), filepath.Join(at.Bin, "drayd"), "check", "--config", filepath.Join(at.Dir, "drayd.yaml"))
		// The scanner's directory belongs to the drayd that runs.
		cmd.Env = append(append(os.Environ(), "DRAY_SCANNER_CACHE_DIR="+t.TempDir()), env...)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	out, err := check()
	if err != nil || strings.Contains(out, "WRONG") {
		t.Fatalf("%v\n%s", err, out)
	}
	says(t, out, "ok    database", "ok    signer", "ok    builder", "linux/amd64", "ok    scanner",
		"registry "+at.Dev("hello-go"), "registry "+at.Prod("hello-go"), "with the referrers API")

	wrong := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(wrong, []byte("wrong"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct{ env, line, says string }{
		"wrong password": {"DRAY_SIGNER_PASSWORD_FILE=" + wrong, "WRONG signer", "password"},
		"no buildkitd":   {"DRAY_BUILDER_ADDRESSES=unix:///nowhere/buildkitd.sock", "WRONG builder", "/nowhere/buildkitd.sock"},
		"no database":    {"DRAY_DATABASE_URL=postgres://127.0.0.1:1/dray", "WRONG database", "127.0.0.1:1"},
		"old advisories": {"DRAY_SCANNER_MAX_AGE=1ms", "WRONG scanner", "old"},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := check(tt.env)
			if exitCode(err) != 1 {
				t.Errorf("it exits with %d, want 1", exitCode(err))
			}
			says(t, out, tt.line, tt.says)
		})
	}
}
