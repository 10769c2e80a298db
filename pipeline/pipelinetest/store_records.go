package pipelinetest

import (
	"encoding/json"
	"strings"
	"time"

	"github.com/dray-project/dray/pipeline"
)

func testRunRecords(x *suite) {
	id := x.accept("app", "refs/tags/v1.0.0", "one")
	job := id.Job()
	s := source("app", "refs/tags/v1.0.0", "one")
	x.must(x.s.RecordSource(x.ctx, x.start(job, pipeline.StageResolve), s))
	if r := x.run(id); r.Commit != s.Commit || r.Image != nil {
		x.Fatalf("after resolve the run is %+v", r)
	}
	x.done(job, pipeline.StageResolve, s)
	b := built("app", id, s)
	x.must(x.s.RecordBuilt(x.ctx, x.start(job, pipeline.StageBuild), b))
	if r := x.run(id); r.Image == nil || *r.Image != b.Image {
		x.Fatalf("after build the run is %+v", r)
	}
	x.done(job, pipeline.StageBuild, b)
	x.must(x.s.RecordImage(x.ctx, x.start(job, pipeline.StageRecord), record("app", id, b, true)))
	if c, err := x.s.StartStage(x.ctx, job, pipeline.StageRecord); err != nil || !c.Done {
		x.Fatalf("record is not done: %+v, %v", c, err)
	}
	moves := []pipeline.TagMove{
		{Repository: b.Image.Repository, Tag: "1.0.0", To: b.Image.Digest, Moved: true, Held: true},
		{Repository: b.Image.Repository, Tag: "latest", From: DigestOf("newer"), To: b.Image.Digest, Note: "stays with 2.0.0"},
	}
	x.must(x.s.RecordTags(x.ctx, x.start(job, pipeline.StageTag), moves, nil))
	r := x.run(id)
	if r.State != pipeline.StateSucceeded || r.Reason != "" || r.FinishedAt == nil {
		x.Fatalf("after tag the run is %+v, want it succeeded", r)
	}
	_, err := x.s.StartStage(x.ctx, job, pipeline.StageTag)
	x.wants(err, pipeline.ErrConflict)
	x.must(x.s.End(x.ctx, job, pipeline.Ending{State: pipeline.StateFailed, Reason: "too late"}))
	x.same(x.run(id), r)
	x.wantStory(job, "running", "resolve/1 started", "resolve/1 succeeded", "build/1 started", "build/1 succeeded",
		"record/1 started", "record/1 succeeded", "tag/1 started", "tag/1 succeeded", "succeeded")
}

func testImageRecord(x *suite) {
	_, rec := x.recorded("app", "refs/heads/main", "one", true)
	got, err := x.other.ImageRecord(x.ctx, "app", rec.Built.Image.Digest)
	x.must(err)
	x.same(got, rec)
	_, err = x.s.ImageRecord(x.ctx, "web", rec.Built.Image.Digest)
	x.wants(err, pipeline.ErrNotFound)

	_, refused := x.recorded("app", "refs/heads/main", "two", false)
	got, err = x.s.ImageRecord(x.ctx, "app", refused.Built.Image.Digest)
	x.must(err)
	x.same(got, refused)
}

func testNewestRecord(x *suite) {
	_, first := x.recorded("app", "refs/heads/main", "one", true)

	// A second run of the same commit uses the image and looks at it again.
	id := x.accept("app", "refs/tags/v1.0.0", "one")
	x.must(x.s.RecordBuilt(x.ctx, x.start(id.Job(), pipeline.StageBuild), first.Built))
	second := record("app", id, first.Built, false)
	second.Report.ScannedAt = sampleTime.Add(24 * time.Hour)
	second.Report.Platforms = second.Report.Platforms[:1]
	pr := &second.Report.Platforms[0]
	pr.Packages = append(pr.Packages[:1:1], pipeline.Package{Name: "new", Version: "1", Type: "debian"})
	pr.Findings = pr.Findings[1:]
	pr.SBOM = json.RawMessage(`{"bomFormat":"CycloneDX","version":2}`)
	x.must(x.s.RecordImage(x.ctx, x.start(id.Job(), pipeline.StageRecord), second))
	x.must(x.s.End(x.ctx, id.Job(), pipeline.Ending{State: pipeline.StateRefused, Reason: "found something"}))

	got, err := x.s.ImageRecord(x.ctx, "app", first.Built.Image.Digest)
	x.must(err)
	x.same(got, second)
	_, _, err = x.s.Promote(x.ctx, x.request(string(first.Built.Image.Digest)))
	x.wants(err, pipeline.ErrRefused)
}

