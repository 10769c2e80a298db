package registry_test

import (
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/registry"
	"github.com/dray-project/dray/pipeline/registry/registrytest"
)

const user, password = "robot", "s3cret-of-one-origin"

// thief is a server that wants credentials and remembers what it was shown.
type thief struct {
	Host string
	mu   sync.Mutex
	saw  []string
}

func newThief(t testing.TB, answer http.HandlerFunc) *thief {
	th := &thief{}
	th.Host = registrytest.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		th.mu.Lock()
		th.saw = append(th.saw, fmt.Sprintf("%s %s %s", r.Method, r.URL, r.Header))
		th.mu.Unlock()
		answer(w, r)
	}))
	return th
}

func (th *thief) visits() []string {
	th.mu.Lock()
	defer th.mu.Unlock()
	return append([]string(nil), th.saw...)
}

func (th *thief) check(t testing.TB) {
	t.Helper()
	basic := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	for _, v := range th.visits() {
		if strings.Contains(v, password) || strings.Contains(v, basic) || strings.Contains(v, "Authorization") {
			t.Errorf("a foreign origin was shown credentials: %s", v)
		}
	}
}

// protect asks for Basic credentials before it passes a request on.
func protect(t testing.TB, backend string) *registrytest.Proxy {
	p := registrytest.NewProxy(t, backend)
	p.Inject("", ".", 0, func(w http.ResponseWriter, r *http.Request, registry http.Handler) {
		if u, pw, ok := r.BasicAuth(); !ok || u != user || pw != password {
			w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		r.Header.Del("Authorization")
		registry.ServeHTTP(w, r)
	})
	return p
}

func withCredentials(host, username, pw, tokenHost string) registry.Config {
	return registry.Config{Hosts: []pipeline.RegistryHost{{Host: host, Username: username, Password: pw, PlainHTTP: true, TokenHost: tokenHost}}}
}

func TestCredentialsAreUsedWhereTheyBelong(t *testing.T) {
	open := registrytest.Distribution(t)
	s := bare(t, open+"/team/app")
	p := protect(t, open)
	source := registrytest.Olareg(t)
	from := newSample(t, source+"/team/app")

	r := start(t, withCredentials(p.Host, user, password, ""), source)
	if ok, err := r.Exists(t.Context(), pipeline.Image{Repository: p.Host + "/team/app", Digest: s.image.Digest}); err != nil || !ok {
		t.Errorf("with credentials: %t, %v", ok, err)
	}
	if _, err := r.Copy(t.Context(), from.image, p.Host+"/prod/app"); err != nil {
		t.Errorf("copy to a protected registry: %v", err)
	}
	from.check(t, open+"/prod/app")

	// Other packages use the same credentials by the same way.
	ref := must[name.Digest](t)(name.NewDigest(p.Host+"/team/app@"+string(s.image.Digest), r.NameOptions(p.Host)...))
	if _, err := remote.Get(ref, r.RemoteOptions()...); err != nil {
		t.Errorf("through RemoteOptions: %v", err)
	}

	none := start(t, registry.Config{}, p.Host)
	_, err := none.Tags(t.Context(), p.Host+"/team/app")
	wantError(t, err, true, nil, p.Host, "wants credentials", "username and password")
	wrong := start(t, withCredentials(p.Host, user, "wrong", ""))
	_, err = wrong.Tags(t.Context(), p.Host+"/team/app")
	wantError(t, err, true, nil, p.Host, "does not accept the credentials", user)
	if strings.Contains(err.Error(), "wrong") {
		t.Errorf("the error shows the password: %v", err)
	}
}

func TestKeychainKnowsExactHosts(t *testing.T) {
	dir := t.TempDir()
	auth := fmt.Sprintf(`{"auths":{"other.example":{"auth":%q}}}`, base64.StdEncoding.EncodeToString([]byte("me:mine")))
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(auth), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("DOCKER_CONFIG", dir)
	r := start(t, registry.Config{Hosts: []pipeline.RegistryHost{
		{Host: "registry.example:5000", Username: user, Password: password},
		{Host: "docker.io", Username: "hub", Password: "hubsecret"},
	}})
	for repo, want := range map[string]string{
		"registry.example:5000/a":      user,
		"registry.example:5001/a":      "",
		"registry.example/a":           "",
		"evil.registry.example:5000/a": "",
		"other.example/a":              "",
		"docker.io/library/a":          "hub",
		"index.docker.io/library/a":    "hub",
	} {
		n := must[name.Repository](t)(name.NewRepository(repo))
		a := must[authn.Authenticator](t)(r.Keychain().Resolve(n))
		if c := must[*authn.AuthConfig](t)(a.Authorization()); c.Username != want {
			t.Errorf("%s gets the credentials of %q, want %q", repo, c.Username, want)
		}
	}
}

// A registry names a token service at another origin.
func TestForeignRealmGetsNoCredentials(t *testing.T) {
	th := newThief(t, func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]string{"token": "stolen"})
	})
	hostile := registrytest.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "" {
			// By name, because the library refuses loopback addresses as realms.
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="x"`, byName(th.Host)))
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	c := withCredentials(hostile, user, password, "")
	// The realm can be reached in the clear; it is its origin that is wrong.
	c.Hosts = append(c.Hosts, pipeline.RegistryHost{Host: byName(th.Host), PlainHTTP: true})
	r := start(t, c)
	_, err := r.Tags(t.Context(), hostile+"/team/app")
	wantError(t, err, true, nil, hostile, byName(th.Host), "token_host")
	if n := len(th.visits()); n != 0 {
		t.Errorf("the foreign realm was visited %d times", n)
	}
	// Through another package's client the same.
	n := must[name.Repository](t)(name.NewRepository(hostile+"/team/app", r.NameOptions(hostile)...))
	if _, err := remote.List(n, r.RemoteOptions()...); err == nil {
		t.Error("another client got a token from the foreign realm")
	}
	th.check(t)

	// Named in the settings it is trusted.
	c.Hosts[0].TokenHost = byName(th.Host)
	if _, err := start(t, c).Tags(t.Context(), hostile+"/team/app"); err != nil && strings.Contains(err.Error(), "token_host") {
		t.Errorf("the token host that is set was refused: %v", err)
	}
	if len(th.visits()) == 0 || !strings.Contains(th.visits()[0], "Authorization") {
		t.Error("the token host that is set got no credentials")
	}
}

func byName(host string) string { return strings.Replace(host, "127.0.0.1", "localhost", 1) }

// A registry redirects reads, and sends uploads elsewhere.
func TestForeignLocationsGetNoCredentials(t *testing.T) {
	backend := registrytest.Distribution(t)
	s := bare(t, backend+"/team/app")
	th := newThief(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Ask") == "" {
			w.Header().Set("WWW-Authenticate", `Basic realm="me"`)
		}
		w.WriteHeader(http.StatusUnauthorized)
	})
	for what, inject := range map[string]func(p *registrytest.Proxy){
		"redirected manifest": func(p *registrytest.Proxy) {
			p.Inject("GET", "/manifests/", 0, redirect("http://"+th.Host+"/m"))
		},
		"redirected blob": func(p *registrytest.Proxy) {
			p.Inject("GET", "/blobs/", 0, redirect("http://"+byName(th.Host)+"/b"))
		},
		"redirect with credentials of its own": func(p *registrytest.Proxy) {
			p.Inject("GET", "/blobs/", 0, redirect("http://"+user+":"+password+"@"+th.Host+"/b"))
		},
		"upload location": func(p *registrytest.Proxy) {
			p.Inject("POST", "/blobs/uploads/", 0, registrytest.Status(202, "Location", "http://"+th.Host+"/upload"))
		},
	} {
		t.Run(what, func(t *testing.T) {
			p := registrytest.NewProxy(t, backend)
			inject(p)
			protectRest(p)
			dst := registrytest.Olareg(t)
			c := withCredentials(p.Host, user, password, "")
			c.Timing.Attempts = 2
			r := start(t, c, dst)
			from, to := p.Host+"/team/app", dst+"/prod/app"
			if what == "upload location" {
				from, to = backend+"/team/app", p.Host+"/prod/app"
				// It may be reached in the clear, else it would not be visited at all.
				r = start(t, withCredentials(p.Host, user, password, ""), backend, th.Host)
			}
			before := len(th.visits())
			_, err := r.Copy(t.Context(), pipeline.Image{Repository: from, Digest: s.image.Digest}, to)
			if err == nil {
				t.Error("the copy succeeded with a thief's answers")
			}
			if len(th.visits()) == before {
				t.Errorf("the thief was not even visited: %v", err)
			}
			th.check(t)
		})
	}
}

func redirect(to string) registrytest.Fault {
	return func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		http.Redirect(w, r, to, http.StatusTemporaryRedirect)
	}
}

// protectRest is protect for what other faults leave through.
func protectRest(p *registrytest.Proxy) {
	p.Inject("", ".", 0, func(w http.ResponseWriter, r *http.Request, registry http.Handler) {
		if _, _, ok := r.BasicAuth(); !ok {
			w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		r.Header.Del("Authorization")
		registry.ServeHTTP(w, r)
	})
}

func TestPlainHTTPOnlyWhereSet(t *testing.T) {
	host := registrytest.Olareg(t)
	r := start(t, registry.Config{})
	// The client library would take the loopback address for plain http.
	_, err := r.Tags(t.Context(), host+"/team/app")
	wantError(t, err, true, nil, host, "plain_http")
	if len(r.NameOptions(host)) != 0 || len(start(t, registry.Config{}, host).NameOptions(host)) != 1 {
		t.Error("plain http is an option exactly where it is set")
	}

	// A certificate that nobody trusts is not got around by plain http.
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	tlsHost := strings.TrimPrefix(server.URL, "https://")
	_, err = r.Tags(t.Context(), tlsHost+"/team/app")
	wantError(t, err, true, nil, tlsHost)
}

func TestLinkLocalIsNeverDialled(t *testing.T) {
	p := registrytest.NewProxy(t, registrytest.Distribution(t))
	s := bare(t, p.Host+"/team/app")
	r := start(t, registry.Config{}, p.Host)
	p.Inject("GET", "/manifests/", 0, redirect("http://169.254.169.254/latest/meta-data"))
	_, err := r.Exists(t.Context(), s.image)
	wantError(t, err, true, nil, "link-local")
}

func TestNewNamesTheSetting(t *testing.T) {
	for want, hosts := range map[string][]pipeline.RegistryHost{
		"registries[0].host":                {{Host: "https://registry.example"}},
		"registries[1].host":                {{Host: "a.example"}, {Host: "A.example"}},
		"registries[0] (a.example)":         {{Host: "a.example", Username: "u"}},
		`registries[0].host: "a.example/b"`: {{Host: "a.example/b"}},
	} {
		_, err := registry.New(t.Context(), registry.Config{Hosts: hosts, Locker: &registrytest.Locker{}, Log: discardLog()})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("hosts %v: want an error that names %s, got %v", hosts, want, err)
		}
	}
}
