-- +goose Up

-- An image in an environment, from when until when, was put together from five
-- tables by every question about it. It is a row of its own now, written in the
-- transaction that puts the image there. It repeats what promotions, jobs,
-- placements, approvals and decisions say, which the evidence log protects; whoever
-- compares the database with the whole log compares this with them.
DROP VIEW stays;
CREATE TABLE stays (
    promotion    text COLLATE "C" PRIMARY KEY REFERENCES promotions,
    project      text COLLATE "C" NOT NULL,
    environment  text NOT NULL,
    -- Its place in the history of the environment, counted from 1.
    placed       bigint NOT NULL,
    image        bigint NOT NULL REFERENCES images,
    -- Where it was copied to.
    repository   text NOT NULL,
    action       text NOT NULL,
    requested_by text NOT NULL,
    break_glass  text NOT NULL,
    -- Who approved the plan that was carried out, in their order.
    approved_by  text[] NOT NULL,
    since        timestamptz NOT NULL,
    -- When another image, or the same once more, took its place; null while it is there.
    until        timestamptz,
    UNIQUE (project, environment, placed)
);
INSERT INTO stays (promotion, project, environment, placed, image, repository, action, requested_by, break_glass, approved_by, since, until)
    SELECT p.id, p.project, p.environment, p.placed, p.image, l.repository, p.action, p.requested_by, p.break_glass,
           coalesce((SELECT array_agg(a.author ORDER BY a.seq) FROM approvals a WHERE a.promotion = p.id AND NOT a.rejected
                     AND a.plan = coalesce((SELECT d.decision ->> 'plan' FROM decisions d WHERE d.job = p.id), a.plan)), '{}'),
           j.finished_at, nj.finished_at
    FROM promotions p
    JOIN jobs j ON j.id = p.id
    JOIN placements l ON l.promotion = p.id
    LEFT JOIN promotions n ON n.project = p.project AND n.environment = p.environment AND n.placed = p.placed + 1
    LEFT JOIN jobs nj ON nj.id = n.id
    WHERE p.placed IS NOT NULL
    ORDER BY p.id;
CREATE INDEX stays_by_image ON stays (image, since);
ANALYZE stays;

-- What an environment holds has a stay, whichever version of Dray put it there: one
-- that does not know the table gets an error when it commits, and tries again.
ALTER TABLE lanes DROP CONSTRAINT lanes_current_fkey,
    ADD CONSTRAINT lanes_current_fkey FOREIGN KEY (current) REFERENCES stays (promotion) DEFERRABLE INITIALLY DEFERRED;
