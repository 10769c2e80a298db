package builder

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	gcr "github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/moby/buildkit/client"
	"github.com/olareg/olareg"
	"github.com/olareg/olareg/config"

	"github.com/dray-project/dray/pipeline"
)

// buildkitAddress is the buildkitd of the tests, from DRAY_TEST_BUILDKIT. It
// needs no configuration: every registry here is on 127.0.0.1, which buildkitd
// speaks plain HTTP to by itself.
func buildkitAddress(t *testing.T) string {
	t.Helper()
	addr := os.Getenv("DRAY_TEST_BUILDKIT")
	if addr == "" {
		if os.Getenv("DRAY_TEST_REQUIRE") == "1" {
			t.Fatal("DRAY_TEST_BUILDKIT is not set: want the address of a buildkitd")
		}
		t.Skip("DRAY_TEST_BUILDKIT is not set: no buildkitd to test with")
	}
	return addr
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// stack is a builder with a registry, a git repository and a project.
type stack struct {
	t        *testing.T
	b        *Builder
	registry string // host
	repo     *repo
	project  pipeline.Project
}

func newStack(t *testing.T, change ...func(*Config)) *stack {
	t.Helper()
	addr := buildkitAddress(t)
	s := &stack{t: t, registry: newRegistry(t, nil), repo: newRepo(t, nil)}
	c := Config{
		Addresses: []string{addr},
		Hosts:     []pipeline.RegistryHost{{Host: s.registry, PlainHTTP: true}},
		Timeout:   2 * time.Minute,
		Log:       slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	for _, f := range change {
		f(&c)
	}
	s.b = newBuilder(t, c)
	s.project = pipeline.Project{
		Name: "p-" + filepath.Base(s.repo.dir), CloneURL: s.repo.url,
		Repository: s.registry + "/team/app",
		Platforms:  []pipeline.Platform{"linux/amd64"},
	}
	return s
}

func newBuilder(t *testing.T, c Config) *Builder {
	t.Helper()
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	b, err := New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// push commits files and returns the event of pushing them to main.
func (s *stack) push(files map[string]string) pipeline.Event {
	s.t.Helper()
	sha := s.repo.commit(files)
	s.repo.git("push", "-q", "--force", "origin", "main")
	return pipeline.Event{Kind: pipeline.EventPush, Ref: "refs/heads/main", After: sha}
}

func (s *stack) resolve(ev pipeline.Event) (pipeline.Source, *progress, error) {
	s.t.Helper()
	out := &progress{}
	src, err := s.b.Resolve(testContext(s.t), s.project, ev, out)
	return src, out, err
}

func (s *stack) mustResolve(ev pipeline.Event) pipeline.Source {
	s.t.Helper()
	src, out, err := s.resolve(ev)
	if err != nil {
		s.t.Fatalf("resolve: %v\n%s", err, out.text())
	}
	return src
}

func (s *stack) build(src pipeline.Source) (pipeline.BuildResult, *progress, error) {
	s.t.Helper()
	out := &progress{}
	res, err := s.b.Build(testContext(s.t), s.project, src, out)
	return res, out, err
}

func (s *stack) mustBuild(src pipeline.Source) (pipeline.BuildResult, *progress) {
	s.t.Helper()
	res, out, err := s.build(src)
	if err != nil {
		s.t.Fatalf("build: %v\n%s", err, out.text())
	}
	return res, out
}

// prune empties the daemon's cache of what nobody uses.
func (s *stack) prune() {
	s.t.Helper()
	if err := s.b.pool.members[0].client.Prune(testContext(s.t), nil, client.PruneAll); err != nil {
		s.t.Fatal(err)
	}
}

// image reads a pushed platform image back.
func (s *stack) image(p pipeline.PlatformImage) v1.Image {
	s.t.Helper()
	ref, err := name.NewDigest(s.project.Repository + "@" + string(p.Digest))
	if err != nil {
		s.t.Fatal(err)
	}
	img, err := gcr.Image(ref)
	if err != nil {
		s.t.Fatal(err)
	}
	return img
}

// contents returns the regular files of an image.
func contents(t *testing.T, img v1.Image) map[string]string {
	t.Helper()
	files := map[string]string{}
	rd := mutate.Extract(img)
	defer rd.Close()
	tr := tar.NewReader(rd)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			data, err := io.ReadAll(tr)
			if err != nil {
				t.Fatal(err)
			}
			files["/"+strings.TrimPrefix(h.Name, "/")] = string(data)
		}
	}
}

// progress keeps what a builder reports.
type progress struct {
	mu    sync.Mutex
	steps []pipeline.Step
	lines []pipeline.Line
}

func (p *progress) Step(s pipeline.Step) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.steps = append(p.steps, s)
}

