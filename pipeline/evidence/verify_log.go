package evidence

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dray-project/dray/pipeline"
)

// logged are the entries that are proven to be in the log.
type logged struct {
	*verification
	head    checkpoint
	entries []provenEntry
	// begun is when the log began, if it took over a record that was there before.
	begun time.Time
	used  map[int64]bool
}

type provenEntry struct {
	pipeline.Entry
	index int64
	said  entryData
}

// entryData is what entries say that documents can be compared with; see
// docs/reference/log.md.
type entryData struct {
	Passed     bool            `json:"passed"`
	Waiting    bool            `json:"waiting"`
	Summary    pipeline.Digest `json:"summary"`
	Plan       pipeline.Digest `json:"plan"`
	Database   pipeline.Digest `json:"database"`
	Repository string          `json:"repository"`
	Commit     string          `json:"commit"`
	State      pipeline.State  `json:"state"`
	Finding    string          `json:"finding"`
	ExpiresAt  time.Time       `json:"expiresAt"`
	Document   json.RawMessage `json:"document"` // a digest of VEX documents
	Version    int             `json:"version"`
	Digest     pipeline.Digest `json:"digest"`
	Policy     struct {
		Version int             `json:"version"`
		Digest  pipeline.Digest `json:"digest"`
	} `json:"policy"`
	Platforms []struct {
		Platform pipeline.Platform `json:"platform"`
		Digest   pipeline.Digest   `json:"digest"`
	} `json:"platforms"`
	PlatformsOmitted int            `json:"platformsOmitted"`
	Findings         map[string]int `json:"findings"`
	// New are findings that became known since the image was scanned.
	New  []string `json:"new"`
	Tags []struct {
		Repository string          `json:"repository"`
		Tag        string          `json:"tag"`
		To         pipeline.Digest `json:"to"`
		Held       bool            `json:"held"`
	} `json:"tags"`
}

// logged checks the log's part, and that it and the documents say the same: each
// document has its entry, and each entry that is about a document finds it here.
func (v *verification) logged() {
	const claim = "log"
	if v.trust.LogKey == "" {
		v.absent(claim, "", "no public key of the evidence log was given: whether the log has these entries was not looked at")
		return
	}
	raw, err := v.Read(CheckpointName)
	if err != nil {
		v.fail(claim, CheckpointName, "%v", err)
		return
	}
	l := &logged{verification: v, used: map[int64]bool{}}
	if l.head, err = openCheckpoint(raw, v.trust.LogKey); err != nil {
		v.fail(claim, CheckpointName, "%v", err)
		return
	}
	ok := true
	for _, name := range v.names(RoleEntry) {
		if err := l.prove(name); err != nil {
			ok = false
			v.fail(claim, name, "%v", err)
		}
	}
	for _, name := range v.names(RoleProof) {
		if !v.Has(strings.TrimSuffix(name, ".tlog-proof") + ".json") {
			ok = false
			v.fail(claim, name, "it proves an entry that is not in the bundle")
		}
	}
	if !ok {
		return
	}
	slices.SortFunc(l.entries, func(a, b provenEntry) int { return int(a.index - b.index) })
	if len(l.entries) > 0 && l.entries[0].index == 0 && l.entries[0].Kind == pipeline.EntryAdopted {
		l.begun = l.entries[0].At
	}
	v.pass(claim, CheckpointName, "%d entries are among the %d of %s, whose tree has the root %s", len(l.entries), l.head.tree.N, l.head.origin, l.head.tree.Hash)
	l.images()
	l.decisionEntries()
	l.promotionEntries()
	l.suppressionEntries()
	l.policyEntries()
	l.others()
}

// prove checks one entry's proof.
func (l *logged) prove(name string) error {
	base := strings.TrimSuffix(name, ".json")
	leaf, err := l.Read(name)
	if err != nil {
		return err
	}
	raw, err := l.Read(base + ".tlog-proof")
	if err != nil {
		return err
	}
	index, path, under, err := parseProof(raw)
	if err != nil {
		return fmt.Errorf("its proof: %w", err)
	}
	if base != fmt.Sprintf("log/%d", index) {
		return fmt.Errorf("its proof is that of entry %d", index)
	}
	if !bytes.Equal(under, l.head.raw) {
		return fmt.Errorf("its proof is under another checkpoint than %s", CheckpointName)
	}
	if err := verifyInclusion(leaf, index, path, l.head); err != nil {
		return fmt.Errorf("it is not proven to be in the log: %w", err)
	}
	e, err := pipeline.ParseEntry(leaf)
	if err != nil {
		return err
	}
	p := provenEntry{Entry: e, index: index}
	if len(e.Data) > 0 {
		if err := uniqueNames(e.Data); err != nil {
			return err
		}
		if err := json.Unmarshal(e.Data, &p.said); err != nil {
			// Kinds that nothing is compared with may use the same words otherwise.
			p.said = entryData{}
		}
	}
	l.entries = append(l.entries, p)
	return nil
}

