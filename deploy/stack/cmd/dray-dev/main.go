//go:build linux

// Command dray-dev runs the parts of the development stack that are not
// programs of their own, and starts and stops the stack.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

const usage = `usage: dray-dev COMMAND [flags]

  up          start servers; prints their addresses as shell assignments
  down        stop everything that was started in a directory
  status      list what was started in a directory
  registry    serve an OCI registry from a directory
  git         serve bare repositories over HTTP, and send push events
  push-event  send push events; the hook of the repositories calls it

dray-dev COMMAND -h lists the flags.
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	switch {
	case err == nil:
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "dray-dev:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		fmt.Fprint(stderr, usage)
		return flag.ErrHelp
	}
	flags := flag.NewFlagSet("dray-dev "+args[0], flag.ContinueOnError)
	flags.SetOutput(stderr)
	switch args[0] {
	case "up":
		return up(ctx, flags, args[1:], stdout, stderr)
	case "down":
		return down(ctx, flags, args[1:])
	case "status":
		return status(flags, args[1:], stdout)
	case "registry":
		return serveRegistry(ctx, flags, args[1:], stderr)
	case "git":
		return serveGit(ctx, flags, args[1:], stderr)
	case "push-event":
		return pushEvents(ctx, flags, args[1:], stdin, stdout)
	}
	fmt.Fprint(stderr, usage)
	return fmt.Errorf("there is no command %q", args[0])
}

// parse parses the flags and sees to it that the named ones are given.
func parse(flags *flag.FlagSet, args []string, required ...string) error {
	if err := flags.Parse(args); err != nil {
		return flag.ErrHelp // printed already
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("%s takes no arguments: %q", flags.Name(), flags.Args())
	}
	for _, name := range required {
		if flags.Lookup(name).Value.String() == "" {
			return fmt.Errorf("%s: --%s is not given: want %s", flags.Name(), name, flags.Lookup(name).Usage)
		}
	}
	return nil
}
