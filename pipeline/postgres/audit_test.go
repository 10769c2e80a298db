package postgres_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/pipelinetest"
	"github.com/dray-project/dray/pipeline/postgres"
	"github.com/dray-project/dray/pipeline/postgres/postgrestest"
)

var everything = pipeline.Reach{All: true}

func debianPackage(name, version string, licenses ...string) pipeline.Package {
	return pipeline.Package{Name: name, Version: version, Type: "debian", PURL: "pkg:deb/debian/" + name + "@" + strings.ReplaceAll(version, "+", "%2B") + "?arch=amd64&distro=debian-12",
		Layer: "sha256:layer", Licenses: licenses}
}

// audited is a small history: three images of app, one of web; app's prod went
// one, two, three, and back to two.
type audited struct {
	*postgres.Store
	one, two, three, web     pipeline.ImageRecord
	toOne, toTwo, toThree, p pipeline.Promotion
	name                     map[pipeline.Digest]string
}

func newAudited(t *testing.T) audited {
	s := newStore(t, postgrestest.New(t))
	syncSample(t, s)
	a := audited{Store: s}
	cve := func(pkg, version, fixed string) []pipeline.Finding {
		return []pipeline.Finding{{ID: "CVE-2024-45337", Severity: pipeline.SeverityCritical, Package: pkg, Version: version, FixedIn: fixed, Title: "Bypass"}}
	}
	ssl := func(v string) pipeline.Package { return debianPackage("openssl", v, "OpenSSL", "Apache-2.0") }
	bash := debianPackage("bash", "5.2.15-2+b7", "GPL-3.0-or-later")
	a.one = release(t, s, "app", "one", []pipeline.Package{pkg("crypto", "v0.30.0"), ssl("3.0.9-1"), bash, pkg("devel", "(devel)")}, cve("crypto", "v0.30.0", "0.31.0"), "1.0.0")
	a.two = release(t, s, "app", "two", []pipeline.Package{pkg("crypto", "v0.30.0"), ssl("3.0.11-1~deb12u2"), bash, {Name: "left-pad", Version: "1.3.0", Type: "node-pkg", PURL: "pkg:npm/%40acme/left-pad@1.3.0", Licenses: []string{"MIT OR WTFPL"}}},
		cve("crypto", "v0.30.0", "0.31.0"), "2.0.0")
	a.three = release(t, s, "app", "three", []pipeline.Package{pkg("crypto", "v0.31.0"), ssl("3.0.11-1~deb12u2"), pkg("devel", "(devel)")}, nil, "3.0.0")
	a.web = release(t, s, "web", "web", []pipeline.Package{pkg("crypto", "v0.30.0"), ssl("1:0.9-1")}, cve("crypto", "v0.30.0", "0.31.0"), "1.0.0")
	a.toOne = promote(t, s, a.one, "prod", "grace")
	place(t, s, a.toOne)
	a.toTwo = promote(t, s, a.two, "prod", "rita")
	place(t, s, a.toTwo)
	a.toThree = promote(t, s, a.three, "prod", "rita")
	place(t, s, a.toThree)
	back, _, err := s.Promote(t.Context(), pipeline.PromotionRequest{Project: "app", Environment: "prod", Action: pipeline.ActionRollback, RequestedBy: "ada"})
	check(t, err)
	place(t, s, back)
	a.p = back
	a.name = map[pipeline.Digest]string{a.one.Built.Image.Digest: "one", a.two.Built.Image.Digest: "two", a.three.Built.Image.Digest: "three", a.web.Built.Image.Digest: "web"}
	return a
}

func (a audited) packages(t *testing.T, q pipeline.PackageAuditQuery) string {
	t.Helper()
	uses, err := a.AuditPackages(t.Context(), q)
	check(t, err)
	var out []string
	for _, u := range uses {
		mark := ""
		if u.Uncomparable {
			mark = "?"
		}
		out = append(out, a.name[u.Image.Digest]+" "+u.Package.Version+mark)
	}
	return strings.Join(out, ", ")
}

