package postgres

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

// openJobs is true of a job j that has not ended.
const openJobs = `j.state IN ('queued', 'running', 'waiting')`

// maxRetainedLogs bounds how many runs are looked at for what they printed.
const maxRetainedLogs = 5000

// Retained implements pipeline.RetentionStore.
func (s *Store) Retained(ctx context.Context, name string) (pipeline.Retained, error) {
	return s.retained(ctx, name, 0)
}

// retained is what it will be so much later, if nothing happens until then.
func (s *Store) retained(ctx context.Context, name string, later time.Duration) (r pipeline.Retained, err error) {
	err = s.read(ctx, func(tx pgx.Tx) (err error) {
		if r.Project, err = project(ctx, tx, name); err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&r.Now); err != nil {
			return err
		}
		r.Now = r.Now.UTC().Add(later)
		byID, err := retainedImages(ctx, tx, &r)
		if err != nil {
			return wrap(err, "images")
		}
		if err := retainedPlaces(ctx, tx, name, byID); err != nil {
			return wrap(err, "places")
		}
		repositories := []string{r.Project.Repository, cmp.Or(r.Project.CacheRepository, r.Project.Repository)}
		for _, e := range r.Project.Environments {
			repositories = append(repositories, e.Repository)
		}
		byDigest := map[string]*pipeline.RetainedImage{}
		for _, img := range byID {
			byDigest[string(img.Image.Digest)] = img
			for _, at := range img.Places {
				repositories = append(repositories, at.Image.Repository)
			}
			repositories = append(repositories, img.Image.Repository)
		}
		slices.Sort(repositories)
		repositories = slices.Compact(repositories)
		if err := retainedTags(ctx, tx, repositories, byDigest); err != nil {
			return wrap(err, "tags")
		}
		if r.Others, err = retainedOthers(ctx, tx, name, repositories); err != nil {
			return wrap(err, "what others hold")
		}
		if err := retainedCaches(ctx, tx, &r); err != nil {
			return wrap(err, "caches")
		}
		return wrap(retainedLogs(ctx, tx, &r), "logs")
	})
	return r, wrap(err, "what the retention of %.40q looks at", name)
}

// retainedImages reads the project's images, with what works on each.
func retainedImages(ctx context.Context, q querier, r *pipeline.Retained) (map[int64]*pipeline.RetainedImage, error) {
	rows, err := q.Query(ctx, `
		WITH open AS (
			SELECT j.id, r.image_digest, r.commit_sha FROM jobs j JOIN runs r ON r.id = j.id
			WHERE j.project = $1 AND j.kind = 'run' AND `+openJobs+`
		), busy AS (
			SELECT i.id AS image, o.id AS job FROM open o JOIN images i ON i.digest = o.image_digest AND i.project = $1
			UNION ALL SELECT x.image, o.id FROM open o JOIN image_records x ON x.project = $1 AND x.commit_sha = o.commit_sha
			UNION ALL SELECT p.image, j.id FROM promotions p JOIN jobs j ON j.id = p.id WHERE p.project = $1 AND `+openJobs+`
		)
		SELECT i.id, i.digest, x.repository, x.recorded_at, i.pruned_at IS NOT NULL,
		       coalesce((SELECT min(b.job) FROM busy b WHERE b.image = i.id), '')
		FROM images i JOIN image_records x ON x.run = i.newest WHERE i.project = $1 ORDER BY i.id`, r.Project.Name)
	if err != nil {
		return nil, err
	}
	var ids []int64
	r.Images, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (img pipeline.RetainedImage, err error) {
		var id int64
		err = row.Scan(&id, (*string)(&img.Image.Digest), &img.Image.Repository, &img.RecordedAt, &img.Gone, (*string)(&img.Busy))
		ids = append(ids, id)
		return img, err
	})
	byID := map[int64]*pipeline.RetainedImage{}
	for i := range r.Images {
		byID[ids[i]] = &r.Images[i]
	}
	return byID, err
}

// retainedPlaces reads where the images were promoted to, and how far back from
// what each environment holds they are.
func retainedPlaces(ctx context.Context, q querier, name string, byID map[int64]*pipeline.RetainedImage) error {
	// The newest placement of each image in each repository says whether it is
	// there, and those that succeeded say what came after what.
	rows, err := q.Query(ctx, `
		SELECT DISTINCT ON (p.environment, p.image, pl.repository) p.image, p.environment, pl.repository,
		       coalesce(j.finished_at, pl.recorded_at), pl.pruned_at IS NOT NULL
		FROM promotions p JOIN placements pl ON pl.promotion = p.id JOIN jobs j ON j.id = p.id
		WHERE p.project = $1
		ORDER BY p.environment, p.image, pl.repository, coalesce(j.finished_at, pl.recorded_at) DESC`, name)
	if err != nil {
		return err
	}
	type place struct {
		image int64
		pipeline.RetainedPlace
	}
	places, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (p place, err error) {
		return p, row.Scan(&p.image, &p.Environment, &p.Image.Repository, &p.Since, &p.Gone)
	})
	if err != nil {
		return err
	}
	rows, err = q.Query(ctx, `
		SELECT p.environment, p.image, l.current = p.id, `+withdrawn+`
		FROM promotions p JOIN lanes l ON l.project = p.project AND l.environment = p.environment
		WHERE p.project = $1 AND p.placed IS NOT NULL
		  AND NOT EXISTS (SELECT FROM promotions n WHERE n.project = p.project AND n.environment = p.environment AND n.image = p.image AND n.placed > p.placed)
		ORDER BY p.environment, p.placed DESC`, name)
	if err != nil {
		return err
	}
	type key struct {
		environment string
		image       int64
	}
	depths, next := map[key]int{}, map[string]int{}
	var k key
	var current *bool
	var back bool
	_, err = pgx.ForEachRow(rows, []any{&k.environment, &k.image, &current, &back}, func() error {
		switch {
		case current != nil && *current:
			depths[k] = 0
		case back:
			depths[k] = -1
		default:
			next[k.environment]++
			depths[k] = next[k.environment]
		}
		return nil
	})
	for _, p := range places {
		img := byID[p.image]
		if img == nil {
			continue
		}
		depth, placed := depths[key{p.Environment, p.image}]
		if !placed {
			depth = -1 // it arrived, but the promotion never succeeded
		}
		p.Image.Digest, p.Depth = img.Image.Digest, depth
		img.Places = append(img.Places, p.RetainedPlace)
	}
	return err
}

