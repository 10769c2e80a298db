package builder

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/gitutil/gitobject"
	"github.com/moby/patternmatcher/ignorefile"

	"github.com/dray-project/dray/pipeline"
)

// product is how Dray introduces itself to buildkitd's gateway.
const product = "dray"

// Resolve fixes the commit that an event pushed, how to build it and what it
// is built from. Nothing is checked out on this side.
func (b *Builder) Resolve(ctx context.Context, p pipeline.Project, ev pipeline.Event, out pipeline.Progress) (pipeline.Source, error) {
	r, err := parseRemote(p.CloneURL)
	if err != nil {
		return pipeline.Source{}, err
	}
	if err := checkRef(ev.Ref); err != nil {
		return pipeline.Source{}, err
	}
	if ev.Deleted {
		return pipeline.Source{}, pipeline.Permanent(fmt.Errorf("%s was deleted: there is nothing to build: %w", ev.Ref, pipeline.ErrInvalid))
	}
	if ev.After != "" {
		if err := checkSHA(ev.After); err != nil {
			return pipeline.Source{}, err
		}
	}
	if len(p.Platforms) == 0 {
		return pipeline.Source{}, pipeline.Permanent(fmt.Errorf("project %s has no platforms: %w", p.Name, pipeline.ErrInvalid))
	}
	ctx, cancel := b.limit(ctx)
	defer cancel()
	rec := newRecorder(out)
	avoid := map[string]bool{}
	var src pipeline.Source
	err = b.retry(ctx, "", rec, func() (string, error) {
		m, info, err := b.pool.pick(ctx, p.Name, "", avoid)
		if err != nil {
			return "", err
		}
		res := &resolver{
			b: b, project: p, event: ev, remote: r, access: b.gitAccess(r), builder: info, rec: rec,
		}
		st := rec.stream("")
		_, err = solve(st, func(status chan *client.SolveStatus) (*client.SolveResponse, error) {
			return m.client.Build(ctx, client.SolveOpt{Session: b.session(p, res.access)}, product,
				func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
					src, res.err = res.run(ctx, c)
					return gateway.NewResult(), res.err
				}, status)
		})
		if res.err != nil && ctx.Err() == nil {
			err = res.err // as it was, before its way through buildkitd and back
		}
		if err != nil {
			avoid[m.address] = true
			m.forget()
			return m.address, b.explain(ctx, err, st, m)
		}
		return m.address, nil
	})
	if err != nil {
		return pipeline.Source{}, err
	}
	return src, nil
}

// resolver is one attempt at Resolve within a gateway session.
type resolver struct {
	b       *Builder
	project pipeline.Project
	event   pipeline.Event
	remote  remote
	access  gitAccess
	builder Member
	rec     *recorder
	err     error
}

func (r *resolver) run(ctx context.Context, c gateway.Client) (pipeline.Source, error) {
	commit, when, err := r.commit(ctx, c)
	if err != nil {
		return pipeline.Source{}, err
	}
	src := pipeline.Source{CloneURL: r.remote.url, Ref: r.event.Ref, Commit: commit, CommitTime: when}
	def, err := r.access.commit(r.remote, commit).Marshal(ctx, llb.WithCaps(c.BuildOpts().Caps))
	if err != nil {
		return pipeline.Source{}, fmt.Errorf("describe the source: %w", err)
	}
	sol, err := c.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB(), Evaluate: true})
	if err != nil {
		return pipeline.Source{}, fmt.Errorf("fetch %s at %s: %w", r.remote.url, commit, err)
	}
	ref, err := sol.SingleRef()
	if err != nil {
		return pipeline.Source{}, fmt.Errorf("fetch %s at %s: %w", r.remote.url, commit, err)
	}
	if ref == nil {
		return pipeline.Source{}, pipeline.Permanent(fmt.Errorf("commit %s has no files in it: there is nothing to build: %w", commit, pipeline.ErrInvalid))
	}
	var data []byte
	if src.Plan, data, err = plan(ctx, newTree(ref), r.project.Platforms); err != nil {
		return pipeline.Source{}, err
	}
	d, err := parseDockerfile(src.Plan.Dockerfile, data, r.b.cfg.AllowedFrontends)
	if err != nil {
		return pipeline.Source{}, err
	}
	var configs map[string][]byte
	if src.Bases, configs, err = r.bases(ctx, c, d, src.Plan); err != nil {
		return pipeline.Source{}, err
	}
	// What is built does not depend on what is thought of it.
	src.Lint, err = d.lint(ctx, src.Plan, r.buildPlatform(), configs)
	if err != nil {
		r.rec.note("", "the checks of "+d.name+" could not be finished: "+err.Error())
	}
	return src, nil
}

