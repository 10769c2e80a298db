package postgres

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// rowRef names a row that an entry describes.
type rowRef struct {
	table string
	// key are the values of the columns of the rendition's key, as text.
	key []string
	// gone: the change itself removed the row.
	gone bool
}

func row(table string, key ...any) rowRef {
	r := rowRef{table: table}
	for _, k := range key {
		r.key = append(r.key, fmt.Sprint(k))
	}
	return r
}

// rendition says how a row of a protected table becomes the text of which the
// log keeps the digest: the text of a jsonb object of named columns, as
// PostgreSQL writes it. Members are named one by one, so that a column which is
// added later does not change what was written before. A form's text is never
// changed once released: columns that are to count from now on make another form,
// and the old one stays, because old entries name it. Where values are kept may
// change, as long as they make the same text.
//
// It uses nothing but what PostgreSQL brings along, and does not depend on the
// session's settings: times are in UTC, and what is long stands as its sha256.
//
// Only what changes with an entry may be in it. What the work on a job touches
// all the time (its events, its row in the queue) is not evidence.
type rendition struct {
	table string
	form  int
	// key are the columns by which the log names a row, "seq:bigint" if it is not
	// text, and sep is what joins them. The last separators count, so only the
	// first column may have it in its text.
	key []string
	sep string
	// where is true of the rows t that are protected; empty: all.
	where string
	// members of the object; see member.
	members []string
	// query is byKeys and one is byKey, made once.
	query, one string
}

// member is one member: "name" is that column, "name:at" a time, "name:sum" the
// sha256 of its text, "name:bytes" of its bytes, and "name=expression" anything.
func member(alias, spec string) (name, sql string) {
	if name, sql, ok := strings.Cut(spec, "="); ok {
		return name, sql
	}
	name, kind, _ := strings.Cut(spec, ":")
	column := alias + "." + name
	switch kind {
	case "at":
		return name, column + " AT TIME ZONE 'UTC'"
	case "sum":
		return name, sum(column)
	case "bytes":
		return name, "encode(sha256(" + column + "), 'hex')"
	}
	return name, column
}

// sum is the sha256 of anything's text. json is not looked into: its text is
// what was written.
func sum(sql string) string { return "encode(sha256(convert_to((" + sql + ")::text, 'UTF8')), 'hex')" }

// fold is the sha256 over the rows c of a table, one JSON array a line, in an
// order that is theirs alone. JSON has no line breaks of its own.
func fold(from, where, order string, specs ...string) string {
	var values []string
	for _, s := range specs {
		_, sql := member("c", s)
		values = append(values, sql)
	}
	return "(SELECT " + sum("coalesce(string_agg(jsonb_build_array("+strings.Join(values, ", ")+")::text, E'\\n' ORDER BY "+order+"), '')") +
		" FROM " + from + " WHERE " + where + ")"
}

// digest is the SQL of the digest of a row t.
func (r rendition) digest() string {
	var args []string
	for _, m := range r.members {
		name, sql := member("t", m)
		args = append(args, "'"+name+"', "+sql)
	}
	return "'sha256:' || " + sum("jsonb_build_object("+strings.Join(args, ", ")+")")
}

// name is the SQL of the name of a row t.
func (r rendition) name() string {
	var parts []string
	for _, k := range r.key {
		column, _, _ := strings.Cut(k, ":")
		parts = append(parts, "t."+column+"::text")
	}
	return "(" + strings.Join(parts, " || '"+r.sep+"' || ") + ")"
}

func (r rendition) protected() string {
	if r.where == "" {
		return "true"
	}
	return "(" + r.where + ")"
}

// byKeys renders rows by their keys: an array for each column of the key gives
// the number of each key and the digest, null where there is no such row. The
// limit keeps each row's rendering to the rows that are asked for, whatever the
// planner thinks of their number.
func (r rendition) byKeys() string {
	var arrays, names, same []string
	for i, k := range r.key {
		column, kind, ok := strings.Cut(k, ":")
		if !ok {
			kind = "text"
		}
		arrays = append(arrays, fmt.Sprintf("$%d::text[]", i+1))
		names = append(names, fmt.Sprintf("c%d", i+1))
		same = append(same, fmt.Sprintf("t.%s = k.c%d::%s", column, i+1, kind))
	}
	return "SELECT k.n, d.digest FROM unnest(" + strings.Join(arrays, ", ") + ") WITH ORDINALITY AS k (" + strings.Join(names, ", ") + ", n)\n" +
		"LEFT JOIN LATERAL (SELECT " + r.digest() + " AS digest FROM " + r.table + " t WHERE " + strings.Join(same, " AND ") +
		" AND " + r.protected() + " LIMIT 1) d ON true"
}

// byKey renders one row. PostgreSQL plans it once for a connection, which of
// arrays it does every time, and that takes longer than the rendering.
func (r rendition) byKey() string {
	var same []string
	for i, k := range r.key {
		column, kind, ok := strings.Cut(k, ":")
		if !ok {
			kind = "text"
		}
		same = append(same, fmt.Sprintf("t.%s = $%d::text::%s", column, i+1, kind))
	}
	return "SELECT " + r.digest() + " FROM " + r.table + " t WHERE " + strings.Join(same, " AND ") + " AND " + r.protected()
}

// join is a row's name in the log.
func (r rendition) join(key []string) string { return strings.Join(key, r.sep) }

// split reads a row's name; ok is false if it cannot be one.
func (r rendition) split(name string) (key []string, ok bool) {
	key = make([]string, len(r.key))
	for i := len(key) - 1; i > 0; i-- {
		at := strings.LastIndex(name, r.sep)
		if at < 0 {
			return nil, false
		}
		name, key[i] = name[:at], name[at+len(r.sep):]
	}
	key[0] = name
	for i, k := range r.key {
		if _, kind, _ := strings.Cut(k, ":"); kind != "" {
			bits := 64
			if kind == "integer" {
				bits = 32
			}
			if _, err := strconv.ParseInt(key[i], 10, bits); err != nil {
				return nil, false
			}
		}
	}
	return key, true
}

// renditions are all forms of all protected tables, by table; each table's are
// in their order, from the first to the one that is written now.
type renditions map[string][]rendition

func newRenditions() renditions {
	all := renditions{}
	for _, r := range protected() {
		r.query, r.one = r.byKeys(), r.byKey()
		all[r.table] = append(all[r.table], r)
	}
	return all
}

// newest is how rows of a table are rendered now.
func (all renditions) newest(table string) (rendition, bool) {
	return all.form(table, len(all[table]))
}

// form is how rows of a table were rendered at some time; the first form is 1.
func (all renditions) form(table string, form int) (rendition, bool) {
	if form < 1 || form > len(all[table]) {
		return rendition{}, false
	}
	return all[table][form-1], true
}

// tables are the protected tables in their order.
func (all renditions) tables() []string { return slices.Sorted(maps.Keys(all)) }
