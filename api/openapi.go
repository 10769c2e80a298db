package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

// humaConfig describes the API; huma serves neither the description nor pages
// about it by itself.
func (a *API) humaConfig() huma.Config {
	return huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info: &huma.Info{
				Title:       "Dray",
				Version:     a.Version,
				Description: "Container images from commit to production, with the papers to prove it.",
				License:     &huma.License{Name: "Apache-2.0", Identifier: "Apache-2.0"},
			},
			Servers: []*huma.Server{{URL: "/"}},
			Components: &huma.Components{
				Schemas: huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer),
				SecuritySchemes: map[string]*huma.SecurityScheme{
					"token": {Type: "http", Scheme: "bearer", Description: "A token of Dray's: dray_…"},
				},
			},
			Tags: []*huma.Tag{
				{Name: "projects", Description: "A project is a source repository that Dray watches, with its gates and environments."},
				{Name: "runs", Description: "A run is one image built from one commit."},
				{Name: "promotions", Description: "A promotion brings one digest into one environment."},
				{Name: "exceptions", Description: "Findings that somebody accepted, and VEX documents."},
				{Name: "registries", Description: "What registries can do, and where they are not as the record says."},
				{Name: "images", Description: "What Dray knows of an image."},
				{Name: "packages", Description: "Where a package is."},
				{Name: "log", Description: "The evidence log, and proofs of what is in it."},
				{Name: "audit", Description: "What auditors ask of the record."},
				{Name: "keys", Description: "What is needed to verify without trusting Dray."},
				{Name: "webhooks", Description: "Events of the source forges."},
				{Name: "service", Description: "The service itself."},
			},
		},
		Formats:                      map[string]huma.Format{"application/json": huma.DefaultJSONFormat, "json": huma.DefaultJSONFormat},
		DefaultFormat:                "application/json",
		RejectUnknownQueryParameters: true,
		Transformers:                 []huma.Transformer{a.transform},
	}
}

func (a *API) schema(v any) *huma.Schema {
	return a.huma.OpenAPI().Components.Schemas.Schema(reflect.TypeOf(v), true, "")
}

// requestBodies names the schemas of what is sent here.
func (a *API) requestBodies() map[string]bool {
	names := map[string]bool{}
	for _, path := range a.huma.OpenAPI().Paths {
		for _, op := range []*huma.Operation{path.Post, path.Put, path.Patch} {
			if op == nil || op.RequestBody == nil {
				continue
			}
			for _, media := range op.RequestBody.Content {
				if media.Schema != nil {
					names[strings.TrimPrefix(media.Schema.Ref, "#/components/schemas/")] = true
				}
			}
		}
	}
	return names
}

// finishOpenAPI writes the description once, and serves it.
func (a *API) finishOpenAPI() error {
	a.schema(Problem{})
	a.plainPaths()
	schemas := a.huma.OpenAPI().Components.Schemas.Map()
	// huma's own error type is never sent.
	delete(schemas, "ErrorModel")
	delete(schemas, "ErrorDetail")
	requests := a.requestBodies()
	for name, s := range schemas {
		// Readers must bear members that a later version adds; what is sent here
		// must not hold any that are not known, or a misspelt one would be lost.
		if !requests[name] && s.Type == huma.TypeObject && s.AdditionalProperties == false {
			s.AdditionalProperties = nil
		}
	}
	doc, err := json.MarshalIndent(a.huma.OpenAPI(), "", "  ")
	if err != nil {
		return fmt.Errorf("api: write the OpenAPI description: %w", err)
	}
	a.openAPI = append(doc, '\n')
	a.mux.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "public, max-age=60")
		_, _ = w.Write(a.openAPI) // the caller may be gone
	})
	return nil
}
