package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/dray-project/dray/api/client"
	"github.com/dray-project/dray/pipeline"
)

// promoting are the flags that promote and rollback share.
type promoting struct {
	wait    bool
	timeout time.Duration
	r       pipeline.PromotionRequest
}

func (p *promoting) flags(c *cobra.Command) {
	f := c.Flags()
	f.BoolVar(&p.wait, "wait", false, "wait for the outcome; what it has to wait for is shown")
	f.DurationVar(&p.timeout, "timeout", 0, "with --wait: give up after this long (0: never); the promotion goes on")
	f.StringVar(&p.r.Note, "note", "", "what it is for; kept with it")
	f.StringVar(&p.r.BreakGlass, "break-glass", "", "`reason` for an emergency, which overrides what the environment lets it; on record for ever")
	f.StringVar(&p.r.IdempotencyKey, "idempotency-key", "", "a name for this request: the same key again gives the same promotion, not a second one")
}

func (p *promoting) check(cmd *cobra.Command) error {
	if cmd.Flags().Changed("timeout") && !p.wait {
		return usage("--timeout says how long to --wait: give both")
	}
	if cmd.Flags().Changed("break-glass") && strings.TrimSpace(p.r.BreakGlass) == "" {
		return usage("--break-glass: an emergency needs a reason")
	}
	return nil
}

// imageArg takes a digest, or repository@digest, as the server wants it.
func imageArg(s string) error {
	if _, err := pipeline.ParseDigest(s); err != nil {
		if _, err := pipeline.ParseImage(s); err != nil {
			return &usageError{err}
		}
	}
	return nil
}

func (a *app) promoteCommand() *cobra.Command {
	var p promoting
	var dryRun bool
	c := &cobra.Command{
		Use:   "promote IMAGE ENVIRONMENT",
		Short: "Bring an image into an environment",
		Long: `Bring an image into an environment. IMAGE is a digest, or repository@digest;
a tag is refused, because it does not name an image.

The server verifies the image where it is, asks the environment's gate, copies
it with everything attached to it, verifies it there, and then moves the tags.
When the gate says "not yet", the promotion waits for people or for time.

With --wait, all this goes to standard error as it happens, and the exit code is
the outcome: 0 succeeded, 1 failed, called off or superseded, 3 refused, 5 still
going or waiting after --timeout.

With --dry-run nothing is promoted: the answer is what the gate says now, rule
by rule, and what would change. The exit code is 3 if it refuses, and 0 if it
passes or would have to wait.`,
		Example: `  dray promote sha256:2f1d0b7c… prod --dry-run
  dray promote sha256:2f1d0b7c… prod --wait --timeout 10m
  dray promote sha256:2f1d0b7c… prod --note "the fix for the outage" --break-glass "INC-42: prod is down"
  dray promote dev.example/acme/hello-go@sha256:2f1d0b7c… staging --idempotency-key release-1.0.0`,
		Args: exactly(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := p.check(cmd); err != nil {
				return err
			}
			if dryRun && p.wait {
				return usage("--dry-run promotes nothing, so there is nothing to --wait for")
			}
			p.r.Image, p.r.Environment = args[0], args[1]
			if err := imageArg(p.r.Image); err != nil {
				return err
			}
			cl, err := a.client()
			if err != nil {
				return err
			}
			if dryRun {
				e, err := cl.DryRun(cmd.Context(), p.r)
				if err != nil {
					return fmt.Errorf("dry run: %w", err)
				}
				return a.printEligibility(e)
			}
			return a.ask(cmd.Context(), cl, &p, cl.Promote)
		},
	}
	p.flags(c)
	c.Flags().BoolVar(&dryRun, "dry-run", false, "show what the gate says and what would change, and promote nothing")
	c.Flags().StringVarP(&p.r.Project, "project", "p", "", "needed only when several projects hold the digest")
	return c
}

