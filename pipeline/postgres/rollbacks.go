package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

// withdrawn is true of a promotion p that is in place if a rollback replaced its
// image in that environment afterwards.
const withdrawn = `EXISTS (
	SELECT FROM promotions r WHERE r.replaced = p.image AND r.action = 'rollback' AND r.placed > p.placed
	AND r.project = p.project AND r.environment = p.environment)`

// rollbackTarget is what the environment held before what it holds now, passing
// over what was withdrawn.
func rollbackTarget(ctx context.Context, q querier, project, environment string) (d pipeline.Digest, err error) {
	err = q.QueryRow(ctx, `
		SELECT i.digest FROM lanes l JOIN promotions c ON c.id = l.current
		JOIN promotions p ON p.project = l.project AND p.environment = l.environment AND p.placed < c.placed
		JOIN images i ON i.id = p.image
		WHERE l.project = $1 AND l.environment = $2 AND p.image <> c.image AND NOT `+withdrawn+`
		ORDER BY p.placed DESC LIMIT 1`, project, environment).Scan((*string)(&d))
	if errors.Is(err, pgx.ErrNoRows) {
		return "", fmt.Errorf("%s of %s held nothing before that it could go back to; what was rolled back from does not count: %w",
			environment, project, pipeline.ErrConflict)
	}
	return d, err
}

// canRollBack refuses an image that the environment never had, or has now.
func canRollBack(ctx context.Context, q querier, c candidate, environment string) error {
	var there, current bool
	err := q.QueryRow(ctx, `
		SELECT EXISTS (SELECT FROM promotions p WHERE p.image = $1 AND p.environment = $3 AND p.placed IS NOT NULL),
		       EXISTS (SELECT FROM lanes l JOIN promotions p ON p.id = l.current WHERE l.project = $2 AND l.environment = $3 AND p.image = $1)`,
		c.image, c.project, environment).Scan(&there, &current)
	switch {
	case err != nil:
		return err
	case current:
		return fmt.Errorf("it is what %s of %s holds now: %w", environment, c.project, pipeline.ErrConflict)
	case !there:
		return fmt.Errorf("it was never promoted to %s of %s, so there is no going back to it: %w", environment, c.project, pipeline.ErrInvalid)
	}
	return nil
}
