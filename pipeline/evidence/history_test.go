package evidence_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/evidence"
	"github.com/dray-project/dray/pipeline/registry/registrytest"
	"github.com/dray-project/dray/signer/verify"
)

// has reports whether there is such a claim.
func has(r evidence.Result, status evidence.Status, claim, says string) bool {
	return slices.ContainsFunc(r.Claims, func(c evidence.Claim) bool {
		return c.Status == status && c.Claim == claim && strings.Contains(c.About+" "+c.Detail, says)
	})
}

// A bundle tells of everything that can happen to an image: it was built from a
// tag and pushed again as a branch, its settings changed, a vendor spoke for a
// finding, a promotion was rejected, called off or forced through in an
// emergency, an exception was taken back, and the environment was rolled back.
func TestBundleOfALongHistory(t *testing.T) {
	s := newSite(t, registrytest.Olareg(t))
	ctx := t.Context()
	vendor, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	vendorKey, err := verify.MarshalPublicKey(&vendor.PublicKey)
	check(t, err)
	p := s.project
	p.TrustedVEXKeys = []string{string(vendorKey)}
	p.Environments = slices.Clone(p.Environments)
	p.Environments[1].BreakGlass = &pipeline.BreakGlassRule{Roles: []string{"release-manager"}, Overrides: []string{"approvals"}}
	_, changed, err := s.store.ApplyProject(ctx, pipeline.ProjectChange{Project: p, AppliedBy: "sam"})
	check(t, err)
	if !changed {
		t.Fatal("the settings are as they were")
	}

	one := s.push("refs/tags/v1.0.0", "one")
	if again := s.push("refs/heads/main", "one"); again != one {
		t.Fatalf("the same commit is %s and %s", one, again)
	}
	s.known(pipeline.Finding{ID: "CVE-2026-0001", Severity: pipeline.SeverityHigh, Package: "openssl", Version: "3.0.1", PURL: "pkg:deb/debian/openssl@3.0.1"},
		pipeline.Finding{ID: "CVE-2026-0002", Severity: pipeline.SeverityHigh, Package: "openssl", Version: "3.0.1", PURL: "pkg:deb/debian/openssl@3.0.1"})
	document := []byte(`{"@context":"https://openvex.dev/ns/v0.2.0","author":"vendor","timestamp":"2026-01-01T10:00:00Z","statements":[
		{"vulnerability":{"name":"CVE-2026-0001"},"status":"not_affected","justification":"vulnerable_code_not_present",
		"products":[{"@id":"pkg:oci/app","subcomponents":[{"@id":"pkg:deb/debian/openssl"}]}]}]}`)
	hash := sha256.Sum256(document)
	sig, err := ecdsa.SignASN1(rand.Reader, vendor, hash[:])
	check(t, err)
	_, err = s.store.AddVEX(ctx, pipeline.VEXDocument{Project: "app", Document: document, Signature: []byte(base64.StdEncoding.EncodeToString(sig)), UploadedBy: "sam"})
	check(t, err)
	exception, err := s.store.AddException(ctx, pipeline.Exception{Project: "app", Finding: "CVE-2026-0002", Reason: "only <b>titles</b> are read", Author: "sam", ExpiresAt: time.Now().Add(time.Hour)})
	check(t, err)
	if got := s.promote(one, "staging", "rita"); got.State != pipeline.StateSucceeded {
		t.Fatalf("%s %s", got.State, got.Reason)
	}
	// Rejected, called off, and one that a person without the role approved.
	rejected := s.promote(one, "prod", "rita")
	_, err = s.store.Approve(ctx, pipeline.Approval{Promotion: rejected.ID, By: "mona", Roles: []string{"release-manager"}, Plan: rejected.Decision.Plan, Rejected: true, Comment: "not on a Friday"})
	check(t, err)
	off := s.promote(one, "prod", "rita")
	_, err = s.store.CancelPromotion(ctx, off.ID, "rita", "not now")
	check(t, err)
	forced, _, err := s.store.Promote(ctx, pipeline.PromotionRequest{Image: string(one), Environment: "prod", Project: "app", RequestedBy: "rita",
		Grants: []pipeline.Grant{{Role: "release-manager"}}, BreakGlass: "the shop is down"})
	check(t, err)
	if got := s.goOn(forced.ID); got.State != pipeline.StateSucceeded || got.Decision.BreakGlass == nil {
		t.Fatalf("%s %s", got.State, got.Reason)
	}
	_, err = s.store.RevokeException(ctx, "app", exception.ID, "sam")
	check(t, err)
	s.known()
	two := s.push("refs/tags/v1.1.0", "two")
	if got := s.promote(two, "staging", "rita"); got.State != pipeline.StateSucceeded {
		t.Fatalf("%s %s", got.State, got.Reason)
	}
	if got := s.approve(s.promote(two, "prod", "rita"), "mona"); got.State != pipeline.StateSucceeded {
		t.Fatalf("%s %s", got.State, got.Reason)
	}
	back, _, err := s.store.Promote(ctx, pipeline.PromotionRequest{Image: string(one), Environment: "prod", Project: "app", Action: pipeline.ActionRollback,
		RequestedBy: "rita", Grants: []pipeline.Grant{{Role: "release-manager"}}})
	check(t, err)
	if got := s.goOn(back.ID); got.State != pipeline.StateSucceeded {
		t.Fatalf("%s %s", got.State, got.Reason)
	}
	waiting := s.promote(two, "prod", "rita")

	for name, d := range map[string]pipeline.Digest{"one": one, "two": two} {
		result, err := verifyBundle(s.bundle(d), s.trust())
		check(t, err)
		if !result.Passed {
			t.Errorf("%s: %+v", name, result.Failed())
		}
		if name == "two" {
			if !has(result, evidence.Absent, "decision", string(waiting.ID)) {
				t.Errorf("the promotion that waits: %+v", result.Claims)
			}
			continue
		}
		for _, want := range []struct {
			status       evidence.Status
			claim, about string
		}{
			{evidence.Pass, "decision", "in an emergency that rita declared (the shop is down), overriding approvals"},
			{evidence.Pass, "approvals", "0 of 1 with the role release-manager"},
			{evidence.Pass, "vex", "signed by a key that version 2 of the project's settings trusts"},
			{evidence.Pass, "exception", "only <b>titles</b> are read"},
			{evidence.Pass, "promotion", "refused: rejected by mona"},
			{evidence.Pass, "promotion", "cancelled"},
			{evidence.Pass, "promotion", "rollback by rita to"},
			{evidence.Pass, "log", "policy version 2"},
			{evidence.Pass, "log", "VEX document vex_"},
		} {
			if !has(result, want.status, want.claim, want.about) {
				t.Errorf("no %s %s %q in", want.status, want.claim, want.about)
				for _, c := range result.Claims {
					t.Logf("%-12s %-12s %-40s %s", c.Status, c.Claim, c.About, c.Detail)
				}
			}
		}
		runs := 0
		for _, c := range result.Claims {
			if c.Claim == "decision" && strings.HasPrefix(c.About, "build (run_") && c.Status == evidence.Pass {
				runs++
			}
		}
		if runs != 2 {
			t.Errorf("%d runs' decisions, want 2", runs)
		}
		trust := s.trust()
		trust.VEX = nil
		if result, err = verifyBundle(s.bundle(d), trust); err != nil || !has(result, evidence.Absent, "vex", "its signature was not looked at") {
			t.Errorf("without a reader of VEX documents: %v", err)
		}
	}
}