func (a *app) rollbackCommand() *cobra.Command {
	var p promoting
	c := &cobra.Command{
		Use:   "rollback PROJECT ENVIRONMENT",
		Short: "Bring an environment back to an image that it had before",
		Long: `Bring an environment back to the image that it had before what it has now, or
with --to to another one that it had. A rollback is a promotion: it is gated by
the environment's rule for rollbacks, copied, verified and recorded, and
"dray promotion" shows it. Floating tags move back with it.

--wait and the exit code are as for "dray promote".`,
		Example: `  dray rollback hello-go prod --wait
  dray rollback hello-go prod --to sha256:2f1d0b7c… --note "1.4.0 leaks memory"`,
		Args: exactly(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := p.check(cmd); err != nil {
				return err
			}
			p.r.Project, p.r.Environment, p.r.Action = args[0], args[1], pipeline.ActionRollback
			if cmd.Flags().Changed("to") {
				if err := imageArg(p.r.Image); err != nil {
					return err
				}
			}
			cl, err := a.client()
			if err != nil {
				return err
			}
			return a.ask(cmd.Context(), cl, &p, cl.Rollback)
		},
	}
	p.flags(c)
	c.Flags().StringVar(&p.r.Image, "to", "", "`digest` to go back to (default: what was there before what is there now)")
	return c
}

// ask sends the request, and if that is wanted follows it to its end.
func (a *app) ask(ctx context.Context, cl *client.Client, p *promoting, send func(context.Context, pipeline.PromotionRequest) (pipeline.Promotion, error)) error {
	ctx, cancel := deadline(ctx, p.timeout)
	defer cancel()
	queued, err := send(ctx, p.r)
	if err != nil {
		return cause(ctx, err)
	}
	if !p.wait {
		fmt.Fprintf(a.stderr, "Follow it with: dray promotion show %s\n", clean(string(queued.ID)))
		return a.printPromotion(client.Promotion{PromotionDetail: pipeline.PromotionDetail{Promotion: queued}, Approvals: []client.Approval{}})
	}
	fmt.Fprintf(a.stderr, "promotion %s\n", clean(string(queued.ID)))
	said := ""
	err = a.follow(ctx, cl.Follow(ctx, queued.ID.Job(), 0), func(e pipeline.JobEvent) {
		now := a.waitsFor(ctx, cl, queued.ID, e)
		if now != said { // it looks again now and then, and finds the same
			fmt.Fprint(a.stderr, now)
		}
		said = now
	})
	if errors.Is(err, errTimeout) {
		return fmt.Errorf("promotion %s: %w; it goes on: dray promotion show %s", queued.ID, err, queued.ID)
	}
	if err != nil {
		return fmt.Errorf("promotion %s: %w", queued.ID, err)
	}
	done, err := cl.Promotion(ctx, queued.ID)
	if err != nil {
		return fmt.Errorf("promotion %s: %w", queued.ID, cause(ctx, err))
	}
	if err := a.printPromotion(done); err != nil {
		return err
	}
	return ending("promotion "+string(done.ID), done.State, done.Reason)
}

// waitsFor says what a promotion waits for, a line for each rule.
func (a *app) waitsFor(ctx context.Context, cl *client.Client, id pipeline.PromotionID, e pipeline.JobEvent) string {
	w := a.writer(a.stderr)
	p, err := cl.Promotion(ctx, id)
	if err != nil || p.Decision == nil || !p.Decision.Waiting {
		w.printf("%-8s %s\n", "waiting", clean(e.Message)) // it goes on already
		return w.buf.String()
	}
	w.printf("%s\n", w.paint(stateCell("waiting")))
	w.rules(p.Decision.Rules, func(r pipeline.RuleResult) bool { return !r.Passed })
	if p.Plan != "" {
		w.printf("  whoever may approve it: dray approve %s\n", clean(string(id)))
	}
	return w.buf.String()
}

func (a *app) printPromotion(p client.Promotion) error {
	return a.print(p, func(w *writer) { w.promotion(p) }, func() []string { return []string{string(p.ID)} })
}

func (a *app) printEligibility(e pipeline.Eligibility) error {
	err := a.print(e, func(w *writer) { w.eligibility(e) }, func() []string { return []string{string(e.Plan)} })
	if err != nil || e.Decision.Passed || e.Decision.Waiting {
		return err
	}
	return fmt.Errorf("%s would be %w: %s", e.Environment, pipeline.ErrRefused, e.Decision.Reason())
}

