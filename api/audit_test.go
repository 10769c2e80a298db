package api_test

import (
	"bufio"
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/dray-project/dray/api"
	"github.com/dray-project/dray/api/apitest"
	"github.com/dray-project/dray/pipeline"
)

// manyPackages is a store that has a great many, which it makes up as it is asked.
type manyPackages struct {
	*apitest.Store
	n int
	// broken is the item at which the database goes away; 0: never.
	broken int
	// asked is called before each answer.
	asked func(p pipeline.Page)
}

func (m *manyPackages) AuditPackages(_ context.Context, q pipeline.PackageAuditQuery) (out []pipeline.PackageAudit, err error) {
	from := 0
	if q.Page.After != "" {
		if from, err = strconv.Atoi(q.Page.After); err != nil {
			return nil, err
		}
	}
	if m.asked != nil {
		m.asked(q.Page)
	}
	for i := from + 1; i <= m.n && len(out) < q.Page.Limit; i++ {
		if i == m.broken {
			return nil, apitest.ErrInjected
		}
		out = append(out, pipeline.PackageAudit{ID: strconv.Itoa(i), Project: "hello-go", Image: apitest.Good, Platforms: []pipeline.Platform{"linux/amd64"},
			Package: pipeline.Package{Name: "=HYPERLINK(\"https://evil.example\")", Version: fmt.Sprint(i), Type: "node-pkg", Licenses: []string{"MIT"}},
			Run:     apitest.RunGood, Commit: apitest.Commit, RecordedAt: apitest.Clock, Exceptions: []pipeline.Exception{},
			Places: []pipeline.Stay{{Environment: "prod", RequestedBy: "@grace", ApprovedBy: []string{"ada"}, Since: apitest.Clock}}})
	}
	return out, nil
}

func auditServer(t *testing.T, m *manyPackages) *server {
	return newServer(t, func(c *api.Config) {
		m.Store = c.Store.(*apitest.Store)
		c.Store = m
	})
}

