package evidence

import (
	"encoding/json"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/dray-project/dray/pipeline"
)

// Version of the bundle's format; docs/evidence.md describes it.
const Version = 1

// PredicateInventory is the predicate type of the statement by which a Dray says
// what a bundle holds, so that nothing can be taken out of it or put into it.
const PredicateInventory = "https://github.com/dray-project/dray/blob/main/docs/evidence.md#inventory-v1"

// Names of files that every bundle has, or has at most one of.
const (
	ManifestName   = "manifest.json"
	InventoryName  = "manifest.dsse.json"
	ImageName      = "image.json"
	ScanName       = "scan.json"
	RegistryName   = "registry.json"
	CheckpointName = "log/checkpoint"
	SigningKeyName = "keys/cosign.pub"
	LogKeyName     = "keys/log.pub"
)

// Role says what a file is.
type Role string

// The roles. Each has its place in the bundle.
const (
	RoleBlob       Role = "blob"       // blobs/sha256/<hex>: manifests, configs, signatures, attestations as the registry holds them
	RoleRegistry   Role = "registry"   // registry.json: which of the blobs are manifests, and the tags
	RoleImage      Role = "image"      // image.json
	RoleScan       Role = "scan"       // scan.json
	RoleSBOM       Role = "sbom"       // sboms/<hex of the platform's digest>.cdx.json
	RoleDecision   Role = "decision"   // decisions/<run or promotion>.json
	RolePromotion  Role = "promotion"  // promotions/<promotion>.json
	RolePolicy     Role = "policy"     // policies/<version>.json
	RoleException  Role = "exception"  // exceptions/<id>.json
	RoleVEX        Role = "vex"        // vex/<id>.json
	RoleCheckpoint Role = "checkpoint" // log/checkpoint
	RoleEntry      Role = "entry"      // log/<index>.json: a leaf, byte by byte
	RoleProof      Role = "proof"      // log/<index>.tlog-proof
	RoleKey        Role = "key"        // keys/*: for information, no verifier trusts them
)

// Manifest lists what a bundle holds.
type Manifest struct {
	Version int            `json:"version"`
	Project string         `json:"project"`
	Image   pipeline.Image `json:"image"`
	// CollectedAt is when the bundle was made, by the server's clock.
	CollectedAt time.Time `json:"collectedAt"`
	// Omitted says in words what there is and the bundle does not hold.
	Omitted []string `json:"omitted"`
	// Files in the order of their names, which is their order in the bundle.
	Files []File `json:"files"`
}

// File is one file of a bundle.
type File struct {
	Name   string          `json:"name"`
	Role   Role            `json:"role"`
	Size   int64           `json:"size"`
	SHA256 pipeline.Digest `json:"digest"`
}

// Limits bound what a bundle may be. Zero fields take their defaults.
type Limits struct {
	// Bundle is the whole file; 1 GiB.
	Bundle int64
	// File is one file in it; 64 MiB.
	File int64
	// Files is how many there may be; 20,000.
	Files int
}

const (
	maxManifest  = 8 << 20
	maxInventory = 1 << 20
)

func (l Limits) withDefaults() Limits {
	if l.Bundle <= 0 {
		l.Bundle = 1 << 30
	}
	if l.File <= 0 {
		l.File = 64 << 20
	}
	if l.Files <= 0 {
		l.Files = 20_000
	}
	return l
}

// check refuses a manifest that no Collector writes.
func (m Manifest) check(l Limits) error {
	if m.Version != Version {
		return fmt.Errorf("it is of format version %d, and only %d is known here", m.Version, Version)
	}
	if _, err := pipeline.ParseImage(m.Image.String()); err != nil {
		return err
	}
	if len(m.Files) > l.Files {
		return fmt.Errorf("it lists %d files, more than the limit of %d", len(m.Files), l.Files)
	}
	var total int64
	for i, f := range m.Files {
		if i > 0 && f.Name <= m.Files[i-1].Name {
			return fmt.Errorf("file %.100q does not come after %.100q: names are in order, each once", f.Name, m.Files[i-1].Name)
		}
		if role, ok := roleOf(f.Name); !ok || role != f.Role {
			return fmt.Errorf("file %.100q is not the name of a %.40q", f.Name, f.Role)
		}
		if _, err := pipeline.ParseDigest(string(f.SHA256)); err != nil {
			return fmt.Errorf("file %s: %w", f.Name, err)
		}
		if hex, ok := strings.CutPrefix(f.Name, blobPrefix); ok && hex != f.SHA256.Hex() {
			return fmt.Errorf("file %s has the digest %s", f.Name, f.SHA256)
		}
		if f.Size < 0 || f.Size > l.File {
			return fmt.Errorf("file %s has %d bytes, the limit is %d", f.Name, f.Size, l.File)
		}
		if total += f.Size; total > l.Bundle {
			return fmt.Errorf("its files have more than %d bytes", l.Bundle)
		}
	}
	return nil
}

