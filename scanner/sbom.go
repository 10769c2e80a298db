//go:build goexperiment.jsonv2

package scanner

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
	"github.com/aquasecurity/trivy/pkg/clock"
	"github.com/aquasecurity/trivy/pkg/sbom/cyclonedx"
	"github.com/aquasecurity/trivy/pkg/types"
	"github.com/google/uuid"

	"github.com/dray-project/dray/pipeline"
)

// cycloneDX writes the SBOM of an image. It is attested, and an attempt that is
// repeated must not attest something else, so nothing in it is random or of
// the moment: the serial number comes from the image's digest, the time is the
// image's, and vulnerabilities, which change daily, are left to the report.
func cycloneDX(ctx context.Context, report types.Report, digest pipeline.Digest, created time.Time) (json.RawMessage, error) {
	report.Results = slices.Clone(report.Results)
	for i := range report.Results {
		report.Results[i].Vulnerabilities = nil
	}
	marshaler := cyclonedx.NewMarshaler(trivyVersion)
	bom, err := marshaler.MarshalReport(clock.With(ctx, created), report)
	if err != nil {
		return nil, err
	}
	if bom.Metadata == nil || bom.Metadata.Component == nil || bom.Components == nil || bom.Dependencies == nil {
		return nil, fmt.Errorf("trivy's document for %s lacks its root, components or dependencies", digest)
	}
	bom.Vulnerabilities = nil
	// RFC 9562 names of the digest: the same image, the same serial number.
	names := uuid.NewSHA1(uuid.NameSpaceOID, []byte(digest))
	bom.SerialNumber = names.URN()
	stableRefs(bom, names)

	var out bytes.Buffer
	if err := cdx.NewBOMEncoder(&out, cdx.BOMFileFormatJSON).SetEscapeHTML(false).Encode(bom); err != nil {
		return nil, err
	}
	return json.RawMessage(bytes.TrimSpace(out.Bytes())), nil
}

// stableRefs replaces the random references that Trivy gives to components
// without a package URL of their own (the operating system, a binary, the same
// package in two places). Their new names are hashes of what they are and of
// what they are connected with.
func stableRefs(bom *cdx.BOM, names uuid.UUID) {
	labels := map[string]string{} // by reference
	each(bom, func(c *cdx.Component) {
		labels[c.BOMRef] = label(*c)
	})
	// Components that look alike are told apart by their neighbours, and those
	// by theirs. The graph is a few levels deep; four rounds reach all of it.
	for range 4 {
		next := make(map[string]string, len(labels))
		near := map[string][]string{}
		for _, d := range *bom.Dependencies {
			for _, to := range dependencies(d) {
				near[d.Ref] = append(near[d.Ref], ">"+labels[to])
				near[to] = append(near[to], "<"+labels[d.Ref])
			}
		}
		for ref, l := range labels {
			slices.Sort(near[ref])
			next[ref] = sum(l + "\n" + strings.Join(near[ref], "\n"))
		}
		labels = next
	}

	var random []string
	for ref := range labels {
		if _, err := uuid.Parse(ref); err == nil {
			random = append(random, ref)
		}
	}
	slices.SortFunc(random, func(a, b string) int { return cmp.Compare(labels[a], labels[b]) })
	renamed := make(map[string]string, len(random))
	for i, ref := range random {
		// The index tells true twins apart, which may swap without a difference.
		renamed[ref] = uuid.NewSHA1(names, fmt.Appendf(nil, "%s %d", labels[ref], i)).String()
	}
	rename := func(ref string) string {
		if to, ok := renamed[ref]; ok {
			return to
		}
		return ref
	}

	each(bom, func(c *cdx.Component) { c.BOMRef = rename(c.BOMRef) })
	for i := range *bom.Dependencies {
		d := &(*bom.Dependencies)[i]
		d.Ref = rename(d.Ref)
		if d.Dependencies != nil {
			for j, to := range *d.Dependencies {
				(*d.Dependencies)[j] = rename(to)
			}
			slices.Sort(*d.Dependencies)
		}
	}
	slices.SortFunc(*bom.Components, func(a, b cdx.Component) int { return cmp.Compare(a.BOMRef, b.BOMRef) })
	slices.SortFunc(*bom.Dependencies, func(a, b cdx.Dependency) int { return cmp.Compare(a.Ref, b.Ref) })
}

func each(bom *cdx.BOM, visit func(*cdx.Component)) {
	visit(bom.Metadata.Component)
	for i := range *bom.Components {
		visit(&(*bom.Components)[i])
	}
}

func dependencies(d cdx.Dependency) []string {
	if d.Dependencies == nil {
		return nil
	}
	return *d.Dependencies
}

// label is what a component is, but for a random reference.
func label(c cdx.Component) string {
	if _, err := uuid.Parse(c.BOMRef); err != nil {
		return sum(c.BOMRef)
	}
	c.BOMRef = ""
	raw, err := json.Marshal(c)
	if err != nil {
		// Strings and slices of strings: encoding them does not fail.
		return sum(c.Name + "@" + c.Version)
	}
	return sum(string(raw))
}

func sum(s string) string {
	h := sha256.Sum256([]byte(s))
	return hex.EncodeToString(h[:])
}
