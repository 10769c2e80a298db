package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/dray-project/dray/pipeline"
)

func (a *app) retentionCommand() *cobra.Command {
	return newGroup("retention", "Look at what need not be kept, and remove it", a.retentionPlan(), a.retentionApply(), a.retentionLast())
}

func (a *app) retentionPlan() *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:   "plan PROJECT",
		Short: "Show what a project's retention would remove",
		Long: `Show what a project's retention would remove now, and with --all what stays and
why. Nothing is changed. The plan's digest, which 'dray retention apply' wants, is
the last line.`,
		Example: `  dray retention plan hello-go
  dray retention plan hello-go --all
  dray retention plan hello-go -o name`,
		Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			p, err := cl.RetentionPlan(cmd.Context(), args[0])
			if err != nil {
				return fmt.Errorf("plan the retention of %s: %w", args[0], err)
			}
			return a.print(p, func(w *writer) { w.retentionPlan(p, all) }, func() []string { return []string{string(p.Digest)} })
		},
	}
	c.Flags().BoolVar(&all, "all", false, "what stays as well, and why")
	return c
}

func (a *app) retentionApply() *cobra.Command {
	var plan string
	var detach bool
	c := &cobra.Command{
		Use:   "apply PROJECT --plan DIGEST",
		Short: "Remove what a retention plan says",
		Long: `Remove what a retention plan says. The plan is the one that 'dray retention plan'
showed, by its digest: if it would remove anything else by now, nothing is removed
and the command fails with a conflict.

What somebody works with by then, or put a tag on, is skipped and told. The
command waits for the end unless --detach is given; the work goes on without it.`,
		Example: `  dray retention apply hello-go --plan sha256:9c1e…`,
		Args:    exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := pipeline.ParseDigest(plan); err != nil {
				return usage("--plan: %w", err)
			}
			cl, err := a.client()
			if err != nil {
				return err
			}
			run, err := cl.ApplyRetention(cmd.Context(), args[0], pipeline.Digest(plan))
			if err != nil {
				return err
			}
			for id := run.ID; run.FinishedAt == nil && !detach; {
				if err := pause(cmd.Context(), 500*time.Millisecond); err != nil {
					return err
				}
				if run, err = cl.Retention(cmd.Context(), args[0]); err != nil {
					return fmt.Errorf("retention of %s: %w", args[0], err)
				}
				if run.ID != id {
					return fmt.Errorf("retention of %s: %s has ended, and %s came after it; 'dray retention last' shows that", args[0], id, run.ID)
				}
			}
			return a.printRetention(run)
		},
	}
	c.Flags().StringVar(&plan, "plan", "", "digest of the plan (required)")
	c.Flags().BoolVar(&detach, "detach", false, "do not wait for the end")
	return c
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (a *app) retentionLast() *cobra.Command {
	return &cobra.Command{
		Use:     "last PROJECT",
		Short:   "Show what became of the retention plan that was applied last",
		Example: `  dray retention last hello-go`,
		Args:    exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			run, err := cl.Retention(cmd.Context(), args[0])
			if err != nil {
				return fmt.Errorf("retention of %s: %w", args[0], err)
			}
			return a.printRetention(run)
		},
	}
}

func (a *app) printRetention(run pipeline.RetentionRun) error {
	return a.print(run, func(w *writer) { w.retentionRun(run) }, func() []string { return []string{run.ID} })
}

// removalName is the image or the tag that a removal is about.
func removalName(r pipeline.Removal) string {
	if r.Kind == pipeline.RemoveImage {
		return r.Image.Digest.Short()
	}
	return strings.Join(r.Tags, ", ")
}

func placeOf(environment string) string {
	if environment == "" {
		return "builds"
	}
	return environment
}

func (w *writer) retentionPlan(p pipeline.RetentionPlan, all bool) {
	switch {
	case p.Retention == nil:
		w.printf("Project %s has no retention: everything is kept.\n", p.Project)
	case p.Empty():
		w.printf("There is nothing to remove.\n")
	}
	if len(p.Remove) > 0 {
		var rows [][]cell
		for _, r := range p.Remove {
			rows = append(rows, []cell{text(r.Kind), text(placeOf(r.Environment)), text(removalName(r)), text(fmt.Sprint(len(r.Manifests))), text(size(r.Bytes)), text(r.Reason)})
		}
		w.table([]string{"REMOVE", "FROM", "WHAT", "MANIFESTS", "FREES", "WHY"}, rows)
		w.printf("\n%s in all, once the registries have collected their garbage.\n", size(p.Bytes))
	}
	if n := len(p.Logs); n > 0 {
		w.printf("Build logs and steps of %s, from %s to %s.\n", plural(n, "run", "runs"), p.Logs[0].Run, p.Logs[n-1].Run)
	}
	if p.More {
		w.printf("There is more: make another plan when this one was applied.\n")
	}
	if all && len(p.Keep) > 0 {
		var rows [][]cell
		for _, k := range p.Keep {
			what := k.Tag
			if what == "" {
				what = k.Image.Digest.Short()
			}
			rows = append(rows, []cell{text(placeOf(k.Environment)), text(what), text(k.Reason)})
		}
		w.printf("\n")
		w.table([]string{"KEEP IN", "WHAT", "WHY"}, rows)
	}
	if !p.Empty() {
		w.printf("\nPlan %s\n", p.Digest)
	}
}

func (w *writer) retentionRun(r pipeline.RetentionRun) {
	state := cell{fmt.Sprintf("%d of %d done", r.Done, r.Planned), ""}
	if r.FinishedAt != nil {
		state = cell{"ended " + when(*r.FinishedAt), green}
	}
	w.facts("Retention", r.ID, "Project", r.Project, "Plan", string(r.Plan), "By", r.RequestedBy, "State", state)
	if r.Error != "" {
		w.facts("Goes no further", cell{clean(r.Error), red})
	}
	if len(r.Outcomes) > 0 {
		var rows [][]cell
		for _, o := range r.Outcomes {
			outcome := cell{o.Outcome, green}
			if o.Outcome != pipeline.PruneRemoved {
				outcome.color = red
			}
			rows = append(rows, []cell{outcome, text(o.Kind), text(placeOf(o.Environment)), text(removalName(o.Removal)), text(o.Detail)})
		}
		w.table([]string{"OUTCOME", "KIND", "IN", "WHAT", "WHY"}, rows)
	}
	if r.LogRuns > 0 {
		w.printf("Build logs and steps of %s: %s.\n", plural(r.LogRuns, "run", "runs"), plural(int(r.LogEvents), "event", "events"))
	}
}
