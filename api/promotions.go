package api

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/dray-project/dray/pipeline"
)

type promoteInput struct {
	Key  string `header:"Idempotency-Key" maxLength:"255" pattern:"^[!-~]*$" doc:"Any text of your own that names this request. Sent again with the same body, it gives the promotion of the first time; with another body, 409. Without it every request is a new promotion."`
	Body struct {
		Image       string `json:"image" minLength:"1" maxLength:"400" doc:"The digest, or repository@digest. A tag is refused: it does not name an image." example:"sha256:2f1d0b7c9a34e6d58b1c7f20a9e3d4c5b6a7988f0e1d2c3b4a5968778695a4b3"`
		Environment string `json:"environment" minLength:"1" maxLength:"200" example:"prod"`
		Project     string `json:"project,omitempty" maxLength:"200" doc:"Needed only when several projects hold the digest."`
	}
}

type promoteOutput struct {
	Location string `header:"Location" doc:"The promotion."`
	Replayed bool   `header:"Idempotent-Replayed" doc:"true when the key was used before and this is the first promotion again."`
	Body     pipeline.Promotion
}

type promotionsInput struct {
	Project string `query:"project" maxLength:"200" doc:"Only this project's."`
	PageInput
}

type promotionInput struct {
	ID string `path:"id" maxLength:"64" example:"prm_06f3n8w2c41r0kd7t9qh"`
}

// PromotionView is a promotion with its stages and what verified, and how to
// verify it oneself.
type PromotionView struct {
	pipeline.PromotionDetail
	// VerifyCommands check the image at its destination, without Dray.
	VerifyCommands []string `json:"verifyCommands,omitempty" nullable:"false" doc:"What to type to verify the image at its destination."`
}

type promotionOutput struct{ Body PromotionView }

func (a *API) registerPromotions() {
	handle(a, huma.Operation{
		OperationID:   "promote",
		Method:        http.MethodPost,
		Path:          "/api/v1/promotions",
		Summary:       "Promote an image to an environment",
		Description:   "The promotion is recorded and queued; follow it at its Location. Whether the environment's gate lets the image pass is the promotion's outcome, not this answer's.",
		Tags:          []string{"promotions"},
		Security:      tokenRequired,
		DefaultStatus: http.StatusAccepted,
		Responses:     a.problems(400, 401, 404, 408, 409, 413, 415, 422),
	}, a.promote)
	handle(a, huma.Operation{
		OperationID: "list-promotions",
		Method:      http.MethodGet,
		Path:        "/api/v1/promotions",
		Summary:     "List promotions, newest first",
		Tags:        []string{"promotions"},
		Security:    tokenRequired,
		Responses:   a.problems(401, 422),
	}, func(ctx context.Context, in *promotionsInput) (*listOutput[pipeline.Promotion], error) {
		promotions, err := a.Store.Promotions(ctx, in.Project, in.page())
		if err != nil {
			return nil, err
		}
		return listOf(ctx, in.PageInput, promotions, func(p pipeline.Promotion) string { return string(p.ID) }), nil
	})
	handle(a, huma.Operation{
		OperationID: "get-promotion",
		Method:      http.MethodGet,
		Path:        "/api/v1/promotions/{id}",
		Summary:     "Show a promotion with its stages, decision and what verified",
		Tags:        []string{"promotions"},
		Security:    tokenRequired,
		Responses:   a.problems(401, 404, 422),
	}, func(ctx context.Context, in *promotionInput) (*promotionOutput, error) {
		detail, err := a.Store.PromotionDetail(ctx, pipeline.PromotionID(in.ID))
		if err != nil {
			return nil, err
		}
		detail.Stages = list(detail.Stages)
		tidy(detail.Decision)
		view := PromotionView{PromotionDetail: detail}
		if a.VerifyCommands != nil && detail.Destination != nil {
			view.VerifyCommands = a.VerifyCommands(*detail.Destination)
		}
		return &promotionOutput{view}, nil
	})
	handle(a, streamOperation(a, "promotions", "follow-promotion", "/api/v1/promotions/{id}/events", "Follow a promotion"),
		func(ctx context.Context, in *streamInput) (*streamOutput, error) {
			id := pipeline.PromotionID(in.ID)
			if _, err := a.Store.PromotionDetail(ctx, id); err != nil {
				return nil, err
			}
			return a.stream(in, id.Job(), func(ctx context.Context) (streamEnd, error) {
				p, err := a.Store.PromotionDetail(ctx, id)
				return streamEnd{p.State, p.Reason}, err
			})
		})
}

func (a *API) promote(ctx context.Context, in *promoteInput) (*promoteOutput, error) {
	request := pipeline.PromotionRequest{
		Image:          in.Body.Image,
		Environment:    in.Body.Environment,
		Project:        in.Body.Project,
		RequestedBy:    infoOf(ctx).token.Name,
		IdempotencyKey: in.Key,
	}
	promotion, created, err := a.Store.Promote(ctx, request)
	if err != nil {
		return nil, fmt.Errorf("promote %s to %s: %w", request.Image, request.Environment, err)
	}
	note(ctx, slog.String("promotion", string(promotion.ID)))
	tidy(promotion.Decision)
	return &promoteOutput{
		Location: "/api/v1/promotions/" + string(promotion.ID),
		Replayed: !created,
		Body:     promotion,
	}, nil
}
