package vex_test

import (
	"crypto"
	"crypto/elliptic"
	"strings"
	"testing"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/vex"
)

const (
	amd64Digest = "sha256:2222222222222222222222222222222222222222222222222222222222222222"
	arm64Digest = "sha256:3333333333333333333333333333333333333333333333333333333333333333"
	elsewhere   = "sha256:4444444444444444444444444444444444444444444444444444444444444444"
)

var (
	app = pipeline.Image{Repository: "registry.example:5000/team/app", Digest: digest}
	amd = pipeline.PlatformImage{Platform: "linux/amd64", Digest: amd64Digest}
	arm = pipeline.PlatformImage{Platform: "linux/arm64/v8", Digest: arm64Digest}

	openssl = pipeline.Finding{ID: "CVE-2026-0001", Package: "openssl", Version: "3.0.11-1",
		PURL: "pkg:deb/debian/openssl@3.0.11-1?arch=amd64&distro=debian-12.11"}
	xcrypto = pipeline.Finding{ID: "CVE-2026-0001", Package: "golang.org/x/crypto", PURL: "pkg:golang/golang.org/x/crypto@v0.30.0#ssh"}
	noPURL  = pipeline.Finding{ID: "CVE-2026-0001", Package: "openssl"}
)

func TestMatchesProduct(t *testing.T) {
	oci := func(d string) string { return "pkg:oci/app@" + strings.Replace(d, ":", "%3A", 1) }
	both := []pipeline.PlatformImage{amd, arm}
	for _, tt := range []struct {
		product   string
		platforms []pipeline.PlatformImage
		finding   pipeline.Finding
		want      bool
	}{
		// By digest: the index's, or one of the platforms that were asked about.
		{digest, both, openssl, true},
		{digest, nil, openssl, true},
		{amd64Digest, both, openssl, true},
		{arm64Digest, both, openssl, true},
		{arm64Digest, []pipeline.PlatformImage{amd}, openssl, false},
		{elsewhere, both, openssl, false},
		{strings.ToUpper(digest), both, openssl, false},
		{"sha256:", both, openssl, false},
		{digest[:30], both, openssl, false},
		// By name.
		{"registry.example:5000/team/app", both, openssl, true},
		{"registry.example:5000/team/app@" + digest, both, openssl, true},
		{"registry.example:5000/team/app@" + amd64Digest, both, openssl, true},
		{"registry.example:5000/team/app@" + elsewhere, both, openssl, false},
		{"registry.example:5000/team/app@", both, openssl, false},
		{"registry.example:5000/team/app:v1", both, openssl, false},
		{"registry.example/team/app", both, openssl, false},
		{"team/app", both, openssl, false},
		{"app", both, openssl, false},
		{"", both, openssl, false},
		{"@", both, openssl, false},
		// By package URL of the image.
		{"pkg:oci/app", both, openssl, true},
		{"pkg:oci/App", both, openssl, true},
		{"pkg:oci/ap", both, openssl, false},
		{"pkg:oci/team/app", both, openssl, false},
		{"pkg:docker/app", both, openssl, false},
		{"pkg:oci/app#sub", both, openssl, false},
		{oci(digest), both, openssl, true},
		{"pkg:oci/app@" + digest, both, openssl, true},
		{oci(arm64Digest), both, openssl, true},
		{oci(arm64Digest), []pipeline.PlatformImage{amd}, openssl, false},
		{oci(elsewhere), both, openssl, false},
		{"pkg:oci/app@1.0.0", both, openssl, false},
		{"pkg:oci/other@" + digest, both, openssl, false},
		{oci(digest) + "?repository_url=registry.example:5000/team/app", both, openssl, true},
		{oci(digest) + "?repository_url=registry.example%3A5000%2Fteam%2Fapp", both, openssl, true},
		{"pkg:oci/app?repository_url=https://registry.example:5000/team/app/", both, openssl, true},
		{"pkg:oci/app?repository_url=registry.example:5000/team", both, openssl, true},
		{"pkg:oci/app?repository_url=registry.example:5000", both, openssl, false},
		{"pkg:oci/app?repository_url=other.example/team/app", both, openssl, false},
		{oci(digest) + "?repository_url=other.example/team/app", both, openssl, false},
		{"pkg:oci/app?tag=v1", both, openssl, false},
		{oci(digest) + "?tag=v1", both, openssl, true},
		{"pkg:oci/app?arch=amd64", both, openssl, false},
		{"pkg:oci/app?arch=amd64", []pipeline.PlatformImage{amd}, openssl, true},
		{"pkg:oci/app?arch=amd64&os=linux", []pipeline.PlatformImage{amd}, openssl, true},
		{"pkg:oci/app?os=windows", both, openssl, false},
		{"pkg:oci/app?os=linux", both, openssl, true},
		{"pkg:oci/app?os=linux", nil, openssl, false},
		{"pkg:oci/app?color=red", both, openssl, false},
		// By package URL of the package.
		{"pkg:deb/debian/openssl", both, openssl, true},
		{"pkg:deb/debian/openssl@3.0.11-1", both, openssl, true},
		{"pkg:deb/debian/openssl@3.0.11-2", both, openssl, false},
		{"pkg:deb/debian/openssl?arch=amd64", both, openssl, true},
		{"pkg:deb/debian/openssl?arch=arm64", both, openssl, false},
		{"pkg:deb/debian/openssl?epoch=1", both, openssl, false},
		{"pkg:deb/ubuntu/openssl", both, openssl, false},
		{"pkg:deb/openssl", both, openssl, false},
		{"pkg:rpm/debian/openssl", both, openssl, false},
		{"pkg:deb/debian/openssl-dev", both, openssl, false},
		{"pkg:golang/golang.org/x/crypto", both, xcrypto, true},
		{"pkg:golang/golang.org/x/crypto#ssh", both, xcrypto, true},
		{"pkg:golang/golang.org/x/crypto#acme", both, xcrypto, false},
		{"pkg:deb/debian/openssl", both, noPURL, false},
		{"pkg:oci/app", both, noPURL, true},
		// No package URLs at all.
		{"pkg:", both, openssl, false},
		{"pkg:oci/", both, openssl, false},
		{"pkg:oci/app?%zz", both, openssl, false},
		{"pkg:oci/app@%zz", both, openssl, false},
	} {
		s := pipeline.VEXStatement{Vulnerability: []string{"CVE-2026-0001"}, Products: []pipeline.VEXProduct{{ID: "other"}, {ID: tt.product}}}
		if got := (vex.Reader{}).Matches(s, tt.finding, app, tt.platforms); got != tt.want {
			t.Errorf("product %q, finding in %q, %d platforms: %t, want %t", tt.product, tt.finding.PURL, len(tt.platforms), got, tt.want)
		}
	}
	hub := pipeline.Image{Repository: "index.docker.io/library/nginx", Digest: digest}
	for _, product := range []string{"docker.io/nginx", "docker.io/library/nginx", "pkg:oci/nginx?repository_url=docker.io/library/nginx", "pkg:oci/nginx?repository_url=docker.io/library"} {
		s := pipeline.VEXStatement{Vulnerability: []string{"CVE-2026-0001"}, Products: []pipeline.VEXProduct{{ID: product}}}
		if !(vex.Reader{}).Matches(s, openssl, hub, nil) {
			t.Errorf("%s is not %s", product, hub.Repository)
		}
	}
}

