package apitest

import (
	"time"

	"github.com/dray-project/dray/pipeline"
)

// Now is a little after everything in the sample world happened.
var Now = Clock.Add(5 * time.Minute)

// HelloGo is the sample project, as it is set now.
var HelloGo = pipeline.Project{
	Name: "hello-go", Forge: "github", Source: "acme/hello-go", CloneURL: "https://git.example/acme/hello-go.git",
	Repository: Good.Repository, Platforms: []pipeline.Platform{"linux/amd64", "linux/arm64"}, Latest: true,
	Gate: pipeline.GateRules{FailOn: pipeline.SeverityCritical},
	Environments: []pipeline.Environment{
		{Name: "staging", Repository: "staging.example/acme/hello-go", Gate: pipeline.GateRules{FailOn: pipeline.SeverityCritical}, Auto: true},
		{Name: "prod", Repository: Placed.Repository, Gate: pipeline.GateRules{FailOn: pipeline.SeverityHigh}, After: []string{"staging"},
			Soak: pipeline.Duration(24 * time.Hour), Approvals: []pipeline.ApprovalRule{{Role: pipeline.RoleReleaseManager, NotRequester: true}, {Role: "security"}},
			Freezes: []pipeline.Freeze{{Name: "weekend", TimeZone: "Europe/Zurich", Start: "2026-01-02T17:00", For: pipeline.Duration(63 * time.Hour), Recur: "FREQ=WEEKLY;BYDAY=FR"}}},
	},
}

var hygiene = []pipeline.PlatformHygiene{
	{Platform: "linux/amd64", User: "65532", Hygiene: pipeline.Hygiene{Shells: []string{}, PackageManagers: []string{}, Setuid: []string{}, Secrets: []pipeline.ConfigSecret{},
		Healthcheck: true, Size: 9 << 20, Compressed: 4 << 20, Wasted: 1 << 10, Layers: []pipeline.ImageLayer{{Digest: Digest("3"), DiffID: Digest("4"), Size: 9 << 20, Compressed: 4 << 20}}}},
	{Platform: "linux/arm64", User: "", Hygiene: pipeline.Hygiene{Shells: []string{"/bin/sh"}, PackageManagers: []string{"/sbin/apk"}, Setuid: []string{"/bin/su"},
		Secrets: []pipeline.ConfigSecret{{Where: "env", Name: "AWS_KEY", Rule: "aws-access-key-id"}}, Size: 8 << 20, Compressed: 3 << 20, Layers: []pipeline.ImageLayer{}}},
}

// Diff is what the promotion that waits would change.
var Diff = pipeline.Diff{
	Project: "hello-go", Environment: "prod",
	From: &pipeline.DiffSide{Digest: Digest("e"), Commit: "ffeeddccbbaa99887766554433221100ffeeddcc", Versions: []string{"0.9.0"}, Bases: []pipeline.Material{},
		Size: 4 << 20, Builder: "buildkitd v0.33.1", Platforms: []pipeline.Platform{"linux/amd64"}},
	To: pipeline.DiffSide{Digest: Good.Digest, Commit: Commit, Versions: []string{"1.0.0"}, Bases: []pipeline.Material{},
		Size: 7 << 20, Builder: "buildkitd v0.33.1", Platforms: []pipeline.Platform{"linux/amd64", "linux/arm64"}},
	Commits:      []pipeline.Commit{{SHA: Commit, Title: "Greet in \x1b[31mred\x1b[0m", Author: "ada", At: Clock}},
	CommitsKnown: true, CompareURL: "https://git.example/acme/hello-go/compare/ffee...0a1b",
	PackagesAdded: []pipeline.PackageChange{{Name: "rsc.io/quote", Type: "gobinary", To: "v1.5.2"}}, PackagesRemoved: []pipeline.PackageChange{}, PackagesChanged: []pipeline.PackageChange{},
	FindingsFixed: []pipeline.Finding{finding}, FindingsAdded: []pipeline.Finding{{ID: "CVE-2025-1111", Severity: pipeline.SeverityMedium, Package: "rsc.io/quote", Version: "v1.5.2"}},
	LicensesAdded: []string{"BSD-3-Clause"}, LicensesRemoved: []string{},
}

// WaitingDecision is why it waits.
var WaitingDecision = pipeline.Decision{Waiting: true, Database: database, EvaluatedAt: *at(200), Plan: Diff.Plan(),
	Policy: pipeline.PolicyVersion{Project: "hello-go", Environment: "prod", Version: 2, Digest: HelloGo.Environments[1].EntryGate(pipeline.ActionPromote).Digest(),
		Gate: HelloGo.Environments[1].EntryGate(pipeline.ActionPromote)},
	Suppressed: []pipeline.FindingFact{{Finding: finding, Fixable: true, Platforms: []pipeline.Platform{"linux/amd64"}, Suppressed: true,
		Suppression: &pipeline.Suppression{By: "exception", ID: Exception, Author: "grace", Reason: "not reachable", ExpiresAt: at(30 * 24 * 3600)}}},
	Ignored: []string{"exception exc_old for CVE-2020-1 expired at 2026-01-01T00:00:00Z"},
	Rules: []pipeline.RuleResult{
		{Rule: "severity", Passed: true, Reason: "no finding of severity high or above"},
		{Rule: "soak", Pending: true, Until: at(7200), Reason: "in staging for 22h of 24h", Remedy: "wait"},
		{Rule: "approvals", Pending: true, Reason: "0 of 1 approvals by release-manager", Remedy: "dray approve"},
	}}

