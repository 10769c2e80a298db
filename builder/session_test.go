package builder

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/moby/buildkit/session/auth"
	"golang.org/x/crypto/nacl/sign"

	"github.com/dray-project/dray/pipeline"
)

func TestTrustedRealm(t *testing.T) {
	tls := pipeline.RegistryHost{Host: "registry.example", Password: "x", TokenHost: "auth.example:8443"}
	plain := pipeline.RegistryHost{Host: "127.0.0.1:5000", Password: "x", PlainHTTP: true}
	hub := pipeline.RegistryHost{Host: "registry-1.docker.io", Password: "x"}
	for _, c := range []struct {
		host  pipeline.RegistryHost
		realm string
		want  bool
	}{
		{tls, "https://registry.example/token", true},
		{tls, "https://REGISTRY.example/token", true},
		{tls, "https://auth.example:8443/token", true},
		{tls, "https://auth.example/token", false},
		{tls, "http://registry.example/token", false},
		{tls, "https://registry.example.evil.example/token", false},
		{tls, "https://registry.example@evil.example/token", false},
		{tls, "https://evil.example/?x=registry.example", false},
		{tls, "https://auth.docker.io/token", false},
		{tls, "//registry.example/token", false},
		{tls, "", false},
		{plain, "http://127.0.0.1:5000/token", true},
		{plain, "https://127.0.0.1:5000/token", true},
		{plain, "http://127.0.0.1:5001/token", false},
		{hub, "https://auth.docker.io/token", true},
		{hub, "http://auth.docker.io/token", false},
	} {
		if got := trustedRealm(c.host, c.realm); got != c.want {
			t.Errorf("%s for %s: %t", c.realm, c.host.Host, got)
		}
	}
}

func TestHostsFor(t *testing.T) {
	b := &Builder{cfg: Config{Hosts: []pipeline.RegistryHost{
		{Host: "dev.example", Username: "u", Password: "dev"}, {Host: "prod.example", Username: "u", Password: "prod"},
		{Host: "cache.example", Password: "cache"}, {Host: "docker.io", Password: "hub"}, {Host: "open.example"},
	}}}
	p := pipeline.Project{
		Repository: "dev.example/team/app", CacheRepository: "cache.example/team/app",
		Environments: []pipeline.Environment{{Repository: "prod.example/team/app"}, {Repository: "dev.example/stable/app"}},
	}
	hosts := b.hostsFor(p)
	for host, want := range map[string]string{
		"dev.example": "dev", "cache.example": "cache", "docker.io": "hub", "registry-1.docker.io": "hub",
		"prod.example": "", "open.example": "", "dev.example:443": "", "x.dev.example": "",
	} {
		c := &registryCredentials{hosts: hosts}
		got, err := c.Credentials(t.Context(), &auth.CredentialsRequest{Host: host})
		if err != nil || got.Secret != want {
			t.Errorf("%s: %q, %v; want %q", host, got.Secret, err, want)
		}
	}
}

func TestTokenAuthority(t *testing.T) {
	hosts := map[string]pipeline.RegistryHost{"r.example": {Host: "r.example", Username: "u", Password: "p"}}
	c := &registryCredentials{hosts: hosts, seed: []byte("seed")}
	key := func(c *registryCredentials) [32]byte {
		resp, err := c.GetTokenAuthority(t.Context(), &auth.GetTokenAuthorityRequest{Host: "r.example", Salt: []byte("salt")})
		if err != nil {
			t.Fatal(err)
		}
		return [32]byte(resp.PublicKey)
	}
	pub := key(c)
	signed, err := c.VerifyTokenAuthority(t.Context(), &auth.VerifyTokenAuthorityRequest{Host: "r.example", Salt: []byte("salt"), Payload: []byte("payload")})
	if err != nil {
		t.Fatal(err)
	}
	if out, ok := sign.Open(nil, signed.Signed, &pub); !ok || string(out) != "payload" {
		t.Error("the signature does not verify")
	}
	if key(&registryCredentials{hosts: hosts, seed: []byte("seed")}) != pub {
		t.Error("two sessions with the same credentials cannot share a token")
	}
	other := map[string]pipeline.RegistryHost{"r.example": {Host: "r.example", Username: "u", Password: "q"}}
	if key(&registryCredentials{hosts: other, seed: []byte("seed")}) == pub || key(&registryCredentials{hosts: hosts, seed: []byte("x")}) == pub {
		t.Error("a session with other credentials would get the token")
	}
}

