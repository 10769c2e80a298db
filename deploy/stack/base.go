//go:build linux

package stack

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// baseRecipe is counted up when the base images are to be made differently.
const baseRecipe = 1

// Names of the base images.
const (
	BaseGo      = "base/go"      // Go and a shell, to build in; this machine's platform
	BaseStatic  = "base/static"  // no shell, not root; linux/amd64 and linux/arm64
	BaseBusybox = "base/busybox" // a shell, root; linux/amd64 and linux/arm64
)

// Bases makes the base images out of Debian's packages and this machine's Go,
// pushes to the registry what it does not have yet, and returns the pinned
// references by name: "127.0.0.1:PORT/base/go:TAG@sha256:…". The same packages
// and the same Go make the same digests. No names mean all.
func (s *Stack) Bases(ctx context.Context, registry string, names ...string) (map[string]string, error) {
	debs, err := s.debs(ctx)
	if err != nil {
		return nil, err
	}
	goroot, goversion, err := goTree(ctx)
	if err != nil {
		return nil, err
	}
	b := &bases{dir: filepath.Join(s.Dir, "bases"), registry: registry, debs: debs, log: s.log}
	if err := os.MkdirAll(b.dir, 0o755); err != nil {
		return nil, fmt.Errorf("stack: make %s: %w", b.dir, err)
	}
	refs := map[string]string{}
	for _, base := range []struct {
		name, tag string
		platforms []string
		of        []string // whose content decides
		tree      func(arch string) (tree, error)
		config    v1.Config
	}{
		{
			BaseGo, strings.TrimPrefix(goversion, "go"), []string{runtime.GOARCH}, []string{goversion},
			func(arch string) (tree, error) { return b.golang(arch, goroot) },
			v1.Config{
				Env: []string{
					"PATH=/usr/local/go/bin:/bin", "HOME=/root", "GOPATH=/go",
					"GOTOOLCHAIN=local", "CGO_ENABLED=0", "GOTELEMETRY=off",
				},
				Cmd: []string{"/bin/sh"}, WorkingDir: "/src",
			},
		},
		{
			BaseStatic, "12", []string{"amd64", "arm64"}, nil, b.static,
			v1.Config{
				Env:  []string{"PATH=/", "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt"},
				User: "65532:65532", WorkingDir: "/home/nonroot",
			},
		},
		{
			BaseBusybox, "12", []string{"amd64", "arm64"}, nil, b.busybox,
			v1.Config{Env: []string{"PATH=/bin"}, Cmd: []string{"/bin/sh"}},
		},
	} {
		if len(names) > 0 && !slices.Contains(names, base.name) {
			continue
		}
		key := b.key(base.name, append(base.of, base.platforms...), base.config)
		digest, err := b.push(ctx, base.name, base.tag, key, func() (remote.Taggable, func() error, error) {
			if len(base.platforms) == 1 {
				img, err := b.image(base.platforms[0], base.tree, base.config)
				return img, func() error { return remote.Write(b.ref(base.name, base.tag), img, remote.WithContext(ctx)) }, err
			}
			idx, err := b.index(base.platforms, base.tree, base.config)
			return idx, func() error { return remote.WriteIndex(b.ref(base.name, base.tag), idx, remote.WithContext(ctx)) }, err
		})
		if err != nil {
			return nil, fmt.Errorf("stack: make the base image %s: %w", base.name, err)
		}
		refs[base.name] = fmt.Sprintf("%s/%s:%s@%s", registry, base.name, base.tag, digest)
	}
	return refs, nil
}

type bases struct {
	dir      string // what was made before; layers on their way
	registry string
	debs     map[string]deb
	log      *logger
}

func (b *bases) ref(repository, tag string) name.Tag {
	r, err := name.NewTag(b.registry+"/"+repository+":"+tag, name.Insecure)
	if err != nil {
		panic(err) // the names and tags above are valid, and so is an address
	}
	return r
}

// key is over everything that an image is made of.
func (b *bases) key(name string, of []string, config v1.Config) string {
	c, err := json.Marshal(config)
	if err != nil {
		panic(err) // strings only
	}
	of = append([]string{name, fmt.Sprint(baseRecipe), string(c)}, of...)
	for id, d := range b.debs {
		of = append(of, id+"="+d.version)
	}
	slices.Sort(of)
	sum := sha256.Sum256([]byte(strings.Join(of, "\n")))
	return hex.EncodeToString(sum[:])
}

// push makes and pushes the image unless the one with that key was made before
// and the registry still has it under that tag.
func (b *bases) push(ctx context.Context, repository, tag, key string, make func() (remote.Taggable, func() error, error)) (string, error) {
	record := filepath.Join(b.dir, key)
	if known, err := os.ReadFile(record); err == nil {
		d, err := remote.Head(b.ref(repository, tag), remote.WithContext(ctx))
		if err == nil && d.Digest.String() == string(known) {
			return string(known), nil
		}
	}
	b.log.printf("base images: making %s:%s", repository, tag)
	defer b.clear()
	img, push, err := make()
	if err != nil {
		return "", err
	}
	if err := push(); err != nil {
		return "", err
	}
	manifest, err := img.RawManifest()
	if err != nil {
		return "", err
	}
	digest, _, err := v1.SHA256(bytes.NewReader(manifest))
	if err != nil {
		return "", err
	}
	return digest.String(), writeFile(record, []byte(digest.String()), 0o644)
}

func (b *bases) clear() {
	layers, _ := filepath.Glob(filepath.Join(b.dir, "layer-*"))
	for _, path := range layers {
		os.Remove(path)
	}
}

