package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/dray-project/dray/pipeline"
)

// readyMade are the rules that need no CEL, by name. docs/reference/policy.md
// describes each with its arguments.
func readyMade() map[string]maker {
	return map[string]maker{
		"scanned":            scanned,
		"severity":           severity,
		"no-exception":       noException,
		"database-age":       databaseAge,
		"scan-age":           scanAge,
		"non-root":           nonRoot,
		"no-shell":           noShell,
		"no-package-manager": noPackageManager,
		"no-setuid":          noSetuid,
		"no-config-secrets":  noConfigSecrets,
		"healthcheck":        healthcheck,
		"pinned-bases":       pinnedBases,
		"max-size":           maxSize,
		"max-wasted":         maxWasted,
		"no-lint":            noLint,
		"licenses":           licenses,
		"signed-by":          signedBy,
		"provenance":         provenance,
		"not-fork":           notFork,
	}
}

type (
	result = pipeline.RuleResult
	facts  = pipeline.Facts
	looked = map[string]any
)

func pass(l looked, format string, args ...any) result {
	return result{Passed: true, Reason: fmt.Sprintf(format, args...), Facts: l}
}

func refuse(l looked, remedy, format string, args ...any) result {
	return result{Reason: fmt.Sprintf(format, args...), Remedy: remedy, Facts: l}
}

// some joins the first n of list and says how many more there are.
func some(list []string, n int, sep string) string {
	if len(list) > n {
		list = append(slices.Clone(list[:n]), fmt.Sprintf("and %d more", len(list)-n))
	}
	return strings.Join(list, sep)
}

// few shortens a list for the facts of a result.
func few(list []string) []string {
	const most = 50
	if len(list) > most {
		list = append(slices.Clone(list[:most]), fmt.Sprintf("and %d more", len(list)-most))
	}
	return slices.Clone(list)
}
