package apitest

import (
	"encoding/json"
	"strings"
	"time"

	"github.com/dray-project/dray/pipeline"
)

// Clock is when the sample world was made.
var Clock = time.Date(2026, 3, 14, 9, 26, 53, 0, time.UTC)

// What is in the sample world.
const (
	RunGood      = pipeline.RunID("run_00000000000000000002")
	RunRefused   = pipeline.RunID("run_00000000000000000001")
	RunOpen      = pipeline.RunID("run_00000000000000000003")
	PromotionOne = pipeline.PromotionID("prm_00000000000000000001")
	// PromotionWaiting waits for an approval.
	PromotionWaiting = pipeline.PromotionID("prm_00000000000000000002")
	Exception        = "exc_00000000000000000001"
	VEX              = "vex_00000000000000000001"
	Drift            = "dft_00000000000000000001"
	Commit           = "0a1b2c3d4e5f60718293a4b5c6d7e8f901234567"
)

// Digest is a digest of 64 times the same hexadecimal digit.
func Digest(digit string) pipeline.Digest {
	return pipeline.Digest("sha256:" + strings.Repeat(digit, 64))
}

// Good is the image that passed; Shared is held by two projects; Bad was refused.
var (
	Good   = pipeline.Image{Repository: "dev.example/acme/hello-go", Digest: Digest("a")}
	Shared = pipeline.Image{Repository: "dev.example/acme/base", Digest: Digest("b")}
	Bad    = pipeline.Image{Repository: "dev.example/acme/leaky", Digest: Digest("c")}
	Placed = pipeline.Image{Repository: "prod.example/acme/hello-go", Digest: Digest("a")}
)

func at(seconds int) *time.Time {
	t := Clock.Add(time.Duration(seconds) * time.Second)
	return &t
}

func stages(names []pipeline.Stage) (out []pipeline.StageStatus) {
	for i, s := range names {
		out = append(out, pipeline.StageStatus{Stage: s, Attempt: 1, State: "succeeded", StartedAt: *at(2 * i), FinishedAt: at(2*i + 1)})
	}
	return out
}

var database = pipeline.VulnerabilityDatabase{Reference: "dev.example/trivy-db:2", Digest: Digest("d"), UpdatedAt: Clock}

var passed = pipeline.Decision{Passed: true, Database: database, EvaluatedAt: Clock,
	Rules: []pipeline.RuleResult{
		{Rule: "severity", Passed: true, Reason: "no finding of severity critical or above"},
		{Rule: "non-root", Passed: true, Reason: "no platform starts as root"},
	}}

var finding = pipeline.Finding{ID: "CVE-2024-45337", Severity: pipeline.SeverityCritical, Package: "golang.org/x/crypto",
	Version: "v0.30.0", FixedIn: "0.31.0", Title: "Authorization bypass in crypto/ssh"}

var refused = pipeline.Decision{Database: database, EvaluatedAt: Clock,
	Rules: []pipeline.RuleResult{
		{Rule: "severity", Reason: "1 finding(s) of severity critical or above: CVE-2024-45337 (critical) in golang.org/x/crypto v0.30.0",
			Remedy: "update golang.org/x/crypto to 0.31.0", Findings: []pipeline.Finding{finding}},
		{Rule: "non-root", Reason: "starts as root: linux/amd64 (USER is not set)", Remedy: "set a numeric USER other than 0 in the last stage of the Dockerfile"},
	}}

