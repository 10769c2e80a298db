package evidence

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/dray-project/dray/pipeline"
)

// Prepared is a bundle that is ready to be written. Nothing can be wrong with it
// any more but the registry.
type Prepared struct {
	Manifest Manifest
	files    []content
}

// Size is how many bytes WriteTo writes.
func (p *Prepared) Size() int64 {
	n := int64(2 * block)
	for _, f := range p.files {
		n += block + f.Size + padding(f.Size)
	}
	return n
}

// Write writes the bundle. Large blobs pass through from the registry and are
// not kept.
func (p *Prepared) Write(w io.Writer) error { return pack(w, p.files) }

// Prepare collects what is known of an image within a project. The database's
// part and the manifests are in memory afterwards, signatures and attestations
// are not.
func (c *Collector) Prepare(ctx context.Context, project string, d pipeline.Digest) (*Prepared, error) {
	p, err := c.prepare(ctx, project, d)
	if err != nil {
		return nil, fmt.Errorf("collect the evidence of %s in %s: %w", d, project, err)
	}
	return p, nil
}

func (c *Collector) prepare(ctx context.Context, project string, d pipeline.Digest) (*Prepared, error) {
	col := &collection{Collector: c, ctx: ctx, project: project, digest: d}
	// What happens to the image meanwhile must not be in the log's part alone: the
	// record is read between two looks at the log, until nothing new lies between.
	before, err := col.settle()
	for try := 0; err == nil; try++ {
		if err = col.record(); err != nil {
			break
		}
		var after checkpoint
		if after, err = col.settle(); err != nil {
			break
		}
		var entries []pipeline.LogEntry
		if entries, err = col.entries(after.tree.N); err != nil {
			break
		}
		if n := len(entries); n == 0 || entries[n-1].Index < before.tree.N {
			err = col.log(after, entries)
			break
		}
		if before = after; try == c.Retries {
			err = fmt.Errorf("it changes all the time: ask again when nothing is going on with it: %w", pipeline.ErrConflict)
		}
	}
	if err != nil {
		return nil, err
	}
	if err := col.registry(); err != nil {
		return nil, err
	}
	col.keys()
	return col.finish()
}

// collection is one bundle in the making.
type collection struct {
	*Collector
	ctx     context.Context
	project string
	digest  pipeline.Digest

	detail  pipeline.ImageDetail
	details []pipeline.PromotionDetail
	// subjects are the ids of what the entries are about.
	subjects []string
	omitted  []string
	files    []content
}

func (c *collection) add(name string, body []byte) {
	role, _ := roleOf(name)
	c.files = append(c.files, content{File: File{Name: name, Role: role, Size: int64(len(body)), SHA256: digestOf(body)}, body: body})
}

func (c *collection) document(name string, v any) error {
	body, err := encode(v)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	c.add(name, body)
	return nil
}

func (c *collection) omit(format string, args ...any) {
	c.omitted = append(c.omitted, fmt.Sprintf(format, args...))
}

// record reads the database's part.
func (c *collection) record() error {
	c.files, c.details, c.subjects, c.omitted = nil, nil, nil, nil
	details, err := c.Store.ImageDetails(c.ctx, c.digest, c.project)
	if err != nil {
		return err
	}
	if len(details) != 1 {
		return fmt.Errorf("%d projects hold it: %w", len(details), pipeline.ErrAmbiguous)
	}
	c.detail = details[0]
	rec, err := c.Store.ImageRecord(c.ctx, c.project, c.digest)
	if err != nil {
		return err
	}
	if err := c.image(rec); err != nil {
		return err
	}
	decisions, err := c.decisions()
	if err != nil {
		return err
	}
	return errors.Join(c.policies(decisions), c.suppressions(decisions))
}

func (c *collection) image(rec pipeline.ImageRecord) error {
	err := c.document(ImageName, Record{
		Project: rec.Project, Run: rec.Run, Recorded: c.detail.RecordedAt, Built: rec.Built,
		Verified: notNil(rec.Verified), Tags: notNil(c.detail.Tags),
	})
	if err != nil {
		return err
	}
	report := rec.Report
	report.Platforms = slices.Clone(report.Platforms)
	for i, p := range report.Platforms {
		if len(p.SBOM) > 0 && string(p.SBOM) != "null" {
			// Byte by byte as it was attested, but for the database's white space.
			c.add("sboms/"+p.Digest.Hex()+".cdx.json", p.SBOM)
		}
		report.Platforms[i].SBOM = nil
	}
	return c.document(ScanName, report)
}