// An image that its own run refused is in a bundle, and does not pass: it is not
// signed. One that is unknown has none.
func TestBundleOfARefusedImage(t *testing.T) {
	s := newSite(t, registrytest.Olareg(t))
	s.known(pipeline.Finding{ID: "CVE-2026-0003", Severity: pipeline.SeverityCritical, Package: "openssl", Version: "3.0.1"})
	a, err := s.store.Accept(t.Context(), pipeline.Delivery{Forge: "github", ID: "1", Project: "app", ReceivedAt: time.Now(),
		Event: pipeline.Event{Kind: pipeline.EventPush, Source: "acme/app", Ref: "refs/tags/v1.0.0", After: strings.Repeat("c", 40)}})
	check(t, err)
	check(t, s.pipeline.Run(t.Context(), a.Run))
	detail, err := s.store.RunDetail(t.Context(), a.Run)
	check(t, err)
	if detail.State != pipeline.StateRefused {
		t.Fatalf("%s %s", detail.State, detail.Reason)
	}
	result, err := verifyBundle(s.bundle(detail.Image.Digest), s.trust())
	check(t, err)
	if result.Passed || !has(result, evidence.Fail, "signature", "index") || !has(result, evidence.Pass, "decision", "refused (severity") ||
		!has(result, evidence.Fail, "decision", "no run's decision on the image passed") {
		t.Errorf("%+v", result.Claims)
	}
	if _, err := s.collector.Prepare(t.Context(), "app", sum(nil)); err == nil {
		t.Error("an image that nobody knows has a bundle")
	}
	if _, err := s.collector.Prepare(t.Context(), "other", detail.Image.Digest); err == nil {
		t.Error("another project has a bundle of it")
	}
}
