package verify

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/root"
	sigstore "github.com/sigstore/sigstore-go/pkg/verify"
	"github.com/sigstore/sigstore/pkg/signature"

	"github.com/dray-project/dray/pipeline"
)

var (
	image = pipeline.Digest("sha256:" + strings.Repeat("ab", 32))
	other = pipeline.Digest("sha256:" + strings.Repeat("cd", 32))
)

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func ring(t testing.TB, keys ...crypto.PublicKey) keyring {
	t.Helper()
	r, err := newKeyring(keys)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func signed(t testing.TB, k *ecdsa.PrivateKey, message []byte) []byte {
	t.Helper()
	sum := sha256.Sum256(message)
	sig, err := ecdsa.SignASN1(rand.Reader, k, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

func hint(t testing.TB, k *ecdsa.PrivateKey) string {
	t.Helper()
	id, err := KeyID(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	sum, _ := hex.DecodeString(id)
	return base64.StdEncoding.EncodeToString(sum)
}

func statementOf(predicateType string, d pipeline.Digest) string {
	return fmt.Sprintf(`{"_type":%q,"subject":[{"name":"x","digest":{"sha256":%q}}],"predicateType":%q,"predicate":{}}`,
		StatementType, d.Hex(), predicateType)
}

func b64(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

func envelope(payload, sig []byte) string {
	return fmt.Sprintf(`{"payload":%q,"payloadType":%q,"signatures":[{"sig":%q}]}`, b64(payload), PayloadType, b64(sig))
}

func bundleJSON(material, content string) string {
	return fmt.Sprintf(`{"mediaType":%q,"verificationMaterial":{%s},%s}`, BundleType, material, content)
}

// good is a bundle by k over the payload.
func good(t testing.TB, k *ecdsa.PrivateKey, payload string) string {
	t.Helper()
	sig := signed(t, k, preAuthEncoding(PayloadType, []byte(payload)))
	return bundleJSON(fmt.Sprintf(`"publicKey":{"hint":%q}`, hint(t, k)), `"dsseEnvelope":`+envelope([]byte(payload), sig))
}

func TestCheckBundle(t *testing.T) {
	k, stranger := newKey(t), newKey(t)
	r := ring(t, k.Public(), newKey(t).Public())
	payload := statementOf(PredicateSignature, image)
	sig := signed(t, k, preAuthEncoding(PayloadType, []byte(payload)))
	key := fmt.Sprintf(`"publicKey":{"hint":%q}`, hint(t, k))
	env := `"dsseEnvelope":` + envelope([]byte(payload), sig)
	sum := sha256.Sum256([]byte(payload))

	for _, tt := range []struct {
		name, raw string
		want      string // part of the reason; empty: accepted
	}{
		{"good", good(t, k, payload), ""},
		{"good, older spelling of the type", strings.Replace(good(t, k, payload), BundleType, bundleTypeParameter, 1), ""},
		{"good, without a hint", bundleJSON(`"publicKey":{}`, env), ""},
		{"good, the hint lies", bundleJSON(fmt.Sprintf(`"publicKey":{"hint":%q}`, hint(t, stranger)), env), ""},
		{"by a stranger", good(t, stranger, payload), "not trusted (key id "},
		{"by a stranger who claims to be trusted", bundleJSON(key, `"dsseEnvelope":`+envelope([]byte(payload), signed(t, stranger, preAuthEncoding(PayloadType, []byte(payload))))), "not one of key"},
		{"payload changed", bundleJSON(key, `"dsseEnvelope":`+envelope([]byte(payload+" "), sig)), "not one of key"},
		{"signature over the bare payload", bundleJSON(key, `"dsseEnvelope":`+envelope([]byte(payload), signed(t, k, []byte(payload)))), "not one of key"},
		{"no signature", bundleJSON(key, `"dsseEnvelope":`+strings.Replace(envelope([]byte(payload), nil), `{"sig":""}`, "", 1)), "0 signatures"},
		{"two signatures", bundleJSON(key, strings.Replace(env, `"signatures":[`, `"signatures":[{"sig":"AAAA"},`, 1)), "2 signatures"},
		{"another payload type", bundleJSON(key, strings.Replace(env, PayloadType, "text/plain", 1)), "the signed payload"},
		{"a certificate", bundleJSON(`"certificate":{"rawBytes":"AAAA"}`, env), "certificate"},
		{"a certificate chain", bundleJSON(`"x509CertificateChain":{"certificates":[]}`, env), "certificate"},
		{"no verification material", fmt.Sprintf(`{"mediaType":%q,%s}`, BundleType, env), "does not say what verifies it"},
		{"a message signature", bundleJSON(key, fmt.Sprintf(`"messageSignature":{"messageDigest":{"algorithm":"SHA2_256","digest":%q},"signature":%q}`, b64(sum[:]), b64(sig))), "signs bytes"},
		{"no content", fmt.Sprintf(`{"mediaType":%q,"verificationMaterial":{%s}}`, BundleType, key), "signs bytes"},
		{"version 0.1", strings.Replace(good(t, k, payload), BundleType, "application/vnd.dev.sigstore.bundle+json;version=0.1", 1), "media type"},
		{"an unknown field", strings.Replace(good(t, k, payload), `{"mediaType"`, `{"x":1,"mediaType"`, 1), "not a Sigstore bundle"},
		{"a field twice", strings.Replace(good(t, k, payload), `{"mediaType"`, `{"mediaType":"x","mediaType"`, 1), "not a Sigstore bundle"},
		{"cut short", good(t, k, payload)[:200], "not a Sigstore bundle"},
		{"null", "null", ""}, // see below: any rejection
		{"nothing", "", "not a Sigstore bundle"},
		{"another image", good(t, k, statementOf(PredicateSignature, other)), "another image"},
		{"no statement", good(t, k, `{}`), "_type"},
		{"no JSON", good(t, k, `signed`), "not a JSON object"},
		{"no subject", good(t, k, fmt.Sprintf(`{"_type":%q,"predicateType":"x","subject":[]}`, StatementType)), "no subject"},
		{"subject null", good(t, k, fmt.Sprintf(`{"_type":%q,"predicateType":"x","subject":null}`, StatementType)), "no subject"},
		{"subject without digest", good(t, k, fmt.Sprintf(`{"_type":%q,"predicateType":"x","subject":[{"name":"x"}]}`, StatementType)), "subject digest"},
		{"digest of another kind", good(t, k, fmt.Sprintf(`{"_type":%q,"predicateType":"x","subject":[{"digest":{"sha1":%q}}]}`, StatementType, image.Hex())), "another image"},
		{"digest in capitals", good(t, k, fmt.Sprintf(`{"_type":%q,"predicateType":"x","subject":[{"digest":{"sha256":%q}}]}`, StatementType, strings.ToUpper(image.Hex()))), "another image"},
		{"no predicate type", good(t, k, fmt.Sprintf(`{"_type":%q,"subject":[{"digest":{"sha256":%q}}]}`, StatementType, image.Hex())), "predicateType"},
		{"field names in other case", good(t, k, strings.Replace(payload, `"subject"`, `"Subject"`, 1)), "no subject"},
		{"subject twice", good(t, k, strings.Replace(payload, `{"_type"`, `{"subject":[],"_type"`, 1)), "twice"},
		{"a digest twice", good(t, k, strings.Replace(payload, `"digest":{`, `"digest":{"sha256":"`+other.Hex()+`",`, 1)), "twice"},
		{"something after", good(t, k, payload+"{}"), "something follows"},
		{"deep", good(t, k, strings.Replace(payload, `"predicate":{}`, `"predicate":`+strings.Repeat("[", 100000), 1)), "not JSON"},
		{"many subjects", good(t, k, fmt.Sprintf(`{"_type":%q,"predicateType":"x","subject":[%s{"digest":{}}]}`, StatementType, strings.Repeat(`{"digest":{}},`, 2000))), "more than 1024"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := r.checkBundle([]byte(tt.raw), image)
			if tt.want == "" && tt.name != "null" {
				if err != nil || c.predicateType != PredicateSignature || c.keyID != r[0].id || string(c.payload) != payload {
					t.Fatalf("%+v, %v; want the statement by key %s", c, err, r[0].id)
				}
				sigstoreAgrees(t, []byte(tt.raw), k.Public())
				return
			}
			rej, ok := rejected(err)
			if !ok || !strings.Contains(rej.reason, tt.want) {
				t.Errorf("%v; want a rejection that says %q", err, tt.want)
			}
		})
	}
}

// sigstoreAgrees checks with the library that sigstore's own tools use.
func sigstoreAgrees(t *testing.T, raw []byte, key crypto.PublicKey) {
	t.Helper()
	var b bundle.Bundle
	if err := b.UnmarshalJSON(raw); err != nil {
		t.Fatalf("accepted what sigstore-go cannot read: %v", err)
	}
	v, err := signature.LoadDefaultVerifier(key)
	if err != nil {
		t.Fatal(err)
	}
	trusted := root.NewTrustedPublicKeyMaterial(func(string) (root.TimeConstrainedVerifier, error) {
		return root.NewExpiringKey(v, time.Time{}, time.Time{}), nil
	})
	sev, err := sigstore.NewVerifier(trusted, sigstore.WithNoObserverTimestamps())
	if err != nil {
		t.Fatal(err)
	}
	digest, _ := hex.DecodeString(image.Hex())
	if _, err := sev.Verify(&b, sigstore.NewPolicy(sigstore.WithArtifactDigest("sha256", digest), sigstore.WithKey())); err != nil {
		t.Fatalf("accepted what sigstore-go refuses: %v", err)
	}
}

func TestCheckSimpleSigning(t *testing.T) {
	k := newKey(t)
	r := ring(t, k.Public())
	payload := func(kind, digest string) string {
		return fmt.Sprintf(`{"critical":{"identity":{"docker-reference":"x"},"image":{"docker-manifest-digest":%q},"type":%q},"optional":null}`, digest, kind)
	}
	right := payload(simpleSigningKind, string(image))
	for _, tt := range []struct {
		name, payload string
		annotations   map[string]string
		want          string
	}{
		{"good", right, map[string]string{signatureAnnotation: b64(signed(t, k, []byte(right)))}, ""},
		{"no signature", right, nil, "no signature"},
		{"no base64", right, map[string]string{signatureAnnotation: "?"}, "no signature"},
		{"stranger", right, map[string]string{signatureAnnotation: b64(signed(t, newKey(t), []byte(right)))}, "not trusted"},
		{"certificate", right, map[string]string{signatureAnnotation: "AAAA", certificateAnnotation: "x"}, "certificate"},
		{"another image", payload(simpleSigningKind, string(other)), nil, "another image"},
		{"another kind", payload("atomic container signature", string(image)), nil, "want a cosign"},
		{"no JSON", "hello", nil, "want a cosign"},
		{"an in-toto statement", statementOf(PredicateSignature, image), nil, "want a cosign"},
		{"a field twice", strings.Replace(right, `"image":`, `"image":{},"image":`, 1), nil, "want a cosign"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.annotations == nil && tt.want != "no signature" {
				tt.annotations = map[string]string{signatureAnnotation: b64(signed(t, k, []byte(tt.payload)))}
			}
			id, err := r.checkSimpleSigning([]byte(tt.payload), tt.annotations, image)
			if tt.want == "" {
				if err != nil || id != r[0].id {
					t.Errorf("%s, %v; want key %s", id, err, r[0].id)
				}
				return
			}
			if rej, ok := rejected(err); !ok || !strings.Contains(rej.reason, tt.want) {
				t.Errorf("%v; want a rejection that says %q", err, tt.want)
			}
		})
	}
}

func TestCheckLegacyEnvelope(t *testing.T) {
	k := newKey(t)
	r := ring(t, k.Public())
	const kind = "https://slsa.dev/provenance/v1"
	payload := strings.Replace(statementOf(kind, image), StatementType, statementTypeV01, 1)
	sig := signed(t, k, preAuthEncoding(PayloadType, []byte(payload)))
	if c, err := r.checkLegacyEnvelope([]byte(envelope([]byte(payload), sig)), nil, image); err != nil || c.predicateType != kind {
		t.Errorf("%+v, %v; want the statement", c, err)
	}
	asSignature := statementOf(PredicateSignature, image)
	for name, raw := range map[string]string{
		"another image": envelope([]byte(statementOf(kind, other)), signed(t, k, preAuthEncoding(PayloadType, []byte(statementOf(kind, other))))),
		"stranger":      envelope([]byte(payload), signed(t, newKey(t), preAuthEncoding(PayloadType, []byte(payload)))),
		"a signature":   envelope([]byte(asSignature), signed(t, k, preAuthEncoding(PayloadType, []byte(asSignature)))),
		"no JSON":       "x",
		"null":          "null",
		"wrong types":   `{"payload":{}}`,
	} {
		if _, err := r.checkLegacyEnvelope([]byte(raw), nil, image); err == nil {
			t.Errorf("%s: accepted", name)
		} else if _, ok := rejected(err); !ok {
			t.Errorf("%s: %v, want a rejection", name, err)
		}
	}
}

func TestKeys(t *testing.T) {
	message := []byte("message")
	s256, s384, s512 := sha256.Sum256(message), sha512.Sum384(message), sha512.Sum512(message)
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	p521, _ := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	p224, _ := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	r2048, _ := rsa.GenerateKey(rand.Reader, 2048)
	public, private, _ := ed25519.GenerateKey(rand.Reader)
	sign := func(k crypto.Signer, digest []byte, opts crypto.SignerOpts) []byte {
		sig, err := k.Sign(rand.Reader, digest, opts)
		if err != nil {
			t.Fatal(err)
		}
		return sig
	}
	for name, tt := range map[string]struct {
		key crypto.PublicKey
		sig []byte
	}{
		"P-384, its own hash": {p384.Public(), sign(p384, s384[:], crypto.SHA384)},
		"P-384, SHA-256":      {p384.Public(), sign(p384, s256[:], crypto.SHA256)},
		"P-521":               {p521.Public(), sign(p521, s512[:], crypto.SHA512)},
		"RSA":                 {r2048.Public(), sign(r2048, s256[:], crypto.SHA256)},
		"Ed25519":             {public, sign(private, message, crypto.Hash(0))},
		"Ed25519ph":           {public, sign(private, s512[:], crypto.SHA512)},
	} {
		r := ring(t, newKey(t).Public(), tt.key)
		if id, ok := r.signer(message, tt.sig); !ok || id != r[1].id {
			t.Errorf("%s: not verified", name)
		}
		if _, ok := r.signer([]byte("another"), tt.sig); ok {
			t.Errorf("%s: verifies another message", name)
		}
		text, err := MarshalPublicKey(tt.key)
		if err != nil {
			t.Fatal(err)
		}
		back, err := ParsePublicKeys(append(text, text...))
		if err != nil || len(back) != 2 {
			t.Errorf("%s: read back %d keys, %v; want 2", name, len(back), err)
		}
	}
	var none *ecdsa.PublicKey
	for name, key := range map[string]crypto.PublicKey{
		"nil": nil, "a nil key": none, "P-224": p224.Public(), "private": p384, "short": ed25519.PublicKey{1},
	} {
		if _, err := newKeyring([]crypto.PublicKey{key}); !errors.Is(err, pipeline.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
	if _, err := newKeyring(nil); err == nil {
		t.Error("no key at all was accepted")
	}
	for _, text := range []string{"", "hello", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
		"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"} {
		if _, err := ParsePublicKeys([]byte(text)); !errors.Is(err, pipeline.ErrInvalid) {
			t.Errorf("%q: %v, want ErrInvalid", text, err)
		}
	}
}

func TestPreAuthEncoding(t *testing.T) {
	for _, payload := range []string{"", "hello world", strings.Repeat("x", 100000), "\x00ü"} {
		for _, kind := range []string{"", PayloadType} {
			if got, want := preAuthEncoding(kind, []byte(payload)), dsse.PAE(kind, []byte(payload)); string(got) != string(want) {
				t.Errorf("encoded %.50q, want %.50q", got, want)
			}
		}
	}
}

// object may refuse what encoding/json takes, and never the other way round.
func FuzzObject(f *testing.F) {
	for _, s := range []string{`{}`, `{"a":1}`, `{"a":1,"a":2}`, `{"a":{"b":[1,2]}} `, `{`, `null`, `{"a":1}x`, `{"\u0061":1,"a":2}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		fields, err := object(raw)
		if err != nil {
			return
		}
		var want map[string]json.RawMessage
		if err := json.Unmarshal(raw, &want); err != nil {
			t.Fatalf("accepted %q, encoding/json says %v", raw, err)
		}
		if len(fields) != len(want) {
			t.Fatalf("%q has the fields %v, want %v", raw, fields, want)
		}
	})
}

// Whatever a registry serves: no panic, and what is accepted is one of the two
// statements that the key signed, about the right image.
func FuzzCheck(f *testing.F) {
	// Fixed, so that a crasher stays one.
	k, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), []byte(strings.Repeat("k", 32)))
	if err != nil {
		f.Fatal(err)
	}
	r := ring(f, k.Public())
	const kind = "https://slsa.dev/provenance/v1"
	mine := map[string]bool{}
	for _, s := range []string{statementOf(PredicateSignature, image), statementOf(kind, image)} {
		mine[s] = true
		sig := signed(f, k, preAuthEncoding(PayloadType, []byte(s)))
		f.Add([]byte(good(f, k, s)), b64(sig))
		f.Add([]byte(envelope([]byte(s), sig)), "")
	}
	f.Add([]byte(good(f, k, statementOf(kind, other))), "")
	simple := fmt.Sprintf(`{"critical":{"image":{"docker-manifest-digest":%q},"type":%q}}`, image, simpleSigningKind)
	f.Add([]byte(simple), b64(signed(f, k, []byte(simple))))
	f.Add([]byte(good(f, newKey(f), statementOf(kind, image))), "")
	for _, s := range []string{"", "null", "{}", `{"mediaType":1}`, bundleJSON(`"publicKey":{}`, `"dsseEnvelope":{}`),
		bundleJSON(`"publicKey":null`, `"dsseEnvelope":null`), bundleJSON(`"certificate":{}`, `"messageSignature":{}`),
		bundleJSON(`"publicKey":{}`, `"dsseEnvelope":{"signatures":[null]}`)} {
		f.Add([]byte(s), s)
	}
	f.Fuzz(func(t *testing.T, raw []byte, annotation string) {
		annotations := map[string]string{signatureAnnotation: annotation}
		if c, err := r.checkBundle(raw, image); err == nil && !mine[string(c.payload)] {
			t.Errorf("a bundle claims %q, which the key did not sign", c.payload)
		} else if err == nil && !strings.Contains(string(raw), "tlogEntries") && !strings.Contains(string(raw), "tlog_entries") {
			sigstoreAgrees(t, raw, k.Public())
		} else if err != nil {
			_ = tame(err.Error())
		}
		if c, err := r.checkLegacyEnvelope(raw, annotations, image); err == nil && !mine[string(c.payload)] {
			t.Errorf("an envelope claims %q, which the key did not sign", c.payload)
		}
		if _, err := r.checkSimpleSigning(raw, annotations, image); err == nil && string(raw) != simple {
			t.Errorf("accepted %q, which the key did not sign", raw)
		}
	})
}

func TestTame(t *testing.T) {
	in := "a\nb\x1b[31m\u202e" + strings.Repeat("ü", 1000)
	got := tame(in)
	if strings.ContainsAny(got, "\n\x1b\u202e") || len(got) > 310 {
		t.Errorf("%q", got)
	}
}

func TestCommandsAreQuoted(t *testing.T) {
	c := Command{Args: []string{"cosign", "verify", "--key", "/home/o'brien/my key.pub", "r/app@sha256:00"}}
	if got, want := c.String(), `cosign verify --key '/home/o'\''brien/my key.pub' r/app@sha256:00`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	all := Commands(pipeline.Image{Repository: "r/app", Digest: image}, CommandOptions{Key: "k", TrustedRoot: "root", PlainHTTP: true, PredicateTypes: []string{"https://x/y"}})
	if len(all) != 4 || !strings.Contains(all[1].String(), "--trusted-root root --allow-http-registry --type https://x/y r/app@") {
		t.Errorf("%v", all)
	}
	if _, err := root.NewTrustedRootFromJSON(TrustedRoot()); err != nil {
		t.Errorf("the trusted root cannot be read: %v", err)
	}
}
