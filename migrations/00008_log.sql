-- +goose Up

-- The evidence log. An entry is written in the transaction of the change that it
-- describes; a sequencer gives it its place afterwards, in the order of commit as
-- far as it can see, and never changes it again.
CREATE TABLE log_entries (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- The leaf's index in the tree; null until it was sequenced.
    index      bigint UNIQUE CHECK (index >= 0),
    -- The canonical form, byte by byte: what the tree hashes.
    leaf       bytea NOT NULL,
    kind       text NOT NULL,
    project    text COLLATE "C" NOT NULL DEFAULT '',
    subject    text COLLATE "C" NOT NULL DEFAULT '',
    image      text COLLATE "C" NOT NULL DEFAULT '',
    written_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX log_entries_pending ON log_entries (id) WHERE index IS NULL;
CREATE INDEX log_entries_by_project ON log_entries (project, index);
CREATE INDEX log_entries_by_subject ON log_entries (subject, id) WHERE subject <> '';
CREATE INDEX log_entries_by_image ON log_entries (image, id) WHERE image <> '';

-- Which entry is the newest to describe a row.
CREATE TABLE log_rows (
    table_name text COLLATE "C" NOT NULL,
    row_key    text COLLATE "C" NOT NULL,
    entry      bigint NOT NULL REFERENCES log_entries,
    PRIMARY KEY (table_name, row_key, entry)
);
CREATE INDEX log_rows_by_entry ON log_rows (entry);

-- The tree's hashes, by golang.org/x/mod/sumdb/tlog's storage index.
CREATE TABLE log_hashes (
    index bigint PRIMARY KEY CHECK (index >= 0),
    hash  bytea NOT NULL CHECK (length(hash) = 32)
);

-- Checkpoints that were signed: all of the last time, then one of each day.
CREATE TABLE log_checkpoints (
    size      bigint PRIMARY KEY CHECK (size >= 0),
    note      text NOT NULL,
    signed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
