package postgres

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

const selectRuns = `
	SELECT j.id, j.project, r.event, j.state, j.reason, coalesce(r.commit_sha, ''), r.image_repository, r.image_digest,
	       j.created_at, j.started_at, j.finished_at, coalesce(r.retry_of, ''), coalesce(r.requested_by, '')
	FROM runs r JOIN jobs j ON j.id = r.id `

func scanRun(row pgx.CollectableRow) (r pipeline.Run, err error) {
	var event json.RawMessage
	var repository, digest *string
	err = row.Scan((*string)(&r.ID), &r.Project, &event, (*string)(&r.State), &r.Reason, &r.Commit, &repository, &digest,
		&r.CreatedAt, &r.StartedAt, &r.FinishedAt, (*string)(&r.RetryOf), &r.RequestedBy)
	if err != nil {
		return r, err
	}
	if digest != nil {
		r.Image = &pipeline.Image{Repository: *repository, Digest: pipeline.Digest(*digest)}
	}
	r.CreatedAt, r.StartedAt, r.FinishedAt = r.CreatedAt.UTC(), utc(r.StartedAt), utc(r.FinishedAt)
	return r, json.Unmarshal(event, &r.Event)
}

func getRun(ctx context.Context, q querier, id pipeline.RunID) (pipeline.Run, error) {
	rows, err := q.Query(ctx, selectRuns+`WHERE r.id = $1`, string(id))
	if err != nil {
		return pipeline.Run{}, wrap(err, "run %s", id)
	}
	r, err := pgx.CollectExactlyOneRow(rows, scanRun)
	if errors.Is(err, pgx.ErrNoRows) {
		return r, fmt.Errorf("run %.40q: %w", id, pipeline.ErrNotFound)
	}
	return r, wrap(err, "run %s", id)
}

// Run implements pipeline.Store.
func (s *Store) Run(ctx context.Context, id pipeline.RunID) (pipeline.Run, error) {
	return getRun(ctx, s.pool, id)
}

// page returns the limit that is in force and where to go on. Ids sort by time,
// so the one of the last item is all that a cursor needs.
func page(p pipeline.Page) (limit int, after string) {
	limit = p.Limit
	if limit <= 0 {
		limit = 50
	}
	return min(limit, 200), p.After
}

// Runs lists runs, newest first; an empty project or state means all.
func (s *Store) Runs(ctx context.Context, project string, state pipeline.State, p pipeline.Page) ([]pipeline.Run, error) {
	limit, after := page(p)
	w := where{}
	w.add("j.kind = %s", kindRun)
	w.addIf(project != "", "j.project = %s", project)
	w.addIf(state != "", "j.state = %s", string(state))
	w.addIf(after != "", "j.id < %s", after)
	rows, err := s.pool.Query(ctx, selectRuns+w.sql()+` ORDER BY j.id DESC LIMIT `+w.arg(limit), w.args...)
	if err != nil {
		return nil, wrap(err, "list runs")
	}
	out, err := pgx.CollectRows(rows, scanRun)
	return notNil(out), wrap(err, "list runs")
}

// RunDetail returns a run with what its stages have found out so far.
func (s *Store) RunDetail(ctx context.Context, id pipeline.RunID) (d pipeline.RunDetail, err error) {
	err = s.read(ctx, func(tx pgx.Tx) (err error) {
		if d.Run, err = getRun(ctx, tx, id); err != nil {
			return err
		}
		var source json.RawMessage
		if err := tx.QueryRow(ctx, `SELECT source FROM runs WHERE id = $1`, string(id)).Scan(&source); err != nil {
			return err
		}
		if source != nil {
			if err := json.Unmarshal(source, &d.Source); err != nil {
				return err
			}
		}
		if d.Stages, err = stageStatuses(ctx, tx, id.Job(), pipeline.RunStages()); err != nil {
			return err
		}
		if d.Tags, err = tagMoves(ctx, tx, id.Job()); err != nil {
			return err
		}
		if d.Decision, err = getDecision(ctx, tx, id.Job()); err != nil {
			return err
		}
		if d.Decision != nil {
			d.Findings, err = countFindings(ctx, tx, id)
			return err
		}
		return unrecorded(ctx, tx, &d)
	})
	return d, wrap(err, "details of run %s", id)
}

