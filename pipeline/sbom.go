package pipeline

import (
	"encoding/json"
	"fmt"
	"net/url"
	"path"
	"strings"
)

// The parts of a CycloneDX document that an index's SBOM has.
type (
	bom struct {
		Schema      string         `json:"$schema"`
		Format      string         `json:"bomFormat"`
		SpecVersion string         `json:"specVersion"`
		Version     int            `json:"version"`
		Metadata    bomMetadata    `json:"metadata"`
		Components  []bomComponent `json:"components"`
	}
	bomMetadata struct {
		Component bomComponent `json:"component"`
	}
	bomComponent struct {
		Type       string         `json:"type"`
		Ref        string         `json:"bom-ref"`
		Name       string         `json:"name"`
		Version    string         `json:"version"`
		PURL       string         `json:"purl,omitempty"`
		Properties []bomProperty  `json:"properties,omitempty"`
		Components []bomComponent `json:"components,omitempty"`
	}
	bomProperty struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	}
)

// indexSBOM is the SBOM of a whole index: each platform's image with the
// packages in it. Whoever asks for the SBOM of an image by the digest that they
// deploy asks the index, and should not be told that there is none. The full
// document of a platform is attested at the platform's own digest. It is a pure
// function of its arguments.
func indexSBOM(index Image, r Report) (json.RawMessage, error) {
	doc := bom{
		Schema: "http://cyclonedx.org/schema/bom-1.6.schema.json", Format: "CycloneDX", SpecVersion: "1.6", Version: 1,
		Metadata: bomMetadata{Component: container(index, "")},
	}
	for _, p := range r.Platforms {
		c := container(Image{Repository: index.Repository, Digest: p.Digest}, p.Platform)
		for i, pkg := range p.Packages {
			c.Components = append(c.Components, bomComponent{
				Type: "library", Ref: fmt.Sprintf("%s#%d", c.Ref, i), Name: pkg.Name, Version: pkg.Version, PURL: pkg.PURL,
			})
		}
		doc.Components = append(doc.Components, c)
	}
	return json.Marshal(doc)
}

func container(img Image, platform Platform) bomComponent {
	c := bomComponent{Type: "container", Name: img.Repository, Version: string(img.Digest), Ref: string(img.Digest),
		PURL: "pkg:oci/" + strings.ToLower(path.Base(img.Repository)) + "@" + url.QueryEscape(string(img.Digest)) +
			"?repository_url=" + url.QueryEscape(img.Repository)}
	if platform != "" {
		c.Properties = []bomProperty{{Name: "dray:platform", Value: string(platform)}}
	}
	return c
}
