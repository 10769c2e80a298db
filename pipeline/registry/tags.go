package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	ggcr "github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/dray-project/dray/pipeline"
)

// validTag: what a tag may look like (distribution specification, "Pulling
// manifests").
func validTag(tag string) bool {
	if tag == "" || len(tag) > 128 || tag[0] == '.' || tag[0] == '-' {
		return false
	}
	return strings.Trim(tag, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == ""
}

// Exists implements pipeline.Registry. The manifest is read and hashed.
func (r *Registry) Exists(ctx context.Context, img pipeline.Image) (bool, error) {
	repo, err := r.open(img.Repository, ggcr.PullScope)
	if err != nil {
		return false, err
	}
	if _, err := pipeline.ParseDigest(string(img.Digest)); err != nil {
		return false, pipeline.Permanent(err)
	}
	_, err = repo.get(ctx, string(img.Digest))
	if errors.Is(err, pipeline.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// What one repository's list of tags may take, so that a registry cannot keep
// a reader busy for ever.
const (
	maxTags     = 1_000_000
	maxTagPages = 20_000
)

// Tags implements pipeline.Registry.
func (r *Registry) Tags(ctx context.Context, repository string) ([]string, error) {
	repo, err := r.open(repository, ggcr.PullScope)
	if err != nil {
		return nil, err
	}
	tags, more, err := repo.tags(ctx, maxTagPages)
	if more {
		err = refuse("list the tags of %s: more than %d pages", repo, maxTagPages)
	}
	if errors.Is(err, pipeline.ErrNotFound) {
		return nil, nil
	}
	return tags, err
}

// tags reads at most so many pages. more says that there were others.
func (p *repository) tags(ctx context.Context, pages int) (tags []string, more bool, err error) {
	at := p.url("tags/list", url.Values{"n": {"1000"}})
	for page := 0; at != nil; page++ {
		if page == pages {
			return tags, true, nil
		}
		var list struct {
			Tags []string `json:"tags"`
		}
		next := (*url.URL)(nil)
		err := p.r.again(ctx, func() error {
			list.Tags = nil
			res, err := p.do(ctx, request{method: http.MethodGet, url: at})
			if err != nil {
				return err
			}
			defer closeBody(res)
			if err := checkStatus(res, http.StatusOK); err != nil {
				return err
			}
			body, err := readBody(res, p.r.limits.ManifestBytes)
			if err != nil {
				return err
			}
			if err := json.Unmarshal(body, &list); err != nil {
				return fmt.Errorf("the list of tags is not JSON: %w", err)
			}
			next, err = nextPage(res, at)
			return err
		})
		if err != nil {
			return nil, false, p.r.explain(p.host, "list the tags of", p.String(), err)
		}
		tags = append(tags, list.Tags...)
		if len(tags) > maxTags {
			return nil, false, refuse("list the tags of %s: more than %d", p, maxTags)
		}
		at = next
	}
	return tags, false, nil
}

// TagHolds implements pipeline.Registry. The digest is that of the bytes which
// the registry serves for the tag.
func (r *Registry) TagHolds(ctx context.Context, repository, tag string) (pipeline.Digest, bool, error) {
	repo, err := r.openTag(repository, tag, ggcr.PullScope)
	if err != nil {
		return "", false, err
	}
	got, err := repo.get(ctx, tag)
	if errors.Is(err, pipeline.ErrNotFound) {
		return "", false, nil
	}
	return got.digest, err == nil, err
}

// Tag implements pipeline.Registry. It does not ask what the tag names before it
// writes: whether a tag may move is the caller's decision, and writing what is
// there already changes nothing. A registry that refuses it is asked whether
// that is because the tag, which it does not move, names the image already.
func (r *Registry) Tag(ctx context.Context, img pipeline.Image, tag string) error {
	repo, err := r.openTag(img.Repository, tag, ggcr.PushScope)
	if err != nil {
		return err
	}
	if _, err := pipeline.ParseDigest(string(img.Digest)); err != nil {
		return pipeline.Permanent(err)
	}
	got, err := repo.cached(ctx, img.Digest)
	if err != nil {
		return fmt.Errorf("tag %s as %q: %w", img, tag, err)
	}
	m, err := r.limits.parse(got, descriptor{})
	if err != nil {
		return fmt.Errorf("tag %s as %q: %w", img, tag, err)
	}
	if _, err := repo.put(ctx, tag, m.mediaType, m.body); err != nil {
		if errors.Is(err, errNotThere) {
			// It lacks what a copy has seen there: the next copy is to look again.
			return errors.Join(err, repo.forget(ctx, []pipeline.Digest{img.Digest}))
		}
		if s := statusOf(err); s >= 400 && s < 500 && repo.confirm(ctx, tag, img.Digest) == nil {
			return nil
		}
		return err
	}
	return repo.confirm(ctx, tag, img.Digest)
}

func (r *Registry) openTag(repo, tag, actions string) (*repository, error) {
	if !validTag(tag) {
		return nil, refuse("tag %q: want letters, digits, '_', '.' and '-', at most 128", clean(tag, 150))
	}
	return r.open(repo, actions)
}