func TestAuditPackages(t *testing.T) {
	a := newAudited(t)
	scope := func(s pipeline.AuditScope) pipeline.AuditScope {
		if len(s.Reach.Projects) == 0 {
			s.Reach = everything
		}
		return s
	}
	past, future := time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	for _, c := range []struct {
		what string
		q    pipeline.PackageAuditQuery
		want string
	}{
		{"by name", pipeline.PackageAuditQuery{Name: "crypto"}, "web v0.30.0, three v0.31.0, two v0.30.0, one v0.30.0"},
		{"by version", pipeline.PackageAuditQuery{Name: "crypto", Version: "v0.31.0"}, "three v0.31.0"},
		{"by range", pipeline.PackageAuditQuery{Name: "crypto", Range: "<0.31.0"}, "web v0.30.0, two v0.30.0, one v0.30.0"},
		{"by a Debian range", pipeline.PackageAuditQuery{Name: "openssl", Range: "<3.0.11-1~deb12u2"}, "one 3.0.9-1"},
		{"with an epoch", pipeline.PackageAuditQuery{Name: "openssl", Range: ">3.1"}, "web 1:0.9-1"},
		{"what cannot be compared is told", pipeline.PackageAuditQuery{Name: "devel", Range: "<1.0"}, "three (devel)?, one (devel)?"},
		{"by purl without version", pipeline.PackageAuditQuery{PURL: "pkg:golang/crypto"}, "web v0.30.0, three v0.31.0, two v0.30.0, one v0.30.0"},
		{"by purl with version", pipeline.PackageAuditQuery{PURL: "pkg:golang/crypto@v0.31.0"}, "three v0.31.0"},
		{"by purl with qualifiers", pipeline.PackageAuditQuery{PURL: "pkg:deb/debian/bash@5.2.15-2%2Bb7?distro=debian-12"}, "two 5.2.15-2+b7, one 5.2.15-2+b7"},
		{"by purl, another distribution", pipeline.PackageAuditQuery{PURL: "pkg:deb/debian/bash?distro=debian-11"}, ""},
		{"by purl, an npm scope as people write it", pipeline.PackageAuditQuery{PURL: "pkg:npm/@acme/left-pad"}, "two 1.3.0"},
		{"by purl and range", pipeline.PackageAuditQuery{PURL: "pkg:npm/@acme/left-pad", Range: "^1.2"}, "two 1.3.0"},
		{"by licence family", pipeline.PackageAuditQuery{License: "GPL-3.0"}, "two 5.2.15-2+b7, one 5.2.15-2+b7"},
		{"by licence as written", pipeline.PackageAuditQuery{License: "gpl-3.0-OR-later"}, "two 5.2.15-2+b7, one 5.2.15-2+b7"},
		{"by another licence", pipeline.PackageAuditQuery{License: "GPL-3.0-only"}, ""},
		{"by part of an expression", pipeline.PackageAuditQuery{License: "wtfpl"}, "two 1.3.0"},
		{"by licence and name", pipeline.PackageAuditQuery{License: "Apache-2.0", Name: "openssl", Range: "<3.0.10"}, "one 3.0.9-1"},
		{"of a project", pipeline.PackageAuditQuery{Name: "crypto", AuditScope: pipeline.AuditScope{Project: "web"}}, "web v0.30.0"},
		{"within reach", pipeline.PackageAuditQuery{Name: "crypto", AuditScope: pipeline.AuditScope{Reach: pipeline.Reach{Projects: []string{"web", "gone"}}}}, "web v0.30.0"},
		{"promoted now", pipeline.PackageAuditQuery{Name: "crypto", AuditScope: pipeline.AuditScope{Promoted: "now"}}, "two v0.30.0"},
		{"promoted ever", pipeline.PackageAuditQuery{Name: "crypto", AuditScope: pipeline.AuditScope{Promoted: "ever"}}, "three v0.31.0, two v0.30.0, one v0.30.0"},
		{"in an environment", pipeline.PackageAuditQuery{Name: "crypto", AuditScope: pipeline.AuditScope{Environment: "prod"}}, "two v0.30.0"},
		{"in another", pipeline.PackageAuditQuery{Name: "crypto", AuditScope: pipeline.AuditScope{Environment: "staging"}}, ""},
		{"promoted before an hour ago", pipeline.PackageAuditQuery{Name: "crypto", AuditScope: pipeline.AuditScope{Promoted: "ever", Until: &past}}, ""},
		{"promoted and there within the hour", pipeline.PackageAuditQuery{Name: "crypto", AuditScope: pipeline.AuditScope{Promoted: "ever", Since: &past, Until: &future}}, "three v0.31.0, two v0.30.0, one v0.30.0"},
		{"came there in the future", pipeline.PackageAuditQuery{Name: "crypto", AuditScope: pipeline.AuditScope{Promoted: "now", Since: &future}}, ""},
		{"recorded within the hour", pipeline.PackageAuditQuery{Name: "zlib", AuditScope: pipeline.AuditScope{Since: &past}}, ""},
		{"recorded in the future", pipeline.PackageAuditQuery{Name: "crypto", AuditScope: pipeline.AuditScope{Since: &future}}, ""},
		{"nothing", pipeline.PackageAuditQuery{Name: "nothing"}, ""},
	} {
		c.q.AuditScope = scope(c.q.AuditScope)
		if got := a.packages(t, c.q); got != c.want {
			t.Errorf("%s: got %q, want %q", c.what, got, c.want)
		}
		// Item by item, the same list.
		var paged []string
		c.q.Page.Limit = 1
		for {
			uses, err := a.AuditPackages(t.Context(), c.q)
			check(t, err)
			if len(uses) == 0 {
				break
			}
			c.q.Page.After = uses[0].ID
			paged = append(paged, a.name[uses[0].Image.Digest]+" "+uses[0].Package.Version)
		}
		if got := strings.Join(paged, ", "); got != strings.ReplaceAll(c.want, "?", "") {
			t.Errorf("%s, paged: got %q, want %q", c.what, got, c.want)
		}
	}
	if got := a.packages(t, pipeline.PackageAuditQuery{Name: "crypto"}); got != "" {
		t.Errorf("without any reach, %q", got)
	}
	for _, q := range []pipeline.PackageAuditQuery{{}, {Name: "x", Range: "<"}, {PURL: "crypto"}, {PURL: "pkg:npm"}, {PURL: "pkg:npm/x@%zz"}, {Name: "x", AuditScope: pipeline.AuditScope{Promoted: "perhaps"}},
		{Name: "x", AuditScope: pipeline.AuditScope{Page: pipeline.Page{After: "1; DROP"}}}, {Name: "x", AuditScope: pipeline.AuditScope{Since: &future, Until: &past}}} {
		if _, err := a.AuditPackages(t.Context(), q); !errors.Is(err, pipeline.ErrInvalid) {
			t.Errorf("%+v: %v", q, err)
		}
	}
}

