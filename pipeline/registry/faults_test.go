package registry_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/registry"
	"github.com/dray-project/dray/pipeline/registry/registrytest"
)

// Faults that pass: the copy succeeds all the same, and is whole.
func TestCopySurvivesFaults(t *testing.T) {
	const (
		blob     = "/blobs/sha256"
		upload   = "/blobs/uploads/"
		manifest = "/manifests/"
	)
	type where func(from, to *registrytest.Proxy) *registrytest.Proxy
	source := func(from, _ *registrytest.Proxy) *registrytest.Proxy { return from }
	destination := func(_, to *registrytest.Proxy) *registrytest.Proxy { return to }
	for name, f := range map[string]struct {
		where        where
		method, path string
		times        int
		do           registrytest.Fault
	}{
		"source limits blob reads":           {source, "GET", blob, 2, registrytest.Status(429, "Retry-After", "0")},
		"source limits everything":           {source, "", ".", 5, registrytest.Status(429, "Retry-After", "0")},
		"source fails on manifests":          {source, "GET", manifest, 3, registrytest.Status(500)},
		"source fails on the list of tags":   {source, "GET", "/tags/list", 2, registrytest.Status(502)},
		"source fails on referrers":          {source, "GET", "/referrers/", 2, registrytest.Status(503)},
		"source breaks off a blob":           {source, "GET", blob, 2, registrytest.Truncate(100)},
		"source flips a byte of a blob":      {source, "GET", blob, 1, registrytest.FlipByte()},
		"source breaks off a manifest":       {source, "GET", manifest, 2, registrytest.Truncate(20)},
		"source flips a byte of a manifest":  {source, "GET", manifest + "sha256", 1, registrytest.FlipByte()},
		"source drops connections":           {source, "GET", ".", 3, registrytest.Drop()},
		"source lies in the digest header":   {source, "GET", manifest, 0, registrytest.WrongDigestHeader()},
		"source is slow":                     {source, "GET", blob, 0, registrytest.Latency(20 * time.Millisecond)},
		"destination limits uploads":         {destination, "PUT", upload, 3, registrytest.Status(429, "Retry-After", "0")},
		"destination limits everything":      {destination, "", ".", 5, registrytest.Status(429, "Retry-After", "0")},
		"destination fails to start uploads": {destination, "POST", upload, 2, registrytest.Status(503)},
		"destination fails in uploads":       {destination, "PUT", upload, 3, registrytest.Status(500)},
		"destination drops uploads":          {destination, "PUT", upload, 3, registrytest.Drop()},
		"destination answers nobody":         {destination, "PUT", upload, 2, registrytest.DropAfter()},
		"destination fails on manifests":     {destination, "PUT", manifest, 3, registrytest.Status(500)},
		"destination drops after a manifest": {destination, "PUT", manifest, 3, registrytest.DropAfter()},
		"destination does not keep a blob":   {destination, "PUT", upload, 2, registrytest.AcceptWithoutStoring()},
		"destination fails on referrers":     {destination, "GET", "/referrers/", 2, registrytest.Status(500)},
		"destination hangs in an upload":     {destination, "PUT", upload, 1, registrytest.Hang()},
		"source hangs in a blob":             {source, "GET", blob, 1, registrytest.Hang()},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			from := registrytest.NewProxy(t, registrytest.Olareg(t))
			to := registrytest.NewProxy(t, registrytest.Distribution(t))
			var c registry.Config
			if strings.Contains(name, "hangs") {
				c.Timing.Stall, c.Timing.Response = time.Second, time.Second
			}
			r := start(t, c, from.Host, to.Host)
			s := newSample(t, from.Host+"/team/app")
			proxy := f.where(from, to)
			proxy.Inject(f.method, f.path, f.times, f.do)
			if _, err := r.Copy(t.Context(), s.image, to.Host+"/prod/app"); err != nil {
				t.Fatal(err)
			}
			met := 0
			for _, q := range proxy.Requests() {
				if q.Injected {
					met++
				}
			}
			if met == 0 || (f.times > 0 && met != f.times) {
				t.Errorf("the fault was met %d times, want %d", met, f.times)
			}
			from.Clear()
			to.Clear()
			s.check(t, to.Host+"/prod/app")
		})
	}
}

