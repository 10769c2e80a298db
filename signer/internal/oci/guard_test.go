package oci

import (
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/dray-project/dray/pipeline"
)

type answer func(*http.Request) (*http.Response, error)

func (a answer) RoundTrip(r *http.Request) (*http.Response, error) { return a(r) }

func TestGuardRefusesPlainHTTP(t *testing.T) {
	sent := 0
	g := &guard{
		inner: answer(func(*http.Request) (*http.Response, error) {
			sent++
			return &http.Response{Body: io.NopCloser(strings.NewReader("x"))}, nil
		}),
		hosts: map[string]pipeline.RegistryHost{
			"plain.example:5000": {PlainHTTP: true}, "secure.example": {}, "127.0.0.1:5001": {},
		},
	}
	for address, want := range map[string]bool{
		"http://plain.example:5000/v2/": true, "https://plain.example:5000/v2/": true,
		"http://secure.example/v2/": false, "https://secure.example/v2/": true,
		"http://127.0.0.1:5000/v2/": true, "http://[::1]:5000/v2/": true, "http://localhost:5000/v2/": true,
		"http://127.0.0.1:5001/v2/": false, // its setting asks for https
		"http://10.0.0.1/v2/":       false, "http://registry.local/v2/": false, "http://plain.example/v2/": false,
	} {
		req, err := http.NewRequest(http.MethodGet, address, nil)
		if err != nil {
			t.Fatal(err)
		}
		before := sent
		if _, err := g.RoundTrip(req); (err == nil) != want || (sent > before) != want {
			t.Errorf("%s: sent %v with error %v, want sent %v", address, sent > before, err, want)
		}
	}
}

func TestManifestsAreCutOff(t *testing.T) {
	var size int
	g := &guard{inner: answer(func(*http.Request) (*http.Response, error) {
		return &http.Response{Body: io.NopCloser(strings.NewReader(strings.Repeat("x", size)))}, nil
	})}
	for _, tt := range []struct {
		path string
		size int
		ok   bool
	}{
		{"manifests/v1", MaxManifest, true}, {"manifests/v1", MaxManifest + 1, false},
		{"referrers/x", MaxManifest + 1, false}, {"blobs/x", MaxManifest + 1, true},
	} {
		size = tt.size
		req, err := http.NewRequest(http.MethodGet, "https://r.example/v2/app/"+tt.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := g.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, res.Body)
		var large *TooLarge
		if tt.ok && (err != nil || n != int64(size)) || !tt.ok && !errors.As(err, &large) {
			t.Errorf("%s of %d bytes: read %d, %v", tt.path, size, n, err)
		}
	}
}

func TestNextPage(t *testing.T) {
	at, _ := url.Parse("https://r.example/v2/app/referrers/x?n=1")
	for _, tt := range []struct{ link, want string }{
		{"", ""},
		{`</v2/app/referrers/x?page=2>; rel="next"`, "https://r.example/v2/app/referrers/x?page=2"},
		{`</a>; rel=prev, </b?c>; title=x; REL=Next`, "https://r.example/b?c"},
		{`<http://r.example/b>; rel=next`, "https://r.example/b"},
		{`<?page=2>;rel="next"`, "https://r.example/v2/app/referrers/x?page=2"},
		{`</b>`, ""}, {`/b; rel=next`, ""}, {`<`, ""}, {`>;rel=next`, ""},
		{`<https://evil.example/b>; rel=next`, "error"}, {`<//evil.example/b>; rel=next`, "error"},
		{`<https://r.example:444/b>; rel=next`, "error"}, {`<http://[::1>; rel=next`, "error"},
	} {
		got, err := nextPage([]string{tt.link}, at)
		switch {
		case tt.want == "error":
			if err == nil {
				t.Errorf("%q: %v, want an error", tt.link, got)
			}
		case err != nil || tt.want == "" && got != nil || tt.want != "" && (got == nil || got.String() != tt.want):
			t.Errorf("%q: %v, %v; want %q", tt.link, got, err, tt.want)
		}
	}
}

func TestConfigIsChecked(t *testing.T) {
	for _, hosts := range [][]pipeline.RegistryHost{
		{{Host: ""}}, {{Host: "https://r.example"}}, {{Host: "r.example/x"}},
		{{Host: "r.example"}, {Host: "r.example"}}, {{Host: "docker.io"}, {Host: "index.docker.io"}},
	} {
		if _, err := New(Config{Hosts: hosts}); !errors.Is(err, pipeline.ErrInvalid) || !strings.Contains(err.Error(), "Hosts") {
			t.Errorf("%+v: %v, want ErrInvalid that names Hosts", hosts, err)
		}
	}
}
