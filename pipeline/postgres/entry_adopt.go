package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/dray-project/dray/pipeline"
)

// adoptAtOnce is how many bytes of rows one entry takes over at most, with room
// for the rest of a leaf; adoptRows how many are fetched at a time.
const (
	adoptAtOnce = 40_000
	adoptRows   = 200
)

// adoptAll writes what the rows are that were there before the log: from then on
// they are as protected as all others. It does so once, as the first of the
// log's entries: a log that has any has begun already, and whatever no entry
// describes then came from somewhere else.
//
// Nobody else writes meanwhile, and none of it counts unless all of it is there.
func adoptAll(ctx context.Context, pool *pgxpool.Pool, seal *pipeline.Seal) error {
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		var begun bool
		if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM log_entries)`).Scan(&begun); err != nil || begun {
			return err
		}
		all := newRenditions()
		for _, table := range all.tables() {
			if _, err := tx.Exec(ctx, `LOCK TABLE `+table+` IN SHARE ROW EXCLUSIVE MODE`); err != nil {
				return wrap(err, "lock %s", table)
			}
		}
		// Somebody may have begun while we waited for the locks.
		if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM log_entries)`).Scan(&begun); err != nil || begun {
			return err
		}
		for _, table := range all.tables() {
			r, _ := all.newest(table)
			if err := adoptTable(ctx, tx, seal, r); err != nil {
				return wrap(err, "rows of %s", table)
			}
		}
		return nil
	})
	return wrap(err, "take what was there before the evidence log over into it")
}

func adoptTable(ctx context.Context, tx pgx.Tx, seal *pipeline.Seal, r rendition) error {
	_, err := tx.Exec(ctx, `DECLARE adopted NO SCROLL CURSOR FOR SELECT `+r.name()+`, `+r.digest()+` FROM `+r.table+` t WHERE `+r.protected()+` ORDER BY 1`)
	if err != nil {
		return err
	}
	var pending []pipeline.EntryRow
	size := 0
	for done := false; !done; {
		rows, err := tx.Query(ctx, fmt.Sprintf(`FETCH %d FROM adopted`, adoptRows))
		if err != nil {
			return err
		}
		batch, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (pipeline.EntryRow, error) {
			e := pipeline.EntryRow{Table: r.table, Form: r.form}
			return e, row.Scan(&e.Key, (*string)(&e.Digest))
		})
		if err != nil {
			return err
		}
		for _, e := range batch {
			n := len(e.Table) + 2*len(e.Key) + 150 // quotes and names included
			if size += n; size > adoptAtOnce {
				if err := writeAdopted(ctx, tx, seal, r.table, pending); err != nil {
					return err
				}
				pending, size = nil, n
			}
			pending = append(pending, e)
		}
		done = len(batch) < adoptRows
	}
	if len(pending) > 0 {
		if err := writeAdopted(ctx, tx, seal, r.table, pending); err != nil {
			return err
		}
	}
	_, err = tx.Exec(ctx, `CLOSE adopted`)
	return err
}

func writeAdopted(ctx context.Context, tx pgx.Tx, seal *pipeline.Seal, table string, rows []pipeline.EntryRow) error {
	e := pipeline.Entry{Version: pipeline.EntryVersion, Kind: pipeline.EntryAdopted, Actor: actorDray,
		Data: data{"table": table, "rows": len(rows)}.json(), Rows: rows}
	var id int64
	if err := tx.QueryRow(ctx, `SELECT clock_timestamp(), nextval(pg_get_serial_sequence('log_entries', 'id'))`).Scan(&e.At, &id); err != nil {
		return err
	}
	leaf, err := leafOf(e)
	if err != nil {
		return err
	}
	keys := make([]string, len(rows))
	for i, r := range rows {
		keys[i] = r.Key
	}
	_, err = tx.Exec(ctx, `
		WITH e AS (INSERT INTO log_entries (id, leaf, seal, kind) OVERRIDING SYSTEM VALUE VALUES ($1, $2, $3, $4) RETURNING id)
		INSERT INTO log_rows (table_name, row_key, entry) SELECT $5, k, e.id FROM e, unnest($6::text[]) AS k`,
		id, leaf, seal.Of(id, leaf), e.Kind, table, keys)
	return err
}
