package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dray-project/dray/pipeline"
)

// scanned: there is a scan of every platform, and it says by which database.
func scanned(a arguments) (func(facts) result, error) {
	const again = "run the scan again"
	return func(f facts) result {
		l := looked{"scan.platforms": f.Scan.Platforms, "scan.database": f.Scan.Database, "scan.databaseUpdatedAt": f.Scan.DatabaseUpdatedAt}
		var missing []string
		for _, p := range f.Image.Platforms {
			if !slices.Contains(f.Scan.Platforms, p) {
				missing = append(missing, string(p))
			}
		}
		switch {
		case len(f.Scan.Platforms) == 0:
			return refuse(l, again, "no platform of the image was scanned")
		case len(missing) > 0:
			l["image.platforms"] = f.Image.Platforms
			return refuse(l, again, "not scanned: %s", strings.Join(missing, ", "))
		case f.Scan.Database == "":
			return refuse(l, again, "the scan does not say which vulnerability database it used")
		}
		return pass(l, "%d platform(s) scanned with %s, database of %s",
			len(f.Scan.Platforms), f.Scan.Scanner, minute(f.Scan.DatabaseUpdatedAt))
	}, a.none()
}

// severity: no finding of a severity or above, save those that an exception or
// a VEX statement speaks for.
func severity(a arguments) (func(facts) result, error) {
	var args struct {
		FailOn        *pipeline.Severity `json:"failOn"`
		IgnoreUnfixed bool               `json:"ignoreUnfixed"`
	}
	if err := a.into(&args); err != nil {
		return nil, err
	}
	if args.FailOn == nil {
		return nil, fmt.Errorf("with.failOn is required: the least severity that refuses: %w", pipeline.ErrInvalid)
	}
	least := *args.FailOn
	return func(f facts) result {
		l := looked{"findings": tally(f.Findings)}
		var objects []pipeline.Finding
		unfixed, suppressed := 0, 0
		for _, x := range f.Findings {
			switch {
			case x.Severity < least:
			case x.Suppressed:
				suppressed++
			case args.IgnoreUnfixed && !x.Fixable:
				unfixed++
			default:
				objects = append(objects, x.Finding)
			}
		}
		sortFindings(objects)
		aside := ""
		if unfixed > 0 && len(objects) > 0 {
			aside = fmt.Sprintf(" (%d without a fix ignored)", unfixed)
		}
		if suppressed > 0 {
			aside += fmt.Sprintf(" (%d suppressed by an exception or a VEX statement)", suppressed)
		}
		if len(objects) == 0 {
			reason := fmt.Sprintf("no finding of severity %s or above", least)
			if unfixed > 0 {
				reason += fmt.Sprintf(" that has a fix (%d without one ignored)", unfixed)
			}
			return pass(l, "%s", reason+aside)
		}
		var names, fixes []string
		fixable := 0
		for _, x := range objects {
			names = append(names, describe(x))
			if x.FixedIn == "" {
				continue
			}
			fixable++
			if fix := fmt.Sprintf("update %s to %s", x.Package, x.FixedIn); !slices.Contains(fixes, fix) {
				fixes = append(fixes, fix)
			}
		}
		remedy := some(fixes, 5, "; ")
		switch {
		case fixable == 0:
			remedy = "remove the packages: no fixed version is known yet; or accept the findings for a time with an exception"
		case fixable < len(objects):
			remedy += fmt.Sprintf("; %d of the findings have no fixed version yet: remove the packages, or accept them for a time with an exception", len(objects)-fixable)
		}
		res := refuse(l, remedy, "%d finding(s) of severity %s or above: %s%s", len(objects), least, some(names, 5, ", "), aside)
		res.Findings = objects
		return res
	}, nil
}

func describe(x pipeline.Finding) string {
	return fmt.Sprintf("%s (%s) in %s %s", x.ID, x.Severity, x.Package, x.Version)
}

