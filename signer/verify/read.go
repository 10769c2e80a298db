package verify

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/signer/internal/oci"
)

// parallel is how many bundles are read at once.
const parallel = 4

// PredicateTypeAnnotation says in a bundle's manifest what the bundle holds. It
// is a hint: nobody signs it.
const PredicateTypeAnnotation = "dev.sigstore.bundle.predicateType"

const emptyConfigType = "application/vnd.oci.empty.v1+json"

// finding is what was found of an image's signatures.
type finding struct {
	mu       sync.Mutex
	verified pipeline.Verified
	notes    []note
	places   []string // where was looked, and how many candidates were there
	left     int64    // bytes that may still be read
	session  *oci.Session
}

// read collects what verifies. Its error is never that something is missing or
// does not verify.
func (v *Verifier) read(ctx context.Context, img pipeline.Image, what Selection) (*finding, error) {
	if _, err := pipeline.ParseImage(img.String()); err != nil {
		return nil, pipeline.Permanent(err)
	}
	s, err := v.access.Read(ctx, img.Repository)
	if err != nil {
		return nil, fmt.Errorf("read the signatures of %s: %w", img, err)
	}
	f := &finding{left: v.limits.Total, session: s, verified: pipeline.Verified{
		Image: img, Statements: map[pipeline.Digest]json.RawMessage{}, VerifiedAt: v.now().UTC(),
	}}
	r := &reader{Verifier: v, session: s, img: img, what: what, finding: f}
	steps := []func(context.Context) error{r.bundles}
	if what.Signatures {
		steps = append(steps, r.legacySignatures)
	}
	if what.Attestations != "" {
		steps = append(steps, r.legacyAttestations)
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return nil, fmt.Errorf("read the signatures of %s: %w", img, err)
		}
	}
	f.order()
	return f, nil
}

// reader is one call's state.
type reader struct {
	*Verifier
	session *oci.Session
	img     pipeline.Image
	what    Selection
	finding *finding
}

// bundles reads the referrers that are Sigstore bundles.
func (r *reader) bundles(ctx context.Context) error {
	subject := r.session.Repository.Digest(string(r.img.Digest))
	list, from, err := r.session.Referrers(ctx, subject, r.limits.Referrers)
	if err != nil {
		return err
	}
	var candidates []v1.Descriptor
	for _, d := range list {
		if saysLittle(d.ArtifactType) || strings.HasPrefix(d.ArtifactType, bundleTypePrefix) {
			candidates = append(candidates, d)
		}
	}
	r.finding.place("%s (%d that may be bundles)", from, len(candidates))

	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var group sync.WaitGroup
	slots := make(chan struct{}, parallel)
	failed := make([]error, len(candidates))
	for i, d := range candidates {
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			where := "bundle " + d.Digest.String()
			if failed[i] = r.settle(where, r.bundle(ctx, d)); failed[i] != nil {
				stop()
			}
		})
	}
	group.Wait()
	return firstCause(failed)
}

// saysLittle: fallback tags that were written by hand lack the artifact type, and
// those that cosign 2.6 writes have the type of the manifest's config in its place.
func saysLittle(artifactType string) bool {
	return artifactType == "" || artifactType == emptyConfigType
}

// firstCause prefers the error that made the others give up.
func firstCause(errs []error) error {
	for _, err := range errs {
		if err != nil && !errors.Is(err, context.Canceled) {
			return err
		}
	}
	return errors.Join(errs...)
}

// settle turns what is wrong with one candidate into a note, and keeps what
// prevents an answer: an unreachable registry, a limit.
func (r *reader) settle(where string, err error) error {
	if err == nil {
		return nil
	}
	if rej, ok := rejected(err); ok {
		r.finding.note(where, rej)
		return nil
	}
	if errors.Is(err, errBudget) || oci.Unavailable(err) {
		return fmt.Errorf("%s: %w", where, err)
	}
	r.finding.note(where, reject("%v", err))
	return nil
}

func (r *reader) bundle(ctx context.Context, d v1.Descriptor) error {
	if d.Digest.Algorithm != "sha256" {
		return reject("the list names it by another digest than sha256")
	}
	found, err := r.session.Manifest(ctx, r.session.Repository.Digest(d.Digest.String()))
	if err != nil {
		return err
	}
	m, err := manifest(found)
	if err != nil {
		return err
	}
	if m.Subject == nil || m.Subject.Digest.String() != string(r.img.Digest) {
		return reject("the manifest does not refer to the image")
	}
	if !r.what.wants(m.Annotations[PredicateTypeAnnotation]) {
		return nil
	}
	if len(m.Layers) != 1 || !strings.HasPrefix(string(m.Layers[0].MediaType), bundleTypePrefix) {
		if saysLittle(d.ArtifactType) && !strings.HasPrefix(m.ArtifactType, bundleTypePrefix) {
			return nil // some other artefact, listed without saying what it is
		}
		return reject("the manifest has not exactly one layer that is a bundle")
	}
	raw, err := r.blob(ctx, m.Layers[0], r.limits.Bundle)
	if err != nil {
		return err
	}
	c, err := r.keys.checkBundle(raw, r.img.Digest)
	if err != nil {
		return err
	}
	r.keep(c, LayoutBundle, found.Digest)
	return nil
}

func (r *reader) legacySignatures(ctx context.Context) error {
	return r.legacy(ctx, "sig", SimpleSigningType, maxPayload, func(raw []byte, d v1.Descriptor, in pipeline.Digest) error {
		keyID, err := r.keys.checkSimpleSigning(raw, d.Annotations, r.img.Digest)
		if err == nil {
			r.keep(claim{keyID: keyID, predicateType: PredicateSignature}, LayoutLegacy, in)
		}
		return err
	})
}

