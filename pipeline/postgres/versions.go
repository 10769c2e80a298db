package postgres

import (
	"context"
	"slices"

	"github.com/Masterminds/semver/v3"
	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

// imageVersions returns the versions that runs of the project released each of
// the digests under, highest first.
func imageVersions(ctx context.Context, q querier, project string, digests ...string) (map[pipeline.Digest][]string, error) {
	rows, err := q.Query(ctx, `
		SELECT DISTINCT m.to_digest, m.tag FROM tag_moves m JOIN jobs j ON j.id = m.job
		WHERE m.to_digest = ANY($2) AND m.held AND j.project = $1 AND j.kind = 'run'`, project, digests)
	if err != nil {
		return nil, wrap(err, "versions")
	}
	found := map[pipeline.Digest][]*semver.Version{}
	var digest, tag string
	_, err = pgx.ForEachRow(rows, []any{&digest, &tag}, func() error {
		if v, err := semver.StrictNewVersion(tag); err == nil {
			found[pipeline.Digest(digest)] = append(found[pipeline.Digest(digest)], v)
		}
		return nil
	})
	out := map[pipeline.Digest][]string{}
	for d, versions := range found {
		slices.SortFunc(versions, func(a, b *semver.Version) int { return b.Compare(a) })
		for _, v := range versions {
			out[d] = append(out[d], v.Original())
		}
	}
	return out, wrap(err, "versions")
}
