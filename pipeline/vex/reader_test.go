package vex_test

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/vex"
)

const digest = "sha256:1111111111111111111111111111111111111111111111111111111111111111"

// A document with all that is read of one.
const sample = `{
  "@context": "https://openvex.dev/ns/v0.2.0",
  "@id": "https://vendor.example/vex/2026-001",
  "author": "Security Team <security@vendor.example>",
  "timestamp": "2026-05-01T10:00:00Z",
  "last_updated": "2026-05-03T10:00:00+02:00",
  "version": 2,
  "statements": [
    {
      "vulnerability": {"name": "CVE-2026-0001", "aliases": ["GHSA-aaaa-bbbb-cccc"]},
      "timestamp": "2026-05-02T10:00:00Z",
      "products": [{"@id": "pkg:oci/app", "subcomponents": [{"@id": "pkg:deb/debian/openssl"}]}],
      "status": "affected",
      "action_statement": "update"
    },
    {
      "vulnerability": {"@id": "https://nvd.nist.gov/vuln/detail/CVE-2026-0002", "name": "CVE-2026-0002"},
      "products": [{"identifiers": {"purl": "pkg:oci/app@` + "sha256%3A1111111111111111111111111111111111111111111111111111111111111111" + `"}, "hashes": {"sha-256": "1111111111111111111111111111111111111111111111111111111111111111"}}],
      "status": "not_affected",
      "impact_statement": "the code is not\nreached\u001b[31m"
    }
  ]
}
`

func read(document, signature []byte, keys ...string) ([]pipeline.VEXStatement, error) {
	return vex.Reader{}.Read(pipeline.VEXDocument{ID: "vex_1", Document: document, Signature: signature}, keys)
}

func TestRead(t *testing.T) {
	s := ecdsaSigner(t, elliptic.P256(), crypto.SHA256)
	got, err := read([]byte(sample), s.base64Form([]byte(sample)), s.pem)
	if err != nil {
		t.Fatal(err)
	}
	day := func(n int) time.Time { return time.Date(2026, 5, n, 10, 0, 0, 0, time.UTC) }
	updated := time.Date(2026, 5, 3, 8, 0, 0, 0, time.UTC)
	// The older first, although the document has it last.
	want := []pipeline.VEXStatement{
		{Document: "vex_1", Author: "Security Team <security@vendor.example>", KeyID: s.id,
			Vulnerability: []string{"CVE-2026-0002", "https://nvd.nist.gov/vuln/detail/CVE-2026-0002"},
			Status:        "not_affected", Justification: "the code is not reached[31m",
			Products: []pipeline.VEXProduct{{ID: "pkg:oci/app@sha256%3A" + digest[7:]}, {ID: digest}}, At: day(1), DocumentAt: updated},
		{Document: "vex_1", Author: "Security Team <security@vendor.example>", KeyID: s.id,
			Vulnerability: []string{"CVE-2026-0001", "GHSA-aaaa-bbbb-cccc"}, Status: "affected",
			Products: []pipeline.VEXProduct{{ID: "pkg:oci/app", Subcomponents: []string{"pkg:deb/debian/openssl"}}}, At: day(2), DocumentAt: updated},
	}
	if g, w := fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", want); g != w {
		t.Errorf("got\n%s\nwant\n%s", g, w)
	}
	if !got[0].Suppresses() || got[1].Suppresses() {
		t.Error("not_affected with a reason suppresses, affected does not")
	}
}