func (r *reader) legacyAttestations(ctx context.Context) error {
	return r.legacy(ctx, "att", EnvelopeType, r.limits.Bundle, func(raw []byte, d v1.Descriptor, in pipeline.Digest) error {
		c, err := r.keys.checkLegacyEnvelope(raw, d.Annotations, r.img.Digest)
		if err == nil {
			r.keep(c, LayoutLegacy, in)
		}
		return err
	})
}

// legacy reads the layers of the tag that are of that type.
func (r *reader) legacy(ctx context.Context, suffix, mediaType string, bound int64,
	check func([]byte, v1.Descriptor, pipeline.Digest) error) error {
	tag := LegacyTag(r.img.Digest, suffix)
	found, err := r.session.Manifest(ctx, r.session.Repository.Tag(tag))
	if oci.NotFound(err) {
		r.finding.place("the tag %s (absent)", tag)
		return nil
	}
	if err != nil {
		return r.settle("tag "+tag, err)
	}
	m, err := manifest(found)
	if err != nil {
		return r.settle("tag "+tag, err)
	}
	r.finding.place("the tag %s (%d layers)", tag, len(m.Layers))
	if len(m.Layers) > r.limits.Referrers {
		return fmt.Errorf("the tag %s has %d layers, more than the bound of %d: %w", tag, len(m.Layers), r.limits.Referrers, errBudget)
	}
	for i, layer := range m.Layers {
		if string(layer.MediaType) != mediaType {
			continue
		}
		raw, err := r.blob(ctx, layer, bound)
		if err == nil {
			err = check(raw, layer, found.Digest)
		}
		if err := r.settle(fmt.Sprintf("tag %s, layer %d", tag, i+1), err); err != nil {
			return err
		}
	}
	return nil
}

func manifest(m *oci.Manifest) (*v1.Manifest, error) {
	parsed, err := v1.ParseManifest(bytes.NewReader(m.Raw))
	if err != nil {
		return nil, reject("the manifest cannot be read: %v", err)
	}
	if !m.MediaType.IsImage() {
		return nil, reject("not an image manifest but %.100q", string(m.MediaType))
	}
	return parsed, nil
}

var errBudget = errors.New("more than may be read")

func (r *reader) blob(ctx context.Context, d v1.Descriptor, bound int64) ([]byte, error) {
	if d.Size > bound {
		return nil, reject("the layer is %d bytes, more than the bound of %d", d.Size, bound)
	}
	if !r.finding.spend(d.Size) {
		return nil, fmt.Errorf("all signatures and attestations together exceed %d bytes: %w", r.limits.Total, errBudget)
	}
	return r.session.Blob(ctx, d, bound)
}

// keep notes what verified, once.
func (r *reader) keep(c claim, layout string, in pipeline.Digest) {
	if !r.what.wantsClaim(c.predicateType) {
		return
	}
	f := r.finding
	f.mu.Lock()
	defer f.mu.Unlock()
	if c.predicateType == PredicateSignature {
		s := pipeline.Signature{Image: r.img, KeyID: c.keyID, Layout: layout, Manifest: in}
		if !slices.Contains(f.verified.Signatures, s) {
			f.verified.Signatures = append(f.verified.Signatures, s)
		}
		return
	}
	sum := sha256.Sum256(c.payload)
	statement := pipeline.Digest("sha256:" + hex.EncodeToString(sum[:]))
	a := pipeline.Attestation{
		Image: r.img, PredicateType: c.predicateType, KeyID: c.keyID,
		Layout: layout, Manifest: in, Statement: statement,
	}
	if !slices.Contains(f.verified.Attestations, a) {
		f.verified.Attestations = append(f.verified.Attestations, a)
	}
	f.verified.Statements[statement] = c.payload
}

// absent reports whether the image itself is missing.
func (f *finding) absent(ctx context.Context) bool {
	_, err := f.session.Manifest(ctx, f.session.Repository.Digest(string(f.verified.Image.Digest)))
	return oci.NotFound(err)
}

func (f *finding) spend(n int64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.left -= max(n, 0)
	return f.left >= 0
}

// order makes equal content give an equal answer.
func (f *finding) order() {
	slices.SortFunc(f.verified.Signatures, func(a, b pipeline.Signature) int {
		return cmp.Or(cmp.Compare(a.Layout, b.Layout), cmp.Compare(a.KeyID, b.KeyID), cmp.Compare(a.Manifest, b.Manifest))
	})
	slices.SortFunc(f.verified.Attestations, func(a, b pipeline.Attestation) int {
		return cmp.Or(cmp.Compare(a.PredicateType, b.PredicateType), cmp.Compare(a.Layout, b.Layout),
			cmp.Compare(a.KeyID, b.KeyID), cmp.Compare(a.Statement, b.Statement), cmp.Compare(a.Manifest, b.Manifest))
	})
	slices.SortFunc(f.notes, func(a, b note) int { return cmp.Compare(a.where, b.where) })
}

// keyIDs lists the keys that signatures claim to be by and that are not trusted.
func (f *finding) keyIDs() []string {
	ids := map[string]bool{}
	for _, n := range f.notes {
		if n.unknownKey && n.keyID != "" {
			ids[n.keyID] = true
		}
	}
	return slices.Sorted(maps.Keys(ids))
}
