package registry_test

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/registry"
	"github.com/dray-project/dray/pipeline/registry/registrytest"
)

func TestCopyBringsEverything(t *testing.T) {
	directions(t, func(t *testing.T, from, to *registrytest.Proxy) {
		r := start(t, registry.Config{}, from.Host, to.Host)
		s := newSample(t, from.Host+"/team/app")
		from.Clear()
		dst := to.Host + "/prod/app"
		got, err := r.Copy(t.Context(), s.image, dst)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("first copy: %d requests at the source, %d at the destination", len(from.Requests()), len(to.Requests()))
		s.check(t, dst)
		if got.Image != (pipeline.Image{Repository: dst, Digest: s.image.Digest}) {
			t.Errorf("copied to %s", got.Image)
		}
		// Index, two platforms, four referrers, four legacy manifests.
		if got.Manifests != 11 {
			t.Errorf("%d manifests, want 11", got.Manifests)
		}
		if got.Skipped != 0 || got.Mounted != 0 || got.Sent == 0 {
			t.Errorf("first copy: %+v", got)
		}
		if want := s.attached(); !slices.Equal(got.Referrers, want) {
			t.Errorf("referrers %v, want %v", got.Referrers, want)
		}
		if n := from.Count("PUT", "") + from.Count("POST", "") + from.Count("DELETE", ""); n != 0 {
			t.Errorf("%d requests changed something at the source", n)
		}

		from.Clear()
		to.Clear()
		again, err := r.Copy(t.Context(), s.image, dst)
		if err != nil {
			t.Fatalf("second copy: %v", err)
		}
		if again.Sent != 0 || again.Skipped != again.Blobs || again.Blobs != got.Blobs {
			t.Errorf("second copy: %+v", again)
		}
		if n := to.Count("PUT", "") + to.Count("POST", "") + to.Count("PATCH", ""); n != 0 {
			t.Errorf("the second copy wrote %d times to the destination: %+v", n, to.Requests())
		}
		if n := from.Count("GET", "/blobs/"); n != 0 {
			t.Errorf("the second copy read %d blobs", n)
		}
		t.Logf("second copy: %d requests at the source, %d at the destination", len(from.Requests()), len(to.Requests()))
		s.check(t, dst)
	})
}

func TestCopyWritesBlobsThenManifestsThenAttachments(t *testing.T) {
	directions(t, func(t *testing.T, from, to *registrytest.Proxy) {
		r := start(t, registry.Config{}, from.Host, to.Host)
		s := newSample(t, from.Host+"/team/app")
		if _, err := r.Copy(t.Context(), s.image, to.Host+"/prod/app"); err != nil {
			t.Fatal(err)
		}
		lastBlob, index, firstChild, firstAttached, written := -1, -1, -1, -1, 0
		refs := map[string]bool{}
		for _, d := range s.attached() {
			refs["/v2/prod/app/manifests/"+string(d)] = true
		}
		for i, q := range to.Requests() {
			if q.Method != "PUT" {
				continue
			}
			switch manifest := q.Path; {
			case !hasManifest(manifest):
				lastBlob = i
			case manifest == "/v2/prod/app/manifests/"+string(s.image.Digest):
				index = i
			case refs[manifest] || isTag(manifest):
				if firstAttached < 0 {
					firstAttached = i
				}
				written++
			default:
				firstChild = i
			}
		}
		// The union of configs writes no blob here: the destination was empty.
		if !(0 <= lastBlob && lastBlob < firstChild && firstChild < index && index < firstAttached) {
			t.Errorf("order: last blob %d, child %d, index %d, first attachment %d", lastBlob, firstChild, index, firstAttached)
		}
		if written < 8 {
			t.Errorf("%d attachments written, want at least 8", written)
		}
	})
}

func TestCopyWithinOneRegistryMounts(t *testing.T) {
	for kind, host := range kinds() {
		t.Run(kind, func(t *testing.T) {
			proxy := registrytest.NewProxy(t, host(t))
			r := start(t, registry.Config{}, proxy.Host)
			s := newSample(t, proxy.Host+"/team/app")
			proxy.Clear()
			got, err := r.Copy(t.Context(), s.image, proxy.Host+"/prod/app")
			if err != nil {
				t.Fatal(err)
			}
			if got.Mounted != got.Blobs || got.Sent != 0 {
				t.Errorf("want every blob mounted: %+v", got)
			}
			if n := proxy.Count("GET", "/blobs/"); n != 0 {
				t.Errorf("%d blobs were read", n)
			}
			s.check(t, proxy.Host+"/prod/app")
		})
	}
}

