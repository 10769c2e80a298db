package signer_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/signer"
	"github.com/dray-project/dray/signer/internal/signertest"
	"github.com/dray-project/dray/signer/verify"
)

func TestUnsignedSaysWhereItLooked(t *testing.T) {
	onBoth(t, func(t *testing.T, reg *signertest.Registry) {
		s := newSigner(t, 0, nil)
		img := reg.Image(t, "team/app")
		_, err := s.Verify(t.Context(), img)
		unverified(t, err, img.String(), s.KeyID(), verify.LegacyTag(img.Digest, "sig"), "absent")

		missing := pipeline.Image{Repository: img.Repository, Digest: pipeline.Digest("sha256:" + strings.Repeat("0", 64))}
		if _, err := s.Verify(t.Context(), missing); !errors.Is(err, pipeline.ErrNotFound) || !errors.Is(err, pipeline.ErrUnverified) {
			t.Errorf("an image that is not there: %v, want ErrNotFound and ErrUnverified", err)
		}
		if _, err := s.Sign(t.Context(), missing); !errors.Is(err, pipeline.ErrNotFound) {
			t.Errorf("signing an image that is not there: %v, want ErrNotFound", err)
		}
		if _, err := s.Sign(t.Context(), pipeline.Image{Repository: img.Repository + ":v1", Digest: img.Digest}); !pipeline.IsPermanent(err) {
			t.Errorf("signing a tag: %v, want a permanent refusal", err)
		}
	})
}

func TestUnknownKeyIsNamed(t *testing.T) {
	onBoth(t, func(t *testing.T, reg *signertest.Registry) {
		img := reg.Image(t, "team/app")
		other := newSigner(t, 1, nil)
		if _, err := other.Sign(t.Context(), img); err != nil {
			t.Fatal(err)
		}
		_, err := newSigner(t, 0, nil).Verify(t.Context(), img)
		unverified(t, err, other.KeyID(), "untrusted key")
	})
}

// A signature that was made for one image says nothing of another.
func TestForeignSignatures(t *testing.T) {
	onBoth(t, func(t *testing.T, reg *signertest.Registry) {
		a := attacker{t, reg}
		s := newSigner(t, 0, nil)
		signed, victim := reg.Image(t, "team/app"), reg.Image(t, "team/app")
		signatures, err := s.Sign(t.Context(), signed)
		if err != nil {
			t.Fatal(err)
		}
		attestations, err := s.Attest(t.Context(), signed, provenance)
		if err != nil {
			t.Fatal(err)
		}
		for _, g := range signatures {
			content, annotations := a.layer(signed.Repository, g.Manifest)
			if g.Layout == verify.LayoutBundle {
				a.refer(victim, content, nil)
			} else {
				d := a.blob(victim.Repository, content, verify.SimpleSigningType)
				d.Annotations = annotations
				a.manifest(victim.Repository, verify.LegacyTag(victim.Digest, "sig"), v1.Manifest{Layers: []v1.Descriptor{d}})
			}
		}
		for _, g := range attestations {
			content, _ := a.layer(signed.Repository, g.Manifest)
			if g.Layout == verify.LayoutBundle {
				a.refer(victim, content, nil)
			} else {
				a.manifest(victim.Repository, verify.LegacyTag(victim.Digest, "att"),
					v1.Manifest{Layers: []v1.Descriptor{a.blob(victim.Repository, content, verify.EnvelopeType)}})
			}
		}
		_, err = s.Verify(t.Context(), victim)
		unverified(t, err, "about another image")

		// Signing the victim all the same makes its own signatures, and none of the
		// foreign ones counts.
		if _, err := s.Sign(t.Context(), victim); err != nil {
			t.Fatal(err)
		}
		v, err := s.Verify(t.Context(), victim)
		if err != nil || len(v.Signatures) != 2 || len(v.Attestations) != 0 {
			t.Errorf("%+v, %v; want the two own signatures and no attestation", v, err)
		}
	})
}

