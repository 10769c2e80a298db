//go:build goexperiment.jsonv2

package scanner_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/dray-project/dray/deploy/vulndb"
	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/scanner"
)

func advisory(id string) vulndb.Advisory {
	return vulndb.Advisory{ID: id, Ecosystem: "debian 12", Package: "openssl", Fixed: []string{"99"}, Severity: "high", Title: "A test", URL: "https://example.org/"}
}

func wantError(t *testing.T, err error, permanent bool, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one that says %q", parts)
	}
	if pipeline.IsPermanent(err) != permanent {
		t.Errorf("permanent is %v, want %v: %v", pipeline.IsPermanent(err), permanent, err)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("%q does not say %q", err, p)
		}
	}
}

func TestDatabaseTooOld(t *testing.T) {
	reg := newRegistry(t)
	dbRef := reg.host + "/vulndb:2"
	old := pushDatabase(t, dbRef, start.Add(-73*time.Hour))
	p := push(t, reg.host+"/app", "linux/amd64", image(t, "amd64", "", debian()))
	b := openScanner(t, dbRef)

	_, err := b.Scan(t.Context(), named(reg.host+"/app", p), []pipeline.PlatformImage{p})
	wantError(t, err, true, dbRef, string(old), "73h0m0s ago", "72h0m0s old at most", "bring a newer one")
	if n := reg.count("/v2/app/"); n != reg.count("PUT /v2/app/")+reg.count("POST /v2/app/")+reg.count("PATCH /v2/app/")+reg.count("HEAD /v2/app/") {
		t.Error("the image was read before the database was refused")
	}

	// A newer one mends it at once, however short ago the registry was asked.
	fresh := pushDatabase(t, dbRef, start)
	report, err := b.Scan(t.Context(), named(reg.host+"/app", p), []pipeline.PlatformImage{p})
	if err != nil {
		t.Fatal(err)
	}
	if report.Database.Digest != fresh {
		t.Errorf("scanned with %s, want %s", report.Database.Digest, fresh)
	}

	// And it ages.
	b.clock.add(scanner.DefaultMaxAge + time.Minute)
	_, err = b.Scan(t.Context(), named(reg.host+"/app", p), []pipeline.PlatformImage{p})
	wantError(t, err, true, string(fresh), "72h1m0s ago")

	// Too old and nobody to ask: trying again may help.
	reg.set(true, nil)
	_, err = b.Database(t.Context())
	wantError(t, err, false, reg.host, "403", "the one at hand cannot serve", "72h1m0s ago")
}

func TestDatabaseFromTheFuture(t *testing.T) {
	reg := newRegistry(t)
	pushDatabase(t, reg.host+"/vulndb:2", start.Add(48*time.Hour))
	_, err := openScanner(t, reg.host+"/vulndb:2").Database(t.Context())
	wantError(t, err, true, "48h0m0s from now", "clock")
}

func TestDatabaseIsRefreshed(t *testing.T) {
	reg := newRegistry(t)
	dbRef := reg.host + "/vulndb:2"
	first := pushDatabase(t, dbRef, start)
	b := openScanner(t, dbRef)
	database := func() pipeline.Digest {
		t.Helper()
		d, err := b.Database(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return d.Digest
	}
	if got := database(); got != first {
		t.Errorf("database %s, want %s", got, first)
	}
	second := pushDatabase(t, dbRef, start.Add(time.Minute))
	asked := reg.count("GET /v2/vulndb/manifests/")
	if got := database(); got != first || reg.count("GET /v2/vulndb/manifests/") != asked {
		t.Errorf("the registry was asked again too early, database %s", got)
	}
	b.clock.add(scanner.DefaultRefreshEvery)
	if got := database(); got != second {
		t.Errorf("an hour later: database %s, want %s", got, second)
	}
	if _, err := os.Stat(filepath.Join(b.cfg.CacheDir, "db", first.Hex())); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the database that was replaced is still there: %v", err)
	}

	// A mirror that goes back to an old one does not take the good one away.
	pushDatabase(t, dbRef, start.Add(-100*time.Hour))
	b.clock.add(scanner.DefaultRefreshEvery)
	if got := database(); got != second || !strings.Contains(b.log.String(), "scanning goes on with the one at hand") {
		t.Errorf("after the mirror went back: database %s, want %s", got, second)
	}
}

