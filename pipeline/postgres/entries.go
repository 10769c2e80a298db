package postgres

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

// actorDray is who does what nobody asked for by name.
const actorDray = "dray"

const (
	// maxRows bounds how many rows one entry describes. With the longest names
	// they take about half of a leaf.
	maxRows = 100
	// maxListed bounds the lists in an entry's data, shortText and shortReason its
	// texts, in bytes.
	maxListed   = 50
	shortText   = 1000
	shortReason = 300
)

// journal is a transaction with the entries of the evidence log that it is to
// write. They are written right before the commit: the rows that they describe
// are then what they will be, whatever else the transaction did to them, and one
// round trip renders and another one writes all of them.
//
// The newest entry that names a row says what the row is. For that to be true,
// an entry may only name rows that its transaction has written, or locked
// against writers: its number is then given while it holds them, and entries
// about one row are numbered in the order in which their changes were made.
type journal struct {
	pgx.Tx
	store   *Store
	pending []pendingEntry
}

type pendingEntry struct {
	entry pipeline.Entry
	rows  []rowRef
}

// entry notes what the transaction does in the evidence log, together with the
// rows as they are when it commits. The time is the database's. Data that make
// the leaf too long are left out, with their length and digest in their place:
// what is recorded does not fail for being described at length.
func (s *Store) entry(ctx context.Context, tx pgx.Tx, e pipeline.Entry, rows ...rowRef) error {
	if len(rows) > maxRows {
		return fmt.Errorf("a %s entry about %d rows, it can be about %d", e.Kind, len(rows), maxRows)
	}
	if j, ok := tx.(*journal); ok {
		j.pending = append(j.pending, pendingEntry{e, rows})
		return nil
	}
	return s.writeEntries(ctx, tx, []pendingEntry{{e, rows}})
}

// flush writes the entries; the transaction does nothing after it but commit.
func (j *journal) flush(ctx context.Context) error {
	if len(j.pending) == 0 {
		return nil
	}
	err := j.store.writeEntries(ctx, j.Tx, j.pending)
	j.pending = nil
	return err
}

// logWritten adds up what this process wrote into the log.
type logWritten struct{ entries, nanoseconds atomic.Int64 }

// LogWritten returns how many entries this Store has written, and how long its
// transactions took for that: what the log costs whoever changes something.
func (s *Store) LogWritten() (entries int64, took time.Duration) {
	return s.written.entries.Load(), time.Duration(s.written.nanoseconds.Load())
}

func (s *Store) writeEntries(ctx context.Context, tx pgx.Tx, entries []pendingEntry) error {
	began := time.Now()
	defer func() {
		s.written.entries.Add(int64(len(entries)))
		s.written.nanoseconds.Add(int64(time.Since(began)))
	}()
	all := s.renditions
	at, ids, digests, err := renderEntries(ctx, tx, all, entries)
	if err != nil {
		return wrap(err, "render what the log is to say")
	}
	n := len(entries)
	leaves, seals, kinds, projects := make([][]byte, n), make([][]byte, n), make([]string, n), make([]string, n)
	subjects, images := make([]string, n), make([]string, n)
	var tables, keys []string
	var of []int64
	var notices []pipeline.Notice
	for i, p := range entries {
		e := p.entry
		e.Version, e.At = pipeline.EntryVersion, at
		e.Actor, e.Subject = clean(e.Actor), clean(e.Subject)
		named := map[string]bool{}
		for _, ref := range p.rows {
			r, _ := all.newest(ref.table)
			name := r.join(ref.key)
			if named[ref.table+" "+name] {
				continue
			}
			named[ref.table+" "+name] = true
			e.Rows = append(e.Rows, pipeline.EntryRow{Table: r.table, Key: name, Form: r.form, Digest: digests[ref.table][name]})
			tables, keys, of = append(tables, r.table), append(keys, name), append(of, ids[i])
		}
		if leaves[i], err = leafOf(e); err != nil {
			return err
		}
		seals[i] = s.seal.Of(ids[i], leaves[i])
		kinds[i], projects[i], subjects[i], images[i] = e.Kind, e.Project, e.Subject, string(e.Image)
		if n, ok := noticeOf(e); ok {
			notices = append(notices, n)
		}
	}
	b := &pgx.Batch{}
	b.Queue(`
		INSERT INTO log_entries (id, leaf, seal, kind, project, subject, image) OVERRIDING SYSTEM VALUE
		SELECT * FROM unnest($1::bigint[], $2::bytea[], $3::bytea[], $4::text[], $5::text[], $6::text[], $7::text[])`,
		ids, leaves, seals, kinds, projects, subjects, images)
	if len(of) > 0 {
		b.Queue(`INSERT INTO log_rows (table_name, row_key, entry) SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[])`, tables, keys, of)
	}
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return wrap(err, "write %d entries of the log", n)
	}
	return insertNotices(ctx, tx, notices)
}

