package postgres

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

// knownFinding is a row of findings.
type knownFinding struct {
	run      string
	report   int
	position int
	finding  pipeline.Finding
	gone     *time.Time
}

// asMatched is the order in which a match lists findings.
const asMatched = ` ORDER BY run, report, severity DESC, id COLLATE "C", package COLLATE "C", version COLLATE "C", path COLLATE "C", purl COLLATE "C", fixed_in COLLATE "C"`

// knownFindings reads all findings of records, those that are gone included.
func knownFindings(ctx context.Context, q querier, runs []string, order string) (out []knownFinding, err error) {
	rows, err := q.Query(ctx, `
		SELECT run, report, position, id, severity, package, version, fixed_in, title, url, purl, path, gone_at
		FROM findings WHERE run = ANY($1)`+order, runs)
	if err != nil {
		return nil, err
	}
	var k knownFinding
	f := &k.finding
	_, err = pgx.ForEachRow(rows, []any{&k.run, &k.report, &k.position, &f.ID, (*int)(&f.Severity), &f.Package, &f.Version, &f.FixedIn, &f.Title, &f.URL,
		&f.PURL, &f.Path, &k.gone}, func() error {
		out = append(out, k)
		k.gone = nil
		return nil
	})
	return out, err
}

// written is a finding as its row has it.
func written(f pipeline.Finding) pipeline.Finding {
	return pipeline.Finding{ID: clean(f.ID), Severity: f.Severity, Package: clean(f.Package), Version: clean(f.Version), FixedIn: clean(f.FixedIn),
		Title: clean(f.Title), URL: clean(f.URL), PURL: clean(f.PURL), Path: clean(f.Path)}
}

// RecordMatches implements pipeline.RematchStore.
func (s *Store) RecordMatches(ctx context.Context, id pipeline.RematchID, matches []pipeline.Match) error {
	err := s.tx(ctx, func(tx pgx.Tx) error {
		pass, err := onePass(ctx, tx, `SELECT `+rematchColumns+` FROM rematches WHERE id = $1 FOR UPDATE`, string(id))
		if err != nil {
			return err
		}
		ours, err := lockMatches(ctx, tx, pass, matches)
		if err != nil {
			return wrap(err, "lock the images")
		}
		w := matchWriter{store: s, tx: tx, pass: pass}
		if err := tx.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&w.now); err != nil {
			return err
		}
		return w.write(ctx, ours)
	})
	return wrap(err, "record %d matches of %s", len(matches), id)
}

// lockMatches locks the images against new records, and leaves those out that
// have one already, or that the pass has been over.
func lockMatches(ctx context.Context, tx pgx.Tx, pass pipeline.RematchPass, matches []pipeline.Match) ([]pipeline.Match, error) {
	runs := make([]string, len(matches))
	for i, m := range matches {
		runs[i] = string(m.Run)
	}
	rows, err := tx.Query(ctx, `
		SELECT i.newest FROM images i JOIN image_records r ON r.run = i.newest`+matchedWith+`
		WHERE i.newest = ANY($1) AND mx.rematch IS DISTINCT FROM $2 AND coalesce(md.db_digest, r.db_digest) <> $3
		ORDER BY i.id FOR NO KEY UPDATE OF i`, runs, string(pass.ID), string(pass.Database.Digest))
	if err != nil {
		return nil, err
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, err
	}
	still := map[string]bool{}
	for _, r := range list {
		still[r] = true
	}
	return slices.DeleteFunc(slices.Clone(matches), func(m pipeline.Match) bool { return !still[string(m.Run)] }), nil
}

// matchWriter collects what a transaction writes about many images, and writes
// each kind of it at once.
type matchWriter struct {
	store *Store
	tx    pgx.Tx
	pass  pipeline.RematchPass
	now   time.Time

	gone     []knownFinding
	appeared []knownFinding
	sums     pipeline.RematchPass
	changes  []matchChange
}

// matchChange is an image whose findings changed.
type matchChange struct {
	match          pipeline.Match
	appeared, gone []pipeline.Finding
}