func TestMatchesSubcomponentsAndAliases(t *testing.T) {
	for name, tt := range map[string]struct {
		vulnerability []string
		within        []string
		finding       pipeline.Finding
		want          bool
	}{
		"the name":                  {[]string{"CVE-2026-0001"}, nil, openssl, true},
		"in lower case":             {[]string{"cve-2026-0001"}, nil, openssl, true},
		"an alias":                  {[]string{"GHSA-aaaa-bbbb-cccc", "CVE-2026-0001"}, nil, openssl, true},
		"a part of it":              {[]string{"CVE-2026-00011", "CVE-2026-000"}, nil, openssl, false},
		"none":                      {nil, nil, openssl, false},
		"a finding without id":      {[]string{""}, nil, pipeline.Finding{}, false},
		"the package":               {[]string{"CVE-2026-0001"}, []string{"pkg:deb/debian/zlib", "pkg:deb/debian/openssl"}, openssl, true},
		"another package":           {[]string{"CVE-2026-0001"}, []string{"pkg:deb/debian/zlib"}, openssl, false},
		"the package by name":       {[]string{"CVE-2026-0001"}, []string{"openssl"}, openssl, false},
		"a package without URL":     {[]string{"CVE-2026-0001"}, []string{"pkg:deb/debian/openssl"}, noPURL, false},
		"a component without names": {[]string{"CVE-2026-0001"}, []string{""}, openssl, false},
	} {
		s := pipeline.VEXStatement{Vulnerability: tt.vulnerability, Products: []pipeline.VEXProduct{{ID: digest, Subcomponents: tt.within}}}
		if got := (vex.Reader{}).Matches(s, tt.finding, app, nil); got != tt.want {
			t.Errorf("%s: %t, want %t", name, got, tt.want)
		}
	}
}

// A product that is narrowed to something without a name is not the whole product.
func TestNamelessSubcomponent(t *testing.T) {
	s := ecdsaSigner(t, elliptic.P256(), crypto.SHA256)
	for within, want := range map[string]bool{`[]`: true, `null`: true, `[{}]`: false, `[{"hashes":{"md5":"00"}}]`: false, `[{"@id":"pkg:deb/debian/openssl"}]`: true} {
		document := []byte(`{"@context":"https://openvex.dev/ns/v0.2.0","author":"x","timestamp":"2026-05-01T10:00:00Z","statements":[
			{"vulnerability":{"name":"CVE-2026-0001"},"status":"fixed","products":[{"@id":"pkg:oci/app","subcomponents":` + within + `}]}]}`)
		got, err := read(document, s.base64Form(document), s.pem)
		if err != nil {
			t.Fatal(err)
		}
		if m := (vex.Reader{}).Matches(got[0], openssl, app, nil); m != want {
			t.Errorf("subcomponents %s: %t, want %t", within, m, want)
		}
	}
}