func TestTamperedContent(t *testing.T) {
	onBoth(t, func(t *testing.T, reg *signertest.Registry) {
		for _, layout := range bothLayouts {
			t.Run(layout, func(t *testing.T) {
				a := attacker{t, reg}
				s := newSigner(t, 0, func(c *signer.Config) { c.Layouts = []string{layout} })
				img := reg.Image(t, "team/"+layout)
				signed, err := s.Sign(t.Context(), img)
				if err != nil {
					t.Fatal(err)
				}
				content, _ := a.layer(img.Repository, signed[0].Manifest)
				for name, tamper := range map[string]func([]byte) []byte{
					"flipped byte": func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
					"cut short":    func(b []byte) []byte { return b[:len(b)/2] },
					"made longer":  func(b []byte) []byte { return append(b, "    "...) },
					"emptied":      func([]byte) []byte { return nil },
				} {
					reg.Override(func(w http.ResponseWriter, r *http.Request, registry http.Handler) {
						rec := httptest.NewRecorder()
						registry.ServeHTTP(rec, r)
						body := rec.Body.Bytes()
						if r.Method == http.MethodGet && bytes.Equal(body, content) {
							body = tamper(bytes.Clone(body))
						}
						for k, v := range rec.Header() {
							if k != "Content-Length" {
								w.Header()[k] = v
							}
						}
						w.WriteHeader(rec.Code)
						_, _ = w.Write(body)
					})
					_, err := s.Verify(t.Context(), img)
					reg.Override(nil)
					t.Log(name, err)
					unverified(t, err)
				}
				if _, err := s.Verify(t.Context(), img); err != nil {
					t.Errorf("untampered again: %v", err)
				}
			})
		}
	})
}

// Whatever stands beside it, a good signature is found; without one there is
// an error that describes the rest.
func TestRubbishBeside(t *testing.T) {
	onBoth(t, func(t *testing.T, reg *signertest.Registry) {
		a := attacker{t, reg}
		s := newSigner(t, 0, nil)
		img, model := reg.Image(t, "team/app"), reg.Image(t, "team/model")
		signed, err := s.Sign(t.Context(), model)
		if err != nil {
			t.Fatal(err)
		}
		good, _ := a.layer(model.Repository, signed[0].Manifest)

		a.refer(img, good[:len(good)/2], nil)
		a.refer(img, []byte("{}"), nil)
		a.refer(img, []byte(strings.Repeat("[", 1<<20)), nil)
		a.refer(img, nil, nil)
		a.refer(img, []byte("not JSON\x00\x1b[31m\nINFO forged log line"), map[string]string{"a": strings.Repeat("x", 500)})
		// A manifest that says it holds two bundles.
		a.manifest(img.Repository, "", v1.Manifest{ArtifactType: verify.BundleType, Subject: a.subject(img), Layers: []v1.Descriptor{
			a.blob(img.Repository, []byte("1"), verify.BundleType), a.blob(img.Repository, []byte("2"), verify.BundleType),
		}})
		// A legacy tag whose layers are no signatures.
		sig := a.blob(img.Repository, []byte("{}"), verify.SimpleSigningType)
		sig.Annotations = map[string]string{"dev.cosignproject.cosign/signature": "!!!"}
		a.manifest(img.Repository, verify.LegacyTag(img.Digest, "sig"), v1.Manifest{Layers: []v1.Descriptor{
			sig, a.blob(img.Repository, []byte("x"), "text/plain"),
		}})
		a.manifest(img.Repository, verify.LegacyTag(img.Digest, "att"), v1.Manifest{Layers: []v1.Descriptor{
			a.blob(img.Repository, []byte(`{"payloadType":7}`), verify.EnvelopeType),
		}})

		_, err = s.Verify(t.Context(), img)
		unverified(t, err)
		if strings.ContainsAny(err.Error(), "\n\x00\x1b") || len(err.Error()) > 5000 {
			t.Errorf("the error repeats what the registry served: %q", err)
		}
		if _, err := s.Sign(t.Context(), img); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Attest(t.Context(), img, provenance); err != nil {
			t.Fatal(err)
		}
		v, err := s.Verify(t.Context(), img)
		if err != nil || len(v.Signatures) != 2 || len(v.Attestations) != 2 {
			t.Errorf("%+v, %v; want two signatures and two attestations", v, err)
		}
	})
}

