package registry

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/dray-project/dray/pipeline"
)

// deleteScope asks for everything that a removal needs: reading, deleting, and
// writing what tells how the registry deletes.
const deleteScope = "pull,push,delete"

// removal is how a registry removes, as it was tried.
type removal struct {
	// manifests: a manifest is deleted by its digest.
	manifests bool
	// tags: a tag is deleted, and its manifest stays.
	tags bool
}

var _ pipeline.Pruner = (*Registry)(nil)

// Prune implements pipeline.Pruner. What the registry can do is tried first, with
// a small manifest of its own, once in a while for each host. Blobs are left to
// the registry's garbage collection: who else needs one is not for a client to know.
//
// The order is: the tags, so that nothing carries a tag that has lost its
// signatures; what is attached; the image; then its parts. Where tags cannot be
// deleted by themselves, the image goes first and takes its tags along.
func (r *Registry) Prune(ctx context.Context, h *pipeline.Holdings, x pipeline.Removal) (blocked string, err error) {
	p, err := r.open(h.Repository, deleteScope)
	if err != nil {
		return "", err
	}
	for _, d := range append([]pipeline.Digest{x.Image.Digest}, x.Manifests...) {
		if _, err := pipeline.ParseDigest(string(d)); err != nil {
			return "", pipeline.Permanent(err)
		}
	}
	how, err := p.removal(ctx)
	if err != nil {
		return "", err
	}
	switch {
	case len(x.Manifests) > 0 && !how.manifests:
		return fmt.Sprintf("registry %s does not delete manifests: allow it there (storage.delete.enabled of the CNCF registry), "+
			"and give Dray's user the right", p.host), nil
	case len(x.Manifests) == 0 && !how.tags:
		return fmt.Sprintf("registry %s does not delete a tag without the image that it names", p.host), nil
	}
	if err := p.unchanged(ctx, h, x); err != nil {
		return "", err
	}
	// From here on, no copy is to believe that it is still there, nor that the
	// blobs will be.
	gone := slices.Clone(x.Manifests)
	for _, d := range x.Manifests {
		for _, b := range h.Manifests[d].Blobs {
			gone = append(gone, b.Digest)
		}
	}
	slices.Sort(gone)
	gone = slices.Compact(gone)
	if err := p.forget(ctx, gone); err != nil {
		return "", err
	}
	if len(x.Manifests) == 0 {
		return p.untagAll(ctx, x)
	}
	if blocked, err = p.removeAll(ctx, h, x, how); err != nil || blocked != "" {
		return blocked, err
	}
	return "", p.forget(ctx, gone)
}

