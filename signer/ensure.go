package signer

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/signer/internal/oci"
	"github.com/dray-project/dray/signer/verify"
)

// Sign makes sure that the image carries a signature by the Signer's key in
// every layout, and returns those. What verifies already is kept; what was
// written is read back and verified.
func (s *Signer) Sign(ctx context.Context, img pipeline.Image) ([]pipeline.Signature, error) {
	var ours []pipeline.Signature
	err := s.ensure(ctx, img, effect{
		name:    "sign",
		selects: verify.Selection{Signatures: true},
		layouts: func(v pipeline.Verified) []string {
			ours = slices.DeleteFunc(v.Signatures, func(g pipeline.Signature) bool { return g.KeyID != s.key.id })
			var in []string
			for _, g := range ours {
				in = append(in, g.Layout)
			}
			return in
		},
		bundle: func(ctx context.Context, at target) error {
			return s.writeBundle(ctx, at, signatureStatement(img), verify.PredicateSignature)
		},
		legacy: s.appendSignature,
	})
	if err != nil {
		return nil, err
	}
	return ours, nil
}

// Attest makes sure that the image carries the statement, signed by the
// Signer's key, in every layout, and returns those attestations. An equal
// statement is kept; one of the same predicate type that says something else
// stays, and this one is added. Two predicates are equal when they are the same
// JSON value.
func (s *Signer) Attest(ctx context.Context, img pipeline.Image, st pipeline.Statement) ([]pipeline.Attestation, error) {
	payload, err := s.payload(img, st)
	if err != nil {
		return nil, pipeline.Permanent(fmt.Errorf("attest %s: %w", img, err))
	}
	digest := digestOf(payload)
	var ours []pipeline.Attestation
	err = s.ensure(ctx, img, effect{
		name:    "attest " + st.PredicateType + " of",
		selects: verify.Selection{Attestations: st.PredicateType},
		layouts: func(v pipeline.Verified) []string {
			ours = slices.DeleteFunc(v.Attestations, func(a pipeline.Attestation) bool {
				return a.KeyID != s.key.id || a.Statement != digest
			})
			var in []string
			for _, a := range ours {
				in = append(in, a.Layout)
			}
			return in
		},
		bundle: func(ctx context.Context, at target) error {
			return s.writeBundle(ctx, at, payload, st.PredicateType)
		},
		legacy: func(ctx context.Context, at target) error {
			return s.appendAttestation(ctx, at, payload, st.PredicateType)
		},
	})
	if err != nil {
		return nil, err
	}
	return ours, nil
}

// effect is something that has to be in the registry.
type effect struct {
	name    string // for messages: name + image
	selects verify.Selection
	// layouts in which it is there already.
	layouts        func(pipeline.Verified) []string
	bundle, legacy func(context.Context, target) error
}

// target is where an effect is written.
type target struct {
	session *oci.Session
	image   pipeline.Image
	subject v1.Descriptor // of the image
}

// ensure writes the effect in the layouts that lack it, while no other process
// writes anything to the same image.
func (s *Signer) ensure(ctx context.Context, img pipeline.Image, e effect) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s %s: %w", e.name, img, err)
		}
	}()
	if _, err := pipeline.ParseImage(img.String()); err != nil {
		return pipeline.Permanent(err)
	}
	unlock, err := s.locker.Lock(ctx, "referrers:"+img.String())
	if err != nil {
		return fmt.Errorf("wait for the turn to write: %w", err)
	}
	defer unlock()

	missing, err := s.missing(ctx, img, e)
	if err != nil || len(missing) == 0 {
		return err
	}
	at, err := s.target(ctx, img)
	if err != nil {
		return err
	}
	for _, layout := range missing {
		write := e.bundle
		if layout == verify.LayoutLegacy {
			write = e.legacy
		}
		if err := write(ctx, at); err != nil {
			return fmt.Errorf("write the %s layout: %w", layout, err)
		}
	}
	// A registry may take a moment to show what it took, and a writer that does
	// not take turns may have overwritten it.
	wait := 200 * time.Millisecond
	for try := 1; ; try++ {
		if missing, err = s.missing(ctx, img, e); err != nil {
			return fmt.Errorf("read back: %w", err)
		}
		if len(missing) == 0 {
			s.log.InfoContext(ctx, "signed", "what", e.name, "image", img.String(), "key", s.key.id)
			return nil
		}
		if try >= s.readBack {
			return fmt.Errorf("the registry took it but does not show it in the %s layout after %d tries; "+
				"another program may be writing signatures to the same image: %w", strings.Join(missing, " and "), try, pipeline.ErrUnverified)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait):
		}
		wait *= 2
	}
}

// missing returns the layouts that lack the effect.
func (s *Signer) missing(ctx context.Context, img pipeline.Image, e effect) ([]string, error) {
	v, err := s.verifier.Read(ctx, img, e.selects)
	if err != nil {
		return nil, err
	}
	have := e.layouts(v)
	return slices.DeleteFunc(slices.Clone(s.layouts), func(l string) bool { return slices.Contains(have, l) }), nil
}

func (s *Signer) target(ctx context.Context, img pipeline.Image) (target, error) {
	session, err := s.access.Write(ctx, img.Repository)
	if err != nil {
		return target{}, err
	}
	m, err := session.Manifest(ctx, session.Repository.Digest(string(img.Digest)))
	if oci.NotFound(err) {
		return target{}, fmt.Errorf("the image is not in the registry: %w", pipeline.ErrNotFound)
	}
	if err != nil {
		return target{}, err
	}
	hash, err := v1.NewHash(string(m.Digest))
	if err != nil {
		return target{}, err
	}
	return target{session, img, v1.Descriptor{MediaType: m.MediaType, Digest: hash, Size: int64(len(m.Raw))}}, nil
}
