package postgres

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

// key is the sha256 by which a value is found that is kept once: what an image says
// of itself can be longer than an index entry may be.
type key = [sha256.Size]byte

// packageKey is the key of a row of packages.
func packageKey(p pipeline.Package) key {
	return sha256.Sum256([]byte(strings.Join([]string{clean(p.Type), clean(p.Name), clean(p.Version), clean(p.PURL)}, "\x00")))
}

// textKey is the key of a row of paths or layers.
func textKey(s string) key { return sha256.Sum256([]byte(clean(s))) }

// licensesKey is the key of a row of license_lists.
func licensesKey(list []string) key {
	var all []byte
	for _, l := range list {
		all = append(append(all, clean(l)...), 0)
	}
	return sha256.Sum256(all)
}

// numbers are those of what a report's packages are, and of where they are.
type numbers struct{ packages, paths, layers, licenses map[key]int64 }

// insertNumbered makes sure that there is a row for each package of the report, for
// its path, its layer and its licences.
func insertNumbered(ctx context.Context, tx pgx.Tx, r pipeline.Report) (n numbers, err error) {
	packages, paths, layers, licenses := map[key]pipeline.Package{}, map[key]string{}, map[key]string{}, map[key][]string{}
	for _, pr := range r.Platforms {
		for _, p := range pr.Packages {
			packages[packageKey(p)] = p
			paths[textKey(p.Path)], layers[textKey(p.Layer)] = p.Path, p.Layer
			licenses[licensesKey(p.Licenses)] = p.Licenses
		}
	}
	if n.packages, err = insertOnce(ctx, tx, packages, "packages (key, type, name, version, purl)", `
		SELECT * FROM unnest($1::bytea[], $2::text[], $3::text[], $4::text[], $5::text[]) AS p (key, type, name, version, purl)`,
		func(p pipeline.Package) []string { return []string{p.Type, p.Name, p.Version, p.PURL} }); err != nil {
		return n, wrap(err, "packages")
	}
	const texts = `SELECT * FROM unnest($1::bytea[], $2::text[]) AS t (key, value)`
	text := func(s string) []string { return []string{s} }
	if n.paths, err = insertOnce(ctx, tx, paths, "paths (key, path)", texts, text); err != nil {
		return n, wrap(err, "paths")
	}
	if n.layers, err = insertOnce(ctx, tx, layers, "layers (key, layer)", texts, text); err != nil {
		return n, wrap(err, "layers")
	}
	// As JSON, because unnest takes lists of different lengths apart.
	n.licenses, err = insertOnce(ctx, tx, licenses, "license_lists (key, licenses)", `
		SELECT key, ARRAY(SELECT l FROM jsonb_array_elements_text(value::jsonb) WITH ORDINALITY AS u (l, n) ORDER BY n)
		FROM unnest($1::bytea[], $2::text[]) AS t (key, value)`,
		func(list []string) []string {
			cleaned := make([]string, len(list))
			for i, l := range list {
				cleaned[i] = clean(l)
			}
			b, err := json.Marshal(cleaned)
			if err != nil {
				panic(err) // texts always marshal
			}
			return []string{string(b)}
		})
	return n, wrap(err, "licences")
}

// insertOnce makes sure that a table has a row for each of the values, and returns
// their numbers. into is the table and its columns, and rows a query for what is in
// them, of arrays of the keys and of each of a value's columns. The rows are inserted
// in one order everywhere, so that two records with the same new values wait for each
// other but not in a circle.
func insertOnce[V any](ctx context.Context, tx pgx.Tx, values map[key]V, into, rows string, columns func(V) []string) (map[key]int64, error) {
	table, _, _ := strings.Cut(into, " ")
	ids := make(map[key]int64, len(values))
	find := func(keys [][]byte) error {
		found, err := tx.Query(ctx, `SELECT id, key FROM `+table+` WHERE key = ANY($1)`, keys)
		if err != nil {
			return err
		}
		var id int64
		var k []byte
		_, err = pgx.ForEachRow(found, []any{&id, &k}, func() error {
			ids[key(k)] = id
			return nil
		})
		return err
	}
	keys := make([][]byte, 0, len(values))
	for k := range values {
		keys = append(keys, k[:])
	}
	if err := find(keys); err != nil {
		return nil, err
	}
	// Most are known from earlier images and end here.
	keys = slices.DeleteFunc(keys, func(k []byte) bool { _, ok := ids[key(k)]; return ok })
	if len(keys) == 0 {
		return ids, nil
	}
	slices.SortFunc(keys, slices.Compare[[]byte])
	var arrays [][]string
	for _, k := range keys {
		for i, text := range columns(values[key(k)]) {
			if i == len(arrays) {
				arrays = append(arrays, nil)
			}
			arrays[i] = append(arrays[i], clean(text))
		}
	}
	args := []any{keys}
	for _, a := range arrays {
		args = append(args, a)
	}
	if _, err := tx.Exec(ctx, `INSERT INTO `+into+rows+` ORDER BY key ON CONFLICT (key) DO NOTHING`, args...); err != nil {
		return nil, err
	}
	return ids, find(keys)
}

// joinPlaces joins a row x of image_packages with where the package is, a and l, and
// with its licences s.
const joinPlaces = ` JOIN paths a ON a.id = x.path JOIN layers l ON l.id = x.layer LEFT JOIN license_lists s ON s.id = x.licenses`
