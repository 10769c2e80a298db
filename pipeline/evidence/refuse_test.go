package evidence_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/evidence"
	"github.com/dray-project/dray/pipeline/registry/registrytest"
	"github.com/dray-project/dray/signer"
	"github.com/dray-project/dray/signer/verify"
)

// evil is somebody's own key.
var evil = sync.OnceValue(func() *signer.Signer {
	private, _, err := signer.GenerateKey(nil)
	if err != nil {
		panic(err)
	}
	s, err := signer.New(context.Background(), signer.Config{Key: private, Locker: &registrytest.Locker{}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		panic(err)
	}
	return s
})

// unpack reads a bundle as any tar program would.
func unpack(t testing.TB, raw []byte) (evidence.Manifest, map[string][]byte) {
	t.Helper()
	var m evidence.Manifest
	files := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(raw)); ; {
		h, err := r.Next()
		if err == io.EOF {
			return m, files
		}
		check(t, err)
		body, err := io.ReadAll(r)
		check(t, err)
		if h.Name == evidence.ManifestName {
			check(t, json.Unmarshal(body, &m))
		}
		files[h.Name] = body
	}
}

func sum(b []byte) pipeline.Digest {
	s := sha256.Sum256(b)
	return pipeline.Digest("sha256:" + hex.EncodeToString(s[:]))
}

var roles = []struct {
	prefix string
	role   evidence.Role
}{
	{"blobs/", evidence.RoleBlob}, {"decisions/", evidence.RoleDecision}, {"promotions/", evidence.RolePromotion}, {"exceptions/", evidence.RoleException},
	{"policies/", evidence.RolePolicy}, {"sboms/", evidence.RoleSBOM}, {"keys/", evidence.RoleKey}, {"vex/", evidence.RoleVEX},
	{"image.json", evidence.RoleImage}, {"scan.json", evidence.RoleScan}, {"registry.json", evidence.RoleRegistry}, {"log/checkpoint", evidence.RoleCheckpoint},
}

func roleOf(name string) evidence.Role {
	for _, r := range roles {
		if strings.HasPrefix(name, r.prefix) {
			return r.role
		}
	}
	if strings.HasSuffix(name, ".tlog-proof") {
		return evidence.RoleProof
	}
	return evidence.RoleEntry
}

// pack makes a bundle that is consistent in itself, sealed by whoever seals.
func pack(t testing.TB, m evidence.Manifest, files map[string][]byte, seal *signer.Signer) []byte {
	t.Helper()
	m.Files = nil
	for name, body := range files {
		if name != evidence.ManifestName && name != evidence.InventoryName {
			m.Files = append(m.Files, evidence.File{Name: name, Role: roleOf(name), Size: int64(len(body)), SHA256: sum(body)})
		}
	}
	slices.SortFunc(m.Files, func(a, b evidence.File) int { return strings.Compare(a.Name, b.Name) })
	manifest, err := json.MarshalIndent(m, "", "  ")
	check(t, err)
	manifest = append(manifest, '\n')
	inventory := files[evidence.InventoryName]
	if seal != nil {
		predicate, err := json.Marshal(map[string]any{"project": m.Project, "collectedAt": m.CollectedAt,
			"manifest": map[string]string{"sha256": sum(manifest).Hex()}, "files": len(m.Files)})
		check(t, err)
		sealed, err := seal.Seal(t.Context(), m.Image, pipeline.Statement{PredicateType: evidence.PredicateInventory, Predicate: predicate})
		check(t, err)
		inventory = sealed.Envelope
	}
	list := []entry{{name: evidence.ManifestName, body: manifest}, {name: evidence.InventoryName, body: inventory}}
	for _, f := range m.Files {
		list = append(list, entry{name: f.Name, body: files[f.Name]})
	}
	return archive(t, list)
}

type entry struct {
	name, link string
	kind       byte
	body       []byte
	pax        map[string]string
}

