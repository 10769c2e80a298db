package client

import (
	"context"
	"net/http"

	"github.com/dray-project/dray/pipeline"
)

// RetentionPlan says what the project's retention would remove now, and what
// stays and why.
func (c *Client) RetentionPlan(ctx context.Context, project string) (p pipeline.RetentionPlan, err error) {
	err = c.getJSON(ctx, projectPath(project)+"/retention", nil, &p)
	return p, err
}

// ApplyRetention has the plan of that digest carried out. If the plan is another
// one by now, the error wraps pipeline.ErrConflict.
func (c *Client) ApplyRetention(ctx context.Context, project string, plan pipeline.Digest) (r pipeline.RetentionRun, err error) {
	err = c.once(ctx, http.MethodPost, projectPath(project)+"/retention", nil, nil, map[string]string{"plan": string(plan)}, &r)
	return r, err
}

// Retention says what became of the plan that was applied last.
func (c *Client) Retention(ctx context.Context, project string) (r pipeline.RetentionRun, err error) {
	err = c.getJSON(ctx, projectPath(project)+"/retention/last", nil, &r)
	return r, err
}
