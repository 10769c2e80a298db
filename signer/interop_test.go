package signer_test

import (
	"bytes"
	"context"
	"crypto"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/signer"
	"github.com/dray-project/dray/signer/internal/signertest"
	"github.com/dray-project/dray/signer/verify"
)

// cosigns are the command lines that users have, by version.
func cosigns(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{"2.6": os.Getenv("DRAY_TEST_COSIGN2"), "3": os.Getenv("DRAY_TEST_COSIGN3")}
	for version, path := range found {
		if path != "" {
			continue
		}
		if os.Getenv("DRAY_TEST_REQUIRE") == "1" {
			t.Fatalf("no cosign %s: set DRAY_TEST_COSIGN2 and DRAY_TEST_COSIGN3 to the programs", version)
		}
		t.Skip("set DRAY_TEST_COSIGN2 and DRAY_TEST_COSIGN3 to the programs")
	}
	return found
}

// user is somebody with cosign and an empty home directory.
type user struct {
	cosign map[string]string
	home   string
}

func (u user) run(t *testing.T, version string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, u.cosign[version], args...)
	cmd.Env = []string{"HOME=" + u.home, "PATH=/usr/bin:/bin", "COSIGN_PASSWORD=" + password}
	cmd.Dir = u.home
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

func newUser(t *testing.T) user {
	u := user{cosign: cosigns(t), home: t.TempDir()}
	key := sharedKeys()[0]
	for name, content := range map[string][]byte{
		"cosign.pub": key.public, "cosign.key": key.private, "other.pub": sharedKeys()[1].public,
		"trusted_root.json": verify.TrustedRoot(), "predicate.json": provenance.Predicate, "sbom.json": sbom.Predicate,
	} {
		if err := os.WriteFile(filepath.Join(u.home, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return u
}

// The commands that Dray prints are what an ordinary user's cosign accepts, of
// either version, on either kind of registry, whichever layouts were written.
func TestUsersCosignAccepts(t *testing.T) {
	u := newUser(t)
	onBoth(t, func(t *testing.T, reg *signertest.Registry) {
		for name, written := range map[string][]string{
			"both": bothLayouts, "bundle only": {verify.LayoutBundle}, "legacy only": {verify.LayoutLegacy},
		} {
			t.Run(name, func(t *testing.T) {
				index, children := reg.Index(t, "team/app")
				s := newSigner(t, 0, func(c *signer.Config) {
					c.Layouts = written
					c.Hosts = []pipeline.RegistryHost{{Host: reg.Host, PlainHTTP: true}}
				})
				for _, img := range []pipeline.Image{index, children[0]} {
					if _, err := s.Sign(t.Context(), img); err != nil {
						t.Fatal(err)
					}
					for _, st := range []pipeline.Statement{provenance, sbom, summary("staging", 1), summary("prod", 2)} {
						if _, err := s.Attest(t.Context(), img, st); err != nil {
							t.Fatal(err)
						}
					}
					commands := s.Commands(img, verify.CommandOptions{Key: u.home + "/cosign.pub", TrustedRoot: u.home + "/trusted_root.json",
						PredicateTypes: []string{pipeline.PredicateProvenance, pipeline.PredicateCycloneDX, pipeline.PredicateSummary}})
					if len(commands) != 8 {
						t.Fatalf("%d commands, want one per version for the signature and three attestations", len(commands))
					}
					for _, c := range commands {
						out, err := u.run(t, c.Version, c.Args[1:]...)
						if err != nil {
							t.Errorf("%s\n%v\n%s", c, err, out)
						}
						if !strings.Contains(out, "verified against the specified public key") {
							t.Errorf("%s\nsays\n%s", c, out)
						}
						if want := "--type " + pipeline.PredicateSummary; c.Checks == pipeline.PredicateSummary && !strings.Contains(c.String(), want) {
							t.Errorf("%s has no %s", c, want)
						}
						wrong := slices.Clone(c.Args[1:])
						wrong[slices.Index(wrong, "--key")+1] = u.home + "/other.pub"
						if out, err := u.run(t, c.Version, wrong...); err == nil {
							t.Errorf("%s accepts the wrong key:\n%s", c, out)
						}
					}
				}
				unsigned := children[1]
				for _, c := range s.Commands(unsigned, verify.CommandOptions{Key: u.home + "/cosign.pub", TrustedRoot: u.home + "/trusted_root.json"}) {
					if out, err := u.run(t, c.Version, c.Args[1:]...); err == nil {
						t.Errorf("%s accepts an image without signature:\n%s", c, out)
					}
				}
			})
		}
	})
}

// A sealed statement can be checked with a user's cosign as it is. Version 3
// reads such an envelope when it is told that it is none of its own bundles.
func TestUsersCosignAcceptsSealed(t *testing.T) {
	u := newUser(t)
	img := pipeline.Image{Repository: "registry.example/app", Digest: "sha256:" + pipeline.Digest(strings.Repeat("ab", 32))}
	sealed, err := newSigner(t, 0, nil).Seal(t.Context(), img, summary("prod", 1))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(u.home, "summary.dsse.json"), sealed.Envelope, 0o600); err != nil {
		t.Fatal(err)
	}
	for version, more := range map[string][]string{"2.6": nil, "3": {"--new-bundle-format=false"}} {
		for key, accepts := range map[string]bool{"cosign.pub": true, "other.pub": false} {
			args := append([]string{"verify-blob-attestation", "--key", key, "--insecure-ignore-tlog=true", "--check-claims=false",
				"--type", pipeline.PredicateSummary, "--signature", "summary.dsse.json"}, more...)
			if out, err := u.run(t, version, args...); (err == nil) != accepts {
				t.Errorf("cosign %s %s: %v\n%s", version, strings.Join(args, " "), err, out)
			}
		}
	}
}

// What a user signs with their own cosign counts when their key is trusted,
// and stands beside what Dray writes.
func TestUsersCosignIsAccepted(t *testing.T) {
	u := newUser(t)
	userKey := publicKey(t, sharedKeys()[0].public)
	onBoth(t, func(t *testing.T, reg *signertest.Registry) {
		for _, tt := range []struct {
			name, version string
			sign, attest  []string
			layout        string
		}{
			{"2.6 legacy", "2.6",
				[]string{"sign", "--key", "cosign.key", "--tlog-upload=false", "--yes"},
				[]string{"attest", "--key", "cosign.key", "--tlog-upload=false", "--yes"}, verify.LayoutLegacy},
			{"2.6 bundle", "2.6",
				[]string{"sign", "--key", "cosign.key", "--tlog-upload=false", "--yes", "--new-bundle-format"},
				[]string{"attest", "--key", "cosign.key", "--tlog-upload=false", "--yes", "--new-bundle-format"}, verify.LayoutBundle},
			{"3 bundle", "3",
				[]string{"sign", "--key", "cosign.key", "--tlog-upload=false", "--use-signing-config=false", "--yes"},
				[]string{"attest", "--key", "cosign.key", "--tlog-upload=false", "--use-signing-config=false", "--yes"}, verify.LayoutBundle},
		} {
			t.Run(tt.name, func(t *testing.T) {
				img := reg.Image(t, "team/app")
				s := newSigner(t, 1, func(c *signer.Config) { c.TrustedKeys = []crypto.PublicKey{userKey} })
				if _, err := s.Sign(t.Context(), img); err != nil {
					t.Fatal(err)
				}
				for _, args := range [][]string{
					append(slices.Clone(tt.sign), img.String()),
					append(slices.Clone(tt.attest), "--type", "slsaprovenance1", "--predicate", "predicate.json", img.String()),
					append(slices.Clone(tt.attest), "--type", "cyclonedx", "--predicate", "sbom.json", img.String()),
				} {
					if out, err := u.run(t, tt.version, args...); err != nil {
						t.Fatalf("cosign %s: %v\n%s", strings.Join(args, " "), err, out)
					}
				}
				v, err := s.Verify(t.Context(), img)
				if err != nil {
					t.Fatal(err)
				}
				id, err := verify.KeyID(userKey)
				if err != nil {
					t.Fatal(err)
				}
				var theirs []string
				for _, g := range v.Signatures {
					if g.KeyID == id {
						theirs = append(theirs, g.Layout)
					}
				}
				if !slices.Equal(theirs, []string{tt.layout}) || len(v.Signatures) != 3 {
					t.Errorf("the user's signatures are in %v of %+v; want one in %s beside Dray's two", theirs, v.Signatures, tt.layout)
				}
				var types []string
				for _, a := range v.Attestations {
					if a.KeyID == id && a.Layout == tt.layout {
						types = append(types, a.PredicateType)
					}
				}
				if !slices.Equal(types, []string{pipeline.PredicateCycloneDX, pipeline.PredicateProvenance}) {
					t.Errorf("the user's attestations are %v of %+v", types, v.Attestations)
				}
				// Signing again keeps the user's.
				if _, err := s.Sign(t.Context(), img); err != nil {
					t.Fatal(err)
				}
				if again, err := s.Verify(t.Context(), img); err != nil || len(again.Signatures) != 3 {
					t.Errorf("after signing again: %+v, %v", again.Signatures, err)
				}
			})
		}
	})
}

// A user's cosign makes and reads the same key files.
func TestKeyFilesAreCosigns(t *testing.T) {
	u := newUser(t)
	for _, version := range []string{"2.6", "3"} {
		out, err := u.run(t, version, "public-key", "--key", "cosign.key")
		if err != nil || !strings.Contains(out, strings.TrimSpace(string(sharedKeys()[0].public))) {
			t.Errorf("cosign %s public-key: %v\n%s", version, err, out)
		}
		prefix := "made-by-" + version
		if out, err := u.run(t, version, "generate-key-pair", "--output-key-prefix", prefix); err != nil {
			t.Fatalf("cosign %s generate-key-pair: %v\n%s", version, err, out)
		}
		s, err := signer.New(t.Context(), signer.Config{
			KeyFile: filepath.Join(u.home, prefix+".key"), Password: pass(password), Locker: &signertest.Locker{},
		})
		if err != nil {
			t.Fatalf("the key of cosign %s: %v", version, err)
		}
		public, err := os.ReadFile(filepath.Join(u.home, prefix+".pub"))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := s.PublicKey(); err != nil || !bytes.Equal(got, public) {
			t.Errorf("the public key is\n%s%v, cosign %s wrote\n%s", got, err, version, public)
		}
	}
}
