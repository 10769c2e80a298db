package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/dray-project/dray/api/client"
	"github.com/dray-project/dray/pipeline"
)

func (a *app) promoteCommand() *cobra.Command {
	var wait bool
	var timeout time.Duration
	var r pipeline.PromotionRequest
	c := &cobra.Command{
		Use:   "promote IMAGE ENVIRONMENT",
		Short: "Bring an image into an environment",
		Long: `Bring an image into an environment. IMAGE is a digest, or repository@digest;
a tag is refused, because it does not name an image.

The server verifies the image where it is, asks the environment's gate, copies
it with everything attached to it, verifies it there, and then moves the tags.
With --wait, these stages go to standard error as they happen, and the exit
code is the outcome: 0 succeeded, 1 failed, 3 refused, 5 still going after
--timeout.`,
		Example: `  dray promote sha256:2f1d0b7c… prod
  dray promote sha256:2f1d0b7c… prod --wait --timeout 10m
  dray promote dev.example/acme/hello-go@sha256:2f1d0b7c… staging --idempotency-key release-1.0.0`,
		Args: exactly(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("timeout") && !wait {
				return usage("--timeout says how long to --wait: give both")
			}
			r.Image, r.Environment = args[0], args[1]
			if _, err := pipeline.ParseDigest(r.Image); err != nil {
				if _, err := pipeline.ParseImage(r.Image); err != nil {
					return &usageError{err}
				}
			}
			cl, err := a.client()
			if err != nil {
				return err
			}
			ctx, cancel := deadline(cmd.Context(), timeout)
			defer cancel()
			queued, err := cl.Promote(ctx, r)
			if err != nil {
				return cause(ctx, err)
			}
			if !wait {
				fmt.Fprintf(a.stderr, "Follow it with: dray promotion show %s\n", queued.ID)
				return a.printPromotion(client.Promotion{PromotionDetail: pipeline.PromotionDetail{Promotion: queued}})
			}
			fmt.Fprintf(a.stderr, "promotion %s\n", queued.ID)
			err = a.follow(ctx, cl.Follow(ctx, queued.ID.Job(), 0))
			if errors.Is(err, errTimeout) {
				return fmt.Errorf("promotion %s: %w; it goes on: dray promotion show %s", queued.ID, err, queued.ID)
			}
			if err != nil {
				return fmt.Errorf("promotion %s: %w", queued.ID, err)
			}
			p, err := cl.Promotion(ctx, queued.ID)
			if err != nil {
				return fmt.Errorf("promotion %s: %w", queued.ID, cause(ctx, err))
			}
			if err := a.printPromotion(p); err != nil {
				return err
			}
			return ending("promotion "+string(p.ID), p.State, p.Reason)
		},
	}
	c.Flags().BoolVar(&wait, "wait", false, "wait for the outcome")
	c.Flags().DurationVar(&timeout, "timeout", 0, "with --wait: give up after this long (0: never); the promotion goes on")
	c.Flags().StringVarP(&r.Project, "project", "p", "", "needed only when several projects hold the digest")
	c.Flags().StringVar(&r.IdempotencyKey, "idempotency-key", "", "a name for this request: the same key again gives the same promotion, not a second one")
	return c
}

func (a *app) printPromotion(p client.Promotion) error {
	return a.print(p, func(w *writer) { w.promotion(p) }, func() []string { return []string{string(p.ID)} })
}

func (a *app) promotionCommand() *cobra.Command {
	return newGroup("promotion", "Look at promotions", a.promotionList(), a.promotionShow())
}

func (a *app) promotionList() *cobra.Command {
	var q client.PromotionsQuery
	var limit int
	c := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List promotions, newest first",
		Example: `  dray promotion list --project hello-go`,
		Args:    exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
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
	c.Flags().StringVarP(&q.Project, "project", "p", "", "only this project's")
	limitFlag(c, &limit)
	return c
}

func (a *app) promotionShow() *cobra.Command {
	return &cobra.Command{
		Use:     "show PROMOTION",
		Short:   "Show a promotion: its stages, the gate's decision with reasons, what was copied",
		Example: `  dray promotion show prm_06f3n8w2c41r0kd7t9qh`,
		Args:    exactly(1),
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
