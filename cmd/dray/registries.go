package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/dray-project/dray/api/client"
	"github.com/dray-project/dray/pipeline"
)

func (a *app) driftCommand() *cobra.Command {
	return newGroup("drift", "Look at where registries are not as the record says", a.driftList())
}

func (a *app) driftList() *cobra.Command {
	var q client.DriftQuery
	var limit int
	c := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List where registries are not as the record says, newest first",
		Example: `  dray drift list
  dray drift list --project hello-go --all`,
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			list, err := pages(limit, func(limit int, cursor string) (client.List[pipeline.Drift], error) {
				q.Limit, q.Cursor = limit, cursor
				return cl.Drift(cmd.Context(), q)
			})
			if err != nil {
				return fmt.Errorf("list drift: %w", err)
			}
			return a.print(list, func(w *writer) { w.drifts(list) }, func() []string {
				return names(list, func(d pipeline.Drift) string { return d.ID })
			})
		},
	}
	c.Flags().StringVarP(&q.Project, "project", "p", "", "only this project's")
	c.Flags().BoolVar(&q.All, "all", false, "what was repaired or is right again as well")
	c.Flags().IntVar(&limit, "limit", 100, "how many at most")
	return c
}

func (a *app) registryCommand() *cobra.Command {
	return newGroup("registry", "Look at what registries can do", a.registryList(), a.registryProbe())
}

func (a *app) registryList() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List what registries can do, as it was last tried",
		Example: `  dray registry list`,
		Args:    exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			list, err := pages(1000, func(limit int, cursor string) (client.List[pipeline.RegistryProbe], error) {
				return cl.Registries(cmd.Context(), client.PageQuery{Limit: limit, Cursor: cursor})
			})
			if err != nil {
				return fmt.Errorf("list registries: %w", err)
			}
			return a.print(list, func(w *writer) { w.registries(list) }, func() []string {
				return names(list, func(r pipeline.RegistryProbe) string { return r.Host })
			})
		},
	}
}

func (a *app) registryProbe() *cobra.Command {
	return &cobra.Command{
		Use:   "probe HOST",
		Short: "Try now what a registry can do",
		Long: `Try now what a registry can do. The server writes a few small things to it and
removes them again. HOST is one that the server's settings name.`,
		Example: `  dray registry probe registry.example:5000`,
		Args:    exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			p, err := cl.ProbeRegistry(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			err = a.print(p, func(w *writer) { w.registries([]pipeline.RegistryProbe{p}) }, func() []string { return []string{p.Host} })
			if err == nil && p.Error != "" {
				err = fmt.Errorf("probe registry %s: %s", p.Host, p.Error)
			}
			return err
		},
	}
}