// unchanged looks whether the tags are still what the removal was planned by.
func (p *repository) unchanged(ctx context.Context, h *pipeline.Holdings, x pipeline.Removal) error {
	conflict := func(format string, args ...any) error {
		return fmt.Errorf("%s: %s since it was looked at: nothing was removed: %w", p, fmt.Sprintf(format, args...), pipeline.ErrConflict)
	}
	going := func(d pipeline.Digest) bool { return slices.Contains(x.Manifests, d) }
	known := map[string]pipeline.Digest{}
	for _, tag := range x.Tags {
		known[tag] = x.Image.Digest
	}
	for _, d := range x.Manifests {
		for _, tag := range h.TagsOf(d) {
			known[tag] = d
		}
	}
	for tag, d := range known {
		got, err := p.get(ctx, tag)
		if errors.Is(err, pipeline.ErrNotFound) {
			continue // it was removed before
		}
		if err != nil {
			return err
		}
		if got.digest != d {
			return conflict("the tag %s came to name %s", tag, got.digest)
		}
	}
	tags, more, err := p.tags(ctx, maxTagPages)
	if errors.Is(err, pipeline.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if more {
		return refuse("list the tags of %s: more than %d pages", p, maxTagPages)
	}
	for _, tag := range tags {
		if _, seen := h.Tags[tag]; seen || len(x.Manifests) == 0 || strings.HasPrefix(tag, probeTag) {
			continue
		}
		got, err := p.get(ctx, tag)
		if errors.Is(err, pipeline.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		held, err := p.r.limits.held(got)
		if err != nil {
			return err
		}
		if going(got.digest) || going(held.Subject) || slices.ContainsFunc(held.Children, going) {
			return conflict("the tag %s appeared", tag)
		}
	}
	return nil
}

// untagAll removes tags of an image that stays, and makes sure that it does.
func (p *repository) untagAll(ctx context.Context, x pipeline.Removal) (blocked string, err error) {
	img, err := p.get(ctx, string(x.Image.Digest))
	if err != nil {
		return "", err
	}
	m, err := p.r.limits.parse(img, descriptor{})
	if err != nil {
		return "", err
	}
	for _, tag := range x.Tags {
		if removed, err := p.remove(ctx, "manifests/"+tag); err != nil {
			return "", err
		} else if !removed {
			return fmt.Sprintf("registry %s refuses to delete the tag %s", p.host, tag), nil
		}
		// It was tried that this does not take the image along; but this image
		// matters, and what was lost can be put back.
		there, err := p.holds(ctx, x.Image.Digest)
		if err != nil {
			return "", err
		}
		if there {
			continue
		}
		if _, err := p.put(ctx, string(m.digest), m.mediaType, m.body); err != nil {
			return "", fmt.Errorf("registry %s removed %s with its tag %s, and it could not be put back: %w", p.host, x.Image, tag, err)
		}
		return fmt.Sprintf("registry %s removed the image with its tag %s; it was put back", p.host, tag), p.confirm(ctx, string(m.digest), m.digest)
	}
	return "", nil
}

// removeAll removes manifests, with the tags that name them.
func (p *repository) removeAll(ctx context.Context, h *pipeline.Holdings, x pipeline.Removal, how removal) (blocked string, err error) {
	var paths []string
	order := slices.Clone(x.Manifests)
	if how.tags {
		for _, tag := range x.Tags {
			paths = append(paths, "manifests/"+tag)
		}
	} else if i := slices.Index(order, x.Image.Digest); i > 0 {
		order = slices.Concat(order[i:i+1], order[:i], order[i+1:])
	}
	for _, d := range order {
		if how.tags {
			// Some registries do not delete a manifest that has a tag.
			for _, tag := range h.TagsOf(d) {
				if !slices.Contains(x.Tags, tag) {
					paths = append(paths, "manifests/"+tag)
				}
			}
		}
		paths = append(paths, "manifests/"+string(d))
	}
	for _, path := range paths {
		removed, err := p.remove(ctx, path)
		if err != nil {
			return "", err
		}
		if !removed {
			return fmt.Sprintf("registry %s refuses to delete %s", p.host, strings.TrimPrefix(path, "manifests/")), nil
		}
	}
	there, err := p.holds(ctx, x.Image.Digest)
	if err == nil && there {
		blocked = fmt.Sprintf("registry %s accepts the deletion of %s and keeps it", p.host, x.Image.Digest)
	}
	return blocked, err
}

// remove deletes what is under the path; a refusal is removed false, and what is
// not there was removed.
func (p *repository) remove(ctx context.Context, path string) (removed bool, err error) {
	err = p.r.again(ctx, func() error {
		res, err := p.do(ctx, request{method: http.MethodDelete, url: p.url(path, nil)})
		if err != nil {
			return err
		}
		defer closeBody(res)
		return checkStatus(res, http.StatusAccepted, http.StatusOK, http.StatusNoContent, http.StatusNotFound)
	})
	if s := statusOf(err); s >= 400 && s < 500 && s != http.StatusTooManyRequests {
		return false, nil
	}
	return err == nil, p.r.explain(p.host, "delete "+path+" of", p.String(), err)
}

// removal tries how the registry removes, if that is not known.
func (p *repository) removal(ctx context.Context) (how removal, err error) {
	if how, ok := p.r.learned.removal(p.host); ok {
		return how, nil
	}
	b := &probe{p: p, nonce: strings.ToLower(rand.Text()[:12]), has: map[string]bool{}}
	defer b.clean(ctx)
	config := []byte(fmt.Sprintf(`{"probe":%q}`, b.nonce))
	blob := descriptor{MediaType: "application/vnd.oci.empty.v1+json", Digest: hash(config), Size: int64(len(config))}
	if err := p.push(ctx, blob, config); err != nil {
		return how, err
	}
	b.left = append(b.left, probed{what: "blob " + string(blob.Digest), path: "blobs/" + string(blob.Digest)})
	if err := b.delete(ctx, blob); err != nil {
		return how, err
	}
	how.manifests = b.out.Delete == pipeline.CapabilityYes
	if how.tags, err = b.untag(ctx, blob); err != nil {
		return how, err
	}
	p.r.learned.noteRemoval(p.host, how)
	return how, nil
}

// untag tags a manifest the way images are tagged, deletes the tag and looks
// whether the manifest stayed.
func (b *probe) untag(ctx context.Context, blob descriptor) (bool, error) {
	body := b.manifest(blob, "untag", "", 0)
	d, tag := hash(body), probeTag+b.nonce
	for _, ref := range []string{string(d), tag} {
		if ok, err := b.put(ctx, ref, body); err != nil || !ok {
			return false, err
		}
	}
	removed, err := b.p.remove(ctx, "manifests/"+tag)
	if err != nil || !removed {
		return false, err
	}
	if _, err := b.p.get(ctx, tag); !errors.Is(err, pipeline.ErrNotFound) {
		return false, err
	}
	return b.p.holds(ctx, d)
}
