package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/dray-project/dray/pipeline"
)

// referrerTag is the fallback tag, under which registries without the
// referrers API keep the list of a subject's referrers (distribution
// specification, "Referrers Tag Schema").
func referrerTag(subject pipeline.Digest) string { return "sha256-" + subject.Hex() }

// legacyTags are those under which cosign keeps what belongs to a digest
// without the help of the registry.
func legacyTags(subject pipeline.Digest) []string {
	t := referrerTag(subject)
	return []string{t + ".sig", t + ".att", t + ".sbom"}
}

// referrers asks the referrers API. ok is false when the registry does not have
// it; for some minutes it is then not asked again.
func (p *repository) referrers(ctx context.Context, subject pipeline.Digest) (list []descriptor, ok bool, err error) {
	if p.r.learned.lacksAPI(p.String()) {
		return nil, false, nil
	}
	at := p.url("referrers/"+string(subject), nil)
	for pages := 0; at != nil; pages++ {
		var page []descriptor
		next := at
		err := p.r.again(ctx, func() error {
			page, next, ok = nil, nil, false
			res, err := p.do(ctx, request{
				method: http.MethodGet, url: at,
				header: http.Header{"Accept": {string(types.OCIImageIndex)}},
			})
			if err != nil {
				return err
			}
			defer closeBody(res)
			switch res.StatusCode {
			case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotAcceptable, http.StatusBadRequest, http.StatusNotImplemented:
				return nil // 404 says the specification; the others are seen too
			}
			if err := checkStatus(res, http.StatusOK); err != nil {
				return err
			}
			if !strings.HasPrefix(res.Header.Get("Content-Type"), string(types.OCIImageIndex)) {
				return nil // a page for people
			}
			body, err := readBody(res, p.r.limits.ManifestBytes)
			if err != nil {
				return err
			}
			if page, err = parseReferrers(body); err != nil {
				return err
			}
			ok = true
			next, err = nextPage(res, at)
			return err
		})
		if err != nil {
			return nil, false, p.r.explain(p.host, "list the referrers of", imageName(p, string(subject)), err)
		}
		p.r.learned.noteAPI(p.String(), ok)
		if !ok {
			return nil, false, nil
		}
		list = append(list, page...)
		if len(list) > p.r.limits.Referrers {
			return nil, false, refuse("%s has more referrers than the limit of %d", imageName(p, string(subject)), p.r.limits.Referrers)
		}
		if at = next; pages > p.r.limits.Referrers {
			return nil, false, refuse("the list of %s's referrers does not end", imageName(p, string(subject)))
		}
	}
	return list, true, nil
}

func parseReferrers(body []byte) ([]descriptor, error) {
	var index struct {
		Manifests []descriptor `json:"manifests"`
	}
	if err := json.Unmarshal(body, &index); err != nil {
		return nil, fmt.Errorf("the list of referrers is not JSON: %w", err)
	}
	for _, d := range index.Manifests {
		if err := checkDescriptor(d); err != nil {
			return nil, refuse("list of referrers: %w", err)
		}
	}
	return index.Manifests, nil
}

