-- +goose Up

-- When an image was removed from where it was built, and from an environment.
-- What is recorded of it stays.
ALTER TABLE images ADD COLUMN pruned_at timestamptz;
ALTER TABLE placements ADD COLUMN pruned_at timestamptz;
-- When a run's build log and steps were removed.
ALTER TABLE runs ADD COLUMN logs_pruned_at timestamptz;

-- Plans of what to remove that somebody had carried out.
CREATE TABLE retentions (
    id           text COLLATE "C" PRIMARY KEY,
    project      text COLLATE "C" NOT NULL REFERENCES projects,
    plan         text NOT NULL CHECK (plan ~ '^sha256:[0-9a-f]{64}$'),
    document     json NOT NULL,
    requested_by text NOT NULL CHECK (requested_by <> ''),
    requested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at  timestamptz,
    log_runs     integer NOT NULL DEFAULT 0,
    log_events   bigint NOT NULL DEFAULT 0,
    -- Why it goes no further for the moment.
    problem      text NOT NULL DEFAULT ''
);
CREATE UNIQUE INDEX retentions_open ON retentions (project) WHERE finished_at IS NULL;
CREATE INDEX retentions_listed ON retentions (project, id DESC);

-- Each removal: written before it has its effect, and ended after it. While one
-- is open, what it names cannot be built upon or promoted.
CREATE TABLE prunings (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    retention   text COLLATE "C" NOT NULL REFERENCES retentions,
    project     text COLLATE "C" NOT NULL,
    repository  text NOT NULL,
    digest      text COLLATE "C" NOT NULL,
    -- The manifests that go.
    digests     text[] NOT NULL,
    removal     json NOT NULL,
    started_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at timestamptz,
    outcome     text CHECK (outcome IN ('removed', 'skipped', 'blocked')),
    detail      text NOT NULL DEFAULT '',
    CHECK ((finished_at IS NULL) = (outcome IS NULL))
);
CREATE INDEX prunings_open ON prunings (repository) WHERE finished_at IS NULL;
CREATE INDEX prunings_by_image ON prunings (repository, finished_at);
CREATE INDEX prunings_listed ON prunings (retention, id);

-- When the plan of a project that applies itself was last made.
CREATE TABLE retention_turns (
    project text COLLATE "C" PRIMARY KEY REFERENCES projects,
    at      timestamptz NOT NULL
);
