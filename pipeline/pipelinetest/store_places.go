package pipelinetest

import (
	"slices"
	"strings"
	"time"

	"github.com/dray-project/dray/pipeline"
)

func (x *waiters) standing(environment string, rec pipeline.ImageRecord) pipeline.Standing {
	x.Helper()
	st, err := x.s.Standing(x.ctx, "app", environment, rec.Built.Image.Digest)
	x.must(err)
	if d := time.Since(st.Now); d < -time.Minute || d > time.Minute {
		x.Fatalf("its clock says %s", st.Now)
	}
	return st
}

func testRollbackTargets(x *waiters) {
	one, two, three := x.release("one", "1.0.0"), x.release("two", "2.0.0"), x.release("three", "3.0.0")
	back := pipeline.PromotionRequest{Project: "app", Environment: "prod", Action: pipeline.ActionRollback, RequestedBy: "rita"}
	cannot := func(image string, want error) {
		x.Helper()
		r := back
		r.Image = image
		_, _, err := x.s.Promote(x.ctx, r)
		x.wants(err, want)
	}
	digest := func(rec pipeline.ImageRecord) string { return string(rec.Built.Image.Digest) }
	wantCurrent := func(rec pipeline.ImageRecord) {
		x.Helper()
		if c := x.standing("prod", rec).Current; c == nil || c.Image.Digest != rec.Built.Image.Digest {
			x.Fatalf("prod holds %+v, want %s", c, rec.Built.Image)
		}
	}
	cannot("", pipeline.ErrConflict) // it is empty
	cannot(digest(one), pipeline.ErrInvalid)
	x.placed(one, "prod")
	cannot("", pipeline.ErrConflict) // it held nothing before
	cannot(digest(one), pipeline.ErrConflict)
	cannot(digest(two), pipeline.ErrInvalid)
	x.placed(two, "prod")
	x.placed(two, "prod") // again: what it held before is still the first
	x.placed(three, "prod")

	p := x.rolledBack(back)
	if p.Action != pipeline.ActionRollback || p.Image.Digest != two.Built.Image.Digest {
		x.Fatalf("it went back with %+v, want to the second image", p)
	}
	wantCurrent(two)
	// What was withdrawn is no place to go back to, unless it is named.
	if p := x.rolledBack(back); p.Image.Digest != one.Built.Image.Digest {
		x.Fatalf("it went back to %s, want the first image", p.Image)
	}
	cannot("", pipeline.ErrConflict)
	to := back
	to.Image = digest(three)
	x.rolledBack(to)
	wantCurrent(three)

	// Of a request that failed nothing remains.
	p = x.ask(pipeline.PromotionRequest{Project: "app", Environment: "prod", Image: digest(two)})
	x.enter(p)
	x.must(x.s.End(x.ctx, p.ID.Job(), pipeline.Ending{State: pipeline.StateFailed, Reason: "no registry"}))
	wantCurrent(three)

	if _, _, err := x.s.Promote(x.ctx, pipeline.PromotionRequest{Environment: "staging", Project: "app", Image: digest(one), Action: pipeline.ActionRollback, RequestedBy: "rita"}); err == nil {
		x.Fatal("staging never had it, and goes back to it")
	}
}

func testRollbackOnce(x *waiters) {
	one, two, three := x.release("one", "1.0.0"), x.release("two", "2.0.0"), x.release("three", "3.0.0")
	x.placed(one, "prod")
	x.placed(two, "prod")
	r := pipeline.PromotionRequest{Project: "app", Environment: "prod", Action: pipeline.ActionRollback, RequestedBy: "rita", IdempotencyKey: "k"}
	p := x.ask(r)
	x.enter(p)
	x.settle(p)
	x.placed(three, "prod")
	again, created, err := x.s.Promote(x.ctx, r)
	x.must(err)
	if created || again.ID != p.ID {
		x.Fatalf("the same request gives %s (created: %v), want %s", again.ID, created, p.ID)
	}
}

