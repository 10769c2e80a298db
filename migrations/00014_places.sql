-- +goose Up

-- Where in an image a package is, and under what licences, repeats itself from
-- image to image. Each path, layer and list of licences is kept once, and what is in
-- an image is numbers: it takes half the space, and an index can hold all of it, so
-- that who has a package, and where, is read from neighbouring entries of that.
--
-- Keys are sha256 of the value, as those of packages are, in a list of licences with
-- a zero byte after each. Nothing is deleted from these tables, and nothing refers
-- to them by a foreign key: hundreds of checks for every image would lock the same
-- few rows.
CREATE TABLE paths (
    id   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key  bytea NOT NULL UNIQUE CHECK (length(key) = 32),
    path text NOT NULL
);
INSERT INTO paths (key, path)
    SELECT sha256(convert_to(path, 'UTF8')), path FROM (SELECT DISTINCT path FROM image_packages) x ORDER BY path;

CREATE TABLE layers (
    id    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key   bytea NOT NULL UNIQUE CHECK (length(key) = 32),
    layer text NOT NULL
);
INSERT INTO layers (key, layer)
    SELECT sha256(convert_to(layer, 'UTF8')), layer FROM (SELECT DISTINCT layer FROM image_packages) x ORDER BY layer;

CREATE TABLE license_lists (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key      bytea NOT NULL UNIQUE CHECK (length(key) = 32),
    licenses text[] NOT NULL
);
INSERT INTO license_lists (key, licenses)
    SELECT sha256(coalesce((SELECT string_agg(convert_to(l, 'UTF8') || '\x00'::bytea, ''::bytea ORDER BY n) FROM unnest(licenses) WITH ORDINALITY AS u (l, n)), '')), licenses
    FROM (SELECT DISTINCT licenses FROM image_packages WHERE licenses IS NOT NULL) x ORDER BY licenses;
ANALYZE paths, layers, license_lists;

ALTER TABLE image_packages RENAME TO image_packages_before;
ALTER TABLE image_packages_before DROP CONSTRAINT image_packages_pkey;
DROP INDEX image_packages_by_package;
CREATE TABLE image_packages (
    image    bigint NOT NULL REFERENCES images,
    package  bigint NOT NULL REFERENCES packages,
    path     bigint NOT NULL,
    layer    bigint NOT NULL,
    licenses bigint,
    report   integer NOT NULL,
    position integer NOT NULL,
    platform text NOT NULL
);
INSERT INTO image_packages (image, package, path, layer, licenses, report, position, platform)
    SELECT x.image, x.package, a.id, l.id, s.id, x.report, x.position, x.platform
    FROM image_packages_before x JOIN paths a USING (path) JOIN layers l USING (layer) LEFT JOIN license_lists s USING (licenses)
    ORDER BY x.image, x.report, x.position;
DROP TABLE image_packages_before;
ALTER TABLE image_packages ADD PRIMARY KEY (image, report, position);
CREATE INDEX image_packages_by_package ON image_packages (package, image DESC, report, position) INCLUDE (platform, path, layer, licenses);
ALTER TABLE image_packages SET (autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000);
ANALYZE image_packages;

-- The same for which run brought a package: one of each of many projects.
ALTER TABLE package_firsts DROP CONSTRAINT package_firsts_pkey, ADD PRIMARY KEY (package, project) INCLUDE (run);
ALTER TABLE package_firsts SET (autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000);