const blobPrefix = "blobs/sha256/"

// roleOf is the role of the file of that name. ok is false for a name that no
// bundle has: "../x" is one of them.
func roleOf(name string) (role Role, ok bool) {
	switch name {
	case RegistryName:
		return RoleRegistry, true
	case ImageName:
		return RoleImage, true
	case ScanName:
		return RoleScan, true
	case CheckpointName:
		return RoleCheckpoint, true
	case SigningKeyName, LogKeyName:
		return RoleKey, true
	}
	dir, base := path.Split(name)
	id, json := strings.CutSuffix(base, ".json")
	switch dir {
	case blobPrefix:
		_, err := pipeline.ParseDigest("sha256:" + base)
		return RoleBlob, err == nil
	case "sboms/":
		hex, cdx := strings.CutSuffix(base, ".cdx.json")
		_, err := pipeline.ParseDigest("sha256:" + hex)
		return RoleSBOM, cdx && err == nil
	case "log/":
		if index, proof := strings.CutSuffix(base, ".tlog-proof"); proof {
			return RoleProof, isNumber(index)
		}
		return RoleEntry, json && isNumber(id)
	case "policies/":
		return RolePolicy, json && isNumber(id)
	}
	for prefix, r := range map[string]Role{"decisions/": RoleDecision, "promotions/": RolePromotion, "exceptions/": RoleException, "vex/": RoleVEX} {
		if dir == prefix {
			return r, json && isID(id)
		}
	}
	return "", false
}

// isID: "run_06f3n8w2c41r0kd7t9qh" and the like.
func isID(s string) bool {
	return len(s) <= 60 && s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789_-") == ""
}

func isNumber(s string) bool {
	return len(s) <= 18 && s != "" && strings.Trim(s, "0123456789") == "" && (s == "0" || s[0] != '0')
}

// Record is image.json: how the image came to be, and what verified when it was
// recorded.
type Record struct {
	Project  string              `json:"project"`
	Run      pipeline.RunID      `json:"run"`
	Recorded time.Time           `json:"recordedAt"`
	Built    pipeline.Built      `json:"built"`
	Verified []pipeline.Verified `json:"verified"`
	// Tags that Dray put on the image, everywhere.
	Tags []pipeline.TagMove `json:"tags"`
}

// Decision is decisions/<job>.json.
type Decision struct {
	// Job is the run or the promotion that asked.
	Job pipeline.JobID `json:"job"`
	// Environment to be entered; empty when an image was built.
	Environment string `json:"environment,omitempty"`
	Action      string `json:"action"`
	// Decision is the last one, unless it is waiting.
	Decision pipeline.Decision `json:"decision"`
	// Diff is what was to change, of which the decision's plan is the digest.
	Diff *pipeline.Diff `json:"diff,omitempty"`
	// Summary is the signed verification summary; nil while it waits.
	Summary *pipeline.Sealed `json:"summary,omitempty"`
}

// Promotion is promotions/<id>.json. Its decision has a file of its own.
type Promotion struct {
	pipeline.Promotion
	// Verified at the destination.
	Verified []pipeline.Verified `json:"verified,omitempty"`
}

// Contents is registry.json: the repository that the blobs are from.
type Contents struct {
	Repository string `json:"repository"`
	// Manifests among the blobs, with their media types.
	Manifests map[pipeline.Digest]string `json:"manifests"`
	// Tags under which cosign keeps what belongs to a digest.
	Tags map[string]pipeline.Digest `json:"tags"`
}

// inventory is the predicate of PredicateInventory.
type inventory struct {
	Project     string            `json:"project"`
	CollectedAt time.Time         `json:"collectedAt"`
	Manifest    map[string]string `json:"manifest"` // {"sha256": hex of manifest.json}
	Files       int               `json:"files"`
}

// encode is the one form in which documents are written.
func encode(v any) ([]byte, error) {
	b, err := json.MarshalIndent(v, "", "  ")
	return append(b, '\n'), err
}
