package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/ledger"
	"github.com/dray-project/dray/pipeline/postgres"
)

// evidence is the log as the API serves it.
type evidence struct {
	*ledger.Log
	store *postgres.Store
	keys  string
}

// LogEntries implements api.Ledger.
func (e evidence) LogEntries(ctx context.Context, q pipeline.EntryQuery) ([]pipeline.LogEntry, error) {
	return e.store.LogEntries(ctx, q)
}

// CheckRows implements api.Ledger.
func (e evidence) CheckRows(ctx context.Context, from, to int64) ([]pipeline.RowCheck, error) {
	return e.store.CheckRows(ctx, from, to)
}

// PublicKey implements api.Ledger.
func (e evidence) PublicKey() string { return e.keys }

// logOrigin is the name of a log whose key is made now.
func (s *Settings) logOrigin() (string, error) {
	if s.Ledger.Origin != "" {
		return s.Ledger.Origin, ledger.CheckOrigin(s.Ledger.Origin)
	}
	u, err := url.Parse(s.PublicURL)
	if err != nil || u.Host == "" {
		return "", fmt.Errorf("public_url is %q: want one with a host, or set ledger.origin", s.PublicURL)
	}
	origin := u.Host + strings.TrimRight(u.Path, "/") + "/log"
	return origin, ledger.CheckOrigin(origin)
}

// logKeys reads the key that signs (nil without one) and the public keys that
// count.
func (s *Settings) logKeys() (signer *ledger.Signer, old string, keys ledger.Keys, err error) {
	var all []string
	if s.Ledger.KeyFile != "" {
		if signer, err = ledger.ReadSigner(s.Ledger.KeyFile); err != nil {
			return nil, "", keys, fmt.Errorf("ledger.key_file: %w", err)
		}
		if o := s.Ledger.Origin; o != "" && o != signer.Origin() {
			return nil, "", keys, fmt.Errorf("ledger.origin is %q and the key in ledger.key_file is of %q: make a key for that name (drayd key generate-log), or leave origin out", o, signer.Origin())
		}
		all = append(all, signer.PublicKey())
	}
	for _, path := range s.Ledger.TrustedKeyFiles {
		k, err := ledger.ReadKeys(path)
		if err != nil {
			return nil, "", keys, fmt.Errorf("ledger.trusted_key_files: %w", err)
		}
		all = append(all, k.String())
		old += k.String() + "\n"
	}
	if len(all) == 0 {
		return nil, "", keys, nil // it only serves: whoever asks for the key is told that it is not known
	}
	if keys, err = ledger.ParseKeys(strings.Join(all, "\n")); err != nil {
		return nil, "", keys, fmt.Errorf("ledger.trusted_key_files: %w", err)
	}
	return signer, old, keys, nil
}

// seal reads the key by which entries of the log are known to be Dray's.
func (s *Settings) seal() (*pipeline.Seal, error) {
	if s.Ledger.SealFile == "" {
		return nil, errors.New("ledger.seal_file is required: drayd key generate-log makes one")
	}
	text, err := ledger.ReadSecret(s.Ledger.SealFile)
	if err != nil {
		return nil, fmt.Errorf("ledger.seal_file: %w", err)
	}
	seal, err := pipeline.ParseSeal(text)
	if err != nil {
		return nil, fmt.Errorf("ledger.seal_file: %s: %w", s.Ledger.SealFile, err)
	}
	return seal, nil
}

// openLedger reads the keys and prepares what works on the log.
func (p *parts) openLedger(context.Context) error {
	s := p.settings
	signer, old, keys, err := s.logKeys()
	if err != nil {
		return err
	}
	log, err := ledger.NewLog(p.store)
	if err != nil {
		return err
	}
	p.evidence = evidence{log, p.store, keys.String()}
	if !s.Works() {
		return nil
	}
	p.sequencer, err = ledger.NewSequencer(ledger.SequencerConfig{Storage: p.store, Signer: signer, OldKeys: old, Log: p.log})
	if err != nil {
		return err
	}
	p.publisher, err = ledger.NewPublisher(ledger.PublisherConfig{
		Storage: p.store, Keys: keys, File: s.Ledger.Publish.File, Repository: s.Ledger.Publish.Repository, Every: s.Ledger.Publish.Every,
		Artifacts: p.registry, Turn: p.store.LogTurn, Log: p.log,
	})
	return err
}

// keepLog gives entries their places and publishes checkpoints until the function
// that it returns is called, which gives the last ones theirs.
func (p *parts) keepLog(ctx context.Context) (stop func()) {
	if p.sequencer == nil {
		return func() {}
	}
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	wg.Go(func() { p.sequencer.Run(work) })
	wg.Go(func() { p.publisher.Run(work) })
	return func() {
		cancel()
		wg.Wait()
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if err := p.sequencer.Once(end); err != nil {
			p.log.Warn("entries of the evidence log wait for another drayd, or the next start", "error", err)
		}
	}
}

