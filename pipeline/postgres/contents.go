package postgres

import (
	"context"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

const (
	// contentsKept is how long it is remembered that something was verified.
	// Readers believe it for less.
	contentsKept = 7 * 24 * time.Hour
	// maxContents bounds how much is remembered; a row takes about 200 bytes with
	// its indexes.
	maxContents = 2_000_000
)

// Known returns those of the digests that were remembered in the repository
// within the given time, by the database's clock.
func (s *Store) Known(ctx context.Context, repository string, digests []pipeline.Digest, within time.Duration) (map[pipeline.Digest]pipeline.Content, error) {
	keys, err := digestKeys(digests)
	if err != nil {
		return nil, wrap(err, "what is known of %s", repository)
	}
	rows, err := s.pool.Query(ctx, `
		SELECT v.digest, v.size, v.manifest, v.subject FROM content_repositories r JOIN verified_contents v ON v.repository = r.id
		WHERE r.name = $1 AND v.digest = ANY($2) AND v.verified_at > clock_timestamp() - $3::interval`, repository, keys, within)
	if err != nil {
		return nil, wrap(err, "what is known of %s", repository)
	}
	out := map[pipeline.Digest]pipeline.Content{}
	var key, subject []byte
	var c pipeline.Content
	_, err = pgx.ForEachRow(rows, []any{&key, &c.Size, &c.Manifest, &subject}, func() error {
		c.Digest, c.Subject = keyDigest(key), keyDigest(subject)
		out[c.Digest] = c
		subject = nil
		return nil
	})
	return out, wrap(err, "what is known of %s", repository)
}

// Remember notes that the contents were verified in the repository just now.
func (s *Store) Remember(ctx context.Context, repository string, contents []pipeline.Content) error {
	if len(contents) == 0 {
		return nil
	}
	n := len(contents)
	digests := make([][]byte, n)
	sizes, manifests, subjects := make([]int64, n), make([]bool, n), make([][]byte, n)
	for i, c := range contents {
		var err error
		if digests[i], err = digestKey(c.Digest); err != nil {
			return wrap(err, "remember what is in %s", repository)
		}
		if c.Subject != "" {
			if subjects[i], err = digestKey(c.Subject); err != nil {
				return wrap(err, "remember what is in %s", repository)
			}
		}
		sizes[i], manifests[i] = c.Size, c.Manifest
	}
	id, err := s.contentRepository(ctx, repository)
	if err == nil {
		// In one order, so that two copies into one repository do not wait for
		// each other in a circle.
		_, err = s.pool.Exec(ctx, `
			INSERT INTO verified_contents (repository, digest, size, manifest, subject, verified_at)
			SELECT $1, c.digest, c.size, c.manifest, c.subject, clock_timestamp()
			FROM unnest($2::bytea[], $3::bigint[], $4::boolean[], $5::bytea[]) AS c (digest, size, manifest, subject) ORDER BY c.digest
			ON CONFLICT (repository, digest) DO UPDATE SET size = excluded.size, manifest = excluded.manifest,
				subject = excluded.subject, verified_at = excluded.verified_at`, id, digests, sizes, manifests, subjects)
	}
	return wrap(err, "remember what is in %s", repository)
}

// contentRepository returns the number that stands for a repository.
func (s *Store) contentRepository(ctx context.Context, name string) (id int32, err error) {
	err = s.pool.QueryRow(ctx, `
		WITH fresh AS (
			INSERT INTO content_repositories (name) SELECT $1 WHERE NOT EXISTS (SELECT FROM content_repositories WHERE name = $1)
			ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING id
		)
		SELECT id FROM fresh UNION ALL SELECT id FROM content_repositories WHERE name = $1 LIMIT 1`, name).Scan(&id)
	return id, err
}

// Forget removes what was remembered; what is not there is no error.
func (s *Store) Forget(ctx context.Context, repository string, digests []pipeline.Digest) error {
	keys, err := digestKeys(digests)
	if err == nil {
		_, err = s.pool.Exec(ctx, `
			DELETE FROM verified_contents WHERE repository = (SELECT id FROM content_repositories WHERE name = $1) AND digest = ANY($2)`,
			repository, keys)
	}
	return wrap(err, "forget what is in %s", repository)
}

// pruneContents removes what is too old, and the oldest beyond the bound, some
// at a time. The planner's count is near enough.
const pruneContents = `
	DELETE FROM verified_contents WHERE (repository, digest) IN (
		SELECT repository, digest FROM verified_contents
		WHERE verified_at < CASE WHEN (SELECT reltuples FROM pg_class WHERE oid = 'verified_contents'::regclass) > $2::real
			THEN 'infinity' ELSE clock_timestamp() - $1::interval END
		ORDER BY verified_at LIMIT $3)`

// pruneAtOnce is how many rows one round removes at most.
const pruneAtOnce = 20_000

func digestKeys(digests []pipeline.Digest) ([][]byte, error) {
	keys := make([][]byte, len(digests))
	for i, d := range digests {
		var err error
		if keys[i], err = digestKey(d); err != nil {
			return nil, err
		}
	}
	return keys, nil
}

// digestKey is a digest's 32 bytes.
func digestKey(d pipeline.Digest) ([]byte, error) {
	if _, err := pipeline.ParseDigest(string(d)); err != nil {
		return nil, err
	}
	key, err := hex.DecodeString(d.Hex())
	if err != nil {
		return nil, fmt.Errorf("digest %q: %w", d, err)
	}
	return key, nil
}

func keyDigest(key []byte) pipeline.Digest {
	if len(key) == 0 {
		return ""
	}
	return pipeline.Digest("sha256:" + hex.EncodeToString(key))
}
