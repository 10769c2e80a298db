package registry_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/registry"
	"github.com/dray-project/dray/pipeline/registry/registrytest"
)

// remove deletes behind Dray's back.
func remove(t testing.TB, host, path string) {
	t.Helper()
	answer(t, must[*http.Request](t)(http.NewRequest(http.MethodDelete, "http://"+host+path, nil)), http.StatusAccepted)
}

func digests(list []pipeline.Content) []pipeline.Digest {
	var out []pipeline.Digest
	for _, c := range list {
		out = append(out, c.Digest)
	}
	return out
}

// What is taken away or spoilt behind Dray's back is found by Audit and put back
// by Copy.
func TestAuditFindsAndCopyRepairs(t *testing.T) {
	type place struct {
		t    *testing.T
		to   *registrytest.Proxy
		s    *sample
		kind string
	}
	at := func(p place, path string) string { return "/v2/prod/app/" + path }
	fallback := func(d pipeline.Digest) string { return "manifests/sha256-" + d.Hex() }
	layer := func(p place) pipeline.Digest {
		m := must[*v1.Manifest](p.t)(p.s.children[0].Manifest())
		return pipeline.Digest(m.Layers[1].Digest.String())
	}
	for name, c := range map[string]struct {
		damage func(p place)
		// missing and unlisted at least; more only where the registry takes more.
		missing, unlisted func(p place) []pipeline.Digest
		only              string // kind of registry
	}{
		"signature": {
			damage: func(p place) {
				remove(p.t, p.to.Host, at(p, "manifests/"+string(p.s.referrers[p.s.image.Digest][0])))
			},
			missing: func(p place) []pipeline.Digest { return p.s.referrers[p.s.image.Digest][:1] },
		},
		"signature of an attestation": {
			damage: func(p place) {
				attestation := p.s.referrers[digestOf(p.t, p.s.children[1])][0]
				remove(p.t, p.to.Host, at(p, "manifests/"+string(p.s.referrers[attestation][0])))
			},
			missing: func(p place) []pipeline.Digest {
				return p.s.referrers[p.s.referrers[digestOf(p.t, p.s.children[1])][0]]
			},
		},
		"fallback tag": {
			only:     "tag",
			damage:   func(p place) { removeTag(p.t, p.to.Host, at(p, fallback(p.s.image.Digest))) },
			unlisted: func(p place) []pipeline.Digest { return p.s.referrers[p.s.image.Digest] },
		},
		"entry of the fallback tag": {
			only: "tag",
			damage: func(p place) {
				empty := `{"schemaVersion":2,"mediaType":"` + ociIndex + `","manifests":[]}`
				putManifest(p.t, p.to.Host, at(p, fallback(p.s.image.Digest)), ociIndex, empty)
			},
			unlisted: func(p place) []pipeline.Digest { return p.s.referrers[p.s.image.Digest] },
		},
		"legacy tag": {
			damage: func(p place) { removeTag(p.t, p.to.Host, at(p, fallback(p.s.image.Digest)+".sig")) },
			unlisted: func(p place) []pipeline.Digest {
				return []pipeline.Digest{p.s.legacy["sha256-"+p.s.image.Digest.Hex()+".sig"]}
			},
		},
		"legacy tag that names another": {
			damage: func(p place) {
				attachLegacy(p.t, p.to.Host+"/prod/app", p.s.image.Digest, ".sig", legacyLayer("index", "one"))
			},
			unlisted: func(p place) []pipeline.Digest {
				return []pipeline.Digest{p.s.legacy["sha256-"+p.s.image.Digest.Hex()+".sig"]}
			},
		},
		"legacy tag that names more": {
			damage: func(p place) {
				attachLegacy(p.t, p.to.Host+"/prod/app", p.s.image.Digest, ".sig",
					legacyLayer("index", "one"), legacyLayer("index", "two"), legacyLayer("index", "three"))
			},
		},
		"blob": {
			damage:  func(p place) { remove(p.t, p.to.Host, at(p, "blobs/"+string(layer(p)))) },
			missing: func(p place) []pipeline.Digest { return []pipeline.Digest{layer(p)} },
		},
		"child manifest": {
			damage: func(p place) {
				remove(p.t, p.to.Host, at(p, "manifests/"+string(digestOf(p.t, p.s.children[0]))))
			},
			missing: func(p place) []pipeline.Digest { return []pipeline.Digest{digestOf(p.t, p.s.children[0])} },
		},
		"image": {
			damage:  func(p place) { remove(p.t, p.to.Host, at(p, "manifests/"+string(p.s.image.Digest))) },
			missing: func(p place) []pipeline.Digest { return []pipeline.Digest{p.s.image.Digest} },
		},
		"nothing": {damage: func(place) {}},
	} {
		for kind, host := range kinds() {
			if c.only != "" && c.only != kind {
				continue
			}
			for _, with := range []string{"memory", "no memory"} {
				t.Run(name+" "+kind+" "+with, func(t *testing.T) {
					t.Parallel()
					from := registrytest.NewProxy(t, registrytest.Distribution(t))
					to := registrytest.NewProxy(t, host(t))
					var conf registry.Config
					if with == "memory" {
						conf.Memory = &registrytest.Memory{}
					}
					r := start(t, conf, from.Host, to.Host)
					dst := to.Host + "/prod/app"
					s := newSample(t, from.Host+"/team/app")
					copied, err := r.Copy(t.Context(), s.image, dst)
					if err != nil {
						t.Fatal(err)
					}
					p := place{t, to, s, kind}
					c.damage(p)
					to.Clear()
					got, err := r.Audit(t.Context(), copied.Image, copied.Contents)
					if err != nil {
						t.Fatal(err)
					}
					for what, q := range map[string]struct {
						have []pipeline.Content
						want func(place) []pipeline.Digest
					}{"missing": {got.Missing, c.missing}, "unlisted": {got.Unlisted, c.unlisted}} {
						var want []pipeline.Digest
						if q.want != nil {
							want = slices.Clone(q.want(p))
							slices.Sort(want)
						}
						if !slices.Equal(digests(q.have), want) {
							t.Errorf("%s %v, want %v", what, digests(q.have), want)
						}
					}
					if n := to.Count("PUT", "") + to.Count("POST", "") + to.Count("DELETE", "") + to.Count("PATCH", ""); n != 0 {
						t.Errorf("the audit wrote %d times", n)
					}
					to.Clear()
					if _, err := r.Copy(t.Context(), s.image, dst); err != nil {
						t.Fatalf("repair: %v", err)
					}
					if with == "memory" {
						t.Logf("repaired with %d requests", len(to.Requests()))
					}
					if got, err := r.Audit(t.Context(), copied.Image, copied.Contents); err != nil || !got.Intact() {
						t.Errorf("after the repair: %+v, %v", got, err)
					}
					if name != "legacy tag that names more" {
						s.check(t, dst)
					}
				})
			}
		}
	}
}