func TestAuditPackageTellsItsStory(t *testing.T) {
	a := newAudited(t)
	until := time.Now().Add(24 * time.Hour)
	accepted, err := a.AddException(t.Context(), pipeline.Exception{Project: "app", Environment: "prod", Finding: "cve-2024-45337", Reason: "not reachable", Author: "sam", ExpiresAt: until})
	check(t, err)
	_, err = a.AddException(t.Context(), pipeline.Exception{Project: "app", Finding: "CVE-2024-45337", Package: "zlib", Reason: "another package", Author: "sam", ExpiresAt: until})
	check(t, err)
	_, err = a.AddException(t.Context(), pipeline.Exception{Project: "web", Finding: "CVE-2024-45337", Reason: "another project", Author: "sam", ExpiresAt: until})
	check(t, err)
	_, err = a.AddException(t.Context(), pipeline.Exception{Project: "app", Finding: "CVE-2024-45337", Image: a.one.Built.Image.Digest, Reason: "another image", Author: "sam", ExpiresAt: until})
	check(t, err)
	_, err = a.AddException(t.Context(), pipeline.Exception{Project: "app", Finding: "CVE-2024-45338", Reason: "another finding", Author: "sam", ExpiresAt: until})
	check(t, err)
	forImage, err := a.AddException(t.Context(), pipeline.Exception{Project: "app", Finding: "CVE-2024-45337", Package: "crypto", Image: a.two.Built.Image.Digest, Reason: "this one", Author: "ada", ExpiresAt: until})
	check(t, err)
	uses, err := a.AuditPackages(t.Context(), pipeline.PackageAuditQuery{Name: "crypto", AuditScope: pipeline.AuditScope{Reach: everything, Promoted: "now"}})
	check(t, err)
	u := uses[0]
	if u.Project != "app" || u.Image != a.two.Built.Image || u.Run != a.two.Run || u.Commit != a.two.Built.Source.Commit || u.RecordedAt.IsZero() ||
		fmt.Sprint(u.Platforms) != "[linux/amd64 linux/arm64]" || u.Package.PURL != "pkg:golang/crypto@v0.30.0" || u.Package.Path != "bin/app" {
		t.Errorf("the use is %+v", u)
	}
	if u.First == nil || u.First.Run != a.one.Run || u.First.Commit != a.one.Built.Source.Commit || u.First.Digest != a.one.Built.Image.Digest || u.First.At.IsZero() {
		t.Errorf("it came in with %+v", u.First)
	}
	if len(u.Places) != 2 {
		t.Fatalf("the places are %+v", u.Places)
	}
	first, second := u.Places[0], u.Places[1]
	if first.Environment != "prod" || first.Promotion != a.toTwo.ID || first.RequestedBy != "rita" || first.Action != "promote" || first.Until == nil || !first.Since.Before(*first.Until) {
		t.Errorf("the first stay is %+v", first)
	}
	if second.Promotion != a.p.ID || second.RequestedBy != "ada" || second.Action != "rollback" || second.Until != nil || second.Since.Before(*first.Until) {
		t.Errorf("the second stay is %+v", second)
	}
	if len(u.Exceptions) != 2 || u.Exceptions[0].ID != accepted.ID || u.Exceptions[0].Author != "sam" || u.Exceptions[1].ID != forImage.ID {
		t.Errorf("the exceptions are %+v", u.Exceptions)
	}
	for _, e := range u.Exceptions {
		_, err = a.RevokeException(t.Context(), "app", e.ID, "sam")
		check(t, err)
	}
	uses, err = a.AuditPackages(t.Context(), pipeline.PackageAuditQuery{Name: "crypto", AuditScope: pipeline.AuditScope{Reach: everything, Promoted: "now"}})
	check(t, err)
	if len(uses[0].Exceptions) != 0 {
		t.Errorf("a revoked exception is told: %+v", uses[0].Exceptions)
	}
}