func archive(t testing.TB, list []entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range list {
		h := &tar.Header{Name: e.name, Linkname: e.link, Typeflag: tar.TypeReg, Size: int64(len(e.body)), Mode: 0o644, ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}
		if e.kind != 0 {
			h.Typeflag, h.Size = e.kind, 0
		}
		if e.pax != nil {
			h.Format, h.PAXRecords = tar.FormatPAX, e.pax
		}
		check(t, w.WriteHeader(h))
		if h.Size > 0 {
			_, err := w.Write(e.body)
			check(t, err)
		}
	}
	check(t, w.Close())
	return b.Bytes()
}

// sample is one history for all tests that only read its bundle.
func sample(t testing.TB) (*site, pipeline.Digest, []byte) {
	s, image := history(t, registrytest.Olareg(t))
	return s, image, s.bundle(image)
}

// refused: it does not open, or does not pass.
func refused(raw []byte, trust evidence.Trust) (string, bool) {
	result, err := verifyBundle(raw, trust)
	if err != nil {
		return err.Error(), errors.Is(err, pipeline.ErrUnverified)
	}
	if result.Passed {
		return "", false
	}
	f := result.Failed()[0]
	return f.Claim + " " + f.About + ": " + f.Detail, true
}

func TestRefuseTamperedBundle(t *testing.T) {
	s, _, raw := sample(t)
	trust := s.trust()
	if why, bad := refused(raw, trust); bad {
		t.Fatal(why)
	}
	m, files := unpack(t, raw)
	if again := pack(t, m, files, nil); !bytes.Equal(again, raw) {
		t.Fatal("the bundle is not in the form that a plain tar writer gives it")
	}
	t.Run("one byte of every file", func(t *testing.T) {
		for name, body := range files {
			at := bytes.Index(raw, append([]byte(name), 0)) + 512 + len(body)/2
			bad := bytes.Clone(raw)
			bad[at] ^= 1
			why, ok := refused(bad, trust)
			if !ok || (name != evidence.ManifestName && !strings.Contains(why, name)) {
				t.Errorf("%s: %q", name, why)
			}
		}
	})
	t.Run("one byte anywhere", func(t *testing.T) {
		for at := 0; at < len(raw); at += 499 {
			bad := bytes.Clone(raw)
			bad[at] ^= 0x20
			if why, ok := refused(bad, trust); !ok {
				t.Errorf("byte %d: %q", at, why)
			}
		}
		for at := 0; at < 3*512; at += 5 { // all of the headers that are read first
			bad := bytes.Clone(raw)
			bad[at] ^= 0x04
			if why, ok := refused(bad, trust); !ok {
				t.Errorf("byte %d: %q", at, why)
			}
		}
	})
	t.Run("cut", func(t *testing.T) {
		for n := 0; n < len(raw); n += 1021 {
			if why, ok := refused(raw[:n], trust); !ok {
				t.Errorf("cut at %d: %q", n, why)
			}
		}
		for n := 1; n <= 2048; n += 31 {
			if why, ok := refused(raw[:len(raw)-n], trust); !ok {
				t.Errorf("%d bytes cut off: %q", n, why)
			}
		}
	})
	t.Run("more", func(t *testing.T) {
		for _, more := range [][]byte{{0}, make([]byte, 512), make([]byte, 10240), raw} {
			if why, ok := refused(append(bytes.Clone(raw), more...), trust); !ok {
				t.Errorf("%d bytes more: %q", len(more), why)
			}
		}
	})
}

