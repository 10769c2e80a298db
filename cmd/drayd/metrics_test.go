package main

import (
	"context"
	"errors"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/dray-project/dray/pipeline/postgres"
)

func TestMetrics(t *testing.T) {
	var counts postgres.Counts
	var broken error
	handler := metrics(func(context.Context) (postgres.Counts, error) { return counts, broken }, slog.New(slog.DiscardHandler))
	scrape := func() string {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
		return w.Body.String()
	}
	counts = postgres.Counts{
		Runs:       []postgres.Count{{Labels: []string{"app", "succeeded"}, N: 7}},
		Promotions: []postgres.Count{{Labels: []string{"app", "prod", "waiting"}, N: 2}},
		BreakGlass: []postgres.Count{{Labels: []string{"app", "prod"}, N: 1}},
		Drift:      []postgres.Count{{Labels: []string{"app", "prod", "tag"}, N: 3}},
		Repaired:   []postgres.Count{{Labels: []string{"app", "prod", "missing"}, N: 4}},
	}
	text := scrape()
	for _, want := range []string{
		`dray_runs_total{project="app",result="succeeded"} 7`,
		`dray_promotions_total{environment="prod",project="app",result="waiting"} 2`,
		`dray_break_glass_total{environment="prod",project="app"} 1`,
		`dray_drift{environment="prod",kind="tag",project="app"} 3`,
		`dray_drift_repaired_total{environment="prod",kind="missing",project="app"} 4`,
		`dray_record_up 1`, `dray_build_info{version=`, `go_goroutines`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("/metrics does not say %s", want)
		}
	}
	broken = errors.New("the database is away")
	if text := scrape(); !strings.Contains(text, "dray_record_up 0") || strings.Contains(text, "dray_drift{") {
		t.Errorf("without the record /metrics says:\n%s", text)
	}
}
