-- +goose Up

-- An image is a digest within a project: two projects may hold the same one.
CREATE TABLE images (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    project text COLLATE "C" NOT NULL REFERENCES projects,
    digest  text COLLATE "C" NOT NULL CHECK (digest ~ '^sha256:[0-9a-f]{64}$'),
    -- The run whose record is the newest: what is said of the image today.
    newest  text COLLATE "C" NOT NULL,
    UNIQUE (digest, project)
);

CREATE TABLE image_platforms (
    image      bigint NOT NULL REFERENCES images,
    position   integer NOT NULL,
    platform   text NOT NULL,
    digest     text COLLATE "C" NOT NULL CHECK (digest ~ '^sha256:[0-9a-f]{64}$'),
    size       bigint NOT NULL,
    media_type text NOT NULL,
    PRIMARY KEY (image, position)
);
CREATE INDEX image_platforms_by_digest ON image_platforms (digest);

-- What one run recorded of an image. Several runs can record the same image:
-- a commit that is pushed to a branch and released under a tag is built once and
-- looked at twice. Nothing here is ever changed.
CREATE TABLE image_records (
    run           text COLLATE "C" PRIMARY KEY REFERENCES runs,
    image         bigint NOT NULL REFERENCES images,
    project       text COLLATE "C" NOT NULL REFERENCES projects,
    repository    text NOT NULL,
    commit_sha    text NOT NULL,
    -- The sha256 of the clone URL and the build plan: the same commit built by
    -- the same plan is the same image.
    plan_digest   text NOT NULL,
    built         json NOT NULL,
    provenance    json,
    scanned_at    timestamptz NOT NULL,
    scanner       text NOT NULL,
    db_reference  text NOT NULL,
    db_digest     text NOT NULL,
    db_updated_at timestamptz NOT NULL,
    recorded_at   timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX image_records_by_source ON image_records (project, commit_sha, plan_digest);
CREATE INDEX image_records_by_image ON image_records (image);
ALTER TABLE images ADD FOREIGN KEY (newest) REFERENCES image_records (run) DEFERRABLE INITIALLY DEFERRED;

-- What a run's or a promotion's gate said.
CREATE TABLE decisions (
    job          text COLLATE "C" PRIMARY KEY REFERENCES jobs,
    passed       boolean NOT NULL,
    decision     json NOT NULL,
    evaluated_at timestamptz NOT NULL
);

-- The part of a run's report that is about one platform.
CREATE TABLE reports (
    run      text COLLATE "C" NOT NULL REFERENCES image_records,
    position integer NOT NULL,
    platform text NOT NULL,
    digest   text COLLATE "C" NOT NULL,
    os       text NOT NULL,
    run_user text NOT NULL,
    PRIMARY KEY (run, position)
);

CREATE TABLE sboms (
    run      text COLLATE "C" NOT NULL,
    position integer NOT NULL,
    document json NOT NULL,
    PRIMARY KEY (run, position),
    FOREIGN KEY (run, position) REFERENCES reports
);

CREATE TABLE findings (
    run      text COLLATE "C" NOT NULL,
    report   integer NOT NULL,
    position integer NOT NULL,
    id       text NOT NULL,
    severity smallint NOT NULL CHECK (severity BETWEEN 0 AND 4),
    package  text NOT NULL,
    version  text NOT NULL,
    fixed_in text NOT NULL,
    title    text NOT NULL,
    url      text NOT NULL,
    purl     text NOT NULL,
    path     text NOT NULL,
    PRIMARY KEY (run, report, position),
    FOREIGN KEY (run, report) REFERENCES reports
);
CREATE INDEX findings_by_id ON findings (left(id, 100));

-- Each package version once, however many images hold it.
CREATE TABLE packages (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- The sha256 of the four columns below. What an image says of itself can be
    -- longer than an index entry may be.
    key     bytea NOT NULL UNIQUE CHECK (length(key) = 32),
    type    text NOT NULL,
    name    text NOT NULL,
    version text NOT NULL,
    purl    text NOT NULL
);
-- Cut for the same reason; queries compare the whole name as well.
CREATE INDEX packages_by_name ON packages (left(name, 200), left(version, 200));

-- What is in an image by its newest record. The older records' packages are in
-- their SBOMs.
CREATE TABLE image_packages (
    image    bigint NOT NULL REFERENCES images,
    report   integer NOT NULL,
    position integer NOT NULL,
    platform text NOT NULL,
    package  bigint NOT NULL REFERENCES packages,
    path     text NOT NULL,
    layer    text NOT NULL,
    licenses text[],
    PRIMARY KEY (image, report, position)
);
CREATE INDEX image_packages_by_package ON image_packages (package, image DESC) INCLUDE (platform);

-- What was read back from a registry and verified, by a run or by a promotion.
CREATE TABLE verifications (
    job         text COLLATE "C" NOT NULL REFERENCES jobs,
    position    integer NOT NULL,
    repository  text NOT NULL,
    digest      text COLLATE "C" NOT NULL,
    verified_at timestamptz NOT NULL,
    PRIMARY KEY (job, position)
);
CREATE INDEX verifications_by_digest ON verifications (digest);

CREATE TABLE signatures (
    job          text COLLATE "C" NOT NULL,
    verification integer NOT NULL,
    position     integer NOT NULL,
    key_id       text NOT NULL,
    layout       text NOT NULL,
    manifest     text NOT NULL,
    PRIMARY KEY (job, verification, position),
    FOREIGN KEY (job, verification) REFERENCES verifications
);
CREATE INDEX signatures_by_key ON signatures (key_id);

CREATE TABLE attestations (
    job            text COLLATE "C" NOT NULL,
    verification   integer NOT NULL,
    position       integer NOT NULL,
    predicate_type text NOT NULL,
    key_id         text NOT NULL,
    layout         text NOT NULL,
    manifest       text NOT NULL,
    statement      text NOT NULL,
    PRIMARY KEY (job, verification, position),
    FOREIGN KEY (job, verification) REFERENCES verifications
);
CREATE INDEX attestations_by_statement ON attestations (statement);

CREATE TABLE promotions (
    id              text COLLATE "C" PRIMARY KEY,
    kind            text NOT NULL DEFAULT 'promotion' CHECK (kind = 'promotion'),
    image           bigint NOT NULL REFERENCES images,
    -- Where the image came from when the promotion was asked for.
    repository      text NOT NULL,
    environment     text NOT NULL,
    requested_by    text NOT NULL,
    -- Null when the request had none: then every request is a new one.
    idempotency_key text CHECK (idempotency_key <> ''),
    FOREIGN KEY (id, kind) REFERENCES jobs (id, kind) DEFERRABLE INITIALLY DEFERRED,
    UNIQUE (requested_by, idempotency_key)
);
CREATE INDEX promotions_by_image ON promotions (image);

-- An image that is at its destination, verified there.
CREATE TABLE placements (
    promotion   text COLLATE "C" PRIMARY KEY REFERENCES promotions,
    image       bigint NOT NULL REFERENCES images,
    environment text NOT NULL,
    repository  text NOT NULL,
    copied      json NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX placements_by_image ON placements (image, environment);

-- Every tag that was asked for, and what became of it.
CREATE TABLE tag_moves (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job         text COLLATE "C" NOT NULL REFERENCES jobs,
    position    integer NOT NULL,
    repository  text NOT NULL,
    tag         text NOT NULL,
    from_digest text COLLATE "C",
    to_digest   text COLLATE "C" NOT NULL,
    moved       boolean NOT NULL,
    held        boolean NOT NULL,
    note        text NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (job, position)
);
CREATE INDEX tag_moves_by_digest ON tag_moves (to_digest);

-- What each tag names now, as far as Dray moved it.
CREATE TABLE tags (
    repository text NOT NULL,
    tag        text NOT NULL,
    digest     text COLLATE "C" NOT NULL,
    job        text COLLATE "C" NOT NULL REFERENCES jobs,
    since      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (repository, tag)
);
CREATE INDEX tags_by_digest ON tags (digest);
