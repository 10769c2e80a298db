// Package migrations holds the database schema as SQL files that are applied
// in order and never changed once released.
package migrations

import "embed"

// Files are the migrations, named <version>_<what>.sql.
//
//go:embed *.sql
var Files embed.FS
