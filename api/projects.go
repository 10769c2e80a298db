package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/dray-project/dray/pipeline"
)

// ProjectInput names a project.
type ProjectInput struct {
	Name string `path:"name" maxLength:"200" example:"hello-go"`
}

type projectVersionInput struct {
	ProjectInput
	Version int `path:"version" minimum:"1" example:"3"`
}

type projectVersionsInput struct {
	ProjectInput
	PageInput
}

type projectsInput struct{ PageInput }

type projectOutput struct {
	ETag string `header:"ETag" doc:"The version, for If-Match."`
	Body pipeline.ProjectVersion
}

type applyInput struct {
	ProjectInput
	IfMatch     string `header:"If-Match" maxLength:"100" doc:"The ETag of the version that the change was made on: with another in force, the answer is 412. Left out: overwrite."`
	DryRun      bool   `query:"dryRun" doc:"Check it and say what would change, and change nothing."`
	ContentType string `header:"Content-Type" hidden:"true" maxLength:"200"`
	RawBody     []byte `contentType:"application/json"`
}

// ProjectApplied is what became of a project file.
type ProjectApplied struct {
	pipeline.ProjectVersion
	Changed bool            `json:"changed" doc:"false when it was in force already."`
	DryRun  bool            `json:"dryRun,omitempty" doc:"true when nothing was changed, because that was asked for. The version is then the one in force."`
	Changes []ProjectChange `json:"changes" nullable:"false" doc:"What differs from the version that was in force before."`
}

// ProjectChange is one setting that differs.
type ProjectChange struct {
	Path string          `json:"path" doc:"environments[prod].soak"`
	From json.RawMessage `json:"from,omitempty" doc:"Absent when it was not set."`
	To   json.RawMessage `json:"to,omitempty" doc:"Absent when it is not set any more."`
}

type applyOutput struct {
	ETag string `header:"ETag" doc:"The version in force, for If-Match."`
	Body ProjectApplied
}

func (a *API) registerProjects() {
	handle(a, huma.Operation{
		OperationID: "list-projects",
		Method:      http.MethodGet,
		Path:        "/api/v1/projects",
		Summary:     "List projects with the settings that are in force, by name",
		Tags:        []string{"projects"},
		Responses:   a.problems(422),
	}, needRead, a.projects)
	handle(a, huma.Operation{
		OperationID: "get-project",
		Method:      http.MethodGet,
		Path:        "/api/v1/projects/{name}",
		Summary:     "Show a project's settings that are in force",
		Tags:        []string{"projects"},
		Responses:   a.problems(404, 422),
	}, needRead, func(ctx context.Context, in *ProjectInput) (*projectOutput, error) {
		return a.project(ctx, needRead, in.Name, 0)
	})
	handle(a, huma.Operation{
		OperationID: "list-project-versions",
		Method:      http.MethodGet,
		Path:        "/api/v1/projects/{name}/versions",
		Summary:     "List the versions of a project's settings, newest first",
		Tags:        []string{"projects"},
		Responses:   a.problems(404, 422),
	}, needRead, a.projectVersions)
	handle(a, huma.Operation{
		OperationID: "get-project-version",
		Method:      http.MethodGet,
		Path:        "/api/v1/projects/{name}/versions/{version}",
		Summary:     "Show one version of a project's settings",
		Tags:        []string{"projects"},
		Responses:   a.problems(404, 422),
	}, needRead, func(ctx context.Context, in *projectVersionInput) (*projectOutput, error) {
		return a.project(ctx, needRead, in.Name, in.Version)
	})
	handle(a, huma.Operation{
		OperationID:  "apply-project",
		Method:       http.MethodPut,
		Path:         "/api/v1/projects/{name}",
		Summary:      "Set a project's gates and environments from a project file",
		Description:  "The body is the project file in JSON, as /api/v1/schemas/project.json describes it. Every version is kept. A file whose rules do not compile, or whose registries the server does not know, is refused.",
		Tags:         []string{"projects"},
		MaxBodyBytes: pipeline.MaxProjectFile,
		// The project file's own parser is stricter, and says where.
		SkipValidateBody: true,
		Responses:        a.problems(400, 404, 408, 412, 413, 415, 422, 501),
	}, needAdmin, a.applyProject)
	body := a.huma.OpenAPI().Paths["/api/v1/projects/{name}"].Put.RequestBody
	body.Content["application/json"].Schema = a.schema(pipeline.ProjectFile{})
	handle(a, huma.Operation{
		OperationID: "list-environments",
		Method:      http.MethodGet,
		Path:        "/api/v1/projects/{name}/environments",
		Summary:     "Show what each of a project's environments has now",
		Tags:        []string{"projects"},
		Responses:   a.problems(404, 422),
	}, needRead, a.environments)
	handle(a, huma.Operation{
		OperationID: "get-project-schema",
		Method:      http.MethodGet,
		Path:        "/api/v1/schemas/project.json",
		Summary:     "Get the JSON Schema of project files",
		Tags:        []string{"projects"},
		Responses:   a.raw("application/schema+json", "The schema"),
	}, needNothing, func(context.Context, *struct{}) (*rawOutput, error) {
		return &rawOutput{"application/schema+json", pipeline.ProjectSchema()}, nil
	})
}

