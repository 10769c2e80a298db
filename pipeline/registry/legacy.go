package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/dray-project/dray/pipeline"
)

// legacyTag is a tag under which cosign keeps signatures, attestations or SBOMs
// of a digest: an image manifest with one layer for each.
type legacyTag struct {
	subject pipeline.Digest
	tag     string
	m       *manifest
	// now is what the destination's tag named when it was brought up to date.
	now *manifest
}

// bring puts a legacy tag into the destination, whose blobs are there. Where
// the destination has other layers under that tag, both are kept.
func (r *Registry) bring(ctx context.Context, from, to *repository, t *legacyTag) error {
	unlock, err := to.lock(ctx, t.subject)
	if err != nil {
		return err
	}
	defer unlock()
	return r.again(ctx, func() error {
		now, err := to.get(ctx, t.tag)
		missing := errors.Is(err, pipeline.ErrNotFound)
		if err != nil && !missing {
			return err
		}
		body, mediaType := t.m.body, t.m.mediaType
		t.now = t.m
		if !missing {
			if now.digest == t.m.digest {
				return nil
			}
			there, err := r.limits.parse(now, descriptor{})
			if err != nil {
				return fmt.Errorf("legacy tag %s: %w", imageName(to, t.tag), err)
			}
			if t.m.includes(there) {
				// The source's has all of it: nothing is lost with the other.
				if _, err := to.put(ctx, t.tag, t.m.mediaType, t.m.body); err != nil {
					return err
				}
				return to.confirm(ctx, t.tag, t.m.digest)
			}
			t.now = there
			if body, err = r.union(ctx, from, to, there, t.m); err != nil {
				return fmt.Errorf("legacy tag %s: %w", imageName(to, t.tag), err)
			}
			if body == nil {
				return nil // it has every layer already
			}
			mediaType = there.mediaType
			if t.now, err = r.limits.parse(raw{digest: hash(body), body: body, contentType: mediaType}, descriptor{}); err != nil {
				return fmt.Errorf("legacy tag %s, with what both have: %w", imageName(to, t.tag), err)
			}
		}
		if _, err := to.put(ctx, t.tag, mediaType, body); err != nil {
			return err
		}
		return to.confirm(ctx, t.tag, t.now.digest)
	})
}

// union gives the manifest at the destination the layers that only the source
// has. It returns nil when there are none.
func (r *Registry) union(ctx context.Context, from, to *repository, there, more *manifest) ([]byte, error) {
	if there.index {
		return nil, refuse("the destination has an index there")
	}
	known := map[string]bool{}
	for _, l := range there.layers {
		known[layerKey(l)] = true
	}
	var added []int
	for i, l := range more.layers {
		if !known[layerKey(l)] {
			known[layerKey(l)] = true
			added = append(added, i)
		}
	}
	if len(added) == 0 {
		return nil, nil
	}
	if len(there.layers)+len(added) > r.limits.Layers {
		return nil, refuse("together they have %d layers, more than the limit of %d", len(there.layers)+len(added), r.limits.Layers)
	}
	// Fields that Dray does not know are kept: only config and layers change.
	doc, layers := map[string]json.RawMessage{}, []json.RawMessage{}
	if err := json.Unmarshal(there.body, &doc); err != nil {
		return nil, refuse("%w", err)
	}
	if err := json.Unmarshal(doc["layers"], &layers); err != nil {
		return nil, refuse("%w", err)
	}
	var source struct {
		Layers []json.RawMessage `json:"layers"`
	}
	if err := json.Unmarshal(more.body, &source); err != nil {
		return nil, refuse("%w", err)
	}
	for _, i := range added {
		layers = append(layers, source.Layers[i])
	}
	config, err := r.unionConfig(ctx, from, to, there, more, added)
	if err != nil {
		return nil, err
	}
	if config != nil {
		doc["config"] = config
	}
	if doc["layers"], err = json.Marshal(layers); err != nil {
		return nil, err
	}
	body, err := json.Marshal(doc)
	if err == nil && int64(len(body)) > r.limits.ManifestBytes {
		err = refuse("together they have %d bytes, more than the limit of %d", len(body), r.limits.ManifestBytes)
	}
	return body, err
}

// layerKey tells layers apart: two signatures of one payload have the same blob
// and differ in their annotations.
func layerKey(d descriptor) string {
	annotations, _ := json.Marshal(d.Annotations) // a map of strings always marshals, keys sorted
	return string(d.Digest) + " " + string(annotations)
}

// unionConfig pushes a config that names the diff ids of all layers, as tools
// that append another signature expect, and returns its descriptor.
func (r *Registry) unionConfig(ctx context.Context, from, to *repository, there, more *manifest, added []int) (json.RawMessage, error) {
	type rootfs struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	}
	read := func(p *repository, d descriptor) (doc map[string]json.RawMessage, fs rootfs, err error) {
		body, err := p.small(ctx, d)
		if err != nil {
			return nil, fs, err
		}
		if json.Unmarshal(body, &doc) != nil || json.Unmarshal(doc["rootfs"], &fs) != nil {
			return nil, fs, nil
		}
		return doc, fs, nil
	}
	doc, fs, err := read(to, *there.config)
	if err != nil || doc == nil {
		return nil, err
	}
	_, sourceFS, err := read(from, *more.config)
	if err != nil {
		return nil, err
	}
	var history []json.RawMessage
	if doc["history"] != nil && json.Unmarshal(doc["history"], &history) != nil {
		history = nil
	}
	for _, i := range added {
		// The layers of these manifests are not compressed, so that the blob's
		// digest is its diff id.
		id := string(more.layers[i].Digest)
		if len(sourceFS.DiffIDs) == len(more.layers) {
			id = sourceFS.DiffIDs[i]
		}
		fs.DiffIDs = append(fs.DiffIDs, id)
		history = append(history, json.RawMessage(`{"created":"0001-01-01T00:00:00Z"}`))
	}
	for key, v := range map[string]any{"rootfs": fs, "history": history} {
		if doc[key], err = json.Marshal(v); err != nil {
			return nil, err
		}
	}
	body, err := json.Marshal(doc)
	if err != nil {
		return nil, err
	}
	d := descriptor{MediaType: there.config.MediaType, Digest: hash(body), Size: int64(len(body))}
	if err := to.push(ctx, d, body); err != nil {
		return nil, err
	}
	return json.Marshal(d)
}