// find returns the entries of a kind about a subject, of this project.
func (l *logged) find(subject string, kinds ...string) (list []provenEntry) {
	for _, e := range l.entries {
		if e.Subject == subject && e.Project == l.Manifest.Project && slices.Contains(kinds, e.Kind) {
			list = append(list, e)
		}
	}
	return list
}

// settle says what became of a document that one of the entries has to be about.
// matches returns what differs; empty: nothing.
func (l *logged) settle(about string, when time.Time, entries []provenEntry, matches func(provenEntry) string) {
	why := ""
	for _, e := range entries {
		differs := matches(e)
		if differs == "" {
			l.used[e.index] = true
			l.pass("log", about, "entry %d of %d, %s", e.index, l.head.tree.N, at(e.At))
			return
		}
		why = fmt.Sprintf("entry %d says otherwise: %s", e.index, differs)
	}
	switch {
	case why != "":
		l.fail("log", about, "%s", why)
	case !l.begun.IsZero() && when.Before(l.begun):
		l.absent("log", about, "it is of %s, from before the log began at %s", at(when), at(l.begun))
	default:
		l.fail("log", about, "no entry about it is in the bundle")
	}
}

func differs[T comparable](what string, document, entry T) string {
	if document == entry {
		return ""
	}
	return fmt.Sprintf("%s is %v in the document and %v in the entry", what, document, entry)
}

// firstOf returns the first that says something.
func firstOf(texts ...string) string {
	for _, t := range texts {
		if t != "" {
			return t
		}
	}
	return ""
}

func (l *logged) images() {
	if r := l.record; r != nil {
		l.settle("image", r.Recorded, l.find(string(r.Run), pipeline.EntryImageRecorded), func(e provenEntry) string {
			why := firstOf(differs("the image", l.image, e.Image), differs("the repository", r.Built.Image.Repository, e.said.Repository),
				differs("the commit", r.Built.Source.Commit, e.said.Commit))
			for _, p := range e.said.Platforms {
				if !slices.ContainsFunc(r.Built.Platforms, func(b pipeline.PlatformImage) bool { return b.Platform == p.Platform && b.Digest == p.Digest }) {
					why = firstOf(why, fmt.Sprintf("the document has no %s %s", p.Platform, p.Digest))
				}
			}
			return firstOf(why, differs("the number of platforms", len(r.Built.Platforms), len(e.said.Platforms)+e.said.PlatformsOmitted))
		})
		if s := l.report; s != nil {
			l.settle("scan", r.Recorded, l.find(string(r.Run), pipeline.EntryImageRecorded), func(e provenEntry) string {
				counts := map[string]int{}
				for severity, n := range s.Count() {
					counts[severity.String()] = n
				}
				return firstOf(differs("the database", s.Database.Digest, e.said.Database),
					differs("the findings", fmt.Sprint(counts), fmt.Sprint(notNilMap(e.said.Findings))))
			})
		}
	}
	if r := l.record; r != nil {
		for _, t := range r.Tags {
			// Those of promotions are compared with the promotions.
			if t.Repository == r.Built.Image.Repository {
				l.tag(t, string(r.Run), r.Recorded)
			}
		}
	}
	for _, e := range l.entries {
		if e.Kind == pipeline.EntryFindingsChanged && e.Image == l.image && len(e.said.New) > 0 {
			l.used[e.index] = true
			l.pass("log", "scan", "entry %d, %s: known since the scan: %s", e.index, at(e.At), strings.Join(e.said.New, ", "))
		}
		if e.Kind == pipeline.EntryImageRecorded && e.Image == l.image && !l.Has("decisions/"+e.Subject+".json") {
			l.fail("log", "run "+e.Subject, "entry %d says that it recorded the image, and its decision is not in the bundle", e.index)
		}
	}
}