// decisions adds every decision and every promotion.
func (c *collection) decisions() (all []Decision, err error) {
	runs, err := c.Store.RunDecisions(c.ctx, c.project, c.digest)
	if err != nil {
		return nil, err
	}
	for _, r := range runs {
		d := Decision{Job: r.Run.Job(), Action: pipeline.ActionBuild, Decision: r.Decision}
		if len(r.Summary.Envelope) > 0 {
			d.Summary = &r.Summary
		}
		all = append(all, d)
		c.subjects = append(c.subjects, string(r.Run))
	}
	if n := len(c.detail.Promotions); n >= 200 {
		c.omit("promotions older than the newest %d", n)
	}
	for _, listed := range c.detail.Promotions {
		p, err := c.Store.PromotionDetail(c.ctx, listed.ID)
		if err != nil {
			return nil, fmt.Errorf("promotion %s: %w", listed.ID, err)
		}
		c.details = append(c.details, p)
		c.subjects = append(c.subjects, string(p.ID))
		if p.Decision != nil {
			d := Decision{Job: p.ID.Job(), Environment: p.Environment, Action: p.Action, Decision: *p.Decision, Diff: p.Diff}
			if p.Summary != nil && len(p.Summary.Envelope) > 0 {
				d.Summary = p.Summary
			}
			all = append(all, d)
		}
		doc := Promotion{Promotion: p.Promotion, Verified: p.Verified}
		doc.Decision = nil
		if err := c.document("promotions/"+string(p.ID)+".json", doc); err != nil {
			return nil, err
		}
	}
	for _, d := range all {
		if err := c.document("decisions/"+string(d.Job)+".json", d); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// policies adds the project's versions that decisions name.
func (c *collection) policies(decisions []Decision) error {
	done := map[int]bool{}
	for _, d := range decisions {
		version := d.Decision.Policy.Version
		if done[version] {
			continue
		}
		done[version] = true
		v, err := c.Store.ProjectVersion(c.ctx, c.project, version)
		if errors.Is(err, pipeline.ErrNotFound) {
			c.omit("version %d of the project's settings: it is not on record", version)
			continue
		}
		if err != nil {
			return err
		}
		if err := c.document(fmt.Sprintf("policies/%d.json", version), v); err != nil {
			return err
		}
	}
	return nil
}

// suppressions adds the exceptions and VEX documents that let a finding pass.
func (c *collection) suppressions(decisions []Decision) error {
	wanted := map[string]map[string]bool{"exception": {}, "vex": {}}
	for _, d := range decisions {
		for _, f := range d.Decision.Suppressed {
			if f.Suppression != nil && wanted[f.Suppression.By] != nil {
				wanted[f.Suppression.By][f.Suppression.ID] = true
			}
		}
	}
	err := search(wanted["exception"], func(page pipeline.Page) ([]pipeline.Exception, error) {
		return c.Store.Exceptions(c.ctx, c.project, true, page)
	}, func(e pipeline.Exception) string { return e.ID }, func(e pipeline.Exception) error {
		return c.document("exceptions/"+e.ID+".json", e)
	})
	if err == nil {
		err = search(wanted["vex"], func(page pipeline.Page) ([]pipeline.VEXDocument, error) {
			return c.Store.VEXDocuments(c.ctx, c.project, true, page)
		}, func(v pipeline.VEXDocument) string { return v.ID }, func(v pipeline.VEXDocument) error {
			return c.document("vex/"+v.ID+".json", v)
		})
	}
	for kind, ids := range wanted {
		for id, missing := range ids {
			c.subjects = append(c.subjects, id)
			if missing {
				c.omit("%s %s: it is not on record", kind, id)
			}
		}
	}
	slices.Sort(c.omitted)
	return err
}

// search walks a list until everything that is wanted was found; what was is
// false in wanted afterwards.
func search[T any](wanted map[string]bool, fetch func(pipeline.Page) ([]T, error), id func(T) string, add func(T) error) error {
	left := len(wanted)
	for after := ""; left > 0; {
		list, err := fetch(pipeline.Page{Limit: 200, After: after})
		if err != nil {
			return err
		}
		for _, item := range list {
			if wanted[id(item)] {
				wanted[id(item)] = false
				left--
				if err := add(item); err != nil {
					return err
				}
			}
			after = id(item)
		}
		if len(list) < 200 {
			return nil
		}
	}
	return nil
}

// registry adds what a registry holds of the image: where it was built, or where
// it went if it is there no more.
func (c *collection) registry() error {
	places := []pipeline.Image{c.detail.Image}
	for _, p := range c.details {
		if p.Destination != nil && p.State == pipeline.StateSucceeded && !slices.Contains(places, *p.Destination) {
			places = append(places, *p.Destination)
		}
	}
	var closure pipeline.Closure
	var err error
	for _, img := range places {
		if closure, err = c.Registry.Closure(c.ctx, img); err == nil || !errors.Is(err, pipeline.ErrNotFound) {
			break
		}
	}
	if errors.Is(err, pipeline.ErrNotFound) {
		c.omit("the image's manifests, signatures and attestations: no registry that the record names has them any more")
		return nil
	}
	if err != nil {
		return err
	}
	doc := Contents{Repository: closure.Image.Repository, Manifests: map[pipeline.Digest]string{}, Tags: closure.Tags}
	have := map[pipeline.Digest]bool{}
	for _, m := range closure.Manifests {
		doc.Manifests[m.Digest] = m.MediaType
		have[m.Digest] = true
		c.add(blobPrefix+m.Digest.Hex(), m.Body)
	}
	layers := map[pipeline.Digest]int64{}
	for _, m := range closure.Manifests {
		parsed, err := parseManifest(m.Body)
		if err != nil {
			return fmt.Errorf("manifest %s: %w", m.Digest, err)
		}
		for _, b := range parsed.blobs() {
			switch {
			case have[b.Digest]:
			case !parsed.keeps(b) || b.Size > c.Limits.File:
				layers[b.Digest] = b.Size
			default:
				have[b.Digest] = true
				c.files = append(c.files, content{
					File:  File{Name: blobPrefix + b.Digest.Hex(), Role: RoleBlob, Size: b.Size, SHA256: b.Digest},
					write: func(w io.Writer) error { return c.Registry.Blob(c.ctx, closure.Image.Repository, b.Digest, b.Size, w) },
				})
			}
		}
	}
	if n := len(layers); n > 0 {
		var size int64
		for _, s := range layers {
			size += s
		}
		c.omit("the content of the image's layers: %d blobs of %d bytes, which the manifests name by digest", n, size)
	}
	return c.document(RegistryName, doc)
}

func (c *collection) keys() {
	c.add(SigningKeyName, c.SigningKey)
	if c.LogKey != "" {
		c.add(LogKeyName, []byte(strings.TrimSpace(c.LogKey)+"\n"))
	}
	if c.Log == nil {
		c.omit("the evidence log: this Dray keeps none")
	}
}

// finish puts the manifest and the inventory before the files.
func (c *collection) finish() (*Prepared, error) {
	slices.SortFunc(c.files, func(a, b content) int { return strings.Compare(a.Name, b.Name) })
	m := Manifest{Version: Version, Project: c.project, Image: c.detail.Image, CollectedAt: c.Now().UTC(), Omitted: notNil(c.omitted), Files: []File{}}
	for _, f := range c.files {
		m.Files = append(m.Files, f.File)
	}
	if err := m.check(c.Limits); err != nil {
		return nil, fmt.Errorf("it does not fit into a bundle: %w: %w", err, pipeline.ErrInvalid)
	}
	manifest, err := encode(m)
	if err != nil {
		return nil, err
	}
	if len(manifest) > maxManifest {
		return nil, fmt.Errorf("its manifest of %d bytes does not fit into a bundle: %w", len(manifest), pipeline.ErrInvalid)
	}
	predicate, err := json.Marshal(inventory{Project: m.Project, CollectedAt: m.CollectedAt,
		Manifest: map[string]string{"sha256": digestOf(manifest).Hex()}, Files: len(m.Files)})
	if err != nil {
		return nil, err
	}
	sealed, err := c.Sealer.Seal(c.ctx, m.Image, pipeline.Statement{PredicateType: PredicateInventory, Predicate: predicate})
	if err != nil {
		return nil, fmt.Errorf("sign the inventory: %w", err)
	}
	top := []content{
		{File: File{Name: ManifestName, Size: int64(len(manifest)), SHA256: digestOf(manifest)}, body: manifest},
		{File: File{Name: InventoryName, Size: int64(len(sealed.Envelope)), SHA256: digestOf(sealed.Envelope)}, body: sealed.Envelope},
	}
	return &Prepared{Manifest: m, files: append(top, c.files...)}, nil
}

func notNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