func TestFetchToken(t *testing.T) {
	var got []string
	var foreign atomic.Int32
	evil := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, _, ok := r.BasicAuth(); ok || r.FormValue("password") != "" {
			foreign.Add(1)
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"token": "anonymous"})
	}))
	defer evil.Close()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u, p, _ := r.BasicAuth()
		got = append(got, r.Method+" "+u+":"+p+" "+r.FormValue("username")+":"+r.FormValue("password")+" "+r.FormValue("scope"))
		switch {
		case r.URL.Path == "/post" && r.Method == http.MethodGet:
			w.WriteHeader(http.StatusNotFound)
		case r.URL.Path == "/away":
			http.Redirect(w, r, evil.URL, http.StatusTemporaryRedirect)
		default:
			_ = json.NewEncoder(w).Encode(map[string]any{"token": "t", "access_token": "t", "expires_in": 77})
		}
	}))
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "http://")
	c := &registryCredentials{hosts: map[string]pipeline.RegistryHost{host: {Host: host, Username: "u", Password: "p", PlainHTTP: true}}}
	fetch := func(host, realm string) (*auth.FetchTokenResponse, error) {
		got = nil
		return c.FetchToken(t.Context(), &auth.FetchTokenRequest{Host: host, Realm: realm, Service: "s", Scopes: []string{"repository:a:pull"}})
	}
	resp, err := fetch(host, srv.URL+"/token")
	if err != nil || resp.Token != "t" || resp.ExpiresIn != 77 || len(got) != 1 || got[0] != "GET u:p : repository:a:pull" {
		t.Errorf("%v, %v, asked %q", resp, err, got)
	}
	resp, err = fetch(host, srv.URL+"/post")
	if err != nil || resp.Token != "t" || len(got) != 2 || got[1] != "POST : u:p repository:a:pull" {
		t.Errorf("%v, %v, asked %q", resp, err, got)
	}
	if resp, err = fetch(host, evil.URL); err != nil || resp.Token != "anonymous" {
		t.Errorf("%v, %v", resp, err)
	}
	if resp, err = fetch(host, srv.URL+"/away"); err == nil {
		t.Errorf("followed a redirect to another origin: %v", resp)
	}
	if resp, err = fetch("other.example", srv.URL+"/token"); err != nil || got[0] != "GET : : repository:a:pull" {
		t.Errorf("%v, %v, asked %q", resp, err, got)
	}
	if foreign.Load() != 0 {
		t.Error("a foreign token server was sent the credentials")
	}
}

// bearer makes a registry ask for a token, and counts what it and its token
// server see. The realm may be elsewhere.
type bearer struct {
	mu       sync.Mutex
	realm    string
	password string
	scopes   []string
	leaked   bool
}

func (b *bearer) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.mu.Lock()
		defer b.mu.Unlock()
		if r.URL.Path == "/token" {
			if _, p, _ := r.BasicAuth(); p != b.password {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			b.scopes = append(b.scopes, r.URL.Query()["scope"]...)
			_ = json.NewEncoder(w).Encode(map[string]any{"token": "good"})
			return
		}
		if strings.HasPrefix(r.Header.Get("Authorization"), "Basic ") {
			b.leaked = true
		}
		if r.Header.Get("Authorization") != "Bearer good" {
			realm := b.realm
			if realm == "" {
				realm = "http://" + r.Host + "/token"
			}
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+realm+`",service="r",scope="repository:team/app:pull,push"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func TestPrivateRegistry(t *testing.T) {
	const password = "s3cr3t-of-the-registry"
	s := newStack(t)
	guard := &bearer{password: password}
	host := newRegistry(t, guard.wrap)
	s.b.cfg.Hosts = []pipeline.RegistryHost{{Host: host, Username: "robot", Password: password, PlainHTTP: true}}
	s.project.Repository = host + "/team/app"
	src := s.mustResolve(s.push(scratchImage("")))
	res, out := s.mustBuild(src)
	if len(res.Platforms) != 1 || guard.leaked {
		t.Errorf("platforms %v, basic credentials sent to the registry itself: %t", res.Platforms, guard.leaked)
	}
	if steps := out.final("exporting cache"); len(steps) == 0 || steps[0].Error != "" {
		t.Errorf("the cache was not pushed: %v", steps)
	}
	if strings.Contains(out.text(), password) {
		t.Error("the password is in the output")
	}

	// A registry that sends for the token elsewhere gets none with the password.
	var seen bytes.Buffer
	evil := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = r.Write(&seen)
		_ = json.NewEncoder(w).Encode(map[string]any{"token": "bad"})
	}))
	defer evil.Close()
	guard2 := &bearer{password: password, realm: evil.URL}
	host2 := newRegistry(t, guard2.wrap)
	s.b.cfg.Hosts = []pipeline.RegistryHost{{Host: host2, Username: "robot", Password: password, PlainHTTP: true}}
	s.project.Repository = host2 + "/team/app"
	_, _, err := s.build(src)
	if err == nil || pipeline.IsPermanent(err) {
		t.Errorf("want an error that is retried, got %v", err)
	} else {
		wantParts(t, err, host2)
	}
	if seen.Len() == 0 || strings.Contains(seen.String(), "Authorization") || strings.Contains(seen.String(), password) {
		t.Errorf("the foreign token server saw %q", seen.String())
	}

	// The registry of a later environment is not for builds.
	s.b.cfg.Hosts = []pipeline.RegistryHost{{Host: s.registry, PlainHTTP: true}, {Host: host, Username: "robot", Password: password, PlainHTTP: true}}
	s.project.Repository = s.registry + "/team/app"
	s.project.Environments = []pipeline.Environment{{Name: "prod", Repository: host + "/team/app"}}
	_, _, err = s.resolve(s.push(map[string]string{"Dockerfile": "FROM " + host + "/team/app:cache-release-linux-amd64\n"}))
	if err == nil {
		t.Fatal("a build reads the registry of a later environment")
	}
	wantPermanent(t, err, host, "Dockerfile:1: ")
}
