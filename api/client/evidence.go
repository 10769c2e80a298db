package client

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/dray-project/dray/pipeline"
)

// Evidence writes an image's evidence bundle to w and returns how many bytes it
// has. It takes as long as it takes: the caller's context bounds it. What was
// written is the whole bundle if and only if the error is nil; what it proves is
// for the caller to verify.
func (c *Client) Evidence(ctx context.Context, d pipeline.Digest, project string, w io.Writer) (int64, error) {
	q := url.Values{}
	setIf(q, "project", project)
	path := "/api/v1/images/" + url.PathEscape(string(d)) + "/evidence"
	resp, err := c.send(ctx, http.MethodGet, path, q, http.Header{"Accept": {"application/x-tar"}}, nil)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	n, err := io.Copy(w, resp.Body)
	if err == nil && resp.ContentLength >= 0 && n != resp.ContentLength {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return n, fmt.Errorf("the bundle broke off after %d bytes: %w", n, err)
	}
	return n, nil
}
