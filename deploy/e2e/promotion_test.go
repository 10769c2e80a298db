//go:build linux

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/dray-project/dray/api/client"
	"github.com/dray-project/dray/deploy/stack"
	"github.com/dray-project/dray/pipeline"
)

// kinds are the registries of the site: without the referrers API and with it.
func kinds() map[string]string {
	return map[string]string{string(at.Stack.Dev.Kind): at.Stack.Dev.Host, string(at.Stack.Prod.Kind): at.Stack.Prod.Host}
}

// as is the environment in which dray speaks for a token's bearer.
func as(token string) []string { return []string{"DRAY_URL=" + at.URL, "DRAY_TOKEN=" + token} }

// mustDray runs dray and wants it to end with that code.
func mustDray(t *testing.T, token string, code int, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(at.Bin, "dray"), args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "NO_COLOR=1"}, as(token)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); exitCode(err) != code {
		t.Fatalf("dray %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), exitCode(err), code, stdout.String(), stderr.String())
	}
	if code != 0 {
		return stdout.String() + stderr.String()
	}
	return stdout.String()
}

// refuses runs dray, wants it to fail, and returns what it says.
func refuses(t *testing.T, token string, args ...string) string {
	t.Helper()
	out, err := dray(t, as(token), args...)
	if err == nil {
		t.Errorf("dray %s succeeded\n%s", strings.Join(args, " "), out)
	}
	return out
}

// apply puts a project file into force.
func apply(t *testing.T, project, environments string) {
	t.Helper()
	mustDray(t, at.Token, 0, "project", "apply", "-f", projectFile(t, project, environments))
}

