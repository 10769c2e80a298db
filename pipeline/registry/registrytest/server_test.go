package registrytest_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/dray-project/dray/pipeline/registry/registrytest"
)

func TestRegistriesKeepImages(t *testing.T) {
	for kind, start := range map[string]func(testing.TB) string{
		"distribution": registrytest.Distribution, "distribution on disk": registrytest.DistributionOnDisk,
		"olareg": registrytest.Olareg, "olareg on disk": registrytest.OlaregOnDisk,
	} {
		t.Run(kind, func(t *testing.T) {
			proxy := registrytest.NewProxy(t, start(t))
			ref, err := name.ParseReference(proxy.Host + "/team/app:v1")
			if err != nil {
				t.Fatal(err)
			}
			img, err := random.Image(1000, 2)
			if err != nil {
				t.Fatal(err)
			}
			if err := remote.Write(ref, img); err != nil {
				t.Fatal(err)
			}
			got, err := remote.Image(ref)
			if err != nil {
				t.Fatal(err)
			}
			want, _ := img.Digest()
			if have, _ := got.Digest(); have != want {
				t.Errorf("read back %s, wrote %s", have, want)
			}
			if n := proxy.Count("PUT", "/manifests/v1$"); n != 1 {
				t.Errorf("the proxy counted %d manifest PUTs, want 1", n)
			}
			if proxy.Received("/blobs/uploads/") < 2000 {
				t.Errorf("the proxy counted %d bytes of blobs, want over 2000", proxy.Received("/blobs/uploads/"))
			}
		})
	}
}

func TestProxyFaults(t *testing.T) {
	backend := registrytest.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "0123456789")
	}))
	p := registrytest.NewProxy(t, backend)
	get := func() (int, string, error) {
		res, err := http.Get("http://" + p.Host + "/x")
		if err != nil {
			return 0, "", err
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		return res.StatusCode, string(b), err
	}
	p.Inject("GET", "^/x", 1, registrytest.Status(429, "Retry-After", "1"))
	p.Inject("GET", "^/x", 1, registrytest.Truncate(4))
	p.Inject("GET", "^/x", 1, registrytest.FlipByte())
	if status, _, _ := get(); status != 429 {
		t.Errorf("first request: status %d, want 429", status)
	}
	if _, body, err := get(); err == nil || body != "0123" {
		t.Errorf("second request: %q and %v, want 0123 and an error", body, err)
	}
	if _, body, err := get(); err != nil || body != "01234\x156789" {
		t.Errorf("third request: %q and %v, want a changed byte", body, err)
	}
	if _, body, err := get(); err != nil || !strings.HasPrefix(body, "012345") {
		t.Errorf("fourth request: %q and %v, want the backend's answer", body, err)
	}
}

func TestLockerWaitsAndObeysContext(t *testing.T) {
	var l registrytest.Locker
	unlock, err := l.Lock(context.Background(), "k")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := l.Lock(ctx, "k"); !errors.Is(err, context.Canceled) {
		t.Errorf("locking a held key with a done context: %v", err)
	}
	unlock()
	unlock() // harmless
	if unlock, err = l.Lock(context.Background(), "k"); err != nil {
		t.Fatal(err)
	}
	unlock()
}