func TestRefuseForgedBundle(t *testing.T) {
	s, image, raw := sample(t)
	m, files := unpack(t, raw)
	other := s.push("refs/tags/v2.0.0", "two")
	otherRaw := s.bundle(other)
	otherM, otherFiles := unpack(t, otherRaw)
	name := func(prefix, containing string) string {
		for _, n := range slices.Sorted(maps(files)) {
			if strings.HasPrefix(n, prefix) && bytes.Contains(files[n], []byte(containing)) {
				return n
			}
		}
		t.Fatalf("no file %s* with %s", prefix, containing)
		return ""
	}
	clone := func(edit func(f map[string][]byte)) map[string][]byte {
		f := map[string][]byte{}
		for k, v := range files {
			f[k] = bytes.Clone(v)
		}
		edit(f)
		return f
	}
	replace := func(name, old, now string) func(map[string][]byte) {
		return func(f map[string][]byte) {
			if !bytes.Contains(f[name], []byte(old)) {
				t.Errorf("%s has no %s", name, old)
			}
			f[name] = bytes.ReplaceAll(f[name], []byte(old), []byte(now))
		}
	}
	failed := name("decisions/prm_", `"passed": false,`)
	prod := name("promotions/", `"environment": "prod"`)
	prodDecision := "decisions/" + strings.TrimPrefix(prod, "promotions/")
	exception := name("exceptions/", "")
	decided := name("log/", `"kind":"promotion.decided"`)
	approved := name("log/", `"kind":"promotion.approved"`)
	evilLog, evilLogKey, err := note.GenerateKey(nil, "dray.example/log")
	check(t, err)
	evilNote, err := note.NewSigner(evilLog)
	check(t, err)

	// Each forgery is refused whoever seals it: also somebody with the signing key
	// who cannot rewrite the log. Without that key the inventory gives it away.
	for what, forgery := range map[string]struct {
		edit func(f map[string][]byte)
		want string
	}{
		"a manifest of the image is missing": {func(f map[string][]byte) { delete(f, "blobs/sha256/"+image.Hex()) }, "manifests"},
		"a decision that failed is taken out": {func(f map[string][]byte) {
			delete(f, failed)
			delete(f, "promotions/"+strings.TrimPrefix(failed, "decisions/"))
		}, "log"},
		"only the failed decision's document":   {func(f map[string][]byte) { delete(f, failed) }, "log"},
		"a failed decision is called a success": {replace(failed, `"passed": false,`, `"passed": true,`), "decision"},
		"an exception is taken out":             {func(f map[string][]byte) { delete(f, exception) }, "exception"},
		"an exception lasts longer":             {replace(exception, `"expiresAt": "20`, `"expiresAt": "21`), "log"},
		"an exception by somebody else":         {replace(exception, `"sam"`, `"ada"`), "exception"},
		"the rules of a decision":               {replace(prodDecision, `"count": 1`, `"count": 0`), "decision"},
		"the rules of its policy too": {func(f map[string][]byte) {
			replace(prodDecision, `"count": 1`, `"count": 2`)(f)
			replace("policies/1.json", `"count": 1`, `"count": 2`)(f)
		}, "decision"},
		"a policy is missing":            {func(f map[string][]byte) { delete(f, "policies/1.json") }, "decision"},
		"an approval by somebody else":   {replace(prod, `"by": "mona"`, `"by": "rita"`), "approvals"},
		"an approval by a third":         {replace(prod, `"by": "mona"`, `"by": "paul"`), "log"},
		"an approval of another plan":    {replace(prod, `"plan": "sha256:`, `"plan": "sha256:0`), "approvals"},
		"an approval is taken out":       {replace(prod, `"approvals": [`, `"approvals": [], "x": [`), "document"},
		"it went somewhere else":         {replace(prod, "/prod/app", "/evil/app"), "promotion"},
		"a promotion is made up":         {replace(name("promotions/", `"refused"`), `"state": "refused"`, `"state": "succeeded"`), "promotion"},
		"another commit":                 {replace("image.json", `"commit": "`, `"commit": "0`), "provenance"},
		"another scan":                   {replace("scan.json", `trivy-db:2`, `trivy-db:3`), "scan"},
		"findings are added to the scan": {replace("scan.json", `"findings": null`, `"findings": [{"id":"CVE-1","severity":"low","package":"a","version":"1"}]`), "log"},
		"another SBOM":                   {replace(name("sboms/", ""), "CycloneDX", "CycloneXX"), "sbom"},
		"the log's entry is edited":      {replace(decided, `"passed":true`, `"passed":false`), "log"},
		"an approval's entry is edited":  {replace(approved, `"mona"`, `"paul"`), "log"},
		"an entry and its proof are missing": {func(f map[string][]byte) {
			delete(f, approved)
			delete(f, strings.TrimSuffix(approved, "json")+"tlog-proof")
		}, "log"},
		"an entry without its proof": {func(f map[string][]byte) { delete(f, strings.TrimSuffix(approved, "json")+"tlog-proof") }, "log"},
		"a proof without its entry":  {func(f map[string][]byte) { delete(f, approved) }, "log"},
		"the proof of another entry": {func(f map[string][]byte) {
			f[strings.TrimSuffix(approved, "json")+"tlog-proof"] = f[strings.TrimSuffix(decided, "json")+"tlog-proof"]
		}, "log"},
		"an older checkpoint": {func(f map[string][]byte) { f["log/checkpoint"] = s.checkpoint(10) }, "log"},
		"an older checkpoint in all proofs": {func(f map[string][]byte) {
			older := s.checkpoint(10)
			for n, body := range f {
				if strings.HasSuffix(n, ".tlog-proof") {
					f[n] = bytes.Replace(body, f["log/checkpoint"], older, 1)
				}
			}
			f["log/checkpoint"] = older
		}, "log"},
		"no checkpoint": {func(f map[string][]byte) { delete(f, "log/checkpoint") }, "log"},
		"an entry is edited in a log of somebody's own": {func(f map[string][]byte) {
			replace(approved, `"mona"`, `"paul"`)(f)
			rebuild(t, f, func(text string) []byte {
				signed, err := note.Sign(&note.Note{Text: text}, evilNote)
				check(t, err)
				return signed
			})
			f["keys/log.pub"] = []byte(evilLogKey)
		}, "log"},
		"an entry is edited and the checkpoint is not signed": {func(f map[string][]byte) {
			replace(approved, `"mona"`, `"paul"`)(f)
			_, signature, _ := strings.Cut(string(f["log/checkpoint"]), "\n\n")
			rebuild(t, f, func(text string) []byte { return []byte(text + "\n" + signature) })
		}, "log"},
		"signatures of another image": {func(f map[string][]byte) {
			for n, body := range otherFiles {
				if strings.HasPrefix(n, "blobs/") {
					f[n] = body
				}
			}
			f["registry.json"] = otherFiles["registry.json"]
		}, "manifests"},
		"a decision about another image": {func(f map[string][]byte) {
			for n, body := range otherFiles {
				if strings.HasPrefix(n, "decisions/") {
					f[n] = body
				}
			}
		}, "decision"},
		"a document under another name": {func(f map[string][]byte) { f["decisions/prm_00000000000000000000.json"] = f[prodDecision] }, "document"},
		"a member that is not known":    {replace(prod, `"environment": "prod"`, `"environment": "prod", "sudo": true`), "document"},
		"a member that is there twice":  {replace(prod, `"environment": "prod"`, `"environment": "staging", "environment": "prod"`), "document"},
		"signatures are taken out": {func(f map[string][]byte) {
			for n, body := range f {
				if strings.HasPrefix(n, "blobs/") && bytes.Contains(body, []byte(`"subject"`)) {
					delete(f, n)
				}
			}
		}, "manifests"},
	} {
		t.Run(what, func(t *testing.T) {
			f := clone(forgery.edit)
			if why, ok := refused(pack(t, m, f, nil), s.trust()); !ok {
				t.Errorf("with the old inventory: %q", why)
			}
			if why, ok := refused(pack(t, m, f, evil()), s.trust()); !ok || !strings.Contains(why, "inventory") {
				t.Errorf("sealed by another key: %q", why)
			}
			result, err := verifyBundle(pack(t, m, f, s.signer), s.trust())
			check(t, err)
			if !slices.ContainsFunc(result.Failed(), func(c evidence.Claim) bool { return c.Claim == forgery.want }) {
				t.Errorf("sealed by the key itself: %+v, want a failed %s", result.Failed(), forgery.want)
			} else {
				t.Logf("%+v", result.Failed()[0])
			}
		})
	}

	t.Run("another image's bundle", func(t *testing.T) {
		trust := s.trust()
		trust.Image = image
		if why, ok := refused(otherRaw, trust); !ok || !strings.Contains(why, "asked for") {
			t.Errorf("%q", why)
		}
		// With the name of the image that was asked for.
		otherM.Image.Digest = image
		for _, seal := range []*signer.Signer{nil, evil(), s.signer} {
			if why, ok := refused(pack(t, otherM, otherFiles, seal), trust); !ok {
				t.Errorf("%q", why)
			}
		}
	})
	t.Run("all of it by another key", func(t *testing.T) {
		// Somebody's own Dray, with the same names: all is consistent.
		own, err := verify.ParsePublicKeys(files["keys/cosign.pub"])
		check(t, err)
		_, public, err := signer.GenerateKey(nil)
		check(t, err)
		stranger, err := verify.ParsePublicKeys(public)
		check(t, err)
		if why, ok := refused(raw, trusting(stranger, s.logKey)); !ok {
			t.Errorf("trusting another key: %q", why)
		}
		if why, ok := refused(raw, trusting(own, evilLogKey)); !ok || !strings.Contains(why, "log") {
			t.Errorf("trusting another log: %q", why)
		}
	})
	t.Run("what the verifier asks for", func(t *testing.T) {
		for what, edit := range map[string]func(*evidence.Trust){
			"builder":     func(x *evidence.Trust) { x.Builder = "https://other.example/builders" },
			"source":      func(x *evidence.Trust) { x.Source = "https://git.example/acme/other.git" },
			"policy":      func(x *evidence.Trust) { x.Policies = map[string]pipeline.Digest{"prod": sum(nil)} },
			"environment": func(x *evidence.Trust) { x.Environments = []string{"moon"} },
		} {
			trust := s.trust()
			edit(&trust)
			if why, ok := refused(raw, trust); !ok {
				t.Errorf("%s: %q", what, why)
			}
		}
		trust := s.trust()
		trust.Builder, trust.Source, trust.Environments, trust.Image = builderID, s.project.CloneURL, []string{"staging", "prod"}, image
		env, _ := s.project.Environment("prod")
		trust.Policies = map[string]pipeline.Digest{"": s.project.BuildGate().Digest(), "prod": env.EntryGate(pipeline.ActionPromote).Digest()}
		if why, bad := refused(raw, trust); bad {
			t.Error(why)
		}
	})
}

