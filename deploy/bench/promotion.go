//go:build linux

package main

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/dray-project/dray/pipeline"
)

// promotions promotes the image that was released last to where it has been
// since the first of them, which is the least that a promotion can be: it is
// verified, judged, compared, recorded and tagged, and no blob moves. It returns
// how long each took, from the request to its end by the record, and how much of
// that went into the evidence log by drayd's own count, in milliseconds.
func (w *whole) promotions(ctx context.Context, n int) (took, writing []float64, err error) {
	image, err := w.released(ctx)
	if err != nil {
		return nil, nil, err
	}
	for i := range n + 1 {
		before, err := w.metric(ctx, "dray_log_writing_seconds_total")
		if err != nil {
			return nil, nil, err
		}
		asked, err := w.Client.Promote(ctx, pipeline.PromotionRequest{Project: "hello-go", Image: string(image), Environment: "prod"})
		if err != nil {
			return nil, nil, err
		}
		for _, err := range w.Client.Follow(ctx, asked.ID.Job(), 0) {
			if err != nil {
				return nil, nil, err
			}
		}
		p, err := w.Client.Promotion(ctx, asked.ID)
		if err != nil {
			return nil, nil, err
		}
		if p.State != pipeline.StateSucceeded || p.FinishedAt == nil {
			return nil, nil, fmt.Errorf("promotion %s %s: %s", p.ID, p.State, p.Reason)
		}
		after, err := w.metric(ctx, "dray_log_writing_seconds_total")
		if err != nil {
			return nil, nil, err
		}
		if i > 0 { // the first one copies
			took, writing = append(took, 1000*p.FinishedAt.Sub(p.CreatedAt).Seconds()), append(writing, 1000*(after-before))
		}
	}
	return took, writing, nil
}

// released is the image of the last run.
func (w *whole) released(ctx context.Context) (pipeline.Digest, error) {
	run, err := w.RunOf(ctx, "hello-go", fmt.Sprintf("refs/tags/v1.0.%d", w.next), "")
	if err != nil {
		return "", err
	}
	d, err := w.Client.Run(ctx, run.ID)
	if err != nil {
		return "", err
	}
	if d.Image == nil {
		return "", fmt.Errorf("run %s %s without an image", d.ID, d.State)
	}
	return d.Image.Digest, nil
}

// metric reads one of drayd's metrics that has no labels.
func (w *whole) metric(ctx context.Context, name string) (float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.Metrics, nil)
	if err != nil {
		return 0, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer func() { _ = res.Body.Close() }()
	lines := bufio.NewScanner(res.Body)
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			return strconv.ParseFloat(value, 64)
		}
	}
	if err := lines.Err(); err != nil {
		return 0, err
	}
	return 0, fmt.Errorf("%s has no %s", w.Metrics, name)
}
