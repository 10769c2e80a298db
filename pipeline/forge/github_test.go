package forge_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"testing"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/forge"
)

const (
	sha  = "0a1b2c3d4e5f60718293a4b5c6d7e8f901234567"
	sha2 = "1111111111111111111111111111111111111111"
	none = "0000000000000000000000000000000000000000"
)

func sign(secret, body string) string {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(body))
	return "sha256=" + hex.EncodeToString(mac.Sum(nil))
}

// The example of GitHub's own documentation on validating deliveries.
func TestVerifyKnownAnswer(t *testing.T) {
	h := http.Header{}
	h.Set("X-Hub-Signature-256", "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17")
	if err := (forge.GitHub{}).Verify([]byte("It's a Secret to Everybody"), h, []byte("Hello, World!")); err != nil {
		t.Fatal(err)
	}
}

func TestVerifyRefuses(t *testing.T) {
	body := `{"ref":"refs/heads/main"}`
	good := sign("s3cret", body)
	for name, tc := range map[string]struct {
		secret string
		header []string
		body   string
	}{
		"no header":          {"s3cret", nil, body},
		"two headers":        {"s3cret", []string{good, good}, body},
		"empty header":       {"s3cret", []string{""}, body},
		"other secret":       {"other", []string{good}, body},
		"changed body":       {"s3cret", []string{good}, body + " "},
		"no algorithm":       {"s3cret", []string{strings.TrimPrefix(good, "sha256=")}, body},
		"sha1":               {"s3cret", []string{"sha1=" + strings.Repeat("a", 40)}, body},
		"not hexadecimal":    {"s3cret", []string{"sha256=" + strings.Repeat("z", 64)}, body},
		"truncated":          {"s3cret", []string{good[:len(good)-2]}, body},
		"longer":             {"s3cret", []string{good + "00"}, body},
		"empty secret":       {"", []string{sign("", body)}, body},
		"one bit off":        {"s3cret", []string{flip(good)}, body},
		"signature is space": {"s3cret", []string{"sha256= "}, body},
	} {
		t.Run(name, func(t *testing.T) {
			h := http.Header{}
			for _, v := range tc.header {
				h.Add("X-Hub-Signature-256", v)
			}
			err := forge.GitHub{}.Verify([]byte(tc.secret), h, []byte(tc.body))
			if !errors.Is(err, pipeline.ErrUnverified) {
				t.Fatalf("got %v, want ErrUnverified", err)
			}
		})
	}
	h := http.Header{"X-Hub-Signature-256": {good}}
	if err := (forge.GitHub{}).Verify([]byte("s3cret"), h, []byte(body)); err != nil {
		t.Fatalf("the good one was refused: %v", err)
	}
}

func flip(s string) string {
	last := byte('0')
	if s[len(s)-1] == '0' {
		last = '1'
	}
	return s[:len(s)-1] + string(last)
}

func headers(event string) http.Header {
	h := http.Header{}
	h.Set("X-GitHub-Event", event)
	h.Set("X-GitHub-Delivery", "72d3162e-cc78-11e3-81ab-4c9367dc0958")
	h.Set("Content-Type", "application/json")
	return h
}

func TestParse(t *testing.T) {
	for name, tc := range map[string]struct {
		event, body string
		want        pipeline.Event
	}{
		"branch": {"push", `{"ref":"refs/heads/feature/x","before":"` + sha2 + `","after":"` + sha + `","deleted":false,"head_commit":null,"base_ref":null,
			"repository":{"id":1,"full_name":"acme/hello-go","owner":null},"pusher":{"name":"ada","email":null}}`,
			pipeline.Event{Kind: pipeline.EventPush, Source: "acme/hello-go", Ref: "refs/heads/feature/x", Before: sha2, After: sha, Pusher: "ada"}},
		"annotated tag keeps the tag object": {"push", `{"ref":"refs/tags/v1.0.0","before":"` + none + `","after":"` + sha + `","head_commit":{"id":"` + sha2 + `"},
			"repository":{"full_name":"acme/hello-go"},"pusher":{"name":"ada"}}`,
			pipeline.Event{Kind: pipeline.EventPush, Source: "acme/hello-go", Ref: "refs/tags/v1.0.0", After: sha, Pusher: "ada"}},
		"deleted": {"push", `{"ref":"refs/heads/old","before":"` + sha + `","after":"` + none + `","deleted":true,"repository":{"full_name":"acme/hello-go"}}`,
			pipeline.Event{Kind: pipeline.EventPush, Source: "acme/hello-go", Ref: "refs/heads/old", Before: sha, Deleted: true}},
		"deleted, not said": {"push", `{"ref":"refs/heads/old","after":"` + none + `","repository":{"full_name":"acme/hello-go"}}`,
			pipeline.Event{Kind: pipeline.EventPush, Source: "acme/hello-go", Ref: "refs/heads/old", Deleted: true}},
		"sha256 repository": {"push", `{"ref":"refs/heads/main","after":"` + strings.Repeat("ab", 32) + `","repository":{"full_name":"a/b.c_d-e"}}`,
			pipeline.Event{Kind: pipeline.EventPush, Source: "a/b.c_d-e", Ref: "refs/heads/main", After: strings.Repeat("ab", 32)}},
		"pusher without escapes": {"push", `{"ref":"refs/heads/main","after":"` + sha + `","repository":{"full_name":"a/b"},"pusher":{"name":"\u001b[31mada\r\n\u202e"}}`,
			pipeline.Event{Kind: pipeline.EventPush, Source: "a/b", Ref: "refs/heads/main", After: sha, Pusher: "[31mada"}},
		"ping":                    {"ping", `{"zen":"Keep it logically awesome.","hook_id":7,"repository":{"full_name":"acme/hello-go"}}`, pipeline.Event{Kind: pipeline.EventPing, Source: "acme/hello-go"}},
		"ping of an organisation": {"ping", `{"zen":"x","hook_id":7}`, pipeline.Event{Kind: pipeline.EventPing}},
		"other event":             {"pull_request", `not even JSON`, pipeline.Event{Kind: "pull_request"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, id, err := forge.GitHub{}.Parse(headers(tc.event), []byte(tc.body))
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, tc.want) || id != "72d3162e-cc78-11e3-81ab-4c9367dc0958" {
				t.Fatalf("got  %+v (%s)\nwant %+v", got, id, tc.want)
			}
		})
	}
}