// TestExportIsBounded exports more than would fit, twice, and looks at the heap
// while it does.
func TestExportIsBounded(t *testing.T) {
	const n = 200_000
	for _, format := range []string{"csv", "jsonl"} {
		t.Run(format, func(t *testing.T) {
			var before, now runtime.MemStats
			var peak uint64
			calls := 0
			m := &manyPackages{n: n, asked: func(p pipeline.Page) {
				if p.Limit > pipeline.MaxAuditPage {
					t.Errorf("%d at once", p.Limit)
				}
				if calls++; calls%20 == 0 {
					runtime.GC() // what is alive, not what is waiting to be collected
					runtime.ReadMemStats(&now)
					peak = max(peak, now.HeapAlloc)
				}
			}}
			s := auditServer(t, m)
			runtime.GC()
			runtime.ReadMemStats(&before)
			req, err := http.NewRequestWithContext(t.Context(), "GET", s.url+"/api/v1/audit/packages?name=x&limit=1&format="+format, nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer dray_test")
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			lines := 0
			for sc := bufio.NewScanner(resp.Body); sc.Scan(); lines++ {
			}
			want := n
			if format == "csv" {
				want++ // the head
			}
			if resp.StatusCode != 200 || lines != want {
				t.Errorf("%d with %d lines, want %d", resp.StatusCode, lines, want)
			}
			if grown := int64(peak) - int64(before.HeapAlloc); grown > 16<<20 {
				t.Errorf("the heap grew by %d KiB for %d items", grown>>10, n)
			} else {
				t.Logf("%d items in %d parts; the heap grew by %d KiB", n, calls, grown>>10)
			}
		})
	}
}

func TestExportCSVHasNoFormulas(t *testing.T) {
	s := auditServer(t, &manyPackages{n: 3})
	a := s.get("/api/v1/audit/packages?name=x", "Accept: text/csv")
	if a.StatusCode != 200 || !strings.HasPrefix(a.Header.Get("Content-Type"), "text/csv") || !strings.HasPrefix(a.Header.Get("Content-Disposition"), "attachment") {
		t.Fatalf("%d %v", a.StatusCode, a.Header)
	}
	rows, err := csv.NewReader(strings.NewReader(a.body)).ReadAll()
	if err != nil || len(rows) != 4 {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	at := map[string]int{}
	for i, name := range rows[0] {
		at[name] = i
	}
	row := rows[1]
	for name, want := range map[string]string{"project": "hello-go", "package": `'=HYPERLINK("https://evil.example")`, "version": "1", "licences": "MIT", "first_run": "",
		"promoted_now": "prod since 2026-03-14T09:26:53Z, requested by @grace, approved by ada", "recorded": "2026-03-14T09:26:53Z"} {
		if row[at[name]] != want {
			t.Errorf("%s is %q, want %q", name, row[at[name]], want)
		}
	}
	for cell, want := range map[string]string{"=1+1": "'=1+1", "+1": "'+1", "-1": "'-1", "@x": "'@x", "\t=1": "' =1", "\r\n=1": "'  =1", " =1": "' =1", "＝1": "'＝1", "|x": "'|x",
		"a=1": "a=1", "": "", "\x1b[2J": " [2J", "a\nb": "a b", "1.0-1": "1.0-1"} {
		if got := api.Harmless(cell); got != want {
			t.Errorf("%q becomes %q, want %q", cell, got, want)
		}
	}
}

// TestExportThatBreaksOff must not look like one that is complete.
func TestExportThatBreaksOff(t *testing.T) {
	s := auditServer(t, &manyPackages{n: 5000, broken: 3000})
	for _, format := range []string{"csv", "jsonl"} {
		req, err := http.NewRequestWithContext(t.Context(), "GET", s.url+"/api/v1/audit/packages?name=x&format="+format, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer dray_test")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err == nil {
			t.Errorf("%s: the export ended like a complete one", format)
		}
		resp.Body.Close()
	}
	// One that fails at the start is a problem, like anything else.
	s = auditServer(t, &manyPackages{n: 5, broken: 1})
	s.want(s.get("/api/v1/audit/packages?name=x&format=csv"), 500, "internal")
	if !strings.Contains(s.logs.String(), "hunter2") {
		t.Error("the log does not have the cause")
	}
}

func TestAuditFormats(t *testing.T) {
	s := newServer(t)
	for _, c := range []struct{ query, accept, want string }{
		{"", "", "application/json"}, {"", "*/*", "application/json"}, {"", "application/json", "application/json"},
		{"", "text/html,application/xhtml+xml,*/*;q=0.8", "application/json"},
		{"", "text/csv", "text/csv; charset=utf-8; header=present"}, {"", "application/jsonl", "application/jsonl"}, {"", "application/x-ndjson", "application/jsonl"},
		{"", "application/json;q=0.1, text/csv;q=0.9", "text/csv; charset=utf-8; header=present"},
		{"&format=csv", "application/json", "text/csv; charset=utf-8; header=present"}, {"&format=json", "text/csv", "application/json"},
	} {
		a := s.get("/api/v1/audit/packages?name=rsc.io/quote"+c.query, "Accept: "+c.accept)
		if a.StatusCode != 200 || a.Header.Get("Content-Type") != c.want {
			t.Errorf("%+v: %d, %s", c, a.StatusCode, a.Header.Get("Content-Type"))
		}
	}
	s.want(s.get("/api/v1/audit/packages?name=x", "Accept: image/png"), 422, "invalid")
	s.want(s.get("/api/v1/audit/packages?name=x&format=xml"), 422, "invalid")
	s.want(s.get("/api/v1/audit/packages"), 422, "invalid")
	s.want(s.get("/api/v1/audit/packages?nmae=x"), 422, "invalid")
	s.want(s.get("/api/v1/audit/packages?name=x&promoted=perhaps"), 422, "invalid")
	s.want(s.get("/api/v1/audit/packages?name=x&since=yesterday"), 422, "invalid")
	s.want(s.get("/api/v1/audit/findings"), 422, "invalid")
	s.want(s.get("/api/v1/audit/images/latest"), 422, "invalid")
	s.want(s.get("/api/v1/audit/environments/hello-go/prod?at=2026-01-01T00:00:00Z&from=2026-01-01T00:00:00Z&to=2026-02-01T00:00:00Z"), 422, "invalid")
	s.want(s.get("/api/v1/audit/environments/hello-go/moon"), 404, "not-found")
}

func TestAuditPages(t *testing.T) {
	s := auditServer(t, &manyPackages{n: 250})
	seen, next := 0, "/api/v1/audit/packages?name=x&limit=100"
	for next != "" {
		var page struct{ Items []pipeline.PackageAudit }
		a := s.get(next)
		s.ok(a, 200, &page)
		for _, item := range page.Items {
			if seen++; item.ID != strconv.Itoa(seen) {
				t.Fatalf("item %d is %s", seen, item.ID)
			}
		}
		link := a.Header.Get("Link")
		next, _, _ = strings.Cut(strings.TrimPrefix(link, "<"), ">")
		if link != "" && !strings.HasSuffix(link, `rel="next"`) {
			t.Fatalf("Link: %s", link)
		}
	}
	if seen != 250 {
		t.Errorf("%d items", seen)
	}
}

// TestAuditReach: an export gives no more than its caller may see, and the name
// of a project that is out of reach changes nothing.
func TestAuditReach(t *testing.T) {
	s := newServer(t)
	s.store.Tokens["dray_tom"] = pipeline.Token{Name: "tom", Grants: []pipeline.Grant{{Role: pipeline.RoleAuditor, Project: "web"}}}
	s.store.Tokens["dray_none"] = pipeline.Token{Name: "nobody", Grants: []pipeline.Grant{{Role: "security"}}}
	for path, want := range map[string]string{
		"/audit/packages?name=rsc.io/quote":                  "web",
		"/audit/packages?name=rsc.io/quote&project=hello-go": "",
		"/audit/findings?id=CVE-2025-1111":                   "web",
		"/audit/people/grace":                                "",
		"/audit/people/grace?project=hello-go":               "",
	} {
		for token, want := range map[string]string{"dray_tom": want, "dray_none": "", "dray_auditor": "any"} {
			separator := "?"
			if strings.Contains(path, "?") {
				separator = "&"
			}
			a := s.get("/api/v1"+path+separator+"format=jsonl", "Authorization: Bearer "+token)
			if a.StatusCode != 200 {
				t.Errorf("%s as %s: %d %s", path, token, a.StatusCode, a.body)
			}
			for line := range strings.Lines(a.body) {
				var item struct{ Project string }
				if err := json.Unmarshal([]byte(line), &item); err != nil {
					t.Fatal(err)
				}
				if want != "any" && item.Project != want {
					t.Errorf("%s as %s has something of %q", path, token, item.Project)
				}
			}
			if want == "web" && a.body == "" || want == "" && a.body != "" {
				t.Errorf("%s as %s: %q", path, token, a.body)
			}
		}
	}
	s.want(s.get("/api/v1/audit/images/"+string(apitest.Good.Digest), "Authorization: Bearer dray_tom"), 404, "not-found")
	s.want(s.get("/api/v1/audit/environments/hello-go/prod", "Authorization: Bearer dray_tom"), 404, "not-found")
}

func TestAuditEnvironmentTimes(t *testing.T) {
	s := newServer(t)
	items := func(query string) (out []pipeline.EnvironmentAudit) {
		t.Helper()
		var page struct{ Items []pipeline.EnvironmentAudit }
		s.ok(s.get("/api/v1/audit/environments/hello-go/prod"+query), 200, &page)
		return page.Items
	}
	before, after := apitest.Clock.Add(-time.Hour).Format(time.RFC3339), apitest.Clock.Add(time.Hour).Format(time.RFC3339)
	if got := items("?at=" + before); len(got) != 0 {
		t.Errorf("before anything came, %+v", got)
	}
	if got := items("?at=" + after); len(got) != 1 || got[0].Stay.Image != apitest.Placed {
		t.Errorf("afterwards, %+v", got)
	}
	if got := items("?from=" + before + "&to=" + after); len(got) != 3 || got[1].Kind != pipeline.AuditedPackage || got[2].Kind != pipeline.AuditedFinding {
		t.Errorf("between, %+v", got)
	}
}
