package postgres_test

import (
	"encoding/json"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/pipelinetest"
	"github.com/dray-project/dray/pipeline/postgres"
	"github.com/dray-project/dray/pipeline/postgres/postgrestest"
)

func finding(id string, severity pipeline.Severity) pipeline.Finding {
	return pipeline.Finding{ID: id, Severity: severity, Package: "openssl", Version: "3.0.11", FixedIn: "3.0.12", Title: "about " + id}
}

func databaseNamed(name string) pipeline.VulnerabilityDatabase {
	return pipeline.VulnerabilityDatabase{Reference: "db:2", Digest: pipelinetest.DigestOf(name), UpdatedAt: time.Now().UTC().Truncate(time.Microsecond)}
}

func unmatched(t *testing.T, s *postgres.Store, db pipeline.VulnerabilityDatabase, held bool) []pipeline.Matchable {
	t.Helper()
	list, err := s.Unmatched(t.Context(), db.Digest, held, "", 100)
	check(t, err)
	return list
}

// matched is what a pass makes of an image: the same findings on every platform.
func matched(m pipeline.Matchable, findings ...pipeline.Finding) pipeline.Match {
	out := pipeline.Match{Matchable: m}
	for range m.Platforms {
		out.Findings = append(out.Findings, findings)
	}
	return out
}

func details(t *testing.T, s *postgres.Store, rec pipeline.ImageRecord) pipeline.ImageDetail {
	t.Helper()
	d, err := s.ImageDetails(t.Context(), rec.Built.Image.Digest, rec.Project)
	check(t, err)
	return d[0]
}

func ids(d pipeline.ImageDetail) (out []string) {
	for _, f := range d.Findings {
		out = append(out, f.ID)
	}
	return out
}

