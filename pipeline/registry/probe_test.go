package registry_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/registry"
	"github.com/dray-project/dray/pipeline/registry/registrytest"
)

func TestProbeTriesTheRegistry(t *testing.T) {
	const yes, no = pipeline.CapabilityYes, pipeline.CapabilityNo
	refuse := func(status int) registrytest.Fault { return registrytest.Status(status) }
	for name, c := range map[string]struct {
		faults func(p *registrytest.Proxy)
		want   func(w *pipeline.RegistryProbe)
		notes  []string
		broken string // word of the error
	}{
		"as it is": {},
		"cannot mount": {
			faults: func(p *registrytest.Proxy) {
				p.Inject("POST", "mount=", 0, func(w http.ResponseWriter, r *http.Request, registry http.Handler) {
					r.URL.RawQuery = ""
					registry.ServeHTTP(w, r)
				})
			},
			want: func(w *pipeline.RegistryProbe) { w.Mount = no },
		},
		"deletes nothing": {
			faults: func(p *registrytest.Proxy) { p.Inject("DELETE", "/(manifests|blobs)/[^u]", 0, refuse(405)) },
			want:   func(w *pipeline.RegistryProbe) { w.Delete = no },
			notes:  []string{"could not remove ", "tag dray-probe-", "manifest sha256:", "blob sha256:"},
		},
		"says that it deletes": {
			faults: func(p *registrytest.Proxy) { p.Inject("DELETE", "/manifests/sha256", 1, refuse(202)) },
			want:   func(w *pipeline.RegistryProbe) { w.Delete = no },
			notes:  []string{"accepts the deletion of a manifest and keeps it"},
		},
		"does not move tags": {
			faults: func(p *registrytest.Proxy) {
				moved := false
				p.Inject("PUT", "/manifests/dray-probe-", 0, func(w http.ResponseWriter, r *http.Request, registry http.Handler) {
					if moved {
						refuse(400)(w, r, registry)
						return
					}
					moved = true
					registry.ServeHTTP(w, r)
				})
			},
			want: func(w *pipeline.RegistryProbe) { w.ImmutableTags = yes },
		},
		"takes small manifests": {
			faults: func(p *registrytest.Proxy) {
				p.Inject("PUT", "/manifests/", 0, func(w http.ResponseWriter, r *http.Request, registry http.Handler) {
					if r.ContentLength > 600<<10 {
						_, _ = io.Copy(io.Discard, r.Body)
						refuse(413)(w, r, registry)
						return
					}
					registry.ServeHTTP(w, r)
				})
			},
			want: func(w *pipeline.RegistryProbe) { w.MaxManifest = 512 << 10 },
		},
		"announces a limit": {
			faults: func(p *registrytest.Proxy) {
				p.Inject("HEAD", "/manifests/", 0, registrytest.Edit(func(status int, h http.Header, body []byte) (int, []byte) {
					h.Set("RateLimit-Limit", "100;w=21600")
					h.Set("RateLimit-Remaining", "98;w=21600")
					return status, body
				}))
			},
			notes: []string{"announces a rate limit: 100;w=21600, of which 98;w=21600"},
		},
		"allows no push": {
			faults: func(p *registrytest.Proxy) { p.Inject("POST", "/blobs/uploads/", 0, refuse(403)) },
			want: func(w *pipeline.RegistryProbe) {
				w.MaxManifest, w.Referrers, w.Mount, w.Delete, w.ImmutableTags = 0, "unknown", "unknown", "unknown", "unknown"
			},
			broken: "does not allow this",
		},
		"breaks in the middle": {
			faults: func(p *registrytest.Proxy) { p.Inject("PUT", "/manifests/dray-probe-", 0, refuse(500)) },
			want: func(w *pipeline.RegistryProbe) {
				w.MaxManifest, w.Delete, w.ImmutableTags = 0, "unknown", "unknown"
			},
			broken: "500",
		},
	} {
		for kind, host := range kinds() {
			t.Run(name+" "+kind, func(t *testing.T) {
				t.Parallel()
				p := registrytest.NewProxy(t, host(t))
				repo := p.Host + "/team/app"
				s := newSample(t, repo)
				r := start(t, registry.Config{Timing: registry.Timing{Attempts: 2}}, p.Host)
				p.Clear()
				if c.faults != nil {
					c.faults(p)
				}
				got, err := r.Probe(t.Context(), repo)
				want := pipeline.RegistryProbe{Referrers: no, Mount: yes, Delete: yes, ImmutableTags: no, MaxManifest: 4 << 20}
				if kind == "api" {
					want.Referrers = yes
				}
				if c.want != nil {
					c.want(&want)
				}
				if (err != nil) != (c.broken != "") || err != nil && !strings.Contains(err.Error(), c.broken) {
					t.Errorf("error %v, want %q", err, c.broken)
				}
				if err != nil && got.Error != err.Error() || err == nil && got.Error != "" {
					t.Errorf("the probe says %q, the error is %v", got.Error, err)
				}
				if got.Host != p.Host || got.Repository != repo || got.ProbedAt.IsZero() {
					t.Errorf("probed %+v", got)
				}
				if got.Referrers != want.Referrers || got.Mount != want.Mount || got.Delete != want.Delete ||
					got.ImmutableTags != want.ImmutableTags || got.MaxManifest != want.MaxManifest {
					t.Errorf("probe\n%+v, want\n%+v", got, want)
				}
				notes := strings.Join(got.Notes, "\n")
				for _, n := range c.notes {
					if !strings.Contains(notes, n) {
						t.Errorf("notes %q do not say %q", notes, n)
					}
				}
				if len(c.notes) == 0 && notes != "" {
					t.Errorf("notes %q", notes)
				}
				requests := p.Requests()
				p.Clear()
				if !strings.Contains(notes, "could not remove") {
					leavesNothing(t, p.Host, requests)
				}
				s.check(t, repo)
			})
		}
	}
	_, err := start(t, registry.Config{Timing: registry.Timing{Attempts: 1}}, "127.0.0.1:1").Probe(t.Context(), "127.0.0.1:1/team/app")
	wantError(t, err, false, nil, "127.0.0.1:1", "cannot be reached")
}

// leavesNothing looks for the probe's manifests, all of which the proxy saw.
func leavesNothing(t *testing.T, host string, requests []registrytest.Request) {
	t.Helper()
	for _, q := range requests {
		if q.Method != "PUT" || !hasManifest(q.Path) || q.Status != 201 {
			continue
		}
		res := must[*http.Response](t)(http.Get("http://" + host + q.Path))
		res.Body.Close()
		if res.StatusCode != http.StatusNotFound {
			t.Errorf("%s is still there: %s", q.Path, res.Status)
		}
	}
}
