package vulndb_test

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	bolt "go.etcd.io/bbolt"

	"github.com/dray-project/dray/deploy/vulndb"
)

var updated = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func build(t *testing.T, advisories []vulndb.Advisory) string {
	t.Helper()
	dir, err := vulndb.Build(t.Context(), advisories, updated)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func defaults(t *testing.T) []vulndb.Advisory {
	t.Helper()
	advisories, err := vulndb.Default()
	if err != nil {
		t.Fatal(err)
	}
	return advisories
}

func TestBuildIsReproducible(t *testing.T) {
	first, err := os.ReadFile(filepath.Join(build(t, defaults(t)), "trivy.db"))
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		shuffled := defaults(t)
		shuffled[0], shuffled[len(shuffled)-1] = shuffled[len(shuffled)-1], shuffled[0]
		again, err := os.ReadFile(filepath.Join(build(t, shuffled), "trivy.db"))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(first, again) {
			t.Fatal("the same advisories gave another database")
		}
	}
}

func TestBuildKeepsEveryAdvisory(t *testing.T) {
	db, err := bolt.Open(filepath.Join(build(t, defaults(t)), "trivy.db"), 0, &bolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	err = db.View(func(tx *bolt.Tx) error {
		for err := range tx.Check() {
			t.Errorf("consistency: %v", err)
		}
		for _, a := range defaults(t) {
			bucket := a.Ecosystem
			if !strings.HasPrefix(bucket, "debian ") {
				bucket += "::GitHub Security Advisory " + map[string]string{"go": "Go", "npm": "npm", "pip": "pip", "maven": "Maven"}[a.Ecosystem]
			}
			if b := tx.Bucket([]byte(bucket)); b == nil || b.Bucket([]byte(a.Package)).Get([]byte(a.ID)) == nil {
				t.Errorf("%s in %s (%s) is missing", a.ID, a.Package, bucket)
			}
			var v struct {
				Title          string
				VendorSeverity map[string]int
				References     []string
			}
			if err := json.Unmarshal(tx.Bucket([]byte("vulnerability")).Get([]byte(a.ID)), &v); err != nil {
				t.Errorf("%s: %v", a.ID, err)
			}
			if v.Title == "" || len(v.VendorSeverity) == 0 || len(v.References) == 0 {
				t.Errorf("%s says too little: %+v", a.ID, v)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestBuildRefuses(t *testing.T) {
	good := vulndb.Advisory{ID: "CVE-1", Ecosystem: "go", Package: "p", Vulnerable: []string{"<1"}, Severity: "low"}
	change := func(f func(*vulndb.Advisory)) []vulndb.Advisory { a := good; f(&a); return []vulndb.Advisory{a} }
	for _, tt := range []struct {
		name string
		in   []vulndb.Advisory
		want string
	}{
		{"unknown ecosystem", change(func(a *vulndb.Advisory) { a.Ecosystem = "cobol" }), `ecosystem "cobol"`},
		{"no id", change(func(a *vulndb.Advisory) { a.ID = "" }), "an id is required"},
		{"no package", change(func(a *vulndb.Advisory) { a.Package = "" }), "a package is required"},
		{"no range", change(func(a *vulndb.Advisory) { a.Vulnerable = nil }), "version range"},
		{"severity", change(func(a *vulndb.Advisory) { a.Severity = "dire" }), `severity "dire"`},
		{"distribution with ranges", change(func(a *vulndb.Advisory) { a.Ecosystem = "debian 12" }), "no version ranges"},
		{"twice", []vulndb.Advisory{good, good}, "given twice"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, err := vulndb.Build(t.Context(), tt.in, updated)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v, want %q", err, tt.want)
			}
			if dir != "" {
				t.Errorf("a failed build left %s", dir)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := vulndb.Build(ctx, []vulndb.Advisory{good}, updated); err == nil {
		t.Error("a cancelled build succeeded")
	}
}

func TestPushIsReproducible(t *testing.T) {
	server := httptest.NewServer(registry.New())
	defer server.Close()
	ref, err := name.ParseReference(strings.TrimPrefix(server.URL, "http://") + "/vulndb:2")
	if err != nil {
		t.Fatal(err)
	}
	first, err := vulndb.Push(t.Context(), build(t, defaults(t)), ref)
	if err != nil {
		t.Fatal(err)
	}
	second, err := vulndb.Push(t.Context(), build(t, defaults(t)), ref)
	if err != nil {
		t.Fatal(err)
	}
	if first != second {
		t.Errorf("the same database was pushed as %s and as %s", first, second)
	}
	img, err := remote.Image(ref)
	if err != nil {
		t.Fatal(err)
	}
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Layers) != 1 || m.Layers[0].MediaType != vulndb.LayerMediaType || m.Config.MediaType != vulndb.ConfigMediaType {
		t.Errorf("manifest is %+v", m)
	}
}
