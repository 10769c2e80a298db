-- +goose Up

-- +goose StatementBegin
DO $$
BEGIN
    IF EXISTS (SELECT FROM log_entries WHERE index IS NULL) THEN
        RAISE EXCEPTION 'entries of the evidence log wait for their place: let the version before give it to them, which takes it a second, and then upgrade';
    END IF;
END $$;
-- +goose StatementEnd

-- An entry that waits for its place has Dray's seal, for which somebody who only
-- writes into the database has no key. One without is refused, and never gets a place.
ALTER TABLE log_entries ADD COLUMN seal bytea NOT NULL DEFAULT '';
ALTER TABLE log_entries ADD COLUMN refused boolean NOT NULL DEFAULT false;
DROP INDEX log_entries_pending;
CREATE INDEX log_entries_pending ON log_entries (id) WHERE index IS NULL AND NOT refused;
CREATE INDEX log_entries_refused ON log_entries (id) WHERE refused;