func projectFile(t *testing.T, project, rest string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "project.yaml")
	text := "apiVersion: dray/v1\nkind: Project\nname: " + project + "\nplatforms: [linux/amd64]\n" + rest
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func settled(t *testing.T, id pipeline.PromotionID, rest ...pipeline.State) client.Promotion {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		p, err := at.Client.Promotion(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		if p.State.Final() || slices.Contains(rest, p.State) {
			return p
		}
		select {
		case <-ctx.Done():
			t.Fatalf("promotion %s is still %s: %s", id, p.State, p.Reason)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// ask asks for a promotion and waits until it is over, or rests.
func ask(t *testing.T, project string, d pipeline.Digest, environment string, rest ...pipeline.State) client.Promotion {
	t.Helper()
	p, err := at.Client.Promote(t.Context(), pipeline.PromotionRequest{Image: string(d), Project: project, Environment: environment})
	if err != nil {
		t.Fatal(err)
	}
	return settled(t, p.ID, rest...)
}

func wantState(t *testing.T, p client.Promotion, state pipeline.State, says ...string) {
	t.Helper()
	if p.State != state {
		t.Fatalf("promotion %s into %s is %s: %s; want %s", p.ID, p.Environment, p.State, p.Reason, state)
	}
	for _, s := range says {
		if !strings.Contains(p.Reason, s) {
			t.Errorf("the reason %q does not say %q", p.Reason, s)
		}
	}
}

func tagged(t *testing.T, repository, tag string) pipeline.Digest {
	t.Helper()
	ref, err := name.NewTag(repository+":"+tag, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	desc, err := remote.Head(ref, remote.WithContext(t.Context()))
	if err != nil {
		return ""
	}
	return pipeline.Digest(desc.Digest.String())
}

const plainDockerfile = "FROM {{base/busybox}}\nCOPY n /n\nUSER 65532\n"

// TestWayToProd goes the whole way, with an approval and a soak, into both kinds
// of registry.
func TestWayToProd(t *testing.T) {
	need(t)
	for kind, host := range kinds() {
		t.Run(kind, func(t *testing.T) {
			project := "way-" + kind
			prod := host + "/way/prod-" + kind
			w := repository(t, project, map[string]string{"Dockerfile": plainDockerfile, "n": kind})
			d := released(t, w, "v1.0.0").Image.Digest
			apply(t, project, fmt.Sprintf(`
environments:
  - {name: staging, repository: "%s/way/{environment}-%s"}
  - name: prod
    repository: %s
    after: [staging]
    soak: 3s
    approvals: [{role: release-manager, notRequester: true}]
    rules: [{use: pinned-bases}, {name: small, expr: "hygiene.compressed < 100000000", reason: "too large", remedy: "make it smaller"}]
`, host, kind, prod))

			// A dry run is refused with the reason, and changes nothing.
			out := mustDray(t, at.Token, 3, "promote", string(d), "prod", "--project", project, "--dry-run")
			for _, want := range []string{"reached", "staging", "small"} {
				if !strings.Contains(out, want) {
					t.Errorf("the dry run does not speak of %q:\n%s", want, out)
				}
			}
			var e pipeline.Eligibility
			get(t, fmt.Sprintf("/api/v1/images/%s/eligibility?environment=prod&project=%s", d, project), &e)
			if e.Decision.Passed || !strings.Contains(e.Decision.Reason(), "staging") {
				t.Errorf("eligibility says %+v", e.Decision)
			}
			if list, err := at.Client.Promotions(t.Context(), client.PromotionsQuery{Project: project}); err != nil || len(list.Items) != 0 {
				t.Fatalf("asking made %d promotions, %v", len(list.Items), err)
			}

			wantState(t, ask(t, project, d, "prod"), pipeline.StateRefused, "staging")
			wantState(t, ask(t, project, d, "staging"), pipeline.StateSucceeded)
			p := ask(t, project, d, "prod", pipeline.StateWaiting)
			wantState(t, p, pipeline.StateWaiting, "approvals")

			// The requester alone is not enough, a plan that nobody was shown is none.
			mustDray(t, at.Approver, 1, "approve", string(p.ID), "--plan", "sha256:"+strings.Repeat("0", 64))
			if out := mustDray(t, at.Token, 0, "approve", string(p.ID), "--yes"); out == "" {
				t.Error("approving says nothing")
			}
			time.Sleep(3500 * time.Millisecond) // the soak
			wantState(t, settled(t, p.ID, pipeline.StateWaiting), pipeline.StateWaiting, "approvals")
			mustDray(t, at.Approver, 0, "approve", string(p.ID), "--yes")
			p = settled(t, p.ID)
			wantState(t, p, pipeline.StateSucceeded)
			if got := tagged(t, prod, "1.0.0"); got != d {
				t.Errorf("prod's 1.0.0 names %q, want %s", got, d)
			}
			verified(t, pipeline.Image{Repository: prod, Digest: d})
			if p.Decision == nil || p.Decision.Policy.Version < 2 || p.Summary == nil || len(p.Summary.Envelope) == 0 {
				t.Errorf("the decision does not name its version, or is not signed: %+v", p.Decision)
			}

			// The summary says prod, in words that an ordinary cosign reads.
			cosign := os.Getenv("DRAY_TEST_COSIGN3")
			if cosign == "" {
				t.Fatal("DRAY_TEST_COSIGN3 does not name cosign")
			}
			cmd := exec.CommandContext(t.Context(), cosign, "verify-attestation", "--key", at.PublicKey, "--insecure-ignore-tlog=true",
				"--allow-http-registry", "--type", pipeline.PredicateSummary, prod+"@"+string(d))
			var stdout, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			if err := cmd.Run(); err != nil {
				t.Fatalf("cosign: %v\n%s", err, stderr.String())
			}
			if !summaryOf(stdout.String(), "/projects/"+project+"/environments/prod", "PASSED") {
				t.Errorf("no summary is about prod:\n%s", stdout.String())
			}
		})
	}
}

// summaryOf looks for a summary about that resource among cosign's lines.
func summaryOf(out, resource, result string) bool {
	for line := range strings.Lines(out) {
		var envelope struct{ Payload []byte }
		if json.Unmarshal([]byte(line), &envelope) != nil {
			continue
		}
		var s struct {
			Predicate struct{ ResourceURI, VerificationResult string }
		}
		if json.Unmarshal(envelope.Payload, &s) == nil && strings.HasSuffix(s.Predicate.ResourceURI, resource) && s.Predicate.VerificationResult == result {
			return true
		}
	}
	return false
}

func get(t *testing.T, path string, into any) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, at.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+at.Token)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: %s", path, res.Status)
	}
	if err := json.NewDecoder(res.Body).Decode(into); err != nil {
		t.Fatal(err)
	}
}

// TestProjectFile: what cannot work is refused when it is set, and every version
// is kept.
func TestProjectFile(t *testing.T) {
	need(t)
	const project = "configured"
	good := fmt.Sprintf("environments:\n  - {name: prod, repository: %s/configured/prod}\n", at.Stack.Prod.Host)
	apply(t, project, good)
	before := mustDray(t, at.Token, 0, "project", "versions", project, "-o", "json")
	for what, c := range map[string]struct{ rest, says string }{
		"a rule that does not compile": {"rules: [{name: typo, expr: 'findigns.size() == 0', reason: r, remedy: m}]\n" + good, "findigns"},
		"a rule that nobody knows":     {"rules: [{use: no-such-rule}]\n" + good, "no-such-rule"},
		"an unknown field":             {"enviroments: []\n", "enviroments"},
		"an unknown registry":          {"environments: [{name: prod, repository: elsewhere.example/x}]\n", "elsewhere.example"},
		"a circle":                     {"environments: [{name: a, repository: " + at.Stack.Prod.Host + "/a, after: [b]}, {name: b, repository: " + at.Stack.Prod.Host + "/b, after: [a]}]\n", "before it"},
		"a freeze that is no time":     {"environments: [{name: a, repository: " + at.Stack.Prod.Host + "/a, freezes: [{name: f, start: soon, for: 1h}]}]\n", "soon"},
	} {
		if out := refuses(t, at.Token, "project", "apply", "-f", projectFile(t, project, c.rest)); !strings.Contains(out, c.says) {
			t.Errorf("the refusal of %s does not say %q:\n%s", what, c.says, out)
		}
	}
	if after := mustDray(t, at.Token, 0, "project", "versions", project, "-o", "json"); after != before {
		t.Errorf("a file that was refused made a version:\n%s", after)
	}
	apply(t, project, good) // the same again is no new version
	if after := mustDray(t, at.Token, 0, "project", "versions", project, "-o", "json"); after != before {
		t.Errorf("the same file made a new version:\n%s", after)
	}
	// A release manager sets no rules.
	if out := refuses(t, at.Approver, "project", "apply", "-f", projectFile(t, project, good+"latest: true\n")); !strings.Contains(out, "admin") {
		t.Errorf("the refusal does not name the role: %s", out)
	}
}

// TestExceptionsAndRollback: refused, accepted, promoted, rolled back.
func TestExceptionsAndRollback(t *testing.T) {
	need(t)
	const project = "excepted"
	prod := at.Stack.Prod.Host + "/excepted/prod"
	apply(t, project, fmt.Sprintf(`
environments:
  - {name: prod, repository: %s, gate: {failOn: low, allowRoot: true}, rollback: {}}
`, prod))
	w := repository(t, project, map[string]string{"Dockerfile": "FROM {{base/static}}\nCOPY usr /usr\nUSER 65532\n", "usr/n": "1"})
	clean := released(t, w, "v1.0.0").Image.Digest
	wantState(t, ask(t, project, clean, "prod"), pipeline.StateSucceeded)

	const finding = "CVE-2024-35195"
	dir := filepath.Join(w.Dir, "usr/lib/python3/dist-packages/requests-2.31.0.dist-info")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "METADATA"), []byte("Metadata-Version: 2.1\nName: requests\nVersion: 2.31.0\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Commit(t.Context(), "Bring requests in"); err != nil {
		t.Fatal(err)
	}
	leaky := released(t, w, "v1.1.0").Image.Digest
	wantState(t, ask(t, project, leaky, "prod"), pipeline.StateRefused, finding)
	mustDray(t, at.Approver, 0, "exception", "add", finding, "--project", project, "--environment", "prod", "--expires", "1d", "--reason", "a test")
	if out := mustDray(t, at.Token, 0, "diff", string(leaky), "prod", "--project", project); !strings.Contains(out, "requests") || !strings.Contains(out, finding) {
		t.Errorf("the difference does not name what comes in:\n%s", out)
	}
	p := ask(t, project, leaky, "prod")
	wantState(t, p, pipeline.StateSucceeded)
	if len(p.Decision.Suppressed) == 0 {
		t.Error("the decision does not show what was accepted")
	}
	if got := tagged(t, prod, "1"); got != leaky {
		t.Errorf("the tag 1 names %s", got)
	}
	mustDray(t, at.Token, 0, "rollback", project, "prod", "--wait", "--note", "a test")
	if one, full := tagged(t, prod, "1"), tagged(t, prod, "1.1.0"); one != clean || full != leaky {
		t.Errorf("after the rollback 1 names %s and 1.1.0 names %s", one, full)
	}
	if out := mustDray(t, at.Token, 0, "environment", "list", project); !strings.Contains(out, clean.Short()) {
		t.Errorf("the environment does not show what it was rolled back to:\n%s", out)
	}
}