// Every kind of key in every form of signature; and each refuses what another
// key signed, other bytes, and another's signature.
func TestSignatures(t *testing.T) {
	signers := map[string]signer{
		"P-256":              ecdsaSigner(t, elliptic.P256(), crypto.SHA256),
		"P-384":              ecdsaSigner(t, elliptic.P384(), crypto.SHA384),
		"P-384 with SHA-256": ecdsaSigner(t, elliptic.P384(), crypto.SHA256),
		"P-521":              ecdsaSigner(t, elliptic.P521(), crypto.SHA512),
		"RSA":                rsaSigner(t),
		"Ed25519":            ed25519Signer(t, crypto.Hash(0)),
		"Ed25519 prehashed":  ed25519Signer(t, &ed25519.Options{Hash: crypto.SHA512}),
	}
	other := ecdsaSigner(t, elliptic.P256(), crypto.SHA256)
	document := []byte(sample)
	tampered := bytes.Replace(document, []byte(`"affected"`), []byte(`"fixed"`), 1)
	for name, s := range signers {
		for form, sign := range map[string]func([]byte) []byte{
			"base64": s.base64Form, "bundle": s.bundle, "attestation": s.attestation,
			"old bundle": func(d []byte) []byte { return asJSON(map[string]any{"base64Signature": s.sign(d)}) },
			"bare envelope": func(d []byte) []byte {
				return asJSON(s.envelope(inToto, statement("https://openvex.dev/ns/v0.2.0", d)))
			},
			"wrapped base64": func(d []byte) []byte {
				text := strings.TrimSpace(string(s.base64Form(d)))
				return []byte(text[:20] + "\n" + text[20:] + "\n")
			},
		} {
			t.Run(name+", "+form, func(t *testing.T) {
				got, err := read(document, sign(document), other.pem, s.pem)
				if err != nil {
					t.Fatal(err)
				}
				if got[0].KeyID != s.id {
					t.Errorf("key %s, want %s", got[0].KeyID, s.id)
				}
				if _, err := read(document, sign(document), s.pem+other.pem); err != nil {
					t.Errorf("two keys in one text: %v", err)
				}
				for what, refused := range map[string]func() error{
					"another key":        func() error { _, err := read(document, sign(document), other.pem); return err },
					"no keys":            func() error { _, err := read(document, sign(document)); return err },
					"tampered":           func() error { _, err := read(tampered, sign(document), s.pem); return err },
					"signed other bytes": func() error { _, err := read(document, sign(tampered), s.pem); return err },
					"revoked": func() error {
						now := time.Now()
						_, err := vex.Reader{}.Read(pipeline.VEXDocument{Document: document, Signature: sign(document), RevokedAt: &now, RevokedBy: "ada"}, []string{s.pem})
						return err
					},
				} {
					if err := refused(); !errors.Is(err, pipeline.ErrUnverified) || errors.Is(err, pipeline.ErrInvalid) {
						t.Errorf("%s: %v, want ErrUnverified", what, err)
					}
				}
				if form != "attestation" && form != "bare envelope" {
					if _, err := read(append(bytes.Clone(document), ' '), sign(document), s.pem); !errors.Is(err, pipeline.ErrUnverified) {
						t.Errorf("a byte more: %v", err)
					}
				}
			})
		}
	}
}

func TestSignatureRefused(t *testing.T) {
	s := ecdsaSigner(t, elliptic.P256(), crypto.SHA256)
	document := []byte(sample)
	change := func(bundle []byte, f func(map[string]any)) []byte {
		var m map[string]any
		if err := json.Unmarshal(bundle, &m); err != nil {
			t.Fatal(err)
		}
		f(m)
		return asJSON(m)
	}
	in := func(m map[string]any, name string) map[string]any { return m[name].(map[string]any) }
	for name, signature := range map[string][]byte{
		"empty":        nil,
		"space":        []byte(" \n"),
		"not base64":   []byte("hello!"),
		"base64 of no": []byte("aGVsbG8="),
		"null":         []byte("null"),
		"empty object": []byte("{}"),
		"broken JSON":  []byte(`{"mediaType":`),
		"two values":   append(s.bundle(document), s.bundle(document)...),
		"twice":        bytes.Replace(s.bundle(document), []byte(`{"mediaType"`), []byte(`{"mediatype":"x","mediaType"`), 1),
		"other version": change(s.bundle(document), func(m map[string]any) {
			m["mediaType"] = "application/vnd.dev.sigstore.bundle+json;version=0.1"
		}),
		"certificate": change(s.bundle(document), func(m map[string]any) {
			m["verificationMaterial"] = map[string]any{"certificate": map[string]any{"rawBytes": "aa=="}}
		}),
		"key and certificate": change(s.bundle(document), func(m map[string]any) {
			in(m, "verificationMaterial")["certificate"] = map[string]any{}
		}),
		"no material": change(s.bundle(document), func(m map[string]any) { delete(m, "verificationMaterial") }),
		"no content":  change(s.bundle(document), func(m map[string]any) { delete(m, "messageSignature") }),
		"two contents": change(s.bundle(document), func(m map[string]any) {
			m["dsseEnvelope"] = s.envelope(inToto, statement("https://openvex.dev/ns", document))
		}),
		"digest of others": change(s.bundle(document), func(m map[string]any) {
			in(in(m, "messageSignature"), "messageDigest")["digest"] = make([]byte, 32)
		}),
		"digest by SHA-1": change(s.bundle(document), func(m map[string]any) {
			in(in(m, "messageSignature"), "messageDigest")["algorithm"] = "SHA1"
		}),
		"other payload type": asJSON(s.envelope("text/plain", statement("https://openvex.dev/ns", document))),
		"other predicate":    asJSON(s.envelope(inToto, statement("https://slsa.dev/provenance/v1", document))),
		"no statement":       asJSON(s.envelope(inToto, document)),
		"a list":             asJSON(s.envelope(inToto, []byte(`[]`))),
		"two signatures": change(asJSON(s.envelope(inToto, statement("https://openvex.dev/ns", document))), func(m map[string]any) {
			m["signatures"] = append(m["signatures"].([]any), m["signatures"].([]any)...)
		}),
		"no signatures": change(asJSON(s.envelope(inToto, statement("https://openvex.dev/ns", document))), func(m map[string]any) { m["signatures"] = nil }),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := read(document, signature, s.pem); !errors.Is(err, pipeline.ErrUnverified) {
				t.Errorf("got %v, want ErrUnverified", err)
			}
		})
	}
	// A signature of one kind of thing is none of another.
	swapped := append([]byte{}, s.sign(statement("https://openvex.dev/ns", document))...)
	e := s.envelope(inToto, statement("https://openvex.dev/ns", document))
	e["signatures"] = []any{map[string]any{"sig": swapped}}
	if _, err := read(document, asJSON(e), s.pem); !errors.Is(err, pipeline.ErrUnverified) {
		t.Errorf("a signature over the bare payload: %v", err)
	}
}

