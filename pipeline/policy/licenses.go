package policy

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/dray-project/dray/pipeline"
)

// licenses: no package is under a licence that is denied, or that is not allowed.
func licenses(a arguments) (func(facts) result, error) {
	var args struct {
		Deny           []string `json:"deny"`
		Allow          []string `json:"allow"`
		IgnorePackages []string `json:"ignorePackages"`
	}
	if err := a.into(&args); err != nil {
		return nil, err
	}
	if len(args.Deny)+len(args.Allow) == 0 {
		return nil, fmt.Errorf("with.deny or with.allow is required: SPDX identifiers or patterns such as AGPL-*: %w", pipeline.ErrInvalid)
	}
	for _, list := range [][]string{args.Deny, args.Allow, args.IgnorePackages} {
		for _, p := range list {
			if _, err := path.Match(p, ""); err != nil || p == "" || len(p) > 256 {
				return nil, fmt.Errorf("with: %.80q is no pattern of a name: %w", p, pipeline.ErrInvalid)
			}
		}
	}
	terms := licenseTerms{deny: denied(args.Deny), allow: canonicalAll(args.Allow)}
	ignored := func(name string) bool {
		return slices.ContainsFunc(args.IgnorePackages, func(p string) bool { return wildcard(p, name) })
	}
	return func(f facts) result {
		var bad, where, all []string
		skipped := 0
		for _, x := range f.Licenses {
			all = append(all, x.License)
			packages := slices.DeleteFunc(slices.Clone(x.Packages), ignored)
			skipped += len(x.Packages) - len(packages)
			if len(packages) == 0 || terms.permit(x.License) {
				continue
			}
			bad = append(bad, fmt.Sprintf("%.120s (%s)", x.License, some(packages, 3, ", ")))
			where = append(where, packages...)
		}
		l := looked{"licenses": few(all)}
		aside := ""
		if skipped > 0 {
			aside = fmt.Sprintf(" (%d package(s) ignored)", skipped)
		}
		if len(bad) == 0 {
			return pass(l, "%d licence(s), none that is not allowed%s", len(all), aside)
		}
		slices.Sort(where)
		return refuse(l, "remove or replace "+some(slices.Compact(where), 5, ", "),
			"%d licence(s) are not allowed: %s%s", len(bad), some(bad, 5, ", "), aside)
	}, nil
}

// licenseTerms say which licences are acceptable. The patterns are canonical.
type licenseTerms struct{ deny, allow []string }

// permit reads an SPDX expression (SPDX 2.3, annex D): of alternatives joined by
// OR one has to be acceptable, of those joined by AND every one. What is no
// expression is one name, and is denied as well where one of its words is.
func (t licenseTerms) permit(expr string) bool {
	if e, ok := parseLicense(expr); ok {
		return e.permitted(t)
	}
	for _, word := range strings.FieldsFunc(expr, func(r rune) bool { return strings.ContainsRune(" \t\n,;/()", r) }) {
		if matchesAny(t.deny, canonical(word)) {
			return false
		}
	}
	return t.permitOne(expr, "")
}

func (t licenseTerms) permitOne(id, exception string) bool {
	name := canonical(id)
	full := name
	if exception != "" {
		full += " with " + strings.ToLower(exception)
	}
	if matchesAny(t.deny, name) || matchesAny(t.deny, full) {
		return false
	}
	// An exception only ever gives more rights than the licence does.
	return len(t.allow) == 0 || matchesAny(t.allow, full) || matchesAny(t.allow, name)
}

func matchesAny(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return wildcard(p, name) })
}

// wildcard matches with "*" for anything, in either case.
func wildcard(pattern, name string) bool {
	// A slash is nothing special in a name: path.Match must not see one.
	flat := strings.NewReplacer("/", "\x00")
	ok, err := path.Match(flat.Replace(strings.ToLower(pattern)), flat.Replace(strings.ToLower(name)))
	return err == nil && ok
}

func canonicalAll(list []string) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = canonical(s)
	}
	return out
}

// denied writes patterns out: somebody who denies "GPL-3.0" means every form of
// it, also "GPL-3.0-or-later".
func denied(list []string) []string {
	var out []string
	for _, s := range list {
		name := canonical(s)
		out = append(out, name)
		if base, ok := strings.CutSuffix(name, "-only"); ok && !strings.HasSuffix(strings.ToLower(s), "-only") {
			out = append(out, base+"-or-later")
		}
	}
	return out
}

// canonical writes an SPDX identifier in lower case, and the deprecated ones of
// the GNU licences as what replaced them: "GPL-2.0" as "gpl-2.0-only".
func canonical(id string) string {
	id = strings.ToLower(strings.TrimSpace(id))
	for _, family := range []string{"gpl-", "lgpl-", "agpl-", "gfdl-"} {
		version, ok := strings.CutPrefix(id, family)
		if !ok {
			continue
		}
		switch number := strings.TrimSuffix(version, "+"); {
		case number == "" || strings.Trim(number, "0123456789.") != "":
			return id
		case number == version:
			return id + "-only"
		default:
			return family + number + "-or-later"
		}
	}
	return id
}
