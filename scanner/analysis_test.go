//go:build goexperiment.jsonv2

package scanner

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"

	ftypes "github.com/aquasecurity/trivy/pkg/fanal/types"
	"github.com/package-url/packageurl-go"

	"github.com/dray-project/dray/pipeline"
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

// TestReadAnalysisRefuses: what cannot be used is said to be so, and its image is
// scanned again.
func TestReadAnalysisRefuses(t *testing.T) {
	good, err := analyse(ftypes.ArtifactDetail{OS: ftypes.OS{Family: ftypes.Debian, Name: "12"}, Packages: ftypes.Packages{{Name: "a", Version: "1"}, {Name: "b", Version: "1"}},
		Applications: ftypes.Applications{{Type: ftypes.Npm, Packages: ftypes.Packages{{Name: "c", Version: "1"}}}}})
	if err != nil {
		t.Fatal(err)
	}
	zr, err := gzip.NewReader(bytes.NewReader(good.Data))
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(zr)
	if err != nil {
		t.Fatal(err)
	}
	zipped := func(s string) []byte {
		var out bytes.Buffer
		zw := gzip.NewWriter(&out)
		if _, err := zw.Write([]byte(s)); err != nil {
			t.Fatal(err)
		}
		if err := zw.Close(); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	if _, err := recall(pipeline.Analysis{Data: zipped(string(text))}); err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(text), "\n")
	for what, data := range map[string][]byte{
		"nothing":         nil,
		"no gzip":         []byte("nonsense"),
		"cut short":       good.Data[:len(good.Data)-9],
		"empty":           zipped(""),
		"another version": zipped(strings.Replace(string(text), `{"v":2`, `{"v":1`, 1)),
		"a package short": zipped(strings.Join(lines[:3], "")),
		"a package more":  zipped(string(text) + lines[1]),
		"a line cut":      zipped(strings.TrimSuffix(string(text), "\n")),
		"fewer than none": zipped(strings.Replace(string(text), `"n":2`, `"n":-2`, 1)),
		"too many":        zipped(strings.Replace(string(text), `"n":2`, `"n":2000000000`, 1)),
		"a bad package":   zipped(strings.Replace(string(text), `{"n":"b"`, `{"n":7`, 1)),
	} {
		if _, err := recall(pipeline.Analysis{Data: data}); !errors.Is(err, errAnalysis) {
			t.Errorf("%s: %v", what, err)
		}
	}
	// Together with others, too.
	s := &Scanner{}
	s.known.begin("sha256:0")
	out := make([]pipeline.Rematched, 1)
	if err := s.together(t.Context(), []pipeline.Analysis{{Data: zipped(strings.ReplaceAll(string(text), `{"n":`, `{"n":7,"x":`))}}, out); err != nil || out[0].Unreadable == "" {
		t.Errorf("packages that cannot be decoded: %+v, %v", out, err)
	}
}
