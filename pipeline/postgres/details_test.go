package postgres_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/pipelinetest"
	"github.com/dray-project/dray/pipeline/postgres"
	"github.com/dray-project/dray/pipeline/postgres/postgrestest"
)

func newSample(t *testing.T) *postgres.Store {
	s := newStore(t, postgrestest.New(t))
	syncSample(t, s)
	return s
}

func TestImageDetails(t *testing.T) {
	s := newSample(t)
	findings := []pipeline.Finding{
		{ID: "CVE-1", Severity: pipeline.SeverityLow, Package: "zlib", Version: "v1"},
		{ID: "CVE-2", Severity: pipeline.SeverityCritical, Package: "crypto", Version: "v1", FixedIn: "v2", Title: "bad"},
	}
	rec := release(t, s, "app", "one", []pipeline.Package{pkg("crypto", "v1"), pkg("zlib", "v1")}, findings, "1.0.0", "latest")
	release(t, s, "app", "two", nil, nil, "2.0.0", "latest")
	release(t, s, "web", "one", nil, nil)
	p := promote(t, s, rec, "prod", "grace")
	place(t, s, p)

	all, err := s.ImageDetails(t.Context(), rec.Built.Image.Digest, "")
	check(t, err)
	if len(all) != 2 || all[0].Project != "app" || all[1].Project != "web" {
		t.Fatalf("the image is in %+v", all)
	}
	one, err := s.ImageDetails(t.Context(), rec.Built.Image.Digest, "app")
	check(t, err)
	d := one[0]
	if len(one) != 1 || d.Image != rec.Built.Image || d.Run != rec.Run || d.RecordedAt.IsZero() || d.Packages != 2 || len(d.Platforms) != 2 ||
		!d.Decision.Passed || len(d.Signatures) != 3 || d.Source.Commit != rec.Built.Source.Commit {
		t.Errorf("details are %+v", d)
	}
	if len(d.Findings) != 2 || d.Findings[0].ID != "CVE-2" || fmt.Sprint(d.Findings[0].Platforms) != "[linux/amd64 linux/arm64]" {
		t.Errorf("findings are %+v", d.Findings)
	}
	held := map[string]bool{}
	for _, m := range d.Tags {
		held[m.Repository+":"+m.Tag] = m.Held
	}
	if want := map[string]bool{"dev.example/acme/app:1.0.0": true, "dev.example/acme/app:latest": false, "prod.example/acme/app:1.0.0": true}; fmt.Sprint(held) != fmt.Sprint(want) {
		t.Errorf("tags are %v, want %v", held, want)
	}
	if len(d.Promotions) != 1 || d.Promotions[0].ID != p.ID || d.Promotions[0].Destination == nil {
		t.Errorf("promotions are %+v", d.Promotions)
	}
	for project, digest := range map[string]pipeline.Digest{"nothing": rec.Built.Image.Digest, "": pipelinetest.DigestOf("unknown")} {
		if _, err := s.ImageDetails(t.Context(), digest, project); !errors.Is(err, pipeline.ErrNotFound) {
			t.Errorf("%s in %q: %v", digest, project, err)
		}
	}

	doc, err := s.SBOM(t.Context(), "app", rec.Built.Image.Digest, "linux/arm64")
	check(t, err)
	if string(doc) != `{"platform":"linux/arm64"}` {
		t.Errorf("the SBOM came back as %s", doc)
	}
	if _, err := s.SBOM(t.Context(), "app", rec.Built.Image.Digest, "linux/s390x"); !errors.Is(err, pipeline.ErrNotFound) {
		t.Errorf("the SBOM of a platform that is not there: %v", err)
	}

	r, err := s.RunDetail(t.Context(), rec.Run)
	check(t, err)
	if r.Findings != (pipeline.Findings{Critical: 1, Low: 1}) || r.Source == nil || r.Decision == nil || !r.Decision.Passed || len(r.Tags) != 2 {
		t.Errorf("the run's details are %+v", r)
	}
	var stages []string
	for _, st := range r.Stages {
		stages = append(stages, string(st.Stage)+" "+st.State)
	}
	if got := strings.Join(stages, ", "); got != "resolve succeeded, build succeeded, record succeeded, tag succeeded" {
		t.Errorf("the stages are %s", got)
	}
	pd, err := s.PromotionDetail(t.Context(), p.ID)
	check(t, err)
	if pd.State != pipeline.StateSucceeded || pd.Copied == nil || pd.Copied.Manifests != 3 || len(pd.Verified) != 1 || len(pd.Verified[0].Signatures) != 1 ||
		pd.Verified[0].Signatures[0].Image != pd.Copied.Image || len(pd.Stages) != 3 || pd.Decision == nil || len(pd.Tags) != 1 {
		t.Errorf("the promotion's details are %+v", pd)
	}
	if _, err := s.RunDetail(t.Context(), "run_x"); !errors.Is(err, pipeline.ErrNotFound) {
		t.Error(err)
	}
	if _, err := s.PromotionDetail(t.Context(), "prm_x"); !errors.Is(err, pipeline.ErrNotFound) {
		t.Error(err)
	}
}

