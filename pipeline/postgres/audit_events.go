package postgres

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

// An eventSource selects what happened, in the columns at, key (of which the
// first two digits order what happened at the same moment), kind, project, actor,
// subject, environment, image and note.
type eventSource string

// What runs and promotions did. j is the job.
const (
	runStarted eventSource = `
		SELECT j.created_at, '00 ' || j.id, 'run.started', j.project, coalesce(u.requested_by, u.event ->> 'pusher', ''), j.id, '', coalesce(u.image_digest, ''),
		       'commit ' || coalesce(u.commit_sha, u.event ->> 'after', '') || ' of ' || u.ref || CASE WHEN u.retry_of IS NULL THEN '' ELSE ', again after ' || u.retry_of END
		FROM runs u JOIN jobs j ON j.id = u.id`
	runEnded eventSource = `
		SELECT j.finished_at, '06 ' || j.id, 'run.ended', j.project, 'dray', j.id, '', coalesce(u.image_digest, ''), j.state || CASE j.reason WHEN '' THEN '' ELSE ': ' || j.reason END
		FROM runs u JOIN jobs j ON j.id = u.id AND j.finished_at IS NOT NULL`
	imageRecorded eventSource = `
		SELECT r.recorded_at, '04 ' || r.run, 'image.recorded', r.project, 'dray', r.run, '', i.digest,
		       r.repository || ', commit ' || r.commit_sha || ', scanned by ' || r.scanner || ' with ' || r.db_reference || '@' || r.db_digest
		FROM image_records r JOIN images i ON i.id = r.image`
	evidenceMade eventSource = `
		SELECT v.verified_at, '03 ' || v.job || ' ' || v.position, 'evidence.made', j.project, 'dray', v.job, coalesce(p.environment, ''), v.digest,
		       'verified at ' || v.repository || ': ' || (SELECT count(*) FROM signatures s WHERE s.job = v.job AND s.verification = v.position) || ' signatures, '
		       || (SELECT count(*) FROM attestations a WHERE a.job = v.job AND a.verification = v.position) || ' attestations'
		FROM verifications v JOIN jobs j ON j.id = v.job LEFT JOIN promotions p ON p.id = v.job`
	runDecided eventSource = `
		SELECT d.evaluated_at, '02 ' || d.job, 'run.decided', r.project, 'dray', d.job, '', i.digest, CASE WHEN d.passed THEN 'passed' ELSE 'refused' END
		       || coalesce(', policy ' || (d.decision #>> '{policy,digest}'), '')
		FROM decisions d JOIN image_records r ON r.run = d.job JOIN images i ON i.id = r.image`
	promotionRequested eventSource = `
		SELECT j.created_at, '00 ' || p.id, 'promotion.requested', p.project, p.requested_by, p.id, p.environment, i.digest,
		       p.action || CASE p.note WHEN '' THEN '' ELSE ': ' || p.note END
		FROM promotions p JOIN jobs j ON j.id = p.id JOIN images i ON i.id = p.image`
	brokeGlass eventSource = `
		SELECT j.created_at, '01 ' || p.id, 'promotion.break-glass', p.project, p.requested_by, p.id, p.environment, i.digest, p.break_glass
		FROM promotions p JOIN jobs j ON j.id = p.id AND p.break_glass <> '' JOIN images i ON i.id = p.image`
	promotionDecided eventSource = `
		SELECT d.evaluated_at, '02 ' || d.job, 'promotion.decided', p.project, 'dray', d.job, p.environment, i.digest,
		       CASE WHEN d.passed THEN 'passed' WHEN d.decision ->> 'waiting' = 'true' THEN 'not yet' ELSE 'refused' END
		       || coalesce(', policy ' || (d.decision #>> '{policy,digest}'), '')
		FROM decisions d JOIN promotions p ON p.id = d.job JOIN images i ON i.id = p.image`
	promotionApproved eventSource = `
		SELECT a.at, '01 ' || a.promotion || ' ' || a.seq, CASE WHEN a.rejected THEN 'promotion.rejected' ELSE 'promotion.approved' END, p.project, a.author, a.promotion,
		       p.environment, i.digest, 'as ' || array_to_string(a.roles, ', ') || ', plan ' || a.plan || CASE a.comment WHEN '' THEN '' ELSE ': ' || a.comment END
		FROM approvals a JOIN promotions p ON p.id = a.promotion JOIN images i ON i.id = p.image`
	imageCopied eventSource = `
		SELECT l.recorded_at, '04 ' || l.promotion, 'image.copied', p.project, 'dray', l.promotion, l.environment, i.digest, 'to ' || l.repository
		FROM placements l JOIN promotions p ON p.id = l.promotion JOIN images i ON i.id = l.image`
	promotionEnded eventSource = `
		SELECT j.finished_at, '06 ' || p.id, 'promotion.ended', p.project, 'dray', p.id, p.environment, i.digest, j.state || CASE j.reason WHEN '' THEN '' ELSE ': ' || j.reason END
		FROM promotions p JOIN jobs j ON j.id = p.id AND j.finished_at IS NOT NULL JOIN images i ON i.id = p.image`
	environmentLeft eventSource = `
		SELECT s.until, '07 ' || s.promotion, 'environment.left', s.project, 'dray', n.id, s.environment, i.digest, 'another image took its place: ' || o.digest
		FROM stays s JOIN images i ON i.id = s.image AND s.until IS NOT NULL
		JOIN promotions n ON n.project = s.project AND n.environment = s.environment AND n.placed = s.placed + 1 JOIN images o ON o.id = n.image`
	tagMoved eventSource = `
		SELECT m.recorded_at, '05 ' || m.job || ' ' || lpad(m.position::text, 6, '0'), 'tag.moved', j.project, 'dray', m.job, coalesce(p.environment, ''), m.to_digest,
		       m.repository || ':' || m.tag || CASE WHEN m.moved AND m.from_digest IS NOT NULL THEN ', from ' || m.from_digest WHEN m.moved THEN '' WHEN m.held THEN ', held already' ELSE ', not moved' END
		       || CASE m.note WHEN '' THEN '' ELSE ' (' || m.note || ')' END
		FROM tag_moves m JOIN jobs j ON j.id = m.job LEFT JOIN promotions p ON p.id = m.job`
	exceptionAdded eventSource = `
		SELECT e.created_at, '00 ' || e.id, 'exception.added', e.project, e.author, e.id, e.environment, e.image,
		       e.finding || CASE e.package WHEN '' THEN '' ELSE ' in ' || e.package END || ' until ' || to_char(e.expires_at AT TIME ZONE 'UTC', 'YYYY-MM-DD') || ': ' || e.reason
		FROM exceptions e`
	exceptionRevoked eventSource = `
		SELECT e.revoked_at, '01 ' || e.id, 'exception.revoked', e.project, e.revoked_by, e.id, e.environment, e.image, e.finding || CASE e.package WHEN '' THEN '' ELSE ' in ' || e.package END
		FROM exceptions e`
	driftFound eventSource = `
		SELECT d.detected_at, '00 ' || d.id, 'drift.found', d.project, 'dray', d.id, d.environment, d.digest, d.kind || ' at ' || d.repository || ' ' || d.subject || ': ' || d.detail
		FROM drifts d`
	driftEnded eventSource = `
		SELECT coalesce(d.repaired_at, d.resolved_at), '01 ' || d.id, CASE WHEN d.repaired_at IS NULL THEN 'drift.resolved' ELSE 'drift.repaired' END, d.project, 'dray', d.id,
		       d.environment, d.digest, d.kind || ' at ' || d.repository || ' ' || d.subject || CASE d.repair WHEN '' THEN '' ELSE ': ' || d.repair END
		FROM drifts d`
	vexAdded eventSource = `
		SELECT v.uploaded_at, '00 ' || v.id, 'vex.added', v.project, v.uploaded_by, v.id, '', '', '' FROM vex_documents v`
	vexRevoked eventSource = `
		SELECT v.revoked_at, '01 ' || v.id, 'vex.revoked', v.project, v.revoked_by, v.id, '', '', '' FROM vex_documents v`
	projectApplied eventSource = `
		SELECT v.created_at, '00 ' || v.project || ' ' || v.version, 'project.applied', v.project, v.applied_by, v.project, '', '', 'version ' || v.version || ', ' || v.digest
		FROM project_versions v`
)