// removeTag deletes a tag; a registry that deletes no tags loses what it names.
func removeTag(t testing.TB, host, path string) {
	t.Helper()
	remove(t, host, path)
}

func putManifest(t testing.TB, host, path, mediaType, body string) {
	t.Helper()
	req := must[*http.Request](t)(http.NewRequest(http.MethodPut, "http://"+host+path, strings.NewReader(body)))
	req.Header.Set("Content-Type", mediaType)
	answer(t, req, http.StatusCreated)
}

// A registry that does not answer says nothing about the image; one that
// answers with other bytes does.
func TestAuditOfARegistryThatFails(t *testing.T) {
	for name, c := range map[string]struct {
		method, path string
		do           registrytest.Fault
		missing      int // -1: an error
	}{
		"does not answer for manifests": {"GET", "/manifests/sha256:", registrytest.Status(503), -1},
		"does not answer for blobs":     {"HEAD", "/blobs/", registrytest.Status(500), -1},
		"does not answer for tags":      {"GET", "/tags/list", registrytest.Status(500), -1},
		"forbids":                       {"GET", "/manifests/sha256:", registrytest.Status(403), -1},
		"changes manifests":             {"GET", "/manifests/sha256:", registrytest.FlipByte(), 7 + 4},
		"has other sizes": {"HEAD", "/blobs/", func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.Header().Set("Content-Length", "3")
		}, 24},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			to := registrytest.NewProxy(t, registrytest.Distribution(t))
			from := registrytest.Olareg(t)
			memory := &registrytest.Memory{}
			r := start(t, registry.Config{Memory: memory, Timing: registry.Timing{Attempts: 2}}, from, to.Host)
			s := newSample(t, from+"/team/app")
			dst := to.Host + "/prod/app"
			copied, err := r.Copy(t.Context(), s.image, dst)
			if err != nil {
				t.Fatal(err)
			}
			before := len(memory.Holds(dst))
			to.Inject(c.method, c.path, 0, c.do)
			got, err := r.Audit(t.Context(), copied.Image, copied.Contents)
			if (err != nil) != (c.missing < 0) {
				t.Fatalf("error %v", err)
			}
			if err != nil {
				if len(memory.Holds(dst)) != before {
					t.Error("what could not be asked for is forgotten")
				}
				return
			}
			if len(got.Missing) != c.missing {
				t.Errorf("%d missing, want %d", len(got.Missing), c.missing)
			}
			if n := len(memory.Holds(dst)); n != before-c.missing {
				t.Errorf("%d are remembered of %d", n, before)
			}
		})
	}
}