func testReached(x *waiters) {
	one, two := x.release("one", "1.0.0"), x.release("two", "2.0.0")
	fact := func(rec pipeline.ImageRecord, environment string) *pipeline.ReachedFact {
		x.Helper()
		st := x.standing("prod", rec)
		i := slices.IndexFunc(st.Reached, func(r pipeline.ReachedFact) bool { return r.Environment == environment })
		if i < 0 {
			return nil
		}
		return &st.Reached[i]
	}
	want := func(rec pipeline.ImageRecord, since time.Time, current, withdrawn bool) {
		x.Helper()
		f := fact(rec, "staging")
		if f == nil || !f.Since.Equal(since) || f.Current != current || f.Withdrawn != withdrawn {
			x.Fatalf("of staging it is said %+v, want since %s, current: %v, withdrawn: %v", f, since, current, withdrawn)
		}
	}
	if f := fact(one, "staging"); f != nil {
		x.Fatalf("nothing was promoted, and it is said %+v", f)
	}
	p := x.promote(one, "staging")
	x.enter(p)
	if f := fact(one, "staging"); f != nil {
		x.Fatalf("the promotion has not ended, and it is said %+v", f)
	}
	x.settle(p)
	first := *x.promotion(p).FinishedAt
	want(one, first, true, false)
	if f := fact(one, "prod"); f != nil {
		x.Fatalf("of prod it is said %+v", f)
	}
	second := *x.placed(two, "staging").FinishedAt
	want(one, first, false, false) // newer ones that pass through take nothing away
	want(two, second, true, false)
	x.placed(two, "staging")
	want(two, second, true, false) // once more is no new start

	back := x.rolledBack(pipeline.PromotionRequest{Project: "app", Environment: "staging"})
	if back.Image.Digest != one.Built.Image.Digest {
		x.Fatalf("it went back to %s", back.Image)
	}
	want(one, first, true, false)
	want(two, second, false, true)
	if w := x.standing("staging", one).Withdrawn; !slices.Equal(w, []string{"2.0.0"}) {
		x.Fatalf("withdrawn are %q", w)
	}
	if w := x.standing("prod", one).Withdrawn; len(w) != 0 {
		x.Fatalf("withdrawn of prod are %q", w)
	}
	third := *x.placed(two, "staging").FinishedAt
	want(two, third, true, false) // it starts anew
	want(one, first, false, false)
	if w := x.standing("staging", one).Withdrawn; len(w) != 0 {
		x.Fatalf("withdrawn are %q", w)
	}
}

func testCurrent(x *waiters) {
	one := x.release("one", "1.0.0")
	id := x.accept("app", "refs/tags/v1.0.1-rc.1", "one")
	x.must(x.s.RecordTags(x.ctx, x.start(id.Job(), pipeline.StageTag), []pipeline.TagMove{
		{Repository: one.Built.Image.Repository, Tag: "1.0.1-rc.1", To: one.Built.Image.Digest, Moved: true, Held: true}}, nil))
	st := x.standing("prod", one)
	if st.Current != nil || strings.Join(st.Versions, " ") != "1.0.1-rc.1 1.0.0" {
		x.Fatalf("of an empty environment it is said %+v", st)
	}
	p := x.placed(one, "prod")
	e, _ := SampleProject("app").Environment("prod")
	want := pipeline.PlacedImage{Promotion: p.ID, Image: pipeline.Image{Repository: e.Repository, Digest: one.Built.Image.Digest},
		Commit: one.Built.Source.Commit, Versions: []string{"1.0.1-rc.1", "1.0.0"}, Since: *p.FinishedAt, By: "rita", Action: pipeline.ActionPromote}
	x.same(x.standing("prod", x.release("two", "2.0.0")).Current, want)
	if c := x.standing("staging", one).Current; c != nil {
		x.Fatalf("staging holds %+v", c)
	}
	if c := x.standing("", one).Current; c != nil {
		x.Fatalf("where images are built to holds %+v", c)
	}
}

func testPushes(x *waiters) {
	id := x.accept("app", "refs/heads/main", "one")
	x.must(x.s.End(x.ctx, id.Job(), pipeline.Ending{State: pipeline.StateFailed, Reason: "no disk"}))
	if _, _, err := x.s.Retry(x.ctx, id, "rita"); err != nil {
		x.Fatal(err)
	}
	_, err := x.s.Accept(x.ctx, x.delivery("app", "refs/heads/main", "one")) // the same event once more
	x.must(err)
	time.Sleep(2 * time.Millisecond)
	d := x.delivery("app", "refs/heads/main", "two")
	d.Event.Before, d.ReceivedAt = commit("one"), sampleTime.Add(time.Second)
	d.Event.Commits = []pipeline.Commit{{SHA: commit("two"), Title: "the second", Author: "ada", At: sampleTime}}
	_, err = x.s.Accept(x.ctx, d)
	x.must(err)
	x.accept("web", "refs/heads/main", "three")
	st, err := x.s.Standing(x.ctx, "app", "prod", DigestOf("unknown"))
	x.must(err)
	if len(st.Pushes) != 2 || st.Pushes[1].After != commit("one") {
		x.Fatalf("pushed was %+v", st.Pushes)
	}
	x.same(st.Pushes[0], d.Event)
}

