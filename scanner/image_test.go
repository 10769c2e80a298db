//go:build goexperiment.jsonv2

package scanner_test

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/dray-project/dray/pipeline"
)

var created = time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC)

type files map[string]string

// archive is the same for the same files.
func archive(t *testing.T, in files) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, name := range slices.Sorted(maps.Keys(in)) {
		hdr := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(in[name])), Mode: 0o755, ModTime: created}
		if err := w.WriteHeader(hdr); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, in[name]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func layer(t *testing.T, content []byte, opts ...tarball.LayerOption) v1.Layer {
	t.Helper()
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(content)), nil
	}, append([]tarball.LayerOption{tarball.WithMediaType(types.OCILayer)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// image has one layer for each set of files.
func image(t *testing.T, arch, user string, layers ...files) v1.Image {
	t.Helper()
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.ConfigFile(img, &v1.ConfigFile{
		OS: "linux", Architecture: arch, Created: v1.Time{Time: created},
		Config: v1.Config{User: user, Labels: map[string]string{"b": "2", "a": "1"}},
		RootFS: v1.RootFS{Type: "layers"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, in := range layers {
		img, err = mutate.Append(img, mutate.Addendum{Layer: layer(t, archive(t, in)), History: v1.History{CreatedBy: "COPY . /"}})
		if err != nil {
			t.Fatal(err)
		}
	}
	return img
}

// push writes the image by its digest, as builds do.
func push(t *testing.T, repository string, platform pipeline.Platform, img v1.Image) pipeline.PlatformImage {
	t.Helper()
	h, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(reference(t, repository+"@"+h.String()), img); err != nil {
		t.Fatal(err)
	}
	size, err := img.Size()
	if err != nil {
		t.Fatal(err)
	}
	mt, err := img.MediaType()
	if err != nil {
		t.Fatal(err)
	}
	return pipeline.PlatformImage{Platform: platform, Digest: pipeline.Digest(h.String()), Size: size, MediaType: string(mt)}
}

// named is the image that the platforms belong to. The scanner reads platforms
// only, so an index is not pushed.
func named(repository string, p pipeline.PlatformImage) pipeline.Image {
	return pipeline.Image{Repository: repository, Digest: p.Digest}
}

// debian is a Debian 12 with these packages: name, source, version.
func debian(packages ...[3]string) files {
	status := ""
	out := files{
		"etc/os-release":     "ID=debian\nVERSION_ID=\"12\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n",
		"etc/debian_version": "12.5\n",
	}
	for _, p := range packages {
		status += "Package: " + p[0] + "\nStatus: install ok installed\nArchitecture: amd64\nSource: " + p[1] +
			"\nMaintainer: Somebody <somebody@example.org>\nVersion: " + p[2] + "\nDescription: a package\n\n"
		out["usr/share/doc/"+p[0]+"/copyright"] = "Files: *\nLicense: Apache-2.0\n"
	}
	out["var/lib/dpkg/status"] = status
	return out
}

// jar is a Java archive that says what it is.
func jar(t *testing.T, group, artifact, version string) string {
	t.Helper()
	var out bytes.Buffer
	w := zip.NewWriter(&out)
	f, err := w.Create("META-INF/maven/" + group + "/" + artifact + "/pom.properties")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(f, "groupId="+group+"\nartifactId="+artifact+"\nversion="+version+"\n")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// goBinary compiles a program that was linked with a module at that version. The
// module is a stand-in in the vendor directory, so nothing is downloaded; the
// build information in the binary is the toolchain's own.
func goBinary(t *testing.T, arch, module, version string) string {
	t.Helper()
	dir := t.TempDir()
	source := files{
		"go.mod":                             "module example.org/app\n\ngo 1.26\n\nrequire " + module + " " + version + "\n",
		"main.go":                            "package main\n\nimport _ \"" + module + "/part\"\n\nfunc main() {}\n",
		"vendor/modules.txt":                 "# " + module + " " + version + "\n## explicit; go 1.26\n" + module + "/part\n",
		"vendor/" + module + "/part/part.go": "package part\n",
	}
	for name, content := range source {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", "app", ".")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOFLAGS=-mod=vendor", "GOPROXY=off", "GOEXPERIMENT=", "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch, "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("compile: %v\n%s", err, out)
	}
	b, err := os.ReadFile(filepath.Join(dir, "app"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