// thinCheckpoints removes old checkpoints of the log, one process of all at a time.
func (p *parts) thinCheckpoints() postgres.Periodic {
	return postgres.Periodic{Name: "checkpoints", Every: time.Hour, Do: func(ctx context.Context) error {
		_, err := p.store.ThinCheckpoints(ctx)
		return err
	}, Failed: "old checkpoints of the evidence log could not all be removed; it is tried again"}
}

// checkLedger tries the keys and the seal, and whether the newest checkpoint is theirs.
func (p *parts) checkLedger(ctx context.Context) (good string, err error) {
	signer, _, keys, err := p.settings.logKeys()
	if err != nil {
		return "", err
	}
	if signer == nil {
		return "", errors.New("ledger.key_file is required: drayd key generate-log makes a key")
	}
	if _, err := p.settings.seal(); err != nil {
		return "", err
	}
	good = "log " + signer.Origin()
	if path := p.settings.Ledger.Publish.File; path != "" {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
		if err != nil {
			return "", fmt.Errorf("ledger.publish.file: %w", err)
		}
		if err := f.Close(); err != nil {
			return "", fmt.Errorf("ledger.publish.file: %w", err)
		}
	}
	if p.store == nil || p.store.Ready(ctx) != nil {
		return good, nil // said elsewhere
	}
	signed, err := p.store.LogCheckpoint(ctx, -1)
	if errors.Is(err, pipeline.ErrNotFound) {
		return good + ", empty", nil
	}
	if err != nil {
		return "", err
	}
	c, err := keys.Open(signed)
	if err != nil {
		return "", fmt.Errorf("the newest checkpoint in the database: %w: if the key was changed, name the old one's public half in ledger.trusted_key_files", err)
	}
	return fmt.Sprintf("%s, %d entries", good, c.N), nil
}

// logCollector tells how the evidence log fares.
type logCollector struct {
	store     *postgres.Store
	size      func(context.Context) (int64, error)
	sequencer *ledger.Sequencer // nil where nothing is worked on
	publisher *ledger.Publisher
	log       *slog.Logger
}

var (
	descLogSize      = prometheus.NewDesc("dray_log_entries", "Entries of the evidence log that have their place.", nil, nil)
	descLogWaiting   = prometheus.NewDesc("dray_log_waiting", "Entries of the evidence log that wait for their place.", nil, nil)
	descLogLag       = prometheus.NewDesc("dray_log_waiting_seconds", "How long the oldest of them has waited.", nil, nil)
	descLogRefused   = prometheus.NewDesc("dray_log_refused_entries", "Entries that somebody else wrote into the database: they have not Dray's seal.", nil, nil)
	descLogRewritten = prometheus.NewDesc("dray_log_rewritten", "1 if the evidence log is not what was signed or published: somebody rewrote history.", []string{"found_by"}, nil)
	descLogWritten   = prometheus.NewDesc("dray_log_written_total", "Entries that this process has written into the evidence log.", nil, nil)
	descLogWriting   = prometheus.NewDesc("dray_log_writing_seconds_total", "How long this process took to write them, within the transactions of their changes.", nil, nil)
	descLogPublished = prometheus.NewDesc("dray_log_published_entries", "Size of the checkpoint that this process published last.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c *logCollector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descLogSize, descLogWaiting, descLogLag, descLogRewritten, descLogPublished, descLogWritten, descLogWriting, descLogRefused} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c *logCollector) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	yes := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	if c.sequencer != nil {
		gauge(descLogRewritten, yes(c.sequencer.Status().Rewritten), "sequencer")
		gauge(descLogRewritten, yes(c.publisher.Status().Rewritten), "publisher")
		gauge(descLogPublished, float64(c.publisher.Status().Size))
	}
	entries, took := c.store.LogWritten()
	out <- prometheus.MustNewConstMetric(descLogWritten, prometheus.CounterValue, float64(entries))
	out <- prometheus.MustNewConstMetric(descLogWriting, prometheus.CounterValue, took.Seconds())
	waiting, oldest, refused, err := c.store.LogLag(ctx)
	if err == nil {
		gauge(descLogWaiting, float64(waiting))
		gauge(descLogLag, oldest.Seconds())
		gauge(descLogRefused, float64(refused))
		var size int64
		if size, err = c.size(ctx); err == nil {
			gauge(descLogSize, float64(size))
		}
	}
	if err != nil && !errors.Is(err, pipeline.ErrNotFound) {
		c.log.WarnContext(ctx, "metrics without the evidence log", "error", err)
	}
}
