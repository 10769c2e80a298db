//go:build goexperiment.jsonv2

package scanner

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"os"
	"path"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// Entries of an archive.

func exe(name string, size int) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755, Size: int64(size)}
}

func data(name string, size int) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(size)}
}

func suid(name string, size int) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o4755, Size: int64(size)}
}

func dir(name string) tar.Header {
	return tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755}
}

func symlink(name, target string) tar.Header {
	return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}
}

func hardlink(name, target string) tar.Header {
	return tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o755}
}

func gone(name string) tar.Header {
	at, base := path.Split(name)
	return tar.Header{Typeflag: tar.TypeReg, Name: at + ".wh." + base}
}

func opaque(name string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: path.Join(name, ".wh..wh..opq")}
}

func pack(t testing.TB, in ...tar.Header) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, hdr := range in {
		if err := w.WriteHeader(&hdr); err != nil {
			t.Fatalf("%+v: %v", hdr, err)
		}
		if _, err := w.Write(make([]byte, hdr.Size)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func surveyOf(t testing.TB, layers ...[]tar.Header) files {
	t.Helper()
	var lists [][]byte
	for _, l := range layers {
		listing, err := list(bytes.NewReader(pack(t, l...)))
		if err != nil {
			t.Fatal(err)
		}
		lists = append(lists, listing)
	}
	out, err := survey(t.Context(), lists)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestSurvey(t *testing.T) {
	type layers = [][]tar.Header
	for name, c := range map[string]struct {
		layers   layers
		shells   string
		managers string
		setuid   string
		wasted   int64
	}{
		"nothing":            {},
		"links are no waste": {layers: layers{{symlink("a", "b"), dir("c")}, {data("a", 10), data("c", 10)}}},
		"a shell and a manager": {layers: layers{{exe("bin/bash", 9), exe("usr/bin/apt-get", 9), exe("app", 9)}},
			shells: "/bin/bash", managers: "/usr/bin/apt-get"},
		"names in other dress": {layers: layers{{exe("./bin/sh", 1), exe("/usr/local/bin/pip3.12", 1), exe("x/../opt/bin/zsh", 1)}},
			shells: "/bin/sh /opt/bin/zsh", managers: "/usr/local/bin/pip3.12"},
		"out of the root": {layers: layers{{exe("../../bin/sh", 1)}}, shells: "/bin/sh"},
		"not programs": {layers: layers{{data("bin/bash", 9), dir("usr/lib/apt"), dir("usr/bin/dpkg"), exe("etc/cron.daily/dpkg", 1),
			exe("usr/share/bash-completion/completions/dpkg", 1), exe("usr/bin/bashful", 1), exe("bin/pip3.x", 1),
			{Typeflag: tar.TypeChar, Name: "bin/sh", Mode: 0o755}, {Typeflag: tar.TypeFifo, Name: "bin/ash", Mode: 0o755}}}},
		"removed by a later layer": {layers: layers{{exe("bin/bash", 7), exe("bin/sh", 3)}, {gone("bin/bash")}},
			shells: "/bin/sh", wasted: 7},
		"removed and made again": {layers: layers{{exe("bin/sh", 3)}, {gone("bin/sh")}, {exe("bin/sh", 3)}},
			shells: "/bin/sh", wasted: 3},
		"removed with its directory": {layers: layers{{exe("opt/a/bin/sh", 3), data("opt/a/b/c", 4), data("opt/a.b", 5)}, {gone("opt/a")}}, wasted: 7},
		"removed and replaced in one layer": {layers: layers{{exe("bin/sh", 3), exe("bin/bash", 4)}, {gone("bin"), exe("bin/sh", 3)}},
			shells: "/bin/sh", wasted: 7},
		"a whiteout spares its own layer": {layers: layers{{exe("bin/sh", 3), gone("bin/sh")}}, shells: "/bin/sh"},
		"opaque": {layers: layers{{exe("a/bin/sh", 3), exe("a/bin/ash", 3), exe("b/sh", 1)}, {exe("a/bin/sh", 2), opaque("a/bin")}},
			shells: "/a/bin/sh /b/sh", wasted: 6},
		"opaque root":                      {layers: layers{{exe("bin/sh", 3)}, {opaque(""), exe("bin/ash", 2)}}, shells: "/bin/ash", wasted: 3},
		"opaque spares the directory":      {layers: layers{{dir("a"), suid("a/b", 2)}, {opaque("a")}, {suid("a/c", 1)}}, setuid: "/a/c", wasted: 2},
		"a file takes a directory's place": {layers: layers{{dir("bin"), exe("bin/sh", 3)}, {data("bin", 1)}}, wasted: 3},
		"a link takes a directory's place": {layers: layers{{dir("bin"), exe("bin/sh", 3)}, {symlink("bin", "usr/bin"), exe("usr/bin/ash", 3)}},
			shells: "/usr/bin/ash", wasted: 3},
		"a directory takes a file's place": {layers: layers{{data("bin", 3)}, {dir("bin"), exe("bin/sh", 3)}}, shells: "/bin/sh", wasted: 3},
		"a neighbour's name starts alike":  {layers: layers{{exe("a/sh", 1), exe("a-b/sh", 1), exe("a.b/sh", 1)}, {gone("a")}}, shells: "/a-b/sh /a.b/sh", wasted: 1},
		"notes of aufs":                    {layers: layers{{exe("bin/sh", 1)}, {data(".wh..wh.plnk/1.2", 0), data("bin/.wh..wh.aufs", 0), data("bin/.wh.", 0), data("bin/.wh...", 0)}}, shells: "/bin/sh"},

		"merged usr": {layers: layers{{symlink("bin", "usr/bin"), exe("usr/bin/dash", 2), symlink("usr/bin/sh", "dash")}},
			shells: "/usr/bin/dash /usr/bin/sh"},
		"merged usr, written through the link": {layers: layers{{symlink("bin", "usr/bin"), exe("usr/bin/sh", 2), suid("usr/bin/su", 1)}, {exe("bin/sh", 2), suid("bin/su", 1)}},
			shells: "/usr/bin/sh", setuid: "/usr/bin/su"},
		"link to a removed file":    {layers: layers{{exe("bin/dash", 2), symlink("bin/sh", "dash")}, {gone("bin/dash")}}, wasted: 2},
		"link to nowhere":           {layers: layers{{symlink("bin/sh", "/nowhere"), symlink("bin/ash", ""), symlink("bin/zsh", "/")}}},
		"link to what does not run": {layers: layers{{data("bin/x", 1), symlink("bin/sh", "x")}}},
		"links over links": {layers: layers{{symlink("bin/sh", "../a/b"), symlink("a", "/c/d/"), symlink("c/d", "../e"), symlink("e/b", "../../../e/f"), exe("e/f", 1)}},
			shells: "/bin/sh"},
		"links round":      {layers: layers{{symlink("bin/sh", "ash"), symlink("bin/ash", "sh"), symlink("loop", "loop"), symlink("bin/zsh", "/loop/zsh")}}},
		"a shell as links": {layers: layers{{exe("bin/busybox", 5), hardlink("bin/sh", "bin/busybox"), symlink("bin/ash", "/bin/busybox")}}, shells: "/bin/ash /bin/busybox /bin/sh"},

		"setuid": {layers: layers{{suid("bin/su", 1), {Typeflag: tar.TypeReg, Name: "bin/wall", Mode: 0o2755}, {Typeflag: tar.TypeDir, Name: "var/mail/", Mode: 0o2775}, symlink("bin/doas", "su"), exe("bin/ls", 1)}},
			setuid: "/bin/su /bin/wall"},
		"setuid added":   {layers: layers{{exe("bin/x", 5)}, {suid("bin/x", 5)}}, setuid: "/bin/x", wasted: 5},
		"setuid taken":   {layers: layers{{suid("bin/x", 5)}, {exe("bin/x", 5)}}, wasted: 5},
		"setuid removed": {layers: layers{{suid("bin/x", 5)}, {gone("bin/x")}}, wasted: 5},
		"setuid by another name": {layers: layers{{suid("bin/su", 1), {Typeflag: tar.TypeLink, Name: "bin/harmless", Linkname: "./bin/su", Mode: 0o644}, {Typeflag: tar.TypeLink, Name: "bin/more", Linkname: "bin/harmless"}}, {gone("bin/su")}},
			setuid: "/bin/harmless /bin/more", wasted: 1},

		"replaced":              {layers: layers{{data("a", 10), data("b", 1)}, {data("a", 30)}, {data("a", 20)}}, wasted: 50},
		"replaced by a link":    {layers: layers{{data("a", 10)}, {symlink("a", "b")}}, wasted: 10},
		"hard links":            {layers: layers{{data("a", 10), hardlink("b", "a"), hardlink("c", "a")}}},
		"twice in an archive":   {layers: layers{{data("a", 10), data("a", 4)}, {data("b", 1)}}},
		"removed twice":         {layers: layers{{data("a/b", 10)}, {gone("a/b")}, {gone("a")}}, wasted: 10},
		"removed before it was": {layers: layers{{gone("a")}, {data("a", 10)}}},
	} {
		t.Run(name, func(t *testing.T) {
			got := surveyOf(t, c.layers...)
			for _, w := range []struct {
				what string
				got  []string
				want string
			}{{"shells", got.Shells, c.shells}, {"package managers", got.PackageManagers, c.managers}, {"setuid", got.Setuid, c.setuid}} {
				if w.got == nil || strings.Join(w.got, " ") != w.want {
					t.Errorf("%s %q, want %q", w.what, w.got, w.want)
				}
			}
			if got.Wasted != c.wasted {
				t.Errorf("wasted %d, want %d", got.Wasted, c.wasted)
			}
		})
	}
}

// The lists that are searched by halves are in order, and the page has them.
func TestNamesAreInOrder(t *testing.T) {
	page, err := os.ReadFile("../docs/reference/hygiene.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, names := range [][]string{shells, packageManagers} {
		for _, name := range names {
			if !bytes.Contains(page, []byte("`"+name+"`")) {
				t.Errorf("docs/reference/hygiene.md does not name %s", name)
			}
		}
		if !slices.IsSorted(names) {
			t.Errorf("not in order: %v", names)
		}
	}
}

// A random image is surveyed as one that is unpacked layer by layer into a map.
func TestSurveyAgainstUnpacking(t *testing.T) {
	for seed := range int64(300) {
		rnd := rand.New(rand.NewSource(seed))
		name := func() string {
			parts := make([]string, 1+rnd.Intn(3))
			for i := range parts {
				parts[i] = []string{"a", "a-b", "a.b", "b", "sh", "é"}[rnd.Intn(6)]
			}
			return strings.Join(parts, "/")
		}
		type state struct {
			size int64
			suid bool
		}
		disk := map[string]*state{} // nil for a directory
		sums, least := map[string]int64{}, map[string]int64{}
		seen := func(p string, size int64) {
			if old, ok := least[p]; !ok || size < old {
				least[p] = size
			}
			sums[p] += size
		}
		remove := func(p string, self bool) {
			for at := range disk {
				if self && at == p || strings.HasPrefix(at, p+"/") {
					delete(disk, at)
				}
			}
		}
		var layers [][]tar.Header
		for range 1 + rnd.Intn(5) {
			var out, tail []tar.Header
			// Whiteouts first, as they act on what is below only.
			for range rnd.Intn(3) {
				p := name()
				if rnd.Intn(2) == 0 {
					out = append(out, gone(p))
					remove(p, true)
				} else {
					out = append(out, opaque(p))
					remove(p, false)
				}
			}
			used := map[string]bool{}
			for range rnd.Intn(6) {
				p := name()
				clash := used[p]
				for q := range used {
					clash = clash || strings.HasPrefix(q, p+"/") || strings.HasPrefix(p, q+"/")
				}
				// A file above is not something that an archive can be unpacked into.
				for up := path.Dir(p); up != "."; up = path.Dir(up) {
					clash = clash || disk[up] != nil
				}
				if clash {
					continue
				}
				used[p] = true
				if rnd.Intn(4) == 0 {
					if f, ok := disk[p]; ok && f != nil {
						delete(disk, p)
					}
					disk[p] = nil
					tail = append(tail, dir(p))
					continue
				}
				remove(p, false)
				f := &state{size: int64(rnd.Intn(50)), suid: rnd.Intn(3) == 0}
				disk[p] = f
				seen(p, f.size)
				if f.suid {
					tail = append(tail, suid(p, int(f.size)))
				} else {
					tail = append(tail, data(p, int(f.size)))
				}
			}
			rnd.Shuffle(len(tail), func(i, j int) { tail[i], tail[j] = tail[j], tail[i] })
			layers = append(layers, append(out, tail...))
		}
		want := files{Setuid: []string{}}
		for p, f := range disk {
			if f != nil && f.suid {
				want.Setuid = append(want.Setuid, "/"+p)
			}
		}
		slices.Sort(want.Setuid)
		for p := range sums {
			want.Wasted += sums[p]
			if disk[p] != nil {
				want.Wasted -= least[p]
			}
		}
		got := surveyOf(t, layers...)
		if got.Wasted != want.Wasted || !slices.Equal(got.Setuid, want.Setuid) {
			t.Fatalf("seed %d: got %d %v, want %d %v\n%s", seed, got.Wasted, got.Setuid, want.Wasted, want.Setuid, describe(layers))
		}
	}
}

func describe(layers [][]tar.Header) string {
	var b strings.Builder
	for i, l := range layers {
		for _, h := range l {
			fmt.Fprintf(&b, "%d %c %s %d\n", i, h.Typeflag, h.Name, h.Size)
		}
	}
	return b.String()
}

// stream writes headers into an archive as it is read.
func stream(n int, header func(i int) tar.Header) io.Reader {
	r, w := io.Pipe()
	go func() {
		tw := tar.NewWriter(w)
		for i := range n {
			hdr := header(i)
			if err := tw.WriteHeader(&hdr); err != nil {
				_ = w.CloseWithError(err)
				return
			}
		}
		_ = w.CloseWithError(tw.Close())
	}()
	return r
}

// A layer of many files, in no order, is listed in the order of their paths and
// takes little memory.
func TestListOfManyFiles(t *testing.T) {
	const n = 100_000
	name := func(i int) string {
		i = i * 7919 % n // all of them, far from each other
		return fmt.Sprintf("usr/lib/node_modules/package-%d/lib/file-%d.js", i/100, i%100)
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	listing, err := list(stream(n, func(i int) tar.Header { return data(name(i), 0) }))
	if err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 32*n+maxBatch {
		t.Errorf("%d files take %d bytes", n, grown)
	}
	if len(listing) > 32*n {
		t.Errorf("the listing takes %d bytes", len(listing))
	}
	var last []byte
	count := 0
	if err := merge([][]byte{listing}, func(found []occurrence) error {
		if count++; bytes.Compare(last, found[0].entry.path) >= 0 && count > 1 {
			t.Fatalf("%q is not after %q", found[0].entry.path, last)
		}
		last = append(last[:0], found[0].entry.path...)
		return nil
	}); err != nil || count != n {
		t.Errorf("%d entries of %d, %v", count, n, err)
	}
}

func TestHostileArchives(t *testing.T) {
	long := strings.Repeat("d/", maxPath)
	for name, c := range map[string]struct {
		archive io.Reader
		refused bool
	}{
		"a path that no kernel opens": {stream(1, func(int) tar.Header { return data(long+"sh", 0) }), true},
		"more names than anybody has": {stream(1<<20, func(i int) tar.Header {
			return data(fmt.Sprintf("%d/%s", i, strings.Repeat(string(rune('a'+i%26)), 3000)), 0)
		}), true},
		"more setuid files than anybody has": {stream(1<<20, func(i int) tar.Header {
			return suid(fmt.Sprintf("%s/%d", strings.Repeat("s", 3000), i), 0)
		}), true},
		"a link that no kernel follows": {stream(1, func(int) tar.Header { return symlink("bin/sh", strings.Repeat("x", 2*maxPath)) }), false},
		"a thousand links in a row":     {stream(1000, func(i int) tar.Header { return symlink(fmt.Sprintf("bin/%d/sh", i), fmt.Sprintf("../%d/sh", i+1)) }), false},
		"a link that grows":             {stream(1, func(int) tar.Header { return symlink("bin/sh", "sh/sh/sh/sh/sh/sh/sh/sh/sh/sh/sh/sh/sh") }), false},
		"deeper than anybody looks":     {stream(2*maxNamed, func(i int) tar.Header { return symlink(fmt.Sprintf("%d/%ssh", i, strings.Repeat("d/", 1500)), "x") }), false},
		"shells by the thousand":        {stream(100_000, func(i int) tar.Header { return exe(fmt.Sprintf("%d/sh", i), 0) }), false},
		"names that are no text":        {stream(1, func(int) tar.Header { return exe("\x1b[2J\xff\u202e/sh", 0) }), false},
	} {
		t.Run(name, func(t *testing.T) {
			begin := time.Now()
			listing, err := list(c.archive)
			var bound tooMuch
			if refused := errors.As(err, &bound); refused != c.refused || !refused && err != nil {
				t.Fatalf("got %v, want it refused: %v", err, c.refused)
			}
			out, err := survey(t.Context(), [][]byte{listing})
			if err != nil {
				t.Fatal(err)
			}
			if len(out.Shells) > maxNamed {
				t.Errorf("%d shells are told", len(out.Shells))
			}
			for _, s := range out.Shells {
				if !utf8.ValidString(s) || strings.ContainsAny(s, "\x1b\u202e") {
					t.Errorf("%q is told as it is", s)
				}
			}
			if took := time.Since(begin); took > 30*time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
}

func TestSurveyObeysItsContext(t *testing.T) {
	listing, err := list(stream(20_000, func(i int) tar.Header { return data(fmt.Sprint(i), 0) }))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := survey(ctx, [][]byte{listing}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// Whatever stands in a listing, reading it ends, without a fault.
func FuzzListing(f *testing.F) {
	good, err := list(bytes.NewReader(pack(f, exe("bin/sh", 1), symlink("a", "b"), gone("c"))))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Fuzz(func(t *testing.T, listing []byte) {
		_, err := survey(t.Context(), [][]byte{listing, good})
		if err != nil && !errors.Is(err, errListing) {
			t.Error(err)
		}
	})
}

// Whatever stands in an archive, listing it ends, and what it says can be read.
func FuzzList(f *testing.F) {
	f.Add(pack(f, exe("bin/sh", 1), symlink("a", "b"), gone("c"), hardlink("d", "bin/sh"), dir("e"), opaque("e")))
	f.Fuzz(func(t *testing.T, archive []byte) {
		listing, err := list(bytes.NewReader(archive))
		if err != nil {
			return
		}
		if _, err := survey(t.Context(), [][]byte{listing, listing}); err != nil {
			t.Error(err)
		}
		again, err := list(bytes.NewReader(archive))
		if err != nil || !reflect.DeepEqual(listing, again) {
			t.Errorf("the second time: %v", err)
		}
	})
}
