package versions_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/dray-project/dray/pipeline/versions"
)

// TestOrder: lists in rising order, from the ecosystems' own rules.
func TestOrder(t *testing.T) {
	for _, c := range []struct {
		scheme versions.Scheme
		rising string
	}{
		// semver.org, section 11, in the order that it gives.
		{versions.NPM, "1.0.0-alpha 1.0.0-alpha.1 1.0.0-alpha.beta 1.0.0-beta 1.0.0-beta.2 1.0.0-beta.11 1.0.0-rc.1 1.0.0 2.0.0 2.1.0 2.1.1"},
		{versions.Generic, "1.0.0-alpha 1.0.0-alpha.1 1.0.0-alpha.beta 1.0.0-beta 1.0.0-beta.2 1.0.0-beta.11 1.0.0-rc.1 1.0.0 2.0.0 2.1.0 2.1.1"},
		// go.dev/ref/mod, section on pseudo-versions.
		{versions.Generic, "v0.0.0-20191109021931-daa7c04131f5 v0.1.0 v1.2.3-pre v1.2.3-pre.0.20191109021931-daa7c04131f5 v1.2.3 v1.2.4-0.20191109021931-daa7c04131f5 v1.2.4 v1.10.0 v2.0.0+incompatible"},
		// Debian Policy 5.6.12: tilde sorts before everything, letters before non-letters, epochs first.
		{versions.Deb, "1.0~~ 1.0~~a 1.0~ 1.0~rc1-1 1.0 1.0-1 1.0-1+deb12u1 1.0-1+deb12u2 1.0-1+deb12u10 1.0a-1 1.0+dfsg-1 1.1-1 1.9-1 1.10-1 1:0.1-1"},
		{versions.Deb, "3.0.11-1~deb12u1 3.0.11-1~deb12u2 3.0.11-1 3.0.11-1+b1"},
		// rpmvercmp: tilde before, caret after.
		{versions.RPM, "1.0~rc1-1 1.0-1 1.0^20240101-1 1.0.1-1 1.0.1-1.el9 1.0.1-2.el9 1.9-1 1.10-1 1:0.1-1"},
		// apk-tools' version grammar: suffixes before and after, then -r.
		{versions.APK, "1.0_alpha 1.0_alpha2 1.0_beta 1.0_pre1 1.0_rc1 1.0 1.0-r1 1.0-r2 1.0-r10 1.0_p1 1.0_p1-r1 1.0a 1.1 1.2.3 1.10"},
		// PEP 440, summary of permitted suffixes and relative ordering.
		{versions.PEP440, "1.0.dev456 1.0a1 1.0a2.dev456 1.0a12.dev456 1.0a12 1.0b1.dev456 1.0b2 1.0b2.post345.dev456 1.0b2.post345 1.0rc1.dev456 1.0rc1 1.0 1.0+abc.5 1.0+abc.7 1.0+5 1.0.post456.dev34 1.0.post456 1.1.dev1 1!0.1"},
		// Maven's ComparableVersion.
		{versions.Maven, "1-alpha-1 1-alpha-2 1-beta-1 1-milestone-1 1-rc-1 1-SNAPSHOT 1 1-sp 1-abc 1-1 1.1 1.9 1.10 2"},
		{versions.Gem, "1.0.a 1.0.b2 1.0.rc1 1.0 1.0.1 1.9 1.10 2.0.0.pre 2.0.0"},
	} {
		list := strings.Fields(c.rising)
		for i := range list {
			for j := range list {
				got, err := versions.Compare(c.scheme, list[i], list[j])
				want := 0
				if i < j {
					want = -1
				} else if i > j {
					want = 1
				}
				if err != nil || got != want {
					t.Errorf("%s: %s against %s is %d, %v; want %d", c.scheme, list[i], list[j], got, err, want)
				}
			}
		}
	}
}

