package pipelinetest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/dray-project/dray/pipeline"
)

// Store is what the suite drives: the pipeline's store and locker, with the
// intake that starts runs and promotions and the events that followers read.
type Store interface {
	pipeline.Store
	pipeline.Locker
	// SyncProjects makes these the projects that exist.
	SyncProjects(context.Context, []pipeline.Project) error
	Accept(context.Context, pipeline.Delivery) (pipeline.Accepted, error)
	Retry(ctx context.Context, id pipeline.RunID, requestedBy string) (r pipeline.Run, created bool, err error)
	Promote(context.Context, pipeline.PromotionRequest) (p pipeline.Promotion, created bool, err error)
	Events(ctx context.Context, job pipeline.JobID, after int64, limit int) (events []pipeline.JobEvent, end bool, err error)
}

// Fixture is an empty store to test.
type Fixture struct {
	Store Store
	// Other is the same state as a second process sees it. Nil means that one
	// process is all there can be, and Store stands in for it.
	Other Store
}

// TestStore holds a store to the contracts of pipeline.Store, pipeline.Locker
// and the intake. open returns a new, empty store.
func TestStore(t *testing.T, open func(t *testing.T) Fixture) {
	for _, c := range []struct {
		name string
		test func(*suite)
	}{
		{"projects", testProjects},
		{"accept starts one run", testAccept},
		{"accept in parallel starts one run", testAcceptParallel},
		{"accept without anything to build", testAcceptNothing},
		{"a retry is a new run of the same event", testRetry},
		{"a retry in parallel starts one run", testRetryParallel},
		{"a retry finds what was built", testRetryFindsBuilt},
		{"stages are claimed in turn", testStages},
		{"a stage that finished is not run again", testStageDone},
		{"a superseded claim writes nothing", testStale},
		{"claims race", testClaimRace},
		{"a job that ended stays as it is", testEnded},
		{"unknown jobs", testUnknown},
		{"events have no gaps", testEvents},
		{"events in parallel have no gaps", testEventsParallel},
		{"events are read in parts", testEventPages},
		{"a run records where it got to", testRunRecords},
		{"an image record comes back whole", testImageRecord},
		{"the newest record of an image counts", testNewestRecord},
		{"a built image is found again", testFindBuilt},
		{"versions of an image", testVersions},
		{"a promotion names one recorded image", testPromote},
		{"a promotion is asked for once", testPromoteOnce},
		{"a promotion in parallel is asked for once", testPromoteParallel},
		{"a promotion records where it got to", testPromotionRecords},
		{"locks exclude", testLock},
		{"a lock waits no longer than its context", testLockContext},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := open(t)
			if f.Other == nil {
				f.Other = f.Store
			}
			x := &suite{T: t, ctx: t.Context(), s: f.Store, other: f.Other}
			x.must(f.Store.SyncProjects(x.ctx, []pipeline.Project{SampleProject("app"), SampleProject("web")}))
			c.test(x)
		})
	}
}

// SampleProject is a project with the environments staging and prod.
func SampleProject(name string) pipeline.Project {
	rules := pipeline.GateRules{FailOn: pipeline.SeverityCritical}
	return pipeline.Project{
		Name: name, Forge: "github", Source: "acme/" + name, CloneURL: "https://git.example/acme/" + name + ".git",
		Repository: "dev.example/acme/" + name, Platforms: []pipeline.Platform{"linux/amd64", "linux/arm64"}, Latest: true, Gate: rules,
		Environments: []pipeline.Environment{
			{Name: "staging", Repository: "staging.example/acme/" + name, Gate: rules},
			{Name: "prod", Repository: "prod.example/acme/" + name, Gate: rules},
		},
	}
}

// sampleTime has no more precision than a database keeps.
var sampleTime = time.Date(2026, 3, 14, 15, 9, 26, 535_000_000, time.UTC)

type suite struct {
	*testing.T
	ctx   context.Context
	s     Store
	other Store
	n     int
}

func (x *suite) must(err error) {
	x.Helper()
	if err != nil {
		x.Fatal(err)
	}
}

// wants checks that err wraps target.
func (x *suite) wants(err, target error) {
	x.Helper()
	if !errors.Is(err, target) {
		x.Fatalf("error is %v, want one that wraps %q", err, target)
	}
}

// same compares two values as JSON. What is empty is as good as absent: a
// database does not tell a list without elements from none.
func (x *suite) same(got, want any) {
	x.Helper()
	g, w := plain(x.T, got), plain(x.T, want)
	if !reflect.DeepEqual(g, w) {
		gb, _ := json.MarshalIndent(g, "", " ")
		wb, _ := json.MarshalIndent(w, "", " ")
		x.Fatalf("got %s\nwant %s", gb, wb)
	}
}

func plain(t *testing.T, v any) any {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var out any
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	return withoutEmpty(out)
}

