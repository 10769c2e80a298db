package postgres

import (
	"context"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"

	"github.com/dray-project/dray/pipeline"
)

const (
	// fetchCooldown is how long a burst of insertions is gathered before workers
	// look. River's own default of 100 ms would be most of a short run's wait.
	fetchCooldown = 5 * time.Millisecond
	// fetchPoll is how often workers look without having been told to.
	fetchPoll = 500 * time.Millisecond
	// riverMaxAttempts is never reached: how often a job is tried is for the
	// Queue to say, because the end of a job has to be written to the jobs table.
	riverMaxAttempts = 10_000
)

// Promotions have a River queue of their own: they are short, and must not wait
// behind a hundred builds.
const (
	queueRuns       = "runs"
	queuePromotions = "promotions"
)

// runArgs and promotionArgs are what River stores of a job.
type runArgs struct {
	Job pipeline.JobID `json:"job"`
}

func (runArgs) Kind() string { return kindRun }

func (runArgs) InsertOpts() river.InsertOpts { return river.InsertOpts{Queue: queueRuns} }

type promotionArgs struct {
	Job pipeline.JobID `json:"job"`
}

func (promotionArgs) Kind() string { return kindPromotion }

func (promotionArgs) InsertOpts() river.InsertOpts { return river.InsertOpts{Queue: queuePromotions} }

// enqueue inserts the row that brings a job to a worker.
func (s *Store) enqueue(ctx context.Context, tx pgx.Tx, id pipeline.JobID, kind string) (row int64, err error) {
	var args river.JobArgs = runArgs{id}
	if kind == kindPromotion {
		args = promotionArgs{id}
	}
	res, err := s.river.InsertTx(ctx, tx, args, nil)
	if err != nil {
		return 0, err
	}
	return res.Job.ID, nil
}

// quiet passes on what River warns of. What it says besides is said better by
// those who do the work.
func quiet(log *slog.Logger) *slog.Logger {
	return slog.New(atLeast{log.Handler(), slog.LevelWarn})
}

// atLeast drops records below a level.
type atLeast struct {
	slog.Handler
	level slog.Level
}

func (h atLeast) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= h.level && h.Handler.Enabled(ctx, l)
}

func (h atLeast) WithAttrs(a []slog.Attr) slog.Handler {
	return atLeast{h.Handler.WithAttrs(a), h.level}
}

func (h atLeast) WithGroup(name string) slog.Handler {
	return atLeast{h.Handler.WithGroup(name), h.level}
}
