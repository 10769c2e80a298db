//go:build linux && goexperiment.jsonv2

package main

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/olareg/olareg"
	"github.com/olareg/olareg/config"

	"github.com/dray-project/dray/deploy/vulndb"
	"github.com/dray-project/dray/pipeline"
)

type advisory = vulndb.Advisory

var served atomic.Int64

func (b *bench) requests() int64 { return served.Load() }

// serveRegistry has a registry in this process.
func (b *bench) serveRegistry() (stop func(), err error) {
	reg := olareg.New(config.Config{Storage: config.ConfigStorage{StoreType: config.StoreMem}})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		served.Add(1)
		reg.ServeHTTP(w, r)
	})}
	go func() { _ = server.Serve(l) }()
	b.host = l.Addr().String()
	return func() { _ = server.Close(); _ = reg.Close() }, nil
}

func (b *bench) databaseRef() string { return b.host + "/mirror/trivy-db:2" }

func (b *bench) pushDatabase(ctx context.Context, known []advisory) (pipeline.Digest, error) {
	dir, err := vulndb.Build(ctx, known, b.clock)
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // scratch
	ref, err := name.ParseReference(b.databaseRef(), name.Insecure)
	if err != nil {
		return "", err
	}
	if err := os.RemoveAll(b.rivalCache()); err != nil {
		return "", err
	}
	if err := os.CopyFS(filepath.Join(b.rivalCache(), "db"), os.DirFS(dir)); err != nil {
		return "", err
	}
	return vulndb.Push(ctx, dir, ref)
}

// rare is a package that few images have.
const rare = "module-rare"

func newAdvisory(n int, ecosystem, pkg string) advisory {
	a := advisory{ID: fmt.Sprintf("CVE-2027-%06d", n), Ecosystem: ecosystem, Package: pkg, Severity: "high", Title: "Something about " + pkg, URL: "https://example.org/" + pkg}
	if !strings.Contains(ecosystem, " ") {
		a.Vulnerable, a.Fixed = []string{"<99.0.0"}, []string{"99.0.0"}
	}
	return a
}

// knowledge is a database of about the public one's proportions: most of what it
// knows is about packages that an image does not have.
func (b *bench) knowledge() []advisory {
	rng := rand.New(rand.NewPCG(7, 7))
	own := sources()
	var out []advisory
	seen := map[string]bool{}
	add := func(n int, ecosystem, pkg string) {
		a := newAdvisory(n, ecosystem, pkg)
		a.ID = fmt.Sprintf("CVE-20%02d-%05d", 18+n%9, n)
		switch rng.IntN(3) {
		case 0: // mended long ago
			if len(a.Vulnerable) > 0 {
				a.Vulnerable, a.Fixed = []string{"<0.0.1"}, []string{"0.0.1"}
			} else {
				a.Fixed = []string{"0.0.1"}
			}
		case 1:
			a.Severity = []string{"low", "medium", "critical"}[rng.IntN(3)]
		}
		if k := a.ID + ecosystem + pkg; !seen[k] {
			seen[k] = true
			out = append(out, a)
		}
	}
	for n := range b.advisories {
		switch rng.IntN(10) {
		case 0:
			if n%100 == 0 {
				add(n, "debian 12", own[rng.IntN(len(own))])
			}
			add(n, "debian 12", fmt.Sprintf("source-%d", rng.IntN(4000)))
		case 1, 2, 3:
			add(n, []string{"debian 11", "debian 13", "alpine 3.20"}[rng.IntN(3)], fmt.Sprintf("source-%d", rng.IntN(4000)))
		case 4, 5, 6:
			add(n, "npm", fmt.Sprintf("module-%d", rng.IntN(18000)))
		case 7:
			add(n, "pip", fmt.Sprintf("dist-%d", rng.IntN(6000)))
		default:
			add(n, "go", fmt.Sprintf("example.org/mod%d", rng.IntN(3000)))
		}
	}
	return out
}