func maps(m map[string][]byte) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// checkpoint returns one that was signed before.
func (s *site) checkpoint(atMost int64) []byte {
	s.t.Helper()
	for n := atMost; n > 0; n-- {
		if raw, err := s.store.LogCheckpoint(s.t.Context(), n); err == nil {
			return raw
		}
	}
	s.t.Fatal("no older checkpoint")
	return nil
}

// rebuild makes a log of the entries in a bundle, as somebody would who changed
// one of them, with proofs that fit its tree.
func rebuild(t testing.TB, f map[string][]byte, sign func(text string) []byte) {
	t.Helper()
	leaves := map[int64][]byte{}
	var size int64
	for n, body := range f {
		var index int64
		if _, err := fmt.Sscanf(n, "log/%d.json", &index); err == nil && strings.HasSuffix(n, ".json") {
			leaves[index] = body
			size = max(size, index+1)
		}
	}
	hashes := map[int64]tlog.Hash{}
	reader := tlog.HashReaderFunc(func(indexes []int64) (out []tlog.Hash, err error) {
		for _, i := range indexes {
			out = append(out, hashes[i])
		}
		return out, nil
	})
	var stored int64
	for i := range size {
		more, err := tlog.StoredHashes(i, leaves[i], reader)
		check(t, err)
		for _, h := range more {
			hashes[stored] = h
			stored++
		}
	}
	root, err := tlog.TreeHash(size, reader)
	check(t, err)
	checkpoint := sign(fmt.Sprintf("dray.example/log\n%d\n%s\n", size, root))
	f["log/checkpoint"] = checkpoint
	for i := range leaves {
		proof, err := tlog.ProveRecord(size, i, reader)
		check(t, err)
		text := fmt.Sprintf("c2sp.org/tlog-proof@v1\nindex %d\n", i)
		for _, h := range proof {
			text += h.String() + "\n"
		}
		f[fmt.Sprintf("log/%d.tlog-proof", i)] = []byte(text + "\n" + string(checkpoint))
	}
}
