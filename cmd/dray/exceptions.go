package main

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/dray-project/dray/api/client"
	"github.com/dray-project/dray/pipeline"
)

func (a *app) exceptionCommand() *cobra.Command {
	return newGroup("exception", "Accept findings until a day", a.exceptionAdd(), a.exceptionList(), a.exceptionRevoke())
}

// needProject adds --project to a command that cannot do without.
func needProject(c *cobra.Command, project *string) {
	c.Flags().StringVarP(project, "project", "p", "", "the project (required)")
	args := c.Args
	c.Args = func(cmd *cobra.Command, list []string) error {
		if err := args(cmd, list); err != nil {
			return err
		}
		if *project == "" {
			return usage("say of which project: --project")
		}
		return nil
	}
}

// until reads "30d" as from now, or a day or moment.
func until(s string, now time.Time) (time.Time, error) {
	if d, err := pipeline.ParseDuration(s); err == nil {
		return now.Add(d.Std()).UTC().Truncate(time.Second), nil
	}
	for _, layout := range []string{time.DateOnly, time.RFC3339} {
		if t, err := time.Parse(layout, s); err == nil {
			return t, nil
		}
	}
	return time.Time{}, usage(`--expires %q: want how long from now, such as "30d", or a day, such as "2026-12-31"`, s)
}

func (a *app) exceptionAdd() *cobra.Command {
	var e pipeline.Exception
	var image, expires string
	c := &cobra.Command{
		Use:   "add FINDING",
		Short: "Accept a finding, such as CVE-2024-45337, until a day",
		Long: `Accept a finding until a day, at most a year away: within a project, and where
they are given only for one environment, one image or one package. The finding
is still shown everywhere, with who accepted it and why.`,
		Example: `  dray exception add CVE-2024-45337 --project hello-go --expires 30d --reason "ssh is not used"
  dray exception add CVE-2024-45337 -p hello-go -e prod --package golang.org/x/crypto --expires 2026-12-31 --reason "fixed in 1.4.1"`,
		Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			e.Finding = args[0]
			if e.ExpiresAt, err = until(expires, a.now()); err != nil {
				return err
			}
			if image != "" {
				if e.Image, err = digestArg(image); err != nil {
					return err
				}
			}
			if e.Reason == "" {
				return usage("say why it can be accepted: --reason")
			}
			cl, err := a.client()
			if err != nil {
				return err
			}
			made, err := cl.AddException(cmd.Context(), e)
			if err != nil {
				return err
			}
			return a.printException(made)
		},
	}
	needProject(c, &e.Project)
	c.Flags().StringVarP(&e.Environment, "environment", "e", "", "only in this environment")
	c.Flags().StringVar(&e.Package, "package", "", "only in this package")
	c.Flags().StringVar(&image, "image", "", "only in the image of this `digest`")
	c.Flags().StringVar(&e.Reason, "reason", "", "why it can be accepted (required)")
	c.Flags().StringVar(&expires, "expires", "30d", "until `when`: how long from now, or a day")
	return c
}

func (a *app) printException(e pipeline.Exception) error {
	return a.print(e, func(w *writer) { w.exceptions([]pipeline.Exception{e}) }, func() []string { return []string{e.ID} })
}

func (a *app) exceptionList() *cobra.Command {
	var q client.ExceptionsQuery
	var limit int
	c := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the findings that somebody accepted, newest first",
		Example: `  dray exception list --project hello-go
  dray exception list -p hello-go --all -o json`,
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			list, err := pages(limit, func(limit int, cursor string) (client.List[pipeline.Exception], error) {
				q.Limit, q.Cursor = limit, cursor
				return cl.Exceptions(cmd.Context(), q)
			})
			if err != nil {
				return fmt.Errorf("list exceptions: %w", err)
			}
			return a.print(list, func(w *writer) { w.exceptions(list) }, func() []string {
				return names(list, func(e pipeline.Exception) string { return e.ID })
			})
		},
	}
	needProject(c, &q.Project)
	c.Flags().BoolVar(&q.All, "all", false, "those that expired or were revoked as well")
	c.Flags().IntVar(&limit, "limit", 100, "how many at most")
	return c
}

