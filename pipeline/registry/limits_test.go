package registry

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// The page for users states the limits that are in force.
func TestLimitsAreAsDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/registries.md")
	if err != nil {
		t.Fatal(err)
	}
	l := Limits{}.withDefaults()
	for what, value := range map[string]string{
		"a manifest, an index or a list of referrers":  fmt.Sprintf("%d MiB", l.ManifestBytes>>20),
		"all manifests of one promotion":               fmt.Sprintf("%d MiB", l.ClosureBytes>>20),
		"indexes within indexes":                       fmt.Sprint(l.IndexDepth),
		"manifests in one index":                       fmt.Sprint(l.Children),
		"layers in one manifest":                       fmt.Sprint(l.Layers),
		"manifests attached to an image and its parts": fmt.Sprint(l.Referrers),
		"attachments of attachments":                   fmt.Sprint(l.ReferrerDepth),
	} {
		if row := "| " + what + " | " + value + " |"; !strings.Contains(string(page), row) {
			t.Errorf("docs/registries.md does not say %q", row)
		}
	}
}
