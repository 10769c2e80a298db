-- +goose Up

-- What a scanner kept of a platform's image in order to match it again, by the
-- manifest: whichever projects hold it, it is the same. The data are compressed
-- already.
CREATE TABLE analyses (
    digest  text COLLATE "C" PRIMARY KEY CHECK (digest ~ '^sha256:[0-9a-f]{64}$'),
    data    bytea NOT NULL,
    keys    bytea NOT NULL,
    kept_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
ALTER TABLE analyses ALTER COLUMN data SET STORAGE EXTERNAL, ALTER COLUMN keys SET STORAGE EXTERNAL;

-- Passes over all images, one for each vulnerability database that came.
CREATE TABLE rematches (
    id            text COLLATE "C" PRIMARY KEY,
    db_reference  text NOT NULL,
    db_digest     text COLLATE "C" NOT NULL UNIQUE,
    db_updated_at timestamptz NOT NULL,
    started_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at   timestamptz,
    images        integer NOT NULL DEFAULT 0,
    unaffected    integer NOT NULL DEFAULT 0,
    scanned       integer NOT NULL DEFAULT 0,
    failed        integer NOT NULL DEFAULT 0,
    changed       integer NOT NULL DEFAULT 0,
    appeared      integer NOT NULL DEFAULT 0,
    gone          integer NOT NULL DEFAULT 0,
    refused       integer NOT NULL DEFAULT 0
);

-- What passes did with a record. Without a row, what was scanned is what counts.
CREATE TABLE image_matches (
    run        text COLLATE "C" PRIMARY KEY REFERENCES image_records ON DELETE CASCADE,
    -- The last pass that had it, and the last by which it could be matched. No
    -- foreign keys: passes are never removed, and these change with every one.
    rematch    text COLLATE "C" NOT NULL,
    matched    text COLLATE "C",
    matched_at timestamptz,
    -- When its findings changed last.
    changed_at timestamptz,
    failed     text NOT NULL DEFAULT ''
);

-- Findings that a later match brought have appeared_at; those of the record
-- itself have none. Those that are gone no longer count.
ALTER TABLE findings
    ADD COLUMN appeared_at timestamptz,
    ADD COLUMN gone_at     timestamptz,
    ADD CHECK (gone_at >= appeared_at);

-- What the gate of an environment said, after a match, of an image that the
-- environment held.
CREATE TABLE verdicts (
    run           text COLLATE "C" NOT NULL REFERENCES image_records ON DELETE CASCADE,
    environment   text NOT NULL,
    rematch       text COLLATE "C" NOT NULL,
    passed_before boolean NOT NULL,
    passed        boolean NOT NULL,
    decision      json NOT NULL,
    judged_at     timestamptz NOT NULL,
    PRIMARY KEY (run, environment, rematch)
);

-- What owners are to be told, written with the change that it tells of.
CREATE TABLE notices (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- The same notice has the same key.
    key         text NOT NULL UNIQUE,
    event       text NOT NULL,
    project     text COLLATE "C" NOT NULL,
    environment text NOT NULL,
    body        json NOT NULL,
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- It was given to the receivers that the settings name.
    given       boolean NOT NULL DEFAULT false
);
CREATE INDEX notices_to_give ON notices (id) WHERE NOT given;

-- A notice on its way to one receiver.
CREATE TABLE notice_deliveries (
    notice       bigint NOT NULL REFERENCES notices,
    receiver     text NOT NULL,
    attempts     integer NOT NULL DEFAULT 0,
    next_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    error        text NOT NULL DEFAULT '',
    delivered_at timestamptz,
    gave_up_at   timestamptz,
    PRIMARY KEY (receiver, notice)
);
CREATE INDEX notice_deliveries_by_notice ON notice_deliveries (notice);
CREATE INDEX notice_deliveries_open ON notice_deliveries (receiver, notice) WHERE delivered_at IS NULL AND gave_up_at IS NULL;
