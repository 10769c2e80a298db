package signer_test

import (
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/signer"
	"github.com/dray-project/dray/signer/internal/signertest"
	"github.com/dray-project/dray/signer/verify"
)

const password = "correct horse battery staple"

type testKey struct{ private, public []byte }

// Opening a key takes a tenth of a second on purpose, so tests share some.
var sharedKeys = sync.OnceValue(func() []testKey {
	keys := make([]testKey, 8)
	for i := range keys {
		var err error
		if keys[i].private, keys[i].public, err = signer.GenerateKey([]byte(password)); err != nil {
			panic(err)
		}
	}
	return keys
})

func publicKey(t testing.TB, text []byte) crypto.PublicKey {
	t.Helper()
	keys, err := verify.ParsePublicKeys(text)
	if err != nil {
		t.Fatal(err)
	}
	return keys[0]
}

func pass(s string) func() ([]byte, error) {
	return func() ([]byte, error) { return []byte(s), nil }
}

func newSigner(t testing.TB, key int, with func(*signer.Config)) *signer.Signer {
	t.Helper()
	c := signer.Config{Key: sharedKeys()[key].private, Password: pass(password), Locker: &signertest.Locker{}}
	if with != nil {
		with(&c)
	}
	s, err := signer.New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var provenance = pipeline.Statement{
	PredicateType: pipeline.PredicateProvenance,
	Predicate:     json.RawMessage(`{"buildDefinition":{"buildType":"https://dray.example/build/v1","externalParameters":{}},"runDetails":{"builder":{"id":"https://dray.example"}}}`),
}

var sbom = pipeline.Statement{
	PredicateType: pipeline.PredicateCycloneDX,
	Predicate:     json.RawMessage(`{"bomFormat":"CycloneDX","specVersion":"1.6","version":1,"components":[]}`),
}

// onBoth runs the test on a registry with the referrers API and on one without.
func onBoth(t *testing.T, f func(*testing.T, *signertest.Registry)) {
	for kind, start := range signertest.Kinds {
		t.Run(kind, func(t *testing.T) { f(t, start(t)) })
	}
}

func layouts[T any](list []T, layout func(T) string) []string {
	var in []string
	for _, x := range list {
		in = append(in, layout(x))
	}
	slices.Sort(in)
	return in
}

func ofSignature(s pipeline.Signature) string     { return s.Layout }
func ofAttestation(a pipeline.Attestation) string { return a.Layout }

var bothLayouts = []string{verify.LayoutBundle, verify.LayoutLegacy}

func TestSignAttestVerify(t *testing.T) {
	onBoth(t, func(t *testing.T, reg *signertest.Registry) {
		index, children := reg.Index(t, "team/app")
		s := newSigner(t, 0, nil)
		for _, img := range append([]pipeline.Image{index}, children...) {
			signed, err := s.Sign(t.Context(), img)
			if err != nil {
				t.Fatal(err)
			}
			if got := layouts(signed, ofSignature); !slices.Equal(got, bothLayouts) {
				t.Errorf("signed %s in the layouts %v, want both", img, got)
			}
			var statements []pipeline.Digest
			for _, st := range []pipeline.Statement{provenance, sbom} {
				made, err := s.Attest(t.Context(), img, st)
				if err != nil {
					t.Fatal(err)
				}
				if got := layouts(made, ofAttestation); !slices.Equal(got, bothLayouts) {
					t.Errorf("attested %s in the layouts %v, want both", img, got)
				}
				statements = append(statements, made[0].Statement)
			}
			v, err := s.Verify(t.Context(), img)
			if err != nil {
				t.Fatal(err)
			}
			if len(v.Signatures) != 2 || len(v.Attestations) != 4 || len(v.Statements) != 2 {
				t.Errorf("verified %d signatures, %d attestations and %d statements; want 2, 4 and 2",
					len(v.Signatures), len(v.Attestations), len(v.Statements))
			}
			for _, g := range v.Signatures {
				if g.KeyID != s.KeyID() || g.Image != img || g.Manifest == "" {
					t.Errorf("signature %+v: want key %s, the image and a manifest", g, s.KeyID())
				}
			}
			if !v.Has(pipeline.PredicateProvenance) || !v.Has(pipeline.PredicateCycloneDX) || v.VerifiedAt.IsZero() {
				t.Errorf("verified %+v: want both predicate types and a time", v)
			}
			for _, d := range statements {
				var st struct {
					Subject []struct {
						Name   string
						Digest map[string]string
					}
				}
				if err := json.Unmarshal(v.Statements[d], &st); err != nil {
					t.Fatal(err)
				}
				if st.Subject[0].Name != img.Repository || st.Subject[0].Digest["sha256"] != img.Digest.Hex() {
					t.Errorf("the statement's subject is %+v, want %s", st.Subject, img)
				}
			}
		}
	})
}

// An interrupted stage runs again: nothing may be there twice.
func TestTwiceIsOnce(t *testing.T) {
	onBoth(t, func(t *testing.T, reg *signertest.Registry) {
		img := reg.Image(t, "team/app")
		s := newSigner(t, 0, nil)
		run := func() ([]pipeline.Signature, []pipeline.Attestation) {
			t.Helper()
			signed, err := s.Sign(t.Context(), img)
			if err != nil {
				t.Fatal(err)
			}
			made, err := s.Attest(t.Context(), img, provenance)
			if err != nil {
				t.Fatal(err)
			}
			return signed, made
		}
		signed, made := run()
		reg.Requests()
		again, madeAgain := run()
		if !slices.Equal(signed, again) || !slices.Equal(made, madeAgain) {
			t.Errorf("the second time gave\n%v %v\nwant what the first gave\n%v %v", again, madeAgain, signed, made)
		}
		for _, r := range reg.Requests() {
			if !strings.HasPrefix(r, "GET ") && !strings.HasPrefix(r, "HEAD ") {
				t.Errorf("the second time wrote: %s", r)
			}
		}

		// The same JSON value in another order is the same statement.
		shuffled := provenance
		shuffled.Predicate = json.RawMessage(` {"runDetails": {"builder":{"id":"https://dray.example"}},
			"buildDefinition":{"externalParameters":{},"buildType":"https://dray.example/build/v1"}}`)
		if madeAgain, err := s.Attest(t.Context(), img, shuffled); err != nil || !slices.Equal(made, madeAgain) {
			t.Errorf("the same predicate in another order gave %v, %v; want %v", madeAgain, err, made)
		}
		// Another one is added and the first stays.
		other := pipeline.Statement{PredicateType: pipeline.PredicateProvenance}
		added, err := s.Attest(t.Context(), img, other)
		if err != nil {
			t.Fatal(err)
		}
		v, err := s.Verify(t.Context(), img)
		if err != nil {
			t.Fatal(err)
		}
		if len(v.Attestations) != 4 || len(v.Statements) != 2 {
			t.Errorf("%d attestations of %d statements, want 4 of 2", len(v.Attestations), len(v.Statements))
		}
		if !strings.HasSuffix(string(v.Statements[added[0].Statement]), `"predicate":{}}`) {
			t.Errorf("an empty predicate was signed as %s, want {}", v.Statements[added[0].Statement])
		}
	})
}

func TestLayoutsAreWrittenAsConfigured(t *testing.T) {
	onBoth(t, func(t *testing.T, reg *signertest.Registry) {
		for _, layout := range bothLayouts {
			img := reg.Image(t, "team/"+layout)
			only := newSigner(t, 0, func(c *signer.Config) { c.Layouts = []string{layout} })
			if _, err := only.Sign(t.Context(), img); err != nil {
				t.Fatal(err)
			}
			if _, err := only.Attest(t.Context(), img, sbom); err != nil {
				t.Fatal(err)
			}
			// The other layout is filled in by a signer that wants both, and what is
			// there is kept.
			before, err := only.Verify(t.Context(), img)
			if err != nil {
				t.Fatal(err)
			}
			if len(before.Signatures) != 1 || before.Signatures[0].Layout != layout || len(before.Attestations) != 1 {
				t.Errorf("%s only: found %+v", layout, before)
			}
			after, err := newSigner(t, 0, nil).Sign(t.Context(), img)
			if err != nil {
				t.Fatal(err)
			}
			if got := layouts(after, ofSignature); !slices.Equal(got, bothLayouts) || !slices.Contains(after, before.Signatures[0]) {
				t.Errorf("after a signer of both layouts: %+v, want both and the one from before", after)
			}
		}
	})
}

// Eight writers with keys of their own, as eight processes that share one
// database have them: each has its own Signer, they share the lock.
func TestParallelSignersLoseNothing(t *testing.T) {
	onBoth(t, func(t *testing.T, reg *signertest.Registry) {
		img := reg.Image(t, "team/app")
		lock := &signertest.Locker{}
		signers := make([]*signer.Signer, 8)
		for i := range signers {
			signers[i] = newSigner(t, i, func(c *signer.Config) { c.Locker = lock })
		}
		var group sync.WaitGroup
		failed := make([]error, len(signers))
		for i, s := range signers {
			group.Go(func() {
				_, err := s.Sign(t.Context(), img)
				_, err2 := s.Attest(t.Context(), img, pipeline.Statement{
					PredicateType: "https://dray.example/test/v1", Predicate: json.RawMessage(fmt.Sprintf(`{"writer":%d}`, i)),
				})
				failed[i] = errors.Join(err, err2)
			})
		}
		group.Wait()
		if err := errors.Join(failed...); err != nil {
			t.Fatal(err)
		}
		var trusted []crypto.PublicKey
		for _, k := range sharedKeys() {
			trusted = append(trusted, publicKey(t, k.public))
		}
		all, err := verify.New(t.Context(), verify.Config{TrustedKeys: trusted})
		if err != nil {
			t.Fatal(err)
		}
		v, err := all.Verify(t.Context(), img)
		if err != nil {
			t.Fatal(err)
		}
		by := map[string]int{}
		for _, s := range v.Signatures {
			by[s.KeyID+" "+s.Layout]++
		}
		for _, s := range signers {
			for _, layout := range bothLayouts {
				if n := by[s.KeyID()+" "+layout]; n != 1 {
					t.Errorf("key %s has %d signatures in the %s layout, want 1", s.KeyID(), n, layout)
				}
			}
		}
		if len(v.Attestations) != 16 || len(v.Statements) != 8 {
			t.Errorf("%d attestations of %d statements, want 16 of 8", len(v.Attestations), len(v.Statements))
		}
		for _, k := range lock.Keys {
			if k != "referrers:"+img.String() {
				t.Errorf("locked %q, want referrers:%s", k, img)
			}
		}
	})
}

// Two processes that run the same stage: one signature.
func TestTwoSignersOfOneKey(t *testing.T) {
	onBoth(t, func(t *testing.T, reg *signertest.Registry) {
		img := reg.Image(t, "team/app")
		lock := &signertest.Locker{}
		var group sync.WaitGroup
		failed := make([]error, 4)
		for i := range failed {
			s := newSigner(t, 0, func(c *signer.Config) { c.Locker = lock })
			group.Go(func() { _, failed[i] = s.Sign(t.Context(), img) })
		}
		group.Wait()
		if err := errors.Join(failed...); err != nil {
			t.Fatal(err)
		}
		v, err := newSigner(t, 0, nil).Verify(t.Context(), img)
		if err != nil || len(v.Signatures) != 2 {
			t.Errorf("%d signatures, %v; want one in each layout", len(v.Signatures), err)
		}
	})
}

func TestRotation(t *testing.T) {
	reg := signertest.Olareg(t)
	img := reg.Image(t, "team/app")
	if _, err := newSigner(t, 0, nil).Sign(t.Context(), img); err != nil {
		t.Fatal(err)
	}
	old := publicKey(t, sharedKeys()[0].public)
	rotated := newSigner(t, 1, func(c *signer.Config) { c.TrustedKeys = []crypto.PublicKey{old} })
	if v, err := rotated.Verify(t.Context(), img); err != nil || len(v.Signatures) != 2 {
		t.Errorf("after the rotation: %d signatures and %v, want the old key's two", len(v.Signatures), err)
	}
	// Its own signature is still made: the old key's does not stand for it.
	signed, err := rotated.Sign(t.Context(), img)
	if err != nil || len(signed) != 2 || signed[0].KeyID != rotated.KeyID() {
		t.Errorf("signing after the rotation gave %+v, %v; want two by %s", signed, err, rotated.KeyID())
	}
	// Without the old key it is unknown.
	v, err := newSigner(t, 1, nil).Verify(t.Context(), img)
	if err != nil || len(v.Signatures) != 2 {
		t.Errorf("%d signatures and %v, want those of the new key only", len(v.Signatures), err)
	}
}

func TestNewSaysWhatIsWrong(t *testing.T) {
	key := sharedKeys()[0]
	dir := t.TempDir()
	write := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := write("cosign.key", key.private)
	lock := &signertest.Locker{}
	for _, tt := range []struct {
		name string
		c    signer.Config
		want []string
	}{
		{"no key", signer.Config{Locker: lock}, []string{"KeyFile is required"}},
		{"both", signer.Config{Locker: lock, KeyFile: good, Key: key.private}, []string{"KeyFile or Key"}},
		{"no file", signer.Config{Locker: lock, KeyFile: dir + "/absent"}, []string{"KeyFile", "absent"}},
		{"public key", signer.Config{Locker: lock, KeyFile: write("cosign.pub", key.public)}, []string{"KeyFile", "cosign.pub", "public key"}},
		{"not PEM", signer.Config{Locker: lock, KeyFile: write("x", []byte("hello"))}, []string{"KeyFile", "PEM"}},
		{"damaged", signer.Config{Locker: lock, Key: damage(key.private), Password: pass(password)}, []string{"Key:"}},
		{"not encrypted", signer.Config{Locker: lock, KeyFile: write("plain",
			[]byte("-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n"))}, []string{"KeyFile", "not encrypted"}},
		{"wrong password", signer.Config{Locker: lock, KeyFile: good, Password: pass("wrong password")}, []string{"KeyFile", "Password"}},
		{"no password", signer.Config{Locker: lock, KeyFile: good}, []string{"KeyFile", "Password"}},
		{"password fails", signer.Config{Locker: lock, KeyFile: good, Password: func() ([]byte, error) { return nil, errors.New("vault is sealed") }},
			[]string{"Password", "vault is sealed"}},
		{"layout", signer.Config{Locker: lock, KeyFile: good, Password: pass(password), Layouts: []string{"oci"}}, []string{"Layouts", "oci"}},
		{"no locker", signer.Config{KeyFile: good, Password: pass(password)}, []string{"Locker"}},
		{"host", signer.Config{Locker: lock, KeyFile: good, Password: pass(password), Hosts: []pipeline.RegistryHost{{Host: "https://x"}}}, []string{"Hosts", "https://x"}},
		{"trusted key", signer.Config{Locker: lock, KeyFile: good, Password: pass(password), TrustedKeys: []crypto.PublicKey{"?"}}, []string{"TrustedKeys[1]"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := signer.New(t.Context(), tt.c)
			if err == nil {
				t.Fatal("accepted")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
			if strings.Contains(err.Error(), password) || strings.Contains(err.Error(), "wrong password") && !strings.Contains(tt.name, "password") {
				t.Errorf("error %q shows a password", err)
			}
		})
	}
	if _, err := signer.New(t.Context(), signer.Config{Locker: lock, KeyFile: good, Password: pass(password)}); err != nil {
		t.Errorf("a good key file: %v", err)
	}
}

func damage(text []byte) []byte {
	b := slices.Clone(text)
	mid := len(b) / 2
	if b[mid] == 'A' {
		b[mid] = 'B'
	} else {
		b[mid] = 'A'
	}
	return b
}

func TestNothingShowsTheKey(t *testing.T) {
	c := signer.Config{Key: sharedKeys()[0].private, Password: pass(password), Locker: &signertest.Locker{}}
	s, err := signer.New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	log := slog.New(slog.NewJSONHandler(&out, nil))
	log.Info("x", "signer", s, "config", c)
	marshalled, _ := json.Marshal(map[string]any{"s": s})
	fmt.Fprintf(&out, "%v %+v %#v %s %q\n%v %+v %#v\n%s\n", s, s, s, s, s, c, c, c, marshalled)
	wrapped := struct{ S *signer.Signer }{s}
	fmt.Fprintf(&out, "%+v %#v", wrapped, wrapped)
	for _, secret := range []string{password, "PRIVATE", string(c.Key[60:100]), "D:"} {
		if strings.Contains(out.String(), secret) {
			t.Errorf("what was printed contains %q:\n%s", secret, out.String())
		}
	}
	if !strings.Contains(out.String(), s.KeyID()) {
		t.Errorf("what was printed does not name the key:\n%s", out.String())
	}
}
