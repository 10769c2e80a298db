//go:build linux

// Package site sets up a complete Dray on one machine: the stack of real parts,
// a key, a vulnerability database, base images, two sample projects and drayd.
// The demo, the end-to-end tests and the benchmarks share it.
package site

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/dray-project/dray/api/client"
	"github.com/dray-project/dray/deploy/stack"
	"github.com/dray-project/dray/deploy/vulndb"
	"github.com/dray-project/dray/pipeline"
)

// Organisation that the sample projects belong to at the git server.
const Organisation = "acme"

// Config says where a site lives.
type Config struct {
	// Dir holds all state.
	Dir string
	// Bin has drayd, dray, dray-dev, buildkitd and buildctl.
	Bin string
	// Log receives a line for each thing that happens. Nil keeps silent.
	Log io.Writer
	// Volatile gives up what only a power cut would cost, for tests.
	Volatile bool
	// Env is added to drayd's environment.
	Env []string
	// Projects besides the samples; each is built for linux/amd64.
	Projects []string
	// Settings are added to those in drayd's file.
	Settings string
}

// Site is a Dray that runs.
type Site struct {
	Config
	Stack  *stack.Stack
	Client *client.Client
	// URL of drayd, and a token for it: that of an administrator. Approver is
	// the token of a release manager.
	URL, Token, Approver string
	// PublicKey and TrustedRoot are paths of what a verifier needs.
	PublicKey, TrustedRoot string
	// LogKey is the path of the evidence log's public key.
	LogKey string
	// Metrics is the address of drayd's metrics.
	Metrics string
	// Bases are the pinned references of the base images, by name.
	Bases map[string]string
	// Database is the digest of the vulnerability database that was pushed.
	Database pipeline.Digest

	address  string
	metrics  string
	settings string
	secret   string
}