func TestParseForm(t *testing.T) {
	h := headers("push")
	h.Set("Content-Type", "application/x-www-form-urlencoded")
	body := url.Values{"payload": {push("refs/heads/main", sha)}}.Encode()
	got, _, err := forge.GitHub{}.Parse(h, []byte(body))
	if err != nil || got.After != sha {
		t.Fatalf("got %+v, %v", got, err)
	}
}

func push(ref, after string) string {
	return `{"ref":"` + ref + `","before":"` + none + `","after":"` + after + `","deleted":false,"repository":{"full_name":"acme/hello-go"},"pusher":{"name":"ada"}}`
}

func TestParseRefuses(t *testing.T) {
	good := push("refs/heads/main", sha)
	replace := func(old, new string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("the sample has no %s", old)
		}
		return strings.Replace(good, old, new, 1)
	}
	for name, body := range map[string]string{
		"empty":                  ``,
		"null":                   `null`,
		"array":                  `[]`,
		"string":                 `"x"`,
		"truncated":              good[:len(good)-1],
		"trailing":               good + "x",
		"no fields":              `{}`,
		"ref null":               replace(`"ref":"refs/heads/main"`, `"ref":null`),
		"ref a number":           replace(`"ref":"refs/heads/main"`, `"ref":1`),
		"after null":             replace(`"after":"`+sha+`"`, `"after":null`),
		"after missing":          replace(`"after":"`+sha+`",`, ``),
		"after short":            replace(sha, sha[:39]),
		"after upper case":       replace(sha, strings.ToUpper(sha)),
		"after an option":        replace(sha, "--upload-pack=x"),
		"before null":            replace(`"before":"`+none+`"`, `"before":null`),
		"before not a commit":    replace(`"before":"`+none+`"`, `"before":"main"`),
		"deleted null":           replace(`"deleted":false`, `"deleted":null`),
		"deleted with a commit":  replace(`"deleted":false`, `"deleted":true`),
		"repository null":        replace(`{"full_name":"acme/hello-go"}`, `null`),
		"repository missing":     replace(`"repository":{"full_name":"acme/hello-go"},`, ``),
		"full_name null":         replace(`"acme/hello-go"`, `null`),
		"full_name missing":      replace(`{"full_name":"acme/hello-go"}`, `{}`),
		"full_name without name": replace(`acme/hello-go`, `acme`),
		"full_name climbs":       replace(`acme/hello-go`, `acme/..`),
		"full_name has three":    replace(`acme/hello-go`, `acme/hello/go`),
		"full_name option":       replace(`acme/hello-go`, `-acme/hello`),
		"pusher null":            replace(`{"name":"ada"}`, `null`),
		"pusher.name null":       replace(`{"name":"ada"}`, `{"name":null}`),
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := forge.GitHub{}.Parse(headers("push"), []byte(body))
			if !errors.Is(err, pipeline.ErrInvalid) {
				t.Fatalf("got %v, want ErrInvalid", err)
			}
		})
	}
	for name, change := range map[string]func(http.Header){
		"no delivery id":       func(h http.Header) { h.Del("X-GitHub-Delivery") },
		"long delivery id":     func(h http.Header) { h.Set("X-GitHub-Delivery", strings.Repeat("x", 129)) },
		"delivery id newline":  func(h http.Header) { h["X-Github-Delivery"] = []string{"a\nb"} },
		"no event":             func(h http.Header) { h.Del("X-GitHub-Event") },
		"strange event":        func(h http.Header) { h.Set("X-GitHub-Event", "push\x1b[0m") },
		"strange content type": func(h http.Header) { h.Set("Content-Type", "text/xml") },
		"broken content type":  func(h http.Header) { h.Set("Content-Type", ";;") },
	} {
		t.Run(name, func(t *testing.T) {
			h := headers("push")
			change(h)
			if _, _, err := (forge.GitHub{}).Parse(h, []byte(good)); !errors.Is(err, pipeline.ErrInvalid) {
				t.Fatalf("got %v, want ErrInvalid", err)
			}
		})
	}
	for _, ref := range []string{"", "main", "heads/main", "refs/heads/", "refs/heads", "refs/pull/1/head", "refs/notes/commits",
		"refs/heads/a..b", "refs/heads/.a", "refs/heads/a/.b", "refs/heads/a.lock", "refs/heads/a.lock/b", "refs/heads/a.", "refs/heads/a//b",
		"refs/heads/a/", "refs/heads/a b", "refs/heads/a~1", "refs/heads/a^", "refs/heads/a:b", "refs/heads/a?", "refs/heads/a*", "refs/heads/[a",
		`refs/heads/a\\b`, "refs/heads/a@{1}", `refs/heads/a\u0007`, `refs/heads/a\u007f`, "refs/heads/-x", "refs/tags/--exec=x",
		"refs/heads/" + strings.Repeat("a", 1024)} {
		if _, _, err := (forge.GitHub{}).Parse(headers("push"), []byte(push(ref, sha))); !errors.Is(err, pipeline.ErrInvalid) {
			t.Errorf("ref %.60q: got %v, want ErrInvalid", ref, err)
		}
	}
	for _, ref := range []string{"refs/heads/main", "refs/heads/my/branch", "refs/tags/v1.0.0-rc.1+build", "refs/heads/@", "refs/heads/höhe", "refs/heads/a-", "refs/heads/{x}"} {
		if _, _, err := (forge.GitHub{}).Parse(headers("push"), []byte(push(ref, sha))); err != nil {
			t.Errorf("ref %q: %v", ref, err)
		}
	}
}

