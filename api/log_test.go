package api_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/dray-project/dray/api"
	"github.com/dray-project/dray/api/apitest"
	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/ledger"
	"github.com/dray-project/dray/pipeline/ledger/ledgertest"
)

// logServer serves a log of many entries.
func logServer(t *testing.T, entries int) (*server, *ledgertest.Served) {
	t.Helper()
	served, err := ledgertest.Serve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range entries {
		if err := served.Add(t.Context(), pipeline.Entry{Kind: pipeline.EntryRunEnded, At: apitest.Clock, Project: "hello-go", Subject: fmt.Sprintf("run_%d", i)}); err != nil {
			t.Fatal(err)
		}
	}
	return newServer(t, func(c *api.Config) { c.Ledger = served }), served
}

// TestTileClient follows the log as any C2SP client does: with what golang.org/x/mod
// has for notes and tiles, and nothing of Dray's.
func TestTileClient(t *testing.T) {
	const size = 600
	s, _ := logServer(t, size)
	get := func(path string) []byte {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+"/api/v1/log/"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer dray_auditor")
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err != nil || res.StatusCode != 200 {
			t.Fatalf("%s: %s %s %v", path, res.Status, body, err)
		}
		if tile := strings.HasPrefix(path, "tile/"); tile != strings.Contains(res.Header.Get("Cache-Control"), "immutable") {
			t.Errorf("%s: Cache-Control is %q", path, res.Header.Get("Cache-Control"))
		}
		return body
	}
	v, err := note.NewVerifier(strings.TrimSpace(string(get("key"))))
	if err != nil {
		t.Fatal(err)
	}
	n, err := note.Open(get("checkpoint"), note.VerifierList(v))
	if err != nil {
		t.Fatal(err)
	}
	var root string
	var count int64
	if _, err := fmt.Sscanf(n.Text, v.Name()+"\n%d\n%s\n", &count, &root); err != nil || count != size {
		t.Fatalf("%q: %v", n.Text, err)
	}
	raw, err := base64.StdEncoding.DecodeString(root)
	if err != nil {
		t.Fatal(err)
	}
	hashes := tlog.TileHashReader(tlog.Tree{N: size, Hash: tlog.Hash(raw)}, &tiles{get: get})
	for bundle, width := range map[string]int{"000": 256, "001": 256, "002.p/88": 88} {
		data := get("tile/entries/" + bundle)
		for i := range width {
			n := int(data[0])<<8 | int(data[1])
			leaf := data[2 : 2+n]
			data = data[2+n:]
			index := int64(bundle[2]-'0')*256 + int64(i)
			want, err := hashes.ReadHashes([]int64{tlog.StoredHashIndex(0, index)})
			if err != nil || tlog.RecordHash(leaf) != want[0] || !strings.Contains(string(leaf), fmt.Sprintf(`"run_%d"`, index)) {
				t.Fatalf("entry %d is %s, %v", index, leaf, err)
			}
		}
		if len(data) > 0 {
			t.Errorf("%s has more than %d entries", bundle, width)
		}
	}
}

type tiles struct{ get func(string) []byte }

func (*tiles) Height() int                     { return 8 }
func (*tiles) SaveTiles([]tlog.Tile, [][]byte) {}
func (r *tiles) ReadTiles(list []tlog.Tile) (out [][]byte, _ error) {
	for _, t := range list {
		out = append(out, r.get(strings.Replace(t.Path(), "tile/8/", "tile/", 1)))
	}
	return out, nil
}

func TestLogProofs(t *testing.T) {
	s, served := logServer(t, 20)
	var p pipeline.Inclusion
	s.ok(s.get("/api/v1/log/proof?index=7"), 200, &p)
	if err := ledger.VerifyInclusion(p.Leaf, 7, p.Proof, []byte(p.Checkpoint), served.PublicKey()); err != nil {
		t.Error(err)
	}
	s.ok(s.get("/api/v1/log/proof?index=7&size=13"), 200, &p)
	if err := ledger.VerifyInclusion(p.Leaf, 7, p.Proof, []byte(p.Checkpoint), served.PublicKey()); err != nil || p.Size != 13 {
		t.Error(p.Size, err)
	}
	var c api.Consistency
	s.ok(s.get("/api/v1/log/consistency?from=13"), 200, &c)
	newest, err := served.Checkpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := ledger.VerifyConsistency([]byte(p.Checkpoint), newest, c.Proof, served.PublicKey()); err != nil || c.To != 20 {
		t.Error(c.To, err)
	}
	s.ok(s.get("/api/v1/log/consistency?from=20"), 200, &c)
	for path, want := range map[string]string{
		"proof?index=20": "404 not-found", "proof?index=7&size=21": "422 invalid", "proof?index=7&size=5": "404 not-found", "proof": "422 invalid", "proof?index=-1": "422 invalid",
		"consistency?from=21": "422 invalid", "consistency?from=0": "422 invalid", "consistency?from=5&to=4": "422 invalid", "consistency?from=5&to=21": "422 invalid",
		"tile/0/000": "404 not-found", "tile/0/000.p/21": "404 not-found", "tile/nonsense": "422 invalid", "tile/data/000.p/1": "422 invalid", "tile/0/../0/000.p/1": "422 invalid",
		"rows?from=21": "422 invalid", "entries?cursor=x": "422 invalid", "entries?image=x": "422 invalid", "entries?nonsense=1": "422 invalid",
	} {
		code, name, _ := strings.Cut(want, " ")
		if path == "tile/0/../0/000.p/1" {
			continue // the client and the mux tidy such a path before anybody reads it
		}
		s.want(s.get("/api/v1/log/"+path), map[string]int{"404": 404, "422": 422}[code], name)
	}
}

