package client

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"

	"github.com/dray-project/dray/pipeline"
)

// Promotion is a promotion as the server shows it.
type Promotion struct {
	pipeline.PromotionDetail
	// Plan is what an approval has to be for; empty before the gate was asked.
	Plan pipeline.Digest `json:"plan,omitempty"`
	// Approvals instead of the promotion's own.
	Approvals []Approval `json:"approvals"`
	// VerifyCommands check the image at its destination, without Dray.
	VerifyCommands []string `json:"verifyCommands,omitempty"`
}

// whole gives the promotion within its approvals too.
func (p Promotion) whole() Promotion {
	p.PromotionDetail.Approvals = make([]pipeline.Approval, 0, len(p.Approvals))
	for _, a := range p.Approvals {
		p.PromotionDetail.Approvals = append(p.PromotionDetail.Approvals, a.Approval)
	}
	return p
}

// Approval is an approval that says whether it still counts.
type Approval struct {
	pipeline.Approval
	// OtherPlan: what would be changed is not what was shown to the approver.
	OtherPlan bool `json:"otherPlan,omitempty"`
}

// Promote asks for a promotion and returns it as queued; Follow tells what
// becomes of it. The request carries an idempotency key (one is made if r has
// none), and so it is sent again when the answer is lost.
func (c *Client) Promote(ctx context.Context, r pipeline.PromotionRequest) (p pipeline.Promotion, err error) {
	err = c.keyed(ctx, "/api/v1/promotions", r.IdempotencyKey, r, &p)
	return p, err
}

// keyed posts under an idempotency key, so that it can be repeated.
func (c *Client) keyed(ctx context.Context, path, key string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("POST %s: %w", path, err)
	}
	if key == "" {
		key = rand.Text()
	}
	return c.post(ctx, path, http.Header{"Content-Type": {"application/json"}, "Idempotency-Key": {key}}, body, out)
}

// DryRun asks what the gate says of a promotion now, and promotes nothing.
func (c *Client) DryRun(ctx context.Context, r pipeline.PromotionRequest) (e pipeline.Eligibility, err error) {
	body, err := json.Marshal(struct {
		pipeline.PromotionRequest
		DryRun bool `json:"dryRun"`
	}{r, true})
	if err != nil {
		return e, fmt.Errorf("dry run: %w", err)
	}
	err = c.post(ctx, "/api/v1/promotions", http.Header{"Content-Type": {"application/json"}}, body, &e)
	return e, err
}

// Rollback asks for an environment to be brought back to an image that it had
// before: the one that it had last, if r has no image. It needs r's project and
// environment, and is sent again like Promote.
func (c *Client) Rollback(ctx context.Context, r pipeline.PromotionRequest) (p pipeline.Promotion, err error) {
	body := map[string]string{}
	for name, value := range map[string]string{"to": r.Image, "note": r.Note, "breakGlass": r.BreakGlass} {
		if value != "" {
			body[name] = value
		}
	}
	err = c.keyed(ctx, projectPath(r.Project)+"/environments/"+url.PathEscape(r.Environment)+"/rollback", r.IdempotencyKey, body, &p)
	return p, err
}

// PromotionsQuery narrows a list of promotions; empty fields do not.
type PromotionsQuery struct {
	Project     string
	Environment string
	State       pipeline.State
	PageQuery
}

// Promotions lists promotions, newest first.
func (c *Client) Promotions(ctx context.Context, q PromotionsQuery) (List[pipeline.Promotion], error) {
	v := url.Values{}
	setIf(v, "project", q.Project)
	setIf(v, "environment", q.Environment)
	setIf(v, "state", string(q.State))
	q.set(v)
	return getList[pipeline.Promotion](ctx, c, "/api/v1/promotions", v)
}

func promotionPath(id pipeline.PromotionID) string {
	return "/api/v1/promotions/" + url.PathEscape(string(id))
}

// Promotion returns a promotion with its stages, decision and difference.
func (c *Client) Promotion(ctx context.Context, id pipeline.PromotionID) (p Promotion, err error) {
	err = c.getJSON(ctx, promotionPath(id), nil, &p)
	return p.whole(), err
}

// Word is what somebody says of a promotion.
type Word struct {
	// Plan that was shown. A rejection may leave it out.
	Plan    pipeline.Digest `json:"plan,omitempty"`
	Comment string          `json:"comment,omitempty"`
	Reject  bool            `json:"reject,omitempty"`
}

// Approve says a word about a promotion that waits for approvals. When its plan
// is another by now, the error is a *Problem with PlanChanged. Saying the same
// again is no error, and so it is sent again when the answer is lost.
func (c *Client) Approve(ctx context.Context, id pipeline.PromotionID, w Word) (p Promotion, err error) {
	err = c.again(ctx, promotionPath(id)+"/approvals", w, &p)
	return p.whole(), err
}

// CancelPromotion calls a promotion off; one that is cancelled stays so.
func (c *Client) CancelPromotion(ctx context.Context, id pipeline.PromotionID, reason string) (p Promotion, err error) {
	err = c.again(ctx, promotionPath(id)+"/cancel", map[string]string{"reason": reason}, &p)
	return p.whole(), err
}

// again posts what may be said twice.
func (c *Client) again(ctx context.Context, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("POST %s: %w", path, err)
	}
	return c.post(ctx, path, http.Header{"Content-Type": {"application/json"}}, body, out)
}

// EligibilityQuery asks about an image and an environment.
type EligibilityQuery struct {
	Image       pipeline.Digest
	Environment string
	Project     string // needed only when several projects hold the digest
	Action      string // "promote" when empty
}

func (q EligibilityQuery) values() url.Values {
	v := url.Values{"environment": {q.Environment}}
	setIf(v, "project", q.Project)
	setIf(v, "action", q.Action)
	return v
}

// Eligibility says whether an image could enter an environment now.
func (c *Client) Eligibility(ctx context.Context, q EligibilityQuery) (e pipeline.Eligibility, err error) {
	err = c.getJSON(ctx, imagePath(q.Image)+"/eligibility", q.values(), &e)
	return e, err
}

// Diff says what promoting an image would change in an environment.
func (c *Client) Diff(ctx context.Context, q EligibilityQuery) (d pipeline.Diff, err error) {
	q.Action = ""
	err = c.getJSON(ctx, imagePath(q.Image)+"/diff", q.values(), &d)
	return d, err
}