// TestRunDetailBeforeTheRecord: a run that is under way shows what its scan and
// gate said.
func TestRunDetailBeforeTheRecord(t *testing.T) {
	s := newSample(t)
	id := push(t, s, "app", "refs/heads/main", "one")
	d, err := s.RunDetail(t.Context(), id)
	check(t, err)
	if d.Decision != nil || d.Source != nil || d.Stages == nil || d.Tags == nil {
		t.Fatalf("a new run's details are %+v", d)
	}
	for stage, outcome := range map[pipeline.Stage]any{
		pipeline.StageScan: pipeline.Report{Platforms: []pipeline.PlatformReport{{Findings: []pipeline.Finding{{ID: "a", Severity: pipeline.SeverityHigh}}}}},
		pipeline.StageGate: pipeline.Judged{Decision: pipeline.Decision{Passed: true}},
	} {
		b, err := json.Marshal(outcome)
		check(t, err)
		check(t, s.FinishStage(t.Context(), start(t, s, id.Job(), stage), b))
	}
	d, err = s.RunDetail(t.Context(), id)
	check(t, err)
	if d.Findings.High != 1 || d.Decision == nil || !d.Decision.Passed {
		t.Fatalf("after the gate the details are %+v", d)
	}
}

func TestLists(t *testing.T) {
	s := newSample(t)
	var want []string
	for i := range 7 {
		project := []string{"app", "web"}[i%2]
		want = append([]string{string(push(t, s, project, "refs/heads/main", fmt.Sprint(i)))}, want...)
		time.Sleep(2 * time.Millisecond) // ids order by milliseconds
	}
	list := func(project string, state pipeline.State) (got []string) {
		t.Helper()
		p := pipeline.Page{Limit: 2}
		for {
			runs, err := s.Runs(t.Context(), project, state, p)
			check(t, err)
			for _, r := range runs {
				got = append(got, string(r.ID))
			}
			if len(runs) < 2 {
				return got
			}
			p.After = got[len(got)-1]
		}
	}
	if got := list("", ""); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := list("web", ""); fmt.Sprint(got) != fmt.Sprint([]string{want[1], want[3], want[5]}) {
		t.Errorf("in web %v", got)
	}
	check(t, s.End(t.Context(), pipeline.JobID(want[2]), pipeline.Ending{State: pipeline.StateFailed, Reason: "x"}))
	if got := list("", pipeline.StateFailed); fmt.Sprint(got) != fmt.Sprint(want[2:3]) {
		t.Errorf("failed %v", got)
	}
	if got := list("app", pipeline.StateQueued); len(got) != 3 {
		t.Errorf("queued in app %v", got)
	}

	rec := release(t, s, "app", "released", nil, nil)
	var promos []string
	for _, env := range []string{"staging", "prod", "staging"} {
		promos = append([]string{string(promote(t, s, rec, env, "grace").ID)}, promos...)
		time.Sleep(2 * time.Millisecond)
	}
	first, err := s.Promotions(t.Context(), pipeline.PromotionQuery{Project: "app", Page: pipeline.Page{Limit: 2}})
	check(t, err)
	rest, err := s.Promotions(t.Context(), pipeline.PromotionQuery{Page: pipeline.Page{Limit: 2, After: string(first[1].ID)}})
	check(t, err)
	if len(rest) != 1 || string(first[0].ID) != promos[0] || string(rest[0].ID) != promos[2] {
		t.Errorf("promotions %v then %v, want %v", first, rest, promos)
	}
	if none, err := s.Promotions(t.Context(), pipeline.PromotionQuery{Project: "web"}); err != nil || none == nil || len(none) != 0 {
		t.Errorf("in web %v, %v", none, err)
	}
}