// FuzzParse holds Parse to its contract on any input: no panic, every error is
// ErrInvalid, and what passes is complete and safe to hand on.
func FuzzParse(f *testing.F) {
	for _, body := range []string{push("refs/heads/main", sha), push("refs/tags/v1", none), `{}`, `null`, `{"ref":null}`,
		`{"ref":"refs/heads/x","after":"` + sha + `","repository":{"full_name":"a/b"},"pusher":null}`, `[{"ref":1}]`, "\xff", `{"repository":{"full_name":null}}`} {
		f.Add("push", "id-1", "application/json", []byte(body))
		f.Add("ping", "id-2", "", []byte(body))
	}
	f.Add("push", "id-3", "application/x-www-form-urlencoded", []byte("payload=%7B%7D"))
	f.Add("push", "id-4", "", []byte(pushed(`"compare":"https://github.com/a/b/compare/x","commits":[{"id":"`+sha+`","message":"m\\n","timestamp":"2026-03-02T10:00:00+02:00","author":{"name":"a"}}]`)))
	f.Add("issues", "", "text/plain", []byte(nil))
	f.Fuzz(func(t *testing.T, event, id, contentType string, body []byte) {
		h := http.Header{"X-Github-Event": {event}, "X-Github-Delivery": {id}, "Content-Type": {contentType}}
		g := forge.GitHub{CloneURL: func(string) string { return "https://github.com/a/b.git" }}
		e, gotID, err := g.Parse(h, body)
		if err != nil {
			if !errors.Is(err, pipeline.ErrInvalid) {
				t.Fatalf("%v does not wrap ErrInvalid", err)
			}
			return
		}
		if gotID != id || gotID == "" {
			t.Fatalf("delivery id %q became %q", id, gotID)
		}
		if e.Kind != pipeline.EventPush {
			return
		}
		if e.Deleted != (e.After == "") || e.Source == "" || strings.Count(e.Source, "/") != 1 {
			t.Fatalf("incomplete: %+v", e)
		}
		short := strings.TrimPrefix(strings.TrimPrefix(e.Ref, "refs/heads/"), "refs/tags/")
		if short == e.Ref || short == "" || strings.HasPrefix(short, "-") || strings.Contains(short, "..") || strings.ContainsAny(e.Ref, " \n\r\x00\x1b~^:?*[\\") {
			t.Fatalf("ref %q", e.Ref)
		}
		if _, err := json.Marshal(e); err != nil || len(e.Commits) > 250 || e.CompareURL != "" && !strings.HasPrefix(strings.ToLower(e.CompareURL), "https://github.com/") {
			t.Fatalf("%+v: %v", e, err)
		}
		for _, c := range e.Commits {
			if len(c.SHA) != 40 && len(c.SHA) != 64 || strings.ContainsAny(c.Title+c.Author, "\x00\n\r\x1b\u202e") {
				t.Fatalf("commit %+v", c)
			}
		}
		for _, sha := range []string{e.Before, e.After} {
			if sha != "" && len(sha) != 40 && len(sha) != 64 {
				t.Fatalf("object id %q", sha)
			}
		}
	})
}