func TestAuditFindings(t *testing.T) {
	a := newAudited(t)
	accepted, err := a.AddException(t.Context(), pipeline.Exception{Project: "app", Environment: "prod", Finding: "CVE-2024-45337", Package: "crypto", Reason: "not reachable", Author: "sam", ExpiresAt: time.Now().Add(time.Hour)})
	check(t, err)
	list := func(q pipeline.FindingAuditQuery) string {
		t.Helper()
		found, err := a.AuditFindings(t.Context(), q)
		check(t, err)
		var out []string
		for _, f := range found {
			out = append(out, a.name[f.Image.Digest]+" "+f.Finding.Package+" "+f.Finding.Version)
		}
		return strings.Join(out, ", ")
	}
	for _, c := range []struct {
		q    pipeline.FindingAuditQuery
		want string
	}{
		{pipeline.FindingAuditQuery{Finding: "cve-2024-45337", AuditScope: pipeline.AuditScope{Reach: everything}}, "web crypto v0.30.0, two crypto v0.30.0, one crypto v0.30.0"},
		{pipeline.FindingAuditQuery{Finding: "CVE-2024-45337", AuditScope: pipeline.AuditScope{Reach: everything, Promoted: "now"}}, "two crypto v0.30.0"},
		{pipeline.FindingAuditQuery{Finding: "CVE-2024-45337", AuditScope: pipeline.AuditScope{Reach: everything, Promoted: "ever"}}, "two crypto v0.30.0, one crypto v0.30.0"},
		{pipeline.FindingAuditQuery{Finding: "CVE-2024-45337", AuditScope: pipeline.AuditScope{Reach: pipeline.Reach{Projects: []string{"web"}}}}, "web crypto v0.30.0"},
		{pipeline.FindingAuditQuery{Finding: "CVE-2024-45337", Package: "zlib", AuditScope: pipeline.AuditScope{Reach: everything}}, ""},
		{pipeline.FindingAuditQuery{Finding: "CVE-2024-45337"}, ""},
		{pipeline.FindingAuditQuery{Finding: "CVE-2024-4533", AuditScope: pipeline.AuditScope{Reach: everything}}, ""},
	} {
		if got := list(c.q); got != c.want {
			t.Errorf("%+v: got %q, want %q", c.q, got, c.want)
		}
	}
	q := pipeline.FindingAuditQuery{Finding: "CVE-2024-45337", AuditScope: pipeline.AuditScope{Reach: everything, Page: pipeline.Page{Limit: 1}}}
	var paged []string
	for {
		found, err := a.AuditFindings(t.Context(), q)
		check(t, err)
		if len(found) == 0 {
			break
		}
		paged, q.Page.After = append(paged, a.name[found[0].Image.Digest]), found[0].ID
	}
	if fmt.Sprint(paged) != "[web two one]" {
		t.Errorf("paged through %v", paged)
	}
	found, err := a.AuditFindings(t.Context(), pipeline.FindingAuditQuery{Finding: "CVE-2024-45337", AuditScope: pipeline.AuditScope{Reach: everything, Promoted: "now"}})
	check(t, err)
	f := found[0]
	if f.Finding.FixedIn != "0.31.0" || f.Finding.Severity != pipeline.SeverityCritical || len(f.Platforms) != 2 || f.First == nil || f.First.Run != a.one.Run || len(f.Places) != 2 || f.ScannedAt.IsZero() {
		t.Errorf("the finding is %+v", f)
	}
	if len(f.Suppressed) != 1 || f.Suppressed[0].ID != accepted.ID || f.Suppressed[0].Author != "sam" || f.Suppressed[0].Environment != "prod" || f.Suppressed[0].ExpiresAt == nil {
		t.Errorf("it is suppressed by %+v", f.Suppressed)
	}
	release(t, a.Store, "web", "other", []pipeline.Package{pkg("crypto", "v0.30.0")}, []pipeline.Finding{{ID: "GHSA-v778-237x-gjrc", Severity: pipeline.SeverityHigh, Package: "crypto", Version: "v0.30.0", FixedIn: "0.31.0"}}, "1.0.1")
	found, err = a.AuditFindings(t.Context(), pipeline.FindingAuditQuery{Finding: "GHSA-V778-237x-GJRC", AuditScope: pipeline.AuditScope{Reach: everything}})
	check(t, err)
	if len(found) != 1 || found[0].Finding.ID != "GHSA-v778-237x-gjrc" {
		t.Errorf("in another case, %+v", found)
	}
	for _, q := range []pipeline.FindingAuditQuery{{}, {Finding: "x", AuditScope: pipeline.AuditScope{Page: pipeline.Page{After: "!"}}}, {Finding: "x", AuditScope: pipeline.AuditScope{Page: pipeline.Page{After: "WzFd"}}}} {
		if _, err := a.AuditFindings(t.Context(), q); !errors.Is(err, pipeline.ErrInvalid) {
			t.Errorf("%+v: %v", q, err)
		}
	}
}

