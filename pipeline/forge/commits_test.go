package forge_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/forge"
)

// pushed is a push with those members besides the usual ones.
func pushed(members string) string {
	return strings.Replace(push("refs/heads/main", sha), `{"ref"`, `{`+members+`,"ref"`, 1)
}

func parse(t *testing.T, body string) (pipeline.Event, error) {
	t.Helper()
	g := forge.GitHub{CloneURL: func(source string) string {
		if strings.EqualFold(source, "acme/hello-go") {
			return "https://github.com/acme/hello-go.git"
		}
		return ""
	}}
	event, _, err := g.Parse(headers("push"), []byte(body))
	return event, err
}

func TestParseCommits(t *testing.T) {
	id := func(n int) string { return fmt.Sprintf("%040x", n+1) }
	for name, tt := range map[string]struct {
		commits string
		want    []pipeline.Commit
	}{
		"none":  {`[]`, nil},
		"space": {" [\n]", nil},
		"as GitHub sends it": {`[{"id":"` + sha + `","tree_id":"` + sha2 + `","distinct":true,"message":"Mend it\n\nIt was broken.","timestamp":"2026-03-02T10:00:00+02:00",
			"url":"https://github.com/acme/hello-go/commit/x","author":{"name":"Ada L.","email":"ada@example.org","username":"ada"},"committer":{"name":"GitHub","email":null},"added":[],"removed":[],"modified":["a.go"]}]`,
			[]pipeline.Commit{{SHA: sha, Title: "Mend it", Author: "Ada L.", At: time.Date(2026, 3, 2, 8, 0, 0, 0, time.UTC)}}},
		"oldest first":       {`[{"id":"` + id(1) + `"},{"id":"` + id(2) + `"}]`, []pipeline.Commit{{SHA: id(1)}, {SHA: id(2)}}},
		"sha256 repository":  {`[{"id":"` + strings.Repeat("ab", 32) + `"}]`, []pipeline.Commit{{SHA: strings.Repeat("ab", 32)}}},
		"control characters": {`[{"id":"` + sha + `","message":"\n \u001b[31mred\r\u202e\u0000 \nmore","author":{"name":"a\u0007\u200bda\n"}}]`, []pipeline.Commit{{SHA: sha, Title: "[31mred", Author: "ada"}}},
		"long":               {`[{"id":"` + sha + `","message":"` + strings.Repeat("ä", 5000) + `","author":{"name":"` + strings.Repeat("ö", 5000) + `"}}]`, []pipeline.Commit{{SHA: sha, Title: strings.Repeat("ä", 200), Author: strings.Repeat("ö", 200)}}},
		"no time":            {`[{"id":"` + sha + `","timestamp":"tomorrow"}]`, []pipeline.Commit{{SHA: sha}}},
		"past year 9999":     {`[{"id":"` + sha + `","timestamp":"9999-12-31T23:59:59-12:00"}]`, []pipeline.Commit{{SHA: sha}}},
		"before year 1":      {`[{"id":"` + sha + `","timestamp":"0000-01-01T00:00:00+12:00"}]`, []pipeline.Commit{{SHA: sha}}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parse(t, pushed(`"commits":`+tt.commits))
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got.Commits, tt.want) || got.CommitsOmitted {
				t.Errorf("got %+v (omitted %t), want %+v", got.Commits, got.CommitsOmitted, tt.want)
			}
			if _, err := json.Marshal(got); err != nil {
				t.Errorf("the event cannot be stored: %v", err)
			}
		})
	}
	for name, commits := range map[string]string{
		"null": `null`, "object": `{}`, "text": `"x"`, "number": `1`,
		"null among them": `[null]`, "list among them": `[[]]`, "text among them": `["` + sha + `"]`,
		"no id": `[{}]`, "id null": `[{"id":null}]`, "id number": `[{"id":1}]`, "id short": `[{"id":"abc"}]`, "id zero": `[{"id":"` + none + `"}]`,
		"id option": `[{"id":"--upload-pack=x"}]`, "id in capitals": `[{"id":"` + strings.ToUpper(sha) + `"}]`,
		"message null": `[{"id":"` + sha + `","message":null}]`, "message object": `[{"id":"` + sha + `","message":{}}]`,
		"author null": `[{"id":"` + sha + `","author":null}]`, "author text": `[{"id":"` + sha + `","author":"ada"}]`, "name null": `[{"id":"` + sha + `","author":{"name":null}}]`,
		"time null": `[{"id":"` + sha + `","timestamp":null}]`, "time number": `[{"id":"` + sha + `","timestamp":1}]`,
	} {
		if _, err := parse(t, pushed(`"commits":`+commits)); !errors.Is(err, pipeline.ErrInvalid) {
			t.Errorf("commits %s: %v, want ErrInvalid", name, err)
		}
	}
	list := func(n int) string {
		var all []string
		for i := range n {
			all = append(all, `{"id":"`+id(i)+`"}`)
		}
		return `"commits":[` + strings.Join(all, ",") + `]`
	}
	for n, first := range map[int]int{249: 0, 250: 0, 251: 1, 1000: 750} {
		got, err := parse(t, pushed(list(n)))
		if err != nil {
			t.Fatal(err)
		}
		if len(got.Commits) != min(n, 250) || got.Commits[0].SHA != id(first) || got.Commits[len(got.Commits)-1].SHA != id(n-1) || got.CommitsOmitted != (n > 250) {
			t.Errorf("of %d commits %d are kept, from %s (omitted %t)", n, len(got.Commits), got.Commits[0].SHA, got.CommitsOmitted)
		}
	}
}

