package evidence_test

import (
	"bytes"
	"context"
	"crypto"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/evidence"
	"github.com/dray-project/dray/pipeline/ledger"
	"github.com/dray-project/dray/pipeline/policy"
	"github.com/dray-project/dray/pipeline/postgres"
	"github.com/dray-project/dray/pipeline/postgres/postgrestest"
	"github.com/dray-project/dray/pipeline/registry"
	"github.com/dray-project/dray/pipeline/registry/registrytest"
	"github.com/dray-project/dray/pipeline/vex"
	"github.com/dray-project/dray/signer"
	"github.com/dray-project/dray/signer/verify"
)

const builderID = "https://dray.example/builders#shared"

// site is a Dray with real parts, but for what builds and what scans.
type site struct {
	t         testing.TB
	store     *postgres.Store
	registry  *registry.Registry
	signer    *signer.Signer
	pipeline  *pipeline.Pipeline
	log       *ledger.Log
	sequencer *ledger.Sequencer
	collector *evidence.Collector
	project   pipeline.Project
	// public keys, as a verifier has them.
	keys   []crypto.PublicKey
	logKey string

	mu       sync.Mutex
	findings []pipeline.Finding
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newSite starts one whose registry is of that kind.
func newSite(t testing.TB, host string) *site {
	t.Helper()
	ctx := t.Context()
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	s := &site{t: t}
	var err error
	s.store, err = postgres.New(ctx, postgres.Config{Seal: postgrestest.Seal(), Pool: postgrestest.New(t), Log: log})
	check(t, err)
	t.Cleanup(s.store.Close)
	hosts := []pipeline.RegistryHost{{Host: host, PlainHTTP: true}}
	s.registry, err = registry.New(ctx, registry.Config{Hosts: hosts, Locker: &registrytest.Locker{}, Log: log})
	check(t, err)
	t.Cleanup(s.registry.Close)
	private, public := keyPair()
	s.signer, err = signer.New(ctx, signer.Config{Key: private, Hosts: hosts, Locker: &registrytest.Locker{}, Log: log})
	check(t, err)
	s.keys, err = verify.ParsePublicKeys(public)
	check(t, err)
	judge, err := policy.New(ctx, policy.Config{Log: log})
	check(t, err)
	s.pipeline, err = pipeline.New(pipeline.Config{
		Store: s.store, Locker: s.store, Builder: &fakeBuilder{host}, Scanner: s, Signer: s.signer, Registry: s.registry,
		Judge: judge, VEX: vex.Reader{}, BaseURL: "https://dray.example", BuilderID: builderID, Log: log,
	})
	check(t, err)
	logPrivate, logPublic, err := ledger.GenerateKey("dray.example/log")
	check(t, err)
	s.logKey = string(logPublic)
	logSigner, err := ledger.ParseSigner(logPrivate)
	check(t, err)
	s.sequencer, err = ledger.NewSequencer(ledger.SequencerConfig{Storage: s.store, Signer: logSigner, Log: log})
	check(t, err)
	s.log, err = ledger.NewLog(s.store)
	check(t, err)
	s.collector, err = evidence.New(ctx, evidence.Config{
		Store: s.store, Registry: s.registry, Sealer: s.signer, Log: s, SigningKey: public, LogKey: s.logKey, Logger: log,
	})
	check(t, err)
	s.project = pipeline.Project{
		Name: "app", Forge: "github", Source: "acme/app", CloneURL: "https://git.example/acme/app.git", Repository: host + "/dev/app",
		Platforms: []pipeline.Platform{"linux/amd64", "linux/arm64"}, Gate: pipeline.GateRules{FailOn: pipeline.SeverityCritical},
		Environments: []pipeline.Environment{
			{Name: "staging", Repository: host + "/staging/app", Gate: pipeline.GateRules{FailOn: pipeline.SeverityHigh}},
			{Name: "prod", Repository: host + "/prod/app", Gate: pipeline.GateRules{FailOn: pipeline.SeverityHigh}, After: []string{"staging"},
				Approvals: []pipeline.ApprovalRule{{Role: "release-manager", Count: 1, NotRequester: true}}},
		},
	}
	check(t, s.store.SyncProjects(ctx, []pipeline.Project{s.project}))
	return s
}

var keyPair = sync.OnceValues(func() (private, public []byte) {
	private, public, err := signer.GenerateKey(nil)
	if err != nil {
		panic(err)
	}
	return private, public
})

// Settle implements evidence.Log.
func (s *site) Settle(ctx context.Context) ([]byte, error) {
	mark, err := s.store.LogMark(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.sequencer.Once(ctx); err != nil {
		return nil, err
	}
	if ok, err := s.store.LogReached(ctx, mark); err != nil || !ok {
		return nil, fmt.Errorf("the log was sequenced and has not reached %d: %w", mark, err)
	}
	return s.log.Checkpoint(ctx)
}

func (s *site) Entries(ctx context.Context, q pipeline.EntryQuery) ([]pipeline.LogEntry, error) {
	return s.store.LogEntries(ctx, q)
}

func (s *site) Inclusion(ctx context.Context, index, size int64) (pipeline.Inclusion, error) {
	return s.log.Prove(ctx, index, size)
}

// known sets what the scanner knows from now on.
func (s *site) known(findings ...pipeline.Finding) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.findings = findings
}

// Scan implements pipeline.Scanner.
func (s *site) Scan(_ context.Context, _ pipeline.Image, platforms []pipeline.PlatformImage) (pipeline.Report, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := pipeline.Report{ScannedAt: time.Now().UTC().Truncate(time.Microsecond), Scanner: "trivy v0.74.0", Database: pipeline.VulnerabilityDatabase{
		Reference: "db.example/trivy-db:2", Digest: "sha256:" + pipeline.Digest(fmt.Sprintf("%064d", 7)), UpdatedAt: time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)}}
	for _, p := range platforms {
		sbom, _ := json.Marshal(map[string]any{"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "name": "<&> " + string(p.Platform)})
		r.Platforms = append(r.Platforms, pipeline.PlatformReport{Platform: p.Platform, Digest: p.Digest, OS: "debian 12", User: "65532",
			Packages: []pipeline.Package{{Name: "openssl", Version: "3.0.1", Type: "debian", PURL: "pkg:deb/debian/openssl@3.0.1"}},
			Findings: s.findings, Hygiene: &pipeline.Hygiene{}, SBOM: sbom})
	}
	return r, nil
}

// fakeBuilder pushes images that hold noise.
type fakeBuilder struct{ host string }

func (b *fakeBuilder) Resolve(_ context.Context, p pipeline.Project, e pipeline.Event, _ pipeline.Progress) (pipeline.Source, error) {
	return pipeline.Source{CloneURL: p.CloneURL, Ref: e.Ref, Commit: e.After, CommitTime: time.Unix(1_700_000_000, 0).UTC(),
		Plan: pipeline.Plan{Context: ".", Dockerfile: "Dockerfile", Args: map[string]string{"A": "<&>"}, Platforms: p.Platforms}}, nil
}

func (b *fakeBuilder) Build(ctx context.Context, p pipeline.Project, s pipeline.Source, _ pipeline.Progress) (pipeline.BuildResult, error) {
	r := pipeline.BuildResult{Builder: "buildkitd v0.33.1"}
	repo, err := name.NewRepository(p.Repository, name.Insecure)
	if err != nil {
		return r, err
	}
	for _, pl := range s.Plan.Platforms {
		img, err := random.Image(2048, 2)
		if err != nil {
			return r, err
		}
		file, err := img.ConfigFile()
		if err != nil {
			return r, err
		}
		file = file.DeepCopy()
		file.OS, file.Architecture, file.Variant = pl.Parts()
		if img, err = mutate.ConfigFile(mutate.MediaType(mutate.ConfigMediaType(img, types.OCIConfigJSON), types.OCIManifestSchema1), file); err != nil {
			return r, err
		}
		digest, err := img.Digest()
		if err != nil {
			return r, err
		}
		if err := remote.Write(repo.Digest(digest.String()), img, remote.WithContext(ctx)); err != nil {
			return r, err
		}
		size, err := img.Size()
		if err != nil {
			return r, err
		}
		r.Platforms = append(r.Platforms, pipeline.PlatformImage{Platform: pl, Digest: pipeline.Digest(digest.String()), Size: size, MediaType: string(types.OCIManifestSchema1)})
	}
	return r, nil
}

// push builds a commit and returns its image's digest.
func (s *site) push(ref, what string) pipeline.Digest {
	s.t.Helper()
	ctx := s.t.Context()
	a, err := s.store.Accept(ctx, pipeline.Delivery{Forge: "github", ID: ref + what, Project: "app", ReceivedAt: time.Now(),
		Event: pipeline.Event{Kind: pipeline.EventPush, Source: "acme/app", Ref: ref, After: sum([]byte(what)).Hex()[:40], Pusher: "ada"}})
	check(s.t, err)
	check(s.t, s.pipeline.Run(ctx, a.Run))
	detail, err := s.store.RunDetail(ctx, a.Run)
	check(s.t, err)
	if detail.Image == nil || detail.State != pipeline.StateSucceeded {
		s.t.Fatalf("run %s: %s %s", a.Run, detail.State, detail.Reason)
	}
	return detail.Image.Digest
}

// promote asks for a promotion and takes it as far as it goes.
func (s *site) promote(d pipeline.Digest, environment, by string) pipeline.Promotion {
	s.t.Helper()
	p, _, err := s.store.Promote(s.t.Context(), pipeline.PromotionRequest{Image: string(d), Environment: environment, Project: "app",
		RequestedBy: by, Grants: []pipeline.Grant{{Role: pipeline.RoleReleaseManager}}})
	check(s.t, err)
	return s.goOn(p.ID)
}

func (s *site) goOn(id pipeline.PromotionID) pipeline.Promotion {
	s.t.Helper()
	check(s.t, s.pipeline.Promote(s.t.Context(), id))
	p, err := s.store.Promotion(s.t.Context(), id)
	check(s.t, err)
	return p
}

func (s *site) approve(p pipeline.Promotion, by string) pipeline.Promotion {
	s.t.Helper()
	_, err := s.store.Approve(s.t.Context(), pipeline.Approval{Promotion: p.ID, By: by, Roles: []string{pipeline.RoleReleaseManager}, Plan: p.Decision.Plan, Comment: "fine"})
	check(s.t, err)
	return s.goOn(p.ID)
}

// bundle collects one.
func (s *site) bundle(d pipeline.Digest) []byte {
	s.t.Helper()
	p, err := s.collector.Prepare(s.t.Context(), "app", d)
	check(s.t, err)
	var b bytes.Buffer
	check(s.t, p.Write(&b))
	if int64(b.Len()) != p.Size() {
		s.t.Fatalf("the bundle has %d bytes, %d were said", b.Len(), p.Size())
	}
	return b.Bytes()
}

// trust is a verifier that knows the public keys and nothing else.
func (s *site) trust() evidence.Trust { return trusting(s.keys, s.logKey) }

func trusting(keys []crypto.PublicKey, logKey string) evidence.Trust {
	return evidence.Trust{
		LogKey: logKey, VEX: vex.Reader{},
		Signatures: func(ctx context.Context, rt http.RoundTripper, img pipeline.Image) (pipeline.Verified, error) {
			v, err := verify.New(ctx, verify.Config{TrustedKeys: keys, Transport: rt})
			if err != nil {
				return pipeline.Verified{}, err
			}
			return v.Verify(ctx, img)
		},
		Envelope: func(raw []byte, image pipeline.Digest, predicateType string) (evidence.Statement, error) {
			st, err := verify.Envelope(raw, image, predicateType, keys)
			return evidence.Statement{KeyID: st.KeyID, Predicate: st.Predicate, Digest: st.Digest}, err
		},
	}
}

// verifyBundle opens and verifies.
func verifyBundle(raw []byte, trust evidence.Trust) (evidence.Result, error) {
	b, err := evidence.Open(bytes.NewReader(raw), int64(len(raw)), evidence.Limits{})
	if err != nil {
		return evidence.Result{}, err
	}
	return b.Verify(context.Background(), trust)
}

// history is a site at which an image went all the way to prod: one finding was
// accepted, one promotion refused, one approved.
func history(t testing.TB, host string) (s *site, image pipeline.Digest) {
	s = newSite(t, host)
	image = s.push("refs/tags/v1.0.0", "one")
	_, err := s.Settle(t.Context()) // so that there is more than one checkpoint
	check(t, err)
	high := pipeline.Finding{ID: "CVE-2026-0001", Severity: pipeline.SeverityHigh, Package: "openssl", Version: "3.0.1", FixedIn: "3.0.2"}
	s.known(high)
	if p := s.promote(image, "staging", "rita"); p.State != pipeline.StateRefused {
		t.Fatalf("with a finding: %s %s", p.State, p.Reason)
	}
	_, err = s.store.AddException(t.Context(), pipeline.Exception{Project: "app", Finding: high.ID, Reason: "not reachable", Author: "sam", ExpiresAt: time.Now().Add(24 * time.Hour)})
	check(t, err)
	if p := s.promote(image, "staging", "rita"); p.State != pipeline.StateSucceeded {
		t.Fatalf("with an exception: %s %s", p.State, p.Reason)
	}
	p := s.promote(image, "prod", "rita")
	if p.State != pipeline.StateWaiting {
		t.Fatalf("without an approval: %s %s", p.State, p.Reason)
	}
	if p = s.approve(p, "mona"); p.State != pipeline.StateSucceeded {
		t.Fatalf("approved: %s %s", p.State, p.Reason)
	}
	return s, image
}
