package evidence_test

import (
	"bytes"
	"compress/gzip"
	"flag"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/dray-project/dray/pipeline/evidence"
	"github.com/dray-project/dray/signer/verify"
)

var update = flag.Bool("update", false, "make the bundle in testdata anew: only before its version is released")

// Evidence must outlive the program that made it: a bundle of version 1 that was
// made once verifies with every later version.
func TestVersion1Verifies(t *testing.T) {
	dir := filepath.Join("testdata", "v1")
	if *update {
		s, _, raw := sample(t)
		var packed bytes.Buffer
		w := gzip.NewWriter(&packed)
		_, err := w.Write(raw)
		check(t, err)
		check(t, w.Close())
		_, files := unpack(t, raw)
		check(t, os.MkdirAll(dir, 0o755))
		check(t, os.WriteFile(filepath.Join(dir, "bundle.tar.gz"), packed.Bytes(), 0o644))
		check(t, os.WriteFile(filepath.Join(dir, "cosign.pub"), files[evidence.SigningKeyName], 0o644))
		check(t, os.WriteFile(filepath.Join(dir, "log.pub"), []byte(s.logKey), 0o644))
	}
	f, err := os.Open(filepath.Join(dir, "bundle.tar.gz"))
	check(t, err)
	defer f.Close()
	r, err := gzip.NewReader(f)
	check(t, err)
	raw, err := io.ReadAll(r)
	check(t, err)
	pub, err := os.ReadFile(filepath.Join(dir, "cosign.pub"))
	check(t, err)
	keys, err := verify.ParsePublicKeys(pub)
	check(t, err)
	logKey, err := os.ReadFile(filepath.Join(dir, "log.pub"))
	check(t, err)
	trust := trusting(keys, string(logKey))
	trust.Environments, trust.Builder = []string{"staging", "prod"}, builderID
	result, err := verifyBundle(raw, trust)
	check(t, err)
	if !result.Passed || len(result.Claims) < 50 {
		t.Errorf("%d claims, failed: %+v", len(result.Claims), result.Failed())
	}
}