// Start sets up what is missing and starts what does not run. It can be called
// again for a directory in which a site runs or ran.
func Start(ctx context.Context, c Config) (_ *Site, err error) {
	s := &Site{Config: c}
	if s.Dir, err = filepath.Abs(c.Dir); err != nil {
		return nil, err
	}
	if s.Bin, err = filepath.Abs(c.Bin); err != nil {
		return nil, err
	}
	s.PublicKey, s.TrustedRoot, s.LogKey = s.path("cosign.pub"), s.path("trusted-root.json"), s.path("log.pub")
	s.settings = s.path("drayd.yaml")
	if s.address, err = stack.Reserve(s.Dir, "drayd"); err != nil {
		return nil, err
	}
	s.URL = "http://" + s.address
	if s.metrics, err = stack.Reserve(s.Dir, "metrics"); err != nil {
		return nil, err
	}
	s.Metrics = "http://" + s.metrics + "/metrics"
	if s.secret, err = s.random("webhook.secret"); err != nil {
		return nil, err
	}
	s.Stack, err = stack.Start(ctx, stack.Config{
		Dir: s.Dir, Bin: s.Bin, Log: c.Log, Volatile: c.Volatile,
		Postgres: true, Buildkit: true, Registries: true, Git: true,
		Webhook: s.URL + "/webhooks/github", WebhookSecret: s.secret,
	})
	if err != nil {
		return nil, err
	}
	for _, step := range []func(context.Context) error{
		s.makeKey, s.makeLogKey, s.PushDatabase, s.pushBases, s.writeSettings, s.StartDrayd, s.makeTokens, s.fetchTrustedRoot,
	} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Dev and Prod are the repositories of a project in the two registries.
func (s *Site) Dev(project string) string { return s.Stack.Dev.Host + "/" + project }

// Staging is the repository of a project in the environment staging.
func (s *Site) Staging(project string) string { return s.Stack.Dev.Host + "/staging/" + project }

// Prod is the repository of a project in the environment prod.
func (s *Site) Prod(project string) string { return s.Stack.Prod.Host + "/" + project }

func (s *Site) path(name string) string { return filepath.Join(s.Dir, name) }

func (s *Site) say(format string, args ...any) {
	if s.Log != nil {
		fmt.Fprintf(s.Log, format+"\n", args...)
	}
}

// random keeps a random secret in a file and returns it.
func (s *Site) random(file string) (string, error) {
	dir := s.path("secrets")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	path := filepath.Join(dir, file)
	b, err := os.ReadFile(path)
	if err == nil {
		return strings.TrimSpace(string(b)), nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	var raw [24]byte
	if _, err := rand.Read(raw[:]); err != nil {
		return "", err
	}
	secret := hex.EncodeToString(raw[:])
	return secret, os.WriteFile(path, []byte(secret+"\n"), 0o600)
}

// makeKey makes the signing key, once.
func (s *Site) makeKey(ctx context.Context) error {
	if _, err := os.Stat(s.path("secrets/cosign.key")); err == nil {
		return nil
	}
	if _, err := s.random("cosign.password"); err != nil {
		return err
	}
	if _, err := s.drayd(ctx, "key", "generate", "--out", s.path("secrets"), "--password-file", s.path("secrets/cosign.password")); err != nil {
		return err
	}
	return os.Rename(s.path("secrets/cosign.pub"), s.PublicKey)
}

// makeLogKey makes the keys of the evidence log, once.
func (s *Site) makeLogKey(ctx context.Context) error {
	if _, err := os.Stat(s.path("secrets/log.key")); err == nil {
		return s.makeSeal()
	}
	if _, err := s.drayd(ctx, "key", "generate-log", "--out", s.path("secrets"), "--origin", "dray.example/log"); err != nil {
		return err
	}
	return os.Rename(s.path("secrets/log.pub"), s.LogKey)
}

// makeSeal adds the seal to the key of a site that is older than it.
func (s *Site) makeSeal() error {
	path := s.path("secrets/log.seal")
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	return os.WriteFile(path, pipeline.NewSealKey(), 0o600)
}

// PushDatabase pushes a vulnerability database of this moment, the way a site
// without internet access mirrors the public one.
func (s *Site) PushDatabase(ctx context.Context) error { return s.PushDatabaseOf(ctx, time.Now()) }

// PushDatabaseOf pushes a vulnerability database that says it is of that time, and
// knows more than others do.
func (s *Site) PushDatabaseOf(ctx context.Context, updatedAt time.Time, more ...vulndb.Advisory) error {
	advisories, err := vulndb.Default()
	if err != nil {
		return err
	}
	advisories = append(advisories, more...)
	dir, err := vulndb.Build(ctx, advisories, updatedAt)
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	ref, err := name.ParseReference(s.databaseReference(), name.Insecure)
	if err != nil {
		return err
	}
	s.Database, err = vulndb.Push(ctx, dir, ref, remote.WithContext(ctx))
	s.say("pushed a vulnerability database of %d advisories to %s", len(advisories), ref)
	return err
}

func (s *Site) databaseReference() string { return s.Stack.Dev.Host + "/mirror/trivy-db:2" }

func (s *Site) pushBases(ctx context.Context) (err error) {
	s.Bases, err = s.Stack.Bases(ctx, s.Stack.Dev.Host)
	return err
}

// writeSettings writes the file that drayd reads: the one in the README, filled in.
func (s *Site) writeSettings(ctx context.Context) error {
	dsn, err := s.Stack.Postgres.Database(ctx, "dray")
	if err != nil {
		return err
	}
	var b strings.Builder
	fmt.Fprintf(&b, `# Written by the demo. The reference is docs/reference/settings.md.
listen: %s
log: {format: text}
database:
  url: %q
builder:
  addresses: [%q]
reconcile: {every: 2s}
scanner:
  database: %s
  cache_dir: %s
signer:
  key_file: %s
  password_file: %s
ledger:
  key_file: %s
  seal_file: %s
  publish: {file: %s, repository: %s, every: 2s}
registries:
  - {host: %q, plain_http: true}
  - {host: %q, plain_http: true}
projects:
`, s.address, dsn, s.Stack.Buildkit.Address, s.databaseReference(), s.path("scanner"),
		s.path("secrets/cosign.key"), s.path("secrets/cosign.password"),
		s.path("secrets/log.key"), s.path("secrets/log.seal"), s.path("checkpoints.jsonl"), s.Stack.Dev.Host+"/evidence/log", s.Stack.Dev.Host, s.Stack.Prod.Host)
	type project struct{ name, platforms string }
	projects := []project{{"hello-go", "linux/amd64, linux/arm64"}, {"leaky", "linux/amd64"}}
	for _, name := range s.Projects {
		projects = append(projects, project{name, "linux/amd64"})
	}
	for _, p := range projects {
		fmt.Fprintf(&b, `  - name: %s
    source: %s/%s
    clone_url: %s
    webhook_secret_file: %s
    repository: %s
    platforms: [%s]
    gate: {fail_on: critical}
    environments:
      - {name: prod, repository: %s, gate: {fail_on: high}}
`, p.name, Organisation, p.name, s.Stack.Git.CloneURL(Organisation+"/"+p.name), s.path("secrets/webhook.secret"), s.Dev(p.name), p.platforms, s.Prod(p.name))
	}
	b.WriteString(s.Settings)
	return os.WriteFile(s.settings, []byte(b.String()), 0o600)
}

// StartDrayd starts drayd, or keeps the one that runs, and waits until it is ready.
func (s *Site) StartDrayd(ctx context.Context) error {
	_, err := s.Stack.StartDaemon(ctx, stack.Daemon{
		Name: "drayd", Argv: []string{filepath.Join(s.Bin, "drayd"), "serve", "--config", s.settings},
		Address: s.address, Env: append([]string{"DRAY_METRICS_LISTEN=" + s.metrics}, s.Env...), Files: []string{s.settings}, ReadyIn: 2 * time.Minute,
		Ready: func(ctx context.Context) error {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/readyz", nil)
			if err != nil {
				return err
			}
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				return err
			}
			defer res.Body.Close()
			if res.StatusCode != http.StatusOK {
				return fmt.Errorf("drayd is not ready: %s", res.Status)
			}
			return nil
		},
	})
	return err
}

// makeTokens makes the tokens of two people; new ones replace those before.
func (s *Site) makeTokens(ctx context.Context) (err error) {
	for name, t := range map[string]struct {
		roles string
		to    *string
	}{"demo": {"admin,release-manager", &s.Token}, "alex": {"release-manager", &s.Approver}} {
		out, err := s.drayd(ctx, "token", "create", name, "--role", t.roles, "--config", s.settings)
		if err != nil {
			return err
		}
		*t.to = strings.TrimSpace(out)
	}
	s.Client, err = client.New(client.Config{URL: s.URL, Token: s.Token, UserAgent: "dray-demo"})
	return err
}

func (s *Site) fetchTrustedRoot(ctx context.Context) error {
	root, err := s.Client.TrustedRoot(ctx)
	if err != nil {
		return err
	}
	return os.WriteFile(s.TrustedRoot, root, 0o644)
}

// drayd runs one of drayd's commands and returns its standard output.
func (s *Site) drayd(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(s.Bin, "drayd"), args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("drayd %s: %w\n%s", strings.Join(args[:2], " "), err, stderr.String())
	}
	return string(out), nil
}