func kinds(events []pipeline.AuditEvent) (out []string) {
	for _, e := range events {
		out = append(out, strings.Join(strings.Fields(e.Kind+" "+e.Environment+" "+e.Actor), " "))
	}
	return out
}

func TestAuditImage(t *testing.T) {
	a := newAudited(t)
	_, err := a.AddException(t.Context(), pipeline.Exception{Project: "app", Finding: "CVE-2024-45337", Reason: "not reachable", Author: "sam", ExpiresAt: time.Now().Add(time.Hour)})
	check(t, err)
	d := a.two.Built.Image.Digest
	story, err := a.AuditImage(t.Context(), d, everything, pipeline.Page{Limit: 1000})
	check(t, err)
	got := kinds(story)
	for i, e := range story {
		if e.Project != "app" || e.ID == "" || e.At.IsZero() || i > 0 && e.At.Before(story[i-1].At) {
			t.Errorf("event %d is %+v", i, e)
		}
	}
	want := []string{"run.started", "image.recorded dray", "promotion.requested prod rita", "promotion.decided prod dray", "image.copied prod dray", "tag.moved prod dray", "promotion.ended prod dray",
		"environment.left prod dray", "promotion.requested prod ada", "promotion.ended prod dray", "exception.added sam"}
	at := 0
	for _, k := range got {
		if at < len(want) && k == want[at] {
			at++
		}
	}
	if at < len(want) {
		t.Errorf("the story lacks %q or has it too early:\n%s", want[at], strings.Join(got, "\n"))
	}
	var paged []pipeline.AuditEvent
	p := pipeline.Page{Limit: 3}
	for {
		part, err := a.AuditImage(t.Context(), d, everything, p)
		check(t, err)
		if len(part) == 0 {
			break
		}
		paged, p.After = append(paged, part...), part[len(part)-1].ID
	}
	if !slices.Equal(paged, story) {
		t.Errorf("paged through\n%v\nwant\n%v", kinds(paged), got)
	}
	for _, reach := range []pipeline.Reach{{}, {Projects: []string{"web"}}} {
		if _, err := a.AuditImage(t.Context(), d, reach, pipeline.Page{}); !errors.Is(err, pipeline.ErrNotFound) {
			t.Errorf("to whom may see %v: %v", reach, err)
		}
	}
	if _, err := a.AuditImage(t.Context(), pipelinetest.DigestOf("nothing"), everything, pipeline.Page{}); !errors.Is(err, pipeline.ErrNotFound) {
		t.Errorf("of what nobody built: %v", err)
	}
	if _, err := a.AuditImage(t.Context(), "latest", everything, pipeline.Page{}); !errors.Is(err, pipeline.ErrInvalid) {
		t.Errorf("of a tag: %v", err)
	}
}

