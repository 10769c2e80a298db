package pipelinetest

import (
	"strings"
	"sync"

	"github.com/dray-project/dray/pipeline"
)

func testProjects(x *suite) {
	p, err := x.s.Project(x.ctx, "app")
	x.must(err)
	x.same(p, SampleProject("app"))
	_, err = x.s.Project(x.ctx, "nothing")
	x.wants(err, pipeline.ErrNotFound)

	changed := SampleProject("app")
	changed.Gate.FailOn = pipeline.SeverityHigh
	x.must(x.s.SyncProjects(x.ctx, []pipeline.Project{changed, SampleProject("web")}))
	p, err = x.other.Project(x.ctx, "app")
	x.must(err)
	x.same(p, changed)
}

func testAccept(x *suite) {
	d := x.delivery("app", "refs/heads/main", "one")
	first, err := x.s.Accept(x.ctx, d)
	x.must(err)
	if first.Run == "" || first.Duplicate || first.Note == "" {
		x.Fatalf("accepted %+v, want a new run and a note", first)
	}
	r := x.run(first.Run)
	x.same(r.Event, d.Event)
	if r.ID != first.Run || r.Project != "app" || r.State != pipeline.StateQueued || r.CreatedAt.IsZero() || r.StartedAt != nil || r.FinishedAt != nil {
		x.Fatalf("the new run is %+v", r)
	}

	again := func(d pipeline.Delivery, why string) {
		x.Helper()
		a, err := x.other.Accept(x.ctx, d)
		x.must(err)
		if a.Run != first.Run || !a.Duplicate || a.Note == "" {
			x.Fatalf("%s: accepted %+v, want the first run %s as a duplicate", why, a, first.Run)
		}
	}
	again(d, "the same delivery")
	d.ID = "another-1"
	again(d, "the same event under another id")
	again(d, "the other id again")
	d.ID, d.Event.Before = "another-2", commit("zero")
	again(d, "the same ref and commit, reached from another one")

	// The same commit under another ref, another commit on the same ref, and
	// the same in another project are events of their own.
	seen := map[pipeline.RunID]bool{first.Run: true}
	for _, other := range []pipeline.RunID{
		x.accept("app", "refs/tags/v1.0.0", "one"), x.accept("app", "refs/heads/main", "two"), x.accept("web", "refs/heads/main", "one"),
	} {
		if seen[other] {
			x.Fatalf("run %s was started twice", other)
		}
		seen[other] = true
	}

	d = x.delivery("nothing", "refs/heads/main", "one")
	_, err = x.s.Accept(x.ctx, d)
	x.wants(err, pipeline.ErrNotFound)
}

func testAcceptParallel(x *suite) {
	const n = 16
	deliveries := make([]pipeline.Delivery, n)
	for i := range deliveries {
		deliveries[i] = x.delivery("app", "refs/heads/main", "one")
		deliveries[i].ID = deliveries[i/2*2].ID // two of each id
	}
	var wg sync.WaitGroup
	accepted := make([]pipeline.Accepted, n)
	errs := make([]error, n)
	for i, d := range deliveries {
		s := x.s
		if i%3 == 0 {
			s = x.other
		}
		wg.Go(func() { accepted[i], errs[i] = s.Accept(x.ctx, d) })
	}
	wg.Wait()
	fresh := 0
	for i, a := range accepted {
		x.must(errs[i])
		if a.Run != accepted[0].Run || a.Run == "" {
			x.Errorf("accept %d gave run %q, another gave %q", i, a.Run, accepted[0].Run)
		}
		if !a.Duplicate {
			fresh++
		}
	}
	if fresh != 1 {
		x.Fatalf("%d of %d were not duplicates, want 1", fresh, n)
	}
}

func testAcceptNothing(x *suite) {
	for _, e := range []pipeline.Event{
		{Kind: pipeline.EventPush, Ref: "refs/heads/gone", Before: commit("one"), Deleted: true},
		{Kind: pipeline.EventPing},
	} {
		d := x.delivery("app", "", "")
		d.Event = e
		for i := range 2 {
			a, err := x.s.Accept(x.ctx, d)
			x.must(err)
			if a.Run != "" || a.Duplicate != (i == 1) || a.Note == "" {
				x.Fatalf("%+v, time %d: accepted %+v, want a note and no run", e, i+1, a)
			}
		}
		d.ID += "-again"
		a, err := x.s.Accept(x.ctx, d)
		x.must(err)
		if a.Run != "" {
			x.Fatalf("%+v started %s", e, a.Run)
		}
	}
}

func (x *suite) request(image string) pipeline.PromotionRequest {
	return pipeline.PromotionRequest{Image: image, Environment: "prod", RequestedBy: "grace"}
}