// One slot per host, a registry that cannot mount, and several copies in both
// directions at once: nobody waits for somebody who waits for him.
func TestCopiesDoNotBlockEachOther(t *testing.T) {
	a := registrytest.NewProxy(t, registrytest.Olareg(t))
	b := registrytest.NewProxy(t, registrytest.Distribution(t))
	s1, s2 := bare(t, a.Host+"/one/app"), bare(t, b.Host+"/two/app")
	for _, p := range []*registrytest.Proxy{a, b} {
		p.Inject("POST", "mount=", 0, func(w http.ResponseWriter, r *http.Request, registry http.Handler) {
			r.URL.RawQuery = ""
			registry.ServeHTTP(w, r)
		})
	}
	r := start(t, registry.Config{MaxParallel: 1}, a.Host, b.Host)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	type job struct {
		img pipeline.Image
		to  string
	}
	jobs := []job{{s1.image, b.Host + "/x/app"}, {s2.image, a.Host + "/x/app"}, {s1.image, a.Host + "/y/app"}, {s2.image, b.Host + "/y/app"}}
	errs := make(chan error)
	for _, j := range jobs {
		go func() {
			_, err := r.Copy(ctx, j.img, j.to)
			errs <- err
		}()
	}
	for range jobs {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if n := a.Count("PUT", "^/v2/y/app/blobs/") + b.Count("PUT", "^/v2/y/app/blobs/"); n != 16 {
		t.Errorf("%d blobs were streamed within a registry, want all 16", n)
	}
}

func TestCopyOfAnUnknownImage(t *testing.T) {
	for kind, host := range kinds() {
		t.Run(kind, func(t *testing.T) {
			h := host(t)
			r := start(t, registry.Config{}, h)
			img := pipeline.Image{Repository: h + "/team/app", Digest: pipeline.Digest("sha256:" + strings.Repeat("a", 64))}
			_, err := r.Copy(t.Context(), img, h+"/prod/app")
			wantError(t, err, false, pipeline.ErrNotFound, h, string(img.Digest))
		})
	}
}

// A signature that only the destination has stays there.
func TestCopyKeepsWhatTheDestinationHas(t *testing.T) {
	directions(t, func(t *testing.T, from, to *registrytest.Proxy) {
		r := start(t, registry.Config{}, from.Host, to.Host)
		src, dst := from.Host+"/team/app", to.Host+"/prod/app"
		s := bare(t, src)
		if _, err := r.Copy(t.Context(), s.image, dst); err != nil {
			t.Fatal(err)
		}
		own := attachReferrer(t, dst, s.index, "application/vnd.example.own")
		attachLegacy(t, dst, s.image.Digest, ".sig", legacyLayer("index", "own"), legacyLayer("index", "shared"))
		s.refer(t, src, s.index, "application/vnd.example.signature")
		theirs := attachLegacy(t, src, s.image.Digest, ".sig", legacyLayer("index", "shared"), legacyLayer("index", "new"), legacyLayer("other", "new"))
		for range 2 {
			got, err := r.Copy(t.Context(), s.image, dst)
			if err != nil {
				t.Fatal(err)
			}
			if want := []pipeline.Digest{digestOf(t, theirs), s.referrers[s.image.Digest][0]}; len(got.Referrers) != 2 ||
				!slices.Contains(got.Referrers, want[0]) || !slices.Contains(got.Referrers, want[1]) {
				t.Errorf("referrers %v, want %v", got.Referrers, want)
			}
			s.check(t, dst)
			if _, ok := referrersAt(t, dst, s.image.Digest)[digestOf(t, own)]; !ok {
				t.Error("the destination's own referrer is gone")
			}
			checkSignatures(t, dst, s.image.Digest, "own", "shared", "new", "new")
		}
	})
}

func TestCopyLeavesStaleEntriesBehind(t *testing.T) {
	host := registrytest.NewProxy(t, registrytest.Distribution(t))
	r := start(t, registry.Config{}, host.Host)
	repo := host.Host + "/team/app"
	s := bare(t, repo)
	gone := attachReferrer(t, repo, s.index, "application/vnd.example.gone")
	s.refer(t, repo, s.index, "application/vnd.example.signature")
	if err := remote.Delete(refer(t, repo, hashOf(t, gone))); err != nil {
		t.Fatal(err)
	}
	// The client that deletes by digest alone leaves the entry in the tag.
	if _, ok := referrersAt(t, repo, s.image.Digest)[digestOf(t, gone)]; !ok {
		t.Fatal("the entry went with the manifest, so there is none to leave behind")
	}
	got, err := r.Copy(t.Context(), s.image, host.Host+"/prod/app")
	if err != nil {
		t.Fatal(err)
	}
	if slices.Contains(got.Referrers, digestOf(t, gone)) {
		t.Error("a manifest that is gone is reported as copied")
	}
	s.check(t, host.Host+"/prod/app")
}

// A registry that has the API and loses an entry of its list is told again.
func TestCopyListsWhatTheRegistryLost(t *testing.T) {
	from := registrytest.Distribution(t)
	to := registrytest.NewProxy(t, registrytest.Olareg(t))
	r := start(t, registry.Config{Timing: registry.Timing{Attempts: 1}}, from, to.Host)
	s := newSample(t, from+"/team/app")
	lose := registrytest.Edit(func(_ int, _ http.Header, _ []byte) (int, []byte) {
		return 200, []byte(`{"schemaVersion":2,"mediaType":"` + ociIndex + `","manifests":[]}`)
	})
	to.Inject("GET", "/referrers/"+string(s.image.Digest), 1, lose)
	if _, err := r.Copy(t.Context(), s.image, to.Host+"/prod/app"); err != nil {
		t.Fatal(err)
	}
	for _, d := range s.referrers[s.image.Digest] {
		if n := to.Count("PUT", "/manifests/"+string(d)); n != 2 {
			t.Errorf("%s was pushed %d times, want once and again", d, n)
		}
	}
	s.check(t, to.Host+"/prod/app")
	to.Inject("GET", "/referrers/"+string(s.image.Digest), 0, lose)
	_, err := r.Copy(t.Context(), s.image, to.Host+"/prod/app")
	wantError(t, err, false, nil, "does not list", to.Host)
}
