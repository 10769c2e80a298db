package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/spf13/cobra"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/signer/verify"
)

// predicates are the short names of the attestations that Dray makes.
var predicates = map[string]string{
	"provenance": pipeline.PredicateProvenance,
	"sbom":       pipeline.PredicateCycloneDX,
}

func (a *app) verifyCommand() *cobra.Command {
	var key string
	var require []string
	var plainHTTP bool
	var timeout time.Duration
	var bundle bundleOptions
	c := &cobra.Command{
		Use:   "verify IMAGE",
		Short: "Verify an image or its evidence bundle, without any server",
		Long: `Verify an image's signatures and attestations with a public key alone. The
registry is read directly and no Dray server is asked, so that nobody has to
trust one. Both layouts are read, the bundles of cosign v3 and the tags of
cosign v2. Credentials are those of docker login.

IMAGE is repository@digest. A tag is looked up first; what was verified is then
the digest that is printed, and the tag may move the moment after.

With --bundle and no IMAGE, an evidence bundle is checked that dray evidence
fetched: every claim in it is named, with what became of it, and no network is
used. Besides --key, that takes the public key of the evidence log in --log-key.
Keys that are in the bundle are not trusted.

The exit code is 6 when nothing verifies, when an attestation that --require
names is missing, or when a claim of the bundle fails.`,
		Example: `  dray verify prod.example/acme/hello-go@sha256:2f1d0b7c… --key cosign.pub
  dray verify prod.example/acme/hello-go@sha256:2f1d0b7c… --require provenance --require sbom
  dray verify --bundle hello-go.evidence.tar --key cosign.pub --log-key log.pub --image sha256:2f1d0b7c…
  curl -fsS $DRAY_URL/api/v1/public-key > cosign.pub`,
		Args: func(cmd *cobra.Command, args []string) error {
			if bundle.bundle != "" {
				if len(args) > 0 {
					return usage("--bundle takes no IMAGE: give --image with its digest")
				}
				return nil
			}
			return exactly(1)(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if key == "" {
				key = a.getenv("DRAY_PUBLIC_KEY")
			}
			if key == "" {
				return usage("no key: give --key with the file of the public key, or set DRAY_PUBLIC_KEY")
			}
			pem, err := os.ReadFile(key)
			if err != nil {
				return fmt.Errorf("read the public key: %w", err)
			}
			keys, err := verify.ParsePublicKeys(pem)
			if err != nil {
				return fmt.Errorf("public key %s: %w", key, err)
			}
			if bundle.bundle != "" {
				if cmd.Flags().Changed("require") || plainHTTP {
					return usage("--require and --plain-http go with an IMAGE: a bundle's claims are all checked")
				}
				ctx, cancel := deadline(cmd.Context(), timeout)
				defer cancel()
				return cause(ctx, a.verifyBundle(ctx, bundle, keys))
			}
			if err := bundle.stray(cmd); err != nil {
				return err
			}
			for i, r := range require {
				if full, ok := predicates[r]; ok {
					require[i] = full
				}
			}
			ctx, cancel := deadline(cmd.Context(), timeout)
			defer cancel()
			img, err := a.resolve(ctx, args[0], plainHTTP)
			if err != nil {
				return cause(ctx, err)
			}
			config := verify.Config{TrustedKeys: keys, Keychain: authn.DefaultKeychain, Now: a.now}
			if plainHTTP {
				if config.Hosts, err = plainHost(img.Repository); err != nil {
					return err
				}
			}
			v, err := verify.New(ctx, config)
			if err != nil {
				return err
			}
			verified, err := v.Verify(ctx, img)
			if err != nil {
				return cause(ctx, err)
			}
			for _, r := range require {
				if !verified.Has(r) {
					return fmt.Errorf("%s carries no attestation of type %s by this key: %w", img, r, pipeline.ErrUnverified)
				}
			}
			return a.print(verified, func(w *writer) { w.verified(verified) }, func() []string { return []string{img.String()} })
		},
	}
	c.Flags().StringVar(&key, "key", "", "file with the public key in PEM (default: the file that $DRAY_PUBLIC_KEY names)")
	c.Flags().StringArrayVar(&require, "require", nil, "fail unless there is an attestation of this type: provenance, sbom, or a predicate type; may be repeated")
	c.Flags().BoolVar(&plainHTTP, "plain-http", false, "the registry has no TLS (for localhost that is tried by itself)")
	c.Flags().DurationVar(&timeout, "timeout", 2*time.Minute, "give up after this long (0: never)")
	bundle.flags(c)
	completeWith(c, "require", "provenance", "sbom")
	return c
}

func (w *writer) verified(v pipeline.Verified) {
	w.printf("%s %s\n", w.paint(cell{"verified", green}), v.Image)
	w.evidence(v.Signatures, v.Attestations)
}

// plainHost says that the repository's registry has no TLS.
func plainHost(repository string) ([]pipeline.RegistryHost, error) {
	repo, err := name.NewRepository(repository)
	if err != nil {
		return nil, &usageError{err}
	}
	return []pipeline.RegistryHost{{Host: repo.RegistryStr(), PlainHTTP: true}}, nil
}

// resolve returns the image that is meant; a tag is looked up.
func (a *app) resolve(ctx context.Context, s string, plainHTTP bool) (pipeline.Image, error) {
	img, err := pipeline.ParseImage(s)
	if err == nil {
		return img, nil
	}
	var options []name.Option
	if plainHTTP {
		options = append(options, name.Insecure)
	}
	if strings.Contains(s, "@") {
		return img, &usageError{err}
	}
	ref, tagErr := name.NewTag(s, append(options, name.StrictValidation)...)
	if tagErr != nil {
		return img, &usageError{err}
	}
	found, err := remote.Head(ref, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain), remote.WithUserAgent("dray/"+version))
	if err != nil {
		var t *transport.Error
		if errors.As(err, &t) && t.StatusCode == http.StatusNotFound {
			return img, fmt.Errorf("tag %s: the registry has no such tag: %w", ref, pipeline.ErrNotFound)
		}
		return img, fmt.Errorf("look up tag %s: %w", ref, err)
	}
	digest, err := pipeline.ParseDigest(found.Digest.String())
	if err != nil {
		return img, fmt.Errorf("look up tag %s: %w", ref, err)
	}
	img = pipeline.Image{Repository: ref.Context().Name(), Digest: digest}
	fmt.Fprintf(a.stderr, "%s names %s now\n", ref, digest)
	return img, nil
}
