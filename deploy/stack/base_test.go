//go:build linux

package stack

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

func TestTreeIsTheSameEachTime(t *testing.T) {
	write := func(umask os.FileMode, at time.Time) []byte {
		dir := t.TempDir()
		file := filepath.Join(dir, "sub", "program")
		if err := os.Mkdir(filepath.Dir(file), 0o755&^umask); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte("content"), 0o755&^umask); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(file, at, at); err != nil {
			t.Fatal(err)
		}
		tr := tree{}
		if err := tr.add("usr", dir, nil); err != nil {
			t.Fatal(err)
		}
		tr.text("etc/passwd", "root\n")
		tr.link("bin", "usr/bin")
		tr.dir("tmp", 0o777|os.ModeSticky)
		var b bytes.Buffer
		if err := tr.write(&b); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	if !bytes.Equal(write(0, time.Now()), write(0o077, time.Unix(1, 0))) {
		t.Error("times and umask make a difference")
	}
}

// The samples are built the way Dray's users build: from the git server, with
// nothing from the network but the bases, for both platforms.
func TestSamplesBuild(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles Go's standard library twice")
	}
	bin, dir := testBin(t), testDir(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	s, err := Start(ctx, Config{
		Dir: dir, Bin: bin, Cache: testCache(t), Buildkit: true, Registries: true, Git: true, Log: testLog{t},
	})
	if err != nil {
		t.Fatal(err)
	}
	refs, err := s.Bases(ctx, s.Dev.Host)
	if err != nil {
		t.Fatal(err)
	}
	again, err := s.Bases(ctx, s.Dev.Host)
	if err != nil {
		t.Fatal(err)
	}
	// The other registry has none of them: there they are made anew.
	anew, err := s.Bases(ctx, s.Prod.Host)
	if err != nil {
		t.Fatal(err)
	}
	for _, base := range []string{BaseGo, BaseStatic, BaseBusybox} {
		if refs[base] == "" || refs[base] != again[base] {
			t.Errorf("%s is %q, then %q", base, refs[base], again[base])
		}
		if moved := strings.Replace(refs[base], s.Dev.Host, s.Prod.Host, 1); anew[base] != moved {
			t.Errorf("%s made anew is %q, want %q", base, anew[base], moved)
		}
	}

	for _, app := range []string{"hello-go", "leaky"} {
		sample := Sample{Name: "acme/" + app, Source: filepath.Join("../demo/apps", app), Bases: refs}
		w, err := s.Repository(ctx, sample)
		if err != nil {
			t.Fatal(err)
		}
		commit, err := w.Commit(ctx, "nothing")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Repository(ctx, sample); err != nil {
			t.Fatal(err)
		}
		if same, err := w.Commit(ctx, "nothing"); err != nil || same != commit {
			t.Errorf("%s laid again is at %s (%v), want %s", app, same, err, commit)
		}
		var out bytes.Buffer
		if err := w.Push(ctx, &out, "main"); err != nil {
			t.Fatalf("%v: %s", err, &out)
		}
		start := time.Now()
		image := s.Dev.Host + "/acme/" + app + ":test"
		log, err := buildctl(ctx, s, "--opt", "context="+w.URL+"#"+commit,
			"--opt", "platform=linux/amd64,linux/arm64", "--output", "type=image,push=true,name="+image)
		if err != nil {
			t.Fatalf("%s does not build: %v\n%s", app, err, log)
		}
		t.Logf("%s: built for two platforms in %v", app, time.Since(start).Round(time.Second))

		ref, err := name.ParseReference(image, name.Insecure)
		if err != nil {
			t.Fatal(err)
		}
		img, err := remote.Image(ref, remote.WithContext(ctx), remote.WithPlatform(v1.Platform{OS: "linux", Architecture: "arm64"}))
		if err != nil {
			t.Fatal(err)
		}
		config, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]string{"hello-go": "65532:65532", "leaky": ""}[app]
		if config.Config.User != want || config.Architecture != "arm64" {
			b, _ := json.Marshal(config.Config)
			t.Errorf("%s runs as %q on %s, want %q on arm64: %s", app, config.Config.User, config.Architecture, want, b)
		}
	}
}

type testLog struct{ t *testing.T }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}
