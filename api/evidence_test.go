package api_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/dray-project/dray/api"
	"github.com/dray-project/dray/api/apitest"
	"github.com/dray-project/dray/pipeline"
)

// bundle is one that says what it is.
type bundle string

func (b bundle) Size() int64 { return int64(len(b)) }

func (b bundle) Write(w io.Writer) error {
	_, err := io.WriteString(w, string(b))
	return err
}

// broken breaks off in the middle.
type broken struct{ bundle }

func (b broken) Write(w io.Writer) error {
	_, _ = io.WriteString(w, string(b.bundle[:4]))
	return errors.New("the registry is gone")
}

func TestEvidenceIsStreamed(t *testing.T) {
	path := "/api/v1/images/" + string(apitest.Good.Digest) + "/evidence?project=hello-go"
	serve := func(pack func(context.Context, string, pipeline.Digest) (api.EvidenceBundle, error)) *server {
		return newServer(t, func(c *api.Config) { c.Evidence = pack })
	}
	s := serve(func(_ context.Context, project string, d pipeline.Digest) (api.EvidenceBundle, error) {
		return bundle(project + " " + string(d)), nil
	})
	got := s.send("GET", path, "", auth)
	if want := "hello-go " + string(apitest.Good.Digest); got.StatusCode != 200 || got.body != want {
		t.Errorf("got %d %s, want %s", got.StatusCode, got.body, want)
	}
	if media, name := got.Header.Get("Content-Type"), got.Header.Get("Content-Disposition"); media != "application/x-tar" ||
		!strings.Contains(name, apitest.Good.Digest.Short()+".evidence.tar") || got.ContentLength != int64(len(got.body)) {
		t.Errorf("headers %v", got.Header)
	}
	s.want(s.send("GET", strings.Replace(path, string(apitest.Good.Digest), "sha256:"+strings.Repeat("0", 64), 1), "", auth), 404, "not-found")

	// What goes wrong before the first byte is a problem, each time: a turn that
	// was taken is given back.
	s = serve(func(context.Context, string, pipeline.Digest) (api.EvidenceBundle, error) {
		return nil, pipeline.ErrConflict
	})
	for range 5 {
		s.want(s.send("GET", path, "", auth), 409, "conflict")
	}
	// After it, the reader must notice.
	s = serve(func(context.Context, string, pipeline.Digest) (api.EvidenceBundle, error) {
		return broken{"evidence"}, nil
	})
	for range 5 {
		req, err := http.NewRequest("GET", s.url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", strings.TrimPrefix(auth, "Authorization: "))
		res, err := http.DefaultClient.Do(req)
		if err == nil {
			_, err = io.ReadAll(res.Body)
			res.Body.Close()
		}
		if err == nil {
			t.Error("a bundle that broke off looked whole")
		}
	}
	// Without a collector there is none.
	if got := newServer(t).send("GET", path, "", auth); got.StatusCode == 200 {
		t.Errorf("without a collector: %d", got.StatusCode)
	}
}