// unrecorded fills in what is known before the image is recorded, or when it
// never was because signing failed.
func unrecorded(ctx context.Context, tx pgx.Tx, d *pipeline.RunDetail) error {
	var report pipeline.Report
	if ok, err := stageOutcome(ctx, tx, d.ID.Job(), pipeline.StageScan, &report); err != nil || !ok {
		return err
	}
	n := report.Count()
	d.Findings = pipeline.Findings{Critical: n[pipeline.SeverityCritical], High: n[pipeline.SeverityHigh],
		Medium: n[pipeline.SeverityMedium], Low: n[pipeline.SeverityLow], Unknown: n[pipeline.SeverityUnknown]}
	var judged pipeline.Judged
	ok, err := stageOutcome(ctx, tx, d.ID.Job(), pipeline.StageGate, &judged)
	if ok {
		d.Decision = &judged.Decision
	}
	return err
}

// countFindings counts a finding in a package version once, whatever the platforms.
func countFindings(ctx context.Context, q querier, run pipeline.RunID) (f pipeline.Findings, err error) {
	err = q.QueryRow(ctx, `
		SELECT count(*) FILTER (WHERE severity = 4), count(*) FILTER (WHERE severity = 3), count(*) FILTER (WHERE severity = 2),
		       count(*) FILTER (WHERE severity = 1), count(*) FILTER (WHERE severity = 0)
		FROM (SELECT DISTINCT ON (id, package, version) severity FROM findings WHERE run = $1 ORDER BY id, package, version) f`,
		string(run)).Scan(&f.Critical, &f.High, &f.Medium, &f.Low, &f.Unknown)
	return f, err
}

// RecordSource implements pipeline.Store.
func (s *Store) RecordSource(ctx context.Context, c pipeline.Claim, src pipeline.Source) error {
	return s.finished(ctx, c, "record the source", src, func(tx pgx.Tx, _ job) error {
		doc, err := document(src)
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `UPDATE runs SET commit_sha = $2, source = $3 WHERE id = $1`, string(c.Job), src.Commit, doc)
		return err
	})
}

// RecordBuilt implements pipeline.Store.
func (s *Store) RecordBuilt(ctx context.Context, c pipeline.Claim, b pipeline.Built) error {
	return s.finished(ctx, c, "record the image that was built", b, func(tx pgx.Tx, _ job) error {
		if err := notGoing(ctx, tx, c, b); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `UPDATE runs SET image_repository = $2, image_digest = $3 WHERE id = $1`,
			string(c.Job), b.Image.Repository, string(b.Image.Digest))
		return err
	})
}

// planDigest names how a commit is built: where it comes from and by which
// plan. The bases are left out: they follow from the commit's own Dockerfile,
// and a commit that has an image keeps it when an unpinned base moves on.
func planDigest(s pipeline.Source) (string, error) {
	b, err := json.Marshal(struct {
		CloneURL string        `json:"cloneURL"`
		Plan     pipeline.Plan `json:"plan"`
	}{s.CloneURL, s.Plan}) // struct fields in order, map keys sorted: canonical
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:]), nil
}

// FindBuilt implements pipeline.Store.
func (s *Store) FindBuilt(ctx context.Context, project string, src pipeline.Source) (b pipeline.Built, err error) {
	plan, err := planDigest(src)
	if err != nil {
		return b, wrap(err, "image of commit %s in %s", src.Commit, project)
	}
	var doc json.RawMessage
	err = s.pool.QueryRow(ctx, `
		SELECT r.built FROM image_records r JOIN decisions d ON d.job = r.run AND d.passed
		WHERE r.project = $1 AND r.commit_sha = $2 AND r.plan_digest = $3
		ORDER BY r.recorded_at DESC, r.run DESC LIMIT 1`, project, src.Commit, plan).Scan(&doc)
	if errors.Is(err, pgx.ErrNoRows) {
		return b, fmt.Errorf("image of commit %s in %s by the same plan: %w", src.Commit, project, pipeline.ErrNotFound)
	}
	if err != nil {
		return b, wrap(err, "image of commit %s in %s", src.Commit, project)
	}
	return b, wrap(json.Unmarshal(doc, &b), "image of commit %s in %s", src.Commit, project)
}
