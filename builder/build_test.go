package builder

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	gcr "github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/dray-project/dray/pipeline"
)

// wantPermanent checks that an error is permanent and says all of parts.
func wantPermanent(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	if !pipeline.IsPermanent(err) {
		t.Errorf("the error is not permanent: %v", err)
	}
	wantParts(t, err, parts...)
}

func wantParts(t *testing.T, err error, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("the error does not say %q: %v", p, err)
		}
	}
}

func TestBuildTwoPlatforms(t *testing.T) {
	s := newStack(t)
	s.project.Platforms = []pipeline.Platform{"linux/amd64", "linux/arm64"}
	base := pushBase(t, s.registry+"/base:1", map[string]string{"base.txt": "as recorded"}, nil)
	ev := s.push(map[string]string{"Dockerfile": "ARG REG=" + s.registry + `
FROM --platform=$BUILDPLATFORM $REG/base:1 AS build
ARG TARGETARCH
COPY hello.txt /
RUN echo building for $TARGETARCH && echo $TARGETARCH > /out
FROM scratch
COPY --from=build /out /hello.txt /base.txt /
`, "hello.txt": "hello\n"})
	src := s.mustResolve(ev)
	if src.Commit != ev.After || src.Ref != "refs/heads/main" || src.CloneURL != s.repo.url {
		t.Errorf("source is %s", asJSON(t, src))
	}
	if want := time.Unix(s.repo.when, 0).UTC(); !src.CommitTime.Equal(want) || src.CommitTime.Location() != time.UTC {
		t.Errorf("commit time is %s, want %s", src.CommitTime, want)
	}
	want := pipeline.Material{URI: s.registry + "/base:1", Digest: pipeline.Digest(base.String())}
	if len(src.Bases) != 1 || src.Bases[0] != want {
		t.Errorf("bases are %v, want %v", src.Bases, want)
	}

	// What is built is what was recorded, also when the tag moves on.
	pushBase(t, s.registry+"/base:1", map[string]string{"base.txt": "moved"}, nil)

	res, out := s.mustBuild(src)
	if !strings.HasPrefix(res.Builder, "buildkitd ") {
		t.Errorf("builder is %q", res.Builder)
	}
	if len(res.Platforms) != 2 {
		t.Fatalf("platforms are %v", res.Platforms)
	}
	for i, arch := range []string{"amd64", "arm64"} {
		p := res.Platforms[i]
		if p.Platform != pipeline.Platform("linux/"+arch) || p.MediaType != "application/vnd.oci.image.manifest.v1+json" {
			t.Errorf("platform %d is %v", i, p)
		}
		img := s.image(p)
		raw, err := img.RawManifest()
		if err != nil || int64(len(raw)) != p.Size {
			t.Errorf("the manifest has %d bytes, reported %d (%v)", len(raw), p.Size, err)
		}
		cfg, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		if cfg.Architecture != arch || cfg.OS != "linux" {
			t.Errorf("config says %s/%s", cfg.OS, cfg.Architecture)
		}
		files := contents(t, img)
		if files["/out"] != arch+"\n" || files["/hello.txt"] != "hello\n" || files["/base.txt"] != "as recorded" {
			t.Errorf("files are %q", files)
		}
		m, err := img.Manifest()
		if err != nil {
			t.Fatal(err)
		}
		for key, want := range annotations(src) {
			if m.Annotations[key] != want || cfg.Config.Labels[key] != want {
				t.Errorf("%s: annotation %q, label %q, want %q", key, m.Annotations[key], cfg.Config.Labels[key], want)
			}
		}
	}
	// Nothing but the cache is tagged.
	repository, err := name.NewRepository(s.project.Repository, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	tags, err := gcr.List(repository)
	if err != nil {
		t.Fatal(err)
	}
	for _, tag := range tags {
		if !strings.HasPrefix(tag, "cache-release-linux-") {
			t.Errorf("the build left the tag %s", tag)
		}
	}
	if len(tags) != 2 {
		t.Errorf("tags are %v, want a cache for each platform", tags)
	}
	lines := out.text()
	for _, want := range []string{"linux/amd64| building for amd64", "linux/arm64| building for arm64"} {
		if !strings.Contains(lines, want) {
			t.Errorf("the output lacks %q:\n%s", want, lines)
		}
	}
	for _, st := range out.final("RUN echo building") {
		if st.Started == nil || st.Completed == nil || st.Platform == "" {
			t.Errorf("step is %s", asJSON(t, st))
		}
	}
}

func TestBuildIsReproducible(t *testing.T) {
	s := newStack(t)
	s.project.Platforms = []pipeline.Platform{"linux/amd64", "linux/arm64"}
	pushBase(t, s.registry+"/base:1", nil, nil)
	ev := s.push(map[string]string{"Dockerfile": "FROM --platform=$BUILDPLATFORM " + s.registry + `/base:1 AS build
COPY . /src
RUN mkdir -p /out/deep/er && seq 1 20000 > /out/deep/numbers && touch /out/deep/er/now
FROM ` + s.registry + `/base:1
COPY --from=build /out /out
COPY --from=build /src/a /a
`, "a/b/c.txt": "text\n"})
	src := s.mustResolve(ev)
	first, _ := s.mustBuild(src)

	check := func(when string) *progress {
		t.Helper()
		again, out := s.mustBuild(src)
		for i := range first.Platforms {
			if again.Platforms[i] != first.Platforms[i] {
				t.Errorf("%s: %v, want %v\n%s", when, again.Platforms[i], first.Platforms[i], out.text())
			}
		}
		return out
	}
	check("warm")
	s.prune()
	out := check("after a prune, with the registry's cache")
	if steps := out.final("RUN mkdir"); len(steps) == 0 || !steps[0].Cached {
		t.Errorf("the step did not come from the registry's cache: %v", steps)
	}
	s.prune()
	s.project.CacheRepository = s.registry + "/elsewhere/cache" // empty
	out = check("after a prune, from nothing")
	if steps := out.final("RUN mkdir"); len(steps) == 0 || steps[0].Cached {
		t.Errorf("the step should have run: %v", steps)
	}
	for _, st := range out.final("importing cache") {
		if st.Error != "" {
			t.Errorf("a cache that is not there yet is shown as an error: %s", st.Error)
		}
	}
}

func TestFailingStep(t *testing.T) {
	s := newStack(t)
	pushBase(t, s.registry+"/base:1", nil, nil)
	ev := s.push(map[string]string{"deploy/Dockerfile": "FROM " + s.registry + `/base:1
RUN echo fine
RUN seq 1 50 && \
    printf '\033[31mred\033[0m alert' && exit 7
`})
	src := s.mustResolve(ev)
	if src.Plan.Context != "deploy" || src.Plan.Dockerfile != "deploy/Dockerfile" {
		t.Errorf("plan is %s", asJSON(t, src.Plan))
	}
	_, out, err := s.build(src)
	wantPermanent(t, err, "deploy/Dockerfile:3: ", "RUN seq 1 50", "exit code 7", "linux/amd64", "\n  42\n", "\n  50\n", "red alert")
	if strings.Contains(err.Error(), "\n  41\n") {
		t.Errorf("more than the last lines: %v", err)
	}
	if strings.ContainsRune(err.Error()+out.text(), 0x1b) {
		t.Errorf("an escape sequence came through: %q", err)
	}
	if steps := out.final("RUN seq"); len(steps) != 1 || steps[0].Error == "" {
		t.Errorf("the step's error is not reported: %v", steps)
	}
}

func TestRefusedInTheBuild(t *testing.T) {
	s := newStack(t)
	pushBase(t, s.registry+"/base:1", nil, nil)
	from := "FROM " + s.registry + "/base:1\n"
	for name, c := range map[string]struct {
		dockerfile string
		says       []string
	}{
		"missing file":  {from + "COPY nothing.txt /\n", []string{"Dockerfile:2: ", "nothing.txt"}},
		"outside":       {from + "COPY ../secret /\nCOPY ../../etc/passwd /\n", []string{"Dockerfile:3: ", "/etc/passwd"}},
		"secret wanted": {from + "RUN --mount=type=secret,id=GIT_AUTH_TOKEN,required=true true\n", []string{"GIT_AUTH_TOKEN", "not found"}},
	} {
		t.Run(name, func(t *testing.T) {
			src := s.mustResolve(s.push(map[string]string{"Dockerfile": c.dockerfile}))
			_, _, err := s.build(src)
			wantPermanent(t, err, c.says...)
		})
	}
}

func TestContextAndIgnore(t *testing.T) {
	s := newStack(t)
	pushBase(t, s.registry+"/base:1", nil, nil)
	ev := s.push(map[string]string{
		".dray.yaml": "apiVersion: dray/v1\nbuild:\n  context: app\n  dockerfile: build/app.Dockerfile\n  target: final\n  args:\n    GREETING: \"1.10\"\n",
		"build/app.Dockerfile": "FROM " + s.registry + `/base:1 AS build
ARG GREETING
RUN echo $GREETING > /greeting
COPY . /ctx
FROM scratch AS final
COPY --from=build /greeting /
COPY --from=build /ctx /ctx
FROM scratch AS never
COPY --from=does-not-exist:1 / /
`,
		"app/.dockerignore":    "*.log\ndocs/**\n!docs/keep.md\n",
		"app/main.txt":         "main",
		"app/debug.log":        "log",
		"app/docs/drop.md":     "drop",
		"app/docs/keep.md":     "keep",
		"outside/not-here.txt": "no",
	})
	src := s.mustResolve(ev)
	res, _ := s.mustBuild(src)
	files := contents(t, s.image(res.Platforms[0]))
	want := map[string]string{"/greeting": "1.10\n", "/ctx/main.txt": "main", "/ctx/docs/keep.md": "keep", "/ctx/.dockerignore": "*.log\ndocs/**\n!docs/keep.md\n"}
	if len(files) != len(want) {
		t.Errorf("files are %q", files)
	}
	for f, text := range want {
		if files[f] != text {
			t.Errorf("%s is %q, want %q", f, files[f], text)
		}
	}
}

func TestUnreachableRegistry(t *testing.T) {
	s := newStack(t)
	pushBase(t, s.registry+"/base:1", nil, nil)
	src := s.mustResolve(s.push(map[string]string{"Dockerfile": "FROM " + s.registry + "/base:1\n"}))
	s.project.Repository = "127.0.0.1:9/team/app"
	_, out, err := s.build(src)
	if err == nil || pipeline.IsPermanent(err) {
		t.Fatalf("want an error that is retried, got %v", err)
	}
	wantParts(t, err, "127.0.0.1:9", "connection refused")
	if got := strings.Count(out.text(), "failed and is repeated"); got != attempts-1 {
		t.Errorf("%d repeats are noted:\n%s", got, out.text())
	}
}

func TestUnreachableBuildkit(t *testing.T) {
	b := newBuilder(t, Config{Addresses: []string{"unix:///nonexistent/buildkitd.sock", "tcp://127.0.0.1:9"}})
	_, err := b.Resolve(testContext(t), pipeline.Project{Name: "p", CloneURL: "https://git.example/a", Platforms: []pipeline.Platform{"linux/amd64"}},
		pipeline.Event{Ref: "refs/heads/main"}, &progress{})
	if err == nil || pipeline.IsPermanent(err) {
		t.Fatalf("want an error that is retried, got %v", err)
	}
	wantParts(t, err, "/nonexistent/buildkitd.sock", "127.0.0.1:9", "no such file", "connection refused")
	members, err := b.Ping(testContext(t))
	if err == nil || len(members) != 2 || members[0].Err == nil {
		t.Errorf("ping says %v, %v", members, err)
	}
}

func TestPing(t *testing.T) {
	b := newBuilder(t, Config{Addresses: []string{"tcp://127.0.0.1:9", buildkitAddress(t)}})
	members, err := b.Ping(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if members[0].Err == nil || members[1].Err != nil || members[1].Version == "" || len(members[1].Platforms) == 0 {
		t.Errorf("members are %v", members)
	}
}

func TestFallbackMember(t *testing.T) {
	s := newStack(t, func(c *Config) { c.Addresses = append([]string{"tcp://127.0.0.1:9"}, c.Addresses...) })
	pushBase(t, s.registry+"/base:1", nil, nil)
	s.mustBuild(s.mustResolve(s.push(map[string]string{"Dockerfile": "FROM " + s.registry + "/base:1\n"})))
}

func TestTimeout(t *testing.T) {
	s := newStack(t)
	pushBase(t, s.registry+"/base:1", nil, nil)
	src := s.mustResolve(s.push(map[string]string{"Dockerfile": "FROM " + s.registry + "/base:1\nRUN sleep 100\n"}))
	s.b.cfg.Timeout = 2 * time.Second
	_, _, err := s.build(src)
	wantPermanent(t, err, "not done within 2s")
}
