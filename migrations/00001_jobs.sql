-- +goose Up

-- Ids and names are compared byte by byte: ids sort by their time of creation,
-- and the order must not depend on the locale of the database.

CREATE TABLE projects (
    name    text COLLATE "C" PRIMARY KEY CHECK (name <> ''),
    -- The version of the settings that is in force.
    version integer NOT NULL,
    -- False once the settings no longer name the project: its history stays.
    active  boolean NOT NULL DEFAULT true
);

-- Every version of a project's settings that was ever in force, so that an old
-- decision can be read beside the rules of its day. Going back to earlier
-- settings is a new version with the digest of the old one.
CREATE TABLE project_versions (
    project    text COLLATE "C" NOT NULL REFERENCES projects,
    version    integer NOT NULL CHECK (version > 0),
    digest     text NOT NULL CHECK (digest ~ '^sha256:[0-9a-f]{64}$'),
    settings   jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project, version)
);

ALTER TABLE projects ADD FOREIGN KEY (name, version) REFERENCES project_versions (project, version)
    DEFERRABLE INITIALLY DEFERRED;

-- What runs and promotions have in common. Writers lock the job's row first:
-- it serialises everything that happens to one job.
CREATE TABLE jobs (
    id          text COLLATE "C" PRIMARY KEY,
    kind        text NOT NULL CHECK (kind IN ('run', 'promotion')),
    project     text COLLATE "C" NOT NULL REFERENCES projects,
    state       text NOT NULL DEFAULT 'queued' CHECK (state IN ('queued', 'running', 'succeeded', 'failed', 'refused')),
    reason      text NOT NULL DEFAULT '',
    created_at  timestamptz NOT NULL DEFAULT now(),
    started_at  timestamptz,
    finished_at timestamptz,
    -- The newest event's number. Events take theirs by updating this row in the
    -- transaction that inserts them, so a number is visible only when all
    -- before it are.
    last_seq    bigint NOT NULL DEFAULT 0,
    -- The row in river.river_job that works on this job now. No foreign key:
    -- River deletes its rows after a while.
    queue_job   bigint,
    UNIQUE (id, kind),
    CHECK ((finished_at IS NOT NULL) = (state IN ('succeeded', 'failed', 'refused'))),
    CHECK (state <> 'queued' OR started_at IS NULL),
    CHECK (state <> 'running' OR started_at IS NOT NULL)
);
CREATE INDEX jobs_listed ON jobs (kind, project, id DESC);
CREATE INDEX jobs_listed_by_state ON jobs (kind, state, id DESC);
CREATE INDEX jobs_open ON jobs (id) WHERE state IN ('queued', 'running');

CREATE TABLE runs (
    id               text COLLATE "C" PRIMARY KEY,
    kind             text NOT NULL DEFAULT 'run' CHECK (kind = 'run'),
    -- What makes two events the same one: the sha256 of project, kind of event,
    -- ref, and what the ref names afterwards. What it named before is left out:
    -- a branch that is pushed away and back arrives at a commit that has its
    -- run already, and a forge that computes "before" anew on a redelivery must
    -- not start a second one. A hash, because refs can be longer than an index
    -- entry may be.
    event_key        bytea NOT NULL UNIQUE CHECK (length(event_key) = 32),
    ref              text NOT NULL,
    event            json NOT NULL,
    commit_sha       text,
    source           json,
    image_repository text,
    image_digest     text CHECK (image_digest ~ '^sha256:[0-9a-f]{64}$'),
    CHECK ((image_repository IS NULL) = (image_digest IS NULL)),
    -- Deferred, so that a run can be tried before its job: most duplicates end there.
    FOREIGN KEY (id, kind) REFERENCES jobs (id, kind) DEFERRABLE INITIALLY DEFERRED
);
CREATE INDEX runs_by_commit ON runs (commit_sha);
CREATE INDEX runs_by_image ON runs (image_digest);

-- One row for each webhook that was acknowledged.
CREATE TABLE deliveries (
    seq         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    forge       text NOT NULL,
    delivery_id text NOT NULL,
    project     text COLLATE "C" NOT NULL REFERENCES projects,
    event       json NOT NULL,
    body_digest text NOT NULL,
    -- The run that it started, or that the same event had started before.
    run         text COLLATE "C" REFERENCES runs DEFERRABLE INITIALLY DEFERRED,
    note        text NOT NULL,
    received_at timestamptz NOT NULL,
    accepted_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (forge, delivery_id)
);
CREATE INDEX deliveries_by_run ON deliveries (run);
CREATE INDEX deliveries_listed ON deliveries (project, seq DESC);

-- Every attempt at every stage. The newest attempt at a stage is the only one
-- that may write, and only while it is 'started'.
CREATE TABLE stages (
    job         text COLLATE "C" NOT NULL REFERENCES jobs,
    stage       text NOT NULL,
    attempt     integer NOT NULL CHECK (attempt > 0),
    state       text NOT NULL DEFAULT 'started' CHECK (state IN ('started', 'succeeded', 'failed')),
    -- json and not jsonb: it is given back as it came, and never looked into.
    outcome     json,
    reason      text NOT NULL DEFAULT '',
    started_at  timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    PRIMARY KEY (job, stage, attempt),
    CHECK ((outcome IS NOT NULL) = (state = 'succeeded')),
    CHECK ((finished_at IS NOT NULL) = (state <> 'started'))
);
-- A stage succeeds once.
CREATE UNIQUE INDEX stages_succeeded ON stages (job, stage) WHERE state = 'succeeded';

CREATE TABLE events (
    job     text COLLATE "C" NOT NULL REFERENCES jobs,
    seq     bigint NOT NULL CHECK (seq > 0),
    time    timestamptz NOT NULL,
    kind    text NOT NULL CHECK (kind IN ('state', 'stage', 'step', 'log')),
    stage   text NOT NULL DEFAULT '',
    attempt integer NOT NULL DEFAULT 0,
    state   text NOT NULL DEFAULT '',
    message text NOT NULL DEFAULT '',
    step    json,
    log     json,
    PRIMARY KEY (job, seq)
);