func TestProjectVersionsAreKept(t *testing.T) {
	pool := postgrestest.New(t)
	s := newStore(t, pool)
	a, b := pipelinetest.SampleProject("app"), pipelinetest.SampleProject("app")
	b.Latest = false
	for _, p := range []pipeline.Project{a, a, b, a} {
		check(t, s.SyncProjects(t.Context(), []pipeline.Project{p}))
	}
	var versions, digests int
	check(t, pool.QueryRow(t.Context(), `SELECT count(*), count(DISTINCT digest) FROM project_versions`).Scan(&versions, &digests))
	if versions != 3 || digests != 2 {
		t.Errorf("%d versions of %d digests are kept, want 3 of 2", versions, digests)
	}
	check(t, s.SyncProjects(t.Context(), nil))
	if _, err := s.Project(t.Context(), "app"); !errors.Is(err, pipeline.ErrNotFound) {
		t.Errorf("a project that is gone from the settings: %v", err)
	}
	if _, err := s.Accept(t.Context(), pipeline.Delivery{Forge: "github", ID: "1", Project: "app", Event: pipeline.Event{Kind: pipeline.EventPush}}); !errors.Is(err, pipeline.ErrNotFound) {
		t.Errorf("a push to it: %v", err)
	}
	if err := s.SyncProjects(t.Context(), []pipeline.Project{a, b}); !errors.Is(err, pipeline.ErrInvalid) {
		t.Errorf("a name that is there twice: %v", err)
	}
}

func TestDeliveryIDOfAnotherProject(t *testing.T) {
	s := newSample(t)
	d := pipeline.Delivery{Forge: "github", ID: "same", Project: "app", Event: pipeline.Event{Kind: pipeline.EventPush, Ref: "refs/heads/main", After: commit("one")}}
	first, err := s.Accept(t.Context(), d)
	check(t, err)
	d.Project = "web"
	_, err = s.Accept(t.Context(), d)
	if !errors.Is(err, pipeline.ErrConflict) || strings.Contains(err.Error(), string(first.Run)) {
		t.Errorf("another project's delivery id: %v", err)
	}
	for _, id := range []string{"", strings.Repeat("x", 300)} {
		d.ID = id
		if _, err := s.Accept(t.Context(), d); !errors.Is(err, pipeline.ErrInvalid) {
			t.Errorf("a delivery id of %d bytes: %v", len(id), err)
		}
	}
}

// TestHostileText: what images and builds say of themselves does not keep them
// from being recorded.
func TestHostileText(t *testing.T) {
	s := newSample(t)
	nasty := "a\x00b\xff\u2028" + strings.Repeat("long", 5000)
	rec := release(t, s, "app", "one", []pipeline.Package{
		{Name: nasty, Version: nasty, Type: nasty, PURL: nasty, Path: nasty, Layer: nasty, Licenses: []string{nasty}},
	}, []pipeline.Finding{{ID: nasty, Package: nasty, Version: nasty, FixedIn: nasty, Title: nasty, URL: nasty, Path: nasty}})
	got, err := s.ImageRecord(t.Context(), "app", rec.Built.Image.Digest)
	check(t, err)
	if n := got.Report.Platforms[0].Packages[0].Name; !strings.HasPrefix(n, "a\uFFFDb\uFFFD") || len(n) < 20000 {
		t.Errorf("the package's name came back as %.20q, %d bytes", n, len(n))
	}
	uses, err := s.Packages(t.Context(), pipeline.PackageQuery{Name: nasty, Version: nasty})
	check(t, err)
	if len(uses) != 1 {
		t.Errorf("found it in %d images", len(uses))
	}

	id := push(t, s, "app", "refs/heads/"+nasty, "two")
	c := start(t, s, id.Job(), pipeline.StageBuild)
	check(t, s.AppendEvents(t.Context(), c, []pipeline.JobEvent{{Kind: pipeline.KindLog, Message: nasty, Log: &pipeline.Line{Text: nasty}}}))
	check(t, s.FailStage(t.Context(), c, nasty))
	check(t, s.End(t.Context(), id.Job(), pipeline.Ending{State: pipeline.StateFailed, Reason: nasty}))
	if _, _, err := s.Events(t.Context(), id.Job(), 0, 100); err != nil {
		t.Error(err)
	}
	if err := s.FinishStage(t.Context(), start(t, s, push(t, s, "app", "r", "3").Job(), "x"), json.RawMessage(`{`)); !errors.Is(err, pipeline.ErrInvalid) {
		t.Errorf("an outcome that is not JSON: %v", err)
	}
}

// TestRecordsInParallel: records that bring the same new packages in different
// order do not end in a deadlock.
func TestRecordsInParallel(t *testing.T) {
	s := newSample(t)
	var wg sync.WaitGroup
	for i, step := range []int{1, 7, 11, 13, 17, 299} { // all coprime to 300: the same packages, each in its own order
		var packages []pipeline.Package
		for k := range 300 {
			packages = append(packages, pkg(fmt.Sprint("p", k*step%300), "v1"))
		}
		wg.Go(func() { release(t, s, "app", fmt.Sprint("image", i), packages, nil, "1.0."+fmt.Sprint(i), "latest") })
	}
	wg.Wait()
	uses, err := s.Packages(t.Context(), pipeline.PackageQuery{Name: "p7"})
	check(t, err)
	if len(uses) != 6 {
		t.Fatalf("the package is in %d images, want 6", len(uses))
	}
}