func testPlaced(x *waiters) {
	one, two := x.release("one", "1.0.0"), x.release("two", "2.0.0")
	list := func() (all []pipeline.Placed) {
		x.Helper()
		for after := pipeline.PromotionID(""); ; {
			part, err := x.s.Placed(x.ctx, after, 1)
			x.must(err)
			if len(part) == 0 {
				return all
			}
			all, after = append(all, part...), part[0].Promotion
		}
	}
	if got := list(); len(got) != 0 {
		x.Fatalf("nothing was promoted, and there is %+v", got)
	}
	again := x.placed(one, "prod", "1.0.0", "latest")
	first := x.placed(one, "prod", "1.0.0", "latest")
	open := x.promote(two, "prod")
	x.enter(open)
	e, _ := SampleProject("app").Environment("prod")
	dest := pipeline.Image{Repository: e.Repository, Digest: one.Built.Image.Digest}
	want := pipeline.Placed{Project: "app", Environment: "prod", Promotion: first.ID, Source: one.Built.Image, Image: dest, Current: true,
		Contents: []pipeline.Content{{Digest: dest.Digest, Size: 12, Manifest: true}, {Digest: DigestOf("blob", dest.Digest), Size: 1 << 33},
			{Digest: DigestOf("referrer", dest.Digest), Size: 5, Manifest: true, Subject: dest.Digest}},
		Verified: []pipeline.Verified{verified(dest)}, Tags: []string{"1.0.0", "latest"}}
	x.same(list(), []pipeline.Placed{want})
	at, err := x.s.PlacedAt(x.ctx, first.ID)
	x.must(err)
	x.same(at, want)
	for _, p := range []pipeline.Promotion{again, open} { // the one is not the newest, the other not at its end
		_, err = x.s.PlacedAt(x.ctx, p.ID)
		x.wants(err, pipeline.ErrNotFound)
	}

	x.settle(open, "2.0.0", "latest")
	want.Current, want.Tags = false, []string{"1.0.0"}
	got := list()
	if len(got) != 2 || got[1].Promotion != open.ID || !got[1].Current || strings.Join(got[1].Tags, " ") != "2.0.0 latest" {
		x.Fatalf("there is %+v", got)
	}
	x.same(got[0], want)

	// In staging, what comes next takes the only tag.
	gone := x.placed(one, "staging", "latest")
	x.placed(two, "staging", "latest")
	_, err = x.s.PlacedAt(x.ctx, gone.ID)
	x.wants(err, pipeline.ErrNotFound)
	if got := list(); len(got) != 3 {
		x.Fatalf("there is %+v", got)
	}
}

func testDrift(x *waiters) {
	p := x.placed(x.release("one", "1.0.0"), "prod", "1.0.0", "latest")
	at, err := x.s.PlacedAt(x.ctx, p.ID)
	x.must(err)
	drift := func(kind, subject string) pipeline.Drift {
		return pipeline.Drift{Project: "app", Environment: "prod", Image: at.Image, Kind: kind, Subject: subject, Detail: "it is gone", DetectedAt: sampleTime, Blocked: "no"}
	}
	known, err := x.s.RecordDrift(x.ctx, at, []pipeline.Drift{drift(pipeline.DriftTag, "latest"), drift(pipeline.DriftMissing, "sha256:x")})
	x.must(err)
	if len(known) != 2 || known[0].ID == "" || known[0].ID == known[1].ID || known[0].Subject != "latest" {
		x.Fatalf("known is %+v", known)
	}
	tag, missing := known[0].ID, known[1].ID

	// Found again it is the same; it was detected when it was; and what is said of
	// it is what is said last.
	later := drift(pipeline.DriftTag, "latest")
	later.Detail, later.Blocked, later.DetectedAt = "the tag names another", "somebody moved it", sampleTime.Add(time.Hour)
	known, err = x.s.RecordDrift(x.ctx, at, []pipeline.Drift{later, drift(pipeline.DriftMissing, "sha256:x")})
	x.must(err)
	if len(known) != 2 || known[0].ID != tag || known[1].ID != missing || known[0].Detail != later.Detail || known[0].Blocked != later.Blocked ||
		!known[0].DetectedAt.Equal(sampleTime) || known[0].ResolvedAt != nil {
		x.Fatalf("known is %+v", known)
	}

	// What is not found any more is resolved; what is repaired is known once more.
	done := drift(pipeline.DriftMissing, "sha256:x")
	at1 := sampleTime.Add(2 * time.Hour)
	done.RepairedAt, done.Repair, done.Blocked = &at1, "copied again", ""
	known, err = x.s.RecordDrift(x.ctx, at, []pipeline.Drift{done})
	x.must(err)
	if len(known) != 1 || known[0].ID != missing || known[0].RepairedAt == nil || !known[0].RepairedAt.Equal(at1) || known[0].Blocked != "" {
		x.Fatalf("known is %+v", known)
	}
	known, err = x.s.RecordDrift(x.ctx, at, nil)
	x.must(err)
	if len(known) != 0 {
		x.Fatalf("known is %+v", known)
	}
	// The next time it is another one.
	known, err = x.s.RecordDrift(x.ctx, at, []pipeline.Drift{drift(pipeline.DriftTag, "latest"), done})
	x.must(err)
	if len(known) != 2 || known[0].ID == tag || known[1].ID == missing || known[1].RepairedAt == nil {
		x.Fatalf("known is %+v", known)
	}
}
