package postgres

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

// RunDecisions returns what every run that recorded an image decided, oldest
// first: a commit that is pushed again is judged again.
func (s *Store) RunDecisions(ctx context.Context, project string, d pipeline.Digest) ([]pipeline.RunDecision, error) {
	rows, err := s.pool.Query(ctx, `
		SELECT r.run, d.decision, d.summary, r.recorded_at
		FROM images i JOIN image_records r ON r.image = i.id JOIN decisions d ON d.job = r.run
		WHERE i.project = $1 AND i.digest = $2 ORDER BY r.run`, project, string(d))
	if err != nil {
		return nil, wrap(err, "decisions on image %s in %s", d, project)
	}
	out, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (r pipeline.RunDecision, err error) {
		var decision, summary json.RawMessage
		if err := row.Scan((*string)(&r.Run), &decision, &summary, &r.RecordedAt); err != nil {
			return r, err
		}
		r.RecordedAt = r.RecordedAt.UTC()
		err = json.Unmarshal(decision, &r.Decision)
		if summary != nil {
			err = errors.Join(err, json.Unmarshal(summary, &r.Summary))
		}
		return r, err
	})
	return notNil(out), wrap(err, "decisions on image %s in %s", d, project)
}

// LogMark names the newest entry that was written, for LogReached.
func (s *Store) LogMark(ctx context.Context) (mark int64, err error) {
	err = s.pool.QueryRow(ctx, `SELECT coalesce(max(id), 0) FROM log_entries`).Scan(&mark)
	return mark, wrap(err, "look for the log's newest entry")
}

// LogReached reports whether everything that was committed before the mark was
// taken has its place in the log, and so is under a checkpoint.
func (s *Store) LogReached(ctx context.Context, mark int64) (reached bool, err error) {
	err = s.pool.QueryRow(ctx, `
		SELECT NOT EXISTS (SELECT FROM log_entries WHERE index IS NULL AND NOT refused AND id <= $1) AND EXISTS (SELECT FROM log_checkpoints)`, mark).Scan(&reached)
	return reached, wrap(err, "look for entries of the log without a place")
}
