package api

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/dray-project/dray/pipeline"
)

type driftInput struct {
	Project string `query:"project" maxLength:"200" doc:"Only this project's."`
	All     bool   `query:"all" doc:"What was repaired or resolved as well."`
	PageInput
}

type registryInput struct {
	Host string `path:"host" maxLength:"300" example:"registry.example:5000"`
}

type probeOutput struct{ Body pipeline.RegistryProbe }

func (a *API) registerRegistries() {
	handle(a, huma.Operation{
		OperationID: "list-drift",
		Method:      http.MethodGet,
		Path:        "/api/v1/drift",
		Summary:     "List where registries are not as the record says, newest first",
		Tags:        []string{"registries"},
		Responses:   a.problems(422),
	}, needRead, func(ctx context.Context, in *driftInput) (*listOutput[pipeline.Drift], error) {
		id := func(d pipeline.Drift) string { return d.ID }
		drifts, err := across(ctx, a, in.Project, in.page(), byID(id), func(project string) ([]pipeline.Drift, error) {
			return a.Store.Drifts(ctx, project, in.All, in.page())
		})
		if err != nil {
			return nil, err
		}
		return listOf(ctx, in.PageInput, drifts, id), nil
	})
	handle(a, huma.Operation{
		OperationID: "list-registries",
		Method:      http.MethodGet,
		Path:        "/api/v1/registries",
		Summary:     "List what registries can do, as it was last tried, by host",
		Description: "Only registries that a project uses which the caller may see.",
		Tags:        []string{"registries"},
		Responses:   a.problems(422),
	}, needRead, a.registries)
	handle(a, huma.Operation{
		OperationID:   "probe-registry",
		Method:        http.MethodPost,
		Path:          "/api/v1/registries/{host}/probe",
		Summary:       "Try now what a registry can do",
		Description:   "Writes a few small things to it and removes them again. The registry must be one that the server's settings know.",
		Tags:          []string{"registries"},
		DefaultStatus: http.StatusOK,
		Responses:     a.problems(404, 422, 501),
	}, needServerAdmin, func(ctx context.Context, in *registryInput) (*probeOutput, error) {
		if err := a.allowServer(ctx); err != nil {
			return nil, err
		}
		if a.Probe == nil {
			return nil, disabled(ctx, "probe registries")
		}
		p, err := a.Probe(ctx, in.Host)
		if err != nil {
			return nil, fmt.Errorf("probe registry %.200s: %w", in.Host, err)
		}
		return &probeOutput{p}, nil
	})
}

func (a *API) registries(ctx context.Context, in *projectsInput) (*listOutput[pipeline.RegistryProbe], error) {
	all, err := a.Store.Registries(ctx)
	if err != nil {
		return nil, err
	}
	s := a.scope(ctx)
	used := map[string]bool{}
	if !s.all {
		versions, err := a.Store.Projects(ctx)
		if err != nil {
			return nil, err
		}
		for _, v := range versions {
			if !s.has(v.Project.Name) {
				continue
			}
			used[hostOf(v.Project.Repository)] = true
			for _, e := range v.Project.Environments {
				used[hostOf(e.Repository)] = true
			}
		}
	}
	var seen []pipeline.RegistryProbe
	for _, r := range all {
		if (s.all || used[r.Host]) && r.Host > in.Cursor {
			seen = append(seen, r)
		}
	}
	slices.SortFunc(seen, func(x, y pipeline.RegistryProbe) int { return strings.Compare(x.Host, y.Host) })
	return listOf(ctx, in.PageInput, seen, func(r pipeline.RegistryProbe) string { return r.Host }), nil
}

func hostOf(repository string) string {
	host, _, _ := strings.Cut(repository, "/")
	return host
}