// commit finds the commit that was pushed and the time it was made.
func (r *resolver) commit(ctx context.Context, c gateway.Client) (string, time.Time, error) {
	after := r.event.After
	md, err := r.gitMetadata(ctx, c, r.event.Ref)
	gone := err != nil && refIsGone(err)
	switch {
	case err != nil && (!gone || after == ""):
		if gone {
			err = pipeline.Permanent(err)
		}
		return "", time.Time{}, fmt.Errorf("look up %s in %s: %w", r.event.Ref, r.remote.url, err)
	case err == nil && (after == "" || md.Checksum == after || commitOf(md) == after):
		return readCommit(md)
	}
	now := "does not exist any more"
	if !gone {
		now = "names " + commitOf(md) + " now"
	}
	moved, err := r.gitMetadata(ctx, c, after)
	if err != nil {
		if !commitIsGone(err) {
			return "", time.Time{}, fmt.Errorf("look up %s in %s: %w", after, r.remote.url, err)
		}
		return "", time.Time{}, pipeline.Permanent(fmt.Errorf("%s was moved, deleted or force-pushed: %s was pushed, the ref %s, and %s cannot be fetched from %s: %w",
			r.event.Ref, after, now, after, r.remote.url, pipeline.ErrNotFound))
	}
	return readCommit(moved)
}

// gitMetadata asks buildkitd what a ref or object name is. LogName holds no
// credential.
func (r *resolver) gitMetadata(ctx context.Context, c gateway.Client, ref string) (*sourceresolver.ResolveGitResponse, error) {
	def, err := r.access.source(r.remote, ref).Marshal(ctx, llb.WithCaps(c.BuildOpts().Caps))
	if err != nil {
		return nil, err
	}
	op, err := sourceOp(def)
	if err != nil {
		return nil, err
	}
	md, err := c.ResolveSourceMetadata(ctx, op, sourceresolver.Opt{
		LogName: sourceStep + "look up " + ref + " in " + r.remote.url,
		GitOpt:  &sourceresolver.ResolveGitOpt{ReturnObject: true},
	})
	if err != nil {
		return nil, err
	}
	if md.Git == nil || len(md.Git.CommitObject) == 0 {
		return nil, pipeline.Permanent(errors.New("buildkitd did not return the commit; it needs to be v0.28 or newer"))
	}
	return md.Git, nil
}

func sourceOp(def *llb.Definition) (*pb.SourceOp, error) {
	for _, raw := range def.ToPB().Def {
		var op pb.Op
		if err := op.UnmarshalVT(raw); err != nil {
			return nil, err
		}
		if s := op.GetSource(); s != nil {
			return s, nil
		}
	}
	return nil, errors.New("the definition has no source in it")
}

func commitOf(md *sourceresolver.ResolveGitResponse) string {
	if md.CommitChecksum != "" {
		return md.CommitChecksum
	}
	return md.Checksum
}

