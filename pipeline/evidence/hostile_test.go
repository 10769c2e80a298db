package evidence_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/evidence"
)

// small is a bundle that opens and proves nothing.
func small(t testing.TB, edit func(*evidence.Manifest, *[]entry)) []byte {
	t.Helper()
	image := []byte("{}\n")
	m := evidence.Manifest{Version: evidence.Version, Project: "app", Omitted: []string{}, CollectedAt: time.Unix(0, 0).UTC(),
		Image: pipeline.Image{Repository: "r.example/app", Digest: sum(nil)},
		Files: []evidence.File{{Name: "image.json", Role: evidence.RoleImage, Size: int64(len(image)), SHA256: sum(image)}}}
	list := []entry{{name: "image.json", body: image}}
	if edit != nil {
		edit(&m, &list)
	}
	manifest, err := json.MarshalIndent(m, "", "  ")
	check(t, err)
	return archive(t, append([]entry{{name: evidence.ManifestName, body: append(manifest, '\n')}, {name: evidence.InventoryName, body: []byte("{}")}}, list...))
}

func open(raw []byte) (*evidence.Bundle, error) {
	return evidence.Open(bytes.NewReader(raw), int64(len(raw)), evidence.Limits{})
}

// What no honest Dray writes is refused before anything in it is believed.
func TestRefuseHostileArchive(t *testing.T) {
	b, err := open(small(t, nil))
	check(t, err)
	if _, err := b.Read("image.json"); err != nil {
		t.Error(err)
	}
	if _, err := b.Read("../image.json"); !errors.Is(err, pipeline.ErrNotFound) {
		t.Errorf("read of what is not listed: %v", err)
	}
	listed := func(name string, role evidence.Role, body string) func(*evidence.Manifest, *[]entry) {
		return func(m *evidence.Manifest, list *[]entry) {
			at := 0
			if name > "image.json" {
				at = 1
			}
			m.Files = slices.Insert(m.Files, at, evidence.File{Name: name, Role: role, Size: int64(len(body)), SHA256: sum([]byte(body))})
			*list = slices.Insert(*list, at, entry{name: name, body: []byte(body)})
		}
	}
	for what, edit := range map[string]func(*evidence.Manifest, *[]entry){
		"a name twice in the tar": func(_ *evidence.Manifest, l *[]entry) { *l = append(*l, (*l)[0]) },
		"another content first": func(_ *evidence.Manifest, l *[]entry) {
			*l = append([]entry{{name: "image.json", body: []byte("no\n")}}, *l...)
		},
		"a name twice in the manifest": func(m *evidence.Manifest, l *[]entry) { m.Files, *l = append(m.Files, m.Files[0]), append(*l, (*l)[0]) },
		"a file that is not listed":    func(_ *evidence.Manifest, l *[]entry) { *l = append(*l, entry{name: "x", body: []byte("x")}) },
		"a file that is not there": func(m *evidence.Manifest, _ *[]entry) {
			m.Files = append(m.Files, evidence.File{Name: "scan.json", Role: evidence.RoleScan, SHA256: sum(nil)})
		},
		"no files in the tar":        func(_ *evidence.Manifest, l *[]entry) { *l = nil },
		"a path upwards":             listed("../../etc/passwd", evidence.RoleImage, "x"),
		"an absolute path":           listed("/etc/passwd", evidence.RoleImage, "x"),
		"a path with dots":           listed("log/../x.json", evidence.RoleEntry, "x"),
		"a leading zero":             listed("log/01.json", evidence.RoleEntry, "x"),
		"a name in another case":     listed("Image.json", evidence.RoleImage, "x"),
		"an empty name":              listed("", evidence.RoleImage, "x"),
		"another role":               func(m *evidence.Manifest, _ *[]entry) { m.Files[0].Role = evidence.RoleScan },
		"a blob with another digest": listed("blobs/sha256/"+strings.Repeat("0", 64), evidence.RoleBlob, "x"),
		"a symbolic link": func(_ *evidence.Manifest, l *[]entry) {
			(*l)[0] = entry{name: "image.json", kind: tar.TypeSymlink, link: "/etc/passwd"}
		},
		"a hard link": func(_ *evidence.Manifest, l *[]entry) {
			(*l)[0] = entry{name: "image.json", kind: tar.TypeLink, link: "manifest.json"}
		},
		"a device":              func(_ *evidence.Manifest, l *[]entry) { (*l)[0] = entry{name: "image.json", kind: tar.TypeChar} },
		"a directory":           func(_ *evidence.Manifest, l *[]entry) { *l = append([]entry{{name: "log/", kind: tar.TypeDir}}, *l...) },
		"an extended header":    func(_ *evidence.Manifest, l *[]entry) { (*l)[0].pax = map[string]string{"comment": "x"} },
		"an extended size":      func(_ *evidence.Manifest, l *[]entry) { (*l)[0].pax = map[string]string{"DRAY.size": "1"} },
		"another version":       func(m *evidence.Manifest, _ *[]entry) { m.Version = 2 },
		"no image":              func(m *evidence.Manifest, _ *[]entry) { m.Image.Digest = "" },
		"a size below zero":     func(m *evidence.Manifest, _ *[]entry) { m.Files[0].Size = -1 },
		"a huge size":           func(m *evidence.Manifest, _ *[]entry) { m.Files[0].Size = 1 << 62 },
		"a size over the limit": func(m *evidence.Manifest, _ *[]entry) { m.Files[0].Size = 64<<20 + 1 },
		"a digest that is none": func(m *evidence.Manifest, _ *[]entry) { m.Files[0].SHA256 = "sha256:x" },
		"the wrong order": func(m *evidence.Manifest, l *[]entry) {
			listed("scan.json", evidence.RoleScan, "x")(m, l)
			slices.Reverse(m.Files)
			slices.Reverse(*l)
		},
	} {
		if _, err := open(small(t, edit)); !errors.Is(err, pipeline.ErrUnverified) {
			t.Errorf("%s: %v, want ErrUnverified", what, err)
		} else {
			t.Logf("%s: %v", what, err)
		}
	}
	if _, err := open(nil); !errors.Is(err, pipeline.ErrUnverified) {
		t.Errorf("nothing: %v", err)
	}
	if _, err := open(make([]byte, 10240)); !errors.Is(err, pipeline.ErrUnverified) {
		t.Errorf("zeros: %v", err)
	}
	if _, err := open([]byte("\x1f\x8b\x08" + strings.Repeat("x", 4096))); !errors.Is(err, pipeline.ErrUnverified) {
		t.Errorf("gzip: %v", err)
	}
}

