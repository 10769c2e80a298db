package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"github.com/dray-project/dray/pipeline"
)

type approveInput struct {
	ID   string `path:"id" maxLength:"64" example:"prm_06f3n8w2c41r0kd7t9qh"`
	Body struct {
		Plan    pipeline.Digest `json:"plan,omitempty" maxLength:"100" doc:"The promotion's plan, as it was shown to the approver. Required for an approval."`
		Comment string          `json:"comment,omitempty" maxLength:"2000"`
		Reject  bool            `json:"reject,omitempty" doc:"Say no, which ends the promotion as refused."`
	}
}

type cancelInput struct {
	ID   string `path:"id" maxLength:"64" example:"prm_06f3n8w2c41r0kd7t9qh"`
	Body struct {
		Reason string `json:"reason" minLength:"1" maxLength:"2000" doc:"Why it is called off."`
	}
}

type wordOutput struct {
	Replayed bool `header:"Idempotent-Replayed" doc:"true when the same was said before, and this is the promotion as it stands."`
	Body     PromotionView
}

func (a *API) registerApprovals() {
	handle(a, huma.Operation{
		OperationID: "approve-promotion",
		Method:      http.MethodPost,
		Path:        "/api/v1/promotions/{id}/approvals",
		Summary:     "Approve or reject a promotion that waits for approvals",
		Description: "An approval is for the plan that the approver was shown: when what would be changed is another today, " +
			"the answer is 409 with the type plan-changed and today's plan. To approve takes one of the roles that the environment's approval rules name.",
		Tags:          []string{"promotions"},
		DefaultStatus: http.StatusOK,
		Responses:     a.problems(400, 404, 408, 409, 413, 415, 422),
	}, needApprove, a.approve)
	handle(a, huma.Operation{
		OperationID:   "cancel-promotion",
		Method:        http.MethodPost,
		Path:          "/api/v1/promotions/{id}/cancel",
		Summary:       "Call off a promotion that has not entered its environment yet",
		Tags:          []string{"promotions"},
		DefaultStatus: http.StatusOK,
		Responses:     a.problems(400, 404, 408, 409, 413, 415, 422),
	}, needRelease, a.cancel)
}

func (a *API) approve(ctx context.Context, in *approveInput) (*wordOutput, error) {
	detail, err := a.promotion(ctx, needApprove, pipeline.PromotionID(in.ID))
	if err != nil {
		return nil, err
	}
	token := infoOf(ctx).token
	word := pipeline.Approval{Promotion: detail.ID, By: token.Name, Roles: pipeline.RolesIn(token.Grants, detail.Project),
		Plan: in.Body.Plan, Comment: in.Body.Comment, Rejected: in.Body.Reject, At: a.Now().UTC()}
	if err := a.mayApprove(ctx, detail.Promotion, word); err != nil {
		return nil, err
	}
	if word.Plan == "" && word.Rejected {
		word.Plan = planOf(detail)
	}
	if word.Plan == "" && !detail.State.Final() {
		return nil, fmt.Errorf("plan is required: an approval is for what was shown, and for nothing else: %w", pipeline.ErrInvalid)
	}
	_, err = a.Store.Approve(ctx, word)
	conflict := errors.Is(err, pipeline.ErrConflict)
	if err != nil && !conflict {
		return nil, fmt.Errorf("approve promotion %s: %w", detail.ID, err)
	}
	note(ctx, slog.String("promotion", string(detail.ID)))
	now, readErr := a.promotion(ctx, needApprove, detail.ID)
	if readErr != nil {
		return nil, readErr
	}
	same := func(o pipeline.Approval) bool {
		return o.By == word.By && o.Plan == word.Plan && o.Rejected == word.Rejected
	}
	switch today := planOf(now); {
	case !conflict:
		return &wordOutput{Body: a.promotionView(now)}, nil
	case slices.ContainsFunc(now.Approvals, same):
		// It was said before: the answer may have been lost.
		return &wordOutput{Replayed: true, Body: a.promotionView(now)}, nil
	case !now.State.Final() && today != "" && today != word.Plan:
		p := newProblem(ctx, http.StatusConflict, problemPlanChanged,
			fmt.Sprintf("promotion %s: what it would change is not what was shown; look at it again, and approve %s", now.ID, today))
		p.Plan = today
		return nil, p
	}
	return nil, fmt.Errorf("approve promotion %s: %w", detail.ID, err)
}

// mayApprove checks that the word would count.
func (a *API) mayApprove(ctx context.Context, p pipeline.Promotion, word pipeline.Approval) error {
	if word.Rejected && anyOf(word.Roles, needRelease.roles()) {
		return nil // whoever may call it off may say no
	}
	v, err := a.Store.ProjectVersion(ctx, p.Project, 0)
	if err != nil {
		return err
	}
	var count []string
	if env, ok := v.Project.Environment(p.Environment); ok {
		for _, rule := range env.EntryGate(p.Action).Approvals {
			if !slices.Contains(count, rule.Role) {
				count = append(count, rule.Role)
			}
		}
	}
	if len(count) == 0 { // nothing is asked for, so there is nothing to say either
		count = needRelease.roles()
	}
	if !anyOf(word.Roles, count) {
		return a.forbidden(ctx, fmt.Sprintf("approvals in environment %s of project %s", p.Environment, p.Project), count, word.Roles)
	}
	return nil
}

func (a *API) cancel(ctx context.Context, in *cancelInput) (*wordOutput, error) {
	id := pipeline.PromotionID(in.ID)
	if _, err := a.promotion(ctx, needRelease, id); err != nil {
		return nil, err
	}
	_, err := a.Store.CancelPromotion(ctx, id, infoOf(ctx).token.Name, in.Body.Reason)
	if err != nil && !errors.Is(err, pipeline.ErrConflict) {
		return nil, fmt.Errorf("cancel promotion %s: %w", id, err)
	}
	note(ctx, slog.String("promotion", string(id)))
	now, readErr := a.promotion(ctx, needRelease, id)
	if readErr != nil {
		return nil, readErr
	}
	if err != nil && now.State != pipeline.StateCancelled {
		return nil, fmt.Errorf("cancel promotion %s: %w", id, err)
	}
	return &wordOutput{Replayed: err != nil, Body: a.promotionView(now)}, nil
}
