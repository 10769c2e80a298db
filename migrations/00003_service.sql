-- +goose Up

-- Machines' access to the API. The secret is not kept, only its sha256: it has
-- 256 random bits, so there is nothing to guess and no need of a slow hash.
CREATE TABLE tokens (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text NOT NULL CHECK (name <> ''),
    hash       bytea NOT NULL UNIQUE CHECK (length(hash) = 32),
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    revoked_at timestamptz
);
-- A name has one token at a time; those that it replaced stay, revoked.
CREATE UNIQUE INDEX tokens_in_force ON tokens (name) WHERE revoked_at IS NULL;

-- River's tables keep to a schema of their own.
CREATE SCHEMA river;

-- The processes that work on the queue. A worker is alive as long as its
-- connection holds the advisory lock of that key; the row alone says nothing.
CREATE TABLE workers (
    id         text PRIMARY KEY,
    lock_key   bigint NOT NULL UNIQUE,
    host       text NOT NULL,
    process    integer NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now()
);
