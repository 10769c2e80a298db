package registry

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/dray-project/dray/pipeline"
)

// probeTag begins the name of the one tag that a probe makes.
const probeTag = "dray-probe-"

// Probe finds out what a registry can do by trying it in one repository: it
// pushes a blob of a few bytes and small manifests that name it, one of them
// padded to the size limit, and removes them again. What it could not remove
// stands in the notes. Nothing of the repository's own is touched.
//
// If the registry cannot be reached or written to, the error says so, and so
// does Error in the probe, whose other fields hold what was learnt until then.
func (r *Registry) Probe(ctx context.Context, repository string) (pipeline.RegistryProbe, error) {
	p, err := r.open(repository, ggcr.PushScope)
	if err != nil {
		return pipeline.RegistryProbe{}, err
	}
	b := &probe{p: p, nonce: strings.ToLower(rand.Text()[:12]), has: map[string]bool{}, out: pipeline.RegistryProbe{
		Host: p.host, Repository: p.String(), ProbedAt: r.transport.now().UTC(),
		Referrers: pipeline.CapabilityUnknown, Mount: pipeline.CapabilityUnknown,
		Delete: pipeline.CapabilityUnknown, ImmutableTags: pipeline.CapabilityUnknown,
	}}
	err = b.run(ctx)
	b.clean(ctx)
	if err != nil {
		err = fmt.Errorf("probe %s: %w", p, err)
		b.out.Error = err.Error()
	}
	return b.out, err
}

// probe is one Probe under way.
type probe struct {
	p     *repository
	nonce string
	out   pipeline.RegistryProbe
	// left is what was written, in that order; has are those that were accepted.
	left []probed
	has  map[string]bool
}

type probed struct{ what, path string }

func (b *probe) run(ctx context.Context) error {
	if err := b.p.reach(ctx); err != nil {
		return err
	}
	config := []byte(fmt.Sprintf(`{"probe":%q}`, b.nonce))
	blob := descriptor{MediaType: "application/vnd.oci.empty.v1+json", Digest: hash(config), Size: int64(len(config))}
	if err := b.p.push(ctx, blob, config); err != nil {
		return err
	}
	b.left = append(b.left, probed{what: fmt.Sprintf("blob %s (%d bytes)", blob.Digest, blob.Size), path: "blobs/" + string(blob.Digest)})
	if err := b.mount(ctx, blob); err != nil {
		return err
	}
	one := b.manifest(blob, "one", "", 0)
	if _, err := b.put(ctx, string(hash(one)), one); err != nil {
		return err
	}
	if err := b.rate(ctx, hash(one)); err != nil {
		return err
	}
	if err := b.referrers(ctx, blob, one); err != nil {
		return err
	}
	if err := b.immutable(ctx, blob, one); err != nil {
		return err
	}
	if err := b.largest(ctx, blob); err != nil {
		return err
	}
	return b.delete(ctx, blob)
}

