package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/dray-project/dray/pipeline"
)

// ImageInput names an image.
type ImageInput struct {
	Digest  string `path:"digest" maxLength:"100" example:"sha256:2f1d0b7c9a34e6d58b1c7f20a9e3d4c5b6a7988f0e1d2c3b4a5968778695a4b3"`
	Project string `query:"project" maxLength:"200" doc:"Needed only when several projects hold the digest; the 409 then names them."`
}

type sbomInput struct {
	ImageInput
	Platform string `query:"platform" maxLength:"100" doc:"Needed only when the image has several platforms." example:"linux/amd64"`
}

// ImageView is everything that Dray knows of an image, and how to verify it
// oneself.
type ImageView struct {
	pipeline.ImageDetail
	// VerifyCommands check the image where it was built, without Dray.
	VerifyCommands []string `json:"verifyCommands,omitempty" nullable:"false" doc:"What to type to verify the image."`
}

type imageOutput struct{ Body ImageView }

// rawOutput is a document that is passed on byte for byte.
type rawOutput struct {
	ContentType string `header:"Content-Type" hidden:"true"`
	Body        []byte
}

// raw documents a success whose body is not described further.
func (a *API) raw(contentType, description string, problems ...int) map[string]*huma.Response {
	responses := a.problems(problems...)
	responses["200"] = &huma.Response{Description: description, Content: map[string]*huma.MediaType{contentType: {Schema: &huma.Schema{}}}}
	return responses
}

const mediaCycloneDX = "application/vnd.cyclonedx+json"

func (a *API) registerImages() {
	handle(a, huma.Operation{
		OperationID: "get-image",
		Method:      http.MethodGet,
		Path:        "/api/v1/images/{digest}",
		Summary:     "Show an image: platforms, tags, findings, signatures, provenance, promotions",
		Tags:        []string{"images"},
		Responses:   a.problems(404, 409, 422),
	}, needRead, func(ctx context.Context, in *ImageInput) (*imageOutput, error) {
		detail, err := a.image(ctx, in)
		if err != nil {
			return nil, err
		}
		if err := a.suppress(ctx, &detail); err != nil {
			return nil, err
		}
		detail.Platforms, detail.Findings = list(detail.Platforms), list(detail.Findings)
		detail.Tags, detail.Signatures = list(detail.Tags), list(detail.Signatures)
		detail.Attestations, detail.Promotions = list(detail.Attestations), list(detail.Promotions)
		detail.Decision = *tidy(&detail.Decision)
		view := ImageView{ImageDetail: detail}
		if a.VerifyCommands != nil {
			view.VerifyCommands = a.VerifyCommands(detail.Image)
		}
		return &imageOutput{view}, nil
	})
	handle(a, huma.Operation{
		OperationID: "get-image-sbom",
		Method:      http.MethodGet,
		Path:        "/api/v1/images/{digest}/sbom",
		Summary:     "Get the CycloneDX SBOM of one platform of an image",
		Tags:        []string{"images"},
		Responses:   a.raw(mediaCycloneDX, "The CycloneDX document", 404, 409, 422),
	}, needRead, a.sbom)
	handle(a, huma.Operation{
		OperationID: "get-image-provenance",
		Method:      http.MethodGet,
		Path:        "/api/v1/images/{digest}/provenance",
		Summary:     "Get the SLSA v1 provenance predicate of an image",
		Tags:        []string{"images"},
		Responses:   a.raw("application/json", "The predicate, as it was attested", 404, 409, 422),
	}, needRead, func(ctx context.Context, in *ImageInput) (*rawOutput, error) {
		detail, err := a.image(ctx, in)
		if err != nil {
			return nil, err
		}
		if isNull(detail.Provenance) {
			return nil, fmt.Errorf("image %s of project %s has no provenance: an image that the gate refused is not attested: %w",
				detail.Image.Digest, detail.Project, pipeline.ErrNotFound)
		}
		return &rawOutput{"application/json", detail.Provenance}, nil
	})
}

// image finds the one image that is meant, among those of the projects that the
// caller may see.
func (a *API) image(ctx context.Context, in *ImageInput) (pipeline.ImageDetail, error) {
	none := pipeline.ImageDetail{}
	digest, err := pipeline.ParseDigest(in.Digest)
	if err != nil {
		return none, err
	}
	details, err := a.Store.ImageDetails(ctx, digest, in.Project)
	if err != nil {
		return none, found(err, "image", string(digest))
	}
	s := a.scope(ctx)
	details = slices.DeleteFunc(slices.Clone(details), func(d pipeline.ImageDetail) bool { return !s.has(d.Project) })
	switch len(details) {
	case 0:
		return none, hidden("image", string(digest))
	case 1:
		return details[0], nil
	}
	e := &ambiguousImage{digest: digest}
	for _, d := range details {
		e.projects = append(e.projects, d.Project)
	}
	slices.Sort(e.projects)
	return none, e
}

func (a *API) sbom(ctx context.Context, in *sbomInput) (*rawOutput, error) {
	detail, err := a.image(ctx, &in.ImageInput)
	if err != nil {
		return nil, err
	}
	platform := pipeline.Platform(in.Platform)
	var have []string
	for _, p := range detail.Platforms {
		have = append(have, string(p.Platform))
	}
	switch {
	case platform == "" && len(have) == 1:
		platform = detail.Platforms[0].Platform
	case platform == "":
		return nil, fmt.Errorf("image %s has several platforms: ask with platform=<one of %s>: %w", detail.Image.Digest, strings.Join(have, ", "), pipeline.ErrInvalid)
	case !slices.Contains(have, in.Platform):
		return nil, fmt.Errorf("image %s has no platform %q, only %s: %w", detail.Image.Digest, in.Platform, strings.Join(have, ", "), pipeline.ErrNotFound)
	}
	doc, err := a.Store.SBOM(ctx, detail.Project, detail.Image.Digest, platform)
	if err != nil {
		return nil, err
	}
	if isNull(doc) {
		return nil, fmt.Errorf("SBOM of %s for %s: %w", detail.Image.Digest, platform, pipeline.ErrNotFound)
	}
	return &rawOutput{mediaCycloneDX, doc}, nil
}

func isNull(doc json.RawMessage) bool { return len(doc) == 0 || string(doc) == "null" }
