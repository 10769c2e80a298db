package api

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/dray-project/dray/pipeline"
)

type promoteInput struct {
	Key  string `header:"Idempotency-Key" maxLength:"255" pattern:"^[!-~]*$" doc:"Any text of your own that names this request. Sent again with the same body, it gives the promotion of the first time; with another body, 409. Without it every request is a new promotion."`
	Body struct {
		Image       string `json:"image,omitempty" maxLength:"400" doc:"The digest, or repository@digest. A tag is refused: it does not name an image. Of a rollback it may be left out: it is then what the environment had before." example:"sha256:2f1d0b7c9a34e6d58b1c7f20a9e3d4c5b6a7988f0e1d2c3b4a5968778695a4b3"`
		Environment string `json:"environment" minLength:"1" maxLength:"200" example:"prod"`
		Project     string `json:"project,omitempty" maxLength:"200" doc:"Needed only when several projects hold the digest, and for a rollback without an image."`
		Action      string `json:"action,omitempty" enum:"promote,rollback" doc:"promote when it is left out."`
		Note        string `json:"note,omitempty" maxLength:"2000" doc:"What the promotion is for."`
		BreakGlass  string `json:"breakGlass,omitempty" maxLength:"2000" doc:"The reason for overriding what the environment lets an emergency override. It is on record for ever."`
		DryRun      bool   `json:"dryRun,omitempty" doc:"Answer 200 with what the gate says now, and promote nothing. Asks for no more than the role viewer."`
	}
}

// promoteOutput has a body of its own for each status.
type promoteOutput struct {
	Status   int
	Location string `header:"Location" doc:"The promotion."`
	Replayed bool   `header:"Idempotent-Replayed" doc:"true when the key was used before and this is the first promotion again."`
	// Type is empty for a body that is written as JSON anyway.
	Type string `header:"Content-Type" hidden:"true"`
	Body []byte
}

type promotionsInput struct {
	Project     string `query:"project" maxLength:"200" doc:"Only this project's."`
	Environment string `query:"environment" maxLength:"200" doc:"Only those into this environment."`
	State       string `query:"state" enum:"queued,running,waiting,succeeded,failed,refused,cancelled,superseded" doc:"Only promotions in this state."`
	PageInput
}

type promotionInput struct {
	ID string `path:"id" maxLength:"64" example:"prm_06f3n8w2c41r0kd7t9qh"`
}

// PromotionView is a promotion with its stages and what verified, and how to
// verify it oneself.
type PromotionView struct {
	pipeline.PromotionDetail
	// Plan is what an approval has to be for.
	Plan pipeline.Digest `json:"plan,omitempty" doc:"The digest of diff: what an approval is for. Empty before the gate was asked."`
	// Approvals instead of the promotion's own.
	Approvals []ApprovalView `json:"approvals" nullable:"false"`
	// VerifyCommands check the image at its destination, without Dray.
	VerifyCommands []string `json:"verifyCommands,omitempty" nullable:"false" doc:"What to type to verify the image at its destination."`
}

// ApprovalView is an approval that says whether it still counts.
type ApprovalView struct {
	pipeline.Approval
	OtherPlan bool `json:"otherPlan,omitempty" doc:"true when what would be changed is not what was shown to the approver: the approval does not count."`
}

type promotionOutput struct{ Body PromotionView }

func (a *API) registerPromotions() {
	handle(a, huma.Operation{
		OperationID:   "promote",
		Method:        http.MethodPost,
		Path:          "/api/v1/promotions",
		Summary:       "Promote an image to an environment, or ask whether one could",
		Description:   "The promotion is recorded and queued; follow it at its Location. Whether the environment's gate lets the image pass is the promotion's outcome, not this answer's. With dryRun the answer is what the gate says now.",
		Tags:          []string{"promotions"},
		DefaultStatus: http.StatusAccepted,
		Responses:     a.accepted(pipeline.Promotion{}, pipeline.Eligibility{}, 400, 404, 408, 409, 413, 415, 422, 501),
	}, needRelease, a.promote)
	handle(a, huma.Operation{
		OperationID: "list-promotions",
		Method:      http.MethodGet,
		Path:        "/api/v1/promotions",
		Summary:     "List promotions, newest first",
		Tags:        []string{"promotions"},
		Responses:   a.problems(422),
	}, needRead, a.promotions)
	handle(a, huma.Operation{
		OperationID: "get-promotion",
		Method:      http.MethodGet,
		Path:        "/api/v1/promotions/{id}",
		Summary:     "Show a promotion with its stages, decision, difference, approvals and what verified",
		Tags:        []string{"promotions"},
		Responses:   a.problems(404, 422),
	}, needRead, func(ctx context.Context, in *promotionInput) (*promotionOutput, error) {
		detail, err := a.promotion(ctx, needRead, pipeline.PromotionID(in.ID))
		if err != nil {
			return nil, err
		}
		return &promotionOutput{a.promotionView(detail)}, nil
	})
	handle(a, streamOperation(a, "promotions", "follow-promotion", "/api/v1/promotions/{id}/events", "Follow a promotion"), needRead,
		func(ctx context.Context, in *streamInput) (*streamOutput, error) {
			id := pipeline.PromotionID(in.ID)
			if _, err := a.promotion(ctx, needRead, id); err != nil {
				return nil, err
			}
			return a.stream(in, id.Job(), func(ctx context.Context) (streamEnd, error) {
				p, err := a.Store.PromotionDetail(ctx, id)
				return streamEnd{p.State, p.Reason}, err
			})
		})
}