// AuditImage tells an image's whole story, oldest first, as far as the projects
// are within reach. An image that no run within reach built is pipeline.ErrNotFound.
func (s *Store) AuditImage(ctx context.Context, d pipeline.Digest, reach pipeline.Reach, p pipeline.Page) (out []pipeline.AuditEvent, err error) {
	defer func() { err = wrap(err, "the story of image %.80s", d) }()
	if _, err := pipeline.ParseDigest(string(d)); err != nil {
		return nil, err
	}
	// An exception is part of the story of an image that it is about.
	excepted := `EXISTS (SELECT FROM images i WHERE i.digest = $1 AND i.project = e.project AND e.image IN ('', i.digest)
		AND (e.image <> '' OR EXISTS (SELECT FROM findings f WHERE f.run = i.newest AND f.gone_at IS NULL AND ` + sameFinding("f.id", "e.finding") + `
			AND e.package IN ('', f.package))))`
	const (
		image = `i.digest = $1`
		ran   = `u.image_digest = $1`
		// Tags move when the job of a project that has the image moves them.
		job = `EXISTS (SELECT FROM images i WHERE i.digest = $1 AND i.project = j.project)`
	)
	e := events{args: []any{string(d)}}
	e.add(runStarted, ran)
	e.add(runEnded, ran)
	e.add(imageRecorded, image)
	e.add(evidenceMade, `v.digest = $1`, job)
	e.add(runDecided, image)
	for _, source := range []eventSource{promotionRequested, brokeGlass, promotionDecided, promotionApproved, imageCopied, promotionEnded, environmentLeft} {
		e.add(source, image)
	}
	e.add(tagMoved, `m.to_digest = $1 AND m.held`, job)
	e.add(tagMoved, `m.from_digest = $1 AND m.moved`, job)
	e.add(exceptionAdded, excepted)
	e.add(exceptionRevoked, `e.revoked_at IS NOT NULL`, excepted)
	e.add(driftFound, `d.digest = $1`)
	e.add(driftEnded, `d.digest = $1`, `coalesce(d.repaired_at, d.resolved_at) IS NOT NULL`)
	out, err = e.page(ctx, s.pool, reach, p, false)
	if err == nil && len(out) == 0 && p.After == "" {
		return nil, pipeline.ErrNotFound
	}
	return out, err
}

