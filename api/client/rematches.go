package client

import (
	"context"
	"net/url"

	"github.com/dray-project/dray/pipeline"
)

// Rematches lists the passes in which recorded images were matched with a new
// vulnerability database, newest first.
func (c *Client) Rematches(ctx context.Context, p PageQuery) (List[pipeline.RematchPass], error) {
	v := url.Values{}
	p.set(v)
	return getList[pipeline.RematchPass](ctx, c, "/api/v1/rematches", v)
}
