package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/dray-project/dray/api/client"
	"github.com/dray-project/dray/pipeline"
)

func (a *app) imageCommand() *cobra.Command {
	return newGroup("image", "Look at images", a.imageShow(), a.imageSBOM(), a.imageProvenance())
}

// digestArg takes a digest, or repository@digest.
func digestArg(s string) (pipeline.Digest, error) {
	if strings.Contains(s, "@") {
		img, err := pipeline.ParseImage(s)
		if err != nil {
			return "", &usageError{err}
		}
		return img.Digest, nil
	}
	d, err := pipeline.ParseDigest(s)
	if err != nil {
		return "", &usageError{err}
	}
	return d, nil
}

func projectFlag(c *cobra.Command, project *string) {
	c.Flags().StringVarP(project, "project", "p", "", "needed only when several projects hold the digest")
}

func (a *app) imageShow() *cobra.Command {
	var project string
	c := &cobra.Command{
		Use:   "show IMAGE",
		Short: "Show an image: platforms, findings, tags, signatures, attestations, promotions",
		Example: `  dray image show sha256:2f1d0b7c…
  dray image show dev.example/acme/hello-go@sha256:2f1d0b7c… -o yaml`,
		Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			digest, err := digestArg(args[0])
			if err != nil {
				return err
			}
			cl, err := a.client()
			if err != nil {
				return err
			}
			img, err := cl.Image(cmd.Context(), digest, project)
			if err != nil {
				return fmt.Errorf("show image: %w", err)
			}
			return a.print(img, func(w *writer) { w.image(img) }, func() []string { return []string{img.Image.String()} })
		},
	}
	projectFlag(c, &project)
	return c
}

func (a *app) imageSBOM() *cobra.Command {
	var project, platform string
	c := &cobra.Command{
		Use:     "sbom IMAGE",
		Short:   "Print the CycloneDX SBOM of one platform of an image",
		Example: `  dray image sbom sha256:2f1d0b7c… --platform linux/amd64 > sbom.json`,
		Args:    exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.document(args[0], func(cl *client.Client, d pipeline.Digest) ([]byte, error) {
				return cl.SBOM(cmd.Context(), d, project, pipeline.Platform(platform))
			})
		},
	}
	projectFlag(c, &project)
	c.Flags().StringVar(&platform, "platform", "", "needed only when the image has several, such as linux/arm64")
	return c
}

func (a *app) imageProvenance() *cobra.Command {
	var project string
	c := &cobra.Command{
		Use:     "provenance IMAGE",
		Short:   "Print the SLSA v1 provenance of an image",
		Example: `  dray image provenance sha256:2f1d0b7c…`,
		Args:    exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.document(args[0], func(cl *client.Client, d pipeline.Digest) ([]byte, error) {
				return cl.Provenance(cmd.Context(), d, project)
			})
		},
	}
	projectFlag(c, &project)
	return c
}

// document prints a document byte for byte.
func (a *app) document(image string, get func(*client.Client, pipeline.Digest) ([]byte, error)) error {
	digest, err := digestArg(image)
	if err != nil {
		return err
	}
	cl, err := a.client()
	if err != nil {
		return err
	}
	doc, err := get(cl, digest)
	if err != nil {
		return err
	}
	_, err = a.stdout.Write(append(doc, '\n'))
	return err
}

func (a *app) packageCommand() *cobra.Command {
	return newGroup("package", "Find packages in images", a.packageFind())
}

func (a *app) packageFind() *cobra.Command {
	var q pipeline.PackageQuery
	var limit int
	c := &cobra.Command{
		Use:   "find NAME",
		Short: "Find the images that contain a package, and where they were promoted",
		Example: `  dray package find golang.org/x/crypto
  dray package find libssl3 --version 3.0.11-1~deb12u2 --promoted
  dray package find libssl3 --environment prod -o json`,
		Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			q.Name = args[0]
			uses, err := pages(limit, func(limit int, cursor string) (client.List[pipeline.PackageUse], error) {
				q.Page = pipeline.Page{Limit: limit, After: cursor}
				return cl.Packages(cmd.Context(), q)
			})
			if err != nil {
				return fmt.Errorf("find package %s: %w", q.Name, err)
			}
			return a.print(uses, func(w *writer) { w.packages(uses) }, func() []string {
				return names(uses, func(u pipeline.PackageUse) string { return u.Image.String() })
			})
		},
	}
	c.Flags().StringVar(&q.Version, "version", "", "only this exact version")
	c.Flags().StringVarP(&q.Project, "project", "p", "", "only images of this project")
	c.Flags().StringVarP(&q.Environment, "environment", "e", "", "only images that were promoted there")
	c.Flags().BoolVar(&q.Promoted, "promoted", false, "only images that were promoted anywhere")
	c.Flags().IntVar(&limit, "limit", 100, "how many at most")
	return c
}
