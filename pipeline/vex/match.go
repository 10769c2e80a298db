package vex

import (
	"slices"
	"strings"

	"github.com/package-url/packageurl-go"

	"github.com/dray-project/dray/pipeline"
)

// Matches reports whether the statement is about that finding, in the image as
// it is on all of the given platforms: the vulnerability by its name or an
// alias, and one of the products.
//
// A product is the image, by a digest of the index or of a platform, by the
// repository's name (with or without such a digest), or by an OCI package URL;
// then its subcomponents, if it has any, must include the finding's package.
// Or the product is the finding's package itself. A package URL matches when its
// type, namespace and name are equal, its version and subpath if it has them,
// and all of its qualifiers.
func (Reader) Matches(s pipeline.VEXStatement, f pipeline.Finding, img pipeline.Image, platforms []pipeline.PlatformImage) bool {
	if f.ID == "" || !slices.ContainsFunc(s.Vulnerability, func(v string) bool { return strings.EqualFold(v, f.ID) }) {
		return false
	}
	found, err := packageurl.FromString(f.PURL)
	isFound := func(name string) bool { return err == nil && isPackage(name, found) }
	return slices.ContainsFunc(s.Products, func(p pipeline.VEXProduct) bool {
		if !isImage(p.ID, img, platforms) && !isFound(p.ID) {
			return false
		}
		return len(p.Subcomponents) == 0 || slices.ContainsFunc(p.Subcomponents, isFound)
	})
}

// isPackage reports whether the name is a package URL that the package answers to.
func isPackage(name string, pkg packageurl.PackageURL) bool {
	if !strings.HasPrefix(name, "pkg:") {
		return false
	}
	p, err := packageurl.FromString(name)
	if err != nil || p.Type != pkg.Type || p.Namespace != pkg.Namespace || p.Name != pkg.Name ||
		p.Version != "" && p.Version != pkg.Version || p.Subpath != "" && p.Subpath != pkg.Subpath {
		return false
	}
	has := pkg.Qualifiers.Map()
	for k, v := range p.Qualifiers.Map() {
		if got, ok := has[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// isImage reports whether the name is one of the image.
func isImage(name string, img pipeline.Image, platforms []pipeline.PlatformImage) bool {
	if strings.HasPrefix(name, "pkg:") {
		return isOCI(name, img, platforms)
	}
	if strings.HasPrefix(name, "sha256:") {
		return isDigest(name, img, platforms)
	}
	repository, digest, pinned := strings.Cut(name, "@")
	return repository != "" && canonical(repository) == canonical(img.Repository) && (!pinned || isDigest(digest, img, platforms))
}

func isDigest(d string, img pipeline.Image, platforms []pipeline.PlatformImage) bool {
	return d != "" && (d == string(img.Digest) ||
		slices.ContainsFunc(platforms, func(p pipeline.PlatformImage) bool { return string(p.Digest) == d }))
}

// isOCI matches "pkg:oci/app@sha256%3A…?repository_url=registry.example/team/app".
func isOCI(name string, img pipeline.Image, platforms []pipeline.PlatformImage) bool {
	p, err := packageurl.FromString(name)
	last := img.Repository[strings.LastIndex(img.Repository, "/")+1:]
	if err != nil || p.Type != "oci" || p.Namespace != "" || p.Subpath != "" || !strings.EqualFold(p.Name, last) ||
		p.Version != "" && !isDigest(p.Version, img, platforms) {
		return false
	}
	for k, v := range p.Qualifiers.Map() {
		ok := false
		switch k {
		case "repository_url":
			// Some give the repository, some what it is in.
			here := canonical(img.Repository)
			ok = canonical(v) == here || canonical(strings.TrimRight(v, "/")+"/"+last) == here
		case "arch":
			ok = everywhere(platforms, func(_, arch, _ string) bool { return arch == v })
		case "os":
			ok = everywhere(platforms, func(os, _, _ string) bool { return os == v })
		case "tag":
			// A digest says it all; which image a tag named then is not known here.
			ok = p.Version != ""
		}
		if !ok {
			return false
		}
	}
	return true
}

func everywhere(platforms []pipeline.PlatformImage, is func(os, arch, variant string) bool) bool {
	return len(platforms) > 0 && !slices.ContainsFunc(platforms, func(p pipeline.PlatformImage) bool { return !is(p.Platform.Parts()) })
}

// canonical gives the names of one repository one form: Docker Hub has several.
func canonical(repository string) string {
	r := strings.ToLower(strings.TrimRight(repository, "/"))
	for _, scheme := range []string{"https://", "http://", "oci://"} {
		r = strings.TrimPrefix(r, scheme)
	}
	for _, alias := range []string{"index.docker.io/", "registry-1.docker.io/"} {
		if rest, ok := strings.CutPrefix(r, alias); ok {
			r = "docker.io/" + rest
		}
	}
	if rest, ok := strings.CutPrefix(r, "docker.io/"); ok && !strings.Contains(rest, "/") {
		r = "docker.io/library/" + rest
	}
	return r
}