// fallback reads a subject's fallback tag. A missing one lists nothing.
func (p *repository) fallback(ctx context.Context, subject pipeline.Digest) ([]descriptor, error) {
	got, err := p.get(ctx, referrerTag(subject))
	if errors.Is(err, pipeline.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	m, err := p.r.limits.parseList(got)
	if err != nil {
		return nil, fmt.Errorf("fallback tag %s: %w", imageName(p, referrerTag(subject)), err)
	}
	return m.manifests, nil
}

// parseList parses a fallback tag's index, which may be longer than an image's.
func (l Limits) parseList(got raw) (*manifest, error) {
	l.Children = max(l.Children, l.Referrers)
	m, err := l.parse(got, descriptor{})
	if err == nil && !m.index {
		err = refuse("it is not an index")
	}
	return m, err
}

// attach makes the referrers, whose manifests are at the destination, known to
// whoever asks there for what refers to the subject.
func (p *repository) attach(ctx context.Context, subject pipeline.Digest, refs []*manifest) error {
	var missing []*manifest
	err := p.r.again(ctx, func() error {
		missing = refs
		for pushed := false; ; pushed = true {
			listed, ok, err := p.referrers(ctx, subject)
			if err != nil {
				return err
			}
			if !ok {
				return p.attachFallback(ctx, subject, refs)
			}
			missing = slices.DeleteFunc(slices.Clone(missing), func(m *manifest) bool {
				return slices.ContainsFunc(listed, func(d descriptor) bool { return d.Digest == m.digest })
			})
			if len(missing) == 0 {
				return nil
			}
			if pushed {
				return errNotListed
			}
			// They were pushed before the registry had the API, or the registry lost
			// the entries, as some do when two come at once: a push with a subject
			// enters it.
			if err := p.enter(ctx, subject, missing); err != nil {
				return err
			}
		}
	})
	if errors.Is(err, errNotListed) {
		return fmt.Errorf("registry %s does not list %s, which was pushed, among the referrers of %s",
			p.host, missing[0].digest, imageName(p, string(subject)))
	}
	return err
}

// enter pushes referrers again, under the lock of their subject.
func (p *repository) enter(ctx context.Context, subject pipeline.Digest, refs []*manifest) error {
	unlock, err := p.lock(ctx, subject)
	if err != nil {
		return err
	}
	defer unlock()
	for _, m := range refs {
		if _, err := p.put(ctx, string(m.digest), m.mediaType, m.body); err != nil {
			return err
		}
	}
	return nil
}

var errNotListed = errors.New("a referrer is not listed")

// attachFallback adds to the subject's fallback tag and drops nothing from it.
func (p *repository) attachFallback(ctx context.Context, subject pipeline.Digest, refs []*manifest) error {
	unlock, err := p.lock(ctx, subject)
	if err != nil {
		return err
	}
	defer unlock()
	tag := referrerTag(subject)
	// Writers that do not know our lock may come between: read back and repeat.
	return p.r.again(ctx, func() error {
		now, err := p.get(ctx, tag)
		if err != nil && !errors.Is(err, pipeline.ErrNotFound) {
			return err
		}
		body, changed, err := p.r.limits.mergeReferrers(now, refs)
		if err != nil {
			return fmt.Errorf("fallback tag %s: %w", imageName(p, tag), err)
		}
		if !changed {
			return nil
		}
		if _, err := p.put(ctx, tag, string(types.OCIImageIndex), body); err != nil {
			return err
		}
		return p.confirm(ctx, tag, hash(body))
	})
}

// mergeReferrers adds descriptors to a list that may be empty. Entries that are
// there stay as they are, to the letter.
func (l Limits) mergeReferrers(now raw, refs []*manifest) (body []byte, changed bool, err error) {
	doc := struct {
		SchemaVersion int               `json:"schemaVersion"`
		MediaType     string            `json:"mediaType"`
		Manifests     []json.RawMessage `json:"manifests"`
		Annotations   json.RawMessage   `json:"annotations,omitempty"`
	}{SchemaVersion: 2, MediaType: string(types.OCIImageIndex)}
	known := map[pipeline.Digest]bool{}
	if now.body != nil {
		m, err := l.parseList(now)
		if err != nil {
			return nil, false, err
		}
		for _, d := range m.manifests {
			known[d.Digest] = true
		}
		if err := json.Unmarshal(now.body, &doc); err != nil {
			return nil, false, refuse("%w", err)
		}
	}
	for _, m := range refs {
		if known[m.digest] {
			continue
		}
		known[m.digest], changed = true, true
		entry, err := json.Marshal(m.descriptor())
		if err != nil {
			return nil, false, err
		}
		doc.Manifests = append(doc.Manifests, entry)
	}
	if !changed {
		return nil, false, nil
	}
	if body, err = json.Marshal(doc); err != nil {
		return nil, false, err
	}
	if int64(len(body)) > l.ManifestBytes || len(doc.Manifests) > max(l.Children, l.Referrers) {
		return nil, false, refuse("with what is added it would list %d referrers in %d bytes, more than the limits of %d and %d",
			len(doc.Manifests), len(body), l.Referrers, l.ManifestBytes)
	}
	return body, true, nil
}

func (p *repository) lock(ctx context.Context, subject pipeline.Digest) (func(), error) {
	unlock, err := p.r.locker.Lock(ctx, LockKey(pipeline.Image{Repository: p.asked, Digest: subject}))
	if err != nil {
		return nil, fmt.Errorf("lock the referrers of %s: %w", imageName(p, string(subject)), err)
	}
	return unlock, nil
}
