package evidence

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/dray-project/dray/pipeline"
)

// part is one manifest that has to be signed: the index or a platform's.
type part struct {
	digest   pipeline.Digest
	platform pipeline.Platform // empty for the index
}

func (p part) String() string {
	if p.platform == "" {
		return "index"
	}
	return string(p.platform)
}

// parts are the index and what it lists, as the index itself says: not as the
// record does.
func (v *verification) parts() []part {
	parts := []part{{digest: v.image}}
	for _, d := range v.parsed[v.image].Manifests {
		parts = append(parts, part{d.Digest, pipeline.Platform(d.Platform.String())})
	}
	return parts
}

// manifests: the image's own documents are here, and say of one another what the
// record says of them.
func (v *verification) manifests() {
	const claim = "manifests"
	if v.record == nil {
		v.fail(claim, "index", "%s is not in the bundle", ImageName)
	}
	if v.contents == nil {
		v.fail(claim, "index", "the image's manifests are not in the bundle")
		v.contents = &Contents{Repository: v.Manifest.Image.Repository}
	}
	t, parsed, err := newTransport(v.Bundle, *v.contents)
	if err != nil {
		v.fail(claim, "index", "%v", err)
		return
	}
	v.transport, v.parsed = t, parsed
	index, ok := parsed[v.image]
	if !ok {
		v.fail(claim, "index", "the manifest %s is not in the bundle", v.image)
		return
	}
	var listed []string
	for _, d := range index.Manifests {
		p := d.Platform.String()
		listed = append(listed, p)
		if err := v.platform(d); err != nil {
			v.fail(claim, p, "%v", err)
		} else {
			v.pass(claim, p, "%s, with its config; layers are named by digest", d.Digest)
		}
	}
	if v.record == nil {
		return
	}
	var recorded []string
	for _, p := range v.record.Built.Platforms {
		if !slices.ContainsFunc(index.Manifests, func(d descriptor) bool {
			return d.Digest == p.Digest && d.Platform.String() == string(p.Platform) && d.Size == p.Size
		}) {
			v.fail(claim, string(p.Platform), "the record has %s, which the index does not list so", p.Digest)
		}
		recorded = append(recorded, string(p.Platform))
	}
	if len(recorded) != len(listed) {
		v.fail(claim, "index", "it lists %s, the record has %s", strings.Join(listed, ", "), strings.Join(recorded, ", "))
		return
	}
	v.pass(claim, "index", "%s lists %s", v.image, strings.Join(listed, ", "))
}

func (v *verification) platform(d descriptor) error {
	m, ok := v.parsed[d.Digest]
	if !ok {
		return fmt.Errorf("its manifest %s is not in the bundle", d.Digest)
	}
	raw, err := v.blob(d.Digest)
	if err != nil {
		return err
	}
	if int64(len(raw)) != d.Size || m.Config == nil {
		return fmt.Errorf("manifest %s is not what the index says of it", d.Digest)
	}
	config, err := v.blob(m.Config.Digest)
	if err != nil {
		return err
	}
	var is platform
	if err := json.Unmarshal(config, &is); err != nil {
		return fmt.Errorf("config %s: %w", m.Config.Digest, err)
	}
	if d.Platform == nil || is.OS != d.Platform.OS || is.Architecture != d.Platform.Architecture {
		return fmt.Errorf("config %s is of %s", m.Config.Digest, is.String())
	}
	return nil
}

// signatures: the index and every platform are signed by a trusted key.
func (v *verification) signatures() {
	const claim = "signature"
	v.verified = map[pipeline.Digest]pipeline.Verified{}
	for _, p := range v.parts() {
		found, err := v.trust.Signatures(v.ctx, v.transport, pipeline.Image{Repository: v.contents.Repository, Digest: p.digest})
		if err != nil {
			v.fail(claim, p.String(), "%v", err)
			continue
		}
		v.verified[p.digest] = found
		var by []string
		for _, s := range found.Signatures {
			if one := fmt.Sprintf("key %s (%s layout)", short(s.KeyID), s.Layout); !slices.Contains(by, one) {
				by = append(by, one)
			}
		}
		v.pass(claim, p.String(), "%s", strings.Join(by, ", "))
	}
}

// attested are the verified statements of a type about one part.
func (v *verification) attested(p part, predicateType string) (statements []json.RawMessage) {
	found := v.verified[p.digest]
	var seen []pipeline.Digest
	for _, a := range found.Attestations {
		if a.PredicateType == predicateType && !slices.Contains(seen, a.Statement) {
			seen = append(seen, a.Statement)
			statements = append(statements, found.Statements[a.Statement])
		}
	}
	return statements
}

