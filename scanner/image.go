//go:build goexperiment.jsonv2

package scanner

import (
	"context"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aquasecurity/trivy/pkg/cache"
	ftypes "github.com/aquasecurity/trivy/pkg/fanal/types"
	"github.com/aquasecurity/trivy/pkg/types"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/dray-project/dray/pipeline"
)

// Bounds on what describes an image, well beyond what anybody builds.
const (
	maxLayers     = 1000
	maxConfigSize = 16 << 20
)

// remoteImage is an image in a registry as Trivy wants it. Manifest,
// configuration and layers are checked against their digests as they are read,
// and each unpacked layer against the configuration: the analysis of a layer is
// cached under the digest that the configuration claims, and a lie there would
// have another image take over the analysis.
type remoteImage struct {
	v1.Image
	ctx      context.Context
	image    pipeline.Image
	manifest *v1.Manifest
	config   *v1.ConfigFile
	// digests of the compressed layers by those of the uncompressed ones.
	digests map[string]string
	slots   chan struct{}
	max     int64
	read    atomic.Int64

	mu sync.Mutex
	// verified layers, with their lists of files until those are kept.
	verified map[string]readLayer
	failed   error
}

// readLayer is what was learnt of a layer while it was read.
type readLayer struct {
	listing []byte
	size    int64 // unpacked, in bytes
}

var _ ftypes.Image = (*remoteImage)(nil)

func (s *Scanner) open(ctx context.Context, image pipeline.Image) (*remoteImage, error) {
	ref, err := s.cfg.reference(image.String())
	if err != nil {
		return nil, pipeline.Permanent(err)
	}
	desc, err := remote.Get(ref, s.cfg.remote(ctx)...)
	if err != nil {
		return nil, err
	}
	if desc.Digest.String() != string(image.Digest) {
		return nil, fmt.Errorf("the registry answered with manifest %s", desc.Digest)
	}
	if !desc.MediaType.IsImage() {
		return nil, pipeline.Permanent(fmt.Errorf("media type %q is not an image manifest", desc.MediaType))
	}
	img, err := desc.Image()
	if err != nil {
		return nil, err
	}
	manifest, err := img.Manifest()
	if err != nil {
		return nil, pipeline.Permanent(fmt.Errorf("manifest: %w", err))
	}
	if err := checkManifest(manifest); err != nil {
		return nil, pipeline.Permanent(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("configuration %s: %w", manifest.Config.Digest, err)
	}
	if got, want := len(config.RootFS.DiffIDs), len(manifest.Layers); got != want {
		return nil, pipeline.Permanent(fmt.Errorf("the manifest has %d layers and the configuration %d", want, got))
	}
	digests := make(map[string]string, len(manifest.Layers))
	for i, layer := range manifest.Layers {
		digests[config.RootFS.DiffIDs[i].String()] = layer.Digest.String()
	}
	return &remoteImage{
		Image: img, ctx: ctx, image: image, manifest: manifest, config: config, digests: digests,
		slots: s.slots, max: s.cfg.MaxImageSize, verified: map[string]readLayer{},
	}, nil
}

func checkManifest(m *v1.Manifest) error {
	switch {
	case !m.Config.MediaType.IsConfig():
		return fmt.Errorf("configuration media type %q is not an image's", m.Config.MediaType)
	case m.Config.Size > maxConfigSize:
		return fmt.Errorf("the configuration has %d bytes, more than %d", m.Config.Size, maxConfigSize)
	case len(m.Layers) > maxLayers:
		return fmt.Errorf("the image has %d layers, more than %d", len(m.Layers), maxLayers)
	}
	var total int64
	for _, l := range m.Layers {
		if l.Size < 0 || l.Size > math.MaxInt64-total {
			return fmt.Errorf("layer %s is said to have %d bytes", l.Digest, l.Size)
		}
		total += l.Size
		// Following them would let an image send requests from here to anywhere.
		if len(l.URLs) > 0 {
			return fmt.Errorf("layer %s is to be fetched from %s: layers outside of the registry are not read", l.Digest, l.URLs[0])
		}
	}
	return nil
}

func (c Config) remote(ctx context.Context) []remote.Option {
	return []remote.Option{
		remote.WithContext(ctx), remote.WithAuthFromKeychain(c.Keychain), remote.WithTransport(c.Transport),
	}
}

func (i *remoteImage) Name() string          { return i.image.String() }
func (i *remoteImage) RepoTags() []string    { return nil }
func (i *remoteImage) RepoDigests() []string { return []string{i.image.String()} }

func (i *remoteImage) ID() (string, error) {
	h, err := i.ConfigName()
	return h.String(), err
}

// created is when the image says it was made; builds set it to the commit's time.
func (i *remoteImage) created() time.Time {
	if t := i.config.Created.UTC(); t.After(time.Unix(0, 0)) {
		return t
	}
	return time.Unix(0, 0).UTC()
}

// ownLayers names the compressed layers of this image: the cache remembers
// those of whichever image brought the layer first.
func (i *remoteImage) ownLayers(report types.Report) {
	for l := range report.Metadata.Layers {
		report.Metadata.Layers[l].Digest = i.digests[report.Metadata.Layers[l].DiffID]
	}
	for _, result := range report.Results {
		for p := range result.Packages {
			result.Packages[p].Layer.Digest = i.digests[result.Packages[p].Layer.DiffID]
		}
	}
}

// LayerByDiffID returns a layer that checks itself as it is unpacked.
func (i *remoteImage) LayerByDiffID(h v1.Hash) (v1.Layer, error) {
	layer, err := i.Image.LayerByDiffID(h)
	if err != nil {
		return nil, err
	}
	return &remoteLayer{Layer: layer, image: i, diffID: h}, nil
}

// fail keeps the first failure.
func (i *remoteImage) fail(err error) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.failed == nil {
		i.failed = err
	}
	return err
}

