package evidence

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/dray-project/dray/pipeline"
)

// Trust is what a verifier believes. Nothing in a bundle adds to it.
type Trust struct {
	// Signatures reads and checks what a registry, which is reached through the
	// transport alone, holds for an image: verify.Verifier.Verify. No valid
	// signature is an error that wraps pipeline.ErrUnverified.
	Signatures func(context.Context, http.RoundTripper, pipeline.Image) (pipeline.Verified, error)
	// Envelope checks a DSSE envelope about an image: verify.Envelope.
	Envelope func(envelope []byte, image pipeline.Digest, predicateType string) (Statement, error)
	// VEX reads VEX documents; nil: what they say is not looked at, and said so.
	VEX pipeline.VEXReader
	// LogKey is the log's public key as a note verifier key, or several, one a
	// line. Empty: entries of the log are not looked at, and said so.
	LogKey string

	// What follows narrows what passes, where it is not empty.

	// Image that the bundle has to be about.
	Image pipeline.Digest
	// Builder and Source that the provenance has to name.
	Builder string
	Source  string
	// Policies are the digests of gates by environment, "" for builds: the newest
	// decision of each has to have passed under it.
	Policies map[string]pipeline.Digest
	// Environments into which the image has to have been promoted.
	Environments []string
}

// Statement is an in-toto statement that a trusted key signed.
type Statement struct {
	KeyID     string
	Predicate json.RawMessage
	// Digest of the signed payload.
	Digest pipeline.Digest
}

// Status is what became of a claim.
type Status string

// The statuses.
const (
	Pass Status = "pass"
	Fail Status = "fail"
	// Absent: the bundle does not hold what the claim would be checked with, or
	// the verifier was not told what to check it against.
	Absent Status = "not checked"
)

// Claim is one thing that was checked.
type Claim struct {
	// Claim names it: "signature", "decision".
	Claim string `json:"claim"`
	// About says of what: "linux/amd64", "prod", a promotion.
	About  string `json:"about"`
	Status Status `json:"status"`
	// Detail says what was found, or what is wrong.
	Detail string `json:"detail"`
}

// Result is what a bundle proves.
type Result struct {
	Project string         `json:"project"`
	Image   pipeline.Image `json:"image"`
	// CollectedAt is the server's word until the claim "inventory" passes.
	CollectedAt time.Time `json:"collectedAt"`
	// Passed: no claim fails. What was not checked is among the claims.
	Passed bool    `json:"passed"`
	Claims []Claim `json:"claims"`
}

// Failed lists the claims that fail.
func (r Result) Failed() (out []Claim) {
	for _, c := range r.Claims {
		if c.Status == Fail {
			out = append(out, c)
		}
	}
	return out
}

// Verify checks every claim of a bundle and asks no network. The error is nil
// also when claims fail: it says that the check itself could not be made.
func (b *Bundle) Verify(ctx context.Context, t Trust) (Result, error) {
	if t.Signatures == nil || t.Envelope == nil {
		return Result{}, fmt.Errorf("verify an evidence bundle: no signing key is trusted: %w", pipeline.ErrInvalid)
	}
	v := &verification{Bundle: b, trust: t, ctx: ctx, image: b.Manifest.Image.Digest}
	for _, check := range []func(){
		v.inventoryClaim, v.documents, v.manifests, v.signatures, v.provenance, v.sboms, v.scan,
		v.decided, v.suppressed, v.promoted, v.logged, v.left,
	} {
		if err := ctx.Err(); err != nil {
			return Result{}, err
		}
		check()
	}
	r := Result{Project: b.Manifest.Project, Image: b.Manifest.Image, CollectedAt: b.Manifest.CollectedAt, Claims: v.claims, Passed: true}
	r.Passed = len(r.Failed()) == 0
	return r, nil
}

// verification is one Verify under way.
type verification struct {
	*Bundle
	ctx    context.Context
	trust  Trust
	image  pipeline.Digest
	claims []Claim

	record     *Record
	report     *pipeline.Report
	contents   *Contents
	parsed     map[pipeline.Digest]ociManifest
	transport  http.RoundTripper
	verified   map[pipeline.Digest]pipeline.Verified
	decisions  []Decision
	promotions []Promotion
	policies   map[int]pipeline.ProjectVersion
	exceptions map[string]pipeline.Exception
	vex        map[string]pipeline.VEXDocument
}

func (v *verification) say(status Status, claim, about, format string, args ...any) {
	v.claims = append(v.claims, Claim{Claim: claim, About: about, Status: status, Detail: tame(fmt.Sprintf(format, args...))})
}

func (v *verification) pass(claim, about, format string, args ...any) {
	v.say(Pass, claim, about, format, args...)
}

func (v *verification) fail(claim, about, format string, args ...any) {
	v.say(Fail, claim, about, format, args...)
}

func (v *verification) absent(claim, about, format string, args ...any) {
	v.say(Absent, claim, about, format, args...)
}

// tame makes what is shown of a bundle one line without control characters.
func tame(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == 0x2028 || r == 0x2029 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
			return ' '
		}
		return r
	}, s)
	if len(s) > 1000 {
		s = strings.ToValidUTF8(s[:1000], "") + "…"
	}
	return s
}

