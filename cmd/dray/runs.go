package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/dray-project/dray/api/client"
	"github.com/dray-project/dray/pipeline"
)

func (a *app) runCommand() *cobra.Command {
	return newGroup("run", "Look at runs, one image built from one commit each, and run them again",
		a.runList(), a.runShow(), a.runWatch(), a.runLogs(), a.runRetry())
}

func (a *app) runList() *cobra.Command {
	var q client.RunsQuery
	var state string
	var limit int
	c := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List runs, newest first",
		Example: `  dray run list
  dray run list --project hello-go --state failed
  dray run list --limit 500 -o json`,
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			q.State = pipeline.State(state)
			runs, err := pages(limit, func(limit int, cursor string) (client.List[pipeline.Run], error) {
				q.Limit, q.Cursor = limit, cursor
				return cl.Runs(cmd.Context(), q)
			})
			if err != nil {
				return fmt.Errorf("list runs: %w", err)
			}
			return a.print(runs, func(w *writer) { w.runs(runs) }, func() []string {
				return names(runs, func(r pipeline.Run) string { return string(r.ID) })
			})
		},
	}
	c.Flags().StringVarP(&q.Project, "project", "p", "", "only this project's")
	c.Flags().StringVar(&state, "state", "", "only runs in this state: queued, running, succeeded, failed, refused")
	limitFlag(c, &limit)
	completeWith(c, "state", "queued", "running", "succeeded", "failed", "refused")
	return c
}

func (a *app) runShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show RUN",
		Short: "Show a run: its stages, the gate's decision with reasons, its tags",
		Example: `  dray run show run_06f3n8w2c41r0kd7t9qh
  dray run show run_06f3n8w2c41r0kd7t9qh -o json`,
		Args:              exactly(1),
		ValidArgsFunction: a.completeRuns,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			r, err := cl.Run(cmd.Context(), pipeline.RunID(args[0]))
			if err != nil {
				return fmt.Errorf("show run %s: %w", args[0], err)
			}
			return a.printRun(r)
		},
	}
}

func (a *app) printRun(r pipeline.RunDetail) error {
	return a.print(r, func(w *writer) { w.run(r) }, func() []string { return []string{string(r.ID)} })
}

func (a *app) runWatch() *cobra.Command {
	var timeout time.Duration
	c := &cobra.Command{
		Use:   "watch RUN",
		Short: "Follow a run to its end, and show it",
		Long: `Follow a run to its end: its stages and build steps go to standard error as
they happen, from the first one on, and the finished run to standard output.
The exit code is the run's outcome: 0 succeeded, 1 failed, 3 refused.`,
		Example: `  dray run watch run_06f3n8w2c41r0kd7t9qh
  dray run watch run_06f3n8w2c41r0kd7t9qh --timeout 15m -o json`,
		Args:              exactly(1),
		ValidArgsFunction: a.completeRuns,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			ctx, cancel := deadline(cmd.Context(), timeout)
			defer cancel()
			id := pipeline.RunID(args[0])
			if _, err := cl.Run(ctx, id); err != nil {
				return fmt.Errorf("watch run %s: %w", id, cause(ctx, err))
			}
			if err := a.follow(ctx, cl.Follow(ctx, id.Job(), 0), nil); err != nil {
				return fmt.Errorf("watch run %s: %w", id, err)
			}
			r, err := cl.Run(ctx, id)
			if err != nil {
				return fmt.Errorf("watch run %s: %w", id, cause(ctx, err))
			}
			if err := a.printRun(r); err != nil {
				return err
			}
			return ending("run "+string(id), r.State, r.Reason)
		},
	}
	c.Flags().DurationVar(&timeout, "timeout", 0, "give up after this long (0: never); the run goes on")
	return c
}

func (a *app) runLogs() *cobra.Command {
	var follow bool
	var platform string
	c := &cobra.Command{
		Use:   "logs RUN",
		Short: "Print what a run's build printed",
		Long: `Print what a run's build printed, from its start: each step under a number,
its lines behind the same number. With -o json every event of the run is one
line of JSON.`,
		Example: `  dray run logs run_06f3n8w2c41r0kd7t9qh
  dray run logs run_06f3n8w2c41r0kd7t9qh --follow --platform linux/arm64`,
		Args:              exactly(1),
		ValidArgsFunction: a.completeRuns,
		RunE: func(cmd *cobra.Command, args []string) error {
			if a.output != "table" && a.output != "json" {
				return usage("--output %s: logs are printed as table or json", a.output)
			}
			if platform != "" {
				if _, err := pipeline.ParsePlatform(platform); err != nil {
					return usage("--platform: %w", err)
				}
			}
			cl, err := a.client()
			if err != nil {
				return err
			}
			job := pipeline.RunID(args[0]).Job()
			events := cl.Events(cmd.Context(), job, 0)
			if follow {
				events = cl.Follow(cmd.Context(), job, 0)
			}
			l := &logs{out: a.stdout, platform: pipeline.Platform(platform), numbers: map[string]int{}, named: map[string]bool{}, ended: map[string]bool{}}
			for e, err := range events {
				if err != nil {
					return fmt.Errorf("logs of run %s: %w", args[0], err)
				}
				if a.output == "json" {
					err = json.NewEncoder(a.stdout).Encode(e)
				} else {
					err = l.event(e)
				}
				if err != nil {
					return err
				}
			}
			return nil
		},
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the run is over")
	c.Flags().StringVar(&platform, "platform", "", "only this platform's steps, such as linux/arm64")
	return c
}

// completeRuns offers the newest runs.
func (a *app) completeRuns(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	cl, err := a.client()
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), 2*time.Second)
	defer cancel()
	list, err := cl.Runs(ctx, client.RunsQuery{PageQuery: client.PageQuery{Limit: 20}})
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return names(list.Items, func(r pipeline.Run) string {
		return string(r.ID) + "\t" + clean(r.Project+" "+shortRef(r.Event.Ref)+" "+string(r.State))
	}), cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
}

func limitFlag(c *cobra.Command, limit *int) {
	c.Flags().IntVar(limit, "limit", 20, "how many at most")
}

// pages fetches pages until there are limit items or no more.
func pages[T any](limit int, page func(limit int, cursor string) (client.List[T], error)) ([]T, error) {
	if limit < 1 {
		return nil, usage("--limit %d: want at least 1", limit)
	}
	items, cursor := []T{}, ""
	for {
		list, err := page(min(limit-len(items), 100), cursor)
		if err != nil {
			return nil, err
		}
		items = append(items, list.Items...)
		if list.Next == "" || len(items) >= limit {
			return items, nil
		}
		cursor = list.Next
	}
}

func names[T any](items []T, name func(T) string) []string {
	var out []string
	for _, item := range items {
		out = append(out, name(item))
	}
	return out
}
