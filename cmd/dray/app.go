package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/dray-project/dray/api/client"
	"github.com/dray-project/dray/pipeline"
)

// The exit codes, which scripts may rely on.
const (
	exitDone        = 0
	exitError       = 1
	exitUsage       = 2
	exitRefused     = 3
	exitNotFound    = 4
	exitTimeout     = 5
	exitUnverified  = 6
	exitInterrupted = 130
)

const exitHelp = `Exit codes:
  0    done
  1    an error, or a run or promotion that failed
  2    usage: the command line, or a value in it, cannot be accepted
  3    refused by policy
  4    not found
  5    timed out
  6    verification failed
  130  interrupted`

// usageError is a command line that cannot be accepted.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usage(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// errTimeout says that --timeout is over.
var errTimeout = errors.New("timed out")

// errFailed is a run or promotion that ended as failed.
var errFailed = errors.New("failed")

// app is what the commands share.
type app struct {
	getenv func(string) string
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
	now    func() time.Time

	url       string
	tokenFile string
	output    string
	noColor   bool
}

// run runs one command line and returns the exit code.
func run(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{getenv: getenv, stdin: stdin, stdout: stdout, stderr: stderr, now: time.Now}
	root := a.root()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitDone
	}
	if ctx.Err() != nil {
		fmt.Fprintln(stderr, "dray: interrupted")
		return exitInterrupted
	}
	code := exitCode(err)
	fmt.Fprintf(stderr, "dray: %s\n", clean(err.Error()))
	if hint := a.hint(err); hint != "" {
		fmt.Fprintln(stderr, hint)
	}
	var u *usageError
	if errors.As(err, &u) {
		fmt.Fprintf(stderr, "Usage: %s\nSee '%s --help'.\n", cmd.UseLine(), cmd.CommandPath())
	}
	return code
}

// exitCode is the one place that maps errors to exit codes.
func exitCode(err error) int {
	var u *usageError
	switch {
	case errors.As(err, &u):
		return exitUsage
	case errors.Is(err, errTimeout):
		return exitTimeout
	case errors.Is(err, pipeline.ErrNotFound):
		return exitNotFound
	case errors.Is(err, pipeline.ErrRefused):
		return exitRefused
	case errors.Is(err, pipeline.ErrUnverified):
		return exitUnverified
	case errors.Is(err, pipeline.ErrInvalid), errors.Is(err, pipeline.ErrAmbiguous):
		return exitUsage
	}
	return exitError
}

// hint says what to do about an error that many meet.
func (a *app) hint(err error) string {
	var p *client.Problem
	switch {
	case errors.As(err, &p) && p.Status == 401:
		if a.getenv("DRAY_TOKEN") == "" && a.tokenFile == "" {
			return "No token was sent: set DRAY_TOKEN, or give --token-file."
		}
		return "The token was not accepted: check DRAY_TOKEN or --token-file."
	case errors.As(err, &p) && p.PlanChanged():
		return "Run it again to see what it would change now."
	case errors.As(err, &p) && len(p.Projects) > 0:
		return "Give --project with one of: " + strings.Join(p.Projects, ", ")
	case errors.As(err, &p) && p.Status >= 500 && p.Instance != "":
		return "The server's log has the cause under " + p.Instance + "."
	}
	return ""
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "dray",
		Short: "Container images from commit to production, with the papers to prove it",
		Long: `dray asks a Dray server what became of commits and images, promotes images
from one environment to the next under the rules that a project set, and
verifies images without any server.

Data goes to standard output and everything else to standard error. The server
is the one that DRAY_URL names, the token is in DRAY_TOKEN.

Environment:
  DRAY_URL         address of the server, such as https://dray.example
  DRAY_TOKEN       token for it
  DRAY_PUBLIC_KEY  file with the public key that dray verify trusts
  DRAY_LOG_KEY     file with the public key of the evidence log
  NO_COLOR         when set, nothing is coloured

` + exitHelp,
		Example: `  dray run list --project hello-go
  dray run watch run_06f3n8w2c41r0kd7t9qh
  dray promote sha256:2f1d0b7c… prod --wait
  dray approve prm_06f3n8w2c41r0kd7t9qh
  dray rollback hello-go prod --wait
  dray package find golang.org/x/crypto --promoted
  dray verify prod.example/acme/hello-go@sha256:2f1d0b7c… --key cosign.pub`,
		SuggestionsMinimumDistance: 2,
		SilenceErrors:              true,
		SilenceUsage:               true,
		Args:                       cobra.ArbitraryArgs,
		RunE:                       group,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			for _, f := range formats {
				if a.output == f {
					return nil
				}
			}
			return usage("--output %q: want one of %s", a.output, strings.Join(formats, ", "))
		},
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	flags := root.PersistentFlags()
	flags.StringVar(&a.url, "url", "", "address of the server (default: $DRAY_URL)")
	flags.StringVar(&a.tokenFile, "token-file", "", "file with the token (default: the token in $DRAY_TOKEN)")
	flags.StringVarP(&a.output, "output", "o", "table", "what to print: "+strings.Join(formats, ", "))
	flags.BoolVar(&a.noColor, "no-color", false, "do not colour anything")
	completeWith(root, "output", formats...)
	root.AddCommand(a.runCommand(), a.imageCommand(), a.promoteCommand(), a.rollbackCommand(), a.diffCommand(), a.approveCommand(), a.rejectCommand(),
		a.promotionCommand(), a.projectCommand(), a.environmentCommand(), a.exceptionCommand(), a.vexCommand(), a.driftCommand(), a.rematchCommand(), a.registryCommand(), a.retentionCommand(),
		a.packageCommand(), a.logCommand(), a.auditCommand(), a.evidenceCommand(), a.verifyCommand(), a.versionCommand())
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	return root
}

