package registry_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/dray-project/dray/pipeline"
)

// wantError checks an error's kind and that it names what it must.
func wantError(t testing.TB, err error, permanent bool, is error, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	if pipeline.IsPermanent(err) != permanent {
		t.Errorf("permanent is %t, want %t: %v", !permanent, permanent, err)
	}
	if is != nil && !errors.Is(err, is) {
		t.Errorf("error does not wrap %v: %v", is, err)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error does not name %q: %v", w, err)
		}
	}
	if strings.ContainsAny(err.Error(), "\n\x1b") {
		t.Errorf("error holds control characters: %q", err)
	}
}

func hashOf(t testing.TB, d partial.Describable) v1.Hash {
	t.Helper()
	return must[v1.Hash](t)(d.Digest())
}

func hasManifest(path string) bool { return strings.Contains(path, "/manifests/") }

func isTag(path string) bool { return hasManifest(path) && !strings.Contains(path, "sha256:") }

// checkSignatures reads the legacy .sig tag and compares the signatures in it.
func checkSignatures(t testing.TB, repo string, subject pipeline.Digest, want ...string) {
	t.Helper()
	img, err := remote.Image(must[name.Tag](t)(name.NewTag(repo + ":sha256-" + subject.Hex() + ".sig")))
	if err != nil {
		t.Fatal(err)
	}
	whole(t, img)
	m := must[*v1.Manifest](t)(img.Manifest())
	var have []string
	for _, l := range m.Layers {
		have = append(have, l.Annotations["dev.cosignproject.cosign/signature"])
	}
	slices.Sort(have)
	slices.Sort(want)
	if !slices.Equal(have, want) {
		t.Errorf("signatures %v, want %v", have, want)
	}
}