func TestKeysRefused(t *testing.T) {
	s := ecdsaSigner(t, elliptic.P256(), crypto.SHA256)
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Skip(err) // a build of Go that makes none has nothing to refuse
	}
	for name, keys := range map[string][]string{
		"not PEM":       {s.pem, "hello"},
		"empty":         {""},
		"private":       {strings.ReplaceAll(s.pem, "PUBLIC", "PRIVATE")},
		"damaged":       {strings.Replace(s.pem, "MF", "AA", 1)},
		"P-224":         {ecdsaSigner(t, elliptic.P224(), crypto.SHA256).pem},
		"RSA 1024":      {newSigner(t, weak, crypto.SHA256).pem},
		"a hundred one": {strings.Repeat(s.pem, 101)},
	} {
		if _, err := read([]byte(sample), s.base64Form([]byte(sample)), keys...); !errors.Is(err, pipeline.ErrInvalid) || !strings.Contains(err.Error(), "trustedVEXKeys") {
			t.Errorf("%s: got %v, want ErrInvalid that names trustedVEXKeys", name, err)
		}
	}
}

func TestDocumentRefused(t *testing.T) {
	s := ecdsaSigner(t, elliptic.P256(), crypto.SHA256)
	with := func(old, new string) string {
		if !strings.Contains(sample, old) {
			t.Fatalf("the sample has no %s", old)
		}
		return strings.Replace(sample, old, new, 1)
	}
	many := func(one string, n int) string { return strings.TrimSuffix(strings.Repeat(one+",", n), ",") }
	stub := `{"vulnerability":{"name":"CVE-1"},"products":[{"@id":"x"}],"status":"fixed"}`
	statements := func(list string) string {
		return `{"@context":"https://openvex.dev/ns/v0.2.0","author":"x","timestamp":"2026-05-01T10:00:00Z","statements":[` + list + `]}`
	}
	if _, err := read([]byte(statements(stub)), s.base64Form([]byte(statements(stub))), s.pem); err != nil {
		t.Fatalf("the good one: %v", err)
	}
	for name, document := range map[string]string{
		"empty":                     "",
		"null":                      "null",
		"a list":                    "[]",
		"broken":                    sample[:len(sample)/2],
		"two documents":             sample + sample,
		"not UTF-8":                 with("Security", "\xff"),
		"no context":                with("https://openvex.dev/ns/v0.2.0", ""),
		"another format":            with("https://openvex.dev/ns/v0.2.0", "https://docs.oasis-open.org/csaf"),
		"version 0.0.1":             with("ns/v0.2.0", "ns/v0.0.1"),
		"no author":                 with("Security Team <security@vendor.example>", "\\u001b"),
		"no timestamp":              with(`"timestamp": "2026-05-01T10:00:00Z",`, ""),
		"timestamp null":            with(`"2026-05-01T10:00:00Z"`, "null"),
		"timestamp of words":        with(`2026-05-01T10:00:00Z`, "yesterday"),
		"field twice":               with(`"version": 2`, `"version": 2, "author": "other"`),
		"field twice in other case": with(`"status": "affected"`, `"status": "affected", "STATUS": "fixed"`),
		"twice by a folding letter": with(`"status": "affected"`, `"status": "affected", "\u017ftatus": "fixed"`),
		"twice in what is not read": with(`"version": 2`, `"x": {"y": 1, "y": 2}`),
		"no statements":             statements(""),
		"statement null":            statements("null"),
		"unknown status":            with(`"affected"`, `"harmless"`),
		"status in other case":      with(`"affected"`, `"Affected"`),
		"unknown justification":     with(`"impact_statement"`, `"justification": "trust_me", "x"`),
		"no vulnerability":          with(`"name": "CVE-2026-0001", `, ""),
		"vulnerability as text":     with(`{"name": "CVE-2026-0001", "aliases": ["GHSA-aaaa-bbbb-cccc"]}`, `"CVE-2026-0001"`),
		"products as text":          statements(`{"vulnerability":{"name":"CVE-1"},"products":["x"],"status":"fixed"}`),
		"old subcomponents":         statements(`{"vulnerability":{"name":"CVE-1"},"products":[{"@id":"x"}],"subcomponents":["y"],"status":"fixed"}`),
		"deep":                      statements(strings.Repeat("[", 100) + strings.Repeat("]", 100)),
		"very deep":                 strings.Repeat("[", 1<<20),
		"many statements":           statements(many(stub, 10_001)),
		"many aliases":              statements(`{"vulnerability":{"name":"CVE-1","aliases":[` + many(`"x"`, 101) + `]},"status":"fixed"}`),
		"long alias":                statements(`{"vulnerability":{"name":"CVE-1","aliases":["` + strings.Repeat("x", 2049) + `"]},"status":"fixed"}`),
		"many products":             statements(`{"vulnerability":{"name":"CVE-1"},"products":[` + many(`{"@id":"x"}`, 50_001) + `],"status":"fixed"}`),
		"products times components": statements(`{"vulnerability":{"name":"CVE-1"},"products":[` + many(`{"@id":"x","subcomponents":[`+many(`{"@id":"y"}`, 300)+`]}`, 200) + `],"status":"fixed"}`),
		"long product":              statements(`{"vulnerability":{"name":"CVE-1"},"products":[{"@id":"` + strings.Repeat("x", 2049) + `"}],"status":"fixed"}`),
		"large":                     sample + strings.Repeat(" ", 4<<20),
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			if _, err := read([]byte(document), s.base64Form([]byte(document)), s.pem); !errors.Is(err, pipeline.ErrInvalid) {
				t.Errorf("got %v, want ErrInvalid", err)
			} else if len(err.Error()) > 1000 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
			t.Log(time.Since(start))
		})
	}
	// What nobody trusted signed is not looked at.
	if _, err := read([]byte("{"), []byte("aGVsbG8="), s.pem); !errors.Is(err, pipeline.ErrUnverified) || errors.Is(err, pipeline.ErrInvalid) {
		t.Errorf("a broken document with a wrong signature: %v, want ErrUnverified", err)
	}
	if _, err := read([]byte(sample), bytes.Repeat([]byte("A"), 8<<20+1), s.pem); !errors.Is(err, pipeline.ErrInvalid) {
		t.Errorf("a large signature: %v", err)
	}
}

