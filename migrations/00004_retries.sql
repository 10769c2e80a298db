-- +goose Up

-- A retry is a new run of the same event. Its event_key is null: the key stays
-- with the run that the event started, so that an event still starts one run
-- only, whichever program writes it.
ALTER TABLE runs
    ALTER COLUMN event_key DROP NOT NULL,
    -- The run that somebody asked to retry, which can be a retry itself.
    ADD COLUMN retry_of     text COLLATE "C" REFERENCES runs,
    -- The run that the event started: all retries of an event have the same.
    -- Its job's row is the lock under which they are made.
    ADD COLUMN first_run    text COLLATE "C" REFERENCES runs,
    ADD COLUMN requested_by text CHECK (requested_by <> ''),
    ADD CHECK (num_nonnulls(retry_of, first_run, requested_by) = CASE WHEN event_key IS NULL THEN 3 ELSE 0 END);
CREATE INDEX runs_by_retry_of ON runs (retry_of);
CREATE INDEX runs_by_first_run ON runs (first_run);
