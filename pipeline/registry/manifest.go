package registry

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/dray-project/dray/pipeline"
)

// descriptor of the OCI image specification, as far as Dray looks at it.
type descriptor struct {
	MediaType    string            `json:"mediaType"`
	Digest       pipeline.Digest   `json:"digest"`
	Size         int64             `json:"size"`
	URLs         []string          `json:"urls,omitempty"`
	ArtifactType string            `json:"artifactType,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
}

// manifest is an image manifest or an index, checked and with its bytes.
type manifest struct {
	digest    pipeline.Digest
	mediaType string
	body      []byte
	index     bool

	config       *descriptor
	layers       []descriptor
	manifests    []descriptor
	subject      pipeline.Digest // empty when there is none
	artifactType string
	annotations  map[string]string
}

// descriptor as a list of referrers has it (distribution specification,
// "Listing Referrers").
func (m *manifest) descriptor() descriptor {
	d := descriptor{
		MediaType: m.mediaType, Digest: m.digest, Size: int64(len(m.body)),
		ArtifactType: m.artifactType, Annotations: m.annotations,
	}
	if d.ArtifactType == "" && m.config != nil {
		d.ArtifactType = m.config.MediaType
	}
	return d
}

// blobs are the config and the layers.
func (m *manifest) blobs() []descriptor {
	if m.config == nil {
		return m.layers
	}
	return append([]descriptor{*m.config}, m.layers...)
}

func hash(b []byte) pipeline.Digest {
	sum := sha256.Sum256(b)
	return pipeline.Digest("sha256:" + hex.EncodeToString(sum[:]))
}

func acceptManifests() []string {
	return []string{
		string(types.OCIImageIndex), string(types.OCIManifestSchema1),
		string(types.DockerManifestList), string(types.DockerManifestSchema2),
	}
}

// raw is a manifest as it came: hashed, but not looked into.
type raw struct {
	digest      pipeline.Digest
	body        []byte
	contentType string
}

// get reads a manifest by tag or digest. What was asked for by digest has that
// digest, whatever the registry's headers say.
func (p *repository) get(ctx context.Context, ref string) (raw, error) {
	var got raw
	var wrong pipeline.Digest // what came instead, the last time
	err := p.r.again(ctx, func() error {
		res, err := p.do(ctx, request{
			method: http.MethodGet, url: p.url("manifests/"+ref, nil),
			header: http.Header{"Accept": acceptManifests()},
		})
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
		got = raw{digest: hash(body), body: body, contentType: res.Header.Get("Content-Type")}
		if strings.HasPrefix(ref, "sha256:") && ref != string(got.digest) {
			err := &changedError{pipeline.Digest(ref), got.digest}
			if got.digest == wrong {
				return pipeline.Permanent(err) // the same again is no accident of the line
			}
			wrong = got.digest
			return err
		}
		return nil
	})
	if err != nil {
		return got, p.r.explain(p.host, "read manifest", imageName(p, ref), err)
	}
	p.r.cache.put(p.String(), got)
	return got, nil
}

// accepted is what a registry says when it takes a manifest.
type accepted struct {
	digest  string // Docker-Content-Digest
	subject string // OCI-Subject: it keeps the manifest in its list of referrers
}

// put writes a manifest under a tag or its digest. It does not read it back.
func (p *repository) put(ctx context.Context, ref, mediaType string, body []byte) (accepted, error) {
	var said accepted
	err := p.r.again(ctx, func() error {
		res, err := p.do(ctx, request{
			method: http.MethodPut, url: p.url("manifests/"+ref, nil),
			header: http.Header{"Content-Type": {mediaType}}, body: bytes.NewReader(body),
		})
		if err != nil {
			return err
		}
		defer closeBody(res)
		if err := checkStatus(res, http.StatusCreated, http.StatusOK, http.StatusAccepted, http.StatusNoContent); err != nil {
			return err
		}
		said = accepted{digest: res.Header.Get("Docker-Content-Digest"), subject: res.Header.Get("OCI-Subject")}
		return nil
	})
	if err != nil {
		s := (*statusError)(nil)
		lacking := errors.As(err, &s) && (s.has("MANIFEST_BLOB_UNKNOWN") || s.has("BLOB_UNKNOWN") || s.has("MANIFEST_UNKNOWN"))
		if err = p.r.explain(p.host, "write manifest", imageName(p, ref), err); lacking {
			err = fmt.Errorf("%w%w", err, silent{errNotThere})
		}
		return accepted{}, err
	}
	p.r.cache.put(p.String(), raw{digest: hash(body), body: body, contentType: mediaType})
	return said, nil
}

// errNotThere: a repository lacks what it accepted, or refused a manifest because
// it lacks what that names.
var errNotThere = errors.New("it is not there")

// confirm reads a manifest back after a PUT.
func (p *repository) confirm(ctx context.Context, ref string, want pipeline.Digest) error {
	got, err := p.get(ctx, ref)
	switch {
	case errors.Is(err, pipeline.ErrNotFound):
		return fmt.Errorf("registry %s accepted %s but does not have it%w", p.host, imageName(p, ref), silent{errNotThere})
	case err != nil:
		return fmt.Errorf("read back what was written: %w", err)
	}
	if got.digest != want {
		return fmt.Errorf("read back %s: it names %s and not %s, which was written: another writer was there, or the registry did not keep it",
			imageName(p, ref), got.digest, want)
	}
	return nil
}

// silent is an error for errors.Is alone, whose words the message has already.
type silent struct{ error }

func (silent) Error() string   { return "" }
func (s silent) Unwrap() error { return s.error }

// cached returns a manifest that this process read in the repository, or wrote
// to it, without asking whether it is still there. What was not is read.
func (p *repository) cached(ctx context.Context, d pipeline.Digest) (raw, error) {
	if got, ok := p.r.cache.get(p.String(), d); ok {
		return got, nil
	}
	return p.get(ctx, string(d))
}

// parse checks a manifest against the limits and the descriptor that led to it
// (which may be empty). What does not pass is refused for good: the same bytes
// must mean the same thing to everybody who reads them.
func (l Limits) parse(got raw, desc descriptor) (*manifest, error) {
	if err := uniqueKeys(got.body); err != nil {
		return nil, refuse("manifest %s: %w", got.digest, err)
	}
	var in struct {
		SchemaVersion int               `json:"schemaVersion"`
		MediaType     string            `json:"mediaType"`
		ArtifactType  string            `json:"artifactType"`
		Config        *descriptor       `json:"config"`
		Layers        *[]descriptor     `json:"layers"`
		Manifests     *[]descriptor     `json:"manifests"`
		FSLayers      json.RawMessage   `json:"fsLayers"`
		Subject       *descriptor       `json:"subject"`
		Annotations   map[string]string `json:"annotations"`
	}
	if err := json.Unmarshal(got.body, &in); err != nil {
		return nil, refuse("manifest %s: %w", got.digest, err)
	}
	m := &manifest{
		digest: got.digest, mediaType: in.MediaType, body: got.body, artifactType: in.ArtifactType, annotations: in.Annotations,
	}
	switch {
	case in.SchemaVersion != 2 || in.FSLayers != nil:
		return nil, refuse("manifest %s: schema version %d is not supported, push the image again with a current tool", got.digest, in.SchemaVersion)
	case in.Layers != nil && in.Manifests != nil, in.Config != nil && in.Manifests != nil:
		return nil, refuse("manifest %s claims to be an image and an index at once", got.digest)
	case in.Manifests != nil:
		m.index, m.manifests = true, *in.Manifests
	case in.Config != nil:
		m.config = in.Config
		if in.Layers != nil {
			m.layers = *in.Layers
		}
	default:
		return nil, refuse("manifest %s is neither an image nor an index", got.digest)
	}
	header, _, _ := mime.ParseMediaType(got.contentType)
	if !isManifest(header) {
		header = "" // "application/json" and the like say nothing
	}
	for _, said := range []string{desc.MediaType, header} {
		if said == "" {
			continue
		}
		if m.mediaType == "" {
			m.mediaType = said
		}
		if m.mediaType != said {
			return nil, refuse("manifest %s says it is %s, but was handed out as %s", got.digest, clean(m.mediaType, 100), clean(said, 100))
		}
	}
	if m.mediaType == "" {
		m.mediaType = string(types.OCIManifestSchema1)
		if m.index {
			m.mediaType = string(types.OCIImageIndex)
		}
	}
	if t := types.MediaType(m.mediaType); t.IsIndex() != m.index || t.IsImage() == m.index {
		return nil, refuse("manifest %s: its media type %s does not fit its content", got.digest, clean(m.mediaType, 100))
	}
	if desc.Digest != "" && desc.Size != int64(len(got.body)) {
		return nil, refuse("manifest %s has %d bytes, its descriptor says %d", got.digest, len(got.body), desc.Size)
	}
	if len(m.manifests) > l.Children {
		return nil, refuse("index %s lists %d manifests, more than the limit of %d", got.digest, len(m.manifests), l.Children)
	}
	if len(m.layers) > l.Layers {
		return nil, refuse("manifest %s lists %d layers, more than the limit of %d", got.digest, len(m.layers), l.Layers)
	}
	if in.Subject != nil {
		if err := checkDescriptor(*in.Subject); err != nil {
			return nil, refuse("manifest %s: subject: %w", got.digest, err)
		}
		m.subject = in.Subject.Digest
	}
	for _, d := range append(m.blobs(), m.manifests...) {
		if err := checkDescriptor(d); err != nil {
			return nil, refuse("manifest %s: %w", got.digest, err)
		}
		if m.index && !isManifest(d.MediaType) {
			return nil, refuse("index %s lists %s of media type %s, which is not a manifest", got.digest, d.Digest, clean(d.MediaType, 100))
		}
	}
	return m, nil
}

func isManifest(mediaType string) bool {
	t := types.MediaType(mediaType)
	return t.IsImage() || t.IsIndex()
}

func checkDescriptor(d descriptor) error {
	if _, err := pipeline.ParseDigest(string(d.Digest)); err != nil {
		return fmt.Errorf("descriptor: %w", err)
	}
	switch {
	case d.Size < 0:
		return fmt.Errorf("descriptor of %s: size %d", d.Digest, d.Size)
	case len(d.URLs) > 0 || !types.MediaType(d.MediaType).IsDistributable() || strings.Contains(d.MediaType, ".nondistributable."):
		return fmt.Errorf("%s is kept elsewhere (a foreign layer): such images cannot be copied whole; build without foreign layers", d.Digest)
	}
	return nil
}

// uniqueKeys refuses JSON objects with a key twice, or with more after the
// document: readers differ in what they make of that.
func uniqueKeys(body []byte) error {
	dec := json.NewDecoder(bytes.NewReader(body))
	var walk func(depth int, fold bool) error
	walk = func(depth int, fold bool) error {
		if depth > 32 {
			return fmt.Errorf("JSON is nested deeper than 32")
		}
		tok, err := dec.Token()
		if err != nil {
			return err
		}
		switch tok {
		case json.Delim('{'):
			seen := map[string]bool{}
			for dec.More() {
				key, err := dec.Token()
				if err != nil {
					return err
				}
				k, _ := key.(string)
				// Some readers match the names of the specification in any case.
				if fold {
					k = strings.ToLower(k)
				}
				if seen[k] {
					return fmt.Errorf("JSON has the key %q twice", clean(k, 60))
				}
				seen[k] = true
				if err := walk(depth+1, fold && k != "annotations"); err != nil {
					return err
				}
			}
			_, err = dec.Token()
		case json.Delim('['):
			for dec.More() {
				if err := walk(depth+1, fold); err != nil {
					return err
				}
			}
			_, err = dec.Token()
		}
		return err
	}
	if err := walk(0, true); err != nil {
		return err
	}
	if _, err := dec.Token(); err != io.EOF {
		return fmt.Errorf("JSON is followed by something else")
	}
	return nil
}