// TestRepairs deletes behind Dray's back what a promotion brought, in both kinds
// of registry.
func TestRepairs(t *testing.T) {
	need(t)
	for kind, host := range kinds() {
		t.Run(kind, func(t *testing.T) {
			project := "repaired-" + kind
			prod := host + "/repaired/prod-" + kind
			apply(t, project, fmt.Sprintf("environments: [{name: prod, repository: %s, gate: {failOn: critical, allowRoot: true}}]\n", prod))
			w := repository(t, project, map[string]string{"Dockerfile": plainDockerfile, "n": kind})
			d := released(t, w, "v1.0.0").Image.Digest
			p := ask(t, project, d, "prod")
			wantState(t, p, pipeline.StateSucceeded)
			img := pipeline.Image{Repository: prod, Digest: d}

			repaired := func(what, subject string, remove func() error) {
				t.Helper()
				if err := remove(); err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				deadline := time.Now().Add(30 * time.Second)
				for {
					var list []pipeline.Drift
					if err := json.Unmarshal([]byte(mustDray(t, at.Token, 0, "drift", "list", "--all", "--project", project, "-o", "json")), &list); err != nil {
						t.Fatal(err)
					}
					if slices.ContainsFunc(list, func(d pipeline.Drift) bool { return strings.Contains(d.Subject, subject) && d.RepairedAt != nil }) {
						break
					}
					if time.Now().After(deadline) {
						t.Fatalf("%s was not repaired: %+v", what, list)
					}
					time.Sleep(200 * time.Millisecond)
				}
				verified(t, img)
			}
			var signature pipeline.Digest
			for _, v := range p.Verified {
				for _, g := range v.Signatures {
					if v.Image.Digest == d && g.Layout == "bundle" {
						signature = g.Manifest
					}
				}
			}
			repaired("a signature", string(signature), func() error { return remote.Delete(digestRef(t, prod, signature)) })
			repaired("a tag", "1.0", func() error {
				tag, err := name.NewTag(prod+":1.0", name.Insecure)
				if err != nil {
					return err
				}
				if kind == string(stack.Distribution) {
					return removeTagOnDisk(host, prod, "1.0")
				}
				return remote.Delete(tag)
			})
			if got := tagged(t, prod, "1.0"); got != d {
				t.Errorf("the tag names %q, want %s", got, d)
			}
			index, err := remote.Index(digestRef(t, prod, d))
			if err != nil {
				t.Fatal(err)
			}
			m, err := index.IndexManifest()
			if err != nil {
				t.Fatal(err)
			}
			child := m.Manifests[0].Digest
			repaired("a platform's manifest", child.String(), func() error { return remote.Delete(digestRef(t, prod, pipeline.Digest(child.String()))) })

			// What somebody moved on purpose stays, and is reported.
			tag, err := name.NewTag(prod+":1", name.Insecure)
			if err != nil {
				t.Fatal(err)
			}
			if err := remote.Tag(tag, taggable(t, prod, child)); err != nil {
				t.Fatal(err)
			}
			deadline := time.Now().Add(30 * time.Second)
			for !strings.Contains(mustDray(t, at.Token, 0, "drift", "list", "--project", project), "tag") {
				if time.Now().After(deadline) {
					t.Fatal("a tag that moved was not reported")
				}
				time.Sleep(200 * time.Millisecond)
			}
			if got := tagged(t, prod, "1"); got == d {
				t.Error("a tag was moved back without leave")
			}
		})
	}
}