// serve answers requests whose path contains part with that status, type and body.
func serve(reg *signertest.Registry, part string, status int, contentType string, body func(r *http.Request) []byte) {
	reg.Override(func(w http.ResponseWriter, r *http.Request, registry http.Handler) {
		if !strings.Contains(r.URL.Path, part) || r.Method != http.MethodGet {
			registry.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(status)
		_, _ = w.Write(body(r))
	})
}

func fixed(b []byte) func(*http.Request) []byte { return func(*http.Request) []byte { return b } }

func TestHostileRegistry(t *testing.T) {
	reg := signertest.Olareg(t)
	s := newSigner(t, 0, nil)
	img := reg.Image(t, "team/app")
	descriptor := func(n int, size int64) string {
		return fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.manifest.v1+json","artifactType":%q,"size":%d,"digest":"sha256:%064x"}`,
			verify.BundleType, size, n)
	}
	list := func(entries ...string) []byte {
		return []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[` + strings.Join(entries, ",") + `]}`)
	}
	const index, manifest = string(types.OCIImageIndex), string(types.OCIManifestSchema1)
	var many []string
	for i := range 1500 {
		many = append(many, descriptor(i, 1))
	}
	huge := []byte(`{"schemaVersion":2,"annotations":{"x":"` + strings.Repeat("x", 5<<20) + `"}}`)

	for _, tt := range []struct {
		name       string
		part       string
		status     int
		kind       string
		body       []byte
		unverified bool // else another error: no answer is possible
		says       string
	}{
		{"more referrers than the bound", "/referrers/", 200, index, list(many...), false, "more than 1000"},
		{"a list beyond 4 MiB", "/referrers/", 200, index, huge, false, "larger than"},
		{"a list that is no JSON", "/referrers/", 200, index, []byte("<html>"), false, "not an image index"},
		{"a list of what is not there", "/referrers/", 200, index, list(descriptor(1, 1)), true, ""},
		{"a list with digests of another kind", "/referrers/", 200, index,
			list(`{"digest":"sha512:` + strings.Repeat("0", 128) + `","artifactType":"` + verify.BundleType + `"}`), true, "sha256"},
		{"a page instead of a list", "/referrers/", 200, "text/html", []byte("<html>"), true, "fallback tag"},
		{"the legacy tag beyond 4 MiB", ".sig", 200, manifest, huge, true, "larger than"},
		{"the legacy tag is no JSON", ".sig", 200, manifest, []byte("<html>"), true, ".sig"},
		{"the legacy tag is an index", ".sig", 200, index, list(), true, "not an image manifest"},
		{"a layer that claims a petabyte", ".sig", 200, manifest,
			[]byte(`{"schemaVersion":2,"layers":[{"mediaType":"` + verify.SimpleSigningType + `","size":1125899906842624,"digest":"sha256:` + strings.Repeat("0", 64) + `"}]}`), true, "more than the bound"},
		{"a layer of negative size", ".sig", 200, manifest,
			[]byte(`{"schemaVersion":2,"layers":[{"mediaType":"` + verify.SimpleSigningType + `","size":-1,"digest":"sha256:` + strings.Repeat("0", 64) + `"}]}`), true, ""},
		{"forbidden", "/referrers/", 403, "text/plain", []byte("no"), false, "403"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			serve(reg, tt.part, tt.status, tt.kind, fixed(tt.body))
			defer reg.Override(nil)
			_, err := s.Verify(t.Context(), img)
			if err == nil || errors.Is(err, pipeline.ErrUnverified) != tt.unverified || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %.1000v; want unverified=%v and %q", err, tt.unverified, tt.says)
			}
		})
	}
}

// A list of referrers comes in pages, and a registry may make them endless or
// send the reader elsewhere.
func TestPages(t *testing.T) {
	reg := signertest.Olareg(t)
	a := attacker{t, reg}
	s := newSigner(t, 0, nil)
	img := reg.Image(t, "team/app")
	for i := range 30 {
		a.refer(img, fmt.Appendf(nil, "rubbish %d", i), nil)
	}
	signed, err := s.Sign(t.Context(), img)
	if err != nil || len(signed) != 2 {
		t.Fatalf("%+v, %v", signed, err)
	}
	reg.Requests()
	if v, err := s.Verify(t.Context(), img); err != nil || len(v.Signatures) != 2 {
		t.Errorf("%+v, %v; want both signatures", v, err)
	}
	pages := 0
	for _, r := range reg.Requests() {
		if strings.Contains(r, "/referrers/") {
			pages++
		}
	}
	if pages < 2 {
		t.Errorf("the list came in %d pages: this test needs more", pages)
	}

	var elsewhere atomic.Int32
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) }))
	defer other.Close()
	for name, link := range map[string]string{
		"endless": "", "another host": other.URL + "/v2/x", "nonsense": "http://[::1",
	} {
		reg.Override(func(w http.ResponseWriter, r *http.Request, registry http.Handler) {
			if strings.Contains(r.URL.Path, "/referrers/") {
				to := link
				if to == "" {
					to = r.URL.String()
				}
				w.Header().Set("Link", "<"+to+`>; rel="next"`)
				w.Header().Set("Content-Type", string(types.OCIImageIndex))
				_, _ = io.WriteString(w, `{"schemaVersion":2,"manifests":[]}`)
				return
			}
			registry.ServeHTTP(w, r)
		})
		if _, err := s.Verify(t.Context(), img); err == nil || errors.Is(err, pipeline.ErrUnverified) {
			t.Errorf("%s: %v, want an error that is not about the signature", name, err)
		}
	}
	if n := elsewhere.Load(); n > 0 {
		t.Errorf("%d requests went to another host", n)
	}
}

// cosign 2.6 writes the fallback tag with the type of the manifest's config
// where the artifact type belongs.
func TestFallbackTagOfOldClients(t *testing.T) {
	reg := signertest.Distribution(t)
	img := reg.Image(t, "team/app")
	s := newSigner(t, 0, func(c *signer.Config) { c.Layouts = []string{verify.LayoutBundle} })
	if _, err := s.Sign(t.Context(), img); err != nil {
		t.Fatal(err)
	}
	tag := signertest.Repo(t, img.Repository).Tag("sha256-" + img.Digest.Hex())
	index, err := remote.Index(tag)
	if err != nil {
		t.Fatal(err)
	}
	list, err := index.IndexManifest()
	if err != nil || len(list.Manifests) != 1 {
		t.Fatalf("%+v, %v; want one referrer", list, err)
	}
	for _, artifactType := range []string{"", "application/vnd.oci.empty.v1+json"} {
		list.Manifests[0].ArtifactType = artifactType
		raw, err := json.Marshal(list)
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Put(tag, rawIndex(raw)); err != nil {
			t.Fatal(err)
		}
		if v, err := s.Verify(t.Context(), img); err != nil || len(v.Signatures) != 1 {
			t.Errorf("artifact type %q: %+v, %v; want the signature", artifactType, v, err)
		}
	}
}

type rawIndex []byte

func (m rawIndex) RawManifest() ([]byte, error)      { return m, nil }
func (rawIndex) MediaType() (types.MediaType, error) { return types.OCIImageIndex, nil }