// paragraphs are what this machine's package manager has installed: real names,
// versions and sources. Packages that the bench names are always among them.
func paragraphs() []string {
	const want = 250
	raw, err := os.ReadFile("/var/lib/dpkg/status")
	if err != nil {
		raw = nil
	}
	out := []string{"Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nSource: glibc\nMaintainer: Debian\nVersion: 2.36-9+deb12u9\n",
		"Package: libssl3\nStatus: install ok installed\nArchitecture: amd64\nSource: openssl\nMaintainer: Debian\nVersion: 3.0.11-1\n",
		"Package: perl-base\nStatus: install ok installed\nArchitecture: amd64\nSource: perl\nMaintainer: Debian\nVersion: 5.36.0-7\n"}
	for p := range strings.SplitSeq(string(raw), "\n\n") {
		if len(out) == want {
			break
		}
		var keep []string
		for line := range strings.Lines(p) {
			for _, field := range []string{"Package:", "Status:", "Architecture:", "Source:", "Maintainer:", "Version:"} {
				if strings.HasPrefix(line, field) {
					keep = append(keep, line)
				}
			}
		}
		if len(keep) >= 5 && !strings.HasPrefix(p, "Package: libc6\n") && !strings.HasPrefix(p, "Package: libssl3\n") && !strings.HasPrefix(p, "Package: perl-base\n") {
			out = append(out, strings.Join(keep, ""))
		}
	}
	for n := len(out); n < want; n++ {
		out = append(out, fmt.Sprintf("Package: package-%d\nStatus: install ok installed\nArchitecture: amd64\nSource: source-%d\nMaintainer: Debian\nVersion: 1.%d-1\n", n, n, n))
	}
	return out
}

// sources of what is installed.
func sources() (out []string) {
	for _, p := range paragraphs() {
		src := ""
		for line := range strings.Lines(p) {
			if v, ok := strings.CutPrefix(line, "Package: "); ok && src == "" {
				src = strings.TrimSpace(v)
			}
			if v, ok := strings.CutPrefix(line, "Source: "); ok {
				src, _, _ = strings.Cut(strings.TrimSpace(v), " ")
			}
		}
		out = append(out, src)
	}
	return out
}

// files of one variant: some packages in other versions, some missing.
func (b *bench) files(variant int) map[string]string {
	rng := rand.New(rand.NewPCG(1, uint64(variant)))
	out := map[string]string{"etc/os-release": "ID=debian\nVERSION_ID=\"12\"\n", "etc/debian_version": "12.5\n"}
	var status strings.Builder
	for i, p := range paragraphs() {
		switch {
		case i > 2 && rng.IntN(20) == 0:
			continue
		case rng.IntN(10) == 0:
			p = strings.TrimRight(p, "\n") + "\n"
			p = strings.Replace(p, "\nVersion: ", fmt.Sprintf("\nVersion: %d:", rng.IntN(3)), 1)
			if strings.Count(p[strings.Index(p, "\nVersion: "):], ":") > 2 {
				continue // it had an epoch
			}
		}
		status.WriteString(strings.TrimRight(p, "\n") + "\n\n")
	}
	out["var/lib/dpkg/status"] = status.String()
	for range 160 {
		n := rng.IntN(2000)
		out[fmt.Sprintf("app/node_modules/module-%d/package.json", n)] = fmt.Sprintf(`{"name":"module-%d","version":"%d.%d.%d","license":"MIT"}`, n, 1+rng.IntN(5), rng.IntN(20), rng.IntN(9))
	}
	if variant%50 == 7 {
		out["app/node_modules/"+rare+"/package.json"] = `{"name":"` + rare + `","version":"1.0.0","license":"MIT"}`
	}
	for range 40 {
		n := rng.IntN(800)
		out[fmt.Sprintf("usr/lib/python3/dist-packages/dist_%d-1.%d.dist-info/METADATA", n, n%9)] =
			fmt.Sprintf("Metadata-Version: 2.1\nName: dist_%d\nVersion: 1.%d\nLicense: MIT\n", n, n%9)
	}
	return out
}

// scanAll builds the variants, pushes them and scans them.
func (b *bench) scanAll(ctx context.Context) error {
	for n := range b.variants {
		img, err := buildImage(b.files(n))
		if err != nil {
			return err
		}
		h, err := img.Digest()
		if err != nil {
			return err
		}
		repo := b.host + "/team/app"
		ref, err := name.ParseReference(repo+"@"+h.String(), name.Insecure)
		if err != nil {
			return err
		}
		if err := remote.Write(ref, img, remote.WithContext(ctx)); err != nil {
			return err
		}
		at := pipeline.PlatformImage{Platform: "linux/amd64", Digest: pipeline.Digest(h.String())}
		report, err := b.scanner.Scan(ctx, pipeline.Image{Repository: repo, Digest: at.Digest}, []pipeline.PlatformImage{at})
		if err != nil {
			return err
		}
		b.samples = append(b.samples, report.Platforms[0])
	}
	return nil
}

func buildImage(files map[string]string) (v1.Image, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for path, content := range files {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path, Size: int64(len(content)), Mode: 0o644}); err != nil {
			return nil, err
		}
		if _, err := io.WriteString(w, content); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(out.Bytes())), nil },
		tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	if img, err = mutate.ConfigFile(img, &v1.ConfigFile{OS: "linux", Architecture: "amd64", RootFS: v1.RootFS{Type: "layers"}}); err != nil {
		return nil, err
	}
	return mutate.Append(img, mutate.Addendum{Layer: layer, History: v1.History{CreatedBy: "COPY . /"}})
}