// Faults that stay: the copy fails, says where and why, and whether to try
// again.
func TestCopyReportsFaults(t *testing.T) {
	for name, f := range map[string]struct {
		atSource     bool
		method, path string
		do           registrytest.Fault
		permanent    bool
		words        []string
	}{
		"source fails":                     {true, "GET", "/blobs/", registrytest.Status(500), false, []string{"read blob", "500 Internal Server Error"}},
		"source limits for ever":           {true, "GET", "/blobs/", registrytest.Status(429, "Retry-After", "3600"), false, []string{"read blob", "429", "limits"}},
		"source limits without a pause":    {true, "GET", "/blobs/", registrytest.Status(429, "Retry-After", "0"), false, []string{"read blob", "429"}},
		"source breaks off":                {true, "GET", "/blobs/", registrytest.Truncate(10), false, []string{"read blob", "broke off after"}},
		"source has other bytes":           {true, "GET", "/blobs/", registrytest.FlipByte(), true, []string{"read blob", "was changed"}},
		"source has another manifest":      {true, "GET", "/manifests/sha256:", registrytest.FlipByte(), true, []string{"read manifest", "was changed"}},
		"source has a longer blob":         {true, "GET", "/blobs/", longer(), true, []string{"read blob", "bytes"}},
		"source has a longer chunked blob": {true, "GET", "/blobs/", chunked(longer()), true, []string{"more bytes than"}},
		"source is gone":                   {true, "GET", "/manifests/", registrytest.Status(404), false, []string{"read manifest", "404"}},
		"source wants credentials":         {true, "GET", "/manifests/", registrytest.Status(401), true, []string{"wants credentials", "username and password"}},
		"destination forbids":              {false, "POST", "/blobs/uploads/", registrytest.Status(403), true, []string{"start the upload", "403", "username and password"}},
		"destination keeps no blob":        {false, "PUT", "/blobs/uploads/", registrytest.AcceptWithoutStoring(), false, []string{"confirm blob", "does not have it"}},
		"destination keeps no manifest":    {false, "PUT", "/manifests/sha256:", registrytest.AcceptWithoutStoring(), false, []string{"accepted", "does not have it"}},
		"destination has no room":          {false, "PUT", "/blobs/uploads/", registrytest.Status(507), false, []string{"send blob", "507"}},
		"destination thinks it too large":  {false, "PUT", "/manifests/", registrytest.Status(413), true, []string{"write manifest", "413"}},
		"destination is out of order":      {false, "", ".", registrytest.Status(503), false, []string{"503"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			from := registrytest.NewProxy(t, registrytest.Distribution(t))
			// The registry without validation of manifests accepts what lacks parts.
			to := registrytest.NewProxy(t, registrytest.Olareg(t))
			r := start(t, registry.Config{Timing: registry.Timing{Attempts: 2}}, from.Host, to.Host)
			s := bare(t, from.Host+"/team/app")
			proxy := to
			if f.atSource {
				proxy = from
			}
			proxy.Inject(f.method, f.path, 0, f.do)
			_, err := r.Copy(t.Context(), s.image, to.Host+"/prod/app")
			wantError(t, err, f.permanent, nil, append(f.words, "copy "+s.image.String(), proxy.Host)...)
		})
	}
}

func longer() registrytest.Fault {
	return registrytest.Edit(func(status int, _ http.Header, body []byte) (int, []byte) {
		return status, append(body, 'x')
	})
}

func chunked(f registrytest.Fault) registrytest.Fault {
	return func(w http.ResponseWriter, r *http.Request, registry http.Handler) {
		f(unsized{w}, r, registry)
	}
}

