//go:build linux

package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dray-project/dray/deploy/stack"
)

func up(ctx context.Context, flags *flag.FlagSet, args []string, stdout, stderr io.Writer) error {
	c := stack.Config{Log: stderr}
	flags.StringVar(&c.Dir, "dir", "", "the directory for all state")
	flags.StringVar(&c.Bin, "bin", "", "the directory of buildkitd, buildctl and dray-dev")
	with := flags.String("with", "", "what to start, of postgres, buildkit, registries, git, with commas")
	flags.BoolVar(&c.Volatile, "volatile", false, "do not wait for the disk; for tests")
	flags.StringVar(&c.Webhook, "webhook", "", "the URL that push events go to; needs --secret-file")
	secretFile := flags.String("secret-file", "", "the file with the secret that push events are signed with")
	if err := parse(flags, args, "dir", "bin", "with"); err != nil {
		return err
	}
	for part := range strings.SplitSeq(*with, ",") {
		switch part {
		case "postgres":
			c.Postgres = true
		case "buildkit":
			c.Buildkit = true
		case "registries":
			c.Registries = true
		case "git":
			c.Git = true
		default:
			return fmt.Errorf("up --with: there is no %q: want postgres, buildkit, registries, git", part)
		}
	}
	if c.Webhook != "" {
		secret, err := readSecret(*secretFile)
		if err != nil {
			return err
		}
		c.WebhookSecret = secret
	}
	s, err := stack.Start(ctx, c)
	if err != nil {
		return err
	}
	for _, line := range s.Env() {
		name, value, _ := strings.Cut(line, "=")
		fmt.Fprintf(stdout, "export %s='%s'\n", name, strings.ReplaceAll(value, "'", `'\''`))
	}
	return nil
}

func down(ctx context.Context, flags *flag.FlagSet, args []string) error {
	dir := flags.String("dir", "", "the directory that up was given")
	if err := parse(flags, args, "dir"); err != nil {
		return err
	}
	return stack.Stop(ctx, *dir)
}

func status(flags *flag.FlagSet, args []string, stdout io.Writer) error {
	dir := flags.String("dir", "", "the directory that up was given")
	if err := parse(flags, args, "dir"); err != nil {
		return err
	}
	all, err := stack.Processes(*dir)
	if err != nil {
		return err
	}
	if len(all) == 0 {
		fmt.Fprintln(stdout, "nothing is running")
		return nil
	}
	out := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(out, "NAME\tSTATE\tPROCESS\tSINCE\tADDRESS")
	for _, p := range all {
		state := "running"
		if !p.Running() {
			state = "dead"
		}
		fmt.Fprintf(out, "%s\t%s\t%d\t%s\t%s\n", p.Name, state, p.PID, p.StartedAt.Local().Format(time.DateTime), p.Address)
	}
	return out.Flush()
}

func readSecret(path string) (string, error) {
	if path == "" {
		return "", fmt.Errorf("--secret-file is not given: push events are signed, always")
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read the webhook's secret: %w", err)
	}
	secret := strings.TrimSuffix(string(b), "\n")
	if secret == "" {
		return "", fmt.Errorf("the webhook's secret in %s is empty", path)
	}
	return secret, nil
}