func (s *Store) addSettings() {
	first := HelloGo
	first.Environments = HelloGo.Environments[:1]
	s.AddProject(first, "settings")
	s.AddProject(HelloGo, "grace")
	for _, name := range []string{"leaky", "web", "base"} {
		s.AddProject(pipeline.Project{Name: name, Forge: "github", Source: "acme/" + name, CloneURL: "https://git.example/acme/" + name + ".git",
			Repository: "dev.example/acme/" + name, Platforms: []pipeline.Platform{"linux/amd64"}, Gate: pipeline.GateRules{FailOn: pipeline.SeverityCritical},
			Environments: []pipeline.Environment{{Name: "prod", Repository: "other.example/acme/" + name, Gate: pipeline.GateRules{FailOn: pipeline.SeverityCritical}}}}, "settings")
	}
	s.SetEnvironments("hello-go", []pipeline.EnvironmentState{
		{Project: "hello-go", Environment: "staging", Repository: HelloGo.Environments[0].Repository, Waiting: []pipeline.PromotionID{}},
		{Project: "hello-go", Environment: "prod", Repository: Placed.Repository, Waiting: []pipeline.PromotionID{PromotionWaiting},
			Current: &pipeline.PlacedImage{Promotion: PromotionOne, Image: Placed, Commit: Commit, Versions: []string{"1.0.0"}, Since: *at(-3600), By: "grace", Action: pipeline.ActionPromote}},
	})
	decision, diff := WaitingDecision, Diff
	s.AddPromotion(pipeline.PromotionDetail{Diff: &diff, Stages: stages(pipeline.PromotionStages()[:1]),
		Summary: &pipeline.Sealed{Envelope: []byte(`{"payloadType":"application/vnd.in-toto+json"}`), Statement: Digest("5"), KeyID: "7777"},
		Promotion: pipeline.Promotion{ID: PromotionWaiting, Project: "hello-go", Image: Good, Environment: "prod", RequestedBy: "ada",
			Roles: []string{pipeline.RoleReleaseManager}, Action: pipeline.ActionPromote, Note: "for the customers' day", State: pipeline.StateWaiting, Decision: &decision,
			Approvals: []pipeline.Approval{{Promotion: PromotionWaiting, By: "sam", Roles: []string{"security"}, Plan: Digest("6"), Comment: "fine", At: *at(100)}},
			CreatedAt: *at(90)}})
	s.Append(PromotionWaiting.Job(), pipeline.JobEvent{Kind: pipeline.KindStage, Stage: pipeline.StageGate, Attempt: 1, State: "started"},
		pipeline.JobEvent{Kind: pipeline.KindState, State: "waiting", Message: decision.Reason()})
	s.exceptions = append(s.exceptions,
		pipeline.Exception{ID: "exc_00000000000000000000", Project: "hello-go", Finding: "CVE-2020-1", Reason: "old", Author: "grace", CreatedAt: Clock.AddDate(0, -3, 0), ExpiresAt: Clock.AddDate(0, -2, 0)},
		pipeline.Exception{ID: Exception, Project: "hello-go", Environment: "prod", Finding: "CVE-2025-1111", Reason: "not reachable", Author: "grace", CreatedAt: Clock, ExpiresAt: Clock.AddDate(0, 0, 30)})
	s.vex = append(s.vex, pipeline.VEXDocument{ID: VEX, Project: "hello-go", UploadedBy: "grace", UploadedAt: Clock, Signature: []byte("c2ln"),
		Document: []byte(`{"@context":"https://openvex.dev/ns/v0.2.0","author":"acme security","statements":[{"vulnerability":{"name":"CVE-2024-45337"},"status":"not_affected","justification":"vulnerable_code_not_in_execute_path"}]}`)})
	s.AddDrift(pipeline.Drift{ID: "dft_00000000000000000000", Project: "hello-go", Environment: "prod", Image: Placed, Kind: pipeline.DriftMissing, Subject: string(Digest("8")),
		Detail: "what is attached to it cannot be read", DetectedAt: Clock, RepairedAt: at(1), Repair: "copied again"})
	s.AddDrift(pipeline.Drift{ID: Drift, Project: "hello-go", Environment: "prod", Image: Placed, Kind: pipeline.DriftTag, Subject: "1.0.0",
		Detail: "the tag names " + string(Digest("0")), DetectedAt: Clock, Blocked: "somebody moved it"})
	s.AddRegistry(pipeline.RegistryProbe{Host: "prod.example", Repository: "prod.example/dray-probe", ProbedAt: Clock, Referrers: pipeline.CapabilityYes, Mount: pipeline.CapabilityYes,
		Delete: pipeline.CapabilityNo, ImmutableTags: pipeline.CapabilityUnknown, MaxManifest: 4 << 20, Notes: []string{"announces 100 requests a minute"}})
	s.AddRegistry(pipeline.RegistryProbe{Host: "other.example", Repository: "other.example/dray-probe", ProbedAt: Clock, Error: "connection refused",
		Referrers: pipeline.CapabilityUnknown, Mount: pipeline.CapabilityUnknown, Delete: pipeline.CapabilityUnknown, ImmutableTags: pipeline.CapabilityUnknown})
}
