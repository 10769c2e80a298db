package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

const (
	// checkBatch is how many entries are looked at in one go; their leaves are at
	// most 13 MB.
	checkBatch = 200
	// maxChecks bounds how much is found. Whoever changed more than that is found
	// out by the first of it.
	maxChecks = 10_000
)

var errEnough = errors.New("enough was found")

// CheckRows compares the database with the log, as of one moment: the rows that
// entries with an index from from up to, but not including, to describe must be
// what the newest entry about them says. With from 0 it also finds rows that no
// entry describes, and rows of stays that are not what the rows say that they
// repeat. What it returns is not as it should be; at most 10,000 rows
// are listed.
//
// It takes the leaves to be the ones that the tree was made of: whoever asks has
// hashed them. The table log_rows, by which the newest entry of a row is found,
// is not trusted but compared with the leaves.
func (s *Store) CheckRows(ctx context.Context, from, to int64) ([]pipeline.RowCheck, error) {
	if from < 0 || to < from {
		return nil, fmt.Errorf("check the rows of entries %d to %d: want 0 <= from <= to: %w", from, to, pipeline.ErrInvalid)
	}
	c := &rowChecker{renditions: s.renditions, seal: s.seal, from: from, to: to, found: []pipeline.RowCheck{}, named: map[rowName]bool{}}
	err := s.read(ctx, func(tx pgx.Tx) error {
		c.tx = tx
		if err := c.entries(ctx); err != nil {
			return err
		}
		if err := c.refused(ctx); err != nil || from > 0 {
			return err
		}
		if err := c.rest(ctx); err != nil {
			return err
		}
		if err := c.unnamed(ctx); err != nil {
			return err
		}
		return c.repeated(ctx)
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return c.found, wrap(err, "check the rows of entries %d to %d", from, to)
}

type rowChecker struct {
	tx         pgx.Tx
	renditions renditions
	seal       *pipeline.Seal
	from, to   int64
	found      []pipeline.RowCheck
	named      map[rowName]bool
}

// add names a row once, by what was found first.
func (c *rowChecker) add(f pipeline.RowCheck) error {
	name := rowName{f.Table, f.Key}
	if c.named[name] {
		return nil
	}
	if len(c.found) == maxChecks {
		return errEnough
	}
	c.named[name] = true
	c.found = append(c.found, f)
	return nil
}

// storedEntry is an entry with its number and its place, which is -1 when it has
// none yet.
type storedEntry struct {
	id, index int64
	entry     pipeline.Entry
}

type rowName struct{ table, key string }

// wanted is what an entry says of a row.
type wanted struct {
	pipeline.EntryRow
	id, index int64
}

// entries goes through the entries in their order.
func (c *rowChecker) entries(ctx context.Context) error {
	for next := c.from; next < c.to; {
		batch, err := c.read(ctx, `WHERE index >= $1 AND index < $2 ORDER BY index LIMIT $3`, next, c.to, checkBatch)
		if err != nil {
			return err
		}
		for _, e := range batch {
			if err := c.gap(next, e.index); err != nil {
				return err
			}
			next = e.index + 1
		}
		if len(batch) == 0 {
			return c.gap(next, c.to)
		}
		if err := c.compare(ctx, batch); err != nil {
			return err
		}
		if err := c.listed(ctx, batch); err != nil {
			return err
		}
	}
	return nil
}

func (c *rowChecker) gap(from, to int64) error {
	if from == to {
		return nil
	}
	return c.add(pipeline.RowCheck{Table: "log_entries", Key: fmt.Sprint(from), Entry: from,
		Problem: fmt.Sprintf("%d entries are gone, from this one on", to-from)})
}

// rest looks at the entries that are not in the tree of that size only for what
// log_rows says of them: a forged row must not be excused by pointing there.
func (c *rowChecker) rest(ctx context.Context) error {
	for last := int64(0); ; {
		batch, err := c.read(ctx, `WHERE (index IS NULL OR index >= $1) AND id > $2 ORDER BY id LIMIT $3`, c.to, last, checkBatch)
		if err != nil || len(batch) == 0 {
			return err
		}
		if err := c.listed(ctx, batch); err != nil {
			return err
		}
		last = batch[len(batch)-1].id
	}
}

// refused names entries that never get a place. One of Dray's is among them only
// if somebody wants it out of the log.
func (c *rowChecker) refused(ctx context.Context) error {
	rows, err := c.tx.Query(ctx, `SELECT id, leaf, seal FROM log_entries WHERE refused ORDER BY id LIMIT $1`, maxChecks)
	if err != nil {
		return err
	}
	var id int64
	var leaf, seal []byte
	_, err = pgx.ForEachRow(rows, []any{&id, &leaf, &seal}, func() error {
		f := forgedEntry(id)
		if c.seal.Good(id, leaf, seal) {
			f.Problem = "the entry is Dray's, and somebody marked it as refused: it gets no place in the log"
		}
		return c.add(f)
	})
	return err
}

// forgedEntry is one that somebody wrote who is not Dray.
func forgedEntry(id int64) pipeline.RowCheck {
	return pipeline.RowCheck{Table: "log_entries", Key: fmt.Sprint(id), Entry: -1, Problem: "the entry has not Dray's seal: somebody else wrote it"}
}

// read returns entries. What no verifier has hashed, because it is not in the
// tree of that size, has to have Dray's seal, or it says nothing of any row.
func (c *rowChecker) read(ctx context.Context, where string, args ...any) ([]storedEntry, error) {
	rows, err := c.tx.Query(ctx, `SELECT id, coalesce(index, -1), leaf, seal FROM log_entries `+where, args...)
	if err != nil {
		return nil, err
	}
	var out []storedEntry
	var e storedEntry
	var leaf, seal []byte
	_, err = pgx.ForEachRow(rows, []any{&e.id, &e.index, &leaf, &seal}, func() (err error) {
		if (e.index < 0 || e.index >= c.to) && !c.seal.Good(e.id, leaf, seal) {
			e.entry = pipeline.Entry{}
			err = c.add(forgedEntry(e.id))
		} else if e.entry, err = pipeline.ParseEntry(leaf); err != nil {
			e.entry = pipeline.Entry{}
			err = c.add(pipeline.RowCheck{Table: "log_entries", Key: fmt.Sprint(e.id), Entry: e.index, Problem: err.Error()})
		}
		out = append(out, e)
		return err
	})
	return out, err
}

// listed compares log_rows with the leaves.
func (c *rowChecker) listed(ctx context.Context, batch []storedEntry) error {
	ids := make([]int64, len(batch))
	have := map[int64]map[rowName]bool{}
	for i, e := range batch {
		ids[i], have[e.id] = e.id, map[rowName]bool{}
	}
	rows, err := c.tx.Query(ctx, `SELECT entry, table_name, row_key FROM log_rows WHERE entry = ANY($1) ORDER BY entry, table_name, row_key`, ids)
	if err != nil {
		return err
	}
	var id int64
	var name rowName
	if _, err := pgx.ForEachRow(rows, []any{&id, &name.table, &name.key}, func() error { have[id][name] = true; return nil }); err != nil {
		return err
	}
	for _, e := range batch {
		for _, r := range e.entry.Rows {
			name := rowName{r.Table, r.Key}
			if !have[e.id][name] {
				err := c.add(pipeline.RowCheck{Table: r.Table, Key: r.Key, Entry: e.index, Want: r.Digest,
					Problem: "log_rows does not list this entry for the row that it describes"})
				if err != nil {
					return err
				}
			}
			delete(have[e.id], name)
		}
		for name := range have[e.id] {
			err := c.add(pipeline.RowCheck{Table: name.table, Key: name.key, Entry: e.index,
				Problem: "log_rows lists an entry for the row that does not describe it"})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// compare looks at the rows of a batch whose newest entry within the range is in
// it, so that each row is looked at once.
func (c *rowChecker) compare(ctx context.Context, batch []storedEntry) error {
	last := map[rowName]wanted{}
	var names []rowName
	for _, e := range batch {
		for _, r := range e.entry.Rows {
			name := rowName{r.Table, r.Key}
			if _, ok := last[name]; !ok {
				names = append(names, name)
			}
			last[name] = wanted{r, e.id, e.index}
		}
	}
	newest, within, err := c.newest(ctx, names)
	if err != nil {
		return err
	}
	var list []wanted
	var newer []int64
	for i, name := range names {
		w := last[name]
		switch {
		case within[i] > w.id:
			continue // it comes later
		case newest[i] > w.id:
			newer = append(newer, newest[i])
		}
		list = append(list, w)
	}
	// What was described again outside the range must be what that entry says.
	after := map[rowName]wanted{}
	for len(newer) > 0 {
		n := min(len(newer), checkBatch)
		entries, err := c.read(ctx, `WHERE id = ANY($1) ORDER BY id`, newer[:n])
		if err != nil {
			return err
		}
		for _, e := range entries {
			for _, r := range e.entry.Rows {
				if w := (wanted{r, e.id, e.index}); after[rowName{r.Table, r.Key}].id < w.id {
					after[rowName{r.Table, r.Key}] = w
				}
			}
		}
		newer = newer[n:]
	}
	for i, w := range list {
		if a, ok := after[rowName{w.Table, w.Key}]; ok && a.id > w.id {
			list[i] = a
		}
	}
	return c.rows(ctx, list)
}

// newest returns, for each row, the number of the newest entry that log_rows has
// for it, and of the newest within the range; 0 if there is none.
func (c *rowChecker) newest(ctx context.Context, names []rowName) (newest, within []int64, err error) {
	tables, keys := make([]string, len(names)), make([]string, len(names))
	for i, n := range names {
		tables[i], keys[i] = n.table, n.key
	}
	newest, within = make([]int64, len(names)), make([]int64, len(names))
	rows, err := c.tx.Query(ctx, `
		SELECT k.n, coalesce(a.entry, 0), coalesce(b.entry, 0)
		FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS k (t, key, n)
		LEFT JOIN LATERAL (SELECT r.entry FROM log_rows r WHERE r.table_name = k.t AND r.row_key = k.key ORDER BY r.entry DESC LIMIT 1) a ON true
		LEFT JOIN LATERAL (SELECT r.entry FROM log_rows r JOIN log_entries e ON e.id = r.entry
			WHERE r.table_name = k.t AND r.row_key = k.key AND e.index >= $3 AND e.index < $4 ORDER BY r.entry DESC LIMIT 1) b ON true`,
		tables, keys, c.from, c.to)
	if err != nil {
		return nil, nil, err
	}
	var n, a, b int64
	_, err = pgx.ForEachRow(rows, []any{&n, &a, &b}, func() error { newest[n-1], within[n-1] = a, b; return nil })
	return newest, within, err
}

// rows compares what entries say with what there is.
func (c *rowChecker) rows(ctx context.Context, list []wanted) error {
	type group struct {
		rendition rendition
		args      [][]string
		of        []int
	}
	groups := map[string]*group{}
	have := make([]pipeline.Digest, len(list))
	unknown := make([]bool, len(list))
	for i, w := range list {
		r, ok := c.renditions.form(w.Table, w.Form)
		key, readable := r.split(w.Key)
		if !ok || !readable {
			unknown[i] = true
			continue
		}
		name := fmt.Sprint(w.Table, w.Form)
		if groups[name] == nil {
			groups[name] = &group{rendition: r, args: make([][]string, len(key))}
		}
		g := groups[name]
		for k, v := range key {
			g.args[k] = append(g.args[k], v)
		}
		g.of = append(g.of, i)
	}
	b := &pgx.Batch{}
	for _, g := range groups {
		args := make([]any, len(g.args))
		for i, a := range g.args {
			args[i] = a
		}
		b.Queue(g.rendition.query, args...).Query(func(rows pgx.Rows) error {
			var n int64
			var digest *string
			_, err := pgx.ForEachRow(rows, []any{&n, &digest}, func() error {
				if digest != nil {
					have[g.of[n-1]] = pipeline.Digest(*digest)
				}
				return nil
			})
			return err
		})
	}
	if err := c.tx.SendBatch(ctx, b).Close(); err != nil {
		return err
	}
	for i, w := range list {
		problem := ""
		switch {
		case unknown[i]:
			problem = fmt.Sprintf("form %d of rows of %s, or the row's name, is not known to this version of Dray", w.Form, w.Table)
		case have[i] == w.Digest:
			continue
		case have[i] == "":
			problem = "the row is gone, and no entry says so"
		case w.Digest == "":
			problem = "the row is there again, and no entry says so"
		default:
			problem = "the row was changed, and no entry says so"
		}
		if err := c.add(pipeline.RowCheck{Table: w.Table, Key: w.Key, Entry: w.index, Want: w.Digest, Have: have[i], Problem: problem}); err != nil {
			return err
		}
	}
	return nil
}

// unnamed finds the rows that no entry describes.
func (c *rowChecker) unnamed(ctx context.Context) error {
	for _, table := range c.renditions.tables() {
		r, _ := c.renditions.newest(table)
		rows, err := c.tx.Query(ctx, `
			SELECT `+r.name()+`, `+r.digest()+` FROM `+r.table+` t
			WHERE `+r.protected()+` AND NOT EXISTS (SELECT FROM log_rows l WHERE l.table_name = $1 AND l.row_key = `+r.name()+`)
			ORDER BY 1 LIMIT $2`, table, maxChecks)
		if err != nil {
			return err
		}
		found := pipeline.RowCheck{Table: table, Entry: -1, Problem: "no entry describes the row"}
		if _, err := pgx.ForEachRow(rows, []any{&found.Key, (*string)(&found.Have)}, func() error { return c.add(found) }); err != nil {
			return err
		}
	}
	return nil
}

// repeated compares what is repeated for questions with what it repeats.
func (c *rowChecker) repeated(ctx context.Context) error {
	for _, repeats := range []struct{ table, changed string }{{"stays", changedStays}, {"image_records", changedRecords}} {
		rows, err := c.tx.Query(ctx, repeats.changed+` LIMIT $1`, maxChecks)
		if err != nil {
			return err
		}
		found := pipeline.RowCheck{Table: repeats.table, Entry: -1}
		if _, err = pgx.ForEachRow(rows, []any{&found.Key, &found.Problem}, func() error { return c.add(found) }); err != nil {
			return err
		}
	}
	return nil
}