// unsized drops Content-Length, so that the answer goes out in chunks.
type unsized struct{ http.ResponseWriter }

func (u unsized) WriteHeader(status int) {
	u.Header().Del("Content-Length")
	u.ResponseWriter.WriteHeader(status)
	u.ResponseWriter.(http.Flusher).Flush()
}

func TestUnreachableRegistryIsNamed(t *testing.T) {
	closed := registrytest.Serve(t, http.NotFoundHandler())
	r := start(t, registry.Config{Timing: registry.Timing{Attempts: 2}}, "127.0.0.1:1", "no-such-host.invalid:5000", closed)
	for _, host := range []string{"127.0.0.1:1", "no-such-host.invalid:5000"} {
		_, err := r.Tags(t.Context(), host+"/team/app")
		wantError(t, err, false, nil, host, "cannot be reached", "list the tags of "+host+"/team/app")
	}
	_, err := r.Exists(t.Context(), pipeline.Image{Repository: closed + "/team/app", Digest: pipeline.Digest("sha256:" + strings.Repeat("a", 64))})
	wantError(t, err, false, nil, closed, "does not answer as a registry")
	if errors.Is(err, pipeline.ErrNotFound) {
		t.Errorf("a server that is no registry was taken for one without the image: %v", err)
	}
}

// A registry's wish to be left alone holds for every request to it.
func TestRetryAfterPausesTheHost(t *testing.T) {
	proxy := registrytest.NewProxy(t, registrytest.Olareg(t))
	r := start(t, registry.Config{}, proxy.Host)
	repo := proxy.Host + "/team/app"
	s := bare(t, repo)
	if ok, err := r.Exists(t.Context(), s.image); err != nil || !ok {
		t.Fatalf("exists: %t, %v", ok, err)
	}
	proxy.Inject("GET", "/manifests/", 1, registrytest.Status(429, "Retry-After", "1"))
	done := make(chan error, 1)
	go func() {
		_, err := r.Exists(t.Context(), s.image)
		done <- err
	}()
	// Whenever the answer comes, one of these is sent while the pause lasts.
	var longest time.Duration
	for waiting := true; waiting; {
		began := time.Now()
		if _, err := r.Tags(t.Context(), repo); err != nil {
			t.Fatal(err)
		}
		longest = max(longest, time.Since(began))
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
			waiting = false
		default:
		}
	}
	if longest < 900*time.Millisecond {
		t.Errorf("other requests waited at most %s when the registry asked for a second of rest", longest)
	}
}

func TestCancelledCopyLeavesNoUpload(t *testing.T) {
	from := registrytest.NewProxy(t, registrytest.Distribution(t))
	to := registrytest.NewProxy(t, registrytest.Distribution(t))
	r := start(t, registry.Config{}, from.Host, to.Host)
	s := bare(t, from.Host+"/team/app")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	to.Inject("PUT", "/blobs/uploads/", 0, func(_ http.ResponseWriter, r *http.Request, _ http.Handler) {
		cancel()
		<-r.Context().Done()
	})
	_, err := r.Copy(ctx, s.image, to.Host+"/prod/app")
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("want a cancelled copy, got %v", err)
	}
	started, cancelled := 0, 0
	for _, q := range to.Requests() {
		switch {
		case q.Method == "POST" && q.Status == 202:
			started++
		case q.Method == "DELETE" && q.Status == 204:
			cancelled++
		}
	}
	if started == 0 || started != cancelled {
		t.Errorf("%d uploads were started and %d cancelled", started, cancelled)
		for _, q := range to.Requests() {
			t.Log(q.Method, q.Status, q.Path)
		}
	}
	if n := to.Count("PUT", "/manifests/"); n != 0 {
		t.Errorf("%d manifests were written without their blobs", n)
	}
	to.Clear()
	if _, err := r.Copy(t.Context(), s.image, to.Host+"/prod/app"); err != nil {
		t.Fatalf("copy again: %v", err)
	}
	s.check(t, to.Host+"/prod/app")
}
