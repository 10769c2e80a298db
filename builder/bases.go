package builder

import (
	"context"
	"fmt"
	"regexp"
	"strings"

	"github.com/moby/buildkit/client/llb/sourceresolver"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver/pb"
	policy "github.com/moby/buildkit/sourcepolicy/pb"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/dray-project/dray/pipeline"
)

// bases collects the images that the plan's platforms start from and fixes the
// digest of each that the Dockerfile does not pin. It returns the configurations
// of those, too, by the images' names.
func (r *resolver) bases(ctx context.Context, c gateway.Client, d *dockerfile, p pipeline.Plan) ([]pipeline.Material, map[string][]byte, error) {
	build := r.buildPlatform()
	var list []baseImage
	seen := map[baseImage]bool{}
	for _, platform := range p.Platforms {
		images, err := d.bases(p.Target, p.Args, build, platform)
		if err != nil {
			return nil, nil, err
		}
		for _, img := range images {
			key := img
			key.line, key.platform = 0, ""
			if !seen[key] {
				seen[key] = true
				list = append(list, img)
			}
		}
	}
	out, configs := make([]pipeline.Material, len(list)), make([][]byte, len(list))
	eg, ctx := errgroup.WithContext(ctx)
	eg.SetLimit(4)
	for i, img := range list {
		out[i] = pipeline.Material{URI: img.name, Digest: img.digest, Pinned: img.digest != ""}
		if out[i].Pinned {
			continue
		}
		eg.Go(func() error {
			os, arch, variant := img.platform.Parts()
			md, err := c.ResolveSourceMetadata(ctx, &pb.SourceOp{Identifier: imageScheme + img.name}, sourceresolver.Opt{
				LogName: "[base] resolve " + img.name,
				// The answer is the digest of the whole index; the platform says
				// which configuration must be there.
				ImageOpt: &sourceresolver.ResolveImageOpt{
					Platform: &ocispecs.Platform{OS: os, Architecture: arch, Variant: variant},
				},
			})
			if err != nil {
				return baseError(d.name, img, err)
			}
			if md.Image == nil {
				return fmt.Errorf("base image %s: buildkitd did not resolve it", img.name)
			}
			configs[i] = md.Image.Config
			out[i].Digest, err = pipeline.ParseDigest(md.Image.Digest.String())
			return err
		})
	}
	if err := eg.Wait(); err != nil {
		return nil, nil, err
	}
	known := map[string][]byte{}
	for i, img := range list {
		if len(configs[i]) > 0 {
			known[img.name] = configs[i]
		}
	}
	return out, known, nil
}

// buildPlatform is what the Dockerfile's BUILDPLATFORM will be.
func (r *resolver) buildPlatform() pipeline.Platform {
	if len(r.builder.Platforms) > 0 {
		return r.builder.Platforms[0]
	}
	return "linux/amd64"
}

func baseError(file string, img baseImage, err error) error {
	err = fmt.Errorf("%s:%d: base image %s: %w", file, img.line, img.name, err)
	text := err.Error()
	switch {
	case transient(text):
		return err
	case strings.Contains(text, "not found"):
		return pipeline.Permanent(fmt.Errorf("%w (check its name and tag)", err))
	case denied(text):
		return pipeline.Permanent(fmt.Errorf("%w (if it is private, its registry needs credentials in Dray's settings)", err))
	}
	return err
}

const imageScheme = "docker-image://"

// pins makes buildkitd build from exactly the recorded bases: each that was
// not pinned is replaced by its digest, and any other image without a digest
// is denied. A policy reaches what rewriting the Dockerfile or named contexts
// would miss or hit wrongly: ONBUILD triggers, and stages that carry the name
// of an image.
func pins(bases []pipeline.Material) *policy.Policy {
	p := &policy.Policy{Version: 1}
	for _, m := range bases {
		if m.Pinned {
			continue
		}
		p.Rules = append(p.Rules, &policy.Rule{
			Action:   policy.PolicyAction_CONVERT,
			Selector: &policy.Selector{Identifier: imageScheme + m.URI, MatchType: policy.MatchType_EXACT},
			Updates:  &policy.Update{Identifier: imageScheme + m.URI + "@" + string(m.Digest)},
		})
	}
	p.Rules = append(p.Rules, &policy.Rule{
		Action:   policy.PolicyAction_DENY,
		Selector: &policy.Selector{Identifier: "^" + regexp.QuoteMeta(imageScheme) + "[^@]*$", MatchType: policy.MatchType_REGEX},
	})
	return p
}