// group is what a command does that only has commands below it.
func group(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		if !cmd.HasParent() {
			return cmd.Help()
		}
		cmd.SetOut(cmd.ErrOrStderr()) // there is no data to print
		return errors.Join(cmd.Help(), usage("%s needs a command", cmd.CommandPath()))
	}
	err := fmt.Sprintf("unknown command %q", args[0])
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		err += ": did you mean " + strings.Join(near, ", ") + "?"
	}
	return usage("%s", err)
}

// newGroup returns a command that only has commands below it.
func newGroup(use, short string, commands ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Args: cobra.ArbitraryArgs, RunE: group, SuggestionsMinimumDistance: 2}
	c.AddCommand(commands...)
	return c
}

// exactly demands the arguments that the usage line names.
func exactly(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := cobra.ExactArgs(n)(cmd, args); err != nil {
			return &usageError{err}
		}
		return nil
	}
}

// completeWith offers fixed values for a flag.
func completeWith(cmd *cobra.Command, flag string, values ...string) {
	err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	if err != nil {
		panic(err) // the flag was defined a line above
	}
}

// client connects to the server of the flags and the environment.
func (a *app) client() (*client.Client, error) {
	url := a.url
	if url == "" {
		url = a.getenv("DRAY_URL")
	}
	if url == "" {
		return nil, usage("no server: set DRAY_URL, or give --url")
	}
	token := a.getenv("DRAY_TOKEN")
	if a.tokenFile != "" {
		raw, err := os.ReadFile(a.tokenFile)
		if err != nil {
			return nil, fmt.Errorf("--token-file: %w", err)
		}
		token = string(raw)
	}
	c, err := client.New(client.Config{URL: url, Token: strings.TrimSpace(token), UserAgent: "dray/" + version})
	if err != nil {
		return nil, &usageError{err}
	}
	return c, nil
}

// ending turns a final state into an error, or nil if it succeeded.
func ending(what string, state pipeline.State, reason string) error {
	if reason != "" {
		reason = ": " + reason
	}
	switch state {
	case pipeline.StateSucceeded:
		return nil
	case pipeline.StateRefused:
		return fmt.Errorf("%s was %w%s", what, pipeline.ErrRefused, reason)
	case pipeline.StateCancelled, pipeline.StateSuperseded:
		return fmt.Errorf("%s was %s%s", what, state, reason)
	default:
		return fmt.Errorf("%s %w%s", what, errFailed, reason)
	}
}

// deadline bounds ctx by --timeout, so that errTimeout can be told from an
// interruption.
func deadline(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if d <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, d, fmt.Errorf("%w after %s", errTimeout, d))
}