func (w *matchWriter) write(ctx context.Context, matches []pipeline.Match) error {
	if len(matches) == 0 {
		return nil
	}
	if err := w.compare(ctx, matches); err != nil {
		return wrap(err, "compare with what was known")
	}
	if err := w.findings(ctx); err != nil {
		return wrap(err, "findings")
	}
	if err := w.states(ctx, matches); err != nil {
		return wrap(err, "what they were matched with")
	}
	for _, m := range matches {
		if m.Scanned {
			digests := make([]pipeline.Digest, len(m.Platforms))
			for i, p := range m.Platforms {
				digests[i] = p.Digest
			}
			if err := keepAnalyses(ctx, w.tx, digests, m.Analyses); err != nil {
				return err
			}
		}
		if err := w.verdicts(ctx, m); err != nil {
			return err
		}
		if err := insertNotices(ctx, w.tx, m.Notices); err != nil {
			return err
		}
	}
	for _, c := range w.changes {
		if err := w.store.findingsEntry(ctx, w.tx, w.pass, c); err != nil {
			return err
		}
	}
	n := w.sums
	_, err := w.tx.Exec(ctx, `
		UPDATE rematches SET images = images + $2, unaffected = unaffected + $3, scanned = scanned + $4, failed = failed + $5,
			changed = changed + $6, appeared = appeared + $7, gone = gone + $8, refused = refused + $9 WHERE id = $1`,
		string(w.pass.ID), n.Images, n.Unaffected, n.Scanned, n.Failed, n.Changed, n.Appeared, n.Gone, n.Refused)
	return err
}

// compare finds out what appeared and what is gone.
func (w *matchWriter) compare(ctx context.Context, matches []pipeline.Match) error {
	var runs []string
	for _, m := range matches {
		w.sums.Images++
		switch {
		case m.Failed != "":
			w.sums.Failed++
			continue
		case m.Unaffected:
			w.sums.Unaffected++
			continue
		case m.Scanned:
			w.sums.Scanned++
		}
		runs = append(runs, string(m.Run))
	}
	if len(runs) == 0 {
		return nil
	}
	all, err := knownFindings(ctx, w.tx, runs, "")
	if err != nil {
		return err
	}
	known := map[string][]knownFinding{}
	for _, k := range all {
		known[k.run] = append(known[k.run], k)
	}
	for _, m := range matches {
		if m.Failed == "" && !m.Unaffected {
			w.compareOne(m, known[string(m.Run)])
		}
	}
	return nil
}

func (w *matchWriter) compareOne(m pipeline.Match, known []knownFinding) {
	change := matchChange{match: m}
	for report, list := range m.Findings {
		now := make(map[pipeline.Finding]bool, len(list))
		for _, f := range list {
			now[written(f)] = true
		}
		next := 0
		for _, k := range known {
			if k.report != report {
				continue
			}
			next = max(next, k.position+1)
			if k.gone != nil {
				continue
			}
			if now[k.finding] {
				delete(now, k.finding)
				continue
			}
			w.gone = append(w.gone, k)
			change.gone = append(change.gone, k.finding)
		}
		// In the order of the match, each once.
		for _, f := range list {
			if f = written(f); now[f] {
				delete(now, f)
				w.appeared = append(w.appeared, knownFinding{run: string(m.Run), report: report, position: next, finding: f})
				change.appeared = append(change.appeared, f)
				next++
			}
		}
	}
	if len(change.appeared)+len(change.gone) > 0 {
		w.sums.Changed++
		w.sums.Appeared, w.sums.Gone = w.sums.Appeared+len(change.appeared), w.sums.Gone+len(change.gone)
		w.changes = append(w.changes, change)
	}
}

func (w *matchWriter) findings(ctx context.Context) error {
	if n := len(w.gone); n > 0 {
		runs, reports, positions := make([]string, n), make([]int32, n), make([]int32, n)
		for i, k := range w.gone {
			runs[i], reports[i], positions[i] = k.run, int32(k.report), int32(k.position)
		}
		_, err := w.tx.Exec(ctx, `
			UPDATE findings f SET gone_at = $4 FROM unnest($1::text[], $2::int[], $3::int[]) AS k (run, report, position)
			WHERE f.run = k.run AND f.report = k.report AND f.position = k.position`, runs, reports, positions, w.now)
		if err != nil {
			return err
		}
	}
	if len(w.appeared) == 0 {
		return nil
	}
	_, err := w.tx.CopyFrom(ctx, pgx.Identifier{"findings"},
		[]string{"run", "report", "position", "id", "severity", "package", "version", "fixed_in", "title", "url", "purl", "path", "appeared_at"},
		pgx.CopyFromSlice(len(w.appeared), func(i int) ([]any, error) {
			k := w.appeared[i]
			f := k.finding
			return []any{k.run, int32(k.report), int32(k.position), f.ID, int16(f.Severity), f.Package, f.Version, f.FixedIn, f.Title, f.URL, f.PURL, f.Path, w.now}, nil
		}))
	return err
}

