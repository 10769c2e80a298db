package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/dray-project/dray/pipeline"
)

func (a *app) runRetry() *cobra.Command {
	var wait bool
	var timeout time.Duration
	c := &cobra.Command{
		Use:   "retry RUN",
		Short: "Run a run that failed or was refused again",
		Long: `Run a run that failed or was refused again: a new run of the same commit, by
the settings of today. The old run stays as it was. Pushing the commit again
starts nothing, because Dray has seen that event.

While a retry is going on already, that one is the answer. A run that is still
going, or whose commit and ref have been run successfully, cannot be retried.

With --wait, the new run's stages go to standard error as they happen, and the
exit code is the outcome: 0 succeeded, 1 failed, 3 refused, 5 still going after
--timeout.`,
		Example: `  dray run retry run_06f3n8w2c41r0kd7t9qh
  dray run retry run_06f3n8w2c41r0kd7t9qh --wait --timeout 15m`,
		Args:              exactly(1),
		ValidArgsFunction: a.completeRuns,
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("timeout") && !wait {
				return usage("--timeout says how long to --wait: give both")
			}
			cl, err := a.client()
			if err != nil {
				return err
			}
			ctx, cancel := deadline(cmd.Context(), timeout)
			defer cancel()
			queued, err := cl.Retry(ctx, pipeline.RunID(args[0]))
			if err != nil {
				return cause(ctx, err)
			}
			if !wait {
				fmt.Fprintf(a.stderr, "Follow it with: dray run watch %s\n", queued.ID)
				return a.printRun(pipeline.RunDetail{Run: queued})
			}
			fmt.Fprintf(a.stderr, "run %s\n", queued.ID)
			err = a.follow(ctx, cl.Follow(ctx, queued.ID.Job(), 0), nil)
			if errors.Is(err, errTimeout) {
				return fmt.Errorf("run %s: %w; it goes on: dray run watch %s", queued.ID, err, queued.ID)
			}
			if err != nil {
				return fmt.Errorf("run %s: %w", queued.ID, err)
			}
			r, err := cl.Run(ctx, queued.ID)
			if err != nil {
				return fmt.Errorf("run %s: %w", queued.ID, cause(ctx, err))
			}
			if err := a.printRun(r); err != nil {
				return err
			}
			return ending("run "+string(r.ID), r.State, r.Reason)
		},
	}
	c.Flags().BoolVar(&wait, "wait", false, "wait for the outcome")
	c.Flags().DurationVar(&timeout, "timeout", 0, "with --wait: give up after this long (0: never); the run goes on")
	return c
}