// A body has room for millions of commits, and they must not all be held.
func TestParseCommitsTakesLittleMemory(t *testing.T) {
	const n = 2 << 20
	body := pushed(`"commits":[` + strings.Repeat(`{},`, n) + `{"id":"` + sha + `"}]`)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	_, err := parse(t, body)
	runtime.ReadMemStats(&after)
	if !errors.Is(err, pipeline.ErrInvalid) { // those that are kept have no id
		t.Fatalf("got %v, want ErrInvalid", err)
	}
	if most := uint64(200 << 20); after.HeapSys > before.HeapSys+most {
		t.Errorf("the heap grew by %d MiB for a body of %d", (after.HeapSys-before.HeapSys)>>20, len(body)>>20)
	}
}

func TestParseCompareURL(t *testing.T) {
	const good = "https://github.com/acme/hello-go/compare/1111111111...2222222222"
	for url, want := range map[string]string{
		good: good,
		"https://github.com/acme/hello-go/commit/" + sha:  "https://github.com/acme/hello-go/commit/" + sha,
		"https://GitHub.com/Acme/hello-go/compare/a^...b": "https://GitHub.com/Acme/hello-go/compare/a%5E...b",
		"": "",
		"http://github.com/acme/hello-go/compare/a...b":                 "",
		"javascript:alert(1)":                                           "",
		"//github.com/acme/hello-go/compare/a...b":                      "",
		"/acme/hello-go/compare/a...b":                                  "",
		"https://evil.example/acme/hello-go/compare/a...b":              "",
		"https://github.com.evil.example/acme/hello-go/compare/a":       "",
		"https://github.com:8443/acme/hello-go/compare/a...b":           "",
		"https://github.com@evil.example/acme/hello-go/compare/a":       "",
		"https://evil@github.com/acme/hello-go/compare/a...b":           "",
		"https://github.com/other/hello-go/compare/a...b":               "",
		"https://github.com/acme/hello-gopher/compare/a...b":            "",
		"https://github.com/acme/hello-go":                              "",
		"https://github.com/acme/hello-go/":                             "",
		"https://github.com/acme/hello-go/../../evil/x":                 "",
		"https://github.com/acme/hello-go/%2e%2e/%2e%2e/login":          "",
		"https://github.com/acme/hello-go/compare/a?next=evil":          "",
		"https://github.com/acme/hello-go/compare/a#evil":               "",
		"https://github.com/acme/hello-go/compare/<script>":             "",
		`https://github.com/acme/hello-go/compare/a\\b`:                 "",
		`https://github.com/acme/hello-go/compare/\u001b[31m`:           "",
		`https://github.com/acme/hello-go/compare/\u202e`:               "",
		"https://github.com/acme/hello-go/" + strings.Repeat("a", 2048): "",
		"https://[::1/acme/hello-go/compare/a":                          "",
	} {
		got, err := parse(t, pushed(`"compare":"`+url+`"`))
		if err != nil || got.CompareURL != want {
			t.Errorf("compare %.80s gives %.80q, %v; want %q", url, got.CompareURL, err, want)
		}
	}
	for name, compare := range map[string]string{"null": `null`, "number": `1`, "object": `{}`} {
		if _, err := parse(t, pushed(`"compare":`+compare)); !errors.Is(err, pipeline.ErrInvalid) {
			t.Errorf("compare %s: %v, want ErrInvalid", name, err)
		}
	}
	for cloneURL, want := range map[string]bool{
		"https://github.com/acme/hello-go.git":  true,
		"https://x@github.com/acme/hello-go":    true,
		"ssh://git@github.com:22/acme/hello-go": true,
		"git@github.com:acme/hello-go.git":      true,
		"https://ghe.example/acme/hello-go.git": false,
		"http://github.com/acme/hello-go.git":   false,
		"git://github.com/acme/hello-go.git":    false,
		"file:///srv/github.com/hello-go":       false,
		"/srv/hello-go@github.com:x":            false,
		"https://ghe.example/git@github.com:x":  false,
		"":                                      false,
	} {
		g := forge.GitHub{CloneURL: func(string) string { return cloneURL }}
		got, _, err := g.Parse(headers("push"), []byte(pushed(`"compare":"`+good+`"`)))
		if err != nil || (got.CompareURL == good) != want {
			t.Errorf("with the clone URL %s: %q, %v", cloneURL, got.CompareURL, err)
		}
	}
	if got, _, err := (forge.GitHub{}).Parse(headers("push"), []byte(pushed(`"compare":"`+good+`"`))); err != nil || got.CompareURL != "" {
		t.Errorf("with no clone URL at all: %q, %v", got.CompareURL, err)
	}
}
