package pipelinetest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"sort"
	"sync"
	"testing"
	"time"

	"github.com/dray-project/dray/pipeline"
)

// KeyID of the world's only key.
const KeyID = "7f1e0000000000000000000000000000000000000000000000000000000000aa"

// World is everything outside the database: registries, a builder, a scanner
// and a signer, in memory. It fails the test at the very moment at which a
// promise is broken: a tag on an image that is unsigned or unrecorded, a
// signature on a manifest that is not there, a tag that never moves and moved.
type World struct {
	t      testing.TB
	Store  *Memory
	Faults *Faults
	// Findings that the scanner reports, by commit.
	Findings map[string][]pipeline.Finding
	// User that images run as.
	User string
	// Hygiene of every image.
	Hygiene pipeline.Hygiene
	// Untouched are commits of images that no new vulnerability database concerns.
	Untouched []string

	mu           sync.Mutex
	manifests    map[pipeline.Image]bool
	tags         map[string]map[string]pipeline.Digest
	signatures   map[pipeline.Image][]pipeline.Signature
	attestations map[pipeline.Image][]attested
	builds       int
	// database that is in force; empty is the first one.
	database string
	// analysed are the commits of images of which the scanner keeps an analysis.
	analysed map[string]bool
	// trusted is what the next copy believes to be complete already.
	trusted pipeline.Image
}

type attested struct {
	pipeline.Attestation
	payload json.RawMessage
}

// NewWorld makes an empty world around an empty store.
func NewWorld(t testing.TB) *World {
	f := &Faults{}
	return &World{
		t: t, Store: NewMemory(f), Faults: f, Findings: map[string][]pipeline.Finding{}, User: "65532",
		manifests: map[pipeline.Image]bool{}, tags: map[string]map[string]pipeline.Digest{},
		signatures:   map[pipeline.Image][]pipeline.Signature{},
		attestations: map[pipeline.Image][]attested{}, analysed: map[string]bool{},
	}
}

// DigestOf is the digest of the parts, for images that need no bytes.
func DigestOf(parts ...any) pipeline.Digest {
	sum := sha256.Sum256([]byte(fmt.Sprint(parts...)))
	return pipeline.Digest("sha256:" + hex.EncodeToString(sum[:]))
}

// Builds is how many builds there were.
func (w *World) Builds() int { w.mu.Lock(); defer w.mu.Unlock(); return w.builds }

// TagsOf returns what the tags of a repository name.
func (w *World) TagsOf(repository string) map[string]pipeline.Digest {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := map[string]pipeline.Digest{}
	for k, v := range w.tags[repository] {
		out[k] = v
	}
	return out
}

// Unsign takes the signatures off an image, as somebody with access to the
// registry could.
func (w *World) Unsign(img pipeline.Image) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.signatures, img)
}

// Forget removes a manifest.
func (w *World) Forget(img pipeline.Image) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.manifests, img)
}

// Builder returns the world's builder.
func (w *World) Builder() pipeline.Builder { return worldBuilder{w} }

// Scanner returns the world's scanner.
func (w *World) Scanner() pipeline.Scanner { return worldScanner{w} }

// Signer returns the world's signer.
func (w *World) Signer() pipeline.Signer { return worldSigner{w} }

// Registry returns the world's registries.
func (w *World) Registry() pipeline.Registry { return worldRegistry{w} }

type worldBuilder struct{ *World }

func (w worldBuilder) Resolve(_ context.Context, p pipeline.Project, e pipeline.Event, out pipeline.Progress) (s pipeline.Source, err error) {
	err = w.Faults.do("builder.Resolve", func() error {
		s = pipeline.Source{
			CloneURL: p.CloneURL, Ref: e.Ref, Commit: e.After, CommitTime: time.Unix(1_700_000_000, 0).UTC(),
			Plan: pipeline.Plan{Context: ".", Dockerfile: "Dockerfile", Platforms: p.Platforms},
		}
		out.Line(pipeline.Line{Text: "resolved " + e.After})
		return nil
	})
	return s, err
}

func (w worldBuilder) Build(_ context.Context, p pipeline.Project, s pipeline.Source, out pipeline.Progress) (r pipeline.BuildResult, err error) {
	err = w.Faults.do("builder.Build", func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.builds++
		for _, pl := range s.Plan.Platforms {
			d := DigestOf("manifest", s.Commit, pl)
			w.manifests[pipeline.Image{Repository: p.Repository, Digest: d}] = true
			w.analysed[s.Commit] = true
			r.Platforms = append(r.Platforms, pipeline.PlatformImage{Platform: pl, Digest: d, Size: 500, MediaType: "application/vnd.oci.image.manifest.v1+json"})
			out.Step(pipeline.Step{ID: string(pl), Platform: pl, Name: "build"})
		}
		r.Builder = "memory"
		return nil
	})
	return r, err
}

type worldScanner struct{ *World }

