package builder

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/dray-project/dray/pipeline"
)

// trustZone separates the caches of code that may be released from those of
// code that may not. A release never reads a cache that untrusted code wrote.
// Only pushes to the repository itself are built, and they all are trusted.
const trustZone = "release"

// Build solves every platform in parallel, pushes each manifest by digest and
// tags nothing but the cache.
func (b *Builder) Build(ctx context.Context, p pipeline.Project, s pipeline.Source, out pipeline.Progress) (pipeline.BuildResult, error) {
	r, err := parseRemote(s.CloneURL)
	if err != nil {
		return pipeline.BuildResult{}, err
	}
	if err := checkSource(s); err != nil {
		return pipeline.BuildResult{}, err
	}
	ctx, cancel := b.limit(ctx)
	defer cancel()
	rec := newRecorder(out)
	access := b.gitAccess(r)
	images := make([]pipeline.PlatformImage, len(s.Plan.Platforms))
	versions := make([]string, len(s.Plan.Platforms))
	// A platform that fails for good ends the others: there will be no image.
	eg, ctx := errgroup.WithContext(ctx)
	for i, platform := range s.Plan.Platforms {
		eg.Go(func() error {
			img, version, err := b.buildPlatform(ctx, p, s, r, access, platform, rec)
			if err != nil {
				return fmt.Errorf("build %s: %w", platform, err)
			}
			images[i], versions[i] = img, version
			return nil
		})
	}
	if err := eg.Wait(); err != nil {
		return pipeline.BuildResult{}, err
	}
	return pipeline.BuildResult{Platforms: images, Builder: "buildkitd " + versions[0]}, nil
}

func checkSource(s pipeline.Source) error {
	if err := checkSHA(s.Commit); err != nil {
		return err
	}
	if len(s.Plan.Platforms) == 0 {
		return pipeline.Permanent(fmt.Errorf("the plan names no platform: %w", pipeline.ErrInvalid))
	}
	for _, dir := range []string{s.Plan.Context, s.Plan.Dockerfile} {
		if clean, err := cleanPath(dir); err != nil || clean != dir {
			return pipeline.Permanent(fmt.Errorf("the plan's path %q is not a clean path within the repository: %w", dir, pipeline.ErrInvalid))
		}
	}
	for name := range s.Plan.Args {
		if err := checkArg(name); err != nil {
			return pipeline.Permanent(fmt.Errorf("the plan's arguments: %w: %w", err, pipeline.ErrInvalid))
		}
	}
	for _, m := range s.Bases {
		if _, err := pipeline.ParseDigest(string(m.Digest)); err != nil {
			return pipeline.Permanent(fmt.Errorf("base image %s: %w", m.URI, err))
		}
	}
	return nil
}

// buildPlatform builds one platform, alone again if the infrastructure failed.
func (b *Builder) buildPlatform(ctx context.Context, p pipeline.Project, s pipeline.Source, r remote, access gitAccess, platform pipeline.Platform, rec *recorder) (pipeline.PlatformImage, string, error) {
	var img pipeline.PlatformImage
	var version string
	avoid := map[string]bool{}
	err := b.retry(ctx, platform, rec, func() (string, error) {
		m, info, err := b.pool.pick(ctx, p.Name, platform, avoid)
		if err != nil {
			return "", err
		}
		opt := b.solveOpt(p, s, platform)
		opt.FrontendInputs = inputs(access, r, s)
		opt.Session = b.session(p, access)
		st := rec.stream(platform)
		res, err := solve(st, func(status chan *client.SolveStatus) (*client.SolveResponse, error) {
			return m.client.Solve(ctx, nil, opt, status)
		})
		if err != nil {
			avoid[m.address] = true
			m.forget()
			return m.address, b.explain(ctx, err, st, m)
		}
		version = info.Version
		img, err = platformImage(platform, res.ExporterResponse)
		return m.address, err
	})
	return img, version, err
}

// inputs are the context and the Dockerfile as buildkitd fetches them. The
// Dockerfile may lie outside the context, so it comes from the root. The
// context is copied out of the root rather than fetched as a subdirectory:
// v0.33.1 cannot give the files of a subdirectory the commit's time.
func inputs(access gitAccess, r remote, s pipeline.Source) map[string]llb.State {
	root := access.commit(r, s.Commit)
	dir := root
	if s.Plan.Context != "." || len(s.Plan.Ignore) > 0 {
		dir = llb.Scratch().File(
			llb.Copy(root, path.Join("/", s.Plan.Context), "/", &llb.CopyInfo{
				CopyDirContentsOnly: true, ExcludePatterns: s.Plan.Ignore,
			}), llb.WithCustomName(sourceStep+"take "+s.Plan.Context+" as the context"))
	}
	return map[string]llb.State{"context": dir, "dockerfile": root}
}