// states notes with which database each image was matched.
func (w *matchWriter) states(ctx context.Context, matches []pipeline.Match) error {
	n := len(matches)
	runs, failed, changed := make([]string, n), make([]string, n), make([]bool, n)
	of := map[string]bool{}
	for _, c := range w.changes {
		of[string(c.match.Run)] = true
	}
	for i, m := range matches {
		runs[i], failed[i], changed[i] = string(m.Run), clean(m.Failed), of[string(m.Run)]
	}
	_, err := w.tx.Exec(ctx, `
		INSERT INTO image_matches AS x (run, rematch, matched, matched_at, changed_at, failed)
		SELECT m.run, $4, CASE WHEN m.failed = '' THEN $4 END, CASE WHEN m.failed = '' THEN $5::timestamptz END, CASE WHEN m.changed THEN $5::timestamptz END, m.failed
		FROM unnest($1::text[], $2::text[], $3::boolean[]) AS m (run, failed, changed)
		ON CONFLICT (run) DO UPDATE SET rematch = excluded.rematch, failed = excluded.failed, matched = coalesce(excluded.matched, x.matched),
			matched_at = coalesce(excluded.matched_at, x.matched_at), changed_at = coalesce(excluded.changed_at, x.changed_at)`,
		runs, failed, changed, string(w.pass.ID), w.now)
	return err
}

func (w *matchWriter) verdicts(ctx context.Context, m pipeline.Match) error {
	for _, v := range m.Verdicts {
		doc, err := document(v.Decision)
		if err != nil {
			return wrap(err, "verdict of %s", v.Environment)
		}
		if v.Passed && !v.Decision.Passed {
			w.sums.Refused++
		}
		_, err = w.tx.Exec(ctx, `
			INSERT INTO verdicts (run, environment, rematch, passed_before, passed, decision, judged_at) VALUES ($1, $2, $3, $4, $5, $6, $7)`,
			string(m.Run), v.Environment, string(w.pass.ID), v.Passed, v.Decision.Passed, doc, v.Decision.EvaluatedAt)
		if err != nil {
			return wrap(err, "verdict of %s on %s", v.Environment, m.Image)
		}
	}
	return nil
}

// databaseEntry is about a vulnerability database that was not seen before.
func (s *Store) databaseEntry(ctx context.Context, tx pgx.Tx, p pipeline.RematchPass) error {
	return s.entry(ctx, tx, pipeline.Entry{Kind: pipeline.EntryDatabaseSeen, Actor: actorDray, Subject: string(p.ID),
		Data: data{"reference": short(p.Database.Reference), "digest": p.Database.Digest, "updatedAt": p.Database.UpdatedAt}.json()})
}

// findingsEntry is about an image whose findings changed.
func (s *Store) findingsEntry(ctx context.Context, tx pgx.Tx, pass pipeline.RematchPass, c matchChange) error {
	said := data{"database": pass.Database.Digest, "rematch": string(pass.ID), "appeared": len(c.appeared), "gone": len(c.gone)}
	listed(said, "new", names(c.appeared))
	listed(said, "withdrawn", names(c.gone))
	var refused []string
	for _, v := range c.match.Verdicts {
		if !v.Decision.Passed {
			refused = append(refused, v.Environment)
		}
	}
	listed(said, "refusedBy", refused)
	return s.entry(ctx, tx, pipeline.Entry{Kind: pipeline.EntryFindingsChanged, Project: c.match.Project, Actor: actorDray, Subject: string(c.match.Run),
		Image: c.match.Image.Digest, Data: said.json()}, row("image_matches", c.match.Run))
}

// names of findings, each once: "CVE-2024-45337 golang.org/x/crypto v0.30.0".
func names(list []pipeline.Finding) (out []string) {
	for _, f := range list {
		if n := cut(fmt.Sprintf("%s %s %s", f.ID, f.Package, f.Version), shortReason); !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}
