package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/dray-project/dray/api/client"
	"github.com/dray-project/dray/pipeline"
)

// auditFormats are the values of --output below dray audit.
var auditFormats = append(slices.Clone(formats), client.FormatJSONLines, client.FormatCSV)

const auditHelp = `

With -o jsonl or -o csv it prints everything there is, as it comes, whatever
--limit says. Times are such as 2026-03-14, 2026-03-14T09:30:00Z, or 30d for
thirty days ago.`

func (a *app) auditCommand() *cobra.Command {
	c := newGroup("audit", "Ask the record: packages, vulnerabilities, images, people, environments",
		a.auditPackage(), a.auditCVE(), a.auditImage(), a.auditPerson(), a.auditEnvironment())
	// The root's check does not know the formats of exports.
	c.PersistentPreRunE = func(*cobra.Command, []string) error {
		if slices.Contains(auditFormats, a.output) {
			return nil
		}
		return usage("--output %q: want one of %s", a.output, strings.Join(auditFormats, ", "))
	}
	return c
}

// moments are flags that name times, with where they go.
type moments map[string]**time.Time

// timeFlag adds a flag that names a time.
func (m moments) flag(c *cobra.Command, name, use string, into **time.Time) {
	c.Flags().String(name, "", use)
	m[name] = into
}

// read reads those that were given.
func (m moments) read(c *cobra.Command, now time.Time) error {
	for name, into := range m {
		text, err := c.Flags().GetString(name)
		if err != nil {
			return err
		}
		if text == "" {
			continue
		}
		t, err := past(text, now)
		if err != nil {
			return usage("--%s %q: want a day such as 2026-03-14, a time such as 2026-03-14T09:30:00Z, or how long ago, such as 30d", name, text)
		}
		*into = &t
	}
	return nil
}

func past(s string, now time.Time) (time.Time, error) {
	var d pipeline.Duration
	if err := d.UnmarshalText([]byte(s)); err == nil {
		return now.Add(-time.Duration(d)), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02 15:04:05", "2006-01-02 15:04", time.DateOnly} {
		if t, err := time.Parse(layout, s); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is no time", s)
}

func (m moments) scope(c *cobra.Command, s *pipeline.AuditScope) {
	c.Flags().StringVarP(&s.Project, "project", "p", "", "only images of this project")
	c.Flags().StringVarP(&s.Environment, "environment", "e", "", "only images that this environment holds; with --promoted ever, or held")
	c.Flags().StringVar(&s.Promoted, "promoted", "", "only images that an environment holds `now`, or ever held: now or ever")
	m.flag(c, "since", "with --promoted now: came there since; with --promoted ever: were there since; else: were recorded since", &s.Since)
	m.flag(c, "until", "the same, before this time", &s.Until)
	completeWith(c, "promoted", pipeline.PromotedNow, pipeline.PromotedEver)
}

func (a *app) auditPackage() *cobra.Command {
	var q pipeline.PackageAuditQuery
	var limit int
	m := moments{}
	c := &cobra.Command{
		Use:   "package [NAME]",
		Short: "Find the images that contain packages, where they run, and who let them in",
		Long: `Find the images that contain packages by name, package URL or licence, where
those run, since when, who requested and approved it, and which run and commit
brought the package in first.

A range compares by the rules of the package's ecosystem (Debian, RPM, Alpine,
npm, Python, Maven, gems, semantic versions). A version that cannot be compared
is listed and marked with a question mark.` + auditHelp,
		Example: `  dray audit package golang.org/x/crypto --range '<0.31.0' --promoted now
  dray audit package --purl pkg:deb/debian/openssl --range '<3.0.11-1~deb12u2' -e prod
  dray audit package --licence GPL-3.0 --promoted ever -o csv > gpl.csv`,
		Args: atMostOne,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				q.Name = args[0]
			}
			if q.Name == "" && q.PURL == "" && q.License == "" {
				return usage("say which package: a name, --purl or --licence")
			}
			if err := m.read(cmd, a.now()); err != nil {
				return err
			}
			return ask(cmd.Context(), a, limit, func(c *client.Client) client.Audit[pipeline.PackageAudit] { return c.AuditPackages(q) },
				(*writer).packageAudits, func(p pipeline.PackageAudit) string { return p.Image.String() })
		},
	}
	c.Flags().StringVar(&q.PURL, "purl", "", "package `URL`; without a version it means all")
	c.Flags().StringVar(&q.Version, "version", "", "only this exact version")
	c.Flags().StringVar(&q.Range, "range", "", "only versions in this range, such as '>=1.0 <1.4.2', '^1.2' or vers:deb/<3.0.11")
	c.Flags().StringVar(&q.License, "licence", "", "only packages under this licence, by SPDX identifier")
	m.scope(c, &q.AuditScope)
	c.Flags().IntVar(&limit, "limit", 100, "how many at most")
	return c
}

