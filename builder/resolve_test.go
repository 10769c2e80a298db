package builder

import (
	"encoding/base64"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/dray-project/dray/pipeline"
)

func scratchImage(extra string) map[string]string {
	return map[string]string{"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n" + extra}
}

func TestResolveAnnotatedTag(t *testing.T) {
	s := newStack(t)
	ev := s.push(scratchImage(""))
	s.repo.git("tag", "-a", "v1.0.0", "-m", "release")
	s.repo.git("tag", "-a", "nested", "-m", "tag of a tag", "v1.0.0")
	s.repo.git("tag", "light")
	s.repo.git("push", "-q", "origin", "--tags")
	tagObject := s.repo.git("rev-parse", "v1.0.0")
	if tagObject == ev.After {
		t.Fatal("the tag is not annotated")
	}
	for ref, after := range map[string]string{
		"refs/tags/v1.0.0": tagObject,
		"refs/tags/nested": s.repo.git("rev-parse", "nested"),
		"refs/tags/light":  ev.After,
		"refs/heads/main":  "",
	} {
		src := s.mustResolve(pipeline.Event{Ref: ref, After: after})
		if src.Commit != ev.After || src.Ref != ref || !src.CommitTime.Equal(time.Unix(s.repo.when, 0)) {
			t.Errorf("%s: source is %s, want commit %s", ref, asJSON(t, src), ev.After)
		}
	}
	// Some forges send the commit of an annotated tag instead of the tag.
	if src := s.mustResolve(pipeline.Event{Ref: "refs/tags/v1.0.0", After: ev.After}); src.Commit != ev.After {
		t.Errorf("commit is %s", src.Commit)
	}
}

func TestResolveMovedRef(t *testing.T) {
	s := newStack(t)
	first := s.push(scratchImage("# 1\n"))
	s.repo.git("tag", "-a", "moving", "-m", "one")
	s.repo.git("push", "-q", "origin", "moving")
	firstTag := s.repo.git("rev-parse", "moving")
	when := s.repo.when

	s.push(scratchImage("# 2\n"))
	s.repo.git("tag", "-f", "-a", "moving", "-m", "two")
	s.repo.git("push", "-q", "--force", "origin", "moving")

	src := s.mustResolve(first)
	if src.Commit != first.After || !src.CommitTime.Equal(time.Unix(when, 0)) {
		t.Errorf("the branch moved on: commit is %s of %s, want %s", src.Commit, src.CommitTime, first.After)
	}
	src = s.mustResolve(pipeline.Event{Ref: "refs/tags/moving", After: firstTag})
	if src.Commit != first.After {
		t.Errorf("the tag moved on: commit is %s, want %s", src.Commit, first.After)
	}

	// The build takes the commit, whatever happened to the ref since, also on a
	// daemon that never saw it.
	s.prune()
	res, _ := s.mustBuild(src)
	if got := contents(t, s.image(res.Platforms[0]))["/Dockerfile"]; !strings.HasSuffix(got, "# 1\n") {
		t.Errorf("built from %q", got)
	}
}

func TestResolveGone(t *testing.T) {
	s := newStack(t)
	ev := s.push(scratchImage(""))
	const never = "0123456789abcdef0123456789abcdef01234567"
	_, _, err := s.resolve(pipeline.Event{Ref: "refs/heads/main", After: never})
	wantPermanent(t, err, "refs/heads/main", never, ev.After, "force-pushed")
	_, _, err = s.resolve(pipeline.Event{Ref: "refs/heads/gone", After: never})
	wantPermanent(t, err, "refs/heads/gone", never, "does not exist any more")
	_, _, err = s.resolve(pipeline.Event{Ref: "refs/heads/gone"})
	wantPermanent(t, err, "refs/heads/gone")

	// A branch that is gone while its commit is still there is built.
	s.repo.git("push", "-q", "origin", "main:other")
	s.repo.git("push", "-q", "origin", ":other")
	if src := s.mustResolve(pipeline.Event{Ref: "refs/heads/other", After: ev.After}); src.Commit != ev.After {
		t.Errorf("commit is %s", src.Commit)
	}
}

