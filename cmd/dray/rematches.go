package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/dray-project/dray/api/client"
	"github.com/dray-project/dray/pipeline"
)

func (a *app) rematchCommand() *cobra.Command {
	return newGroup("rematch", "Look at how recorded images were matched with new vulnerability databases", a.rematchList())
}

func (a *app) rematchList() *cobra.Command {
	var limit int
	c := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List passes over the recorded images, newest first",
		Long: "When a new vulnerability database arrives, drayd matches every recorded image with it, without\n" +
			"reading the images. A pass says which database it was, how many images it was about, and for how\n" +
			"many environments the answer of the gate became another.",
		Example: "  dray rematch list\n  dray rematch list --limit 5 -o json",
		Args:    exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			list, err := pages(limit, func(limit int, cursor string) (client.List[pipeline.RematchPass], error) {
				return cl.Rematches(cmd.Context(), client.PageQuery{Limit: limit, Cursor: cursor})
			})
			if err != nil {
				return fmt.Errorf("list passes of re-matching: %w", err)
			}
			return a.print(list, func(w *writer) { w.rematches(list) }, func() []string {
				return names(list, func(p pipeline.RematchPass) string { return string(p.ID) })
			})
		},
	}
	c.Flags().IntVar(&limit, "limit", 20, "how many at most")
	return c
}

func (w *writer) rematches(list []pipeline.RematchPass) {
	if len(list) == 0 {
		w.printf("No pass yet: no newer vulnerability database has arrived since the images were scanned.\n")
		return
	}
	var rows [][]cell
	for _, p := range list {
		took := cell{"running", yellow}
		if p.FinishedAt != nil {
			took = text(p.FinishedAt.Sub(p.StartedAt).Round(100 * time.Millisecond).String())
		}
		refused, failed := text(fmt.Sprint(p.Refused)), text(fmt.Sprint(p.Failed))
		if p.Refused > 0 {
			refused.color = red
		}
		if p.Failed > 0 {
			failed.color = yellow
		}
		rows = append(rows, []cell{text(string(p.ID)), text(p.Database.Digest.Short()), text(w.age(p.StartedAt)), took,
			text(fmt.Sprint(p.Images)), text(fmt.Sprint(p.Changed)), text(fmt.Sprintf("+%d -%d", p.Appeared, p.Gone)), refused, failed})
	}
	w.table([]string{"PASS", "DATABASE", "STARTED", "TOOK", "IMAGES", "CHANGED", "FINDINGS", "REFUSED", "FAILED"}, rows)
}
