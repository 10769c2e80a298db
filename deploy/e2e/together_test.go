//go:build linux

package e2e

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dray-project/dray/deploy/site"
	"github.com/dray-project/dray/deploy/stack"
	"github.com/dray-project/dray/pipeline"
)

// TestSeveralDrayd: two drayd on one database share the work, and each run is
// worked on once.
func TestSeveralDrayd(t *testing.T) {
	need(t)
	address, err := stack.Reserve(at.Dir, "drayd-2")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := at.Stack.StartDaemon(t.Context(), stack.Daemon{
		Name: "drayd-2", Argv: []string{filepath.Join(at.Bin, "drayd"), "serve", "--config", filepath.Join(at.Dir, "drayd.yaml")},
		Env: []string{"DRAY_LISTEN=" + address, "DRAY_SCANNER_CACHE_DIR=" + filepath.Join(at.Dir, "scanner-2"), "DRAY_WORKER_DRAIN=2s"},
		Ready: func(ctx context.Context) error {
			res, err := http.Get("http://" + address + "/readyz")
			if err != nil {
				return err
			}
			defer res.Body.Close()
			if res.StatusCode != http.StatusOK {
				return fmt.Errorf("not ready: %s", res.Status)
			}
			return nil
		},
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := at.Stack.StopDaemon(context.Background(), "drayd-2"); err != nil {
			t.Error(err)
		}
	})

	w := repository(t, "together", map[string]string{"Dockerfile": "FROM {{base/busybox}}\nCOPY n /n\nUSER 65532\n", "n": "0"})
	var runs []pipeline.RunID
	for n := range 6 {
		if err := os.WriteFile(filepath.Join(w.Dir, "n"), fmt.Append(nil, n+1), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Commit(t.Context(), fmt.Sprintf("Count to %d", n+1)); err != nil {
			t.Fatal(err)
		}
		run, _ := push(t, w, fmt.Sprintf("v1.0.%d", n))
		runs = append(runs, run.ID)
	}
	var newest pipeline.RunDetail
	for _, id := range runs {
		for _, e := range finished(t, id.Job()) {
			if e.Kind == pipeline.KindStage && e.Attempt > 1 {
				t.Errorf("run %s: stage %s was attempted twice", id, e.Stage)
			}
		}
		newest = succeeded(t, id)
	}
	for _, tag := range []string{"1.0.5", "1.0", "1"} {
		out, err := dray(t, nil, "verify", at.Dev("together")+":"+tag, "--key", at.PublicKey)
		if err != nil || !strings.Contains(out, string(newest.Image.Digest)) {
			t.Errorf("tag %s does not name the newest release %s: %v\n%s", tag, newest.Image.Digest, err, out)
		}
	}
	for _, name := range []string{"drayd", "drayd-2"} {
		log, err := os.ReadFile(at.Stack.LogPath(name))
		if err != nil || !strings.Contains(string(log), "stage finished") {
			t.Errorf("%s had no share in the work (%v)", name, err)
		}
	}
}

// TestDeliveries sends what GitHub sends, over the wire.
func TestDeliveries(t *testing.T) {
	need(t)
	w := repository(t, "delivered", map[string]string{"Dockerfile": "FROM {{base/busybox}}\nUSER 65532\n"})
	run, told := push(t, w, "main")
	if !strings.Contains(told, "dray: ") || !strings.Contains(told, string(run.ID)) {
		t.Errorf("the pusher is not told of run %s:\n%s", run.ID, told)
	}
	finished(t, run.ID.Job())
	secret, err := os.ReadFile(filepath.Join(at.Dir, "secrets", "webhook.secret"))
	if err != nil {
		t.Fatal(err)
	}
	body := func(source string) []byte {
		return fmt.Appendf(nil, `{"ref":"refs/heads/main","before":"%040d","after":%q,"deleted":false,`+
			`"repository":{"full_name":%q,"clone_url":"http://elsewhere.example/x.git"},"pusher":{"name":"eve"},"head_commit":{"id":%[2]q}}`,
			0, run.Event.After, source)
	}
	send := func(kind, id string, body, secret []byte) (int, map[string]any) {
		t.Helper()
		mac := hmac.New(sha256.New, bytes.TrimSpace(secret))
		mac.Write(body)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, at.URL+"/webhooks/github", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("X-GitHub-Event", kind)
		req.Header.Set("X-GitHub-Delivery", id)
		req.Header.Set("X-Hub-Signature-256", "sha256="+hex.EncodeToString(mac.Sum(nil)))
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		var answer map[string]any
		if err := json.Unmarshal(text, &answer); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		return res.StatusCode, answer
	}
	mine := site.Organisation + "/delivered"
	for _, id := range []string{"0d1e0001-aaaa-bbbb-cccc-000000000001", "0d1e0001-aaaa-bbbb-cccc-000000000001", "0d1e0001-aaaa-bbbb-cccc-000000000002"} {
		code, answer := send("push", id, body(mine), secret)
		if code != http.StatusAccepted || answer["run"] != string(run.ID) || answer["duplicate"] != true {
			t.Errorf("the same event again: %d %v, want the first run %s", code, answer, run.ID)
		}
	}
	if code, answer := send("push", "0d1e0001-aaaa-bbbb-cccc-000000000003", body(mine), []byte("guess")); code != http.StatusUnauthorized {
		t.Errorf("a bad signature: %d %v", code, answer)
	}
	if code, answer := send("push", "0d1e0001-aaaa-bbbb-cccc-000000000004", body("acme/unknown"), secret); code != http.StatusNotFound {
		t.Errorf("an unknown repository: %d %v", code, answer)
	}
	if code, answer := send("push", "0d1e0001-aaaa-bbbb-cccc-000000000005", []byte(`{"ref":null,"repository":{"full_name":"`+mine+`"}}`), secret); code != http.StatusBadRequest {
		t.Errorf("null fields: %d %v", code, answer)
	}
	if code, answer := send("push", "0d1e0001-aaaa-bbbb-cccc-000000000006", make([]byte, 26<<20), secret); code != http.StatusRequestEntityTooLarge {
		t.Errorf("26 MiB: %d %v", code, answer)
	}
	if code, answer := send("ping", "0d1e0001-aaaa-bbbb-cccc-000000000007", []byte(`{"zen":"x","repository":{"full_name":"`+mine+`"}}`), secret); code != http.StatusOK {
		t.Errorf("ping: %d %v", code, answer)
	}
	list, err := dray(t, online(), "run", "list", "--project", "delivered", "-o", "name")
	if err != nil || len(strings.Fields(list)) != 1 {
		t.Errorf("the project has these runs, want one: %v\n%s", err, list)
	}
}

// TestDemo plays the whole demo, again, and stops it: the commands that
// newcomers meet first.
func TestDemo(t *testing.T) {
	need(t)
	dir := t.TempDir()
	down := func() {
		out, err := exec.CommandContext(context.Background(), filepath.Join(at.Bin, "dray-dev"), "down", "--dir", dir).CombinedOutput()
		if err != nil {
			t.Errorf("down: %v\n%s", err, out)
		}
	}
	t.Cleanup(down)
	play := func() string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		out, err := exec.CommandContext(ctx, filepath.Join(at.Bin, "dray-demo"), "--dir", dir, "--bin", at.Bin).CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return string(out)
	}
	first := play()
	says(t, first, "✓ tagged in dev: 1.0.0, 1.0, sha-", "CVE-2024-45337", "✓ it carries no tag", "✓ prod holds the same digest", "✓ refused: severity", "✓ prod is back at 1.0.0", "✓ Dray noticed, and put it back", "Everything was proved")
	env, err := os.ReadFile(filepath.Join(dir, "env"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"DRAY_URL", "DRAY_TOKEN", "DRAY_PUBLIC_KEY", "DRAY_DEV_REGISTRY", "DRAY_PROD_REGISTRY", "DRAY_DIGEST", "DRAY_GIT_URL"} {
		if !strings.Contains(string(env), "export "+name+"=") {
			t.Errorf("the env file does not set %s", name)
		}
	}
	says(t, play(), "Everything was proved")
	down()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), dir) {
		t.Errorf("a mount below %s is left behind", dir)
	}
	left, err := stack.Processes(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range left {
		if p.Running() {
			t.Errorf("%s is still running", p.Name)
		}
	}
}
