package registry_test

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/registry"
	"github.com/dray-project/dray/pipeline/registry/registrytest"
)

// TestRequestInsideAnAnswer: who asks something else before closing the answer
// to a write gets through, also when there is one slot only. A library that
// pushes referrers does that.
func TestRequestInsideAnAnswer(t *testing.T) {
	host := registrytest.Distribution(t)
	r, err := registry.New(t.Context(), registry.Config{
		Hosts:  []pipeline.RegistryHost{{Host: host, PlainHTTP: true}},
		Locker: &registrytest.Locker{}, MaxParallel: 1, Log: discardLog(),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	client := &http.Client{Transport: r.Transport()}
	ask := func(method, path string, body io.Reader) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(ctx, method, "http://"+host+path, body)
		if err != nil {
			t.Fatal(err)
		}
		res, err := client.Do(req)
		if err != nil {
			t.Fatalf("%s %s: %v", method, path, err)
		}
		return res
	}
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodHead, http.MethodDelete} {
		outer := ask(method, "/v2/app/blobs/uploads/", strings.NewReader(""))
		inner := ask(http.MethodGet, "/v2/", nil)
		if inner.StatusCode != http.StatusOK {
			t.Errorf("inside of %s: %s", method, inner.Status)
		}
		_ = inner.Body.Close()
		_ = outer.Body.Close()
	}
}