// AuditPerson lists what somebody requested, approved, rejected, accepted and
// applied within reach, newest first. Nobody is unknown: whoever did nothing has
// an empty list.
func (s *Store) AuditPerson(ctx context.Context, name string, reach pipeline.Reach, p pipeline.Page) (out []pipeline.AuditEvent, err error) {
	if name == "" {
		return nil, fmt.Errorf("what somebody did: a name is required: %w", pipeline.ErrInvalid)
	}
	e := events{args: []any{clean(name)}}
	e.add(runStarted, `u.requested_by = $1`)
	e.add(promotionRequested, `p.requested_by = $1`)
	e.add(brokeGlass, `p.requested_by = $1`)
	e.add(promotionApproved, `a.author = $1`)
	e.add(exceptionAdded, `e.author = $1`)
	e.add(exceptionRevoked, `e.revoked_by = $1`)
	e.add(vexAdded, `v.uploaded_by = $1`)
	e.add(vexRevoked, `v.revoked_by = $1`)
	e.add(projectApplied, `v.applied_by = $1`)
	out, err = e.page(ctx, s.pool, reach, p, true)
	return out, wrap(err, "what %.80q did", name)
}

// events puts sources together.
type events struct {
	args    []any
	sources []string
}

func (e *events) add(source eventSource, conds ...string) {
	e.sources = append(e.sources, string(source)+" WHERE "+strings.Join(conds, " AND "))
}

func (e *events) page(ctx context.Context, q querier, reach pipeline.Reach, p pipeline.Page, newestFirst bool) ([]pipeline.AuditEvent, error) {
	w := where{args: e.args}
	if !reach.All {
		w.add("project = ANY(%s::text[])", notNil(reach.Projects))
	}
	order, beyond := "", ">"
	if newestFirst {
		order, beyond = " DESC", "<"
	}
	if p.After != "" {
		var at time.Time
		var key string
		if err := fromCursor(p.After, &at, &key); err != nil {
			return nil, err
		}
		w.add("(at, key) "+beyond+" (%s, %s)", at, key)
	}
	limit := p.Limit
	if limit <= 0 {
		limit = 50
	}
	rows, err := q.Query(ctx, `
		SELECT DISTINCT at, key COLLATE "C", kind, project, actor, subject, environment, image, note FROM (`+strings.Join(e.sources, "\nUNION ALL")+`
		) AS e (at, key, kind, project, actor, subject, environment, image, note)`+w.sql()+`
		ORDER BY at`+order+`, key COLLATE "C"`+order+` LIMIT `+w.arg(min(limit, pipeline.MaxAuditPage)), append([]any{fresh}, w.args...)...)
	if err != nil {
		return nil, err
	}
	out, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (v pipeline.AuditEvent, err error) {
		var key string
		err = row.Scan(&v.At, &key, &v.Kind, &v.Project, &v.Actor, &v.Subject, &v.Environment, (*string)(&v.Image), &v.Note)
		v.At = v.At.UTC()
		v.ID = cursor(v.At, key)
		return v, err
	})
	return notNil(out), err
}
