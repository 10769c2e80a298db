package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

// candidate is a recorded image that a request may mean.
type candidate struct {
	image      int64
	digest     pipeline.Digest
	project    string
	repository string
	run        string
	passed     bool
	decision   json.RawMessage
}

func findCandidate(ctx context.Context, tx pgx.Tx, project string, image pipeline.Image) (c candidate, err error) {
	w := where{}
	w.add("i.digest = %s", string(image.Digest))
	w.addIf(project != "", "i.project = %s", project)
	rows, err := tx.Query(ctx, `
		SELECT i.id, i.project, r.repository, r.run, d.passed, d.decision
		FROM images i JOIN projects p ON p.name = i.project AND p.active
		JOIN image_records r ON r.run = i.newest JOIN decisions d ON d.job = r.run`+w.sql()+` ORDER BY i.project`, w.args...)
	if err != nil {
		return c, err
	}
	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (c candidate, err error) {
		c.digest = image.Digest
		return c, row.Scan(&c.image, &c.project, &c.repository, &c.run, &c.passed, &c.decision)
	})
	if err != nil {
		return c, err
	}
	if len(found) == 0 {
		return c, fmt.Errorf("no run has recorded this digest: %w", pipeline.ErrNotFound)
	}
	if image.Repository != "" {
		var there []candidate
		var places []string
		for _, f := range found {
			places = append(places, f.repository)
			if f.repository == image.Repository {
				there = append(there, f)
			}
		}
		if len(there) == 0 {
			return c, fmt.Errorf("the digest is recorded in %s: %w", strings.Join(places, ", "), pipeline.ErrInvalid)
		}
		found = there
	}
	if len(found) > 1 {
		var names []string
		for _, f := range found {
			names = append(names, f.project)
		}
		return c, fmt.Errorf("the projects %s hold this digest, say which is meant: %w", strings.Join(names, ", "), pipeline.ErrAmbiguous)
	}
	return found[0], nil
}