// endless is as many zeros as one likes, behind a beginning.
type endless struct {
	head []byte
	size int64
}

func (e endless) ReadAt(p []byte, off int64) (int, error) {
	if off >= e.size {
		return 0, io.EOF
	}
	clear(p)
	if off < int64(len(e.head)) {
		copy(p, e.head[off:])
	}
	if n := e.size - off; int64(len(p)) > n {
		return int(n), io.EOF
	}
	return len(p), nil
}

// What a bundle says of sizes costs nothing but reading it once.
func TestBundleIsReadWithinBounds(t *testing.T) {
	manifest := func(files int, size int64) []byte {
		m := evidence.Manifest{Version: evidence.Version, Project: "app", Omitted: []string{}, Image: pipeline.Image{Repository: "r.example/app", Digest: sum(nil)}}
		for i := range files {
			m.Files = append(m.Files, evidence.File{Name: fmt.Sprintf("decisions/%08d.json", i), Role: evidence.RoleDecision, Size: size, SHA256: sum(nil)})
		}
		raw, err := json.Marshal(m)
		check(t, err)
		return archive(t, []entry{{name: evidence.ManifestName, body: raw}, {name: evidence.InventoryName, body: []byte("{}")}})
	}
	for what, bomb := range map[string]endless{
		"larger than the limit":              {nil, 1<<40 + 1},
		"a manifest that is said to be huge": {huge(t, evidence.ManifestName, 1<<33-1), 1 << 29},
		"a file of 64 MiB of zeros":          {manifest(1, 64<<20), 80 << 20},
		"16 files of 64 MiB":                 {manifest(17, 64<<20), 1 << 30},
		"20,001 files":                       {manifest(20_001, 0), 1 << 26},
		"many files that are not there":      {manifest(20_000, 1000), 1 << 16},
	} {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		start := time.Now()
		_, err := evidence.Open(bomb, bomb.size, evidence.Limits{})
		runtime.ReadMemStats(&after)
		if !errors.Is(err, pipeline.ErrUnverified) {
			t.Errorf("%s: %v", what, err)
		}
		used := (after.TotalAlloc - before.TotalAlloc) >> 20
		if used > 64 {
			t.Errorf("%s: %d MiB were allocated", what, used)
		}
		t.Logf("%s: %d MiB, %s, %v", what, used, time.Since(start), err)
	}
	// Deep and wide JSON.
	for what, body := range map[string]string{
		"deep": strings.Repeat("[", 1<<20), "objects": strings.Repeat(`{"a":`, 1<<20), "many": "[" + strings.Repeat("0,", 1<<21) + "0]",
	} {
		raw := archive(t, []entry{{name: evidence.ManifestName, body: []byte(body)}})
		if _, err := open(raw); !errors.Is(err, pipeline.ErrUnverified) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func huge(t testing.TB, name string, size int64) []byte {
	t.Helper()
	var b bytes.Buffer
	check(t, tar.NewWriter(&b).WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Size: size, Mode: 0o644, ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}))
	return b.Bytes()
}

// FuzzOpen: whatever it is, it is refused or it is exactly one form.
func FuzzOpen(f *testing.F) {
	f.Add(small(f, nil))
	f.Add([]byte{})
	f.Add(make([]byte, 2048))
	f.Fuzz(func(t *testing.T, raw []byte) {
		b, err := open(raw)
		if err != nil {
			if !errors.Is(err, pipeline.ErrUnverified) {
				t.Fatalf("%v", err)
			}
			return
		}
		// What opens is what its own manifest gives when it is written again.
		list := []entry{}
		for r := tar.NewReader(bytes.NewReader(raw)); ; {
			h, err := r.Next()
			if err == io.EOF {
				break
			}
			check(t, err)
			body, err := io.ReadAll(r)
			check(t, err)
			list = append(list, entry{name: h.Name, body: body})
		}
		if len(list) != len(b.Manifest.Files)+2 || !bytes.Equal(archive(t, list), raw) {
			t.Fatal("two readers differ about what is in it")
		}
	})
}

// FuzzProof: a proof is refused or written again as it was.
func FuzzProof(f *testing.F) {
	f.Add([]byte("c2sp.org/tlog-proof@v1\nindex 1\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n\nx\n1\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n\n— x AAAA\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if again, ok := evidence.ReformatProof(raw); ok && !bytes.Equal(again, raw) {
			t.Fatalf("%q became %q", raw, again)
		}
	})
}
