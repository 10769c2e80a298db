package postgres_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/pipelinetest"
	"github.com/dray-project/dray/pipeline/postgres"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func syncSample(t testing.TB, s *postgres.Store) {
	t.Helper()
	check(t, s.SyncProjects(t.Context(), []pipeline.Project{pipelinetest.SampleProject("app"), pipelinetest.SampleProject("web")}))
}

func commit(what string) string { return pipelinetest.DigestOf(what).Hex()[:40] }

// push starts a run.
func push(t testing.TB, s *postgres.Store, project, ref, what string) pipeline.RunID {
	t.Helper()
	a, err := s.Accept(t.Context(), pipeline.Delivery{
		Forge: "github", ID: string(pipelinetest.DigestOf(project, ref, what)), Project: project, ReceivedAt: time.Now(),
		Event: pipeline.Event{Kind: pipeline.EventPush, Ref: ref, After: commit(what)},
	})
	check(t, err)
	return a.Run
}

func start(t testing.TB, s *postgres.Store, job pipeline.JobID, stage pipeline.Stage) pipeline.Claim {
	t.Helper()
	c, err := s.StartStage(t.Context(), job, stage)
	check(t, err)
	return c
}

// release takes a run to its end, with the packages on both platforms and the tags.
func release(t testing.TB, s *postgres.Store, project, what string, packages []pipeline.Package, findings []pipeline.Finding, tags ...string) pipeline.ImageRecord {
	t.Helper()
	p := pipelinetest.SampleProject(project)
	id := push(t, s, project, "refs/heads/main", what)
	src := pipeline.Source{CloneURL: p.CloneURL, Ref: "refs/heads/main", Commit: commit(what), CommitTime: time.Now(),
		Plan: pipeline.Plan{Context: ".", Dockerfile: "Dockerfile", Platforms: p.Platforms}}
	check(t, s.RecordSource(t.Context(), start(t, s, id.Job(), pipeline.StageResolve), src))
	rec := pipeline.ImageRecord{Project: project, Run: id,
		Built:    pipeline.Built{Image: pipeline.Image{Repository: p.Repository, Digest: pipelinetest.DigestOf("index", what)}, Run: id, Source: src, Builder: "buildkitd"},
		Report:   pipeline.Report{ScannedAt: time.Now(), Scanner: "trivy", Database: pipeline.VulnerabilityDatabase{Reference: "db", Digest: pipelinetest.DigestOf("db"), UpdatedAt: time.Now()}},
		Decision: pipeline.Decision{Passed: true, EvaluatedAt: time.Now()},
	}
	for _, pl := range p.Platforms {
		d := pipelinetest.DigestOf(what, pl)
		rec.Built.Platforms = append(rec.Built.Platforms, pipeline.PlatformImage{Platform: pl, Digest: d, Size: 1, MediaType: "m"})
		rec.Report.Platforms = append(rec.Report.Platforms, pipeline.PlatformReport{Platform: pl, Digest: d, User: "1000",
			Packages: packages, Findings: findings, SBOM: fmt.Appendf(nil, `{"platform":%q}`, pl)})
	}
	for _, img := range rec.Built.PlatformImages() {
		rec.Verified = append(rec.Verified, pipeline.Verified{Image: img, VerifiedAt: time.Now(), Signatures: []pipeline.Signature{{Image: img, KeyID: "k", Layout: "bundle"}}})
	}
	check(t, s.RecordBuilt(t.Context(), start(t, s, id.Job(), pipeline.StageBuild), rec.Built))
	check(t, s.RecordImage(t.Context(), start(t, s, id.Job(), pipeline.StageRecord), rec))
	var moves []pipeline.TagMove
	for _, tag := range tags {
		moves = append(moves, pipeline.TagMove{Repository: p.Repository, Tag: tag, To: rec.Built.Image.Digest, Moved: true, Held: true})
	}
	check(t, s.RecordTags(t.Context(), start(t, s, id.Job(), pipeline.StageTag), moves, nil))
	return rec
}

// promote asks for a promotion.
func promote(t testing.TB, s *postgres.Store, rec pipeline.ImageRecord, env, by string) pipeline.Promotion {
	t.Helper()
	p, _, err := s.Promote(t.Context(), pipeline.PromotionRequest{Image: rec.Built.Image.String(), Environment: env, RequestedBy: by})
	check(t, err)
	return p
}

// place takes a promotion to its end.
func place(t testing.TB, s *postgres.Store, p pipeline.Promotion) {
	t.Helper()
	env, _ := pipelinetest.SampleProject(p.Project).Environment(p.Environment)
	dest := pipeline.Image{Repository: env.Repository, Digest: p.Image.Digest}
	check(t, s.RecordDecision(t.Context(), start(t, s, p.ID.Job(), pipeline.StageGate), pipeline.Judged{Decision: pipeline.Decision{Passed: true, EvaluatedAt: time.Now()}}))
	check(t, s.RecordPlacement(t.Context(), start(t, s, p.ID.Job(), pipeline.StageRecord), pipeline.Placement{
		Copied: pipeline.Copied{Image: dest, Manifests: 3}, Decision: pipeline.Decision{Passed: true},
		Verified: []pipeline.Verified{{Image: dest, VerifiedAt: time.Now(), Signatures: []pipeline.Signature{{Image: dest, KeyID: "k", Layout: "bundle"}}}}}))
	check(t, s.RecordTags(t.Context(), start(t, s, p.ID.Job(), pipeline.StageTag), []pipeline.TagMove{{Repository: dest.Repository, Tag: "1.0.0", To: dest.Digest, Moved: true, Held: true}}, nil))
}

// await polls until ok, and fails the test when that takes absurdly long.
func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("waited a minute for: %s", what)
}