func testPromote(x *suite) {
	_, rec := x.released("app", "refs/tags/v1.0.0", "one", "1.0.0")
	digest := string(rec.Built.Image.Digest)

	p, created, err := x.s.Promote(x.ctx, x.request(digest))
	x.must(err)
	if !created || p.ID == "" || p.Project != "app" || p.Image != rec.Built.Image || p.Environment != "prod" ||
		p.RequestedBy != "grace" || p.State != pipeline.StateQueued || p.CreatedAt.IsZero() {
		x.Fatalf("promotion is %+v (created %v)", p, created)
	}
	got, err := x.other.Promotion(x.ctx, p.ID)
	x.must(err)
	x.same(got, p)

	q, created, err := x.s.Promote(x.ctx, x.request(rec.Built.Image.String()))
	x.must(err)
	if !created || q.ID == p.ID {
		x.Fatalf("without an idempotency key a request is new: got %+v", q)
	}

	refuse := func(r pipeline.PromotionRequest, want error, says ...string) {
		x.Helper()
		_, created, err := x.s.Promote(x.ctx, r)
		x.wants(err, want)
		if created {
			x.Fatal("created, and an error")
		}
		for _, s := range says {
			if !strings.Contains(err.Error(), s) {
				x.Fatalf("%q does not say %q", err, s)
			}
		}
	}
	refuse(x.request(string(DigestOf("unknown"))), pipeline.ErrNotFound)
	refuse(x.request("sha256:short"), pipeline.ErrInvalid)
	refuse(x.request("dev.example/acme/app:1.0.0"), pipeline.ErrInvalid)
	refuse(x.request("elsewhere.example/acme/app@"+digest), pipeline.ErrInvalid, rec.Built.Image.Repository)
	r := x.request(digest)
	r.Environment = "moon"
	refuse(r, pipeline.ErrInvalid, "moon", "staging", "prod")
	r = x.request(digest)
	r.Project = "web"
	refuse(r, pipeline.ErrNotFound)

	// The same digest in a second project.
	x.released("web", "refs/tags/v1.0.0", "one", "1.0.0")
	refuse(x.request(digest), pipeline.ErrAmbiguous, "app", "web")
	r.Project = "web"
	q, _, err = x.s.Promote(x.ctx, r)
	x.must(err)
	if q.Project != "web" {
		x.Fatalf("promotion is %+v, want it in project web", q)
	}
	// Its repository tells which is meant.
	q, _, err = x.s.Promote(x.ctx, x.request(rec.Built.Image.String()))
	x.must(err)
	if q.Project != "app" {
		x.Fatalf("promotion is %+v, want it in project app", q)
	}

	// An image that its own run refused.
	_, rec = x.recorded("app", "refs/heads/main", "two", false)
	refuse(x.request(string(rec.Built.Image.Digest)), pipeline.ErrRefused)
}

func testPromoteOnce(x *suite) {
	_, rec := x.released("app", "refs/tags/v1.0.0", "one", "1.0.0")
	r := x.request(string(rec.Built.Image.Digest))
	r.IdempotencyKey = "key"
	first, created, err := x.s.Promote(x.ctx, r)
	x.must(err)
	if !created {
		x.Fatal("the first request created nothing")
	}
	x.must(x.s.FinishStage(x.ctx, x.start(first.ID.Job(), pipeline.StageAdmit), []byte(`{}`)))

	same := r
	for _, image := range []string{r.Image, rec.Built.Image.String()} {
		for _, project := range []string{"", "app"} {
			same.Image, same.Project = image, project
			p, created, err := x.other.Promote(x.ctx, same)
			x.must(err)
			if created || p.ID != first.ID || p.State != pipeline.StateRunning {
				x.Fatalf("the same request as %q in %q: got %+v (created %v), want %s as it stands", image, project, p, created, first.ID)
			}
		}
	}

	for name, change := range map[string]func(*pipeline.PromotionRequest){
		"another environment": func(r *pipeline.PromotionRequest) { r.Environment = "staging" },
		"another image":       func(r *pipeline.PromotionRequest) { r.Image = string(DigestOf("other")) },
		"another repository":  func(r *pipeline.PromotionRequest) { r.Image = "dev.example/acme/web@" + r.Image },
		"another project":     func(r *pipeline.PromotionRequest) { r.Project = "web" },
	} {
		other := r
		change(&other)
		if _, created, err := x.s.Promote(x.ctx, other); created {
			x.Fatalf("%s under the same key was created", name)
		} else {
			x.wants(err, pipeline.ErrConflict)
		}
	}

	r.RequestedBy = "ada"
	p, created, err := x.s.Promote(x.ctx, r)
	x.must(err)
	if !created || p.ID == first.ID {
		x.Fatalf("another requester's key is another key: got %+v", p)
	}
}

func testPromoteParallel(x *suite) {
	_, rec := x.released("app", "refs/tags/v1.0.0", "one", "1.0.0")
	r := x.request(string(rec.Built.Image.Digest))
	r.IdempotencyKey = "key"
	const n = 12
	var wg sync.WaitGroup
	ids, fresh, errs := make([]pipeline.PromotionID, n), make([]bool, n), make([]error, n)
	for i := range n {
		wg.Go(func() {
			p, created, err := x.s.Promote(x.ctx, r)
			ids[i], fresh[i], errs[i] = p.ID, created, err
		})
	}
	wg.Wait()
	created := 0
	for i := range n {
		x.must(errs[i])
		if ids[i] != ids[0] {
			x.Errorf("request %d gave %s, another %s", i, ids[i], ids[0])
		}
		if fresh[i] {
			created++
		}
	}
	if created != 1 {
		x.Fatalf("%d requests say they created the promotion, want 1", created)
	}
}