// TestEqual: what is written differently and is the same.
func TestEqual(t *testing.T) {
	for scheme, pairs := range map[versions.Scheme]string{
		versions.Generic: "v1.2.3=1.2.3 1.2=1.2.0 1.0.0+a=1.0.0+b",
		versions.NPM:     "1.2.3+a=1.2.3+b",
		versions.Deb:     "0:1.0-1=1.0-1 1.0=1.0-0",
		versions.RPM:     "0:1.0-1=1.0-1",
		versions.PEP440:  "1.0=1.0.0 1.0alpha1=1.0a1 1.0-1=1.0.post1 v1.0=1.0",
		versions.Maven:   "1=1.0 1=1.0.0 1-ga=1 1-final=1 1-cr1=1-rc1",
		versions.Gem:     "1.0=1.0.0",
	} {
		for pair := range strings.FieldsSeq(pairs) {
			a, b, _ := strings.Cut(pair, "=")
			if got, err := versions.Compare(scheme, a, b); got != 0 || err != nil {
				t.Errorf("%s: %s against %s is %d, %v", scheme, a, b, got, err)
			}
		}
	}
}

func TestRanges(t *testing.T) {
	for _, c := range []struct {
		scheme versions.Scheme
		text   string
		in     string
		out    string
	}{
		{versions.Generic, "<0.31.0", "v0.30.0 v0.31.0-rc.1 0.0.1", "v0.31.0 0.31.1 v1.0.0"},
		{versions.Generic, ">=1.0.0 <1.4.2 || >=2.0.0, <2.0.7", "1.0.0 1.4.1 2.0.0 2.0.6", "0.9.9 1.4.2 1.5.0 2.0.7"},
		{versions.Generic, ">= 1.0.0 < 1.4.2", "1.0.0 1.4.1", "1.4.2"},
		{versions.Generic, "1.2.3", "1.2.3 v1.2.3", "1.2.4"},
		{versions.Generic, "!=1.2.3 >1.0.0", "1.2.4 1.0.1", "1.2.3 1.0.0"},
		{versions.Deb, "<3.0.11-1~deb12u2", "3.0.11-1~deb12u1 3.0.9-1 2:0~x", ""},
		{versions.Deb, "<3.0.11-1~deb12u2", "", "3.0.11-1~deb12u2 3.0.11-1 1:1.0-1"},
		{versions.RPM, ">=1:1.1.1k-6.el8 <1:1.1.1k-12.el8_9", "1:1.1.1k-6.el8 1:1.1.1k-9.el8_7", "1:1.1.1k-12.el8_9 1.1.1k-9.el8"},
		{versions.APK, "<3.1.4-r1", "3.1.4-r0 3.1.3-r9 3.1.4_rc1-r5", "3.1.4-r1 3.1.4-r10"},
		{versions.PEP440, ">=2.0,<2.31.0", "2.0 2.30.0 2.31.0rc1 2.31.dev0", "2.31 2.31.0 2.31.0.post1 1!2.1"},
		{versions.PEP440, "~=1.4.2", "1.4.2 1.4.9", "1.5 1.4.1"},
		{versions.PEP440, "==1.4.*", "1.4 1.4.9", "1.5"},
		{versions.NPM, "^1.2.3", "1.2.3 1.9.0", "2.0.0 1.2.2"},
		{versions.NPM, "~1.2.3", "1.2.3 1.2.9", "1.3.0"},
		{versions.NPM, "1.x", "1.0.0 1.9.9", "2.0.0 0.9.0"},
		{versions.NPM, "<4.17.21", "4.17.20 4.17.21-pre", "4.17.21"},
		{versions.Maven, "[2.0,2.15.0)", "2.0 2.14.1 2.15.0-rc1", "2.15.0 1.9"},
		{versions.Maven, "<2.17.1", "2.17.0 2.17.1-SNAPSHOT", "2.17.1 2.18"},
		{versions.Gem, "~> 1.2", "1.2 1.9", "2.0 1.1"},
		{versions.Generic, "vers:golang/>=1.0.0|<1.4.2|>=2.0.0|<2.0.7", "1.0.0 1.4.1 2.0.6", "1.4.2 2.0.7 0.1.0"},
		{versions.Deb, "vers:deb/<=1.0|!=0.5|3.0-1", "0.4 1.0 3.0-1", "0.5 2.0"},
		{versions.NPM, "vers:deb/<2.0", "", "1.0.0"},
		{versions.NPM, "vers:npm/*", "1.0.0", ""},
		{versions.PEP440, "vers:pypi/<1.0%2Blocal", "0.9", "1.1"},
	} {
		r, err := versions.Parse(c.text)
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		for want, list := range map[bool]string{true: c.in, false: c.out} {
			for v := range strings.FieldsSeq(list) {
				if c.text == "<3.0.11-1~deb12u2" && strings.HasPrefix(v, "2:") {
					want = false // an epoch comes before everything
				}
				if got, err := r.Holds(c.scheme, v); err != nil || got != want {
					t.Errorf("%s: %s in %q is %v, %v", c.scheme, v, c.text, got, err)
				}
			}
		}
	}
}

