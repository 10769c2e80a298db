// Package versions orders package versions, and says which lie in a range, by
// the rules of the ecosystem that a package comes from.
package versions

import (
	"cmp"
	"errors"
	"fmt"
	"strings"

	gem "github.com/aquasecurity/go-gem-version"
	npm "github.com/aquasecurity/go-npm-version/pkg"
	pep440 "github.com/aquasecurity/go-pep440-version"
	generic "github.com/aquasecurity/go-version/pkg/version"
	apk "github.com/knqyf263/go-apk-version"
	deb "github.com/knqyf263/go-deb-version"
	rpm "github.com/knqyf263/go-rpm-version"
	maven "github.com/masahiro331/go-mvn-version"
)

// Scheme is one ecosystem's way of ordering versions.
type Scheme string

// The schemes, each with the rules that it follows.
const (
	Deb    Scheme = "deb"    // Debian Policy 5.6.12
	RPM    Scheme = "rpm"    // rpmvercmp
	APK    Scheme = "apk"    // apk-tools
	NPM    Scheme = "npm"    // Semantic Versioning 2.0.0
	PEP440 Scheme = "pep440" // PEP 440
	Maven  Scheme = "maven"  // Maven's ComparableVersion
	Gem    Scheme = "gem"    // Gem::Version
	// Generic is semantic versioning with any number of segments and an optional
	// "v": Go modules, Cargo, NuGet, Composer and the rest.
	Generic Scheme = "semver"
)

// ErrIncomparable: by the rules of its ecosystem, a version is none.
var ErrIncomparable = errors.New("not comparable")

const (
	// maxVersion is how long a version can be and still be compared.
	maxVersion = 256
	// maxDigits is how many digits can follow each other: what is longer does not
	// fit a number, and two that do not fit would be equal.
	maxDigits = 18
)

// byType are the schemes of package URLs' types and of the types that scanners
// give to packages.
var byType = map[string]Scheme{
	"deb": Deb, "debian": Deb, "ubuntu": Deb,
	"rpm": RPM, "redhat": RPM, "centos": RPM, "rocky": RPM, "alma": RPM, "almalinux": RPM, "fedora": RPM, "oracle": RPM, "amazon": RPM,
	"suse": RPM, "opensuse": RPM, "opensuse-leap": RPM, "opensuse-tumbleweed": RPM, "sles": RPM, "suse linux enterprise server": RPM,
	"photon": RPM, "cbl-mariner": RPM, "azurelinux": RPM, "openeuler": RPM,
	"apk": APK, "alpine": APK, "wolfi": APK, "chainguard": APK,
	"npm": NPM, "yarn": NPM, "pnpm": NPM, "bun": NPM, "node-pkg": NPM, "javascript": NPM,
	"pypi": PEP440, "pip": PEP440, "pipenv": PEP440, "poetry": PEP440, "python-pkg": PEP440, "uv": PEP440, "pylock": PEP440,
	"maven": Maven, "jar": Maven, "pom": Maven, "gradle": Maven, "sbt": Maven,
	"gem": Gem, "bundler": Gem, "gemspec": Gem, "cocoapods": Gem,
}

// Of returns the scheme of a package by its package URL if it has one, else by
// the type that the scanner gave it. What is not known follows Generic.
func Of(purl, packageType string) Scheme {
	if rest, ok := strings.CutPrefix(purl, "pkg:"); ok {
		typ, _, _ := strings.Cut(rest, "/")
		if s, ok := byType[strings.ToLower(typ)]; ok {
			return s
		}
		return Generic
	}
	if s, ok := byType[strings.ToLower(packageType)]; ok {
		return s
	}
	return Generic
}

// Compare returns -1, 0 or 1. A version that the scheme does not know is an
// error that wraps ErrIncomparable.
func Compare(s Scheme, a, b string) (order int, err error) {
	x, err := parse(s, a)
	if err != nil {
		return 0, err
	}
	y, err := parse(s, b)
	if err != nil {
		return 0, err
	}
	return x.compare(y), nil
}

// version is a parsed one; which member is set depends on the scheme.
type version struct {
	scheme  Scheme
	deb     deb.Version
	rpm     rpm.Version
	apk     apk.Version
	npm     npm.Version
	pep440  pep440.Version
	maven   maven.Version
	gem     gem.Version
	generic generic.Version
}

func (v version) compare(o version) int {
	c := 0
	switch v.scheme {
	case Deb:
		c = v.deb.Compare(o.deb)
	case RPM:
		c = v.rpm.Compare(o.rpm)
	case APK:
		c = v.apk.Compare(o.apk)
	case NPM:
		c = v.npm.Compare(o.npm)
	case PEP440:
		c = v.pep440.Compare(o.pep440)
	case Maven:
		c = v.maven.Compare(o.maven)
	case Gem:
		c = v.gem.Compare(o.gem)
	default:
		c = v.generic.Compare(o.generic)
	}
	return cmp.Compare(c, 0)
}

// parse reads a version. The libraries are handed nothing that is long, that is
// not printable ASCII or that holds a number which does not fit.
func parse(s Scheme, text string) (v version, err error) {
	v.scheme = s
	if err := plausible(text); err != nil {
		return v, fmt.Errorf("version %.60q: %w: %w", text, err, ErrIncomparable)
	}
	switch s {
	case Deb:
		v.deb, err = deb.NewVersion(text)
	case RPM:
		v.rpm = rpm.NewVersion(text)
	case APK:
		if text[0] < '0' || text[0] > '9' {
			err = ErrIncomparable
			break
		}
		// Without a revision, the library puts 1.0_rc1 after 1.0.
		if !strings.Contains(text, "-") {
			text += "-r0"
		}
		v.apk, err = apk.NewVersion(text)
	case NPM:
		v.npm, err = npm.NewVersion(text)
	case PEP440:
		v.pep440, err = pep440.Parse(text)
	case Maven:
		v.maven, err = maven.NewVersion(text)
	case Gem:
		v.gem, err = gem.NewVersion(text)
	default:
		v.generic, err = generic.Parse(text)
	}
	if err != nil {
		return v, fmt.Errorf("version %.60q is none of %s: %w", text, s, ErrIncomparable)
	}
	return v, nil
}

func plausible(text string) error {
	if text == "" || len(text) > maxVersion {
		return fmt.Errorf("want 1 to %d bytes", maxVersion)
	}
	digits := 0
	for _, c := range []byte(text) {
		if c <= ' ' || c >= 0x7f {
			return errors.New("want printable ASCII without spaces")
		}
		digits++
		if c < '0' || c > '9' {
			digits = 0
		}
		if digits > maxDigits {
			return fmt.Errorf("a number of more than %d digits", maxDigits)
		}
	}
	if !strings.ContainsAny(text, "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") {
		return errors.New("no digit and no letter")
	}
	return nil
}
