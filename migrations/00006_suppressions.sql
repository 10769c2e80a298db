-- +goose Up

-- Findings that somebody accepted.
CREATE TABLE exceptions (
    id          text COLLATE "C" PRIMARY KEY,
    project     text COLLATE "C" NOT NULL REFERENCES projects,
    -- Empty: everywhere within the project.
    environment text NOT NULL,
    image       text COLLATE "C" NOT NULL,
    finding     text NOT NULL,
    package     text NOT NULL,
    reason      text NOT NULL,
    author      text NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at  timestamptz NOT NULL,
    revoked_at  timestamptz,
    revoked_by  text,
    CHECK ((revoked_at IS NULL) = (revoked_by IS NULL))
);
CREATE INDEX exceptions_in_force ON exceptions (project, expires_at) WHERE revoked_at IS NULL;
CREATE INDEX exceptions_listed ON exceptions (project, id DESC);

-- Documents that say which vulnerabilities affect what, byte by byte as they
-- were signed.
CREATE TABLE vex_documents (
    id          text COLLATE "C" PRIMARY KEY,
    project     text COLLATE "C" NOT NULL REFERENCES projects,
    document    bytea NOT NULL,
    signature   bytea NOT NULL,
    uploaded_by text NOT NULL,
    uploaded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    revoked_at  timestamptz,
    revoked_by  text,
    CHECK ((revoked_at IS NULL) = (revoked_by IS NULL))
);
CREATE INDEX vex_documents_listed ON vex_documents (project, id DESC);

-- Who may do what.
ALTER TABLE tokens ADD COLUMN grants text[] NOT NULL DEFAULT '{admin}';
ALTER TABLE tokens ALTER COLUMN grants DROP DEFAULT, ADD CHECK (cardinality(grants) > 0);

-- A version of a project's settings comes from the settings file or through the
-- API.
ALTER TABLE project_versions
    ADD COLUMN applied_by text NOT NULL DEFAULT 'settings',
    ADD COLUMN origin     text NOT NULL DEFAULT 'settings' CHECK (origin IN ('settings', 'api'));
CREATE INDEX project_versions_applied ON project_versions (project) WHERE origin = 'api';