func (w worldScanner) Scan(_ context.Context, img pipeline.Image, platforms []pipeline.PlatformImage) (r pipeline.Report, err error) {
	err = w.Faults.do("scanner.Scan", func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		r = pipeline.Report{ScannedAt: time.Unix(1_700_000_100, 0).UTC(), Scanner: "memory",
			Database: w.db()}
		for _, p := range platforms {
			at := pipeline.Image{Repository: img.Repository, Digest: p.Digest}
			if !w.manifests[at] {
				return fmt.Errorf("scan %s: %w", at, pipeline.ErrNotFound)
			}
			hygiene := w.Hygiene
			pr := pipeline.PlatformReport{Platform: p.Platform, Digest: p.Digest, User: w.User,
				Packages: []pipeline.Package{{Name: "example.com/lib", Version: "v1.0.0", Type: "gobinary", PURL: "pkg:golang/example.com/lib@v1.0.0"}},
				Hygiene:  &hygiene, Analysis: w.analysisOf(p.Digest, p.Platform), SBOM: json.RawMessage(fmt.Sprintf(`{"bomFormat":"CycloneDX","serialNumber":%q}`, p.Digest))}
			for commit, findings := range w.Findings {
				if p.Digest == DigestOf("manifest", commit, p.Platform) {
					pr.Findings = findings
				}
			}
			r.Platforms = append(r.Platforms, pr)
		}
		return nil
	})
	return r, err
}

type worldSigner struct{ *World }

func (w worldSigner) Sign(_ context.Context, img pipeline.Image) (out []pipeline.Signature, err error) {
	err = w.Faults.do("signer.Sign", func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if !w.manifests[img] {
			w.t.Errorf("signed %s, which is not in the registry", img)
		}
		if len(w.signatures[img]) == 0 {
			w.signatures[img] = []pipeline.Signature{{Image: img, KeyID: KeyID, Layout: "bundle", Manifest: DigestOf("sig", img.Digest)}}
		}
		out = w.signatures[img]
		return nil
	})
	return out, err
}

func (w worldSigner) Attest(_ context.Context, img pipeline.Image, s pipeline.Statement) (out []pipeline.Attestation, err error) {
	err = w.Faults.do("signer.Attest", func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if !w.manifests[img] {
			w.t.Errorf("attested %s, which is not in the registry", img)
		}
		payload, err := statement(img, s)
		if err != nil {
			return err
		}
		a := pipeline.Attestation{Image: img, PredicateType: s.PredicateType, KeyID: KeyID, Layout: "bundle",
			Manifest: DigestOf("att", string(payload)), Statement: DigestOf(string(payload))}
		for _, have := range w.attestations[img] {
			if have.Statement == a.Statement {
				out = []pipeline.Attestation{have.Attestation}
				return nil
			}
		}
		w.attestations[img] = append(w.attestations[img], attested{a, payload})
		out = []pipeline.Attestation{a}
		return nil
	})
	return out, err
}

func statement(img pipeline.Image, s pipeline.Statement) (json.RawMessage, error) {
	return json.Marshal(map[string]any{
		"_type": "https://in-toto.io/Statement/v1", "predicateType": s.PredicateType, "predicate": s.Predicate,
		"subject": []any{map[string]any{"digest": map[string]string{"sha256": img.Digest.Hex()}}},
	})
}

func (w worldSigner) Seal(_ context.Context, img pipeline.Image, s pipeline.Statement) (out pipeline.Sealed, err error) {
	err = w.Faults.do("signer.Seal", func() error {
		payload, err := statement(img, s)
		if err != nil {
			return err
		}
		envelope, err := json.Marshal(map[string]any{"payloadType": "application/vnd.in-toto+json", "payload": []byte(payload)})
		out = pipeline.Sealed{Envelope: envelope, Statement: DigestOf(string(payload)), KeyID: KeyID}
		return err
	})
	return out, err
}

func (w worldSigner) Verify(_ context.Context, img pipeline.Image) (v pipeline.Verified, err error) {
	err = w.Faults.do("signer.Verify", func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.signatures[img]) == 0 {
			return fmt.Errorf("%s: no signature: %w", img, pipeline.ErrUnverified)
		}
		v = pipeline.Verified{Image: img, Signatures: w.signatures[img], Statements: map[pipeline.Digest]json.RawMessage{}}
		for _, a := range w.attestations[img] {
			v.Attestations = append(v.Attestations, a.Attestation)
			v.Statements[a.Statement] = a.payload
		}
		return nil
	})
	return v, err
}

type worldRegistry struct{ *World }

func (w worldRegistry) Assemble(_ context.Context, repository string, platforms []pipeline.PlatformImage, _ map[string]string) (img pipeline.Image, err error) {
	err = w.Faults.do("registry.Assemble", func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		var parts []any
		for _, p := range platforms {
			if !w.manifests[pipeline.Image{Repository: repository, Digest: p.Digest}] {
				w.t.Errorf("index of %s names %s, which is not in the registry", repository, p.Digest)
			}
			parts = append(parts, p.Digest)
		}
		img = pipeline.Image{Repository: repository, Digest: DigestOf(parts...)}
		w.manifests[img] = true
		return nil
	})
	return img, err
}