func notNilMap(m map[string]int) map[string]int {
	if m == nil {
		return map[string]int{}
	}
	return m
}

func (l *logged) decisionEntries() {
	for _, d := range l.decisions {
		kind := pipeline.EntryRunDecided
		if d.Environment != "" {
			kind = pipeline.EntryPromotionDecided
		}
		entries := l.find(string(d.Job), kind)
		if d.Environment == "" {
			// A run that judged an image which was built before may have no other word
			// about its decision than the record's.
			entries = append(entries, l.find(string(d.Job), pipeline.EntryImageRecorded)...)
		}
		l.settle("decision "+d.String(), d.Decision.EvaluatedAt, entries, func(e provenEntry) string {
			if e.Kind == pipeline.EntryImageRecorded && len(l.find(string(d.Job), kind)) > 0 {
				return "it is about the record"
			}
			why := firstOf(differs("passed", d.Decision.Passed, e.said.Passed), differs("the database", d.Decision.Database.Digest, e.said.Database))
			if e.Kind == pipeline.EntryImageRecorded {
				return why
			}
			var summary pipeline.Digest
			if d.Summary != nil {
				summary = d.Summary.Statement
			}
			return firstOf(why, differs("waiting", d.Decision.Waiting, e.said.Waiting), differs("the signed summary", summary, e.said.Summary),
				differs("the plan", d.Decision.Plan, e.said.Plan), differs("the policy", d.Decision.Policy.Digest, e.said.Policy.Digest),
				differs("the policy's version", d.Decision.Policy.Version, e.said.Policy.Version))
		})
		for _, e := range l.find(string(d.Job), pipeline.EntryBreakGlass) {
			if d.Decision.BreakGlass == nil || d.Decision.BreakGlass.By != e.Actor {
				l.fail("log", "decision "+d.String(), "entry %d says that %s overrode it in an emergency, and the decision does not", e.index, e.Actor)
			}
		}
	}
	// A decision that is the last has one entry; that of another promotion of this
	// image must not be missing here.
	for _, e := range l.entries {
		final := (e.Kind == pipeline.EntryPromotionDecided || e.Kind == pipeline.EntryRunDecided) && !e.said.Waiting && e.Project == l.Manifest.Project
		if final && e.Image != "" && e.Image != l.image {
			continue
		}
		if final && !l.used[e.index] && !l.Has("decisions/"+e.Subject+".json") {
			l.fail("log", "decision "+e.Subject, "entry %d says that it was made, and it is not in the bundle", e.index)
		}
	}
}

func (l *logged) promotionEntries() {
	for _, p := range l.promotions {
		about, id := p.Environment+" ("+string(p.ID)+")", string(p.ID)
		l.settle("promotion "+about, p.CreatedAt, l.find(id, pipeline.EntryPromotionRequested), func(e provenEntry) string {
			return firstOf(differs("the image", l.image, e.Image), differs("who asked", p.RequestedBy, e.Actor))
		})
		if p.State.Final() && p.FinishedAt != nil {
			l.settle("end of "+about, *p.FinishedAt, l.find(id, pipeline.EntryPromotionEnded), func(e provenEntry) string {
				return differs("the state", p.State, e.said.State)
			})
		}
		if p.Destination != nil {
			l.settle("copy of "+about, p.CreatedAt, l.find(id, pipeline.EntryCopied), func(e provenEntry) string {
				return firstOf(differs("the image", p.Destination.Digest, e.Image), differs("the repository", p.Destination.Repository, e.said.Repository))
			})
		}
		for _, t := range p.Tags {
			l.tag(t, id, p.CreatedAt)
		}
		l.approvals(p, about)
	}
	for _, e := range l.entries {
		if e.Kind == pipeline.EntryPromotionRequested && e.Image == l.image && e.Project == l.Manifest.Project && !l.Has("promotions/"+e.Subject+".json") {
			l.fail("log", "promotion "+e.Subject, "entry %d says that it was asked for, and it is not in the bundle", e.index)
		}
	}
}

