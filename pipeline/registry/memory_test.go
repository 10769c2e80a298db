package registry_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/registry"
	"github.com/dray-project/dray/pipeline/registry/registrytest"
)

// A large blob passes through without being kept. The heap that is measured
// holds both registries as well.
func TestCopyOfALargeBlobNeedsLittleMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("writes half a gigabyte to disk")
	}
	const size, limit = 256 << 20, 64 << 20
	from, to := registrytest.DistributionOnDisk(t), registrytest.OlaregOnDisk(t)
	layer := func() io.Reader { return io.LimitReader(rand.NewChaCha8([32]byte{1}), size) }
	h := sha256.New()
	if _, err := io.Copy(h, layer()); err != nil {
		t.Fatal(err)
	}
	digest := fmt.Sprintf("sha256:%x", h.Sum(nil))
	upload(t, from, digest, layer(), size)
	upload(t, from, sum([]byte("{}")), bytes.NewReader([]byte("{}")), 2)
	manifest := []byte(fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":2},`+
		`"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":%q,"size":%d}]}`, ociImage, sum([]byte("{}")), digest, size))
	req := must[*http.Request](t)(http.NewRequest("PUT", "http://"+from+"/v2/team/app/manifests/"+sum(manifest), bytes.NewReader(manifest)))
	req.Header.Set("Content-Type", ociImage)
	answer(t, req, 201)

	r := start(t, registry.Config{}, from, to)
	runtime.GC()
	ctx, cancel := context.WithCancel(t.Context())
	var peak uint64
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			peak = max(peak, m.HeapAlloc)
			time.Sleep(5 * time.Millisecond)
		}
	})
	began := time.Now()
	got, err := r.Copy(t.Context(), pipeline.Image{Repository: from + "/team/app", Digest: pipeline.Digest(sum(manifest))}, to+"/prod/app")
	took := time.Since(began)
	cancel()
	wg.Wait()
	if err != nil {
		t.Fatal(err)
	}
	if got.Sent != size+2 {
		t.Errorf("%d bytes sent, want %d", got.Sent, size+2)
	}
	t.Logf("%d MiB in %s, heap at most %.1f MiB", size>>20, took.Round(time.Millisecond), float64(peak)/(1<<20))
	if peak > limit {
		t.Errorf("the heap grew to %d MiB, want under %d", peak>>20, limit>>20)
	}
}

func upload(t testing.TB, host, digest string, body io.Reader, size int64) {
	t.Helper()
	res := answer(t, must[*http.Request](t)(http.NewRequest("POST", "http://"+host+"/v2/team/app/blobs/uploads/", nil)), 202)
	at := must[*url.URL](t)(res.Location())
	query := at.Query()
	query.Set("digest", digest)
	at.RawQuery = query.Encode()
	req := must[*http.Request](t)(http.NewRequest("PUT", at.String(), body))
	req.ContentLength = size
	answer(t, req, 201)
}

func answer(t testing.TB, req *http.Request, want int) *http.Response {
	t.Helper()
	res := must[*http.Response](t)(http.DefaultClient.Do(req))
	body, _ := io.ReadAll(res.Body)
	res.Body.Close()
	if res.StatusCode != want {
		t.Fatalf("%s %s: %s: %s", req.Method, req.URL, res.Status, body)
	}
	return res
}
