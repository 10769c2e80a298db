package verify

import (
	"strings"

	"github.com/dray-project/dray/pipeline"
)

// TrustedRoot is the file that cosign v2.6 asks for with --trusted-root before
// it looks at a bundle, even when a key is given: a root that trusts nobody.
func TrustedRoot() []byte {
	return []byte(`{"mediaType":"application/vnd.dev.sigstore.trustedroot+json;version=0.1"}` + "\n")
}

// Command is one command line of an ordinary user's cosign.
type Command struct {
	// Version of cosign that it is for: "2.6" or "3".
	Version string
	// Checks says what it verifies: "signature" or the predicate type.
	Checks string
	// Args begin with "cosign".
	Args []string
}

// String is the command as it is typed into a shell.
func (c Command) String() string {
	quoted := make([]string, len(c.Args))
	for i, a := range c.Args {
		quoted[i] = a
		if a == "" || strings.Trim(a, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+=./:@,%") != "" {
			quoted[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
	}
	return strings.Join(quoted, " ")
}

// CommandOptions are the paths that commands name.
type CommandOptions struct {
	// Key is the path of the public key.
	Key string
	// TrustedRoot is the path of a file that holds TrustedRoot().
	TrustedRoot string
	// PlainHTTP: the registry has no TLS.
	PlainHTTP bool
	// PredicateTypes of the attestations; empty means provenance and SBOM.
	PredicateTypes []string
}

// cosign's short names for predicate types.
var shortTypes = map[string]string{
	pipeline.PredicateProvenance: "slsaprovenance1",
	pipeline.PredicateCycloneDX:  "cyclonedx",
}

// Commands are what a user types to check the image without Dray, for both
// versions of cosign that are in use. The signatures are by a key and in no
// transparency log, which cosign has to be told.
func Commands(img pipeline.Image, o CommandOptions) []Command {
	types := o.PredicateTypes
	if len(types) == 0 {
		types = []string{pipeline.PredicateProvenance, pipeline.PredicateCycloneDX}
	}
	var all []Command
	for _, version := range []string{"2.6", "3"} {
		common := []string{"--key", o.Key, "--insecure-ignore-tlog=true"}
		if version == "2.6" {
			common = append(common, "--trusted-root", o.TrustedRoot)
		}
		if o.PlainHTTP {
			common = append(common, "--allow-http-registry")
		}
		args := append([]string{"cosign", "verify"}, common...)
		all = append(all, Command{version, "signature", append(args, img.String())})
		for _, t := range types {
			short := t
			if s, ok := shortTypes[t]; ok {
				short = s
			}
			args := append([]string{"cosign", "verify-attestation"}, common...)
			all = append(all, Command{version, t, append(args, "--type", short, img.String())})
		}
	}
	return all
}