func retainedTags(ctx context.Context, q querier, repositories []string, byDigest map[string]*pipeline.RetainedImage) error {
	digests := make([]string, 0, len(byDigest))
	for d := range byDigest {
		digests = append(digests, d)
	}
	rows, err := q.Query(ctx, `
		SELECT digest, repository, tag, since FROM tags WHERE repository = ANY($1) AND digest = ANY($2)
		ORDER BY repository, tag`, repositories, digests)
	if err != nil {
		return err
	}
	var d string
	var t pipeline.RetainedTag
	_, err = pgx.ForEachRow(rows, []any{&d, &t.Repository, &t.Tag, &t.Since}, func() error {
		byDigest[d].Tags = append(byDigest[d].Tags, t)
		return nil
	})
	return err
}

// retainedOthers lists what in the repositories is not only the project's.
func retainedOthers(ctx context.Context, q querier, name string, repositories []string) ([]pipeline.Image, error) {
	rows, err := q.Query(ctx, `
		SELECT x.repository, i.digest FROM image_records x JOIN images i ON i.id = x.image
			WHERE x.project <> $1 AND x.repository = ANY($2) AND i.pruned_at IS NULL
		UNION SELECT pl.repository, i.digest FROM placements pl JOIN images i ON i.id = pl.image
			WHERE i.project <> $1 AND pl.repository = ANY($2) AND pl.pruned_at IS NULL
		UNION SELECT r.image_repository, r.image_digest FROM runs r JOIN jobs j ON j.id = r.id
			WHERE r.image_repository = ANY($2) AND `+openJobs+`
		ORDER BY 1, 2`, name, repositories)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (i pipeline.Image, err error) {
		return i, row.Scan(&i.Repository, (*string)(&i.Digest))
	})
}

// retainedCaches says when each platform was last built into the repository of
// the project's cache, which several projects may share.
func retainedCaches(ctx context.Context, q querier, r *pipeline.Retained) error {
	if r.Project.Retention == nil || r.Project.Retention.Caches == nil {
		return nil
	}
	const sharing = `
		SELECT p.name FROM projects p JOIN project_versions v ON v.project = p.name AND v.version = p.version
		WHERE coalesce(nullif(v.settings ->> 'cacheRepository', ''), v.settings ->> 'repository') = $1`
	cache := cmp.Or(r.Project.CacheRepository, r.Project.Repository)
	err := q.QueryRow(ctx, `SELECT coalesce(min(j.id), '') FROM jobs j WHERE j.kind = 'run' AND `+openJobs+` AND j.project IN (`+sharing+`)`, cache).
		Scan((*string)(&r.Building))
	if err != nil {
		return err
	}
	rows, err := q.Query(ctx, `
		SELECT x ->> 'platform', max(s.finished_at)
		FROM stages s JOIN jobs j ON j.id = s.job,
		     json_array_elements(CASE WHEN json_typeof(s.outcome -> 'platforms') = 'array' THEN s.outcome -> 'platforms' ELSE '[]' END) x
		WHERE s.stage = 'build' AND s.state = 'succeeded' AND j.project IN (`+sharing+`) GROUP BY 1`, cache)
	if err != nil {
		return err
	}
	r.Caches = map[pipeline.Platform]time.Time{}
	var platform string
	var at time.Time
	_, err = pgx.ForEachRow(rows, []any{&platform, &at}, func() error {
		r.Caches[pipeline.Platform(platform)] = at
		return nil
	})
	return err
}

// retainedLogs lists the oldest runs that printed something and that the rule
// may let go.
func retainedLogs(ctx context.Context, q querier, r *pipeline.Retained) error {
	if r.Project.Retention == nil || r.Project.Retention.Logs == nil {
		return nil
	}
	rows, err := q.Query(ctx, `
		SELECT j.id, j.finished_at FROM jobs j JOIN runs r ON r.id = j.id
		WHERE j.kind = 'run' AND j.project = $1 AND j.finished_at < $2 AND r.logs_pruned_at IS NULL
		  AND EXISTS (SELECT FROM events e WHERE e.job = j.id AND e.kind IN ('log', 'step'))
		ORDER BY j.id LIMIT $3`, r.Project.Name, r.Now.Add(-r.Project.Retention.Logs.For.Std()), maxRetainedLogs)
	if err != nil {
		return err
	}
	r.Logs, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (l pipeline.LogRemoval, err error) {
		err = row.Scan((*string)(&l.Run), &l.EndedAt)
		l.EndedAt = l.EndedAt.UTC()
		return l, err
	})
	return err
}
