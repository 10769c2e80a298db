-- +goose Up

-- Which exceptions a page of packages tells of was looked for by each exception of the
-- records' projects. It is by each package now: the record's findings in it, and the
-- project's exceptions for those.
CREATE INDEX findings_by_package ON findings (run, left(package, 200));
CREATE INDEX exceptions_by_finding ON exceptions (project, lower(left(finding, 100))) WHERE revoked_at IS NULL;
ANALYZE findings, exceptions;