func TestResolveRefusals(t *testing.T) {
	s := newStack(t)
	for name, c := range map[string]struct {
		files map[string]string
		says  []string
	}{
		"nothing":        {map[string]string{"README.md": "x"}, []string{"no Dockerfile", ".dray.yaml", "apiVersion: dray/v1"}},
		"several":        {map[string]string{"b/Dockerfile": "FROM scratch\n", "a/Dockerfile": "FROM scratch\n"}, []string{"2 Dockerfiles", "a/Dockerfile, b/Dockerfile", "context: a"}},
		"too deep":       {map[string]string{"1/2/3/4/5/Dockerfile": "FROM scratch\n"}, []string{"no Dockerfile"}},
		"not parsing":    {map[string]string{"Dockerfile": "FROM scratch\n\nCOPY one\n"}, []string{"Dockerfile:3: ", "COPY requires at least two arguments"}},
		"unknown":        {map[string]string{"Dockerfile": "FROM scratch\nRUNN x\n"}, []string{"Dockerfile:2: ", "unknown instruction: RUNN"}},
		"syntax":         {map[string]string{"Dockerfile": "# syntax=docker/dockerfile:1\nFROM scratch\n"}, []string{"Dockerfile:1: ", "docker/dockerfile:1", "remove the line"}},
		"too large":      {map[string]string{"Dockerfile": "FROM scratch\n#" + strings.Repeat("x", 1<<20)}, []string{"larger than 1048576 bytes"}},
		"link outside":   {map[string]string{"Dockerfile": "link:../../../etc/passwd"}, []string{"Dockerfile", "out of the repository"}},
		"absolute link":  {map[string]string{"Dockerfile": "link:/etc/passwd"}, []string{"Dockerfile", "out of the repository"}},
		"link round":     {map[string]string{"Dockerfile": "link:D2", "D2": "link:Dockerfile"}, []string{"links to follow"}},
		"context escape": {map[string]string{".dray.yaml": "apiVersion: dray/v1\nbuild: {context: ../..}\n"}, []string{".dray.yaml:2: ", "leads out of the repository"}},
		"context link":   {map[string]string{".dray.yaml": "apiVersion: dray/v1\nbuild: {context: out}\n", "out": "link:../.."}, []string{"out of the repository"}},
		"no context":     {map[string]string{".dray.yaml": "apiVersion: dray/v1\nbuild: {context: app}\n"}, []string{"no directory app"}},
		"no file":        {map[string]string{".dray.yaml": "apiVersion: dray/v1\n"}, []string{"no file Dockerfile"}},
		"other name":     {map[string]string{".dray.yml": "apiVersion: dray/v1\n", "Dockerfile": "FROM scratch\n"}, []string{"rename it to .dray.yaml"}},
		"platform":       {map[string]string{".dray.yaml": "apiVersion: dray/v1\nbuild: {platforms: [linux/s390x]}\n", "Dockerfile": "FROM scratch\n"}, []string{"linux/s390x", "linux/amd64"}},
		"no target":      {map[string]string{".dray.yaml": "apiVersion: dray/v1\nbuild: {target: b}\n", "Dockerfile": "FROM scratch AS a\n"}, []string{"no stage \"b\"", "stages are a"}},
		"no base":        {map[string]string{"Dockerfile": "FROM " + s.registry + "/nothing:here\n"}, []string{"Dockerfile:1: ", s.registry + "/nothing:here", "not found"}},
		"insecure":       {map[string]string{"Dockerfile": "FROM scratch\nRUN --security=insecure true\n"}, []string{"Dockerfile:2: ", "security.insecure"}},
		"host network":   {map[string]string{"Dockerfile": "FROM scratch\nRUN --network=host true\n"}, []string{"Dockerfile:2: ", "network.host"}},
		"empty":          {map[string]string{}, []string{"nothing to build"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, out, err := s.resolve(s.push(c.files))
			wantPermanent(t, err, c.says...)
			if strings.Contains(out.text(), "is repeated") {
				t.Error("it was tried again")
			}
		})
	}
}

func TestResolveThroughLinks(t *testing.T) {
	s := newStack(t)
	src := s.mustResolve(s.push(map[string]string{
		".dray.yaml":              "apiVersion: dray/v1\nbuild:\n  context: current\n",
		"current":                 "link:releases/two",
		"releases/two/latest":     "x",
		"releases/two/Dockerfile": "link:../../docker/common",
		"docker/common":           "FROM scratch\nCOPY latest /\n",
	}))
	if src.Plan.Context != "releases/two" || src.Plan.Dockerfile != "docker/common" {
		t.Errorf("plan is %s", asJSON(t, src.Plan))
	}
	res, _ := s.mustBuild(src)
	if got := contents(t, s.image(res.Platforms[0])); got["/latest"] != "x" {
		t.Errorf("files are %q", got)
	}
}

// A base image can bring commands of its own along; what they copy from was
// not recorded and is refused.
func TestOnbuildImage(t *testing.T) {
	s := newStack(t)
	pushBase(t, s.registry+"/other:1", nil, nil)
	pushBase(t, s.registry+"/onbuild:1", nil, func(c *v1.Config) { c.OnBuild = []string{"COPY --from=" + s.registry + "/other:1 /arch /other"} })
	src := s.mustResolve(s.push(map[string]string{"Dockerfile": "FROM " + s.registry + "/onbuild:1\n"}))
	_, _, err := s.build(src)
	wantPermanent(t, err, s.registry+"/other:1", "ONBUILD")
}