// provenance: the index and every platform say by whom, and from what, they were
// built, and it is what the record says.
func (v *verification) provenance() {
	const claim = "provenance"
	for _, p := range v.parts() {
		statements := v.attested(p, pipeline.PredicateProvenance)
		if len(statements) == 0 {
			v.fail(claim, p.String(), "no provenance by a trusted key is in the bundle")
			continue
		}
		var why error
		for _, s := range statements {
			var read pipeline.Provenance
			if read, why = pipeline.ReadProvenance(s); why == nil {
				why = v.built(read)
			}
			if why == nil {
				v.pass(claim, p.String(), "built by %s from %s, %s at commit %s", read.Builder, read.Source, read.Ref, read.Commit)
				break
			}
		}
		if why != nil {
			v.fail(claim, p.String(), "%v", why)
		}
	}
	if v.trust.Builder == "" || v.trust.Source == "" {
		v.absent(claim, "", "whether that builder and that source are the right ones: compare them, or give --builder and --source")
	}
}

func (v *verification) built(p pipeline.Provenance) error {
	switch {
	case v.trust.Builder != "" && p.Builder != v.trust.Builder:
		return fmt.Errorf("built by %s, want %s", p.Builder, v.trust.Builder)
	case v.trust.Source != "" && strings.TrimPrefix(p.Source, "git+") != strings.TrimPrefix(v.trust.Source, "git+"):
		return fmt.Errorf("built from %s, want %s", p.Source, v.trust.Source)
	case v.record != nil && p.Commit != v.record.Built.Source.Commit:
		return fmt.Errorf("built from commit %s, the record says %s", p.Commit, v.record.Built.Source.Commit)
	}
	return nil
}

// sboms: every platform's SBOM was attested, and the one in the bundle is it.
func (v *verification) sboms() {
	const claim = "sbom"
	for _, p := range v.parts() {
		statements := v.attested(p, pipeline.PredicateCycloneDX)
		if len(statements) == 0 {
			v.fail(claim, p.String(), "no SBOM by a trusted key is in the bundle")
			continue
		}
		if p.platform == "" {
			v.pass(claim, p.String(), "an SBOM of all platforms is attested")
			continue
		}
		name := "sboms/" + p.digest.Hex() + ".cdx.json"
		raw, err := v.Read(name)
		if errors.Is(err, pipeline.ErrNotFound) {
			v.absent(claim, p.String(), "an SBOM is attested; there is no copy of it in %s", name)
			continue
		}
		if err == nil {
			err = sameSBOM(raw, statements)
		}
		if err != nil {
			v.fail(claim, p.String(), "%s: %v", name, err)
			continue
		}
		v.pass(claim, p.String(), "%s is what was attested", name)
	}
}

// sameSBOM: the document is the predicate of one of the statements, but for the
// white space.
func sameSBOM(raw []byte, statements []json.RawMessage) error {
	want, err := compact(raw)
	if err != nil {
		return err
	}
	for _, s := range statements {
		var st struct {
			Predicate json.RawMessage `json:"predicate"`
		}
		if err := json.Unmarshal(s, &st); err != nil {
			return err
		}
		if have, err := compact(st.Predicate); err == nil && bytes.Equal(have, want) {
			return nil
		}
	}
	return errors.New("it is not what was attested")
}

// compact is a document without what does not count: white space, and how
// characters are escaped.
func compact(raw []byte) ([]byte, error) {
	var v any
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	if err := dec.Decode(&v); err != nil {
		return nil, err
	}
	return json.Marshal(v)
}

// scan: what the scanner found is here, and is what the build's decision was
// made on.
func (v *verification) scan() {
	const claim = "scan"
	if v.report == nil {
		v.fail(claim, "", "%s is not in the bundle", ScanName)
		return
	}
	r := v.report
	for _, p := range v.parts()[1:] {
		if !slices.ContainsFunc(r.Platforms, func(x pipeline.PlatformReport) bool { return x.Digest == p.digest && x.Platform == p.platform }) {
			v.fail(claim, p.String(), "it was not scanned")
		}
	}
	if r.Database.Digest == "" || r.ScannedAt.IsZero() {
		v.fail(claim, "", "it does not say when, or with which vulnerability database")
		return
	}
	if v.record != nil {
		for _, d := range v.decisions {
			if d.Job == v.record.Run.Job() && d.Decision.Database != r.Database {
				v.fail(claim, "", "it was made with the database %s, and the run's decision with %s", r.Database.Digest, d.Decision.Database.Digest)
				return
			}
		}
	}
	count := r.Count()
	var found []string
	for s := pipeline.SeverityCritical; s >= pipeline.SeverityUnknown; s-- {
		if count[s] > 0 {
			found = append(found, fmt.Sprintf("%d %s", count[s], s))
		}
	}
	if len(found) == 0 {
		found = []string{"nothing known against it"}
	}
	v.pass(claim, "", "%s at %s with database %s of %s: %s", r.Scanner, at(r.ScannedAt), r.Database.Digest.Short(), at(r.Database.UpdatedAt), strings.Join(found, ", "))
}
