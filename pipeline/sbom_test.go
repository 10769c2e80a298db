package pipeline

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestIndexSBOM(t *testing.T) {
	d := func(c string) Digest { return Digest("sha256:" + strings.Repeat(c, 64)) }
	index := Image{Repository: "reg.example/team/App", Digest: d("0")}
	report := Report{Platforms: []PlatformReport{
		{Platform: "linux/amd64", Digest: d("1"), Packages: []Package{{Name: "lib", Version: "1", PURL: "pkg:golang/lib@1"}}},
		{Platform: "linux/arm64", Digest: d("2"), Packages: []Package{{Name: "lib", Version: "1", PURL: "pkg:golang/lib@1"}, {Name: "other", Version: "2"}}},
	}}
	text, err := indexSBOM(index, report)
	if err != nil {
		t.Fatal(err)
	}
	again, err := indexSBOM(index, report)
	if err != nil || string(again) != string(text) {
		t.Errorf("two SBOMs of one index differ: %v", err)
	}
	var doc bom
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	if doc.Metadata.Component.Version != string(index.Digest) ||
		doc.Metadata.Component.PURL != "pkg:oci/app@sha256%3A"+strings.Repeat("0", 64)+"?repository_url=reg.example%2Fteam%2FApp" {
		t.Errorf("it is about %+v", doc.Metadata.Component)
	}
	refs := map[string]bool{doc.Metadata.Component.Ref: true}
	for i, c := range doc.Components {
		if c.Properties[0].Value != string(report.Platforms[i].Platform) || len(c.Components) != len(report.Platforms[i].Packages) {
			t.Errorf("platform %d is %+v", i, c)
		}
		for _, x := range append(c.Components, c) {
			if refs[x.Ref] {
				t.Errorf("bom-ref %s is used twice", x.Ref)
			}
			refs[x.Ref] = true
		}
	}
}
