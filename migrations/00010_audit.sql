-- +goose Up

-- The newest images are asked for first. Until a vacuum has been there, the index
-- alone does not do for them, and the table is read as well: by default, that is so
-- for a fifth of all there is.
ALTER TABLE image_packages SET (autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000);

-- A package by its URL, without version, qualifiers and subpath. Cut, as
-- packages_by_name is; queries look at the whole URL as well.
CREATE INDEX packages_by_purl ON packages (left(split_part(split_part(split_part(purl, '@', 1), '?', 1), '#', 1), 200)) WHERE purl <> '';

-- What a licence answers to: itself, each identifier of an SPDX expression, and
-- those without what says "only" or "or later". All in lower case.
-- +goose StatementBegin
CREATE FUNCTION license_terms(license text) RETURNS SETOF text LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT DISTINCT left(t, 100) FROM (
        SELECT trim(lower(license)) AS t
        UNION ALL
        SELECT unnest(ARRAY[trim(w), regexp_replace(trim(w), '(-only|-or-later|\+)$', '')])
        FROM regexp_split_to_table(lower(left(license, 1000)), '\s+(?:and|or|with)\s+|[()/,]') AS w
    ) terms WHERE t <> ''
$$;
-- +goose StatementEnd

CREATE TABLE package_licenses (
    license text COLLATE "C" NOT NULL,
    package bigint NOT NULL REFERENCES packages,
    PRIMARY KEY (license, package)
);
CREATE INDEX package_licenses_by_package ON package_licenses (package);
INSERT INTO package_licenses (license, package)
    SELECT DISTINCT t, x.package FROM image_packages x, unnest(x.licenses) AS l, license_terms(l) AS t;

-- Which run brought a package version into a project. There is a row for nearly
-- every package of nearly every first image, so that it has no foreign keys but
-- one, and no index but one.
CREATE TABLE package_firsts (
    package bigint NOT NULL REFERENCES packages,
    project text COLLATE "C" NOT NULL,
    run     text COLLATE "C" NOT NULL,
    PRIMARY KEY (package, project)
);
INSERT INTO package_firsts (package, project, run)
    SELECT DISTINCT ON (x.package, i.project) x.package, i.project, r.run
    FROM image_packages x JOIN images i ON i.id = x.image JOIN image_records r ON r.image = i.id
    ORDER BY x.package, i.project, r.run;

-- An image in an environment, from when until when.
CREATE VIEW stays AS
    SELECT p.id AS promotion, p.project, p.environment, p.image, p.placed, p.action, p.requested_by, p.break_glass,
           (SELECT pl.repository FROM placements pl WHERE pl.promotion = p.id) AS repository,
           j.finished_at AS since, nj.finished_at AS until
    FROM promotions p
    JOIN jobs j ON j.id = p.id
    LEFT JOIN promotions n ON n.project = p.project AND n.environment = p.environment AND n.placed = p.placed + 1
    LEFT JOIN jobs nj ON nj.id = n.id
    WHERE p.placed IS NOT NULL;

-- By the newest record, images in the order of it.
DROP INDEX findings_by_id;
CREATE INDEX findings_by_id ON findings (left(id, 100), run DESC);
CREATE INDEX images_by_newest ON images (newest);
CREATE INDEX images_listed ON images (project, id DESC);

-- What somebody did.
CREATE INDEX runs_by_requester ON runs (requested_by) WHERE requested_by IS NOT NULL;
CREATE INDEX approvals_by_author ON approvals (author);
CREATE INDEX exceptions_by_author ON exceptions (author);
CREATE INDEX exceptions_by_revoker ON exceptions (revoked_by) WHERE revoked_by IS NOT NULL;
CREATE INDEX vex_documents_by_uploader ON vex_documents (uploaded_by);
CREATE INDEX vex_documents_by_revoker ON vex_documents (revoked_by) WHERE revoked_by IS NOT NULL;
CREATE INDEX project_versions_by_applier ON project_versions (applied_by);
-- What happened to an image.
CREATE INDEX drifts_by_digest ON drifts (digest);
CREATE INDEX tag_moves_from ON tag_moves (from_digest) WHERE moved;
