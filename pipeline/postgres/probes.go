package postgres

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

// RecordProbe keeps what the newest probe of a registry learnt.
func (s *Store) RecordProbe(ctx context.Context, p pipeline.RegistryProbe) error {
	if p.Host == "" {
		return fmt.Errorf("record a probe: the registry's host is required: %w", pipeline.ErrInvalid)
	}
	doc, err := document(p)
	if err != nil {
		return wrap(err, "record the probe of %s", p.Host)
	}
	_, err = s.pool.Exec(ctx, `
		INSERT INTO registry_probes (host, probed_at, probe) VALUES ($1, $2, $3)
		ON CONFLICT (host) DO UPDATE SET probed_at = excluded.probed_at, probe = excluded.probe
		WHERE registry_probes.probed_at <= excluded.probed_at`, p.Host, p.ProbedAt, doc)
	return wrap(err, "record the probe of %s", p.Host)
}

// Registries lists what the last probe of each registry learnt, by host.
func (s *Store) Registries(ctx context.Context) ([]pipeline.RegistryProbe, error) {
	rows, err := s.pool.Query(ctx, `SELECT probe FROM registry_probes ORDER BY host`)
	if err != nil {
		return nil, wrap(err, "list registries")
	}
	out, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (p pipeline.RegistryProbe, err error) {
		var doc json.RawMessage
		if err := row.Scan(&doc); err != nil {
			return p, err
		}
		return p, json.Unmarshal(doc, &p)
	})
	return notNil(out), wrap(err, "list registries")
}