func TestLogEntriesAndRows(t *testing.T) {
	s, served := logServer(t, 7)
	var seen []string
	for _, start := range []string{"?limit=3", "?limit=3&from=2"} {
		for path := "/api/v1/log/entries" + start; path != ""; {
			var page api.List[api.EntryView]
			got := s.get(path)
			s.ok(got, 200, &page)
			for _, e := range page.Items {
				seen = append(seen, fmt.Sprint(e.Index))
				if parsed, err := pipeline.ParseEntry(e.Leaf); err != nil || parsed.Subject != e.Entry.Subject || e.Entry.Subject != fmt.Sprintf("run_%d", e.Index) {
					t.Errorf("%+v, %v", e, err)
				}
			}
			path, _ = strings.CutSuffix(strings.TrimPrefix(got.Header.Get("Link"), "<"), `>; rel="next"`)
		}
	}
	if got := strings.Join(seen, " "); got != "6 5 4 3 2 1 0 2 3 4 5 6" {
		t.Errorf("the pages have %s", got)
	}

	served.SetRows(pipeline.RowCheck{Table: "promotions", Key: "prm_1", Entry: 5, Problem: "changed"}, pipeline.RowCheck{Table: "tags", Key: "a:1", Entry: -1, Problem: "no entry names it"})
	var rows api.RowChecks
	s.ok(s.get("/api/v1/log/rows?limit=4"), 200, &rows)
	if len(rows.Rows) != 1 || rows.Rows[0].Key != "a:1" || rows.To != 4 || rows.Size != 7 {
		t.Errorf("%+v", rows)
	}
	s.ok(s.get("/api/v1/log/rows?limit=4&from=4"), 200, &rows)
	if len(rows.Rows) != 1 || rows.Rows[0].Key != "prm_1" || rows.To != 7 {
		t.Errorf("%+v", rows)
	}
	served.Remove(3)
	s.want(s.send("GET", "/api/v1/log/tile/entries/000.p/7", "", "Authorization: Bearer dray_auditor"), 422, "unverified")
}

// TestLogScope: who reads which entries.
func TestLogScope(t *testing.T) {
	s := newServer(t, wired)
	for grants, want := range map[string]string{
		"auditor": "3 2 1 0", "admin": "3 2 1 0", "viewer": "3 2 1", "developer": "3 2 1", "viewer@web": "2", "auditor@hello-go": "3 1", "security": "", "admin@web": "2",
		"viewer@web,viewer@hello-go": "3 2 1",
	} {
		token := pipeline.Token{Name: "someone"}
		for g := range strings.SplitSeq(grants, ",") {
			grant, err := pipeline.ParseGrant(g)
			if err != nil {
				t.Fatal(err)
			}
			token.Grants = append(token.Grants, grant)
		}
		s.store.Tokens["dray_tried"] = token
		var page api.List[api.EntryView]
		s.ok(s.send("GET", "/api/v1/log/entries", "", "Authorization: Bearer dray_tried"), 200, &page)
		var seen []string
		for _, e := range page.Items {
			seen = append(seen, fmt.Sprint(e.Index))
		}
		if got := strings.Join(seen, " "); got != want {
			t.Errorf("%s sees %q, want %q", grants, got, want)
		}
		for index := range 4 {
			got := s.send("GET", fmt.Sprintf("/api/v1/log/proof?index=%d", index), "", "Authorization: Bearer dray_tried")
			if sees := strings.Contains(want, fmt.Sprint(index)); sees != (got.StatusCode == 200) || !sees && got.StatusCode != 404 {
				t.Errorf("%s asks for the proof of %d: %d", grants, index, got.StatusCode)
			}
		}
	}
}

// TestWithoutLog: a server without a log says so.
func TestWithoutLog(t *testing.T) {
	s := newServer(t)
	for _, path := range []string{"checkpoint", "key", "tile/0/000", "entries", "proof?index=0", "consistency?from=1", "rows"} {
		s.want(s.get("/api/v1/log/"+path), 501, "disabled")
	}
	empty, err := ledgertest.Serve(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	s = newServer(t, func(c *api.Config) { c.Ledger = empty })
	s.ok(s.get("/api/v1/log/checkpoint"), 200, nil)
	s.ok(s.get("/api/v1/log/entries"), 200, nil)
	s.want(s.get("/api/v1/log/tile/0/000.p/1"), 404, "not-found")
}
