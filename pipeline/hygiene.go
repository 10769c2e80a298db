package pipeline

// Hygiene is what a platform's image shows of how it was made: what is in it
// that an attacker would be glad of, and what it costs to carry. It is read
// from the image itself; nothing that a build says of itself counts.
type Hygiene struct {
	// Shells and PackageManagers are the paths of programs that are present in
	// the image as it runs (not of those that a later layer removed), sorted.
	Shells          []string `json:"shells"`
	PackageManagers []string `json:"packageManagers"`
	// Setuid are the regular files with the set-user-id or set-group-id bit.
	Setuid []string `json:"setuid"`
	// Secrets that stand in the configuration; their values are not kept.
	Secrets []ConfigSecret `json:"secrets"`
	// Healthcheck: the configuration has one, and it is not NONE.
	Healthcheck bool `json:"healthcheck"`
	// Size is the sum of the layers as they are unpacked, Compressed as they
	// are stored, in bytes.
	Size       int64 `json:"size"`
	Compressed int64 `json:"compressed"`
	// Wasted is how many of Size's bytes are in files that a later layer
	// replaces or removes: for each path, the sum of its sizes over the layers
	// less the smallest of them, where the path occurs more than once.
	Wasted int64        `json:"wasted"`
	Layers []ImageLayer `json:"layers"`
}

// ConfigSecret is something that looks like a secret in an image's configuration.
type ConfigSecret struct {
	// Where it stands: "env", "label" or "history".
	Where string `json:"where"`
	// Name of the variable or label, or the number of the history entry.
	Name string `json:"name"`
	// Rule that recognised it: "aws-access-key-id", "name", …
	Rule string `json:"rule"`
}

// ImageLayer is one layer of an image, from the bottom up.
type ImageLayer struct {
	Digest Digest `json:"digest"` // as it is stored
	DiffID Digest `json:"diffID"` // as it is unpacked
	// Size and Compressed are in bytes.
	Size       int64  `json:"size"`
	Compressed int64  `json:"compressed"`
	CreatedBy  string `json:"createdBy,omitempty"`
}

// LintFinding is something that BuildKit's checks object to in a Dockerfile.
type LintFinding struct {
	// Rule by its name: "SecretsUsedInArgOrEnv".
	Rule string `json:"rule"`
	// Line counts from 1; 0 when the finding is about no line.
	Line   int    `json:"line,omitempty"`
	Detail string `json:"detail"`
	// Remedy says what to write instead.
	Remedy string `json:"remedy,omitempty"`
	URL    string `json:"url,omitempty"`
}