// readCommit checks that the objects are what their names say, and returns the
// commit and its time.
func readCommit(md *sourceresolver.ResolveGitResponse) (string, time.Time, error) {
	sha := commitOf(md)
	fail := func(err error) (string, time.Time, error) {
		return "", time.Time{}, fmt.Errorf("commit %s: %w", sha, err)
	}
	if err := checkSHA(sha); err != nil {
		return fail(err)
	}
	if len(md.TagObject) > 0 {
		tag, err := gitobject.Parse(md.TagObject)
		if err != nil {
			return fail(fmt.Errorf("tag object %s: %w", md.Checksum, err))
		}
		if err := tag.VerifyChecksum(md.Checksum); err != nil {
			return fail(fmt.Errorf("tag object: %w", err))
		}
		t, err := tag.ToTag()
		if err != nil {
			return fail(err)
		}
		if t.Type == "commit" && t.Object != sha {
			return fail(fmt.Errorf("tag object %s names %s", md.Checksum, t.Object))
		}
	}
	obj, err := gitobject.Parse(md.CommitObject)
	if err != nil {
		return fail(err)
	}
	if err := obj.VerifyChecksum(sha); err != nil {
		return fail(err)
	}
	c, err := obj.ToCommit()
	if err != nil {
		return fail(err)
	}
	// Images and archives cannot hold every time that a commit can claim.
	if c.Committer.When == nil || c.Committer.When.Unix() < 0 || c.Committer.When.Year() > 9999 {
		return fail(pipeline.Permanent(fmt.Errorf("the committer's time is missing or out of range: %w", pipeline.ErrInvalid)))
	}
	return sha, c.Committer.When.UTC(), nil
}

// plan reads how to build from the tree: .dray.yaml, or else the only
// Dockerfile. It returns the Dockerfile's bytes too.
func plan(ctx context.Context, t *tree, platforms []pipeline.Platform) (pipeline.Plan, []byte, error) {
	none := func(err error) (pipeline.Plan, []byte, error) { return pipeline.Plan{}, nil, err }
	_, data, ok, err := t.file(ctx, planFile, maxPlanFile)
	if err != nil {
		return none(err)
	}
	var f buildFile
	if ok {
		if f, err = parsePlanFile(data); err != nil {
			return none(err)
		}
	} else {
		if _, _, other, err := t.resolve(ctx, ".dray.yml"); err == nil && other {
			return none(pipeline.Permanent(fmt.Errorf("found .dray.yml: rename it to %s: %w", planFile, pipeline.ErrInvalid)))
		}
		if f.Dockerfile, err = t.findDockerfile(ctx); err != nil {
			return none(err)
		}
		f.Context = path.Dir(f.Dockerfile)
	}
	if f.Dockerfile == "" {
		f.Dockerfile = path.Join(f.Context, "Dockerfile")
	}
	dir, mode, ok, err := t.resolve(ctx, f.Context)
	switch {
	case err != nil:
		return none(err)
	case !ok || !mode.IsDir():
		return none(planError(0, "build.context: there is no directory %s in the repository", f.Context))
	}
	dockerfile, data, ok, err := t.file(ctx, f.Dockerfile, maxDockerfile)
	switch {
	case err != nil:
		return none(err)
	case !ok:
		return none(planError(0, "build.dockerfile: there is no file %s in the repository", f.Dockerfile))
	}
	out := pipeline.Plan{Context: dir, Dockerfile: dockerfile, Target: f.Target, Args: f.Args}
	if out.Platforms, err = narrow(platforms, f.Platforms); err != nil {
		return none(err)
	}
	out.Ignore, err = ignored(ctx, t, dir, dockerfile)
	return out, data, err
}

// ignored reads the patterns of files that stay out of the context: the
// Dockerfile's own ignore file, or else the context's .dockerignore.
func ignored(ctx context.Context, t *tree, dir, dockerfile string) ([]string, error) {
	for _, name := range []string{dockerfile + ".dockerignore", path.Join(dir, ".dockerignore")} {
		_, data, ok, err := t.file(ctx, name, maxPlanFile)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		patterns, err := ignorefile.ReadAll(strings.NewReader(string(data)))
		if err != nil {
			return nil, pipeline.Permanent(fmt.Errorf("%s: %s: %w", name, err, pipeline.ErrInvalid))
		}
		return patterns, nil
	}
	return nil, nil
}
