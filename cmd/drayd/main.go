// Command drayd is the service: it takes webhooks, works on runs and
// promotions, and answers the API.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// version is set when it is built.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr))
}

// run is the whole program: 0 when it ended well, 1 after an error, 2 when it
// was called wrongly.
func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	started := false
	root := commands(getenv, stdout, stderr, &started)
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(stderr, "drayd:", strings.ReplaceAll(err.Error(), "\n", "\n  "))
		if !started {
			return 2
		}
		return 1
	}
	return 0
}

// commands builds the tree. started is set once the arguments were understood.
func commands(getenv func(string) string, stdout, stderr io.Writer, started *bool) *cobra.Command {
	var config string
	settings := func(cmd *cobra.Command) (*Settings, error) {
		flags := map[string]string{}
		cmd.Flags().Visit(func(f *pflag.Flag) {
			if f.Annotations["setting"] != nil {
				flags[f.Name] = f.Value.String()
			}
		})
		if config == "" {
			config = getenv("DRAY_CONFIG")
		}
		s, err := LoadSettings(config, getenv, flags)
		if err != nil {
			return nil, err
		}
		return s, nil
	}
	valid := func(cmd *cobra.Command) (*Settings, error) {
		s, err := settings(cmd)
		if err == nil {
			err = s.Validate()
		}
		return s, err
	}

	root := &cobra.Command{
		Use:   "drayd",
		Short: "Build, scan, sign, record and promote container images",
		Long: "drayd is Dray's service. It takes webhooks from a forge, builds images with BuildKit,\n" +
			"scans them with Trivy, signs them with cosign, tags them, records how they came to be in\n" +
			"PostgreSQL, and promotes them from registry to registry.",
		SilenceUsage: true, SilenceErrors: true,
		PersistentPreRun: func(*cobra.Command, []string) { *started = true },
	}
	root.PersistentFlags().StringVar(&config, "config", "", "settings file in YAML (DRAY_CONFIG)")
	for _, l := range settingLeaves() {
		root.PersistentFlags().String(l.Path, "", l.Help)
		f := root.PersistentFlags().Lookup(l.Path)
		f.Annotations = map[string][]string{"setting": nil}
		f.Annotations["setting"] = []string{l.Env}
		f.Hidden = true
	}

	root.AddCommand(
		&cobra.Command{
			Use: "serve", Short: "Serve the API and work on runs and promotions", Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				s, err := valid(cmd)
				if err != nil {
					return err
				}
				return serve(cmd.Context(), s, stderr)
			},
		},
		&cobra.Command{
			Use: "check", Short: "Try every setting and connection, and say what is wrong", Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				s, err := settings(cmd)
				if err != nil {
					return err
				}
				return check(cmd.Context(), s, stdout)
			},
		},
		&cobra.Command{
			Use: "migrate", Short: "Bring the database schema up to date", Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				s, err := settings(cmd)
				if err != nil {
					return err
				}
				return migrate(cmd.Context(), s, stdout)
			},
		},
		&cobra.Command{
			Use: "settings", Short: "Print the reference page of all settings", Args: cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error { return WriteReference(stdout) },
		},
		&cobra.Command{
			Use: "version", Short: "Print the version", Args: cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error {
				_, err := fmt.Fprintln(stdout, "drayd", version)
				return err
			},
		},
		keyCommand(settings, stdout, stderr, getenv),
		tokenCommand(settings, stdout, stderr),
	)
	return root
}