// accepted documents an answer 202 with a body, and one of 200 with another.
func (a *API) accepted(body, dry any, problems ...int) map[string]*huma.Response {
	responses := a.problems(problems...)
	add := func(status, description string, v any) {
		responses[status] = &huma.Response{Description: description, Content: map[string]*huma.MediaType{"application/json": {Schema: a.schema(v)}}}
	}
	add("202", "It is recorded and queued", body)
	if dry != nil {
		add("200", "Of a dry run: what the gate says now", dry)
	}
	return responses
}

func (a *API) promotions(ctx context.Context, in *promotionsInput) (*listOutput[pipeline.Promotion], error) {
	id := func(p pipeline.Promotion) string { return string(p.ID) }
	promotions, err := across(ctx, a, in.Project, in.page(), byID(id), func(project string) ([]pipeline.Promotion, error) {
		return a.Store.Promotions(ctx, pipeline.PromotionQuery{
			Project: project, Environment: in.Environment, State: pipeline.State(in.State), Page: in.page()})
	})
	if err != nil {
		return nil, err
	}
	for i := range promotions {
		promotions[i] = tidyPromotion(promotions[i])
	}
	return listOf(ctx, in.PageInput, promotions, id), nil
}

// promotion returns a promotion for somebody who may do something with it.
func (a *API) promotion(ctx context.Context, n need, id pipeline.PromotionID) (pipeline.PromotionDetail, error) {
	detail, err := a.Store.PromotionDetail(ctx, id)
	if err == nil {
		err = a.allow(ctx, n, detail.Project, "promotion", string(id))
	}
	if err != nil {
		return pipeline.PromotionDetail{}, found(err, "promotion", string(id))
	}
	detail.Promotion, detail.Stages = tidyPromotion(detail.Promotion), list(detail.Stages)
	return detail, nil
}

// tidyPromotion makes a promotion's lists readable without null checks.
func tidyPromotion(p pipeline.Promotion) pipeline.Promotion {
	p.Approvals = list(p.Approvals)
	p.Decision = tidy(p.Decision)
	return p
}

func (a *API) promotionView(detail pipeline.PromotionDetail) PromotionView {
	v := PromotionView{PromotionDetail: detail, Plan: planOf(detail), Approvals: []ApprovalView{}}
	for _, approval := range detail.Approvals {
		v.Approvals = append(v.Approvals, ApprovalView{approval, v.Plan != "" && approval.Plan != v.Plan})
	}
	if a.VerifyCommands != nil && detail.Destination != nil {
		v.VerifyCommands = a.VerifyCommands(*detail.Destination)
	}
	return v
}

// planOf is the digest of what a promotion would change, as its gate last saw it.
func planOf(p pipeline.PromotionDetail) pipeline.Digest {
	switch {
	case p.Decision != nil && p.Decision.Plan != "":
		return p.Decision.Plan
	case p.Diff != nil:
		return p.Diff.Plan()
	}
	return ""
}

func (a *API) promote(ctx context.Context, in *promoteInput) (*promoteOutput, error) {
	r := pipeline.PromotionRequest{
		Image:          in.Body.Image,
		Environment:    in.Body.Environment,
		Project:        in.Body.Project,
		Action:         in.Body.Action,
		Note:           in.Body.Note,
		BreakGlass:     strings.TrimSpace(in.Body.BreakGlass),
		IdempotencyKey: in.Key,
	}
	n := needRelease
	if in.Body.DryRun {
		n = needRead
	}
	digest, err := a.subject(ctx, n, &r)
	if err != nil {
		return nil, err
	}
	if in.Body.DryRun {
		a.dryRun(ctx, needRelease)
		r.Image = string(digest)
		e, err := a.eligibility(ctx, r)
		if err != nil {
			return nil, err
		}
		body, err := json.Marshal(e)
		return &promoteOutput{Status: http.StatusOK, Type: "application/json", Body: body}, err
	}
	return a.start(ctx, r)
}

// subject finds the project of a request, checks that the caller may make it
// and says who that is. It returns the image's digest, which is empty for a
// rollback to whatever was there before.
func (a *API) subject(ctx context.Context, n need, r *pipeline.PromotionRequest) (pipeline.Digest, error) {
	token := infoOf(ctx).token
	r.RequestedBy, r.Grants = token.Name, token.Grants
	if r.Image == "" {
		if r.Action != pipeline.ActionRollback || r.Project == "" {
			return "", fmt.Errorf("image is required, or for a rollback to what was there before, project: %w", pipeline.ErrInvalid)
		}
		return "", a.allow(ctx, n, r.Project, "project", r.Project)
	}
	digest, err := pipeline.ParseDigest(r.Image)
	if err != nil {
		image, err := pipeline.ParseImage(r.Image)
		if err != nil {
			return "", err
		}
		digest = image.Digest
	}
	detail, err := a.image(ctx, &ImageInput{Digest: string(digest), Project: r.Project})
	if err != nil {
		return "", err
	}
	r.Project = detail.Project
	return digest, a.allow(ctx, n, detail.Project, "image", string(digest))
}

// start writes the promotion down.
func (a *API) start(ctx context.Context, r pipeline.PromotionRequest) (*promoteOutput, error) {
	promotion, created, err := a.Store.Promote(ctx, r)
	if err != nil {
		what := r.Image
		if what == "" {
			what = "what was there before"
		}
		return nil, fmt.Errorf("promote %s to %s: %w", what, r.Environment, err)
	}
	note(ctx, slog.String("promotion", string(promotion.ID)))
	body, err := json.Marshal(tidyPromotion(promotion))
	return &promoteOutput{
		Status:   http.StatusAccepted,
		Location: "/api/v1/promotions/" + string(promotion.ID),
		Replayed: !created,
		Type:     "application/json",
		Body:     body,
	}, err
}