func sortFindings(list []pipeline.Finding) {
	slices.SortStableFunc(list, compareFindings)
}

// tally counts findings by severity, and those that are suppressed.
func tally(list []pipeline.FindingFact) map[string]int {
	out := map[string]int{"total": len(list)}
	for _, x := range list {
		if x.Suppressed {
			out["suppressed"]++
		} else {
			out[x.Severity.String()]++
		}
	}
	return out
}

// noException: the image does not need an exception to pass.
func noException(a arguments) (func(facts) result, error) {
	args := struct {
		Severity pipeline.Severity `json:"severity"`
	}{}
	if err := a.into(&args); err != nil {
		return nil, err
	}
	return func(f facts) result {
		l := looked{"findings": tally(f.Findings)}
		var objects []pipeline.Finding
		var names []string
		for _, x := range f.Findings {
			if x.Suppressed && x.Severity >= args.Severity && x.Suppression != nil && x.Suppression.By == "exception" {
				objects = append(objects, x.Finding)
				names = append(names, fmt.Sprintf("%s by %s (%s)", describe(x.Finding), x.Suppression.Author, x.Suppression.ID))
			}
		}
		if len(objects) == 0 {
			return pass(l, "no finding of severity %s or above is accepted by an exception", args.Severity)
		}
		sortFindings(objects)
		res := refuse(l, "mend the findings rather than accept them", "%d finding(s) of severity %s or above pass only by an exception: %s",
			len(objects), args.Severity, some(names, 5, ", "))
		res.Findings = objects
		return res
	}, nil
}

// clockSkew is how far ahead another host's clock may be without its word being
// doubted.
const clockSkew = 5 * time.Minute

func databaseAge(a arguments) (func(facts) result, error) {
	return age(a, "scan.databaseUpdatedAt", "the vulnerability database", "update the vulnerability database and scan again",
		func(f facts) time.Time { return f.Scan.DatabaseUpdatedAt })
}

func scanAge(a arguments) (func(facts) result, error) {
	return age(a, "scan.at", "the scan", "scan the image again", func(f facts) time.Time { return f.Scan.At })
}

func age(a arguments, fact, what, remedy string, of func(facts) time.Time) (func(facts) result, error) {
	var args struct {
		Max pipeline.Duration `json:"max"`
	}
	if err := a.into(&args); err != nil {
		return nil, err
	}
	if args.Max <= 0 {
		return nil, fmt.Errorf(`with.max is required: how old it may be, such as "48h": %w`, pipeline.ErrInvalid)
	}
	return func(f facts) result {
		at := of(f).UTC()
		l := looked{fact: at, "now": f.Now}
		old := f.Now.Sub(at)
		switch {
		case at.IsZero() || at.Unix() == 0:
			return refuse(l, remedy, "it is not known when %s was made", what)
		case old < -clockSkew:
			return refuse(l, "set the clocks right, then "+remedy, "%s is dated %s, which is in the future", what, minute(at))
		case old > args.Max.Std():
			return refuse(l, remedy, "%s is %s old (of %s); at most %s is allowed", what, roughly(old), minute(at), args.Max)
		}
		return pass(l, "%s is %s old (of %s), at most %s is allowed", what, roughly(max(old, 0)), minute(at), args.Max)
	}, nil
}

// minute writes a moment for people.
func minute(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 MST") }

// roughly writes a duration for people, no finer than they care for.
func roughly(d time.Duration) string {
	unit := time.Second
	switch {
	case d >= 48*time.Hour:
		unit = time.Hour
	case d >= time.Hour:
		unit = time.Minute
	}
	return pipeline.Duration(d.Truncate(unit)).String()
}

func compareFindings(a, b pipeline.Finding) int {
	return cmp.Or(cmp.Compare(b.Severity, a.Severity), cmp.Compare(a.ID, b.ID), cmp.Compare(a.Package, b.Package), cmp.Compare(a.Version, b.Version))
}
