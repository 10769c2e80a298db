package registry_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/registry"
	"github.com/dray-project/dray/pipeline/registry/registrytest"
)

func platformsOf(t testing.TB, s *sample) []pipeline.PlatformImage {
	t.Helper()
	var list []pipeline.PlatformImage
	for i, p := range []pipeline.Platform{"linux/amd64", "linux/arm64"} {
		raw := must[[]byte](t)(s.children[i].RawManifest())
		list = append(list, pipeline.PlatformImage{
			Platform: p, Digest: digestOf(t, s.children[i]), Size: int64(len(raw)),
			MediaType: "application/vnd.oci.image.manifest.v1+json",
		})
	}
	return list
}

func TestAssembleIsDeterministic(t *testing.T) {
	for kind, host := range kinds() {
		t.Run(kind, func(t *testing.T) {
			h := host(t)
			r := start(t, registry.Config{}, h)
			repo := h + "/team/app"
			s := bare(t, repo)
			platforms := platformsOf(t, s)
			notes := map[string]string{"org.opencontainers.image.revision": "abc", "a": "<&>", "z": "z"}
			first, err := r.Assemble(t.Context(), repo, platforms, notes)
			if err != nil {
				t.Fatal(err)
			}
			slices.Reverse(platforms)
			second, err := r.Assemble(t.Context(), repo, platforms, notes)
			if err != nil || first != second {
				t.Errorf("the same platforms gave %s and %s, %v", first, second, err)
			}
			got, err := remote.Get(must[name.Digest](t)(name.NewDigest(first.String())))
			if err != nil {
				t.Fatal(err)
			}
			want := fmt.Sprintf(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[`+
				`{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":%q,"size":%d,"platform":{"architecture":"amd64","os":"linux"}},`+
				`{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":%q,"size":%d,"platform":{"architecture":"arm64","os":"linux"}}],`+
				`"annotations":{"a":"\u003c\u0026\u003e","org.opencontainers.image.revision":"abc","z":"z"}}`,
				platforms[1].Digest, platforms[1].Size, platforms[0].Digest, platforms[0].Size)
			if string(got.Manifest) != want {
				t.Errorf("index\n%s\nwant\n%s", got.Manifest, want)
			}
			if tags, err := r.Tags(t.Context(), repo); err != nil || len(tags) != 0 {
				t.Errorf("assembling left the tags %v, %v", tags, err)
			}
		})
	}
}

func TestAssembleRefuses(t *testing.T) {
	h := registrytest.Olareg(t) // accepts an index whose children it does not have
	r := start(t, registry.Config{}, h)
	repo := h + "/team/app"
	good := platformsOf(t, bare(t, repo))
	change := func(f func(*pipeline.PlatformImage)) []pipeline.PlatformImage {
		list := slices.Clone(good)
		f(&list[1])
		return list
	}
	for want, platforms := range map[string][]pipeline.PlatformImage{
		"no platform was built":    nil,
		"is there twice":           change(func(p *pipeline.PlatformImage) { p.Platform = "linux/amd64" }),
		"its descriptor says":      change(func(p *pipeline.PlatformImage) { p.Size++ }),
		"manifest of 0 bytes":      change(func(p *pipeline.PlatformImage) { p.Size = 0 }),
		"media type":               change(func(p *pipeline.PlatformImage) { p.MediaType = "application/vnd.oci.image.index.v1+json" }),
		"was handed out as":        change(func(p *pipeline.PlatformImage) { p.MediaType = "application/vnd.docker.distribution.manifest.v2+json" }),
		`platform "linux"`:         change(func(p *pipeline.PlatformImage) { p.Platform = "linux" }),
		`want sha256:`:             change(func(p *pipeline.PlatformImage) { p.Digest = "latest" }),
		"platform linux/arm64/v8:": change(func(p *pipeline.PlatformImage) { p.Platform = "linux/arm64/v8"; p.Size += 7 }),
	} {
		_, err := r.Assemble(t.Context(), repo, platforms, nil)
		wantError(t, err, true, nil, want)
	}
	missing := change(func(p *pipeline.PlatformImage) { p.Digest = pipeline.Digest("sha256:" + strings.Repeat("0", 64)) })
	_, err := r.Assemble(t.Context(), repo, missing, nil)
	wantError(t, err, false, pipeline.ErrNotFound, "linux/arm64", h)
}

func TestTagsMoveAndAreReadBack(t *testing.T) {
	for kind, host := range kinds() {
		t.Run(kind, func(t *testing.T) {
			p := registrytest.NewProxy(t, host(t))
			r := start(t, registry.Config{}, p.Host)
			repo := p.Host + "/team/app"
			if tags, err := r.Tags(t.Context(), repo); err != nil || len(tags) != 0 {
				t.Errorf("tags of a repository that is not there: %v, %v", tags, err)
			}
			if _, ok, err := r.TagHolds(t.Context(), repo, "v1"); err != nil || ok {
				t.Errorf("tag in a repository that is not there: %t, %v", ok, err)
			}
			one, two := bare(t, repo), bare(t, repo)
			for _, s := range []*sample{one, two, two} {
				p.Clear()
				if err := r.Tag(t.Context(), s.image, "v1"); err != nil {
					t.Fatal(err)
				}
				// The manifest, unless it is known, the write, and the look at it.
				if n := len(p.Requests()); n > 3 || p.Count("PUT", "/manifests/v1$") != 1 || p.Count("GET", "/manifests/v1$") != 1 {
					t.Errorf("%d requests: %+v", n, p.Requests())
				}
				if held, ok, err := r.TagHolds(t.Context(), repo, "v1"); err != nil || !ok || held != s.image.Digest {
					t.Errorf("the tag holds %s, %t, %v; want %s", held, ok, err, s.image.Digest)
				}
			}
			err := r.Tag(t.Context(), pipeline.Image{Repository: repo, Digest: pipeline.Digest("sha256:" + strings.Repeat("0", 64))}, "v2")
			wantError(t, err, false, pipeline.ErrNotFound, "v2")
			for _, bad := range []string{"", ".x", "-x", "a/b", "a:b", "ä", strings.Repeat("a", 129), "sha256:" + strings.Repeat("0", 64)} {
				wantError(t, r.Tag(t.Context(), one.image, bad), true, pipeline.ErrInvalid)
			}
			// A registry that says yes and does nothing.
			p.Inject("PUT", "/manifests/v3$", 0, registrytest.AcceptWithoutStoring())
			wantError(t, r.Tag(t.Context(), one.image, "v3"), false, nil, "does not have it", p.Host)
			p.Inject("PUT", "/manifests/v1$", 0, registrytest.AcceptWithoutStoring())
			wantError(t, r.Tag(t.Context(), one.image, "v1"), false, nil, "it names "+string(two.image.Digest))
		})
	}
}

func TestTagsArePaged(t *testing.T) {
	var want []string
	for i := range 2500 {
		want = append(want, fmt.Sprintf("v%04d", i))
	}
	pages := 0
	host := registrytest.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v2/" {
			return
		}
		pages++
		from, _ := slices.BinarySearch(want, r.URL.Query().Get("last")+"x")
		if r.URL.Query().Get("last") == "" {
			from = 0
		}
		page := want[from:min(from+1000, len(want))]
		if from+1000 < len(want) {
			w.Header().Set("Link", fmt.Sprintf(`<%s?last=%s&n=1000>; rel="next"`, r.URL.Path, page[len(page)-1]))
		}
		fmt.Fprintf(w, `{"name":"x","tags":["%s"]}`, strings.Join(page, `","`))
	}))
	r := start(t, registry.Config{}, host)
	got, err := r.Tags(t.Context(), host+"/team/app")
	if err != nil || !slices.Equal(got, want) || pages != 3 {
		t.Errorf("%d tags in %d pages, %v; want %d in 3", len(got), pages, err, len(want))
	}
}