// Swapping the database under running scans: each report is of one database,
// and has the findings of the database that it names.
func TestDatabaseSwapWhileScanning(t *testing.T) {
	reg := newRegistry(t)
	dbRef := reg.host + "/vulndb:2"
	p := push(t, reg.host+"/app", "linux/amd64", image(t, "amd64", "", debian([3]string{"openssl", "openssl", "3"})))
	const versions = 6
	var mu sync.Mutex
	ids := map[pipeline.Digest]string{}
	publish := func(i int) {
		mu.Lock()
		defer mu.Unlock()
		id := fmt.Sprintf("CVE-2026-%04d", i)
		ids[pushDatabase(t, dbRef, start, advisory(id))] = id
	}
	publish(0)
	b := openScanner(t, dbRef, func(c *scanner.Config) { c.RefreshEvery = time.Nanosecond })
	seen := map[string]int{}
	var group sync.WaitGroup
	done := make(chan struct{})
	for range 4 {
		group.Go(func() {
			for {
				report, err := b.Scan(t.Context(), named(reg.host+"/app", p), []pipeline.PlatformImage{p})
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				want := ids[report.Database.Digest]
				if f := report.Platforms[0].Findings; len(f) != 1 || f[0].ID != want {
					t.Errorf("database %s: findings %+v, want %s", report.Database.Digest, f, want)
				}
				seen[want]++
				mu.Unlock()
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	for i := 1; i < versions; i++ {
		publish(i)
		id := fmt.Sprintf("CVE-2026-%04d", i)
		deadline := time.Now().Add(time.Minute)
		for {
			mu.Lock()
			n := seen[id]
			mu.Unlock()
			if n > 0 || t.Failed() {
				break
			}
			if time.Now().After(deadline) {
				t.Errorf("no scan took up the database of %s", id)
				break
			}
			b.clock.add(time.Second) // the registry is to be asked again
			time.Sleep(time.Millisecond)
		}
	}
	close(done)
	group.Wait()
}

func TestDatabaseUnreachable(t *testing.T) {
	// A port that nobody listens on.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	_ = l.Close()

	b := openScanner(t, address+"/mirror/vulndb:2")
	_, err = b.Database(t.Context())
	wantError(t, err, false, address+"/mirror/vulndb:2", address, "connection refused")
}

func TestDatabaseOnDiskServesWithoutRegistry(t *testing.T) {
	reg := newRegistry(t)
	dbRef := reg.host + "/vulndb:2"
	digest := pushDatabase(t, dbRef, start)
	b := openScanner(t, dbRef)
	if _, err := b.Database(t.Context()); err != nil {
		t.Fatal(err)
	}

	// In the same process.
	reg.set(true, nil)
	b.clock.add(2 * time.Hour)
	if d, err := b.Database(t.Context()); err != nil || d.Digest != digest {
		t.Fatalf("database %+v, %v", d, err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}

	// In the next one.
	same := func(c *scanner.Config) { c.CacheDir = b.cfg.CacheDir }
	next := openScanner(t, dbRef, same)
	if d, err := next.Database(t.Context()); err != nil || d.Digest != digest || d.Reference != dbRef {
		t.Fatalf("database %+v, %v", d, err)
	}
	if !strings.Contains(next.log.String(), "could not refresh") {
		t.Error("the log does not say that the registry was not to be reached")
	}
	if err := next.Close(); err != nil {
		t.Fatal(err)
	}

	// Not when it is too old by now, or another reference's, or damaged.
	late := openScanner(t, dbRef, same)
	late.clock.add(100 * time.Hour)
	_, err := late.Database(t.Context())
	wantError(t, err, false, dbRef, "403")
	if err := late.Close(); err != nil {
		t.Fatal(err)
	}
	other := openScanner(t, reg.host+"/other:2", same)
	_, err = other.Database(t.Context())
	wantError(t, err, false, reg.host+"/other:2", "403")
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(b.cfg.CacheDir, "db", digest.Hex(), "trivy.db")
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, content[:len(content)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	damaged := openScanner(t, dbRef, same)
	_, err = damaged.Database(t.Context())
	wantError(t, err, false, dbRef, "403")
	if !strings.Contains(damaged.log.String(), "not what was pulled") {
		t.Error("the log does not say that the file is damaged")
	}
	// And it is pulled anew when the registry is back.
	reg.set(false, nil)
	if _, err := damaged.Database(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestDatabaseSpoiltByTheRegistry(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(path string, body []byte) []byte
		want  string
	}{
		{"flipped", func(path string, body []byte) []byte {
			if strings.Contains(path, "/vulndb/blobs/") {
				body = bytes.Clone(body)
				body[len(body)/2] ^= 1
			}
			return body
		}, "layer sha256:"},
		{"truncated", func(path string, body []byte) []byte {
			if strings.Contains(path, "/vulndb/blobs/") {
				return body[:len(body)/2]
			}
			return body
		}, "layer sha256:"},
		{"longer", func(path string, body []byte) []byte {
			if strings.Contains(path, "/vulndb/blobs/") {
				return append(bytes.Clone(body), "more"...)
			}
			return body
		}, "layer sha256:"},
		{"not a manifest", func(path string, body []byte) []byte {
			if strings.Contains(path, "/vulndb/manifests/") {
				return []byte("<html>welcome</html>")
			}
			return body
		}, "find the vulnerability database"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			reg := newRegistry(t)
			dbRef := reg.host + "/vulndb:2"
			pushDatabase(t, dbRef, start)
			reg.set(false, tt.spoil)
			b := openScanner(t, dbRef)
			_, err := b.Database(t.Context())
			wantError(t, err, false, dbRef, tt.want)
			left, _ := filepath.Glob(filepath.Join(b.cfg.CacheDir, "db", "*"))
			if len(left) != 0 {
				t.Errorf("what was spoilt is still there: %v", left)
			}
			reg.set(false, nil)
			if _, err := b.Database(t.Context()); err != nil {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}

func TestDatabaseIsNone(t *testing.T) {
	reg := newRegistry(t)
	p := push(t, reg.host+"/app", "linux/amd64", image(t, "amd64", "", files{"a": "b"}))
	_, err := openScanner(t, reg.host+"/app@"+string(p.Digest)).Database(t.Context())
	wantError(t, err, false, "is no vulnerability database", "want one layer of media type")
}

func TestDatabaseOfAnotherSchema(t *testing.T) {
	reg := newRegistry(t)
	dir, err := vulndb.Build(t.Context(), []vulndb.Advisory{advisory("CVE-2026-1")}, start)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := os.WriteFile(filepath.Join(dir, "metadata.json"), []byte(`{"Version":9,"UpdatedAt":"2026-03-10T12:00:00Z"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := vulndb.Push(t.Context(), dir, reference(t, reg.host+"/vulndb:9"), remote.WithJobs(1)); err != nil {
		t.Fatal(err)
	}
	_, err = openScanner(t, reg.host+"/vulndb:9").Database(t.Context())
	wantError(t, err, true, "layout version 9", "reads version 2")
}

func TestNewRefuses(t *testing.T) {
	good := openScanner(t, "registry.example/vulndb:2")
	if _, err := scanner.New(t.Context(), good.cfg); err == nil || !strings.Contains(err.Error(), "another Scanner is open") {
		t.Errorf("a second one in the process: %v", err)
	}
	if err := good.Close(); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		change func(*scanner.Config)
		want   string
	}{
		{"no max age", func(c *scanner.Config) { c.MaxAge = 0 }, "MaxAge is required"},
		{"negative max age", func(c *scanner.Config) { c.MaxAge = -1 }, "MaxAge -1ns"},
		{"no cache directory", func(c *scanner.Config) { c.CacheDir = "" }, "CacheDir is required"},
		{"relative cache directory", func(c *scanner.Config) { c.CacheDir = "cache" }, "want an absolute path"},
		{"database", func(c *scanner.Config) { c.Database = "not a reference" }, `Database "not a reference"`},
		{"log", func(c *scanner.Config) { c.Log = nil }, "Log is required"},
		{"parallel", func(c *scanner.Config) { c.Parallel = -1 }, "Parallel -1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := good.cfg
			tt.change(&c)
			s, err := scanner.New(t.Context(), c)
			if err == nil {
				_ = s.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	// After all these the process may open one.
	s, err := scanner.New(t.Context(), good.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Database(t.Context()); err == nil || !strings.Contains(err.Error(), "closed") {
		t.Errorf("a closed scanner says %v", err)
	}
}
