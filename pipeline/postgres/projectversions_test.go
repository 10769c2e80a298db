package postgres_test

import (
	"errors"
	"testing"
	"time"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/pipelinetest"
	"github.com/dray-project/dray/pipeline/postgres/postgrestest"
)

func TestApplyProject(t *testing.T) {
	s := newStore(t, postgrestest.New(t))
	file := []pipeline.Project{pipelinetest.SampleProject("app"), pipelinetest.SampleProject("web")}
	check(t, s.SyncProjects(t.Context(), file))
	app := func() pipeline.Project {
		t.Helper()
		p, err := s.Project(t.Context(), "app")
		check(t, err)
		return p
	}
	if p := app(); p.Version != 1 || !p.Latest {
		t.Fatalf("the settings file gives %+v", p)
	}

	// What is applied takes hold, but for what the settings file says.
	p := pipeline.Project{Name: "app", Repository: "evil.example/elsewhere", CloneURL: "https://evil.example/", Platforms: []pipeline.Platform{"linux/arm64"},
		Environments: []pipeline.Environment{{Name: "prod", Repository: "prod.example/{environment}/{project}", Soak: 0, RepairTags: true}}}
	v, changed, err := s.ApplyProject(t.Context(), pipeline.ProjectChange{Project: p, AppliedBy: "ada", Base: 1})
	check(t, err)
	if !changed || v.Version != 2 || v.Project.Version != 2 || v.AppliedBy != "ada" || time.Since(v.AppliedAt).Abs() > time.Minute {
		t.Fatalf("applied %+v, changed: %v", v, changed)
	}
	got := app()
	if got.Version != 2 || got.Latest || got.Repository != file[0].Repository || got.CloneURL != file[0].CloneURL || got.Source != file[0].Source ||
		len(got.Environments) != 1 || got.Environments[0].Repository != "prod.example/prod/app" || !got.Environments[0].RepairTags {
		t.Fatalf("in force is %+v", got)
	}

	// Once more changes nothing, whatever it was made on.
	for _, base := range []int{0, 1, 2} {
		again, changed, err := s.ApplyProject(t.Context(), pipeline.ProjectChange{Project: p, AppliedBy: "bob", Base: base})
		check(t, err)
		if changed || again.Version != 2 || again.AppliedBy != "ada" {
			t.Fatalf("on version %d once more: %+v, changed: %v", base, again, changed)
		}
	}
	p.Latest = true
	if _, _, err := s.ApplyProject(t.Context(), pipeline.ProjectChange{Project: p, AppliedBy: "bob", Base: 1}); !errors.Is(err, pipeline.ErrConflict) {
		t.Fatalf("on an old version: %v", err)
	}
	if got := app(); got.Version != 2 || got.Latest {
		t.Fatalf("after the conflict there is %+v", got)
	}
	for name, bad := range map[string]pipeline.ProjectChange{
		"nobody":         {Project: p},
		"no environment": {Project: pipeline.Project{Name: "app", Environments: []pipeline.Environment{{Name: "prod", Repository: file[0].Repository}}}, AppliedBy: "bob"},
	} {
		if _, _, err := s.ApplyProject(t.Context(), bad); !errors.Is(err, pipeline.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := s.ApplyProject(t.Context(), pipeline.ProjectChange{Project: pipeline.Project{Name: "other"}, AppliedBy: "bob"}); !errors.Is(err, pipeline.ErrNotFound) {
		t.Errorf("a project that the settings do not have: %v", err)
	}

	// From now on the file speaks only of where things come from and go.
	file[0].Latest, file[0].CloneURL, file[0].Environments = true, "https://git.example/moved.git", nil
	check(t, s.SyncProjects(t.Context(), file))
	if got := app(); got.Version != 3 || got.Latest || got.CloneURL != "https://git.example/moved.git" || len(got.Environments) != 1 {
		t.Fatalf("after the file changed there is %+v", got)
	}
	check(t, s.SyncProjects(t.Context(), file))
	if got := app(); got.Version != 3 {
		t.Fatalf("the same file made version %d", got.Version)
	}

	all, err := s.ProjectVersions(t.Context(), "app", 0, 10)
	check(t, err)
	if len(all) != 3 || all[0].Version != 3 || all[0].AppliedBy != "settings" || all[1].AppliedBy != "ada" || all[2].Version != 1 {
		t.Fatalf("the versions are %+v", all)
	}
	older, err := s.ProjectVersions(t.Context(), "app", 3, 1)
	check(t, err)
	if len(older) != 1 || older[0].Version != 2 || older[0].Digest != v.Digest {
		t.Fatalf("before the third are %+v", older)
	}
	one, err := s.ProjectVersion(t.Context(), "app", 1)
	check(t, err)
	if one.Version != 1 || !one.Project.Latest || one.Project.Version != 1 {
		t.Fatalf("the first is %+v", one)
	}
	now, err := s.ProjectVersion(t.Context(), "app", 0)
	check(t, err)
	list, err := s.Projects(t.Context())
	check(t, err)
	if now.Version != 3 || len(list) != 2 || list[0].Version != 3 || list[1].Project.Name != "web" || list[1].Version != 1 {
		t.Fatalf("in force is %+v; the list is %+v", now, list)
	}
	for _, version := range []int{4, -1} {
		if _, err := s.ProjectVersion(t.Context(), "app", version); !errors.Is(err, pipeline.ErrNotFound) {
			t.Errorf("version %d: %v", version, err)
		}
	}
	if _, err := s.ProjectVersions(t.Context(), "none", 0, 10); !errors.Is(err, pipeline.ErrNotFound) {
		t.Errorf("versions of no project: %v", err)
	}
}

func TestApplyProjectRace(t *testing.T) {
	s := newSample(t)
	errs := make(chan error, 8)
	for i := range cap(errs) {
		go func() {
			p := pipelinetest.SampleProject("app")
			p.Environments[i%2].RepairTags, p.Latest = true, i%4 < 2
			p.TrustedVEXKeys = []string{string(rune('a' + i))}
			_, _, err := s.ApplyProject(t.Context(), pipeline.ProjectChange{Project: p, AppliedBy: "ada", Base: 1})
			errs <- err
		}()
	}
	won := 0
	for range cap(errs) {
		if err := <-errs; err == nil {
			won++
		} else if !errors.Is(err, pipeline.ErrConflict) {
			t.Error(err)
		}
	}
	if won != 1 {
		t.Errorf("%d changes of the same version took hold", won)
	}
}