func (a *app) auditCVE() *cobra.Command {
	var q pipeline.FindingAuditQuery
	var limit int
	m := moments{}
	c := &cobra.Command{
		Use:   "cve ID",
		Short: "Find the images with a vulnerability, where they run, and who accepted it",
		Long: `Find the images that have a vulnerability by their newest scan or match: the
package and the version that mends it, where they run and since when, and the
exceptions and VEX documents that speak for it.` + auditHelp,
		Example: `  dray audit cve CVE-2024-45337 --promoted now
  dray audit cve CVE-2024-45337 -e prod -o jsonl | jq -r .image.digest`,
		Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			q.Finding = args[0]
			if err := m.read(cmd, a.now()); err != nil {
				return err
			}
			return ask(cmd.Context(), a, limit, func(c *client.Client) client.Audit[pipeline.FindingAudit] { return c.AuditFindings(q) },
				(*writer).findingAudits, func(f pipeline.FindingAudit) string { return f.Image.String() })
		},
	}
	c.Flags().StringVar(&q.Package, "package", "", "only in this package")
	m.scope(c, &q.AuditScope)
	c.Flags().IntVar(&limit, "limit", 100, "how many at most")
	return c
}

func (a *app) auditImage() *cobra.Command {
	var project string
	var limit int
	c := &cobra.Command{
		Use:   "image IMAGE",
		Short: "Tell an image's whole story, oldest first",
		Long:  `Tell everything that happened to an image: runs, decisions, approvals, promotions, tags, exceptions, drift.` + auditHelp,
		Example: `  dray audit image sha256:2f1d0b7c…
  dray audit image sha256:2f1d0b7c… -o csv > story.csv`,
		Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := digestArg(args[0])
			if err != nil {
				return err
			}
			return ask(cmd.Context(), a, limit, func(c *client.Client) client.Audit[pipeline.AuditEvent] { return c.AuditImage(d, project) }, (*writer).auditEvents, eventName)
		},
	}
	c.Flags().StringVarP(&project, "project", "p", "", "only in this project")
	c.Flags().IntVar(&limit, "limit", 1000, "how many at most")
	return c
}

func (a *app) auditPerson() *cobra.Command {
	var project string
	var limit int
	c := &cobra.Command{
		Use:   "person NAME",
		Short: "List what somebody requested, approved, rejected, accepted and applied",
		Long:  `List what somebody did, newest first. People go by the names of their tokens.` + auditHelp,
		Example: `  dray audit person rita
  dray audit person rita -p hello-go -o csv > rita.csv`,
		Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return ask(cmd.Context(), a, limit, func(c *client.Client) client.Audit[pipeline.AuditEvent] { return c.AuditPerson(args[0], project) }, (*writer).auditEvents, eventName)
		},
	}
	c.Flags().StringVarP(&project, "project", "p", "", "only in this project")
	c.Flags().IntVar(&limit, "limit", 100, "how many at most")
	return c
}

func eventName(e pipeline.AuditEvent) string { return e.Subject }

func (a *app) auditEnvironment() *cobra.Command {
	var q pipeline.EnvironmentAuditQuery
	var limit int
	m := moments{}
	c := &cobra.Command{
		Use:   "environment PROJECT ENVIRONMENT",
		Short: "Say what an environment held at a time, and what changed between two times",
		Long: `Say what an environment held: with --at at a time, without times ever, newest
first. With --from and --to: which images it held between the two, and by which
packages and findings what it held at the end differs from what it held at the
beginning.` + auditHelp,
		Example: `  dray audit environment hello-go prod --at 2026-03-14T09:30:00Z
  dray audit environment hello-go prod --from 2026-01-01 --to 2026-04-01
  dray audit environment hello-go prod -o csv > prod.csv`,
		Args: exactly(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			q.Project, q.Environment = args[0], args[1]
			if err := m.read(cmd, a.now()); err != nil {
				return err
			}
			if q.From != nil && q.To == nil {
				now := a.now()
				q.To = &now
			}
			if err := q.Check(); err != nil {
				return &usageError{err}
			}
			return ask(cmd.Context(), a, limit, func(c *client.Client) client.Audit[pipeline.EnvironmentAudit] { return c.AuditEnvironment(q) },
				(*writer).environmentAudits, func(e pipeline.EnvironmentAudit) string {
					if e.Stay != nil {
						return e.Stay.Image.String()
					}
					return e.Name
				})
		},
	}
	m.flag(c, "at", "what it held at this time", &q.At)
	m.flag(c, "from", "what it held since this time, and what changed", &q.From)
	m.flag(c, "to", "until this time (default now)", &q.To)
	c.Flags().IntVar(&limit, "limit", 1000, "how many at most")
	return c
}

// ask prints an answer: some of it in one piece, or all of it as an export.
func ask[T any](ctx context.Context, a *app, limit int, of func(*client.Client) client.Audit[T], table func(*writer, []T), name func(T) string) error {
	cl, err := a.client()
	if err != nil {
		return err
	}
	question := of(cl)
	if a.output == client.FormatCSV || a.output == client.FormatJSONLines {
		if err := question.Export(ctx, a.output, a.stdout); err != nil {
			return fmt.Errorf("export: %w", err)
		}
		return nil
	}
	more := false
	items, err := pages(limit, func(limit int, cursor string) (client.List[T], error) {
		list, err := question.Page(ctx, client.PageQuery{Limit: limit, Cursor: cursor})
		more = list.Next != ""
		return list, err
	})
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	err = a.print(items, func(w *writer) { table(w, items) }, func() []string { return slices.Compact(names(items, name)) })
	if err == nil && more {
		// An auditor must not take a part for the whole.
		fmt.Fprintf(a.stderr, "There is more than these %d: raise --limit, or take all with -o csv or -o jsonl.\n", len(items))
	}
	return err
}

// atMostOne allows an argument or none.
func atMostOne(cmd *cobra.Command, args []string) error {
	if err := cobra.MaximumNArgs(1)(cmd, args); err != nil {
		return &usageError{err}
	}
	return nil
}