func withoutEmpty(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for k, e := range v {
			if e = withoutEmpty(e); e != nil {
				out[k] = e
			}
		}
		if len(out) > 0 {
			return out
		}
		return nil
	case []any:
		var out []any
		for _, e := range v {
			out = append(out, withoutEmpty(e))
		}
		if len(out) > 0 {
			return out
		}
		return nil
	default:
		return v
	}
}

func commit(s string) string { return DigestOf("commit", s).Hex()[:40] }

// delivery is a push of a commit under a new delivery id.
func (x *suite) delivery(project, ref, what string) pipeline.Delivery {
	x.n++
	return pipeline.Delivery{
		Forge: "github", ID: fmt.Sprintf("delivery-%d", x.n), Project: project, BodyDigest: DigestOf("body", x.n), ReceivedAt: sampleTime,
		Event: pipeline.Event{Kind: pipeline.EventPush, Source: "acme/" + project, Ref: ref, After: commit(what), Pusher: "ada"},
	}
}

// accept starts a run.
func (x *suite) accept(project, ref, what string) pipeline.RunID {
	x.Helper()
	a, err := x.s.Accept(x.ctx, x.delivery(project, ref, what))
	x.must(err)
	if a.Run == "" || a.Duplicate {
		x.Fatalf("accepted %+v, want a new run", a)
	}
	return a.Run
}

func (x *suite) start(job pipeline.JobID, stage pipeline.Stage) pipeline.Claim {
	x.Helper()
	c, err := x.s.StartStage(x.ctx, job, stage)
	x.must(err)
	if c.Done || c.Job != job || c.Stage != stage || c.Attempt < 1 {
		x.Fatalf("claim is %+v, want a new attempt at %s of %s", c, stage, job)
	}
	return c
}

// done checks that a stage has finished with that outcome.
func (x *suite) done(job pipeline.JobID, stage pipeline.Stage, want any) {
	x.Helper()
	c, err := x.s.StartStage(x.ctx, job, stage)
	x.must(err)
	if !c.Done {
		x.Fatalf("%s of %s is not done", stage, job)
	}
	x.same(c.Outcome, want)
}

func (x *suite) run(id pipeline.RunID) pipeline.Run {
	x.Helper()
	r, err := x.s.Run(x.ctx, id)
	x.must(err)
	return r
}

// events returns all of a job's events and checks that they count from 1.
func (x *suite) events(job pipeline.JobID) []pipeline.JobEvent {
	x.Helper()
	events, _, err := x.s.Events(x.ctx, job, 0, 100_000)
	x.must(err)
	for i, e := range events {
		if e.Seq != int64(i+1) {
			x.Fatalf("event %d of %s has seq %d", i+1, job, e.Seq)
		}
		if e.Time.IsZero() {
			x.Fatalf("event %d of %s has no time", e.Seq, job)
		}
	}
	return events
}

// story is the job's stages and states as its followers see them, without the
// state that it was made in.
func (x *suite) story(job pipeline.JobID) string {
	x.Helper()
	var out []string
	for _, e := range x.events(job) {
		switch {
		case e.Kind == pipeline.KindStage:
			out = append(out, fmt.Sprintf("%s/%d %s", e.Stage, e.Attempt, e.State))
		case e.Kind == pipeline.KindState && e.State != string(pipeline.StateQueued):
			out = append(out, e.State)
		}
	}
	return strings.Join(out, ", ")
}

func (x *suite) wantStory(job pipeline.JobID, want ...string) {
	x.Helper()
	if got := x.story(job); got != strings.Join(want, ", ") {
		x.Fatalf("the events tell\n%s\nwant\n%s", got, strings.Join(want, ", "))
	}
}

func source(project, ref, what string) pipeline.Source {
	p := SampleProject(project)
	return pipeline.Source{
		CloneURL: p.CloneURL, Ref: ref, Commit: commit(what), CommitTime: sampleTime,
		Plan:  pipeline.Plan{Context: ".", Dockerfile: "Dockerfile", Args: map[string]string{"B": "2", "A": "1"}, Platforms: p.Platforms},
		Bases: []pipeline.Material{{URI: "pkg:docker/base", Digest: DigestOf("base"), Pinned: true}},
	}
}

func built(project string, run pipeline.RunID, s pipeline.Source) pipeline.Built {
	b := pipeline.Built{
		Image: pipeline.Image{Repository: SampleProject(project).Repository, Digest: DigestOf("index", s.Commit)},
		Run:   run, Source: s, Builder: "buildkitd v0.0.0", StartedAt: sampleTime, FinishedAt: sampleTime.Add(time.Minute),
	}
	for _, p := range s.Plan.Platforms {
		b.Platforms = append(b.Platforms, pipeline.PlatformImage{Platform: p, Digest: DigestOf(s.Commit, p), Size: 1234,
			MediaType: "application/vnd.oci.image.manifest.v1+json"})
	}
	return b
}

