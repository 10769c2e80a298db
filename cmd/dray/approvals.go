package main

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/dray-project/dray/api/client"
	"github.com/dray-project/dray/pipeline"
)

func (a *app) approveCommand() *cobra.Command {
	var plan, comment string
	var yes bool
	c := &cobra.Command{
		Use:   "approve PROMOTION",
		Short: "Approve a promotion that waits for approvals",
		Long: `Approve a promotion that waits for approvals. What it would change and what its
gate says is shown first, and the approval is for exactly that: when the plan
changes before the approval arrives, it does not count and the command fails.

On a terminal it asks. Elsewhere, give --yes to approve what is shown, or --plan
with the digest of the plan that was looked at before.`,
		Example: `  dray approve prm_06f3n8w2c41r0kd7t9qh
  dray approve prm_06f3n8w2c41r0kd7t9qh --plan sha256:9c1e… --comment "tested by QA"`,
		Args:              exactly(1),
		ValidArgsFunction: a.completePromotions(pipeline.StateWaiting),
		RunE: func(cmd *cobra.Command, args []string) error {
			word := client.Word{Plan: pipeline.Digest(plan), Comment: comment}
			if plan != "" {
				if _, err := pipeline.ParseDigest(plan); err != nil {
					return usage("--plan: %w", err)
				}
			} else if !yes && !a.interactive() {
				return usage("there is nobody to ask: give --yes to approve what is shown, or --plan with the digest of the plan that was looked at")
			}
			cl, err := a.client()
			if err != nil {
				return err
			}
			p, err := cl.Promotion(cmd.Context(), pipeline.PromotionID(args[0]))
			if err != nil {
				return fmt.Errorf("approve promotion %s: %w", args[0], err)
			}
			a.showPlan(p)
			if word.Plan == "" {
				if p.Plan == "" {
					return fmt.Errorf("promotion %s is %s, and its gate was not asked yet: there is nothing to approve: %w", p.ID, p.State, pipeline.ErrConflict)
				}
				if !yes && !a.confirm(fmt.Sprintf("Approve %s into %s?", p.Image.Digest.Short(), p.Environment)) {
					return fmt.Errorf("promotion %s was not approved", p.ID)
				}
				word.Plan = p.Plan
			}
			return a.say(cmd, cl, p.ID, word)
		},
	}
	c.Flags().StringVar(&plan, "plan", "", "`digest` of the plan that was looked at; nothing is asked")
	c.Flags().BoolVarP(&yes, "yes", "y", false, "approve the plan that is shown without asking")
	c.Flags().StringVar(&comment, "comment", "", "kept with the approval")
	return c
}

func (a *app) rejectCommand() *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use:               "reject PROMOTION",
		Short:             "Reject a promotion that waits for approvals, which ends it",
		Example:           `  dray reject prm_06f3n8w2c41r0kd7t9qh --reason "the migration is not ready"`,
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
			return a.say(cmd, cl, pipeline.PromotionID(args[0]), client.Word{Reject: true, Comment: reason})
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why (required); kept with the rejection")
	return c
}

func (a *app) say(cmd *cobra.Command, cl *client.Client, id pipeline.PromotionID, word client.Word) error {
	p, err := cl.Approve(cmd.Context(), id, word)
	if err != nil {
		return err
	}
	return a.print(p, func(w *writer) {
		w.facts("Promotion", string(p.ID), "State", stateCell(string(p.State)), "Plan", string(word.Plan))
		w.approvals(p.Approvals)
	}, func() []string { return []string{string(p.ID)} })
}

// showPlan shows on standard error what an approval would be for.
func (a *app) showPlan(p client.Promotion) {
	w := a.writer(a.stderr)
	w.facts("Promotion", string(p.ID), "Project", p.Project, "Image", p.Image.String(), "Environment", p.Environment, "By", p.RequestedBy,
		"Note", p.Note, "Break glass", cell{clean(p.BreakGlass), red}, "Plan", string(p.Plan))
	if p.Diff != nil {
		w.printf("\n%s", clean(p.Diff.Text(0)))
	}
	if p.Decision != nil {
		w.decision(*p.Decision)
	}
	w.approvals(p.Approvals)
	fmt.Fprint(a.stderr, w.buf.String())
}

// interactive reports whether there is somebody to ask.
func (a *app) interactive() bool {
	f, ok := a.stdin.(*os.File)
	return ok && terminal(f) && terminal(a.stderr)
}

// confirm asks; anything but yes is no.
func (a *app) confirm(question string) bool {
	fmt.Fprintf(a.stderr, "\n%s [y/N] ", clean(question))
	answer, err := bufio.NewReader(a.stdin).ReadString('\n')
	if err != nil && answer == "" {
		return false
	}
	answer = strings.ToLower(strings.TrimSpace(answer))
	return answer == "y" || answer == "yes"
}