func (a *app) exceptionRevoke() *cobra.Command {
	var project string
	c := &cobra.Command{
		Use:     "revoke EXCEPTION",
		Short:   "Take an exception back",
		Example: `  dray exception revoke exc_06f3n8w2c41r0kd7t9qh --project hello-go`,
		Args:    exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			e, err := cl.RevokeException(cmd.Context(), project, args[0])
			if err != nil {
				return fmt.Errorf("revoke: %w", err)
			}
			return a.printException(e)
		},
	}
	needProject(c, &project)
	return c
}

func (a *app) vexCommand() *cobra.Command {
	return newGroup("vex", "Hand in signed VEX documents", a.vexAdd(), a.vexList(), a.vexRevoke())
}

func (a *app) vexAdd() *cobra.Command {
	var project, signature string
	c := &cobra.Command{
		Use:   "add FILE --signature FILE",
		Short: "Hand in an OpenVEX document with its signature",
		Long: `Hand in an OpenVEX document with its signature, as "cosign sign-blob" makes it:
the signature in base64, or the bundle. It is taken only if a key that the
project trusts signed it: trustedVEXKeys in the project file.`,
		Example: `  cosign sign-blob --key vex.key --bundle vex.bundle vex.json
  dray vex add vex.json --signature vex.bundle --project hello-go`,
		Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if signature == "" {
				return usage("say where its signature is: --signature")
			}
			document, err := os.ReadFile(args[0])
			if err != nil {
				return fmt.Errorf("read the document: %w", err)
			}
			signed, err := os.ReadFile(signature)
			if err != nil {
				return fmt.Errorf("read the signature: %w", err)
			}
			cl, err := a.client()
			if err != nil {
				return err
			}
			v, err := cl.AddVEX(cmd.Context(), project, document, signed)
			if err != nil {
				return err
			}
			return a.printVEX(v)
		},
	}
	needProject(c, &project)
	c.Flags().StringVar(&signature, "signature", "", "`file` with the signature or the bundle (required)")
	return c
}

func (a *app) printVEX(v client.VEX) error {
	return a.print(v, func(w *writer) { w.vex([]client.VEX{v}) }, func() []string { return []string{v.ID} })
}

func (a *app) vexList() *cobra.Command {
	var q client.ExceptionsQuery
	var limit int
	c := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List a project's VEX documents, newest first",
		Example: `  dray vex list --project hello-go`,
		Args:    exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			list, err := pages(limit, func(limit int, cursor string) (client.List[client.VEX], error) {
				q.Limit, q.Cursor = limit, cursor
				return cl.VEXDocuments(cmd.Context(), q)
			})
			if err != nil {
				return fmt.Errorf("list VEX documents: %w", err)
			}
			return a.print(list, func(w *writer) { w.vex(list) }, func() []string {
				return names(list, func(v client.VEX) string { return v.ID })
			})
		},
	}
	needProject(c, &q.Project)
	c.Flags().BoolVar(&q.All, "all", false, "those that were revoked as well")
	c.Flags().IntVar(&limit, "limit", 100, "how many at most")
	return c
}

func (a *app) vexRevoke() *cobra.Command {
	var project string
	c := &cobra.Command{
		Use:     "revoke DOCUMENT",
		Short:   "Take a VEX document back",
		Example: `  dray vex revoke vex_06f3n8w2c41r0kd7t9qh --project hello-go`,
		Args:    exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			v, err := cl.RevokeVEX(cmd.Context(), project, args[0])
			if err != nil {
				return fmt.Errorf("revoke: %w", err)
			}
			return a.printVEX(v)
		},
	}
	needProject(c, &project)
	return c
}