// tag compares one tag that a job put on the image. A run that repeats another
// may have asked for it again, so that any run's word will do for a run's.
func (l *logged) tag(t pipeline.TagMove, job string, when time.Time) {
	var entries []provenEntry
	for _, e := range l.entries {
		if e.Kind == pipeline.EntryTagMoved && (e.Subject == job || strings.HasPrefix(job, "run_") && strings.HasPrefix(e.Subject, "run_")) {
			entries = append(entries, e)
		}
	}
	l.settle(fmt.Sprintf("tag %s:%s of %s", t.Repository, t.Tag, job), when, entries, func(e provenEntry) string {
		for _, moved := range e.said.Tags {
			if moved.Repository == t.Repository && moved.Tag == t.Tag {
				why := differs("the image", t.To, moved.To)
				if t.Held && !moved.Held {
					// The other way round, it has moved on since.
					why = firstOf(why, differs("whether it names the image", t.Held, moved.Held))
				}
				return why
			}
		}
		return "it does not name the tag"
	})
}

// approvals: one entry for each, and none too many.
func (l *logged) approvals(p Promotion, about string) {
	entries := l.find(string(p.ID), pipeline.EntryPromotionApproved, pipeline.EntryPromotionRejected)
	taken := map[int64]bool{}
	for _, a := range p.Approvals {
		kind := pipeline.EntryPromotionApproved
		if a.Rejected {
			kind = pipeline.EntryPromotionRejected
		}
		free := slices.DeleteFunc(slices.Clone(entries), func(e provenEntry) bool { return e.Kind != kind || taken[e.index] || e.Actor != a.By })
		l.settle("approval of "+about+" by "+a.By, a.At, free, func(e provenEntry) string {
			why := differs("the plan", a.Plan, e.said.Plan)
			if why == "" {
				taken[e.index] = true
			}
			return why
		})
	}
	for _, e := range entries {
		if !taken[e.index] {
			l.fail("log", "approval of "+about+" by "+e.Actor, "entry %d says that it was given, and it is not in the bundle", e.index)
		}
	}
}

func (l *logged) suppressionEntries() {
	for _, name := range l.names(RoleException) {
		e := l.exceptions[strings.TrimSuffix(strings.TrimPrefix(name, "exceptions/"), ".json")]
		l.settle("exception "+e.ID, e.CreatedAt, l.find(e.ID, pipeline.EntryExceptionAdded), func(x provenEntry) string {
			return firstOf(differs("the finding", e.Finding, x.said.Finding), differs("the author", e.Author, x.Actor),
				differs("the expiry", at(e.ExpiresAt), at(x.said.ExpiresAt)))
		})
		l.revoked("exception "+e.ID, e.ID, pipeline.EntryExceptionRevoked, e.RevokedAt != nil)
	}
	for _, name := range l.names(RoleVEX) {
		d := l.vex[strings.TrimSuffix(strings.TrimPrefix(name, "vex/"), ".json")]
		l.settle("VEX document "+d.ID, d.UploadedAt, l.find(d.ID, pipeline.EntryVEXAdded), func(x provenEntry) string {
			var digest string
			_ = json.Unmarshal(x.said.Document, &digest) // not a text: it differs
			return firstOf(differs("who handed it in", d.UploadedBy, x.Actor), differs("the document", string(digestOf(d.Document)), digest))
		})
		l.revoked("VEX document "+d.ID, d.ID, pipeline.EntryVEXRevoked, d.RevokedAt != nil)
	}
}

func (l *logged) revoked(about, id, kind string, said bool) {
	if entries := l.find(id, kind); len(entries) > 0 != said {
		l.fail("log", about, "it was taken back in the log or in the document, and not in the other")
	}
}

func (l *logged) policyEntries() {
	for _, name := range l.names(RolePolicy) {
		var p pipeline.ProjectVersion
		if err := l.document(name, &p); err != nil {
			continue // said before
		}
		l.settle(fmt.Sprintf("policy version %d", p.Version), p.AppliedAt, l.find("", pipeline.EntryProjectApplied), func(e provenEntry) string {
			return firstOf(differs("the version", p.Version, e.said.Version), differs("the digest", p.Digest, e.said.Digest))
		})
	}
}

// others says how many entries are here that no document was compared with.
func (l *logged) others() {
	kinds := map[string]int{}
	for _, e := range l.entries {
		if !l.used[e.index] {
			kinds[e.Kind]++
		}
	}
	var list []string
	for kind, n := range kinds {
		list = append(list, fmt.Sprintf("%d %s", n, kind))
	}
	slices.Sort(list)
	if len(list) > 0 {
		l.pass("log", "other entries", "proven, and compared with no document: %s", strings.Join(list, ", "))
	}
}
