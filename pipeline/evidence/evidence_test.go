package evidence_test

import (
	"testing"

	"github.com/dray-project/dray/pipeline/evidence"
	"github.com/dray-project/dray/pipeline/registry/registrytest"
)

// An honest bundle passes, on registries with and without the referrers API.
func TestBundleOfAnHonestImage(t *testing.T) {
	for name, host := range map[string]func(testing.TB) string{"referrers": registrytest.Olareg, "fallback": registrytest.Distribution} {
		t.Run(name, func(t *testing.T) {
			s, image := history(t, host(t))
			raw := s.bundle(image)
			result, err := verifyBundle(raw, s.trust())
			check(t, err)
			for _, c := range result.Claims {
				t.Logf("%-12s %-12s %-40s %s", c.Status, c.Claim, c.About, c.Detail)
			}
			t.Logf("%d bytes", len(raw))
			if !result.Passed {
				t.Errorf("failed: %+v", result.Failed())
			}
			if result.Image.Digest != image || result.Project != "app" {
				t.Errorf("about %s of %s", result.Image, result.Project)
			}
			have := map[string]evidence.Status{}
			for _, c := range result.Claims {
				have[c.Claim] = c.Status
			}
		})
	}
}
