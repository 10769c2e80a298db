package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/dray-project/dray/api/client"
	"github.com/dray-project/dray/pipeline"
)

func (a *app) projectCommand() *cobra.Command {
	return newGroup("project", "Look at projects and set their gates and environments",
		a.projectList(), a.projectShow(), a.projectApply(), a.projectVersions(), a.projectSchema(), a.projectValidate())
}

func (a *app) projectList() *cobra.Command {
	var limit int
	c := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List projects with their environments, by name",
		Example: `  dray project list
  dray project list -o name`,
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			projects, err := pages(limit, func(limit int, cursor string) (client.List[pipeline.ProjectVersion], error) {
				return cl.Projects(cmd.Context(), client.PageQuery{Limit: limit, Cursor: cursor})
			})
			if err != nil {
				return fmt.Errorf("list projects: %w", err)
			}
			return a.print(projects, func(w *writer) { w.projects(projects) }, func() []string {
				return names(projects, func(v pipeline.ProjectVersion) string { return v.Project.Name })
			})
		},
	}
	c.Flags().IntVar(&limit, "limit", 100, "how many at most")
	return c
}

func (a *app) projectShow() *cobra.Command {
	var version int
	var file bool
	c := &cobra.Command{
		Use:   "show PROJECT",
		Short: "Show a project's settings: its gates and environments",
		Example: `  dray project show hello-go
  dray project show hello-go --version 3 -o json
  dray project show hello-go --file > project.yaml`,
		Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			v, err := cl.Project(cmd.Context(), args[0], version)
			if err != nil {
				return fmt.Errorf("show project %s: %w", args[0], err)
			}
			if file {
				if a.output == "table" {
					a.output = "yaml"
				}
				f := pipeline.ProjectFileOf(v.Project)
				return a.print(f, nil, func() []string { return []string{f.Name} })
			}
			return a.print(v, func(w *writer) { w.project(v) }, func() []string { return []string{v.Project.Name} })
		},
	}
	c.Flags().IntVar(&version, "version", 0, "this version (0: the one in force)")
	c.Flags().BoolVar(&file, "file", false, "print the project file that would set this, in YAML")
	return c
}

func (a *app) projectVersions() *cobra.Command {
	var limit int
	c := &cobra.Command{
		Use:     "versions PROJECT",
		Short:   "List the versions of a project's settings, newest first",
		Example: `  dray project versions hello-go`,
		Args:    exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			versions, err := pages(limit, func(limit int, cursor string) (client.List[pipeline.ProjectVersion], error) {
				return cl.ProjectVersions(cmd.Context(), args[0], client.PageQuery{Limit: limit, Cursor: cursor})
			})
			if err != nil {
				return fmt.Errorf("versions of project %s: %w", args[0], err)
			}
			return a.print(versions, func(w *writer) { w.versions(versions) }, func() []string {
				return names(versions, func(v pipeline.ProjectVersion) string { return strconv.Itoa(v.Version) })
			})
		},
	}
	limitFlag(c, &limit)
	return c
}

func (a *app) projectApply() *cobra.Command {
	var file string
	var dryRun bool
	var base int
	c := &cobra.Command{
		Use:   "apply --file FILE",
		Short: "Set a project's gates and environments from a project file",
		Long: `Set a project's gates and environments from a project file in YAML or JSON.
Every version is kept, and each decision names the one that it used. What is in
force already makes no new version.

With --dry-run the server checks the file and says what would change. With
--base, a version that another has replaced in the meantime is an error.`,
		Example: `  dray project apply -f project.yaml --dry-run
  dray project apply -f project.yaml --base 3
  dray project show hello-go --file | dray project apply -f -`,
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				return usage("say which: --file")
			}
			if base < 0 {
				return usage("--base %d: want a version", base)
			}
			f, err := a.readProjectFile(file)
			if err != nil {
				return err
			}
			cl, err := a.client()
			if err != nil {
				return err
			}
			applied, err := cl.ApplyProject(cmd.Context(), f.Name, f.json, base, dryRun)
			if err != nil {
				return f.located(fmt.Errorf("apply project %s: %w", f.Name, err))
			}
			return a.print(applied, func(w *writer) { w.applied(applied) }, func() []string { return []string{applied.Project.Name} })
		},
	}
	c.Flags().StringVarP(&file, "file", "f", "", "the project file; - is standard input (required)")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "check it and say what would change, and change nothing")
	c.Flags().IntVar(&base, "base", 0, "the `version` that the change was made on (0: overwrite whatever is in force)")
	return c
}

func (a *app) projectSchema() *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of project files, for an editor",
		Long: `Print the JSON Schema of project files. No server is asked; one serves the same
at /api/v1/schemas/project.json.`,
		Example: `  dray project schema > project.schema.json`,
		Args:    exactly(0),
		RunE: func(*cobra.Command, []string) error {
			_, err := a.stdout.Write(pipeline.ProjectSchema())
			return err
		},
	}
}

func (a *app) projectValidate() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "validate --file FILE",
		Short: "Check a project file without any server",
		Long: `Check a project file without any server: its form, its names, the way between
its environments, and that every rule compiles, as this version of dray knows
them. Only a server knows which registries there are: "dray project apply
--dry-run" asks one.`,
		Example: `  dray project validate -f project.yaml`,
		Args:    exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				return usage("say which: --file")
			}
			f, err := a.readProjectFile(file)
			if err != nil {
				return err
			}
			if err := f.compile(cmd.Context()); err != nil {
				return err
			}
			return a.print(f.ProjectFile, func(w *writer) {
				w.printf("%s is a project file for %s: %s\n", clean(f.name), clean(f.Name), clean(way(f.Environments)))
			}, func() []string { return []string{f.Name} })
		},
	}
	c.Flags().StringVarP(&file, "file", "f", "", "the project file; - is standard input (required)")
	return c
}

// way names environments in their order.
func way(environments []pipeline.Environment) string {
	if len(environments) == 0 {
		return "no environments"
	}
	return strings.Join(names(environments, func(e pipeline.Environment) string { return e.Name }), ", ")
}

func (a *app) environmentCommand() *cobra.Command {
	return newGroup("environment", "Look at what environments have", a.environmentList())
}

func (a *app) environmentList() *cobra.Command {
	return &cobra.Command{
		Use:     "list PROJECT",
		Aliases: []string{"ls"},
		Short:   "Show what each of a project's environments has, and what wants to enter",
		Example: `  dray environment list hello-go`,
		Args:    exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			states, err := cl.Environments(cmd.Context(), args[0])
			if err != nil {
				return fmt.Errorf("environments of project %s: %w", args[0], err)
			}
			return a.print(states, func(w *writer) { w.environments(states) }, func() []string {
				return names(states, func(s pipeline.EnvironmentState) string { return s.Environment })
			})
		},
	}
}