func TestRematch(t *testing.T) {
	s := newStore(t, postgrestest.New(t))
	syncSample(t, s)
	old, bad := finding("CVE-2026-0001", pipeline.SeverityLow), finding("CVE-2026-0002", pipeline.SeverityCritical)
	inProd := release(t, s, "app", "a", nil, []pipeline.Finding{old})
	outside := release(t, s, "app", "b", nil, []pipeline.Finding{old})
	elsewhere := release(t, s, "web", "a", nil, nil)
	place(t, s, promote(t, s, inProd, "prod", "rita"))

	db := databaseNamed("second")
	pass, err := s.StartRematch(t.Context(), db)
	check(t, err)
	again, err := s.StartRematch(t.Context(), db)
	check(t, err)
	if pass != again || pass.Database != db || pass.FinishedAt != nil {
		t.Fatalf("begun twice: %+v and %+v", pass, again)
	}
	held, others := unmatched(t, s, db, true), unmatched(t, s, db, false)
	if len(held) != 1 || held[0].Run != inProd.Run || !slices.Equal(held[0].Environments, []string{"prod"}) || len(held[0].Platforms) != 2 ||
		held[0].From != inProd.Report.Database.Digest || len(held[0].Keys) != 2 || held[0].Image != inProd.Built.Image {
		t.Fatalf("held: %+v", held)
	}
	if len(others) != 2 || others[0].Run != outside.Run || others[1].Run != elsewhere.Run {
		t.Fatalf("others: %+v", others)
	}
	page, err := s.Unmatched(t.Context(), db.Digest, false, others[0].Cursor, 1)
	check(t, err)
	if len(page) != 1 || page[0].Run != elsewhere.Run {
		t.Fatalf("the page after the first: %+v", page)
	}

	m := matched(held[0], bad)
	m.Verdicts = []pipeline.Verdict{{Environment: "prod", Passed: true, Decision: pipeline.Decision{Rules: []pipeline.RuleResult{{Rule: "severity"}}, EvaluatedAt: time.Now()}}}
	m.Notices = []pipeline.Notice{{Key: "k", Event: pipeline.NoticeFindings, Project: "app", Environment: "prod", Summary: "look"}}
	failed := pipeline.Match{Matchable: others[1], Failed: "the registry is gone"}
	unaffected := pipeline.Match{Matchable: others[0], Unaffected: true}
	for range 2 { // the answer to the first can be lost
		check(t, s.RecordMatches(t.Context(), pass.ID, []pipeline.Match{m, unaffected, failed}))
	}
	done, err := s.FinishRematch(t.Context(), pass.ID)
	check(t, err)
	want := pass
	want.FinishedAt = done.FinishedAt
	want.Images, want.Unaffected, want.Failed, want.Changed, want.Appeared, want.Gone, want.Refused = 3, 1, 1, 1, 2, 2, 1
	if done != want || done.FinishedAt == nil {
		t.Errorf("the pass is %+v, want %+v", done, want)
	}
	if d := details(t, s, inProd); !slices.Equal(ids(d), []string{bad.ID}) || d.Database != db || d.MatchedAt == nil {
		t.Errorf("details say %v, %+v, %v", ids(d), d.Database, d.MatchedAt)
	}
	if d := details(t, s, outside); !slices.Equal(ids(d), []string{old.ID}) || d.Database != db {
		t.Errorf("details of what was not concerned: %v, %+v", ids(d), d.Database)
	}
	if d := details(t, s, elsewhere); d.Database.Digest != elsewhere.Report.Database.Digest || d.MatchedAt != nil {
		t.Errorf("details of what failed: %+v", d.Database)
	}
	// What was recorded is not changed by what is known later.
	rec, err := s.ImageRecord(t.Context(), "app", inProd.Built.Image.Digest)
	check(t, err)
	if len(rec.Report.Platforms[0].Findings) != 1 || rec.Report.Platforms[0].Findings[0].ID != old.ID {
		t.Errorf("the record's own findings are %+v", rec.Report.Platforms[0].Findings)
	}
	if left := append(unmatched(t, s, db, true), unmatched(t, s, db, false)...); len(left) != 1 || left[0].Run != elsewhere.Run {
		t.Errorf("left: %+v", left)
	}

	// A finding comes back, and one that is rated otherwise is another.
	third := databaseNamed("third")
	pass, err = s.StartRematch(t.Context(), third)
	check(t, err)
	rated := bad
	rated.Severity = pipeline.SeverityHigh
	held = unmatched(t, s, third, true)
	if len(held) != 1 || held[0].From != db.Digest {
		t.Fatalf("held: %+v", held)
	}
	check(t, s.RecordMatches(t.Context(), pass.ID, []pipeline.Match{matched(held[0], rated, old)}))
	now, err := s.CurrentFindings(t.Context(), inProd.Run)
	check(t, err)
	if len(now) != 2 || !slices.Equal(now[0], []pipeline.Finding{rated, old}) || !slices.Equal(now[0], now[1]) {
		t.Errorf("current findings are %+v", now)
	}
	// A newer record counts by itself, and a match of the one before is left alone.
	others = unmatched(t, s, third, false)
	newer := recordAgain(t, s, outside, third)
	check(t, s.RecordMatches(t.Context(), pass.ID, []pipeline.Match{matched(others[0], bad)}))
	if d := details(t, s, outside); d.Run != newer || len(d.Findings) != 0 || d.Database.Digest != third.Digest {
		t.Errorf("after a newer record: %s %v %+v", d.Run, ids(d), d.Database)
	}
	list, err := s.Rematches(t.Context(), pipeline.Page{})
	check(t, err)
	if len(list) != 2 || list[0].ID != pass.ID || list[0].Images != 1 || list[1].FinishedAt == nil {
		t.Errorf("passes: %+v", list)
	}
	if err := s.RecordMatches(t.Context(), "rmt_none", nil); !errors.Is(err, pipeline.ErrNotFound) {
		t.Errorf("matches of a pass that does not exist: %v", err)
	}
}

// recordAgain is another run of the same commit, that found nothing.
func recordAgain(t testing.TB, s *postgres.Store, rec pipeline.ImageRecord, db pipeline.VulnerabilityDatabase) pipeline.RunID {
	t.Helper()
	id := push(t, s, rec.Project, "refs/tags/v9.9.9", string(rec.Built.Image.Digest))
	check(t, s.RecordBuilt(t.Context(), start(t, s, id.Job(), pipeline.StageBuild), rec.Built))
	rec.Run, rec.Report.Database = id, db
	rec.Report.Platforms = slices.Clone(rec.Report.Platforms)
	for i := range rec.Report.Platforms {
		rec.Report.Platforms[i].Findings = nil
	}
	check(t, s.RecordImage(t.Context(), start(t, s, id.Job(), pipeline.StageRecord), rec))
	return id
}