// Sample makes the repository of one of the sample applications.
func (s *Site) Sample(ctx context.Context, app string) (*stack.Worktree, error) {
	return s.Stack.Repository(ctx, stack.Sample{Name: Organisation + "/" + app, Source: sampleDir(app), Bases: s.Bases})
}

// NextSample is Sample with a later version over it, committed under subject.
func (s *Site) NextSample(ctx context.Context, app, version, subject string) (*stack.Worktree, error) {
	return s.Stack.Repository(ctx, stack.Sample{
		Name: Organisation + "/" + app, Source: sampleDir(app), Bases: s.Bases,
		Over: sampleDir(app + "-" + version), Subject: subject,
	})
}

func sampleDir(name string) string { return filepath.Join("deploy", "demo", "apps", name) }

// RunOf waits until a push of that ref has a run, and returns the newest; with a
// commit, the newest that built it.
func (s *Site) RunOf(ctx context.Context, project, ref, commit string) (pipeline.Run, error) {
	for {
		list, err := s.Client.Runs(ctx, client.RunsQuery{Project: project})
		if err != nil {
			return pipeline.Run{}, err
		}
		for _, r := range list.Items {
			if r.Event.Ref == ref && (commit == "" || r.Commit == commit) {
				return r, nil
			}
		}
		select {
		case <-ctx.Done():
			return pipeline.Run{}, fmt.Errorf("no run of %s for %s: %w", project, ref, ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}