func (a *app) diffCommand() *cobra.Command {
	q := client.EligibilityQuery{}
	c := &cobra.Command{
		Use:   "diff IMAGE ENVIRONMENT",
		Short: "Show what promoting an image would change in an environment",
		Long: `Show what promoting an image would change: commits, packages, findings fixed and
brought in, licences, bases and size, against what the environment has now. With
-o name, only the digest of the plan is printed: what an approval is for.`,
		Example: `  dray diff sha256:2f1d0b7c… prod
  dray diff sha256:2f1d0b7c… prod -o json | jq '.findingsAdded'`,
		Args: exactly(2),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if q.Image, err = digestArg(args[0]); err != nil {
				return err
			}
			q.Environment = args[1]
			cl, err := a.client()
			if err != nil {
				return err
			}
			d, err := cl.Diff(cmd.Context(), q)
			if err != nil {
				return fmt.Errorf("diff: %w", err)
			}
			return a.print(d, func(w *writer) { w.printf("%s", clean(d.Text(0))) }, func() []string { return []string{string(d.Plan())} })
		},
	}
	projectFlag(c, &q.Project)
	return c
}

func (a *app) promotionCommand() *cobra.Command {
	return newGroup("promotion", "Look at promotions, and call them off", a.promotionList(), a.promotionShow(), a.promotionCancel())
}

func (a *app) promotionList() *cobra.Command {
	var q client.PromotionsQuery
	var limit int
	var state string
	c := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List promotions, newest first",
		Example: `  dray promotion list --project hello-go
  dray promotion list --environment prod --state waiting`,
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			q.State = pipeline.State(state)
			promotions, err := pages(limit, func(limit int, cursor string) (client.List[pipeline.Promotion], error) {
				q.Limit, q.Cursor = limit, cursor
				return cl.Promotions(cmd.Context(), q)
			})
			if err != nil {
				return fmt.Errorf("list promotions: %w", err)
			}
			return a.print(promotions, func(w *writer) { w.promotions(promotions) }, func() []string {
				return names(promotions, func(p pipeline.Promotion) string { return string(p.ID) })
			})
		},
	}
	states := []string{"queued", "running", "waiting", "succeeded", "failed", "refused", "cancelled", "superseded"}
	c.Flags().StringVarP(&q.Project, "project", "p", "", "only this project's")
	c.Flags().StringVarP(&q.Environment, "environment", "e", "", "only those into this environment")
	c.Flags().StringVar(&state, "state", "", "only promotions in this state: "+strings.Join(states, ", "))
	limitFlag(c, &limit)
	completeWith(c, "state", states...)
	return c
}

func (a *app) promotionShow() *cobra.Command {
	return &cobra.Command{
		Use:               "show PROMOTION",
		Short:             "Show a promotion: its stages, the gate's decision with reasons, approvals, what would change, what was copied",
		Example:           `  dray promotion show prm_06f3n8w2c41r0kd7t9qh`,
		Args:              exactly(1),
		ValidArgsFunction: a.completePromotions(""),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			p, err := cl.Promotion(cmd.Context(), pipeline.PromotionID(args[0]))
			if err != nil {
				return fmt.Errorf("show promotion %s: %w", args[0], err)
			}
			return a.printPromotion(p)
		},
	}
}

func (a *app) promotionCancel() *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use:               "cancel PROMOTION",
		Short:             "Call off a promotion that has not entered its environment yet",
		Example:           `  dray promotion cancel prm_06f3n8w2c41r0kd7t9qh --reason "1.4.1 comes today"`,
		Args:              exactly(1),
		ValidArgsFunction: a.completePromotions(pipeline.StateWaiting),
		RunE: func(cmd *cobra.Command, args []string) error {
			if strings.TrimSpace(reason) == "" {
				return usage("say why: --reason")
			}
			cl, err := a.client()
			if err != nil {
				return err
			}
			p, err := cl.CancelPromotion(cmd.Context(), pipeline.PromotionID(args[0]), reason)
			if err != nil {
				return err
			}
			return a.printPromotion(p)
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why it is called off (required)")
	return c
}

// completePromotions offers the newest promotions, in a state if one is given.
func (a *app) completePromotions(state pipeline.State) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		cl, err := a.client()
		if err != nil || len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), 2*time.Second)
		defer cancel()
		list, err := cl.Promotions(ctx, client.PromotionsQuery{State: state, PageQuery: client.PageQuery{Limit: 20}})
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return names(list.Items, func(p pipeline.Promotion) string {
			return string(p.ID) + "\t" + clean(p.Project+" to "+p.Environment+" "+string(p.State))
		}), cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
	}
}