// Sample returns a store with three runs (passed, refused, open), one
// promotion, images and a package.
func Sample() *Store {
	s := New()
	platforms := []pipeline.PlatformImage{
		{Platform: "linux/amd64", Digest: Digest("1"), Size: 610, MediaType: "application/vnd.oci.image.manifest.v1+json"},
		{Platform: "linux/arm64", Digest: Digest("2"), Size: 612, MediaType: "application/vnd.oci.image.manifest.v1+json"},
	}
	push := func(source, ref string) pipeline.Event {
		return pipeline.Event{Kind: pipeline.EventPush, Source: source, Ref: ref, After: Commit, Pusher: "ada"}
	}
	tag := func(repository, name string, d pipeline.Digest) pipeline.TagMove {
		return pipeline.TagMove{Repository: repository, Tag: name, To: d, Moved: true, Held: true}
	}
	tags := []pipeline.TagMove{
		tag(Good.Repository, "1.0.0", Good.Digest), tag(Good.Repository, "1.0", Good.Digest),
		{Repository: Good.Repository, Tag: "latest", From: Digest("e"), To: Good.Digest, Note: "stays with 2.0.0"},
	}
	source := pipeline.Source{CloneURL: "https://git.example/acme/hello-go.git", Ref: "refs/tags/v1.0.0", Commit: Commit, CommitTime: Clock,
		Plan: pipeline.Plan{Context: ".", Dockerfile: "Dockerfile", Platforms: []pipeline.Platform{"linux/amd64", "linux/arm64"}}}
	s.AddRun(pipeline.RunDetail{
		Run: pipeline.Run{ID: RunRefused, Project: "leaky", Event: push("acme/leaky", "refs/heads/main"), State: pipeline.StateRefused,
			Reason: refused.Reason(), Commit: Commit, Image: &Bad, CreatedAt: Clock, StartedAt: at(0), FinishedAt: at(9)},
		Source: &source, Stages: stages(pipeline.RunStages()[:4]), Decision: &refused, Findings: pipeline.Findings{Critical: 1, High: 2},
	})
	s.AddRun(pipeline.RunDetail{
		Run: pipeline.Run{ID: RunGood, Project: "hello-go", Event: push("acme/hello-go", "refs/tags/v1.0.0"), State: pipeline.StateSucceeded,
			Commit: Commit, Image: &Good, CreatedAt: *at(60), StartedAt: at(61), FinishedAt: at(76)},
		Source: &source, Stages: stages(pipeline.RunStages()), Decision: &passed, Findings: pipeline.Findings{Medium: 3}, Tags: tags,
	})
	s.AddRun(pipeline.RunDetail{Run: pipeline.Run{ID: RunOpen, Project: "hello-go", Event: push("acme/hello-go", "refs/heads/main"),
		State: pipeline.StateRunning, CreatedAt: *at(120), StartedAt: at(121)}, Stages: []pipeline.StageStatus{
		{Stage: pipeline.StageResolve, Attempt: 1, State: "succeeded", StartedAt: *at(121), FinishedAt: at(122)},
		{Stage: pipeline.StageBuild, Attempt: 2, State: "started", StartedAt: *at(122)}}})

	stage := func(name pipeline.Stage, state string) pipeline.JobEvent {
		return pipeline.JobEvent{Kind: pipeline.KindStage, Stage: name, Attempt: 1, State: state}
	}
	line := func(text string) pipeline.JobEvent {
		return pipeline.JobEvent{Kind: pipeline.KindLog, Stage: pipeline.StageBuild, Attempt: 1, Log: &pipeline.Line{Step: "3", Platform: "linux/amd64", Text: text}}
	}
	step := func(started, completed *time.Time) pipeline.JobEvent {
		return pipeline.JobEvent{Kind: pipeline.KindStep, Stage: pipeline.StageBuild, Attempt: 1,
			Step: &pipeline.Step{ID: "3", Platform: "linux/amd64", Name: "RUN go build -o /hello .", Started: started, Completed: completed}}
	}
	s.Append(RunGood.Job(), pipeline.JobEvent{Kind: pipeline.KindState, State: "running"}, stage("resolve", "started"), stage("resolve", "succeeded"),
		stage("build", "started"), step(at(61), nil), line("go: downloading rsc.io/quote v1.5.2"), line("built"), step(at(61), at(64)), stage("build", "succeeded"),
		pipeline.JobEvent{Kind: pipeline.KindState, State: "succeeded"})
	s.Append(RunOpen.Job(), stage("resolve", "started"), stage("resolve", "succeeded"), stage("build", "started"), line("compiling"))

	promotion := pipeline.Promotion{ID: PromotionOne, Project: "hello-go", Image: Good, Environment: "prod", RequestedBy: "grace", State: pipeline.StateSucceeded,
		Action: pipeline.ActionPromote, Decision: &passed, Approvals: []pipeline.Approval{}, Destination: &Placed, Tags: []pipeline.TagMove{tag(Placed.Repository, "1.0.0", Good.Digest)}, CreatedAt: *at(300), FinishedAt: at(304)}
	signature := pipeline.Signature{Image: Good, KeyID: strings.Repeat("7", 64), Layout: "bundle", Manifest: Digest("8")}
	attestation := func(predicate string) pipeline.Attestation {
		return pipeline.Attestation{Image: Good, PredicateType: predicate, KeyID: signature.KeyID, Layout: "bundle", Manifest: Digest("9"), Statement: Digest("f")}
	}
	s.AddPromotion(pipeline.PromotionDetail{Promotion: promotion, Stages: stages(pipeline.PromotionStages()),
		Copied:   &pipeline.Copied{Image: Placed, Manifests: 9, Blobs: 14, Sent: 12 << 20, Skipped: 2, Referrers: []pipeline.Digest{Digest("8")}},
		Verified: []pipeline.Verified{{Image: Placed, Signatures: []pipeline.Signature{signature}, Attestations: []pipeline.Attestation{attestation(pipeline.PredicateProvenance)}, VerifiedAt: Clock}}})

	sbom := json.RawMessage(`{"bomFormat":"CycloneDX","specVersion":"1.6","components":[]}`)
	detail := pipeline.ImageDetail{Project: "hello-go", Image: Good, Run: RunGood, RecordedAt: Clock, Source: source, Builder: "buildkitd v0.33.1", Platforms: platforms,
		ScannedAt: Clock, Scanner: "trivy v0.74.0", Database: database, Packages: 3, Decision: passed, Tags: tags,
		Findings: []pipeline.ImageFinding{{Finding: pipeline.Finding{ID: "CVE-2025-1111", Severity: pipeline.SeverityMedium, Package: "rsc.io/quote", Version: "v1.5.2"},
			Platforms: []pipeline.Platform{"linux/amd64", "linux/arm64"}}},
		Signatures: []pipeline.Signature{signature}, Attestations: []pipeline.Attestation{attestation(pipeline.PredicateProvenance), attestation(pipeline.PredicateCycloneDX)},
		Hygiene:    hygiene,
		Provenance: json.RawMessage(`{"buildDefinition":{"buildType":"https://example.com/build/v1"}}`), Promotions: []pipeline.Promotion{promotion}}
	s.AddImage(detail, sbom)
	for _, project := range []string{"web", "base"} {
		shared := detail
		shared.Project, shared.Image, shared.Platforms = project, Shared, platforms[:1]
		s.AddImage(shared, sbom)
	}
	bad := pipeline.ImageDetail{Project: "leaky", Image: Bad, Run: RunRefused, Source: source, Platforms: platforms[:1], Decision: refused,
		Findings: []pipeline.ImageFinding{{Finding: finding, Platforms: []pipeline.Platform{"linux/amd64"}}}}
	s.AddImage(bad, sbom)
	s.AddPackage(pipeline.PackageUse{ID: "0002", Project: "hello-go", Image: Good, Platforms: []pipeline.Platform{"linux/amd64", "linux/arm64"},
		Package: pipeline.Package{Name: "rsc.io/quote", Version: "v1.5.2", Type: "gobinary", PURL: "pkg:golang/rsc.io/quote@v1.5.2"}, Commit: Commit, Run: RunGood,
		Tags: []string{"1.0.0", "1.0"}, Promotions: []pipeline.PlacedAt{{Promotion: PromotionOne, Environment: "prod", Image: Placed, RequestedBy: "grace", At: Clock}}})
	s.AddPackage(pipeline.PackageUse{ID: "0001", Project: "web", Image: Shared, Package: pipeline.Package{Name: "rsc.io/quote", Version: "v1.5.1", Type: "gobinary"}, Commit: Commit, Run: RunGood})
	s.addSettings()
	return s
}

// PublicKey is a key in PEM; nobody has its other half.
const PublicKey = `-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEa5+mFrGfUlL0ao61Pm5jD+o1JbhO
mpFXWpVwSW0LduzNNe5P7g/bPvQMuYzacfXpac9YE9Qr5fUq9uffBfIusg==
-----END PUBLIC KEY-----
`