// inventoryClaim: a trusted key says that this is the whole bundle, and of whom.
func (v *verification) inventoryClaim() {
	const claim = "inventory"
	m := v.Manifest
	if err := plainEnvelope(v.inventory); err != nil {
		v.fail(claim, InventoryName, "%v", err)
		return
	}
	st, err := v.trust.Envelope(v.inventory, v.image, PredicateInventory)
	if err != nil {
		v.fail(claim, InventoryName, "%v", err)
		return
	}
	var said inventory
	if err := decode(st.Predicate, &said); err != nil {
		v.fail(claim, InventoryName, "%v", err)
		return
	}
	switch {
	case said.Manifest["sha256"] != v.digest.Hex():
		v.fail(claim, InventoryName, "it is signed for another list of files than manifest.json is: files were changed, added or taken out")
	case said.Project != m.Project || !said.CollectedAt.Equal(m.CollectedAt) || said.Files != len(m.Files):
		v.fail(claim, InventoryName, "it says another project, time or number of files than manifest.json does")
	case v.trust.Image != "" && v.trust.Image != v.image:
		v.fail(claim, InventoryName, "the bundle is about %s, and %s was asked for", v.image, v.trust.Image)
	default:
		v.pass(claim, InventoryName, "%d files, collected %s, complete by the word of key %s", said.Files, at(said.CollectedAt), short(st.KeyID))
	}
}

// plainEnvelope: the envelope is written in the one form in which it is made, so
// that there is nothing in it that nobody signed.
func plainEnvelope(raw []byte) error {
	type signature struct {
		KeyID string `json:"keyid"`
		Sig   []byte `json:"sig"`
	}
	var e struct {
		PayloadType string      `json:"payloadType"`
		Payload     []byte      `json:"payload"`
		Signatures  []signature `json:"signatures"`
	}
	if err := decode(raw, &e); err != nil {
		return fmt.Errorf("not a DSSE envelope: %w", err)
	}
	for i := range e.Signatures {
		e.Signatures[i].KeyID = "" // a hint that nobody signs
	}
	again, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if !bytes.Equal(again, raw) {
		return errors.New("the envelope is not in the form in which it was made")
	}
	return nil
}

// documents reads what the other claims look at.
func (v *verification) documents() {
	one := func(name string, into any, set func()) {
		switch err := v.document(name, into); {
		case err == nil:
			set()
		case v.Has(name):
			v.fail("document", name, "%v", err)
		}
	}
	var record Record
	one(ImageName, &record, func() { v.record = &record })
	var report pipeline.Report
	one(ScanName, &report, func() { v.report = &report })
	var contents Contents
	one(RegistryName, &contents, func() { v.contents = &contents })
	v.policies, v.exceptions, v.vex = map[int]pipeline.ProjectVersion{}, map[string]pipeline.Exception{}, map[string]pipeline.VEXDocument{}
	for _, name := range v.names(RoleDecision) {
		var d Decision
		one(name, &d, func() { v.decisions = append(v.decisions, d) })
		v.named("decisions/", name, string(d.Job))
	}
	for _, name := range v.names(RolePromotion) {
		var p Promotion
		one(name, &p, func() { v.promotions = append(v.promotions, p) })
		v.named("promotions/", name, string(p.ID))
		if p.Image.Digest != v.image || p.Project != v.Manifest.Project {
			v.fail("document", name, "it is about %s of project %s", p.Image.Digest, p.Project)
		}
	}
	for _, name := range v.names(RolePolicy) {
		var p pipeline.ProjectVersion
		one(name, &p, func() { v.policies[p.Version] = p })
		v.named("policies/", name, fmt.Sprint(p.Version))
		if p.Project.Name != v.Manifest.Project {
			v.fail("document", name, "it is a version of project %s", p.Project.Name)
		}
	}
	for _, name := range v.names(RoleException) {
		var e pipeline.Exception
		one(name, &e, func() { v.exceptions[e.ID] = e })
		v.named("exceptions/", name, e.ID)
	}
	for _, name := range v.names(RoleVEX) {
		var d pipeline.VEXDocument
		one(name, &d, func() { v.vex[d.ID] = d })
		v.named("vex/", name, d.ID)
	}
	if v.record != nil && (v.record.Project != v.Manifest.Project || v.record.Built.Image.Digest != v.image) {
		v.fail("document", ImageName, "it is about %s of project %s", v.record.Built.Image.Digest, v.record.Project)
		v.record = nil
	}
}

// named: a document is the one that its file is named for.
func (v *verification) named(dir, name, id string) {
	if name != dir+id+".json" {
		v.fail("document", name, "it is about %.60q", id)
	}
}

// left says what the bundle's maker says that it left out.
func (v *verification) left() {
	for _, s := range v.Manifest.Omitted {
		v.absent("not in the bundle", "", "%s", s)
	}
}

func at(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func short(keyID string) string {
	if len(keyID) > 12 {
		return keyID[:12]
	}
	return keyID
}
