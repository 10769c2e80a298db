package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/dray-project/dray/pipeline/postgres"
)

// scrapeTimeout bounds the queries of one scrape.
const scrapeTimeout = 5 * time.Second

// serveMetrics serves /metrics on a port of its own, where the settings name one.
func (p *parts) serveMetrics() (stop func(), err error) {
	if p.settings.Metrics.Listen == "" {
		return func() {}, nil
	}
	l, err := net.Listen("tcp", p.settings.Metrics.Listen)
	if err != nil {
		return nil, fmt.Errorf("metrics.listen: %w", err)
	}
	more := &logCollector{store: p.store, size: p.evidence.Size, sequencer: p.sequencer, publisher: p.publisher, log: p.log}
	server := &http.Server{Handler: metrics(p.store.Counts, p.log, more), ReadHeaderTimeout: 10 * time.Second}
	go func() {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			p.log.Error("metrics are not served any more", "error", err)
		}
	}()
	return func() { _ = server.Close() }, nil
}

// metrics is the handler of /metrics.
func metrics(counts func(context.Context) (postgres.Counts, error), log *slog.Logger, more ...prometheus.Collector) http.Handler {
	r := prometheus.NewRegistry()
	build := prometheus.NewGauge(prometheus.GaugeOpts{Name: "dray_build_info", Help: "The version that runs.", ConstLabels: prometheus.Labels{"version": version}})
	build.Set(1)
	r.MustRegister(build, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		&recordCollector{counts: counts, log: log})
	r.MustRegister(more...)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(r, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}))
	return mux
}

// recordCollector reads what the record says when it is asked, so that every
// drayd of one database says the same, and a restart forgets nothing.
type recordCollector struct {
	counts func(context.Context) (postgres.Counts, error)
	log    *slog.Logger
}

var (
	descRuns       = prometheus.NewDesc("dray_runs_total", "Runs, by what became of them.", []string{"project", "result"}, nil)
	descPromotions = prometheus.NewDesc("dray_promotions_total", "Promotions, by what became of them.",
		[]string{"project", "environment", "result"}, nil)
	descBreakGlass = prometheus.NewDesc("dray_break_glass_total", "Promotions for which an emergency overrode a rule.",
		[]string{"project", "environment"}, nil)
	descDrift    = prometheus.NewDesc("dray_drift", "Drifts that are open now.", []string{"project", "environment", "kind"}, nil)
	descRepaired = prometheus.NewDesc("dray_drift_repaired_total", "Drifts that were repaired.", []string{"project", "environment", "kind"}, nil)
	descFindings = prometheus.NewDesc("dray_findings", "Known vulnerabilities in what environments hold now.", []string{"project", "environment", "severity"}, nil)
	descDatabase = prometheus.NewDesc("dray_database_age_seconds", "Age of the newest vulnerability database that images were matched with.", nil, nil)
	descUp       = prometheus.NewDesc("dray_record_up", "1 if the record could be read for this scrape.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c *recordCollector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descRuns, descPromotions, descBreakGlass, descDrift, descRepaired, descFindings, descDatabase, descUp} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c *recordCollector) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	counts, err := c.counts(ctx)
	if err != nil {
		c.log.WarnContext(ctx, "metrics without the record", "error", err)
		out <- prometheus.MustNewConstMetric(descUp, prometheus.GaugeValue, 0)
		return
	}
	out <- prometheus.MustNewConstMetric(descUp, prometheus.GaugeValue, 1)
	put := func(d *prometheus.Desc, t prometheus.ValueType, list []postgres.Count) {
		for _, n := range list {
			out <- prometheus.MustNewConstMetric(d, t, float64(n.N), n.Labels...)
		}
	}
	put(descRuns, prometheus.CounterValue, counts.Runs)
	put(descPromotions, prometheus.CounterValue, counts.Promotions)
	put(descBreakGlass, prometheus.CounterValue, counts.BreakGlass)
	put(descDrift, prometheus.GaugeValue, counts.Drift)
	put(descRepaired, prometheus.CounterValue, counts.Repaired)
	put(descFindings, prometheus.GaugeValue, counts.Findings)
	if counts.DatabaseAge >= 0 {
		out <- prometheus.MustNewConstMetric(descDatabase, prometheus.GaugeValue, counts.DatabaseAge)
	}
}
