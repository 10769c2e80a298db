package builder

import (
	"encoding/base64"
	"os/exec"
	"strings"
	"testing"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/solver/pb"
)

func TestParseRemote(t *testing.T) {
	for in, want := range map[string]remote{
		"https://git.example/a/b.git":      {"https://git.example/a/b.git", "https://git.example", "git.example"},
		"http://127.0.0.1:3000/a":          {"http://127.0.0.1:3000/a", "http://127.0.0.1:3000", "127.0.0.1:3000"},
		"git://git.example:9418/a/b.git":   {"git://git.example:9418/a/b.git", "git://git.example:9418", "git.example:9418"},
		"https://[::1]:8443/with-dash/x-y": {"https://[::1]:8443/with-dash/x-y", "https://[::1]:8443", "[::1]:8443"},
	} {
		if got, err := parseRemote(in); err != nil || got != want {
			t.Errorf("%s: %+v, %v", in, got, err)
		}
	}
	for in, says := range map[string]string{
		"":                                "is empty",
		"-uupload-pack=touch /tmp/x":      "starts with a dash",
		"--upload-pack=x":                 "starts with a dash",
		"ext::sh -c touch% /tmp/x":        "spaces",
		"ext::sh":                         "want https://",
		"file:///etc":                     "want https://",
		"/srv/git/a.git":                  "want https://",
		"../a.git":                        "want https://",
		"git@git.example:a/b.git":         "is not a URL",
		"ssh://git@git.example/a":         "ssh needs a key",
		"https://user:hunter2@host/a":     "has credentials",
		"https://token@host/a":            "has credentials",
		"https:///a":                      "has no host",
		"https://-oProxyCommand=x/a":      "has no host",
		"https://host":                    "has no path",
		"https://host/":                   "has no path",
		"https://host/a#main":             "fragment",
		"https://host/a?ref=x":            "query",
		"https://host/a/../b":             "..",
		"https://host/--upload-pack=x":    "dash",
		"https://host/a\nb":               "control",
		"https://host/a b":                "spaces",
		"javascript:alert(1)":             "want https://",
		"https+insecure://host/a":         "want https://",
		"transport::https://host/a":       "want https://",
		"HTTPS://":                        "has no host",
		"https://host:port/a":             "is not a URL",
		"fd::17/foo":                      "want https://",
		"git+ssh://host/a":                "want https://",
		"https://host/%2e%2e/%2e%2e/etc/": "..",
	} {
		_, err := parseRemote(in)
		if err == nil {
			t.Errorf("%q is accepted", in)
			continue
		}
		wantPermanent(t, err, says)
		if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: the password is in the error: %v", in, err)
		}
	}
}

// checkRef agrees with git itself.
func TestCheckRef(t *testing.T) {
	names := []string{
		"main", "feature/x", "a.b", "v1.0.0", "v1.0.0-rc.1+build", "ünïcödé", "a-b", "@", "a@b", "UPPER", "x{y", "x}y", "HEAD", "a'b", `a"b`, "a$b", "a;b", "a&b",
		"", "-x", "a..b", "a/../b", ".a", "a/.b", "a.", "a.lock", "a.lock/b", "a/", "a//b", "/a", "a b", "a~b", "a^b", "a:b", "a?b", "a*b", "a[b", `a\b`, "a@{b", "a\x00b", "a\x7fb", "a\nb", "a\tb",
	}
	for _, kind := range []string{"refs/heads/", "refs/tags/"} {
		for _, n := range names {
			ref := kind + n
			ok := checkRef(ref) == nil
			want := exec.Command("git", "check-ref-format", ref).Run() == nil
			if strings.HasPrefix(n, "-") || strings.Contains(n, "\x00") {
				want = false // git forbids the first for branches only; an argument cannot hold the second
			}
			if ok != want {
				t.Errorf("%q: accepted %t, git says %t", ref, ok, want)
			}
		}
	}
	for _, ref := range []string{"", "main", "HEAD", "refs/heads", "refs/heads/", "refs/pull/1/head", "refs/notes/x", "--upload-pack=x", "refs/heads/" + strings.Repeat("x", 2000), strings.Repeat("a", 40)} {
		if err := checkRef(ref); err == nil {
			t.Errorf("%q is accepted", ref)
		} else {
			wantPermanent(t, err)
		}
	}
}