func (b *bases) image(arch string, make func(arch string) (tree, error), config v1.Config) (v1.Image, error) {
	t, err := make(arch)
	if err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(b.dir, "layer-*")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := t.write(f); err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromFile(f.Name(), tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	made := v1.Time{Time: time.Unix(0, 0).UTC()}
	img, err = mutate.ConfigFile(img, &v1.ConfigFile{
		OS: "linux", Architecture: arch, Created: made, Config: config,
		RootFS: v1.RootFS{Type: "layers"},
	})
	if err != nil {
		return nil, err
	}
	return mutate.Append(img, mutate.Addendum{
		Layer: layer, MediaType: types.OCILayer,
		History: v1.History{Created: made, CreatedBy: "deploy/stack", Comment: "made from Debian's packages"},
	})
}

func (b *bases) index(archs []string, make func(arch string) (tree, error), config v1.Config) (v1.ImageIndex, error) {
	idx := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, arch := range archs {
		img, err := b.image(arch, make, config)
		if err != nil {
			return nil, err
		}
		idx = mutate.AppendManifests(idx, mutate.IndexAddendum{
			Add:        img,
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}},
		})
	}
	return idx, nil
}

// common is what every base image has: who there is, what this is, where the
// world's certificates and times are.
func (b *bases) common(arch string) (tree, error) {
	t := tree{}
	t.text("etc/passwd", "root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n")
	t.text("etc/group", "root:x:0:\nnobody:x:65534:\nnonroot:x:65532:\n")
	t.text("etc/nsswitch.conf", "hosts: files dns\n")
	t.dir("root", 0o700)
	t.dir("home/nonroot", 0o755)
	t.dir("tmp", 0o777|os.ModeSticky)
	if err := t.carry(b.debs["base-files:"+arch], "etc/debian_version", "usr/lib/os-release", "etc/os-release"); err != nil {
		return nil, err
	}
	if err := t.carry(b.debs["netbase"], "etc/protocols", "etc/services"); err != nil {
		return nil, err
	}
	if err := t.carry(b.debs["tzdata"], "usr/share/zoneinfo/"); err != nil {
		return nil, err
	}
	bundle, err := certificates(filepath.Join(b.debs["ca-certificates"].root, "usr/share/ca-certificates/mozilla"))
	if err != nil {
		return nil, fmt.Errorf("the certificates: %w", err)
	}
	if err := t.carry(b.debs["ca-certificates"]); err != nil {
		return nil, err
	}
	t.text("etc/ssl/certs/ca-certificates.crt", bundle)
	return t, nil
}

func (b *bases) static(arch string) (tree, error) { return b.common(arch) }

func (b *bases) busybox(arch string) (tree, error) {
	t, err := b.common(arch)
	if err != nil {
		return nil, err
	}
	if err := t.carry(b.debs["busybox-static:"+arch], "bin/busybox"); err != nil {
		return nil, err
	}
	for _, applet := range strings.Fields(`
		[ ash awk basename cat chmod chown cp cut date dd df dirname du echo env expr false find grep
		gunzip gzip head hostname id kill ln ls mkdir mktemp mv nc nslookup od ping printf ps pwd
		readlink rm rmdir sed seq sh sha256sum sleep sort stat tail tar tee test touch tr true uname
		uniq vi wc wget which xargs`) {
		t.link("bin/"+applet, "busybox")
	}
	return t, nil
}

// golang is a build base: Go itself, without what only its own developers need.
func (b *bases) golang(arch, goroot string) (tree, error) {
	t, err := b.busybox(arch)
	if err != nil {
		return nil, err
	}
	tools := "pkg/tool/linux_" + arch
	keep := func(rel string, e fs.DirEntry) bool {
		top, _, _ := strings.Cut(rel, "/")
		switch {
		case e.Name() == "testdata" || strings.HasSuffix(rel, "_test.go"):
			return false
		case top == "src":
			return rel != "src/cmd"
		case rel == "bin/gofmt":
			return false
		case strings.HasPrefix(rel, tools+"/"):
			return slices.Contains([]string{"asm", "compile", "link"}, e.Name())
		case top == "pkg":
			return rel == "pkg" || rel == "pkg/tool" || rel == tools || below(rel, "pkg/include")
		}
		return slices.Contains([]string{"bin", "lib", "LICENSE", "PATENTS", "VERSION", "go.env"}, top)
	}
	if err := t.add("usr/local/go", goroot, keep); err != nil {
		return nil, fmt.Errorf("this machine's Go: %w", err)
	}
	t.dir("go", 0o755)
	t.dir("src", 0o755)
	return t, nil
}

// certificates joins the certificates as update-ca-certificates does.
func certificates(dir string) (string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.crt"))
	if err != nil {
		return "", err
	}
	if len(files) == 0 {
		return "", fmt.Errorf("there is none in %s", dir)
	}
	slices.Sort(files)
	var all strings.Builder
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		all.WriteString(strings.TrimSpace(string(b)) + "\n")
	}
	return all.String(), nil
}

// goTree returns the Go that builds Dray: where it is, and its version.
func goTree(ctx context.Context) (root, version string, err error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOROOT", "GOVERSION").Output()
	if err != nil {
		return "", "", fmt.Errorf("stack: find Go, to build in: %w", err)
	}
	f := strings.Fields(string(out))
	if len(f) != 2 {
		return "", "", fmt.Errorf("stack: find Go, to build in: go env printed %q", out)
	}
	return f[0], f[1], nil
}
