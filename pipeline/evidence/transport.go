package evidence

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/dray-project/dray/pipeline"
)

// transport answers a registry's requests (OCI distribution specification 1.1)
// from a bundle, so that what verifies a registry's signatures verifies a bundle's.
// There is no network behind it: what the bundle does not hold is not found.
type transport struct {
	bundle *Bundle
	// prefix is the path of the one repository that there is.
	host, prefix string
	contents     Contents
	referrers    map[pipeline.Digest][]descriptor
}

// newTransport looks at every manifest that the bundle says it has.
func newTransport(b *Bundle, c Contents) (*transport, map[pipeline.Digest]ociManifest, error) {
	host, path, _ := strings.Cut(c.Repository, "/")
	t := &transport{bundle: b, host: host, prefix: "/v2/" + path + "/", contents: c, referrers: map[pipeline.Digest][]descriptor{}}
	parsed := map[pipeline.Digest]ociManifest{}
	for d, mediaType := range c.Manifests {
		raw, err := b.blob(d)
		if err != nil {
			return nil, nil, err
		}
		m, err := parseManifest(raw)
		if err != nil {
			continue // whoever needs it says what is wrong with it
		}
		parsed[d] = m
		if m.Subject == nil {
			continue
		}
		entry := descriptor{MediaType: mediaType, Digest: d, Size: int64(len(raw)), ArtifactType: m.ArtifactType, Annotations: m.Annotations}
		if entry.ArtifactType == "" && m.Config != nil {
			entry.ArtifactType = m.Config.MediaType
		}
		t.referrers[m.Subject.Digest] = append(t.referrers[m.Subject.Digest], entry)
	}
	for _, list := range t.referrers {
		slices.SortFunc(list, func(a, b descriptor) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
	}
	return t, parsed, nil
}

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		_ = r.Body.Close()
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return answer(r, http.StatusMethodNotAllowed, "", nil), nil
	}
	if r.URL.Path == "/v2/" {
		return answer(r, http.StatusOK, "application/json", []byte("{}")), nil
	}
	rest, ok := strings.CutPrefix(r.URL.Path, t.prefix)
	what, ref, _ := strings.Cut(rest, "/")
	if !ok {
		return answer(r, http.StatusNotFound, "", nil), nil
	}
	switch what {
	case "manifests":
		d := pipeline.Digest(ref)
		if tagged, ok := t.contents.Tags[ref]; ok {
			d = tagged
		}
		mediaType, ok := t.contents.Manifests[d]
		if !ok {
			return answer(r, http.StatusNotFound, "", nil), nil
		}
		return t.blob(r, d, mediaType)
	case "blobs":
		return t.blob(r, pipeline.Digest(ref), "application/octet-stream")
	case "referrers":
		const mediaType = "application/vnd.oci.image.index.v1+json"
		body, err := json.Marshal(struct {
			SchemaVersion int          `json:"schemaVersion"`
			MediaType     string       `json:"mediaType"`
			Manifests     []descriptor `json:"manifests"`
		}{2, mediaType, notNil(t.referrers[pipeline.Digest(ref)])})
		if err != nil {
			return nil, err
		}
		return answer(r, http.StatusOK, mediaType, body), nil
	}
	return answer(r, http.StatusNotFound, "", nil), nil
}

func (t *transport) blob(r *http.Request, d pipeline.Digest, mediaType string) (*http.Response, error) {
	if !t.bundle.Has(blobPrefix + d.Hex()) {
		return answer(r, http.StatusNotFound, "", nil), nil
	}
	raw, err := t.bundle.blob(d)
	if err != nil {
		return nil, err
	}
	res := answer(r, http.StatusOK, mediaType, raw)
	res.Header.Set("Docker-Content-Digest", string(d))
	return res, nil
}

func answer(r *http.Request, status int, mediaType string, body []byte) *http.Response {
	res := &http.Response{
		Status: http.StatusText(status), StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{}, ContentLength: int64(len(body)), Request: r, Body: http.NoBody,
	}
	if mediaType != "" {
		res.Header.Set("Content-Type", mediaType)
	}
	res.Header.Set("Content-Length", strconv.Itoa(len(body)))
	if r.Method != http.MethodHead {
		res.Body = io.NopCloser(bytes.NewReader(body))
	}
	return res
}