func TestCheckSHA(t *testing.T) {
	for _, ok := range []string{strings.Repeat("0a", 20), strings.Repeat("0a", 32)} {
		if err := checkSHA(ok); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", "abc", strings.Repeat("0A", 20), strings.Repeat("0g", 20), strings.Repeat("0a", 21), "--" + strings.Repeat("0a", 19)} {
		wantPermanent(t, checkSHA(bad))
	}
}

func TestGitAccess(t *testing.T) {
	b := &Builder{cfg: Config{GitCredentials: map[string]GitCredential{
		"https://git.example":      {Password: "the-token"},
		"https://git.example:8443": {Username: "ada", Password: "the-password"},
		"http://plain.example/":    {Password: "plain-token"},
	}}}
	secret := func(url string) (string, gitAccess) {
		r, err := parseRemote(url)
		if err != nil {
			t.Fatal(err)
		}
		a := b.gitAccess(r)
		var all []string
		for name, v := range a.secrets {
			if !strings.HasSuffix(name, "."+r.host) {
				t.Errorf("%s: the secret's name %s is not bound to the host", url, name)
			}
			all = append(all, string(v))
		}
		return strings.Join(all, ","), a
	}
	basic := "basic " + base64.StdEncoding.EncodeToString([]byte("ada:the-password"))
	for url, want := range map[string]string{
		"https://git.example/a":              "the-token",
		"https://git.example:8443/a":         basic,
		"http://plain.example/a":             "plain-token",
		"http://git.example/a":               "", // another scheme
		"https://git.example:444/a":          "", // another port
		"https://sub.git.example/a":          "",
		"https://git.example.evil.example/a": "",
		"git://git.example/a":                "",
	} {
		if got, _ := secret(url); got != want {
			t.Errorf("%s: offered %q, want %q", url, got, want)
		}
	}
	_, one := secret("https://git.example/a")
	_, two := secret("https://git.example/a")
	if one.token == two.token || one.header == two.header {
		t.Error("the names of secrets can be guessed")
	}
}

func TestGitSource(t *testing.T) {
	r, err := parseRemote("https://git.example/a/b.git")
	if err != nil {
		t.Fatal(err)
	}
	sha := strings.Repeat("ab", 20)
	a := gitAccess{header: "h", token: "t"}
	for name, c := range map[string]struct {
		state llb.State
		id    string
		attrs map[string]string
	}{
		"ref": {a.source(r, "refs/heads/main"), "git://git.example/a/b.git#refs/heads/main", map[string]string{
			pb.AttrFullRemoteURL: r.url, pb.AttrGitSkipSubmodules: "true", pb.AttrAuthHeaderSecret: "h", pb.AttrAuthTokenSecret: "t",
		}},
		"commit": {a.commit(r, sha), "git://git.example/a/b.git#" + sha, map[string]string{
			pb.AttrFullRemoteURL: r.url, pb.AttrGitSkipSubmodules: "true", pb.AttrAuthHeaderSecret: "h", pb.AttrAuthTokenSecret: "t",
			pb.AttrGitChecksum: sha, pb.AttrGitFetchByCommit: "true", pb.AttrGitMTime: "commit",
		}},
	} {
		def, err := c.state.Marshal(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		op, err := sourceOp(def)
		if err != nil {
			t.Fatal(err)
		}
		if op.Identifier != c.id || asJSON(t, op.Attrs) != asJSON(t, c.attrs) {
			t.Errorf("%s: %s %s", name, op.Identifier, asJSON(t, op.Attrs))
		}
	}
}
