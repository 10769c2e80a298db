//go:build goexperiment.jsonv2

package scanner

import (
	"reflect"
	"testing"

	ftypes "github.com/aquasecurity/trivy/pkg/fanal/types"
	"github.com/package-url/packageurl-go"
)

// TestAnalysisHoldsWhatDetectorsRead: a field that Trivy adds is looked at by
// somebody before it is left out.
func TestAnalysisHoldsWhatDetectorsRead(t *testing.T) {
	// What no detector reads.
	left := map[string][]string{
		"Package":        {"Licenses", "ExternalReferences", "DependsOn", "Layer", "Digest", "Locations", "InstalledFiles", "AnalyzedBy"},
		"ArtifactDetail": {"Misconfigurations", "Secrets", "Licenses", "ImageConfig", "CustomResources", "Layers"},
		"PkgIdentifier":  {"UID", "BOMRef"},
	}
	full := ftypes.ArtifactDetail{Packages: ftypes.Packages{{}}, Applications: ftypes.Applications{{Packages: ftypes.Packages{{}}}}}
	fill := func(v reflect.Value) {
		fillStruct(t, v, left[v.Type().Name()])
	}
	fill(reflect.ValueOf(&full.Packages[0].Identifier).Elem())
	fill(reflect.ValueOf(&full.Packages[0]).Elem())
	full.Applications[0].Packages[0] = full.Packages[0]
	fill(reflect.ValueOf(&full.Applications[0]).Elem())
	fill(reflect.ValueOf(&full).Elem())
	a, err := analyse(full)
	if err != nil {
		t.Fatal(err)
	}
	back, err := recall(a)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(full, back) {
		t.Errorf("kept\n%+v\ncame back as\n%+v", full, back)
	}
}

// fillStruct sets every field that is empty and not left out to something.
func fillStruct(t *testing.T, v reflect.Value, left []string) {
	t.Helper()
	for i := range v.NumField() {
		f, name := v.Field(i), v.Type().Field(i).Name
		skip := !f.IsZero()
		for _, l := range left {
			skip = skip || l == name
		}
		if skip {
			continue
		}
		switch x := f.Addr().Interface().(type) {
		case *string:
			*x = name
		case *int:
			*x = 7
		case *bool:
			*x = true
		case *[]string:
			*x = []string{name}
		case **packageurl.PackageURL:
			*x = &packageurl.PackageURL{Type: "deb", Namespace: "a b", Name: "%", Version: "1:2", Subpath: "s", Qualifiers: packageurl.Qualifiers{{Key: "arch", Value: "a&b"}}}
		case **ftypes.BuildInfo:
			*x = &ftypes.BuildInfo{}
			fillStruct(t, f.Elem(), nil)
		case **ftypes.Repository:
			*x = &ftypes.Repository{}
			fillStruct(t, f.Elem(), nil)
		default:
			switch f.Kind() {
			case reflect.String:
				f.SetString(name)
			case reflect.Int:
				f.SetInt(3)
			case reflect.Struct:
				fillStruct(t, f, nil)
			default:
				t.Errorf("%s.%s of type %s: is it read by a detector?", v.Type(), name, f.Type())
			}
		}
	}
}