func digestRef(t *testing.T, repository string, d pipeline.Digest) name.Digest {
	t.Helper()
	ref, err := name.NewDigest(repository+"@"+string(d), name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func taggable(t *testing.T, repository string, d v1.Hash) remote.Taggable {
	t.Helper()
	desc, err := remote.Get(digestRef(t, repository, pipeline.Digest(d.String())))
	if err != nil {
		t.Fatal(err)
	}
	return desc
}

// removeTagOnDisk does what distribution has no API for: its delete of a tag
// takes the manifest along.
func removeTagOnDisk(host, repository, tag string) error {
	matches, err := filepath.Glob(filepath.Join(at.Dir, "*", "docker", "registry", "v2", "repositories", strings.TrimPrefix(repository, host+"/"), "_manifests", "tags", tag))
	if err == nil && len(matches) == 0 {
		err = fmt.Errorf("no tag %s of %s under %s", tag, repository, at.Dir)
	}
	for _, m := range matches {
		if err := os.RemoveAll(m); err != nil {
			return err
		}
	}
	return err
}

// TestKillWhileWaiting kills drayd while a promotion waits: the moment that it
// waits for still comes.
func TestKillWhileWaiting(t *testing.T) {
	need(t)
	const project = "patient"
	host := at.Stack.Prod.Host
	apply(t, project, fmt.Sprintf(`
environments:
  - {name: staging, repository: %[1]s/patient/staging}
  - {name: prod, repository: %[1]s/patient/prod, after: [staging], soak: 4s, auto: true}
`, host))
	w := repository(t, project, map[string]string{"Dockerfile": plainDockerfile, "n": "1"})
	d := released(t, w, "v1.0.0").Image.Digest
	wantState(t, ask(t, project, d, "staging"), pipeline.StateSucceeded)
	// prod follows by itself, after the soak.
	list, err := at.Client.Promotions(t.Context(), client.PromotionsQuery{Project: project})
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(list.Items, func(p pipeline.Promotion) bool { return p.Environment == "prod" })
	if i < 0 || list.Items[i].RequestedBy != pipeline.Automatic {
		t.Fatalf("nothing was promoted to prod by itself: %+v", list.Items)
	}
	id := list.Items[i].ID
	wantState(t, settled(t, id, pipeline.StateWaiting), pipeline.StateWaiting, "soak")
	kill(t)
	wantState(t, settled(t, id), pipeline.StateSucceeded)
	if got := tagged(t, host+"/patient/prod", "1.0.0"); got != d {
		t.Errorf("prod's 1.0.0 names %q", got)
	}
}

// TestFreeze: a freeze holds a promotion, and an emergency overrides it, loudly.
func TestFreeze(t *testing.T) {
	need(t)
	const project = "frozen"
	apply(t, project, fmt.Sprintf(`
environments:
  - name: prod
    repository: %s/frozen/prod
    freezes: [{name: always, start: "%s", for: 3d}]
    breakGlass: {roles: [release-manager], overrides: [freeze]}
`, at.Stack.Prod.Host, time.Now().UTC().Add(-24*time.Hour).Format("2006-01-02T15:04")))
	w := repository(t, project, map[string]string{"Dockerfile": plainDockerfile, "n": "1"})
	d := released(t, w, "v1.0.0").Image.Digest
	p := ask(t, project, d, "prod", pipeline.StateWaiting)
	wantState(t, p, pipeline.StateWaiting, "freeze", "always")
	out := mustDray(t, at.Approver, 0, "promote", string(d), "prod", "--project", project, "--break-glass", "the shop is down", "--wait")
	if out == "" {
		t.Error("nothing was printed")
	}
	list, err := at.Client.Promotions(t.Context(), client.PromotionsQuery{Project: project})
	if err != nil || len(list.Items) != 2 {
		t.Fatalf("%d promotions, %v", len(list.Items), err)
	}
	emergency := settled(t, list.Items[0].ID)
	wantState(t, emergency, pipeline.StateSucceeded)
	if b := emergency.Decision.BreakGlass; b == nil || b.Reason != "the shop is down" || b.By != "alex" {
		t.Errorf("the record does not shout: %+v", b)
	}
	wantState(t, settled(t, p.ID), pipeline.StateSuperseded, string(emergency.ID))
}