func TestRefused(t *testing.T) {
	for _, text := range []string{"", "   ", "<", "<=", "< > 1", "||", "1.0 ||", "<1.0 || ", ">=", strings.Repeat("1 ", 65), strings.Repeat("1", 1001),
		"<" + strings.Repeat("9", 19), "<1\x00", "<é", "vers:", "vers:npm", "vers:npm/", "vers:npm/<%zz", "vers:npm/" + strings.Repeat("1|", 65) + "1", "<=>1", "latest?'); DROP"} {
		if r, err := versions.Parse(text); !errors.Is(err, versions.ErrRange) {
			t.Errorf("%.40q: %v, %v", text, r, err)
		}
	}
	for _, c := range []struct {
		scheme  versions.Scheme
		text    string
		version string
	}{
		{versions.NPM, "<1.0.0", "not a version"}, {versions.NPM, "<1.0.0", ""}, {versions.NPM, "<1.0~rc", "1.0.0"},
		{versions.PEP440, "<1.0", "1.0.foo.bar"}, {versions.Deb, "<1.0", "a:1"}, {versions.APK, "<1.0", "x"},
		{versions.Generic, "<1.0", "(devel)"}, {versions.Generic, "<1.0", strings.Repeat("1.", 200) + "1"},
		{versions.Maven, "<1.0", "1." + strings.Repeat("9", 30)}, {versions.Deb, "^1.0", "1.0"}, {versions.Maven, "<1", "---"},
	} {
		r, err := versions.Parse(c.text)
		if err != nil {
			t.Fatal(err)
		}
		if in, err := r.Holds(c.scheme, c.version); !errors.Is(err, versions.ErrIncomparable) || in {
			t.Errorf("%s: %.40q in %q: %v, %v", c.scheme, c.version, c.text, in, err)
		}
	}
}

func TestOf(t *testing.T) {
	for _, c := range []struct {
		purl, typ string
		want      versions.Scheme
	}{
		{"pkg:deb/debian/openssl@3.0", "debian", versions.Deb}, {"", "ubuntu", versions.Deb}, {"", "alpine", versions.APK},
		{"pkg:golang/golang.org/x/crypto@v0.30.0", "gobinary", versions.Generic}, {"", "gobinary", versions.Generic},
		{"pkg:PyPI/requests@2", "", versions.PEP440}, {"", "python-pkg", versions.PEP440}, {"pkg:npm/%40babel/core@7", "node-pkg", versions.NPM},
		{"pkg:maven/org.apache/x@1", "jar", versions.Maven}, {"", "jar", versions.Maven}, {"", "redhat", versions.RPM}, {"", "", versions.Generic},
	} {
		if got := versions.Of(c.purl, c.typ); got != c.want {
			t.Errorf("%q, %q: %s, want %s", c.purl, c.typ, got, c.want)
		}
	}
}

var schemes = []versions.Scheme{versions.Deb, versions.RPM, versions.APK, versions.NPM, versions.PEP440, versions.Maven, versions.Gem, versions.Generic}

// FuzzRange: whatever comes, no panic, and an order that is the same from both sides.
func FuzzRange(f *testing.F) {
	for _, s := range []string{"1.0", "1:1.0-1", "1.0_rc1-r0", "1.0.post1", "[1,2)", "^1", "~> 1.2", "vers:npm/>=1|<2", "1.0-", "-", "a", "~", "1..2", ":::", "1.0-alpha..1"} {
		f.Add(s, ">=1.0 <2.0", "1.5")
		f.Add("1.0", s, s)
	}
	f.Fuzz(func(t *testing.T, a, text, b string) {
		r, err := versions.Parse(text)
		for _, s := range schemes {
			if err == nil {
				if in, err := r.Holds(s, a); err != nil && (in || !errors.Is(err, versions.ErrIncomparable)) {
					t.Errorf("%s: %q in %q: %v, %v", s, a, text, in, err)
				}
			}
			x, errX := versions.Compare(s, a, b)
			y, errY := versions.Compare(s, b, a)
			if (errX == nil) != (errY == nil) || x != -y {
				t.Errorf("%s: %q against %q is %d, %v, and the other way %d, %v", s, a, b, x, errX, y, errY)
			}
		}
	})
}
