//go:build goexperiment.jsonv2

package scanner_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"go.etcd.io/bbolt"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/scanner"
)

// entries makes an archive of exactly these.
func entries(t *testing.T, in ...tar.Header) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, hdr := range in {
		if hdr.Typeflag == 0 {
			hdr.Typeflag = tar.TypeReg
		}
		hdr.ModTime = created
		if err := w.WriteHeader(&hdr); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(bytes.Repeat([]byte{'x'}, int(hdr.Size))); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// layered has one layer for each archive, and the configuration.
func layered(t *testing.T, config v1.Config, history []string, archives ...[]byte) v1.Image {
	t.Helper()
	img := image(t, "amd64", "")
	file, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	file = file.DeepCopy()
	file.Config = config
	if img, err = mutate.ConfigFile(img, file); err != nil {
		t.Fatal(err)
	}
	for n, a := range archives {
		h := v1.History{}
		if n < len(history) {
			h.CreatedBy = history[n]
		}
		if img, err = mutate.Append(img, mutate.Addendum{Layer: layer(t, a), History: h}); err != nil {
			t.Fatal(err)
		}
	}
	return img
}

var (
	baseLayer = []tar.Header{
		{Typeflag: tar.TypeSymlink, Name: "bin", Linkname: "usr/bin", Mode: 0o777},
		{Name: "usr/bin/dash", Mode: 0o755, Size: 1000},
		{Typeflag: tar.TypeSymlink, Name: "usr/bin/sh", Linkname: "dash", Mode: 0o777},
		{Name: "usr/bin/bash", Mode: 0o755, Size: 5000},
		{Name: "usr/bin/apt-get", Mode: 0o755, Size: 300},
		{Name: "usr/bin/su", Mode: 0o4755, Size: 70},
		{Name: "var/cache/big", Mode: 0o644, Size: 20_000},
	}
	changeLayer = []tar.Header{
		{Name: "usr/bin/.wh.bash"},
		{Name: "var/cache/.wh..wh..opq"},
		{Name: "usr/bin/helper", Mode: 0o6755, Size: 10},
		{Name: "usr/bin/apt-get", Mode: 0o755, Size: 400},
	}
)

func TestHygiene(t *testing.T) {
	for kind, open := range registries {
		t.Run(kind, func(t *testing.T) {
			reg := open(t)
			dbRef := reg.host + "/vulndb:2"
			pushDatabase(t, dbRef, start)
			repo := reg.host + "/app"
			base, change := entries(t, baseLayer...), entries(t, changeLayer...)
			img := layered(t, v1.Config{
				Env:         []string{"PATH=/bin", "API_TOKEN=hunter22hunter22"},
				Healthcheck: &v1.HealthConfig{Test: []string{"CMD", "/bin/true"}},
			}, []string{"ADD rootfs / # buildkit", "RUN |1 TOKEN=hunter22hunter22 /bin/sh -c make # buildkit"}, base, change)
			p := push(t, repo, "linux/amd64", img)
			m, err := img.Manifest()
			if err != nil {
				t.Fatal(err)
			}
			file, err := img.ConfigFile()
			if err != nil {
				t.Fatal(err)
			}
			want := &pipeline.Hygiene{
				Shells:          []string{"/usr/bin/dash", "/usr/bin/sh"},
				PackageManagers: []string{"/usr/bin/apt-get"},
				Setuid:          []string{"/usr/bin/helper", "/usr/bin/su"},
				Secrets:         []pipeline.ConfigSecret{{Where: "env", Name: "API_TOKEN", Rule: "name"}, {Where: "history", Name: "2", Rule: "name"}},
				Healthcheck:     true,
				Size:            int64(len(base) + len(change)),
				Compressed:      m.Layers[0].Size + m.Layers[1].Size,
				Wasted:          5000 + 20_000 + 400,
				Layers: []pipeline.ImageLayer{
					{Digest: pipeline.Digest(m.Layers[0].Digest.String()), DiffID: pipeline.Digest(file.RootFS.DiffIDs[0].String()),
						Size: int64(len(base)), Compressed: m.Layers[0].Size, CreatedBy: "ADD rootfs /"},
					{Digest: pipeline.Digest(m.Layers[1].Digest.String()), DiffID: pipeline.Digest(file.RootFS.DiffIDs[1].String()),
						Size: int64(len(change)), Compressed: m.Layers[1].Size, CreatedBy: "RUN |1 TOKEN=*** /bin/sh -c make"},
				},
			}
			b := openScanner(t, dbRef)
			if got := hygiene(t, b, repo, p); !reflect.DeepEqual(got, want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
			for _, l := range m.Layers {
				if n := reg.count("GET /v2/app/blobs/" + l.Digest.String()); n != 1 {
					t.Errorf("layer %s was read %d times", l.Digest, n)
				}
			}
			if strings.Contains(b.log.String(), "hunter22") {
				t.Error("the log has the secret in it")
			}
		})
	}
}

func hygiene(t *testing.T, b *bench, repo string, p pipeline.PlatformImage) *pipeline.Hygiene {
	t.Helper()
	report, err := b.Scan(t.Context(), named(repo, p), []pipeline.PlatformImage{p})
	if err != nil {
		t.Fatal(err)
	}
	if report.Platforms[0].Hygiene == nil {
		t.Fatal("the report has no hygiene")
	}
	return report.Platforms[0].Hygiene
}

func TestHealthcheckAndHistory(t *testing.T) {
	reg := newRegistry(t)
	dbRef := reg.host + "/vulndb:2"
	pushDatabase(t, dbRef, start)
	b := openScanner(t, dbRef)
	repo := reg.host + "/app"
	a := entries(t, tar.Header{Name: "a", Size: 1})
	for name, c := range map[string]struct {
		check *v1.HealthConfig
		want  bool
	}{
		"none":    {nil, false},
		"empty":   {&v1.HealthConfig{}, false},
		"NONE":    {&v1.HealthConfig{Test: []string{"NONE"}}, false},
		"command": {&v1.HealthConfig{Test: []string{"CMD-SHELL", "true"}}, true},
	} {
		h := hygiene(t, b, repo, push(t, repo, "linux/amd64", layered(t, v1.Config{Healthcheck: c.check}, nil, a)))
		if h.Healthcheck != c.want {
			t.Errorf("%s: %v", name, h.Healthcheck)
		}
		if raw, err := json.Marshal(h); err != nil || !strings.Contains(string(raw), `"shells":[],"packageManagers":[],"setuid":[],"secrets":[]`) {
			t.Errorf("%s: %s %v", name, raw, err)
		}
	}

	// A history that does not fit the layers says nothing of them, and one that
	// fits is made fit to be shown.
	img := layered(t, v1.Config{}, []string{"RUN \x1b[31m" + strings.Repeat("long ", 1000)}, a)
	if by := hygiene(t, b, repo, push(t, repo, "linux/amd64", img)).Layers[0].CreatedBy; len(by) > 1100 || !strings.HasSuffix(by, "…") || strings.Contains(by, "\x1b") {
		t.Errorf("created by %q", by)
	}
	file, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	file = file.DeepCopy()
	file.History = append(file.History, v1.History{CreatedBy: "RUN another"})
	if img, err = mutate.ConfigFile(img, file); err != nil {
		t.Fatal(err)
	}
	if by := hygiene(t, b, repo, push(t, repo, "linux/amd64", img)).Layers[0].CreatedBy; by != "" {
		t.Errorf("created by %q", by)
	}
}

// What is kept of layers and images gives the same answer, without the registry;
// what is missing or damaged is read again.
func TestHygieneFromTheCache(t *testing.T) {
	reg := newRegistry(t)
	dbRef := reg.host + "/vulndb:2"
	pushDatabase(t, dbRef, start)
	repo := reg.host + "/app"
	base, change := entries(t, baseLayer...), entries(t, changeLayer...)
	// The same layer twice is read once.
	img := layered(t, v1.Config{}, nil, base, change, base)
	p := push(t, repo, "linux/amd64", img)
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	reads := func() int {
		return reg.count("GET /v2/app/blobs/"+m.Layers[0].Digest.String()) + reg.count("GET /v2/app/blobs/"+m.Layers[1].Digest.String())
	}
	b := openScanner(t, dbRef)
	dir := filepath.Join(b.cfg.CacheDir, "contents")
	kept := func(pattern string) []string {
		t.Helper()
		names, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil || len(names) == 0 {
			t.Fatalf("no files %s: %v", pattern, err)
		}
		return names
	}
	each := func(pattern string, do func(name string) error) func() {
		return func() {
			t.Helper()
			for _, name := range kept(pattern) {
				if err := do(name); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	cut := func(name string) error { return os.Truncate(name, 20) }
	empty := func(name string) error { return os.Truncate(name, 0) }
	flip := func(name string) error {
		data, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		data[len(data)/2] ^= 1
		return os.WriteFile(name, data, 0o600)
	}
	first := hygiene(t, b, repo, p)
	if n := reads(); n != 2 {
		t.Fatalf("two layers were read %d times", n)
	}
	for _, step := range []struct {
		name   string
		before func()
		reads  int
	}{
		{"again", func() {}, 0},
		{"survey gone", each("*-image-*", os.Remove), 0},
		{"survey cut", each("*-image-*", cut), 0},
		{"survey damaged", each("*-image-*", flip), 0},
		{"lists gone", each("*-layer-*", os.Remove), 0},
		{"all gone", func() { each("*-image-*", os.Remove)() }, 2},
		{"lists damaged", func() { each("*-image-*", os.Remove)(); each("*-layer-*", flip)() }, 2},
		{"lists empty", func() { each("*-image-*", os.Remove)(); each("*-layer-*", empty)() }, 2},
	} {
		t.Run(step.name, func(t *testing.T) {
			before := reads()
			step.before()
			if got := hygiene(t, b, repo, p); !reflect.DeepEqual(got, first) {
				t.Errorf("got  %+v\nwant %+v", got, first)
			}
			if n := reads() - before; n != step.reads {
				t.Errorf("layers were read %d times, want %d", n, step.reads)
			}
		})
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "new-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}

	// A scanner of before kept analyses only.
	cfg := b.cfg
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(filepath.Join(cfg.CacheDir, "fanal", "fanal.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	analyses := 0
	if err := db.View(func(tx *bbolt.Tx) error {
		analyses = tx.Bucket([]byte("blob")).Stats().KeyN
		return nil
	}); err != nil || analyses != 2 {
		t.Errorf("%d analyses of two layers are kept, %v", analyses, err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	before := reads()
	old := openScanner(t, dbRef, func(c *scanner.Config) { *c = cfg })
	if got := hygiene(t, old, repo, p); !reflect.DeepEqual(got, first) {
		t.Errorf("with the cache of before:\ngot  %+v\nwant %+v", got, first)
	}
	if n := reads() - before; n != 2 {
		t.Errorf("with the cache of before, layers were read %d times, want 2", n)
	}
}

// An archive whose list of files would have no end is refused for good.
func TestUnlistableImage(t *testing.T) {
	reg := newRegistry(t)
	dbRef := reg.host + "/vulndb:2"
	pushDatabase(t, dbRef, start)
	b := openScanner(t, dbRef)
	repo := reg.host + "/app"
	img := layered(t, v1.Config{}, nil, entries(t, tar.Header{Name: strings.Repeat("d/", 3000) + "file", Size: 1}))
	p := push(t, repo, "linux/amd64", img)
	for range 2 {
		_, err := b.Scan(t.Context(), named(repo, p), []pipeline.PlatformImage{p})
		wantError(t, err, true, "a path of 6004 bytes", "layer sha256:", repo)
	}
	// It still scans.
	q := push(t, repo, "linux/amd64", layered(t, v1.Config{}, nil, entries(t, tar.Header{Name: "a", Size: 1})))
	hygiene(t, b, repo, q)
}