// manifest names the blob, and is padded to the size.
func (b *probe) manifest(blob descriptor, which, more string, size int) []byte {
	write := func(pad string) []byte {
		return []byte(fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"artifactType":"application/vnd.dray.probe.v1",`+
			`"config":{"mediaType":%q,"digest":%q,"size":%d},"layers":[{"mediaType":%q,"digest":%q,"size":%d}]%s,`+
			`"annotations":{"dray.probe":"%s %s","dray.pad":%q}}`,
			types.OCIManifestSchema1, blob.MediaType, blob.Digest, blob.Size, blob.MediaType, blob.Digest, blob.Size, more, which, b.nonce, pad))
	}
	body := write("")
	if pad := size - len(body); pad > 0 {
		body = write(strings.Repeat("x", pad))
	}
	return body
}

// put writes a manifest under its digest or a tag. A refusal is ok false.
func (b *probe) put(ctx context.Context, ref string, body []byte) (ok bool, err error) {
	what := fmt.Sprintf("manifest %s (%d bytes)", ref, len(body))
	if !strings.HasPrefix(ref, "sha256:") {
		what = "tag " + ref
	}
	if !b.has[ref] {
		// Also when the answer gets lost, it may be there.
		b.left = append(b.left, probed{what: what, path: "manifests/" + ref})
	}
	if _, err = b.p.put(ctx, ref, string(types.OCIManifestSchema1), body); err != nil {
		if s := statusOf(err); s < 400 || s >= 500 || s == http.StatusTooManyRequests {
			return false, err
		}
		if !b.has[ref] {
			b.left = b.left[:len(b.left)-1]
		}
		if s := statusOf(err); s == http.StatusUnauthorized || s == http.StatusForbidden {
			return false, err
		}
		return false, nil
	}
	b.has[ref] = true
	return true, nil
}

func capability(yes bool) pipeline.Capability {
	if yes {
		return pipeline.CapabilityYes
	}
	return pipeline.CapabilityNo
}

// mount asks for a blob that is there to be mounted from where it is: the
// registry that can mount has nothing to do, and says so.
func (b *probe) mount(ctx context.Context, blob descriptor) error {
	at, _, err := b.p.start(ctx, b.p.name.RepositoryStr(), blob)
	if err != nil {
		return b.p.r.explain(b.p.host, "mount blob", blobName(b.p, blob), err)
	}
	if at != nil {
		b.p.abandon(ctx, at)
	}
	b.out.Mount = capability(at == nil)
	return nil
}

// rate notes the limits that the registry announces with its answers.
func (b *probe) rate(ctx context.Context, d pipeline.Digest) error {
	res, err := b.p.do(ctx, request{
		method: http.MethodHead, url: b.p.url("manifests/"+string(d), nil), header: http.Header{"Accept": acceptManifests()},
	})
	if err != nil {
		return b.p.r.explain(b.p.host, "look for manifest", imageName(b.p, string(d)), err)
	}
	defer closeBody(res)
	for _, prefix := range []string{"RateLimit-", "X-RateLimit-"} {
		limit := res.Header.Get(prefix + "Limit")
		if limit == "" {
			continue
		}
		note := "announces a rate limit: " + clean(limit, 60)
		if left := res.Header.Get(prefix + "Remaining"); left != "" {
			note += ", of which " + clean(left, 60) + " remain"
		}
		b.out.Notes = append(b.out.Notes, note)
		break
	}
	return nil
}

// referrers attaches a manifest to another and looks for it.
func (b *probe) referrers(ctx context.Context, blob descriptor, subject []byte) error {
	body := b.manifest(blob, "referrer", fmt.Sprintf(`,"subject":{"mediaType":%q,"digest":%q,"size":%d}`, types.OCIManifestSchema1, hash(subject), len(subject)), 0)
	ok, err := b.put(ctx, string(hash(body)), body)
	if err != nil {
		return err
	}
	if !ok {
		b.out.Notes = append(b.out.Notes, "refuses manifests with a subject")
	}
	b.p.r.learned.noteAPI(b.p.String(), true) // ask, whatever it said before
	list, api, err := b.p.referrers(ctx, hash(subject))
	if err != nil {
		return err
	}
	b.out.Referrers = capability(api)
	if api && ok && !slices.ContainsFunc(list, func(d descriptor) bool { return d.Digest == hash(body) }) {
		b.out.Referrers = pipeline.CapabilityNo
		b.out.Notes = append(b.out.Notes, "answers the referrers API, but does not list what was pushed a moment before")
	}
	return nil
}

// immutable moves a tag of its own.
func (b *probe) immutable(ctx context.Context, blob descriptor, one []byte) error {
	tag := probeTag + b.nonce
	two := b.manifest(blob, "two", "", 0)
	if _, err := b.put(ctx, string(hash(two)), two); err != nil {
		return err
	}
	if ok, err := b.put(ctx, tag, one); err != nil {
		return err
	} else if !ok {
		b.out.Notes = append(b.out.Notes, "refuses the tag "+tag)
		return nil
	}
	if _, err := b.put(ctx, tag, two); err != nil && statusOf(err) != http.StatusForbidden {
		return err // to forbid it is one way to say that tags do not move
	}
	now, err := b.p.get(ctx, tag)
	if err != nil {
		return err
	}
	b.out.ImmutableTags = capability(now.digest == hash(one))
	return nil
}

// largest pushes ever smaller manifests until one is taken.
func (b *probe) largest(ctx context.Context, blob descriptor) error {
	for size := 4 << 20; size >= 64<<10; size /= 2 {
		body := b.manifest(blob, "large", "", size)
		ok, err := b.put(ctx, string(hash(body)), body)
		if err != nil {
			return err
		}
		if ok {
			b.out.MaxManifest = int64(size)
			return nil
		}
	}
	b.out.Notes = append(b.out.Notes, "takes no manifest of 64 KiB")
	return nil
}

// delete removes a manifest that serves no other end, and looks whether it is
// gone.
func (b *probe) delete(ctx context.Context, blob descriptor) error {
	body := b.manifest(blob, "delete", "", 0)
	d := hash(body)
	if _, err := b.put(ctx, string(d), body); err != nil {
		return err
	}
	removed, err := b.p.remove(ctx, "manifests/"+string(d))
	if err != nil {
		return err
	}
	there := true
	if removed {
		if there, err = b.p.holds(ctx, d); err != nil {
			return err
		}
		if there {
			b.out.Notes = append(b.out.Notes, "accepts the deletion of a manifest and keeps it")
		}
	}
	b.out.Delete = capability(removed && !there)
	return nil
}

// clean removes what is left, tags and what refers to others first.
func (b *probe) clean(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	slices.Reverse(b.left)
	slices.SortStableFunc(b.left, func(x, y probed) int { return rank(x) - rank(y) })
	var tags []probed
	var kept []string
	for _, l := range b.left {
		b.p.r.cache.forget(b.p.String(), pipeline.Digest(strings.TrimPrefix(l.path, "manifests/")))
		removed, err := b.p.remove(ctx, l.path)
		switch {
		case err == nil && removed:
		case rank(l) == 0 && err == nil:
			tags = append(tags, l) // it may go with its manifest
		default:
			kept = append(kept, l.what)
		}
	}
	for _, l := range tags {
		if _, err := b.p.get(ctx, strings.TrimPrefix(l.path, "manifests/")); !errors.Is(err, pipeline.ErrNotFound) {
			kept = append(kept, l.what)
		}
	}
	if len(kept) > 0 {
		b.out.Notes = append(b.out.Notes, "could not remove "+strings.Join(kept, ", "))
	}
}

// rank: tags are removed first, because not every registry lets them go with
// their manifests, and blobs last.
func rank(l probed) int {
	switch {
	case strings.HasPrefix(l.path, "manifests/"+probeTag):
		return 0
	case strings.HasPrefix(l.path, "manifests/"):
		return 1
	}
	return 2
}
