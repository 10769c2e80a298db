package signer_test

import (
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/signer"
	"github.com/dray-project/dray/signer/internal/signertest"
	"github.com/dray-project/dray/signer/verify"
)

// summary is a verification summary as Dray makes them.
func summary(environment string, n int) pipeline.Statement {
	return pipeline.Statement{PredicateType: pipeline.PredicateSummary, Predicate: json.RawMessage(fmt.Sprintf(
		`{"verifier":{"id":"https://dray.example"},"timeVerified":"2026-05-01T10:%02d:00Z","resourceUri":"https://dray.example/projects/app/environments/%s",
		"policy":{"uri":"https://dray.example/api/v1/projects/app/versions/1","digest":{"sha256":"00"}},"inputAttestations":[],
		"verificationResult":"PASSED","verifiedLevels":["SLSA_BUILD_LEVEL_2"]}`, n%60, environment))}
}

// What is sealed is what would be attested, and nothing is written.
func TestSeal(t *testing.T) {
	reg := signertest.Olareg(t)
	img := reg.Image(t, "team/app")
	s := newSigner(t, 0, nil)
	key := publicKey(t, sharedKeys()[0].public)
	reg.Requests()
	sealed, err := s.Seal(t.Context(), img, summary("prod", 1))
	if err != nil {
		t.Fatal(err)
	}
	again, err := s.Seal(t.Context(), img, summary("prod", 1))
	if err != nil {
		t.Fatal(err)
	}
	if asked := reg.Requests(); len(asked) > 0 {
		t.Errorf("asked the registry: %v", asked)
	}
	if sealed.KeyID != s.KeyID() || sealed.Statement != again.Statement {
		t.Errorf("sealed as %s by %s, and again as %s", sealed.Statement, sealed.KeyID, again.Statement)
	}
	st, err := verify.Envelope(sealed.Envelope, img.Digest, pipeline.PredicateSummary, []crypto.PublicKey{key})
	if err != nil {
		t.Fatal(err)
	}
	attested, err := s.Attest(t.Context(), img, summary("prod", 1))
	if err != nil {
		t.Fatal(err)
	}
	v, err := s.Verify(t.Context(), img)
	if !errors.Is(err, pipeline.ErrUnverified) {
		t.Errorf("an image with an attestation and no signature: %+v, %v", v, err)
	}
	if _, err := s.Sign(t.Context(), img); err != nil {
		t.Fatal(err)
	}
	if v, err = s.Verify(t.Context(), img); err != nil {
		t.Fatal(err)
	}
	if attested[0].Statement != sealed.Statement || string(v.Statements[sealed.Statement]) != string(st.Payload) {
		t.Errorf("attested\n%s\nsealed\n%s", v.Statements[attested[0].Statement], st.Payload)
	}
	// Another image, another type, another key: nothing.
	other := publicKey(t, sharedKeys()[1].public)
	for name, err := range map[string]error{
		"another image": ignore(verify.Envelope(sealed.Envelope, reg.Image(t, "team/app").Digest, pipeline.PredicateSummary, []crypto.PublicKey{key})),
		"another type":  ignore(verify.Envelope(sealed.Envelope, img.Digest, pipeline.PredicateProvenance, []crypto.PublicKey{key})),
		"another key":   ignore(verify.Envelope(sealed.Envelope, img.Digest, pipeline.PredicateSummary, []crypto.PublicKey{other})),
	} {
		if !errors.Is(err, pipeline.ErrUnverified) {
			t.Errorf("%s: %v, want ErrUnverified", name, err)
		}
	}
}

func ignore[T any](_ T, err error) error { return err }

func TestSealRefuses(t *testing.T) {
	s := newSigner(t, 0, func(c *signer.Config) { c.Limits = verify.Limits{Bundle: 64 << 10} })
	img := pipeline.Image{Repository: "registry.example/app", Digest: "sha256:" + pipeline.Digest(strings.Repeat("ab", 32))}
	for name, tt := range map[string]struct {
		img pipeline.Image
		st  pipeline.Statement
	}{
		"a tag":         {pipeline.Image{Repository: "registry.example/app", Digest: "v1"}, provenance},
		"no type":       {img, pipeline.Statement{Predicate: provenance.Predicate}},
		"a signature":   {img, pipeline.Statement{PredicateType: verify.PredicateSignature}},
		"not JSON":      {img, pipeline.Statement{PredicateType: "x", Predicate: json.RawMessage(`{`)}},
		"not an object": {img, pipeline.Statement{PredicateType: "x", Predicate: json.RawMessage(`[]`)}},
		"too large":     {img, pipeline.Statement{PredicateType: "x", Predicate: json.RawMessage(`{"a":"` + strings.Repeat("a", 64<<10) + `"}`)}},
	} {
		if _, err := s.Seal(t.Context(), tt.img, tt.st); !errors.Is(err, pipeline.ErrInvalid) || !pipeline.IsPermanent(err) {
			t.Errorf("%s: %v, want a permanent ErrInvalid", name, err)
		}
	}
}

// An image collects one summary per environment and promotion, from workers
// that share one key and one lock. None may be lost.
func TestManySummaries(t *testing.T) {
	const workers, each = 4, 4
	onBoth(t, func(t *testing.T, reg *signertest.Registry) {
		for name, written := range map[string][]string{"both": bothLayouts, "bundle": {verify.LayoutBundle}} {
			t.Run(name, func(t *testing.T) {
				img := reg.Image(t, "team/app-"+name)
				lock := &signertest.Locker{}
				var group sync.WaitGroup
				failed := make([]error, workers)
				made := make([][]pipeline.Digest, workers)
				for w := range workers {
					s := newSigner(t, 0, func(c *signer.Config) { c.Locker, c.Layouts = lock, written })
					group.Go(func() {
						for i := range each {
							list, err := s.Attest(t.Context(), img, summary([]string{"dev", "staging", "prod"}[i%3], w*each+i))
							if err != nil {
								failed[w] = errors.Join(failed[w], err)
								continue
							}
							made[w] = append(made[w], list[0].Statement)
						}
					})
				}
				group.Wait()
				if err := errors.Join(failed...); err != nil {
					t.Fatal(err)
				}
				s := newSigner(t, 0, func(c *signer.Config) { c.Layouts = written })
				if _, err := s.Sign(t.Context(), img); err != nil {
					t.Fatal(err)
				}
				v, err := s.Verify(t.Context(), img)
				if err != nil {
					t.Fatal(err)
				}
				all := slices.Concat(made...)
				if len(v.Attestations) != workers*each*len(written) || len(v.Statements) != workers*each || len(all) != workers*each {
					t.Errorf("%d attestations of %d statements, want %d of %d", len(v.Attestations), len(v.Statements), workers*each*len(written), workers*each)
				}
				for _, d := range all {
					if len(v.Statements[d]) == 0 {
						t.Errorf("statement %s is lost", d)
					}
					for _, layout := range written {
						if !slices.ContainsFunc(v.Attestations, func(a pipeline.Attestation) bool {
							return a.Statement == d && a.Layout == layout && a.PredicateType == pipeline.PredicateSummary && a.KeyID == s.KeyID()
						}) {
							t.Errorf("statement %s is not in the %s layout", d, layout)
						}
					}
				}
			})
		}
	})
}
