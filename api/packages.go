package api

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/dray-project/dray/pipeline"
)

type packagesInput struct {
	Name        string `query:"name" required:"true" minLength:"1" maxLength:"400" doc:"The package's exact name." example:"golang.org/x/crypto"`
	Version     string `query:"version" maxLength:"200" doc:"Only this exact version."`
	Project     string `query:"project" maxLength:"200" doc:"Only images of this project."`
	Environment string `query:"environment" maxLength:"200" doc:"Only images that were promoted there."`
	Promoted    bool   `query:"promoted" doc:"Only images that were promoted anywhere."`
	PageInput
}

func (a *API) registerPackages() {
	handle(a, huma.Operation{
		OperationID: "find-package",
		Method:      http.MethodGet,
		Path:        "/api/v1/packages",
		Summary:     "Find the images that contain a package, and where they were promoted",
		Tags:        []string{"packages"},
		Responses:   a.problems(422),
	}, needRead, func(ctx context.Context, in *packagesInput) (*listOutput[pipeline.PackageUse], error) {
		uses, err := across(ctx, a, in.Project, in.page(), newerUse, func(project string) ([]pipeline.PackageUse, error) {
			return a.Store.Packages(ctx, pipeline.PackageQuery{
				Name:        in.Name,
				Version:     in.Version,
				Project:     project,
				Environment: in.Environment,
				Promoted:    in.Promoted,
				Page:        in.page(),
			})
		})
		if err != nil {
			return nil, err
		}
		for i := range uses {
			u := &uses[i]
			u.Platforms, u.Tags, u.Promotions = list(u.Platforms), list(u.Tags), list(u.Promotions)
		}
		return listOf(ctx, in.PageInput, uses, func(u pipeline.PackageUse) string { return u.ID }), nil
	})
}

// newerUse orders uses as the store does: by the numbers that their ids are
// made of, the highest first.
func newerUse(x, y pipeline.PackageUse) int {
	numbers := func(id string) (out []int64) {
		for part := range strings.SplitSeq(id, "-") {
			n, err := strconv.ParseInt(part, 10, 64)
			if err != nil {
				return nil
			}
			out = append(out, n)
		}
		return out
	}
	if a, b := numbers(x.ID), numbers(y.ID); a != nil && b != nil {
		return slices.Compare(b, a)
	}
	return strings.Compare(y.ID, x.ID)
}