func (a *API) projects(ctx context.Context, in *projectsInput) (*listOutput[pipeline.ProjectVersion], error) {
	all, err := a.Store.Projects(ctx)
	if err != nil {
		return nil, err
	}
	s := a.scope(ctx)
	var seen []pipeline.ProjectVersion
	for _, v := range all {
		if s.has(v.Project.Name) && v.Project.Name > in.Cursor {
			seen = append(seen, tidyProject(v))
		}
	}
	slices.SortFunc(seen, func(x, y pipeline.ProjectVersion) int { return strings.Compare(x.Project.Name, y.Project.Name) })
	return listOf(ctx, in.PageInput, seen, func(v pipeline.ProjectVersion) string { return v.Project.Name }), nil
}

// projectVersion returns a version for somebody who may do something with it.
func (a *API) projectVersion(ctx context.Context, n need, name string, version int) (pipeline.ProjectVersion, error) {
	if err := a.allow(ctx, n, name, "project", name); err != nil {
		return pipeline.ProjectVersion{}, err
	}
	v, err := a.Store.ProjectVersion(ctx, name, version)
	if errors.Is(err, pipeline.ErrNotFound) && version != 0 {
		return v, fmt.Errorf("project %.200s has no version %d: %w", name, version, pipeline.ErrNotFound)
	}
	return tidyProject(v), found(err, "project", name)
}

func (a *API) project(ctx context.Context, n need, name string, version int) (*projectOutput, error) {
	v, err := a.projectVersion(ctx, n, name, version)
	return &projectOutput{etag(v), v}, err
}

func tidyProject(v pipeline.ProjectVersion) pipeline.ProjectVersion {
	v.Project.Platforms, v.Project.Environments = list(v.Project.Platforms), list(v.Project.Environments)
	return v
}

func etag(v pipeline.ProjectVersion) string { return strconv.Quote(strconv.Itoa(v.Version)) }

func (a *API) projectVersions(ctx context.Context, in *projectVersionsInput) (*listOutput[pipeline.ProjectVersion], error) {
	if _, err := a.projectVersion(ctx, needRead, in.Name, 0); err != nil {
		return nil, err
	}
	before := 0
	if in.Cursor != "" {
		var err error
		if before, err = strconv.Atoi(in.Cursor); err != nil || before < 1 {
			return nil, fmt.Errorf("cursor %.20q: take it from the Link of the page before: %w", in.Cursor, pipeline.ErrInvalid)
		}
	}
	versions, err := a.Store.ProjectVersions(ctx, in.Name, before, in.Limit+1)
	if err != nil {
		return nil, err
	}
	for i := range versions {
		versions[i] = tidyProject(versions[i])
	}
	return listOf(ctx, in.PageInput, versions, func(v pipeline.ProjectVersion) string { return strconv.Itoa(v.Version) }), nil
}