func TestAnalysesAreKeptByManifest(t *testing.T) {
	s := newStore(t, postgrestest.New(t))
	syncSample(t, s)
	rec := release(t, s, "app", "a", nil, nil)
	digests := []pipeline.Digest{rec.Built.Platforms[0].Digest, rec.Built.Platforms[1].Digest}
	got, err := s.Analyses(t.Context(), digests)
	check(t, err)
	if len(got) != 0 {
		t.Fatalf("analyses of a scan that kept none: %v", got)
	}
	db := databaseNamed("second")
	pass, err := s.StartRematch(t.Context(), db)
	check(t, err)
	m := matched(unmatched(t, s, db, false)[0])
	m.Scanned, m.Analyses = true, []pipeline.Analysis{{Data: []byte{0, 1, 2}, Keys: []byte("12345678")}, {Data: []byte("x")}}
	check(t, s.RecordMatches(t.Context(), pass.ID, []pipeline.Match{m}))
	got, err = s.Analyses(t.Context(), digests)
	check(t, err)
	if len(got) != 2 || string(got[digests[0]].Data) != "\x00\x01\x02" || string(got[digests[0]].Keys) != "12345678" || len(got[digests[1]].Keys) != 0 {
		t.Errorf("analyses: %v", got)
	}
	next := unmatched(t, s, databaseNamed("third"), false)
	if len(next) != 1 || string(next[0].Keys[0]) != "12345678" || len(next[0].Keys[1]) != 0 {
		t.Errorf("keys: %+v", next)
	}
}

func TestNotices(t *testing.T) {
	s := newStore(t, postgrestest.New(t))
	syncSample(t, s)
	release(t, s, "app", "a", nil, nil)
	db := databaseNamed("second")
	pass, err := s.StartRematch(t.Context(), db)
	check(t, err)
	m := matched(unmatched(t, s, db, false)[0])
	for _, k := range []string{"1", "2", "1"} {
		m.Notices = append(m.Notices, pipeline.Notice{Key: k, Event: pipeline.NoticeFindings, Project: "app", Environment: "prod", Summary: "s" + k})
	}
	m.Notices = append(m.Notices, pipeline.Notice{Key: "3", Event: pipeline.NoticeDrift, Project: "app", Summary: "s3"})
	check(t, s.RecordMatches(t.Context(), pass.ID, []pipeline.Match{m}))
	give := func() int {
		n, err := s.GiveNotices(t.Context(), func(n pipeline.Notice) []string {
			if n.Event == pipeline.NoticeDrift {
				return []string{"b"}
			}
			return []string{"a", "b"}
		})
		check(t, err)
		return n
	}
	if n := give(); n != 3 {
		t.Fatalf("%d notices were given, want each once: 3", n)
	}
	if n := give(); n != 0 {
		t.Fatalf("%d were given again", n)
	}
	due := func(receiver string, patience time.Duration) (out []string) {
		t.Helper()
		list, err := s.DueNotices(t.Context(), receiver, patience, 10)
		check(t, err)
		for _, d := range list {
			var n pipeline.Notice
			check(t, json.Unmarshal(d.Body, &n))
			out = append(out, n.Summary)
		}
		return out
	}
	first := func(receiver string) pipeline.NoticeDelivery {
		list, err := s.DueNotices(t.Context(), receiver, time.Hour, 1)
		check(t, err)
		return list[0]
	}
	if got := due("a", time.Hour); !slices.Equal(got, []string{"s1", "s2"}) {
		t.Fatalf("a: %v", got)
	}
	if got := due("b", time.Hour); !slices.Equal(got, []string{"s1", "s2", "s3"}) {
		t.Fatalf("b: %v", got)
	}
	// One that fails holds back those behind it, for a while.
	one := first("b")
	check(t, s.NoticeFailed(t.Context(), "b", one.ID, "500", time.Hour))
	if got := due("b", time.Hour); len(got) != 0 {
		t.Errorf("behind one that failed: %v", got)
	}
	if got := due("b", 0); !slices.Equal(got, []string{"s2", "s3"}) {
		t.Errorf("without patience: %v", got)
	}
	if got := due("a", time.Hour); len(got) != 2 {
		t.Errorf("another receiver waits too: %v", got)
	}
	check(t, s.NoticeFailed(t.Context(), "b", one.ID, "500", 0))
	if d := first("b"); d.ID != one.ID || d.Attempts != 2 || string(d.Body) != string(one.Body) {
		t.Errorf("the next attempt: %+v", d)
	}
	check(t, s.NoticeGivenUp(t.Context(), "b", one.ID, "410"))
	two := first("b")
	check(t, s.NoticeDelivered(t.Context(), "b", two.ID))
	if got := due("b", time.Hour); !slices.Equal(got, []string{"s3"}) {
		t.Errorf("after one was given up and one delivered: %v", got)
	}
	check(t, s.PruneNotices(t.Context()))
}