func (p *progress) Line(l pipeline.Line) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lines = append(p.lines, l)
}

func (p *progress) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var b strings.Builder
	for _, s := range p.steps {
		fmt.Fprintf(&b, "step %s %s started=%t completed=%t cached=%t %s\n", s.ID, s.Name, s.Started != nil, s.Completed != nil, s.Cached, s.Error)
	}
	for _, l := range p.lines {
		fmt.Fprintf(&b, "line %s %s| %s\n", l.Step, l.Platform, l.Text)
	}
	return b.String()
}

// final returns the last state of the steps whose name has a part.
func (p *progress) final(part string) []pipeline.Step {
	p.mu.Lock()
	defer p.mu.Unlock()
	last := map[string]pipeline.Step{}
	for _, s := range p.steps {
		last[s.ID] = s
	}
	var out []pipeline.Step
	for _, s := range last {
		if strings.Contains(s.Name, part) {
			out = append(out, s)
		}
	}
	return out
}

// newRegistry starts a registry in this process, behind a handler if one is
// given, and returns its host.
func newRegistry(t *testing.T, wrap func(http.Handler) http.Handler) string {
	t.Helper()
	yes := true
	reg := olareg.New(config.Config{
		Storage: config.ConfigStorage{StoreType: config.StoreMem, GC: config.ConfigGC{Frequency: -1}},
		API:     config.ConfigAPI{PushEnabled: &yes, DeleteEnabled: &yes, Blob: config.ConfigAPIBlob{DeleteEnabled: &yes}},
		Log:     slog.New(slog.DiscardHandler),
	})
	t.Cleanup(func() { _ = reg.Close() })
	var h http.Handler = reg
	if wrap != nil {
		h = wrap(h)
	}
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

// missing skips the test on a machine that lacks something, and fails it in CI.
func missing(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("DRAY_TEST_REQUIRE") == "1" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// pushBase pushes a base image with a static busybox for amd64 and arm64; the
// files are added to it, and the arm64 one says so in /arch.
func pushBase(t *testing.T, ref string, files map[string]string, change func(*v1.Config)) v1.Hash {
	t.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		missing(t, "no static busybox to make a base image from: %v", err)
	}
	var idx v1.ImageIndex = empty.Index
	for _, arch := range []string{"amd64", "arm64"} {
		var buf bytes.Buffer
		tw := tar.NewWriter(&buf)
		add := func(h *tar.Header, data []byte) {
			h.Size, h.ModTime = int64(len(data)), time.Unix(1_500_000_000, 0)
			if err := tw.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
			if _, err := tw.Write(data); err != nil {
				t.Fatal(err)
			}
		}
		add(&tar.Header{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755}, nil)
		add(&tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o777}, nil)
		add(&tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755}, busybox)
		for _, tool := range []string{"sh", "cat", "echo", "ls", "sleep", "seq", "mkdir", "env", "printf", "false", "touch"} {
			add(&tar.Header{Name: "bin/" + tool, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}, nil)
		}
		add(&tar.Header{Name: "arch", Typeflag: tar.TypeReg, Mode: 0o644}, []byte(arch))
		for name, text := range files {
			add(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}, []byte(text))
		}
		if err := tw.Close(); err != nil {
			t.Fatal(err)
		}
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(buf.Bytes())), nil
		}, tarball.WithMediaType(types.OCILayer))
		if err != nil {
			t.Fatal(err)
		}
		img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
		if img, err = mutate.AppendLayers(img, layer); err != nil {
			t.Fatal(err)
		}
		cfg, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		cfg = cfg.DeepCopy()
		cfg.OS, cfg.Architecture = "linux", arch
		cfg.Config.Env = []string{"PATH=/bin"}
		if change != nil {
			change(&cfg.Config)
		}
		if img, err = mutate.ConfigFile(img, cfg); err != nil {
			t.Fatal(err)
		}
		idx = mutate.AppendManifests(idx, mutate.IndexAddendum{
			Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}},
		})
	}
	idx = mutate.IndexMediaType(idx, types.OCIImageIndex)
	r, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := gcr.WriteIndex(r, idx); err != nil {
		t.Fatal(err)
	}
	h, err := idx.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func asJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