// record is what a scan and a gate say of an image.
func record(project string, run pipeline.RunID, b pipeline.Built, passed bool) pipeline.ImageRecord {
	rec := pipeline.ImageRecord{
		Project: project, Run: run, Built: b,
		Report: pipeline.Report{ScannedAt: sampleTime, Scanner: "trivy v0.0.0",
			Database: pipeline.VulnerabilityDatabase{Reference: "db.example/db:2", Digest: DigestOf("db"), UpdatedAt: sampleTime.Add(-time.Hour)}},
		Decision: pipeline.Decision{Passed: passed, Policy: pipeline.PolicyVersion{Project: project, Version: 1, Gate: SampleProject(project).BuildGate()}, EvaluatedAt: sampleTime,
			Rules: []pipeline.RuleResult{{Rule: "severity", Passed: passed, Reason: "because"}}},
	}
	rec.Decision.Database = rec.Report.Database
	for i, p := range b.Platforms {
		pr := pipeline.PlatformReport{Platform: p.Platform, Digest: p.Digest, OS: "debian 12.11", User: "65532",
			Packages: []pipeline.Package{
				{Name: "zlib1g", Version: "1:1.2.13", Type: "debian", PURL: "pkg:deb/debian/zlib1g@1.2.13", Licenses: []string{"Zlib"}, Layer: string(DigestOf("layer"))},
				{Name: "golang.org/x/crypto", Version: "v0.30.0", Type: "gobinary", PURL: "pkg:golang/golang.org/x/crypto@v0.30.0", Path: "bin/app"},
				{Name: "golang.org/x/crypto", Version: "v0.30.0", Type: "gobinary", PURL: "pkg:golang/golang.org/x/crypto@v0.30.0", Path: "bin/other"},
			},
			SBOM: json.RawMessage(fmt.Sprintf(`{"bomFormat":"CycloneDX","serialNumber":%q}`, p.Digest)),
		}
		if i == 0 {
			pr.Findings = []pipeline.Finding{
				{ID: "CVE-2024-45337", Severity: pipeline.SeverityCritical, Package: "golang.org/x/crypto", Version: "v0.30.0", FixedIn: "0.31.0", Title: "a title", URL: "https://example/", PURL: "pkg:golang/golang.org/x/crypto@v0.30.0", Path: "bin/app"},
				{ID: "CVE-2023-45853", Severity: pipeline.SeverityLow, Package: "zlib1g", Version: "1:1.2.13"},
			}
		}
		rec.Report.Platforms = append(rec.Report.Platforms, pr)
	}
	if passed {
		rec.Provenance = json.RawMessage(`{"buildDefinition":{"buildType":"x"}}`)
		for _, img := range b.PlatformImages() {
			rec.Verified = append(rec.Verified, verified(img))
		}
	}
	return rec
}

func verified(img pipeline.Image) pipeline.Verified {
	return pipeline.Verified{
		Image: img, VerifiedAt: sampleTime.Add(2 * time.Minute),
		Signatures: []pipeline.Signature{
			{Image: img, KeyID: KeyID, Layout: "bundle", Manifest: DigestOf("bundle", img.Digest)},
			{Image: img, KeyID: KeyID, Layout: "legacy", Manifest: DigestOf("legacy", img.Digest)},
		},
		Attestations: []pipeline.Attestation{{Image: img, PredicateType: pipeline.PredicateProvenance, KeyID: KeyID, Layout: "bundle",
			Manifest: DigestOf("attestation", img.Digest), Statement: DigestOf("statement", img.Digest)}},
	}
}

// recorded drives a run up to its record.
func (x *suite) recorded(project, ref, what string, passed bool) (pipeline.RunID, pipeline.ImageRecord) {
	x.Helper()
	id := x.accept(project, ref, what)
	s := source(project, ref, what)
	x.must(x.s.RecordSource(x.ctx, x.start(id.Job(), pipeline.StageResolve), s))
	b := built(project, id, s)
	x.must(x.s.RecordBuilt(x.ctx, x.start(id.Job(), pipeline.StageBuild), b))
	rec := record(project, id, b, passed)
	x.must(x.s.RecordImage(x.ctx, x.start(id.Job(), pipeline.StageRecord), rec))
	if !passed {
		x.must(x.s.End(x.ctx, id.Job(), pipeline.Ending{State: pipeline.StateRefused, Reason: rec.Decision.Reason()}))
	}
	return id, rec
}

// released drives a run to its end, with tags.
func (x *suite) released(project, ref, what string, tags ...string) (pipeline.RunID, pipeline.ImageRecord) {
	x.Helper()
	id, rec := x.recorded(project, ref, what, true)
	var moves []pipeline.TagMove
	for _, tag := range tags {
		moves = append(moves, pipeline.TagMove{Repository: rec.Built.Image.Repository, Tag: tag, To: rec.Built.Image.Digest, Moved: true, Held: true})
	}
	x.must(x.s.RecordTags(x.ctx, x.start(id.Job(), pipeline.StageTag), moves, nil))
	return id, rec
}
