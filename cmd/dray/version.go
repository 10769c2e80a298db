package main

import (
	"context"
	"runtime"
	"time"

	"github.com/spf13/cobra"
)

// versions is what dray version prints.
type versions struct {
	Client string `json:"client"`
	Go     string `json:"go"`
	// Server is empty when there is none to ask.
	Server string `json:"server,omitempty"`
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Show the version of dray, and of the server if there is one to ask",
		Example: `  dray version -o json`,
		Args:    exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := versions{Client: version, Go: runtime.Version()}
			if a.url != "" || a.getenv("DRAY_URL") != "" {
				v.Server = a.serverVersion(cmd.Context())
			}
			return a.print(v, func(w *writer) { w.facts("dray", v.Client, "go", v.Go, "server", v.Server) },
				func() []string { return []string{v.Client} })
		},
	}
}

// serverVersion never fails: a server that cannot be asked is an answer too.
func (a *app) serverVersion(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	cl, err := a.client()
	if err != nil {
		return "unknown: " + err.Error()
	}
	v, err := cl.Version(ctx)
	if err != nil {
		return "unknown: " + err.Error()
	}
	return v
}