func TestAuditPerson(t *testing.T) {
	a := newAudited(t)
	_, err := a.AddException(t.Context(), pipeline.Exception{Project: "web", Finding: "CVE-1", Reason: "x", Author: "rita", ExpiresAt: time.Now().Add(time.Hour)})
	check(t, err)
	for _, c := range []struct {
		name  string
		reach pipeline.Reach
		want  string
	}{
		{"rita", everything, "[exception.added rita promotion.requested prod rita promotion.requested prod rita]"},
		{"rita", pipeline.Reach{Projects: []string{"app"}}, "[promotion.requested prod rita promotion.requested prod rita]"},
		{"ada", everything, "[promotion.requested prod ada]"},
		{"nobody", everything, "[]"},
		{"rita", pipeline.Reach{}, "[]"},
	} {
		did, err := a.AuditPerson(t.Context(), c.name, c.reach, pipeline.Page{})
		check(t, err)
		if got := fmt.Sprint(kinds(did)); got != c.want {
			t.Errorf("%s within %v: %s, want %s", c.name, c.reach, got, c.want)
		}
	}
	if _, err := a.AuditPerson(t.Context(), "", everything, pipeline.Page{}); !errors.Is(err, pipeline.ErrInvalid) {
		t.Error(err)
	}
}

func TestAuditEnvironment(t *testing.T) {
	a := newAudited(t)
	list := func(q pipeline.EnvironmentAuditQuery) string {
		t.Helper()
		q.Project, q.Environment = "app", "prod"
		items, err := a.AuditEnvironment(t.Context(), q)
		check(t, err)
		var out []string
		for _, i := range items {
			if i.Stay != nil {
				out = append(out, i.Change+" "+a.name[i.Stay.Image.Digest])
			} else {
				out = append(out, fmt.Sprintf("%s %s %s%s:%s>%s", i.Kind, i.Change, i.Name, i.Package, i.From, i.To))
			}
		}
		return strings.Join(out, ", ")
	}
	history, err := a.AuditEnvironment(t.Context(), pipeline.EnvironmentAuditQuery{Project: "app", Environment: "prod"})
	check(t, err)
	if got := list(pipeline.EnvironmentAuditQuery{}); got != "held two, held three, held two, held one" {
		t.Fatalf("the history is %s", got)
	}
	moment := func(i int) *time.Time { at := history[i].Stay.Since; return &at }
	before := moment(3).Add(-time.Second)
	after := time.Now().Add(time.Hour)
	for _, c := range []struct {
		what string
		q    pipeline.EnvironmentAuditQuery
		want string
	}{
		{"before anything", pipeline.EnvironmentAuditQuery{At: &before}, ""},
		{"at the first moment", pipeline.EnvironmentAuditQuery{At: moment(3)}, "held one"},
		{"when three came", pipeline.EnvironmentAuditQuery{At: moment(1)}, "held three"},
		{"now", pipeline.EnvironmentAuditQuery{At: &after}, "held two"},
		{"from one to three", pipeline.EnvironmentAuditQuery{From: moment(3), To: moment(1)},
			"held one, entered two, entered three, package removed bash:5.2.15-2+b7>, package changed crypto:v0.30.0>v0.31.0, package changed openssl:3.0.9-1>3.0.11-1~deb12u2, finding removed CVE-2024-45337crypto:v0.30.0>"},
		{"there and back", pipeline.EnvironmentAuditQuery{From: moment(2), To: &after}, "held two, entered three, entered two"},
		{"from nothing", pipeline.EnvironmentAuditQuery{From: &before, To: moment(3)},
			"entered one, package added bash:>5.2.15-2+b7, package added crypto:>v0.30.0, package added devel:>(devel), package added openssl:>3.0.9-1, finding added CVE-2024-45337crypto:>v0.30.0"},
		{"a page", pipeline.EnvironmentAuditQuery{Page: pipeline.Page{Limit: 2}}, "held two, held three"},
		{"the next", pipeline.EnvironmentAuditQuery{Page: pipeline.Page{Limit: 2, After: history[1].ID}}, "held two, held one"},
		{"a page of changes", pipeline.EnvironmentAuditQuery{From: moment(3), To: moment(1), Page: pipeline.Page{Limit: 2, After: "2"}}, "package removed bash:5.2.15-2+b7>, package changed crypto:v0.30.0>v0.31.0"},
	} {
		if got := list(c.q); got != c.want {
			t.Errorf("%s: got %q, want %q", c.what, got, c.want)
		}
	}
	if items, err := a.AuditEnvironment(t.Context(), pipeline.EnvironmentAuditQuery{Project: "web", Environment: "prod"}); err != nil || len(items) != 0 {
		t.Errorf("an environment that held nothing: %v, %v", items, err)
	}
	for _, q := range []pipeline.EnvironmentAuditQuery{{Project: "app", Environment: "moon"}, {Project: "nothing", Environment: "prod"}} {
		if _, err := a.AuditEnvironment(t.Context(), q); !errors.Is(err, pipeline.ErrNotFound) {
			t.Errorf("%+v: %v", q, err)
		}
	}
	for _, q := range []pipeline.EnvironmentAuditQuery{{At: &after, From: &before, To: &after}, {From: &before}, {From: &after, To: &before}, {Page: pipeline.Page{After: "x"}}} {
		if _, err := a.AuditEnvironment(t.Context(), q); !errors.Is(err, pipeline.ErrInvalid) {
			t.Errorf("%+v: %v", q, err)
		}
	}
}
