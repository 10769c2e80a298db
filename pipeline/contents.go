package pipeline

import "time"

// Content is one manifest or blob of an image's closure.
type Content struct {
	Digest Digest `json:"digest"`
	Size   int64  `json:"size"` // in bytes
	// Manifest is false for a blob.
	Manifest bool `json:"manifest,omitempty"`
	// Subject that the manifest is attached to, as a referrer or by a legacy tag.
	Subject Digest `json:"subject,omitempty"`
}

// Audit is what a registry holds of a closure that was recorded there.
type Audit struct {
	Image Image `json:"image"`
	// Missing cannot be read, or is not what its digest says.
	Missing []Content `json:"missing,omitempty"`
	// Unlisted are referrers that can be read but are not in their subject's
	// list of referrers, so that nobody would find them.
	Unlisted []Content `json:"unlisted,omitempty"`
}

// Intact reports whether everything is there and can be found.
func (a Audit) Intact() bool { return len(a.Missing)+len(a.Unlisted) == 0 }

// Capability is what a probe learnt: "yes", "no" or "unknown".
type Capability string

// What a probe can say.
const (
	CapabilityYes     Capability = "yes"
	CapabilityNo      Capability = "no"
	CapabilityUnknown Capability = "unknown"
)

// RegistryProbe is what one registry can do, as it was tried in one repository.
type RegistryProbe struct {
	Host       string    `json:"host"`
	Repository string    `json:"repository"` // that the probe wrote to
	ProbedAt   time.Time `json:"probedAt"`
	// Error says why the probe could not be finished; empty when it was.
	Error string `json:"error,omitempty"`
	// Referrers: the OCI 1.1 referrers API is served.
	Referrers Capability `json:"referrers"`
	// Mount: a blob of another repository is taken over without sending it.
	Mount Capability `json:"mount"`
	// Delete: manifests can be deleted.
	Delete Capability `json:"delete"`
	// ImmutableTags: a tag that exists is not moved.
	ImmutableTags Capability `json:"immutableTags"`
	// MaxManifest is the largest manifest that was accepted, in bytes, of those
	// that were tried (up to 4 MiB).
	MaxManifest int64 `json:"maxManifest,omitempty"`
	// Notes says in words what is unusual: a rate limit that it announces, a
	// probe manifest that could not be removed.
	Notes []string `json:"notes,omitempty"`
}

// Manifest is an image manifest or an index, byte by byte.
type Manifest struct {
	Digest    Digest
	MediaType string
	Body      []byte
}

// Closure is what a repository holds of an image: its manifests and those that
// are attached to them, in the order of their digests. Blobs are not in it.
type Closure struct {
	Image     Image
	Manifests []Manifest
	// Tags under which cosign keeps what belongs to a digest, and what they name.
	Tags map[string]Digest
}