func testFindBuilt(x *suite) {
	s := source("app", "refs/heads/main", "one")
	_, err := x.s.FindBuilt(x.ctx, "app", s)
	x.wants(err, pipeline.ErrNotFound)

	id := x.accept("app", "refs/heads/main", "one")
	x.must(x.s.RecordSource(x.ctx, x.start(id.Job(), pipeline.StageResolve), s))
	b := built("app", id, s)
	x.must(x.s.RecordBuilt(x.ctx, x.start(id.Job(), pipeline.StageBuild), b))
	_, err = x.s.FindBuilt(x.ctx, "app", s) // built, but not recorded
	x.wants(err, pipeline.ErrNotFound)
	x.must(x.s.RecordImage(x.ctx, x.start(id.Job(), pipeline.StageRecord), record("app", id, b, true)))

	same := s
	same.Ref = "refs/tags/v1.0.0"
	same.Bases = nil
	same.CommitTime = sampleTime.Add(time.Hour)
	got, err := x.other.FindBuilt(x.ctx, "app", same)
	x.must(err)
	x.same(got, b)

	for name, change := range map[string]func(*pipeline.Source){
		"commit":     func(s *pipeline.Source) { s.Commit = commit("two") },
		"clone URL":  func(s *pipeline.Source) { s.CloneURL = "https://elsewhere.example/" },
		"dockerfile": func(s *pipeline.Source) { s.Plan.Dockerfile = "other/Dockerfile" },
		"argument":   func(s *pipeline.Source) { s.Plan.Args = map[string]string{"A": "1", "B": "3"} },
		"platforms":  func(s *pipeline.Source) { s.Plan.Platforms = s.Plan.Platforms[:1] },
	} {
		other := s
		change(&other)
		if _, err := x.s.FindBuilt(x.ctx, "app", other); err == nil {
			x.Fatalf("found an image of another %s", name)
		} else {
			x.wants(err, pipeline.ErrNotFound)
		}
	}
	_, err = x.s.FindBuilt(x.ctx, "web", s)
	x.wants(err, pipeline.ErrNotFound)

	_, refused := x.recorded("app", "refs/heads/main", "two", false)
	_, err = x.s.FindBuilt(x.ctx, "app", refused.Built.Source)
	x.wants(err, pipeline.ErrNotFound)
}

func testVersions(x *suite) {
	_, rec := x.released("app", "refs/tags/v1.2.0", "one", "sha-0123456789ab", "1.2.0", "1.2", "1", "latest")
	digest := rec.Built.Image.Digest
	id := x.accept("app", "refs/tags/v1.10.0-rc.1", "one")
	x.must(x.s.RecordTags(x.ctx, x.start(id.Job(), pipeline.StageTag), []pipeline.TagMove{
		{Repository: rec.Built.Image.Repository, Tag: "1.10.0-rc.1", To: digest, Moved: true, Held: true},
		{Repository: rec.Built.Image.Repository, Tag: "1.2.0", To: digest, Held: true},
		{Repository: rec.Built.Image.Repository, Tag: "3.0.0", From: DigestOf("other"), To: digest, Note: "not held"},
	}, nil))
	// Another image and another project have versions of their own.
	x.released("app", "refs/tags/v9.0.0", "two", "9.0.0")
	x.released("web", "refs/tags/v8.0.0", "one", "8.0.0")
	// What a promotion tags is no release.
	p, _, err := x.s.Promote(x.ctx, pipeline.PromotionRequest{Image: string(digest), Project: "app", Environment: "prod", RequestedBy: "grace"})
	x.must(err)
	x.must(x.s.RecordTags(x.ctx, x.start(p.ID.Job(), pipeline.StageTag), []pipeline.TagMove{
		{Repository: "prod.example/acme/app", Tag: "7.0.0", To: digest, Moved: true, Held: true}}, nil))

	got := x.versions("app", digest)
	if strings.Join(got, " ") != "1.10.0-rc.1 1.2.0" {
		x.Fatalf("versions are %q, want 1.10.0-rc.1 and 1.2.0", got)
	}
	if got := x.versions("app", DigestOf("unknown")); len(got) != 0 {
		x.Fatalf("an unknown image has the versions %q", got)
	}
}

func testPromotionRecords(x *suite) {
	_, rec := x.released("app", "refs/tags/v1.0.0", "one", "1.0.0")
	p, _, err := x.s.Promote(x.ctx, x.request(string(rec.Built.Image.Digest)))
	x.must(err)
	job := p.ID.Job()
	x.must(x.s.FinishStage(x.ctx, x.start(job, pipeline.StageAdmit), json.RawMessage(`{}`)))
	judged := pipeline.Judged{Decision: rec.Decision, Diff: pipeline.Diff{Project: "app", Environment: p.Environment}}
	x.must(x.s.RecordDecision(x.ctx, x.start(job, pipeline.StageGate), judged))
	x.done(job, pipeline.StageGate, judged)
	got, err := x.s.Promotion(x.ctx, p.ID)
	x.must(err)
	x.same(got.Decision, rec.Decision)
	if got.State != pipeline.StateRunning || got.Destination != nil {
		x.Fatalf("after the gate the promotion is %+v", got)
	}

	dest := pipeline.Image{Repository: "prod.example/acme/app", Digest: rec.Built.Image.Digest}
	copied := pipeline.Copied{Image: dest, Manifests: 3, Blobs: 12, Sent: 1 << 40, Skipped: 2, Mounted: 1, Referrers: []pipeline.Digest{DigestOf("referrer")}}
	x.must(x.s.RecordPlacement(x.ctx, x.start(job, pipeline.StageRecord),
		pipeline.Placement{Copied: copied, Decision: rec.Decision, Verified: []pipeline.Verified{verified(dest)}}))
	x.done(job, pipeline.StageRecord, copied)
	got, err = x.s.Promotion(x.ctx, p.ID)
	x.must(err)
	if got.Destination == nil || *got.Destination != dest {
		x.Fatalf("after record the promotion is %+v, want it at %s", got, dest)
	}

	moves := []pipeline.TagMove{{Repository: dest.Repository, Tag: "1.0.0", To: dest.Digest, Moved: true, Held: true, Note: "new"}}
	x.must(x.s.RecordTags(x.ctx, x.start(job, pipeline.StageTag), moves, nil))
	got, err = x.s.Promotion(x.ctx, p.ID)
	x.must(err)
	x.same(got.Tags, moves)
	if got.State != pipeline.StateSucceeded || got.FinishedAt == nil {
		x.Fatalf("after tag the promotion is %+v, want it succeeded", got)
	}
}

func (x *suite) versions(project string, d pipeline.Digest) []string {
	x.Helper()
	st, err := x.s.Standing(x.ctx, project, "", d)
	x.must(err)
	return st.Versions
}
