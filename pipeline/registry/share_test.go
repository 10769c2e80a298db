package registry_test

import (
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/dray-project/dray/pipeline/registry"
	"github.com/dray-project/dray/pipeline/registry/registrytest"
)

// Copies and whoever else uses the transport share one limit per host.
func TestOneLimitForAll(t *testing.T) {
	const limit = 3
	from := registrytest.NewProxy(t, registrytest.Olareg(t))
	to := registrytest.NewProxy(t, registrytest.Distribution(t))
	one, two := newSample(t, from.Host+"/one/app"), newSample(t, from.Host+"/two/app")
	var mu sync.Mutex
	most, now := map[string]int{}, map[string]int{}
	for _, p := range []*registrytest.Proxy{from, to} {
		p.Inject("", ".", 0, func(w http.ResponseWriter, r *http.Request, registry http.Handler) {
			mu.Lock()
			now[p.Host]++
			most[p.Host] = max(most[p.Host], now[p.Host])
			mu.Unlock()
			time.Sleep(2 * time.Millisecond)
			mu.Lock()
			now[p.Host]-- // before the answer, which lets the next one in
			mu.Unlock()
			registry.ServeHTTP(w, r)
		})
	}
	r := start(t, registry.Config{MaxParallel: limit}, from.Host, to.Host)
	client := &http.Client{Transport: r.Transport()}
	var wg sync.WaitGroup
	for _, s := range []*sample{one, two} {
		wg.Go(func() {
			if _, err := r.Copy(t.Context(), s.image, to.Host+"/prod/app"); err != nil {
				t.Error(err)
			}
		})
	}
	for range 4 {
		wg.Go(func() {
			for range 10 {
				for _, p := range []*registrytest.Proxy{from, to} {
					res, err := client.Get("http://" + p.Host + "/v2/")
					if err != nil {
						t.Error(err)
						return
					}
					res.Body.Close()
				}
			}
		})
	}
	wg.Wait()
	for _, p := range []*registrytest.Proxy{from, to} {
		if n := most[p.Host]; n != limit {
			t.Errorf("%d requests to %s at once, want up to %d", n, p.Host, limit)
		}
	}
}