func (w worldRegistry) Exists(_ context.Context, img pipeline.Image) (ok bool, err error) {
	err = w.Faults.do("registry.Exists", func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		ok = w.manifests[img]
		return nil
	})
	return ok, err
}

func (w worldRegistry) Tags(_ context.Context, repository string) (tags []string, err error) {
	err = w.Faults.do("registry.Tags", func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		for t := range w.tags[repository] {
			tags = append(tags, t)
		}
		sort.Strings(tags)
		return nil
	})
	return tags, err
}

func (w worldRegistry) TagHolds(_ context.Context, repository, tag string) (d pipeline.Digest, ok bool, err error) {
	err = w.Faults.do("registry.TagHolds", func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		d, ok = w.tags[repository][tag]
		return nil
	})
	return d, ok, err
}

// Tag is where most promises can be broken, so it checks them.
func (w worldRegistry) Tag(_ context.Context, img pipeline.Image, tag string) error {
	return w.Faults.do("registry.Tag", func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.signatures[img]) == 0 {
			w.t.Errorf("tag %s put on %s, which is not signed", tag, img)
		}
		if !w.Store.recorded(img) {
			w.t.Errorf("tag %s put on %s, which is not recorded as passed", tag, img)
		}
		if !w.manifests[img] {
			w.t.Errorf("tag %s put on %s, which is not there", tag, img)
		}
		if w.tags[img.Repository] == nil {
			w.tags[img.Repository] = map[string]pipeline.Digest{}
		}
		w.tags[img.Repository][tag] = img.Digest
		return nil
	})
}

func (w worldRegistry) Copy(_ context.Context, img pipeline.Image, repository string) (c pipeline.Copied, err error) {
	err = w.Faults.do("registry.Copy", func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		c.Image = pipeline.Image{Repository: repository, Digest: img.Digest}
		for from := range w.manifests {
			if from.Repository != img.Repository {
				continue
			}
			to := pipeline.Image{Repository: repository, Digest: from.Digest}
			if to == w.trusted {
				w.trusted = pipeline.Image{}
				c.Contents = append(c.Contents, w.contents(from)...)
				continue
			}
			w.manifests[to] = true
			w.signatures[to], w.attestations[to] = nil, nil
			for _, s := range w.signatures[from] {
				s.Image = to
				w.signatures[to] = append(w.signatures[to], s)
			}
			for _, a := range w.attestations[from] {
				a.Image = to
				w.attestations[to] = append(w.attestations[to], a)
			}
			c.Manifests++
			c.Contents = append(c.Contents, w.contents(to)...)
		}
		return nil
	})
	return c, err
}

// contents lists a manifest that is there and what is attached to it.
func (w *World) contents(img pipeline.Image) []pipeline.Content {
	list := []pipeline.Content{{Digest: img.Digest, Size: 500, Manifest: true}}
	for _, s := range w.signatures[img] {
		list = append(list, pipeline.Content{Digest: s.Manifest, Size: 100, Manifest: true, Subject: img.Digest})
	}
	for _, a := range w.attestations[img] {
		list = append(list, pipeline.Content{Digest: a.Manifest, Size: 100, Manifest: true, Subject: img.Digest})
	}
	return list
}

func (w worldRegistry) Audit(_ context.Context, img pipeline.Image, contents []pipeline.Content) (a pipeline.Audit, err error) {
	err = w.Faults.do("registry.Audit", func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		a.Image = img
		there := map[pipeline.Digest]bool{}
		for at := range w.manifests {
			if at.Repository == img.Repository {
				for _, c := range w.contents(at) {
					there[c.Digest] = true
				}
			}
		}
		for _, c := range contents {
			if !there[c.Digest] {
				a.Missing = append(a.Missing, c)
			}
		}
		return nil
	})
	return a, err
}

// TrustOnce makes the next copy take it for granted that the image is there
// with all that belongs to it.
func (w *World) TrustOnce(img pipeline.Image) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.trusted = img
}

// MoveTag does what somebody with access to the registry could do: it points a
// tag elsewhere, or removes it where d is empty.
func (w *World) MoveTag(repository, tag string, d pipeline.Digest) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if d == "" {
		delete(w.tags[repository], tag)
		return
	}
	w.tags[repository][tag] = d
}

// VEX reads documents that are JSON arrays of statements and signed with the
// word "signed".
type VEX struct{}

// Read implements pipeline.VEXReader.
func (VEX) Read(doc pipeline.VEXDocument, trustedKeys []string) (out []pipeline.VEXStatement, err error) {
	if string(doc.Signature) != "signed" || len(trustedKeys) == 0 {
		return nil, fmt.Errorf("no trusted key has signed it: %w", pipeline.ErrUnverified)
	}
	err = json.Unmarshal(doc.Document, &out)
	return out, err
}

// Matches implements pipeline.VEXReader.
func (VEX) Matches(s pipeline.VEXStatement, f pipeline.Finding, img pipeline.Image, _ []pipeline.PlatformImage) bool {
	for _, v := range s.Vulnerability {
		if v == f.ID {
			return len(s.Products) > 0 && s.Products[0].ID == string(img.Digest)
		}
	}
	return false
}