// Nothing may be dated so that it overrides whatever comes later.
func TestDatedLate(t *testing.T) {
	s := ecdsaSigner(t, elliptic.P256(), crypto.SHA256)
	at := func(uploaded time.Time) error {
		_, err := vex.Reader{}.Read(pipeline.VEXDocument{Document: []byte(sample), Signature: s.base64Form([]byte(sample)), UploadedAt: uploaded}, []string{s.pem})
		return err
	}
	statement := time.Date(2026, 5, 2, 10, 0, 0, 0, time.UTC) // the latest time that counts
	if err := at(statement.Add(-23 * time.Hour)); err != nil {
		t.Errorf("within a day: %v", err)
	}
	if err := at(statement.Add(-25 * time.Hour)); !errors.Is(err, pipeline.ErrInvalid) {
		t.Errorf("dated later: %v, want ErrInvalid", err)
	}
}

// FuzzRead holds Read to its contract on documents that are signed and mean ill.
func FuzzRead(f *testing.F) {
	s := ed25519Signer(f, crypto.Hash(0))
	f.Add([]byte(sample), []byte(nil))
	f.Add([]byte(sample), s.bundle([]byte(sample)))
	f.Add([]byte(sample), s.attestation([]byte(sample)))
	f.Fuzz(func(t *testing.T, document, signature []byte) {
		if len(signature) == 0 {
			signature = s.base64Form(document)
		}
		got, err := read(document, signature, s.pem)
		if err != nil {
			if !errors.Is(err, pipeline.ErrUnverified) && !errors.Is(err, pipeline.ErrInvalid) {
				t.Fatalf("%v wraps neither ErrUnverified nor ErrInvalid", err)
			}
			return
		}
		for _, st := range got {
			if len(st.Vulnerability) == 0 || st.KeyID != s.id || st.At.IsZero() {
				t.Fatalf("incomplete: %+v", st)
			}
			img := pipeline.Image{Repository: "r.example/app", Digest: digest}
			vex.Reader{}.Matches(st, pipeline.Finding{ID: st.Vulnerability[0], PURL: "pkg:deb/debian/openssl@1"}, img, nil)
		}
	})
}