func TestExists(t *testing.T) {
	for kind, host := range kinds() {
		t.Run(kind, func(t *testing.T) {
			h := host(t)
			r := start(t, registry.Config{}, h)
			s := bare(t, h+"/team/app")
			for img, want := range map[pipeline.Image]bool{
				s.image: true,
				{Repository: s.image.Repository, Digest: digestOf(t, s.children[0])}:                           true,
				{Repository: s.image.Repository, Digest: pipeline.Digest("sha256:" + strings.Repeat("0", 64))}: false,
				{Repository: h + "/no/such", Digest: s.image.Digest}:                                           false,
			} {
				if got, err := r.Exists(t.Context(), img); err != nil || got != want {
					t.Errorf("exists(%s) = %t, %v; want %t", img, got, err, want)
				}
			}
			for _, repo := range []string{"app", h, h + "/UPPER", h + "/a@b", ""} {
				_, err := r.Exists(t.Context(), pipeline.Image{Repository: repo, Digest: s.image.Digest})
				wantError(t, err, true, pipeline.ErrInvalid, "repository")
			}
		})
	}
}

func TestReach(t *testing.T) {
	for kind, host := range kinds() {
		t.Run(kind, func(t *testing.T) {
			h := host(t)
			p := registrytest.NewProxy(t, h)
			r := start(t, registry.Config{}, p.Host)
			bare(t, h+"/team/app")
			got, err := r.Reach(t.Context(), p.Host+"/team/app")
			want := registry.Capabilities{Host: p.Host, PlainHTTP: true, Repository: p.Host + "/team/app", Referrers: kind == "api", Push: true}
			if err != nil || got != want {
				t.Errorf("probe: %+v, %v; want %+v", got, err, want)
			}
			if n := p.Count("DELETE", "/blobs/uploads/"); n != 1 {
				t.Errorf("the upload was cancelled %d times", n)
			}
			got, err = r.Reach(t.Context(), p.Host)
			if err != nil || got.Host != p.Host || got.Repository != "" {
				t.Errorf("probe of a host: %+v, %v", got, err)
			}
			p.Inject("POST", "/blobs/uploads/", 0, registrytest.Status(403))
			got, err = r.Reach(t.Context(), p.Host+"/team/app")
			if err != nil || got.Push || !strings.Contains(got.PushError, "403") {
				t.Errorf("probe without the right to push: %+v, %v", got, err)
			}
		})
	}
	r := start(t, registry.Config{Timing: registry.Timing{Attempts: 1}}, "127.0.0.1:1")
	_, err := r.Reach(t.Context(), "127.0.0.1:1")
	wantError(t, err, false, nil, "127.0.0.1:1", "cannot be reached")
	protected := protect(t, registrytest.Distribution(t))
	_, err = start(t, registry.Config{}, protected.Host).Reach(t.Context(), protected.Host)
	wantError(t, err, true, nil, protected.Host, "wants credentials")
}

