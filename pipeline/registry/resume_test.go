package registry_test

import (
	"errors"
	"io"
	"net/http"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/registry"
	"github.com/dray-project/dray/pipeline/registry/registrytest"
)

// breakUpload lets so many bytes of the body through, then the line breaks.
func breakUpload(after int64) registrytest.Fault {
	return func(w http.ResponseWriter, r *http.Request, registry http.Handler) {
		r.Body = struct {
			io.Reader
			io.Closer
		}{io.MultiReader(io.LimitReader(r.Body, after), brokenLine{}), r.Body}
		registry.ServeHTTP(nowhere{http.Header{}}, r)
		panic(http.ErrAbortHandler)
	}
}

type brokenLine struct{}

func (brokenLine) Read([]byte) (int, error) { return 0, errors.New("the line broke") }

type nowhere struct{ header http.Header }

func (n nowhere) Header() http.Header       { return n.header }
func (nowhere) WriteHeader(int)             {}
func (nowhere) Write(b []byte) (int, error) { return len(b), nil }

// A large blob that broke in the middle goes on from where the destination has
// it, and is sent again where it cannot.
func TestLargeBlobGoesOnAfterABreak(t *testing.T) {
	const size, half = 4 << 20, 5 << 19
	for name, c := range map[string]struct {
		from, to func(p *registrytest.Proxy)
		whole    bool // it is sent again from its beginning
	}{
		"the destination breaks off": {
			to: func(p *registrytest.Proxy) { p.Inject("PUT", "/blobs/uploads/", 1, breakUpload(half)) },
		},
		"the source breaks off": {
			from: func(p *registrytest.Proxy) { p.Inject("GET", "/blobs/", 1, registrytest.Truncate(half)) },
		},
		"both break off": {
			from: func(p *registrytest.Proxy) { p.Inject("GET", "/blobs/", 1, registrytest.Truncate(half)) },
			to:   func(p *registrytest.Proxy) { p.Inject("PUT", "/blobs/uploads/", 1, breakUpload(3<<19)) },
		},
		"the source cannot start in the middle": {
			from: func(p *registrytest.Proxy) {
				p.Inject("GET", "/blobs/", 0, func(w http.ResponseWriter, r *http.Request, registry http.Handler) {
					r.Header.Del("Range")
					registry.ServeHTTP(w, r)
				})
			},
			to: func(p *registrytest.Proxy) { p.Inject("PUT", "/blobs/uploads/", 1, breakUpload(half)) },
		},
		"the destination has forgotten the upload": {
			to: func(p *registrytest.Proxy) {
				p.Inject("PUT", "/blobs/uploads/", 1, breakUpload(half))
				p.Inject("GET", "/blobs/uploads/", 0, registrytest.Status(404))
			},
			whole: true,
		},
		"the destination does not take parts": {
			to: func(p *registrytest.Proxy) {
				p.Inject("PUT", "/blobs/uploads/", 1, breakUpload(half))
				p.Inject("PUT", "/blobs/uploads/", 0, func(w http.ResponseWriter, r *http.Request, registry http.Handler) {
					if r.Header.Get("Content-Range") == "" {
						registry.ServeHTTP(w, r)
						return
					}
					_, _ = io.Copy(io.Discard, r.Body)
					w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
				})
			},
			whole: true,
		},
	} {
		for kind, host := range kinds() {
			t.Run(name+" "+kind, func(t *testing.T) {
				t.Parallel()
				from := registrytest.NewProxy(t, registrytest.Distribution(t))
				to := registrytest.NewProxy(t, host(t))
				src, dst := from.Host+"/team/app", to.Host+"/prod/app"
				img := must[v1.Image](t)(random.Image(size, 1))
				img = mutate.MediaType(img, types.OCIManifestSchema1)
				if err := remote.Write(refer(t, src, hashOf(t, img)), img); err != nil {
					t.Fatal(err)
				}
				from.Clear()
				// The config is not what is to break: it is there.
				config := must[v1.Layer](t)(partial.ConfigLayer(img))
				if err := remote.WriteLayer(refer(t, dst, hashOf(t, img)).Context(), config); err != nil {
					t.Fatal(err)
				}
				to.Clear()
				if c.from != nil {
					c.from(from)
				}
				if c.to != nil {
					c.to(to)
				}
				// The destination needs a moment to notice that the line broke.
				r := start(t, registry.Config{Timing: registry.Timing{Backoff: time.Second}}, from.Host, to.Host)
				if _, err := r.Copy(t.Context(), pipeline.Image{Repository: src, Digest: digestOf(t, img)}, dst); err != nil {
					t.Fatal(err)
				}
				starts := 0
				for _, q := range to.Requests() {
					if q.Method == "PUT" && q.Header.Get("Content-Range") == "" && !hasManifest(q.Path) {
						starts++
					}
				}
				want := 1
				if c.whole {
					want = 2
				}
				// Distribution signs into an upload's address how much it had when it
				// was opened, and refuses to go on when more has come.
				if kind == "tag" {
					want = starts
				}
				if starts != want || starts > 3 {
					t.Errorf("the blob was sent from its beginning %d times, want %d", starts, want)
				}
				if opened, cancelled := to.Count("POST", "/blobs/uploads/"), to.Count("DELETE", "/blobs/uploads/"); opened != cancelled+2 { // the blob's and the config's
					t.Errorf("%d uploads were opened and %d cancelled", opened, cancelled)
				}
				from.Clear()
				to.Clear()
				there := must[v1.Image](t)(remote.Image(refer(t, dst, hashOf(t, img))))
				whole(t, there)
			})
		}
	}
}