// leafOf cuts what is too long.
func leafOf(e pipeline.Entry) ([]byte, error) {
	leaf, err := e.Leaf()
	if err == nil && len(leaf) > pipeline.MaxLeaf {
		e.Data = data{"omitted": len(e.Data), "sha256": hexSum(e.Data)}.json()
		leaf, err = e.Leaf()
	}
	if err == nil && len(leaf) > pipeline.MaxLeaf {
		err = fmt.Errorf("a %s entry of %d bytes, it can have %d", e.Kind, len(leaf), pipeline.MaxLeaf)
	}
	return leaf, err
}

// renderEntries asks, in one round trip, for the time, an id for each entry, and
// the digests of all rows by table and name.
func renderEntries(ctx context.Context, tx pgx.Tx, all renditions, entries []pendingEntry) (at time.Time, ids []int64, digests map[string]map[string]pipeline.Digest, err error) {
	b := &pgx.Batch{}
	b.Queue(`SELECT clock_timestamp()`).QueryRow(func(row pgx.Row) error { return row.Scan(&at) })
	b.Queue(`SELECT nextval(pg_get_serial_sequence('log_entries', 'id')) FROM generate_series(1, $1::int)`, len(entries)).
		Query(func(rows pgx.Rows) error { ids, err = pgx.CollectRows(rows, pgx.RowTo[int64]); return err })
	digests = map[string]map[string]pipeline.Digest{}
	for _, p := range entries {
		for _, ref := range p.rows {
			r, ok := all.newest(ref.table)
			if !ok || len(ref.key) != len(r.key) {
				return at, nil, nil, fmt.Errorf("no row of %s is named by %q", ref.table, ref.key)
			}
			found := digests[ref.table]
			if found == nil {
				found = map[string]pipeline.Digest{}
				digests[ref.table] = found
			}
			name := r.join(ref.key)
			if _, asked := found[name]; asked {
				continue
			}
			found[name] = ""
			args := make([]any, len(ref.key))
			for i, k := range ref.key {
				args[i] = k
			}
			b.Queue(r.one, args...).QueryRow(func(row pgx.Row) error {
				var digest string
				if err := row.Scan(&digest); err != nil && !errors.Is(err, pgx.ErrNoRows) {
					return err
				}
				found[name] = pipeline.Digest(digest)
				return nil
			})
		}
	}
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return at, nil, nil, err
	}
	for _, p := range entries {
		for _, ref := range p.rows {
			r, _ := all.newest(ref.table)
			if there := digests[ref.table][r.join(ref.key)] != ""; there == ref.gone {
				return at, nil, nil, fmt.Errorf("row %s of %s is not as a %s entry has it (there: %t)", r.join(ref.key), ref.table, p.entry.Kind, there)
			}
		}
	}
	if len(ids) != len(entries) {
		return at, nil, nil, errors.New("too few ids")
	}
	return at, ids, digests, nil
}

// data are what an entry says, by the API's words.
type data map[string]any

// present leaves out the texts that are empty.
func (d data) present() data {
	for k, v := range d {
		if v == "" || v == pipeline.Digest("") {
			delete(d, k)
		}
	}
	return d
}

// json is the data without texts that are empty; nil if there is nothing.
func (d data) json() json.RawMessage {
	if len(d.present()) == 0 {
		return nil
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(map[string]any(d)); err != nil {
		// Nothing that cannot be encoded is ever put in; if it were, the entry would
		// say so, and the row's digest would still hold.
		return json.RawMessage(`{"omitted":true}`)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

func hexSum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// short cuts a text that people wrote; the whole of it is in the row.
func short(s string) string { return cut(s, shortText) }

func cut(s string, n int) string {
	s = clean(s)
	if len(s) <= n {
		return s
	}
	for !utf8.RuneStart(s[n]) {
		n--
	}
	return fmt.Sprintf("%s… (%d bytes)", s[:n], len(s))
}

// listed puts the first of a list into the data, and how many more there are.
func listed[T any](d data, name string, list []T) {
	if n := len(list); n > maxListed {
		d[name+"Omitted"] = n - maxListed
		list = list[:maxListed]
	}
	if len(list) > 0 {
		d[name] = list
	}
}
