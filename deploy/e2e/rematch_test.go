//go:build linux

package e2e

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/dray-project/dray/deploy/vulndb"
	"github.com/dray-project/dray/pipeline"
)

// TestNewVulnerability: a database that knows more comes out. What is in prod
// stays there and can be pulled; its owners are told, once, and the auditor sees
// it. The first attempts to tell them fail.
func TestNewVulnerability(t *testing.T) {
	need(t)
	w := repository(t, "rematched", map[string]string{
		"Dockerfile":   "FROM {{base/busybox}}\nCOPY package.json /usr/lib/node_modules/only-here/package.json\nUSER 65532\n",
		"package.json": `{"name":"only-here","version":"1.0.0","license":"MIT"}`,
	})
	run := released(t, w, "v1.0.0")
	p := ask(t, "rematched", run.Image.Digest, "prod")
	wantState(t, p, pipeline.StateSucceeded)

	l, err := net.Listen("tcp", receiver)
	if err != nil {
		t.Fatal(err)
	}
	type told struct {
		event, signature string
		body             []byte
	}
	all := make(chan told, 100)
	attempts := 0
	hook := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if event := r.Header.Get("X-Dray-Event"); event == pipeline.NoticeFindings {
			if attempts++; attempts == 1 {
				rw.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			all <- told{event, r.Header.Get("X-Dray-Signature-256"), body}
		}
	})}
	go func() { _ = hook.Serve(l) }()
	t.Cleanup(func() { _ = hook.Close() })

	err = at.PushDatabaseOf(t.Context(), time.Now().Add(time.Minute), vulndb.Advisory{ID: "CVE-2026-77777", Ecosystem: "npm", Package: "only-here",
		Vulnerable: []string{"<1.0.1"}, Fixed: []string{"1.0.1"}, Severity: "critical", Title: "it is only here", URL: "https://example.org/CVE-2026-77777"})
	if err != nil {
		t.Fatal(err)
	}
	kill(t) // a drayd that starts asks at once whether there is a newer database
	var got told
	select {
	case got = <-all:
	case <-time.After(time.Minute):
		t.Fatal("nobody was told")
	}
	mac := hmac.New(sha256.New, []byte(receiverSecret))
	mac.Write(got.body)
	if want := "sha256=" + hex.EncodeToString(mac.Sum(nil)); got.signature != want {
		t.Errorf("the signature is %q, want %q", got.signature, want)
	}
	var notice struct {
		Project, Environment, Summary string
		Image                         pipeline.Image
		Data                          struct {
			Passed, PassedBefore bool
			Findings             []pipeline.Finding
		}
	}
	if err := json.Unmarshal(got.body, &notice); err != nil {
		t.Fatal(err)
	}
	if notice.Project != "rematched" || notice.Environment != "prod" || notice.Image.Digest != run.Image.Digest || notice.Data.Passed || !notice.Data.PassedBefore ||
		len(notice.Data.Findings) != 1 || notice.Data.Findings[0].ID != "CVE-2026-77777" {
		t.Errorf("the owners were told %s", got.body)
	}

	// Nothing is blocked, and everybody who asks gets to know.
	verified(t, pipeline.Image{Repository: at.Prod("rematched"), Digest: run.Image.Digest})
	if d := tagged(t, at.Prod("rematched"), "1.0.0"); d != run.Image.Digest {
		t.Errorf("1.0.0 in prod is %s", d)
	}
	says(t, mustDray(t, at.Token, 0, "audit", "cve", "CVE-2026-77777", "-o", "jsonl"), string(run.Image.Digest), `"environment":"prod"`, "only-here")
	says(t, mustDray(t, at.Token, 0, "rematch", "list"), string(at.Database)[len("sha256:"):][:12], "+1 -0")
	says(t, mustDray(t, at.Token, 0, "log", "show", "--project", "rematched"), pipeline.EntryFindingsChanged)
	// A gate that is asked now says no.
	says(t, refuses(t, at.Token, "promote", string(run.Image.Digest), "prod", "--project", "rematched", "--wait"), "CVE-2026-77777")
	res, err := http.Get(at.Metrics)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	metrics, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	if want := `dray_findings{environment="prod",project="rematched",severity="critical"} 1`; !strings.Contains(string(metrics), want) {
		t.Errorf("the metrics do not say %s", want)
	}
	select {
	case again := <-all:
		t.Errorf("the owners were told again: %s", again.body)
	case <-time.After(2 * time.Second):
	}
}