// A registry that does not move tags refuses also what changes nothing.
func TestTagThatTheRegistryDoesNotMove(t *testing.T) {
	for kind, host := range kinds() {
		for _, status := range []int{400, 409, 412} {
			t.Run(fmt.Sprint(kind, " ", status), func(t *testing.T) {
				p := registrytest.NewProxy(t, host(t))
				r := start(t, registry.Config{}, p.Host)
				one, two := bare(t, p.Host+"/team/app"), bare(t, p.Host+"/team/app")
				if err := r.Tag(t.Context(), one.image, "v1"); err != nil {
					t.Fatal(err)
				}
				p.Inject("PUT", "/manifests/v1$", 0, registrytest.Status(status))
				if err := r.Tag(t.Context(), one.image, "v1"); err != nil {
					t.Errorf("the tag names the image already: %v", err)
				}
				if err := r.Tag(t.Context(), two.image, "v1"); err == nil || !strings.Contains(err.Error(), fmt.Sprint(status)) {
					t.Errorf("the tag names another image: %v", err)
				}
			})
		}
	}
}

// Somebody removed the whole repository's content while memory says it is there:
// a registry that looks at what an index names refuses the tag, and the next
// copy brings everything.
func TestTagOfWhatIsGone(t *testing.T) {
	from, h := registrytest.Distribution(t), registrytest.Distribution(t)
	s := newSample(t, from+"/team/app")
	r := start(t, registry.Config{Memory: &registrytest.Memory{}}, from, h)
	copied, err := r.Copy(t.Context(), s.image, h+"/prod/app")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range copied.Contents {
		kind := "blobs"
		if c.Manifest {
			kind = "manifests"
		}
		remove(t, h, "/v2/prod/app/"+kind+"/"+string(c.Digest))
	}
	if err := r.Tag(t.Context(), copied.Image, "v1"); err == nil {
		t.Fatal("the tag names an image without its parts")
	}
	if copied, err = r.Copy(t.Context(), s.image, h+"/prod/app"); err != nil {
		t.Fatal(err)
	}
	if err := r.Tag(t.Context(), copied.Image, "v1"); err != nil {
		t.Fatal(err)
	}
	s.check(t, h+"/prod/app")
}
