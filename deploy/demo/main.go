//go:build linux

// Command dray-demo shows Dray at work on real parts, and proves each step of
// what it shows. It leaves everything running.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/dray-project/dray/deploy/site"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("dray-demo", flag.ContinueOnError)
	flags.SetOutput(stderr)
	dir := flags.String("dir", ".demo", "directory for all state")
	bin := flags.String("bin", "bin", "directory of the programs")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Minute)
	defer cancel()
	out := newPrinter(stdout, getenv)
	s := &story{out: out, config: site.Config{Dir: *dir, Bin: *bin, Log: out.chatter()}}
	for i, chapter := range s.chapters() {
		out.title(i+1, chapter.title)
		if err := chapter.play(ctx); err != nil {
			fmt.Fprintf(stderr, "\ndray-demo: step %d, %q, could not be proved: %v\n"+
				"The logs are in %s/log; \"make down\" stops what was started.\n", i+1, chapter.title, err, *dir)
			return 1
		}
	}
	out.after(s)
	return 0
}
