package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/dray-project/dray/pipeline"
)

type rematchesInput struct{ PageInput }

func (a *API) registerRematches() {
	handle(a, huma.Operation{
		OperationID: "list-rematches",
		Method:      http.MethodGet,
		Path:        "/api/v1/rematches",
		Summary:     "List the passes in which recorded images were matched with a new vulnerability database, newest first",
		Description: "A pass says which database it was and how many images it was about, over all projects. What changed of an image is with the image.",
		Tags:        []string{"images"},
		Responses:   a.problems(422),
	}, needToken, func(ctx context.Context, in *rematchesInput) (*listOutput[pipeline.RematchPass], error) {
		list, err := a.Store.Rematches(ctx, in.page())
		if err != nil {
			return nil, err
		}
		return listOf(ctx, in.PageInput, list, func(p pipeline.RematchPass) string { return string(p.ID) }), nil
	})
}