func (i *remoteImage) failure() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.failed
}

type remoteLayer struct {
	v1.Layer
	image  *remoteImage
	diffID v1.Hash
}

// Uncompressed waits for a slot, which closing the reader gives back.
func (l *remoteLayer) Uncompressed() (io.ReadCloser, error) {
	select {
	case l.image.slots <- struct{}{}:
	case <-l.image.ctx.Done():
		return nil, l.image.ctx.Err()
	}
	rc, err := l.Layer.Uncompressed()
	if err != nil {
		<-l.image.slots
		return nil, l.image.fail(fmt.Errorf("layer %s: %w", l.diffID, err))
	}
	return newLayerReader(l, rc), nil
}

// layerCache is the analysis of layers, into which only those go that were read
// to their end and are what they were said to be. Trivy does not mind an error
// behind the end of the archive.
type layerCache struct {
	cache.FSCache
	contents contents
	in       *inspector
}

// MissingBlobs are the layers that have to be read, each once: those that were
// never analysed, and those whose list of files is not there although it is
// needed, because they were analysed before such lists were made.
func (c layerCache) MissingBlobs(ctx context.Context, imageID string, ids []string) (bool, []string, error) {
	image, missing, err := c.FSCache.MissingBlobs(ctx, imageID, ids)
	if err != nil {
		return false, nil, err
	}
	layers := c.in.config.RootFS.DiffIDs
	if len(layers) != len(ids) {
		return false, nil, fmt.Errorf("trivy asks for %d layers of %d", len(ids), len(layers))
	}
	_, surveyed := c.contents.image(layers)
	seen := map[string]bool{}
	var read []string
	for i, id := range ids {
		if seen[id] {
			continue
		}
		seen[id] = true
		need := slices.Contains(missing, id)
		if !need && !surveyed {
			_, _, listed := c.contents.layer(layers[i])
			need = !listed
		}
		if need {
			read = append(read, id)
		}
	}
	return image, read, nil
}

// PutBlob keeps the list of files first: the analysis alone would do for another
// scan, which would then lack it.
func (c layerCache) PutBlob(ctx context.Context, id string, blob ftypes.BlobInfo) error {
	read, err := c.in.take(blob.DiffID)
	if err != nil {
		return err
	}
	diffID, err := v1.NewHash(blob.DiffID)
	if err != nil {
		return err
	}
	if err := c.contents.putLayer(diffID, read.listing, read.size); err != nil {
		return err
	}
	return c.FSCache.PutBlob(ctx, id, blob)
}

// take returns what was learnt of a layer if it was read to its end and is what
// the configuration says, and nothing else went wrong.
func (i *remoteImage) take(diffID string) (readLayer, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.failed != nil {
		return readLayer{}, i.failed
	}
	read, ok := i.verified[diffID]
	if !ok {
		return readLayer{}, fmt.Errorf("layer %s was not read to its end", diffID)
	}
	delete(i.verified, diffID)
	return read, nil
}
