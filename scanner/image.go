//go:build goexperiment.jsonv2

package scanner

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
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
	ctx    context.Context
	image  pipeline.Image
	config *v1.ConfigFile
	// digests of the compressed layers by those of the uncompressed ones.
	digests map[string]string
	slots   chan struct{}
	max     int64
	read    atomic.Int64

	mu       sync.Mutex
	verified map[string]bool
	failed   error
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
		Image: img, ctx: ctx, image: image, config: config, digests: digests,
		slots: s.slots, max: s.cfg.MaxImageSize, verified: map[string]bool{},
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
	for _, l := range m.Layers {
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
	return &layerReader{layer: l, rc: rc, hash: sha256.New()}, nil
}

// layerReader hashes what passes, and counts it against the image's bound.
type layerReader struct {
	layer *remoteLayer
	rc    io.ReadCloser
	hash  hash.Hash
	once  sync.Once
	err   error
}

func (r *layerReader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	n, err := r.rc.Read(p)
	r.hash.Write(p[:n])
	image, diffID := r.layer.image, r.layer.diffID
	if image.read.Add(int64(n)) > image.max {
		r.err = image.fail(pipeline.Permanent(fmt.Errorf(
			"unpacked, it has more than %d bytes, which is what the scanner reads at most (raise its maximum image size if the image is right)", image.max)))
		return 0, r.err
	}
	switch {
	case err == nil:
		return n, nil
	case !errors.Is(err, io.EOF):
		r.err = image.fail(fmt.Errorf("layer %s: %w", diffID, err))
		return n, r.err
	}
	r.err = io.EOF
	if got := fmt.Sprintf("%x", r.hash.Sum(nil)); diffID.Algorithm != "sha256" || got != diffID.Hex {
		r.err = image.fail(pipeline.Permanent(fmt.Errorf(
			"layer %s unpacks to sha256:%s: the image's configuration and its layers do not belong together", diffID, got)))
		return n, r.err
	}
	image.mu.Lock()
	image.verified[diffID.String()] = true
	image.mu.Unlock()
	return n, io.EOF
}

func (r *layerReader) Close() error {
	err := r.rc.Close()
	r.once.Do(func() { <-r.layer.image.slots })
	return err
}

// layerCache is the analysis of layers, into which only those go that were read
// to their end and are what they were said to be. Trivy does not mind an error
// behind the end of the archive.
type layerCache struct {
	cache.FSCache
	in *inspector
}

func (c layerCache) PutBlob(ctx context.Context, id string, blob ftypes.BlobInfo) error {
	if err := c.in.check(blob.DiffID); err != nil {
		return err
	}
	return c.FSCache.PutBlob(ctx, id, blob)
}

// check returns nil if the layer was read to its end and is what the
// configuration says, and nothing else went wrong.
func (i *remoteImage) check(diffID string) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch {
	case i.failed != nil:
		return i.failed
	case !i.verified[diffID]:
		return fmt.Errorf("layer %s was not read to its end", diffID)
	}
	return nil
}
