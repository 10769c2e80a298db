package registry_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/registry"
	"github.com/dray-project/dray/pipeline/registry/registrytest"
)

func TestArtifact(t *testing.T) {
	const media = "application/vnd.example.note.v1"
	for kind, host := range kinds() {
		t.Run(kind, func(t *testing.T) {
			proxy := registrytest.NewProxy(t, host(t))
			repo := proxy.Host + "/evidence/log"
			r := start(t, registry.Config{}, proxy.Host)
			if _, err := r.PullArtifact(t.Context(), repo, "latest", media); !errors.Is(err, pipeline.ErrNotFound) {
				t.Errorf("before there is one: %v", err)
			}
			for _, body := range []string{"one", "two", "two"} {
				if err := r.PushArtifact(t.Context(), repo, "latest", media, []byte(body)); err != nil {
					t.Fatal(err)
				}
				if got, err := r.PullArtifact(t.Context(), repo, "latest", media); err != nil || string(got) != body {
					t.Errorf("%q, %v", got, err)
				}
			}
			// Others read it as an artefact.
			tag := must[name.Tag](t)(name.NewTag(repo + ":latest"))
			raw := string(must[*remote.Descriptor](t)(remote.Get(tag)).Manifest)
			if !strings.Contains(raw, `"artifactType":"`+media+`"`) || !strings.Contains(raw, `"mediaType":"application/vnd.oci.empty.v1+json"`) {
				t.Error(raw)
			}
			if _, err := r.PullArtifact(t.Context(), repo, "latest", "application/other"); !errors.Is(err, pipeline.ErrInvalid) {
				t.Errorf("of another type: %v", err)
			}
			for _, bad := range []string{"", "a b", "../x"} {
				if err := r.PushArtifact(t.Context(), repo, bad, media, nil); err == nil {
					t.Errorf("tag %q was taken", bad)
				}
			}
			proxy.Inject(http.MethodGet, "/blobs/", 10, registrytest.FlipByte())
			if got, err := r.PullArtifact(t.Context(), repo, "latest", media); err == nil {
				t.Errorf("a changed blob was read as %q", got)
			}
			proxy.Clear()
			proxy.Inject(http.MethodPut, "/manifests/", 10, registrytest.AcceptWithoutStoring())
			if err := r.PushArtifact(t.Context(), repo, "latest", media, []byte("three")); err == nil {
				t.Error("what was not kept counts as pushed")
			}
		})
	}
}
