-- +goose Up

-- Places where a registry was found not to be as the record says.
CREATE TABLE drifts (
    id          text COLLATE "C" PRIMARY KEY,
    project     text COLLATE "C" NOT NULL REFERENCES projects,
    environment text NOT NULL,
    repository  text NOT NULL,
    digest      text COLLATE "C" NOT NULL,
    kind        text NOT NULL,
    subject     text NOT NULL,
    detail      text NOT NULL,
    detected_at timestamptz NOT NULL,
    repaired_at timestamptz,
    repair      text NOT NULL,
    resolved_at timestamptz,
    blocked     text NOT NULL
);
-- The same thing is open once.
CREATE UNIQUE INDEX drifts_open ON drifts (project, environment, repository, digest, kind, subject)
    WHERE repaired_at IS NULL AND resolved_at IS NULL;
CREATE INDEX drifts_listed ON drifts (project, id DESC);

-- What the last probe of each registry learnt.
CREATE TABLE registry_probes (
    host      text PRIMARY KEY,
    probed_at timestamptz NOT NULL,
    probe     json NOT NULL
);

-- What copies have verified where. It can be emptied at any time: what is not
-- here is asked of the registry.
CREATE TABLE content_repositories (
    id   integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE
);
CREATE TABLE verified_contents (
    repository  integer NOT NULL REFERENCES content_repositories,
    -- The 32 bytes of the sha256.
    digest      bytea NOT NULL CHECK (length(digest) = 32),
    size        bigint NOT NULL,
    manifest    boolean NOT NULL,
    subject     bytea CHECK (length(subject) = 32),
    verified_at timestamptz NOT NULL,
    PRIMARY KEY (repository, digest)
);
CREATE INDEX verified_contents_by_age ON verified_contents (verified_at);

-- Work that one process at a time does now and then.
CREATE TABLE periodic (
    name       text PRIMARY KEY,
    started_at timestamptz NOT NULL,
    -- The worker that is at it; null: nobody. A dead one counts as nobody.
    worker     text
);
