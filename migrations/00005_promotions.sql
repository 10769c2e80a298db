-- +goose Up

-- A promotion can wait for people or time, be called off, and be overtaken.
ALTER TABLE jobs
    DROP CONSTRAINT jobs_state_check,
    DROP CONSTRAINT jobs_check,
    ADD CONSTRAINT jobs_state_check CHECK (state IN ('queued', 'running', 'waiting', 'succeeded', 'failed', 'refused', 'cancelled', 'superseded')),
    ADD CONSTRAINT jobs_check CHECK ((finished_at IS NOT NULL) = (state IN ('succeeded', 'failed', 'refused', 'cancelled', 'superseded'))),
    -- When a job that waits is to be looked at; null: when somebody does something.
    ADD COLUMN wake_at timestamptz,
    ADD CHECK (wake_at IS NULL OR state = 'waiting'),
    ADD CHECK (state <> 'waiting' OR started_at IS NOT NULL);
DROP INDEX jobs_open;
CREATE INDEX jobs_open ON jobs (id) WHERE state IN ('queued', 'running', 'waiting');

-- An attempt that ended by waiting is neither a success nor a failure.
ALTER TABLE stages
    DROP CONSTRAINT stages_state_check,
    ADD CONSTRAINT stages_state_check CHECK (state IN ('started', 'succeeded', 'failed', 'waiting'));

-- The way into one environment. There is one row, and one promotion is inside:
-- this is what keeps two from interleaving. Whoever changes what is inside, or
-- looks whether something is, locks the row before any job's.
CREATE TABLE lanes (
    project     text COLLATE "C" NOT NULL REFERENCES projects,
    environment text NOT NULL,
    -- The promotion that has passed the gate and has not ended.
    inside      text COLLATE "C" UNIQUE REFERENCES promotions,
    -- The promotion that put there what the environment holds.
    current     text COLLATE "C" UNIQUE REFERENCES promotions,
    -- How many promotions have succeeded here.
    placed      bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (project, environment)
);
INSERT INTO lanes (project, environment)
    SELECT DISTINCT j.project, p.environment FROM promotions p JOIN jobs j ON j.id = p.id;

ALTER TABLE promotions
    ADD COLUMN project     text COLLATE "C",
    ADD COLUMN action      text NOT NULL DEFAULT 'promote' CHECK (action IN ('promote', 'rollback')),
    ADD COLUMN note        text NOT NULL DEFAULT '',
    ADD COLUMN break_glass text NOT NULL DEFAULT '',
    -- What the requester was within the project when asking.
    ADD COLUMN roles       text[] NOT NULL DEFAULT '{}',
    -- The one inside the environment that this one waits for to end.
    ADD COLUMN behind      text COLLATE "C" REFERENCES promotions,
    -- Something happened while its gate was being asked: what comes of that
    -- question may be old already, and if it is to wait, it is asked again.
    ADD COLUMN nudged      boolean NOT NULL DEFAULT false,
    -- Where it comes in the order of those that succeeded in its lane.
    ADD COLUMN placed      bigint,
    -- What the environment held before it; null when it was empty.
    ADD COLUMN replaced    bigint REFERENCES images;
UPDATE promotions p SET project = j.project FROM jobs j WHERE j.id = p.id;
UPDATE promotions p SET placed = h.placed, replaced = h.replaced FROM (
    SELECT p.id, row_number() OVER lane AS placed, lag(p.image) OVER lane AS replaced
    FROM promotions p JOIN jobs j ON j.id = p.id JOIN placements l ON l.promotion = p.id
    WHERE j.state = 'succeeded'
    WINDOW lane AS (PARTITION BY j.project, p.environment ORDER BY j.finished_at, p.id)) h
    WHERE h.id = p.id;
UPDATE lanes l SET placed = h.placed, current = h.id FROM (
    SELECT DISTINCT ON (project, environment) project, environment, placed, id
    FROM promotions WHERE placed IS NOT NULL ORDER BY project, environment, placed DESC) h
    WHERE h.project = l.project AND h.environment = l.environment;
UPDATE lanes l SET inside = h.id FROM (
    SELECT p.project, p.environment, min(p.id) AS id
    FROM promotions p JOIN jobs j ON j.id = p.id JOIN stages s ON s.job = p.id AND s.stage = 'gate' AND s.state = 'succeeded'
    WHERE j.state IN ('queued', 'running') GROUP BY p.project, p.environment) h
    WHERE h.project = l.project AND h.environment = l.environment;
-- A table with checks that are still to come cannot be altered.
SET CONSTRAINTS ALL IMMEDIATE;
ALTER TABLE promotions
    ALTER COLUMN project SET NOT NULL,
    ADD FOREIGN KEY (project, environment) REFERENCES lanes;
CREATE UNIQUE INDEX promotions_in_lane ON promotions (project, environment, placed);
CREATE INDEX promotions_listed ON promotions (project, environment, id DESC);
CREATE INDEX promotions_replaced ON promotions (replaced, action);
CREATE INDEX promotions_behind ON promotions (behind);

-- What people said of a promotion. Nothing here is ever changed.
CREATE TABLE approvals (
    seq       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    promotion text COLLATE "C" NOT NULL REFERENCES promotions,
    author    text NOT NULL CHECK (author <> ''),
    roles     text[] NOT NULL,
    plan      text NOT NULL,
    comment   text NOT NULL,
    rejected  boolean NOT NULL,
    at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (promotion, author, plan)
);

-- The newest decision of a job; of a promotion that waits, it is not the last.
ALTER TABLE decisions
    ADD COLUMN diff    json,
    ADD COLUMN summary json;
-- A gate's outcome is the decision with what it was about.
UPDATE stages SET outcome = json_build_object('decision', outcome, 'diff', '{}'::json, 'summary', '{}'::json)
    WHERE stage = 'gate' AND state = 'succeeded';

ALTER TABLE reports ADD COLUMN hygiene json;