// A stage may carry the name of the image that it starts from.
func TestStageNamedLikeItsImage(t *testing.T) {
	s := newStack(t)
	pushBase(t, s.registry+"/tool:latest", nil, nil)
	src := s.mustResolve(s.push(map[string]string{"Dockerfile": "FROM " + s.registry + "/tool AS tool\nRUN echo ran > /ran\nFROM scratch\nCOPY --from=tool /ran /\n"}))
	res, _ := s.mustBuild(src)
	if got := contents(t, s.image(res.Platforms[0])); got["/ran"] != "ran\n" {
		t.Errorf("files are %q", got)
	}
}

func TestPrivateSource(t *testing.T) {
	const user, password = "reader", "s3cr3t-of-the-source"
	var asked, foreign atomic.Int32
	guard := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if u, p, ok := r.BasicAuth(); !ok || u != user || p != password {
				asked.Add(1)
				w.Header().Set("WWW-Authenticate", `Basic realm="git"`)
				http.Error(w, "who are you", http.StatusUnauthorized)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
	listen := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != "" {
				foreign.Add(1)
			}
			next.ServeHTTP(w, r)
		})
	}
	private, other := newRepo(t, guard), newRepo(t, listen)
	other.commit(scratchImage(""))
	other.git("push", "-q", "origin", "main")
	origin := strings.TrimSuffix(private.url, "/app.git")
	s := newStack(t, func(c *Config) {
		c.GitCredentials = map[string]GitCredential{origin: {Username: user, Password: password}}
	})
	pushBase(t, s.registry+"/base:1", nil, nil)
	s.repo, s.project.CloneURL = private, private.url
	ev := s.push(map[string]string{"Dockerfile": "FROM " + s.registry + "/base:1\nRUN env; ls /run/secrets /run 2>&1; true\n" +
		"ADD " + other.url + "#main /other\n"})
	src, out, err := s.resolve(ev)
	if err != nil {
		t.Fatal(err)
	}
	res, out2, err := s.build(src)
	if err != nil {
		t.Fatal(err)
	}
	if foreign.Load() != 0 {
		t.Error("another git server was sent credentials")
	}
	basic := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	cfg, err := s.image(res.Platforms[0]).RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	for where, text := range map[string]string{"resolve": out.text(), "build": out2.text(), "source": asJSON(t, src), "config": string(cfg)} {
		if strings.Contains(text, password) || strings.Contains(text, basic) {
			t.Errorf("%s: the secret is in it:\n%s", where, text)
		}
	}

	// The Dockerfile cannot use the credential for what it likes.
	src = s.mustResolve(s.push(map[string]string{"Dockerfile": "FROM scratch\nADD " + private.url + "#main /stolen\n"}))
	if _, _, err := s.build(src); err == nil {
		t.Error("ADD fetched a private repository with Dray's credential")
	} else if strings.Contains(err.Error(), password) || strings.Contains(err.Error(), basic) {
		t.Errorf("the secret is in the error: %v", err)
	}

	// Without a credential the error says what is missing.
	s.b.cfg.GitCredentials = nil
	_, _, err = s.resolve(ev)
	if err == nil {
		t.Fatal("a private repository was read without a credential")
	}
	wantPermanent(t, err, private.url, "credentials")
}

func TestUnreachableSource(t *testing.T) {
	s := newStack(t)
	s.project.CloneURL = "http://127.0.0.1:9/app.git"
	_, _, err := s.resolve(pipeline.Event{Ref: "refs/heads/main", After: strings.Repeat("a", 40)})
	if err == nil || pipeline.IsPermanent(err) {
		t.Fatalf("want an error that is retried, got %v", err)
	}
	wantParts(t, err, "127.0.0.1:9")
}

func TestSubmodulesStayOut(t *testing.T) {
	s := newStack(t)
	s.repo.commit(map[string]string{"Dockerfile": "FROM scratch\nCOPY . /\n"})
	sub := newRepo(t, nil)
	subCommit := sub.commit(map[string]string{"evil": "x"})
	sub.git("push", "-q", "origin", "main")
	s.repo.git("update-index", "--add", "--cacheinfo", "160000,"+subCommit+",sub")
	s.repo.git("config", "-f", ".gitmodules", "submodule.sub.path", "sub")
	s.repo.git("config", "-f", ".gitmodules", "submodule.sub.url", sub.url)
	s.repo.git("add", ".gitmodules")
	s.repo.git("commit", "-q", "-m", "submodule")
	s.repo.git("push", "-q", "origin", "main")
	src := s.mustResolve(pipeline.Event{Ref: "refs/heads/main", After: s.repo.git("rev-parse", "HEAD")})
	res, _ := s.mustBuild(src)
	if got := contents(t, s.image(res.Platforms[0])); got["/sub/evil"] != "" || got["/.gitmodules"] == "" {
		t.Errorf("files are %q", got)
	}
}