func (a *API) environments(ctx context.Context, in *ProjectInput) (*listOutput[pipeline.EnvironmentState], error) {
	if _, err := a.projectVersion(ctx, needRead, in.Name, 0); err != nil {
		return nil, err
	}
	states, err := a.Store.Environments(ctx, in.Name)
	if err != nil {
		return nil, err
	}
	for i := range states {
		states[i].Waiting = list(states[i].Waiting)
	}
	return &listOutput[pipeline.EnvironmentState]{Body: List[pipeline.EnvironmentState]{Items: list(states)}}, nil
}

func (a *API) applyProject(ctx context.Context, in *applyInput) (*applyOutput, error) {
	if media, _, err := mime.ParseMediaType(in.ContentType); in.ContentType != "" && (err != nil || media != "application/json") {
		return nil, newProblem(ctx, http.StatusUnsupportedMediaType, problemMediaType, "send the project file in JSON, as application/json")
	}
	if a.CheckProject == nil {
		return nil, disabled(ctx, "check a project's gates")
	}
	base, err := a.projectVersion(ctx, needAdmin, in.Name, 0)
	if err != nil {
		return nil, err
	}
	file, err := pipeline.ParseProjectFile(in.RawBody)
	if err != nil {
		return nil, err
	}
	if file.Name != in.Name {
		return nil, fmt.Errorf("the file's name is %q and the address says %q: %w", file.Name, in.Name, pipeline.ErrInvalid)
	}
	change := pipeline.ProjectChange{Project: file.ApplyTo(base.Project), AppliedBy: infoOf(ctx).token.Name}
	if in.IfMatch != "" && in.IfMatch != "*" {
		if change.Base, err = versionOf(in.IfMatch); err != nil {
			return nil, err
		}
		if change.Base != base.Version {
			return nil, a.changedSince(ctx, base)
		}
	}
	if err := change.Project.Check(); err != nil {
		return nil, err
	}
	if err := a.CheckProject(change.Project); err != nil {
		return nil, fmt.Errorf("project %s: %w", in.Name, err)
	}
	out := &applyOutput{ETag: etag(base), Body: ProjectApplied{ProjectVersion: base, DryRun: in.DryRun}}
	if out.Body.Changes, err = changes(base.Project, change.Project); err != nil {
		return nil, err
	}
	out.Body.Changed = len(out.Body.Changes) > 0
	if in.DryRun {
		return out, nil
	}
	v, changed, err := a.Store.ApplyProject(ctx, change)
	if errors.Is(err, pipeline.ErrConflict) && change.Base != 0 {
		return nil, a.changedSince(ctx, base)
	}
	if err != nil {
		return nil, fmt.Errorf("apply project %s: %w", in.Name, err)
	}
	note(ctx, slog.String("project", in.Name))
	note(ctx, slog.Int("version", v.Version))
	out.ETag, out.Body.ProjectVersion, out.Body.Changed = etag(v), tidyProject(v), changed
	return out, nil
}

func versionOf(tag string) (int, error) {
	n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(tag, `"`), `"`))
	if err != nil || n < 1 {
		return 0, fmt.Errorf(`If-Match: want an ETag of this project, such as "3": %w`, pipeline.ErrInvalid)
	}
	return n, nil
}

func (a *API) changedSince(ctx context.Context, v pipeline.ProjectVersion) error {
	return newProblem(ctx, http.StatusPreconditionFailed, problemPrecondition, fmt.Sprintf(
		"project %s was changed since: version %d was in force when this was looked at; read it and make your change again", v.Project.Name, v.Version))
}