// solveOpt is everything about a solve that does not depend on credentials.
// The same source and platform give the same options.
func (b *Builder) solveOpt(p pipeline.Project, s pipeline.Source, platform pipeline.Platform) client.SolveOpt {
	attrs := map[string]string{
		"filename":                    s.Plan.Dockerfile,
		"platform":                    string(platform),
		"build-arg:SOURCE_DATE_EPOCH": strconv.FormatInt(s.CommitTime.Unix(), 10),
		// Cache mounts are the daemon's; projects must not share theirs.
		"build-arg:BUILDKIT_CACHE_MOUNT_NS": p.Name + "/" + trustZone,
	}
	if s.Plan.Target != "" {
		attrs["target"] = s.Plan.Target
	}
	for k, v := range s.Plan.Args {
		attrs["build-arg:"+k] = v
	}
	export := map[string]string{
		"name":              p.Repository,
		"push":              "true",
		"push-by-digest":    "true",
		"oci-mediatypes":    "true",
		"rewrite-timestamp": "true",
		// Rewriting compresses every layer but the base's anew, so that one that
		// came back from the zstd cache leaves as the bytes of a fresh build.
		"compression": "gzip",
	}
	for k, v := range annotations(s) {
		attrs["label:"+k] = v
		export["annotation."+k] = v
	}
	insecure(export, b.host(registryOf(p.Repository)))
	opt := client.SolveOpt{
		Frontend:      "dockerfile.v0",
		FrontendAttrs: attrs,
		Exports:       []client.ExportEntry{{Type: client.ExporterImage, Attrs: export}},
		SourcePolicy:  pins(s.Bases),
	}
	cacheHost := b.host(registryOf(cacheRepository(p)))
	from := map[string]string{"ref": cacheRef(p, platform)}
	insecure(from, cacheHost)
	opt.CacheImports = []client.CacheOptionsEntry{{Type: "registry", Attrs: from}}
	if b.cfg.CacheExport != CacheOff {
		to := map[string]string{
			"ref":            cacheRef(p, platform),
			"mode":           b.cfg.CacheExport,
			"compression":    "zstd",
			"oci-mediatypes": "true",
			"image-manifest": "true",
			// The image is what counts; a registry that takes no cache is not
			// a reason to lose it.
			"ignore-error": "true",
		}
		insecure(to, cacheHost)
		opt.CacheExports = []client.CacheOptionsEntry{{Type: "registry", Attrs: to}}
	}
	return opt
}

func insecure(attrs map[string]string, h pipeline.RegistryHost) {
	if h.PlainHTTP {
		attrs["registry.insecure"] = "true"
	}
}

// annotations say of an image where it comes from. The ref is left out on
// purpose: a branch and a tag of one commit are one image.
func annotations(s pipeline.Source) map[string]string {
	return map[string]string{
		ocispecs.AnnotationCreated:  s.CommitTime.UTC().Format(time.RFC3339),
		ocispecs.AnnotationSource:   s.CloneURL,
		ocispecs.AnnotationRevision: s.Commit,
	}
}

func cacheRepository(p pipeline.Project) string {
	if p.CacheRepository != "" {
		return p.CacheRepository
	}
	return p.Repository
}

// cacheRef is the tag that holds a platform's build cache.
func cacheRef(p pipeline.Project, platform pipeline.Platform) string {
	return cacheRepository(p) + ":cache-" + trustZone + "-" + strings.ReplaceAll(string(platform), "/", "-")
}

// platformImage reads what the exporter pushed, and insists on a manifest.
func platformImage(platform pipeline.Platform, response map[string]string) (pipeline.PlatformImage, error) {
	fail := func(err error) (pipeline.PlatformImage, error) {
		return pipeline.PlatformImage{}, fmt.Errorf("read what buildkitd pushed: %w", err)
	}
	raw, err := base64.StdEncoding.DecodeString(response[exptypes.ExporterImageDescriptorKey])
	if err != nil {
		return fail(err)
	}
	var desc ocispecs.Descriptor
	if err := json.Unmarshal(raw, &desc); err != nil {
		return fail(err)
	}
	d, err := pipeline.ParseDigest(desc.Digest.String())
	if err != nil {
		return fail(err)
	}
	if desc.MediaType != ocispecs.MediaTypeImageManifest {
		return fail(pipeline.Permanent(fmt.Errorf("%s is %s, want one manifest, %s", d, desc.MediaType, ocispecs.MediaTypeImageManifest)))
	}
	return pipeline.PlatformImage{Platform: platform, Digest: d, Size: desc.Size, MediaType: desc.MediaType}, nil
}

// solve runs a solve and feeds its status to the stream until it ends.
func solve(st *stream, run func(chan *client.SolveStatus) (*client.SolveResponse, error)) (*client.SolveResponse, error) {
	status := make(chan *client.SolveStatus, 64)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for s := range status {
			st.update(s)
		}
		st.end()
	}()
	res, err := run(status)
	<-done
	return res, err
}
