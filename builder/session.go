package builder

import (
	"context"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	registryauth "github.com/containerd/containerd/v2/core/remotes/docker/auth"
	remoteserrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"golang.org/x/crypto/nacl/sign"
	"google.golang.org/grpc"

	"github.com/dray-project/dray/pipeline"
)

// session is what buildkitd may ask drayd for during one call.
func (b *Builder) session(p pipeline.Project, git gitAccess) []session.Attachable {
	return []session.Attachable{
		&registryCredentials{hosts: b.hostsFor(p), seed: b.seed},
		secretsprovider.FromMap(git.secrets),
	}
}

// hostsFor leaves out the registries that the project's images are promoted
// to, unless builds push there too.
func (b *Builder) hostsFor(p pipeline.Project) map[string]pipeline.RegistryHost {
	own := map[string]bool{registryOf(p.Repository): true, registryOf(cacheRepository(p)): true}
	out := map[string]pipeline.RegistryHost{}
	for _, h := range b.cfg.Hosts {
		later := false
		for _, e := range p.Environments {
			later = later || registryOf(e.Repository) == h.Host
		}
		if h.Password == "" || later && !own[h.Host] {
			continue
		}
		out[h.Host] = h
		if isHub(h.Host) {
			out["registry-1.docker.io"] = h // where the Hub's API is
		}
	}
	return out
}

// registryCredentials answers buildkitd's questions for credentials, for exact
// hosts only. Where a registry wants a token, drayd fetches it, so that the
// password does not leave drayd and goes to no foreign token server.
type registryCredentials struct {
	auth.UnimplementedAuthServer
	hosts map[string]pipeline.RegistryHost
	seed  []byte
}

func (c *registryCredentials) Register(s *grpc.Server) { auth.RegisterAuthServer(s, c) }

// Credentials is asked by buildkitd when a registry wants basic authentication.
func (c *registryCredentials) Credentials(_ context.Context, req *auth.CredentialsRequest) (*auth.CredentialsResponse, error) {
	h := c.hosts[req.Host]
	return &auth.CredentialsResponse{Username: h.Username, Secret: h.Password}, nil
}

func (c *registryCredentials) key(host string, salt []byte) ed25519.PrivateKey {
	h := c.hosts[host]
	mac := hmac.New(sha256.New, c.seed)
	for _, part := range []string{host, h.Username, h.Password, string(salt)} {
		fmt.Fprintf(mac, "%d:%s", len(part), part)
	}
	return ed25519.NewKeyFromSeed(mac.Sum(nil)[:ed25519.SeedSize])
}

// GetTokenAuthority tells buildkitd that drayd fetches the tokens.
func (c *registryCredentials) GetTokenAuthority(_ context.Context, req *auth.GetTokenAuthorityRequest) (*auth.GetTokenAuthorityResponse, error) {
	return &auth.GetTokenAuthorityResponse{PublicKey: c.key(req.Host, req.Salt)[32:]}, nil
}

// VerifyTokenAuthority proves that this session holds the same credentials as
// one whose token buildkitd still has.
func (c *registryCredentials) VerifyTokenAuthority(_ context.Context, req *auth.VerifyTokenAuthorityRequest) (*auth.VerifyTokenAuthorityResponse, error) {
	priv := [64]byte(c.key(req.Host, req.Salt))
	return &auth.VerifyTokenAuthorityResponse{Signed: sign.Sign(nil, req.Payload, &priv)}, nil
}

// FetchToken gets a bearer token from the server that the registry names.
func (c *registryCredentials) FetchToken(ctx context.Context, req *auth.FetchTokenRequest) (*auth.FetchTokenResponse, error) {
	h := c.hosts[req.Host]
	if h.Password != "" && !trustedRealm(h, req.Realm) {
		// Anonymous is still allowed: the registry may serve the public part.
		h = pipeline.RegistryHost{Host: req.Host}
	}
	opts := registryauth.TokenOptions{
		Realm: req.Realm, Service: req.Service, Scopes: req.Scopes,
		Username: h.Username, Secret: h.Password,
	}
	hc := &http.Client{
		Timeout: 30 * time.Second,
		CheckRedirect: func(next *http.Request, via []*http.Request) error {
			if next.URL.Scheme != via[0].URL.Scheme || next.URL.Host != via[0].URL.Host {
				return fmt.Errorf("the token server redirects to another origin, %s", next.URL.Host)
			}
			if len(via) > 3 {
				return errors.New("too many redirects")
			}
			return nil
		},
	}
	resp, err := registryauth.FetchToken(ctx, hc, nil, opts)
	if err == nil {
		return tokenResponse(resp.Token, resp.ExpiresInSeconds, resp.IssuedAt), nil
	}
	// Some registries know the POST form only.
	var status remoteserrors.ErrUnexpectedStatus
	if h.Password != "" && errors.As(err, &status) && (status.StatusCode == http.StatusMethodNotAllowed ||
		status.StatusCode == http.StatusNotFound || status.StatusCode == http.StatusUnauthorized) {
		post, err2 := registryauth.FetchTokenWithOAuth(ctx, hc, nil, "dray", opts)
		if err2 == nil {
			return tokenResponse(post.AccessToken, post.ExpiresInSeconds, post.IssuedAt), nil
		}
	}
	return nil, fmt.Errorf("token for %s from %s: %w", req.Host, req.Realm, err)
}

func tokenResponse(token string, expires int, issued time.Time) *auth.FetchTokenResponse {
	out := &auth.FetchTokenResponse{Token: token, ExpiresIn: int64(expires)}
	if !issued.IsZero() {
		out.IssuedAt = issued.Unix()
	}
	return out
}

// trustedRealm reports whether a token server may see the credentials of a
// registry: it is the registry itself or the token host that the settings name
// for it, over TLS unless the registry itself is plain.
func trustedRealm(h pipeline.RegistryHost, realm string) bool {
	u, err := url.Parse(realm)
	if err != nil || u.Host == "" || u.User != nil {
		return false
	}
	if u.Scheme != "https" && (u.Scheme != "http" || !h.PlainHTTP) {
		return false
	}
	for _, host := range []string{h.Host, h.TokenHost} {
		if host != "" && strings.EqualFold(u.Host, host) {
			return true
		}
	}
	return isHub(h.Host) && u.Host == "auth.docker.io"
}

// isHub reports whether a host is one of Docker Hub's names.
func isHub(host string) bool {
	return host == "docker.io" || host == "index.docker.io" || host == "registry-1.docker.io"
}

// registryOf is the host of a repository name.
func registryOf(repository string) string {
	host, _, ok := strings.Cut(repository, "/")
	if !ok || !strings.ContainsAny(host, ".:") && host != "localhost" {
		return "docker.io"
	}
	return host
}
